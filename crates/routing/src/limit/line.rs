//! The order of the queue, and the requests that wait for the same workers.

use std::collections::BTreeMap;
use std::task::Waker;

/// The order of the queue: the arrival number less the head start, then the arrival number.
pub(super) type QueueKey = (u64, u64);

/// The requests that wait for the same workers.
pub(super) type Line = BTreeMap<QueueKey, Waiter>;

/// A request in a line.
#[derive(Debug, Default)]
pub(super) struct Waiter {
    pub(super) waker: Option<Waker>,
    /// The request should try to find a worker.
    pub(super) is_called: bool,
}

impl Waiter {
    /// Calls the request. Returns the waker to wake without the lock.
    pub(super) fn call(&mut self) -> Option<Waker> {
        self.is_called = true;
        self.waker.take()
    }
}
