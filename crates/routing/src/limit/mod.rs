//! Limits: a request is admitted, waits in a bounded queue, or is rejected.
//!
//! [`Admission`] is a semaphore with a bounded queue, in which requests also wait for a worker with room ([`Place`]). It uses no clock and no runtime: the caller bounds the wait by dropping
//! the future, and any executor can poll it.

mod admission;
mod counters;
mod for_worker;
mod line;
mod metrics;
mod priority;

#[cfg(test)]
mod tests;

use std::num::NonZeroU32;

pub use admission::{Acquire, Admission, Permit, Rejected};
pub use for_worker::Place;
pub use metrics::Metrics;
pub use priority::{ParsePriorityError, Priority};

/// How many requests are admitted at once, and how many may wait.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Requests that this router may have at the workers at once; `None`: no limit.
    pub max_concurrent: Option<NonZeroU32>,
    /// Requests that may wait for a permit; 0: a request without a permit is rejected at once.
    pub queue_size: u32,
}
