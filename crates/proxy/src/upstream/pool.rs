//! The idle connections by worker. The newest is used first, so that the pool shrinks to the size that the traffic
//! needs.
//!
//! While descriptors are scarce no connection is kept, because its descriptor may be needed elsewhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use smg_runtime::descriptors::Descriptors;

use super::connection::Connection;
use super::target::Place;

/// The idle connections of one data-path thread.
#[derive(Debug)]
pub(super) struct Pool {
    max_idle: usize,
    keep_alive: Duration,
    descriptors: Arc<Descriptors>,
    // Only one thread uses the lock, for a push or a pop, so it is never contended on the request path.
    idle: Mutex<HashMap<Place, Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    /// `Clock::mono` of the moment when the connection was added.
    since: Duration,
}

impl Pool {
    pub(super) fn new(
        max_idle: usize,
        keep_alive: Duration,
        descriptors: Arc<Descriptors>,
    ) -> Self {
        Self { max_idle, keep_alive, descriptors, idle: Mutex::default() }
    }

    /// Takes the most recently used connection that is still open.
    pub(super) fn take(&self, worker: Place, now: Duration) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let stack = idle.get_mut(&worker)?;
        while let Some(Idle { mut connection, since }) = stack.pop() {
            if now.saturating_sub(since) < self.keep_alive && connection.is_idle() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for later use, or closes it if there are enough.
    pub(super) fn put(&self, worker: Place, connection: Connection, now: Duration) {
        if self.descriptors.is_scarce() {
            return;
        }
        let mut idle = self.idle.lock();
        let stack = idle.entry(worker).or_default();
        if stack.len() < self.max_idle {
            stack.push(Idle { connection, since: now });
        }
    }

    /// Closes connections that are closed already or have been idle for too long; all of them while descriptors are
    /// scarce.
    pub(super) fn evict(&self, now: Duration) {
        let scarce = self.descriptors.is_scarce();
        let keeps = |idle: &mut Idle| {
            !scarce && now.saturating_sub(idle.since) < self.keep_alive && idle.connection.is_idle()
        };
        self.idle.lock().retain(|_, stack| {
            stack.retain_mut(keeps);
            !stack.is_empty()
        });
    }

    /// Closes the connection that has been idle for the longest time. Returns false if there is none.
    pub(super) fn give_up_one(&self) -> bool {
        let mut idle = self.idle.lock();
        let oldest = idle.values_mut().filter(|stack| !stack.is_empty());
        // The newest connections are at the end of each stack.
        let Some(stack) = oldest.min_by_key(|stack| stack[0].since) else { return false };
        drop(stack.remove(0));
        true
    }
}
