//! Limits: who may go on now, who waits, who is sent away.

use std::num::NonZeroU32;

/// How many requests are let in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Requests that may be at the workers at once; `None`: no limit.
    pub max_concurrent: Option<NonZeroU32>,
    /// Requests that may wait for a place; 0: none.
    pub queue_size: u32,
}
