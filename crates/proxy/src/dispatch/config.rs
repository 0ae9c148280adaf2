//! When a request is tried again, and how long it may wait.

use std::time::Duration;

/// When a request is tried again, and how long it waits where it may.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Attempts after the first one.
    pub max_retries: u32,
    /// Back-off before the first retry; full jitter.
    pub initial_backoff: Duration,
    /// No back-off is longer.
    pub max_backoff: Duration,
    /// Growth of the back-off from retry to retry, at least 1.
    pub backoff_multiplier: f32,
    /// Retries as a share of recent requests, 0..=1.
    pub budget_ratio: f32,
    /// Retries per second that are always allowed.
    pub budget_floor: f32,
    /// How long a request waits for a place when `max_concurrent` are at the workers.
    pub queue_timeout: Duration,
    /// How long a request waits when workers are known and none is available; zero: not at all.
    pub no_worker_wait: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_retries: 3,
            initial_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(5),
            backoff_multiplier: 2.0,
            budget_ratio: 0.2,
            budget_floor: 10.0,
            queue_timeout: Duration::from_secs(60),
            no_worker_wait: Duration::ZERO,
        }
    }
}
