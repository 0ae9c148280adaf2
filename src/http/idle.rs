//! The client connections without a request in progress, and which of them is closed when places or descriptors run
//! out.
//!
//! On the main port these are the connections that have not made their first request: a client that has been served
//! before keeps its connection. On the ports for probes and metrics, any connection between two requests may be closed.
//! The connection that has waited longest is closed first, and none is closed before it had time to send its request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use smg_runtime::clock::Clock;
use tokio::sync::Notify;

/// The connections that may be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GivesWay {
    /// Connections that have not made a request.
    BeforeFirstRequest,
    /// Connections that have no request in progress.
    BetweenRequests,
}

/// The connections of one port that may be closed to make room.
#[derive(Debug)]
pub(super) struct IdleConnections {
    clock: Clock,
    gives_way: GivesWay,
    /// How long a connection is never closed.
    grace: Duration,
    /// The connections by the time since when they wait, then by number. Locked to insert or remove one entry, twice
    /// per connection.
    waiting: Mutex<BTreeMap<(Duration, usize), Arc<Entry>>>,
    next: AtomicUsize,
    /// The number of connections that were requested to close and are still open.
    closing: AtomicUsize,
}

/// An entry of the list.
#[derive(Debug)]
struct Entry {
    must_close: AtomicBool,
    close_requested: Notify,
}

/// A connection's entry in the list. Dropping it removes the entry.
#[derive(Debug)]
pub(super) struct Place {
    connections: Arc<IdleConnections>,
    number: usize,
    entry: Arc<Entry>,
    /// The key of the entry; `None` if it is not in the list.
    since: Mutex<Option<Duration>>,
    /// Whether the entry is not in the list. Read without the lock.
    absent: AtomicBool,
}

impl IdleConnections {
    pub(super) fn new(clock: Clock, gives_way: GivesWay, grace: Duration) -> Arc<Self> {
        Arc::new(Self {
            clock,
            gives_way,
            grace,
            waiting: Mutex::default(),
            next: AtomicUsize::new(0),
            closing: AtomicUsize::new(0),
        })
    }

    /// Adds a new connection.
    pub(super) fn add(self: &Arc<Self>) -> Arc<Place> {
        let place = Place {
            connections: Arc::clone(self),
            number: self.next.fetch_add(1, Ordering::Relaxed),
            entry: Arc::new(Entry {
                must_close: AtomicBool::new(false),
                close_requested: Notify::new(),
            }),
            since: Mutex::new(None),
            absent: AtomicBool::new(true),
        };
        place.insert();
        Arc::new(place)
    }

    /// Requests the connection that has waited longest to close. Returns whether there was one that may be closed.
    pub(super) fn close_oldest(&self) -> bool {
        let mut waiting = self.waiting.lock();
        let Some(oldest) = waiting.first_entry() else { return false };
        let (since, _number) = *oldest.key();
        if self.clock.mono().saturating_sub(since) < self.grace {
            return false;
        }
        let entry = oldest.remove();
        self.closing.fetch_add(1, Ordering::Relaxed);
        entry.must_close.store(true, Ordering::Relaxed);
        entry.close_requested.notify_one();
        true
    }

    /// The number of connections that were requested to close and are still open.
    pub(super) fn closing(&self) -> usize {
        self.closing.load(Ordering::Relaxed)
    }
}

impl Place {
    /// Removes the entry, because a request has arrived.
    pub(super) fn begin_request(&self) {
        if !self.absent.load(Ordering::Relaxed) {
            self.remove();
        }
    }

    /// Adds the entry again, because no request is in progress any more.
    pub(super) fn end_request(&self) {
        if self.connections.gives_way == GivesWay::BetweenRequests {
            self.insert();
        }
    }

    /// Resolves when the connection is requested to close.
    pub(super) async fn gives_way(&self) {
        while !self.entry.must_close.load(Ordering::Relaxed) {
            self.entry.close_requested.notified().await;
        }
    }

    fn insert(&self) {
        let mut since = self.since.lock();
        let now = self.connections.clock.mono();
        if since.is_none() && !self.entry.must_close.load(Ordering::Relaxed) {
            *since = Some(now);
            let entry = Arc::clone(&self.entry);
            self.connections.waiting.lock().insert((now, self.number), entry);
            self.absent.store(false, Ordering::Relaxed);
        }
    }

    fn remove(&self) {
        if let Some(since) = self.since.lock().take() {
            self.connections.waiting.lock().remove(&(since, self.number));
            self.absent.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.remove();
        if self.entry.must_close.load(Ordering::Relaxed) {
            self.connections.closing.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(1);

    fn list(gives_way: GivesWay) -> Arc<IdleConnections> {
        IdleConnections::new(Clock::start(), gives_way, GRACE)
    }

    fn must_close(place: &Place) -> bool {
        place.entry.must_close.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_goes_first_and_none_before_its_time() {
        let list = list(GivesWay::BeforeFirstRequest);
        let first = list.add();
        tokio::time::advance(Duration::from_millis(600)).await;
        let second = list.add();
        assert!(!list.close_oldest(), "the first had no time");
        tokio::time::advance(Duration::from_millis(600)).await;
        assert!(list.close_oldest() && must_close(&first) && !must_close(&second));
        assert!(!list.close_oldest(), "the second had no time");
        first.gives_way().await;
        assert_eq!(list.closing(), 1);
        drop(first);
        assert_eq!(list.closing(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_was_served_keeps_its_connection_on_the_main_port_only() {
        for (gives_way, goes) in
            [(GivesWay::BeforeFirstRequest, false), (GivesWay::BetweenRequests, true)]
        {
            let list = list(gives_way);
            let place = list.add();
            place.begin_request();
            tokio::time::advance(2 * GRACE).await;
            assert!(!list.close_oldest(), "a request is under way");
            place.end_request();
            tokio::time::advance(2 * GRACE).await;
            assert_eq!(list.close_oldest(), goes, "{gives_way:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_has_left_is_not_listed() {
        let list = list(GivesWay::BetweenRequests);
        drop(list.add());
        let served = list.add();
        served.begin_request();
        served.end_request();
        drop(served);
        tokio::time::advance(2 * GRACE).await;
        assert!(!list.close_oldest() && list.closing() == 0);
    }
}
