//! When a request is retried, how long it may wait, and the verdict of a status on the worker.

use std::time::Duration;

use http::StatusCode;
use smg_routing::fleet::Outcome;

/// When a request is retried, and how long it waits where it may.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The most attempts after the first one.
    pub max_retries: u32,
    /// The longest back-off before the first retry.
    pub initial_backoff: Duration,
    /// The longest back-off before any retry.
    pub max_backoff: Duration,
    /// The factor by which the back-off grows from retry to retry, at least 1.
    pub backoff_multiplier: f32,
    /// The share of the back-off that is random, 0..=1. With 1, the back-off is between zero and the longest.
    pub backoff_jitter: f32,
    /// Retries as a share of recent requests, 0..=1.
    pub budget_ratio: f32,
    /// Retries per second that are always allowed.
    pub budget_floor: f32,
    /// The statuses with which a worker reports that it is overloaded. They are no failures, but other workers are
    /// preferred.
    pub push_back_statuses: Vec<StatusCode>,
    /// How long a request waits in the queue: for a place while `max_concurrent` requests are in flight, and for a worker with room.
    pub queue_timeout: Duration,
    /// A request waits in the queue while the prompts that wait on each worker need more than this time; `None`: it does not.
    pub max_expected_wait: Option<Duration>,
    /// How long a request waits if workers are known and none is available; zero means that it does not wait.
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
            max_expected_wait: None,
            no_worker_wait: Duration::ZERO,
        }
    }
}

impl Config {
    /// Whether a worker's answer may be replaced by that of another worker.
    pub(super) fn is_retryable(&self, status: StatusCode) -> bool {
        matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504 | 508)
            || self.pushes_back(status)
    }

    /// Whether a status reports that the worker is overloaded.
    pub(super) fn pushes_back(&self, status: StatusCode) -> bool {
        self.push_back_statuses.contains(&status)
    }

    /// The verdict on the worker after a complete answer with this status.
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
