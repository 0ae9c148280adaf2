//! Limits: who may go on now, who waits, who is sent away.
//!
//! [`Admission`] is a semaphore with a bounded queue. It knows no clock and no runtime: the caller bounds the wait by
//! dropping the future, and any executor can poll it.

mod admission;
mod counters;
mod metrics;
mod priority;

#[cfg(test)]
mod tests;

use std::num::NonZeroU32;

pub use admission::{Admission, Enter, Permit, Rejected};
pub use metrics::Metrics;
pub use priority::{ParsePriorityError, Priority};

/// How many requests are let in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Requests that may be at the workers at once; `None`: no limit.
    pub max_concurrent: Option<NonZeroU32>,
    /// Requests that may wait for a place; 0: none.
    pub queue_size: u32,
}
