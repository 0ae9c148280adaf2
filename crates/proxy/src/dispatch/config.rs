//! When a request is tried again, how long it may wait, and what a worker's status says of the worker.

use std::time::Duration;

use http::StatusCode;
use smg_routing::fleet::Outcome;

/// When a request is tried again, and how long it waits where it may.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Attempts after the first one.
    pub max_retries: u32,
    /// Longest back-off before the first retry.
    pub initial_backoff: Duration,
    /// No back-off is longer.
    pub max_backoff: Duration,
    /// Growth of the back-off from retry to retry, at least 1.
    pub backoff_multiplier: f32,
    /// Share of the back-off that is drawn at random, 0..=1: with 1 it is between zero and the longest.
    pub backoff_jitter: f32,
    /// Retries as a share of recent requests, 0..=1.
    pub budget_ratio: f32,
    /// Retries per second that are always allowed.
    pub budget_floor: f32,
    /// Statuses by which a worker says that it has too much to do: no failure, but a reason to ask another first.
    pub push_back_statuses: Vec<StatusCode>,
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
            backoff_jitter: 1.0,
            budget_ratio: 0.2,
            budget_floor: 10.0,
            push_back_statuses: vec![
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::SERVICE_UNAVAILABLE,
            ],
            queue_timeout: Duration::from_secs(60),
            no_worker_wait: Duration::ZERO,
        }
    }
}

impl Config {
    /// Whether a worker's answer may be replaced by another worker's.
    pub(super) fn is_retryable(&self, status: StatusCode) -> bool {
        matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504 | 508)
            || self.pushes_back(status)
    }

    /// Whether an answer with this status says that the worker has too much to do.
    pub(super) fn pushes_back(&self, status: StatusCode) -> bool {
        self.push_back_statuses.contains(&status)
    }

    /// What a complete answer with this status says of the worker.
    pub(super) fn judge(&self, status: StatusCode) -> Outcome {
        if self.pushes_back(status) || status.is_client_error() {
            Outcome::Neutral
        } else if status.is_server_error() {
            Outcome::Failure
        } else {
            Outcome::Success
        }
    }
}
