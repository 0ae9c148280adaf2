//! The shared state of one client connection: whether a request is in progress, and the times that its timer checks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use smg_runtime::clock::Clock;

use super::access_log::Ticket;
use super::idle::Place;
use super::metrics::RouteMetrics;
use super::streams::Progress;

/// The shared state of the parts of one connection.
#[derive(Debug)]
pub(super) struct State {
    clock: Clock,
    /// The connection's place among those that may be closed to make room.
    place: Arc<Place>,
    /// A request has come.
    served: AtomicBool,
    /// The number of requests in progress: 0 or 1, more with HTTP/2.
    busy: AtomicU32,
    /// `Clock::mono` in nanoseconds when the connection was last not busy.
    idle_since: AtomicU64,
    /// `Clock::mono` in nanoseconds since when the client reads nothing although data is waiting; 0 if it reads.
    stalled_since: AtomicU64,
    /// Whether bytes of a next request have been received.
    head_begun: AtomicBool,
    /// Whether the head did not arrive in time.
    expired: AtomicBool,
    /// Whether the connection must end after the exchange in progress.
    close: AtomicBool,
    /// Whether the request in progress has a body that is not read to its end. Only for HTTP/1.1.
    unread_body: AtomicBool,
    /// Whether our side has closed and waits until the client stops sending.
    lingers: AtomicBool,
}

impl State {
    pub(super) fn new(clock: Clock, place: Arc<Place>) -> Arc<Self> {
        let state = Self {
            clock,
            place,
            served: AtomicBool::new(false),
            busy: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            stalled_since: AtomicU64::new(0),
            head_begun: AtomicBool::new(false),
            expired: AtomicBool::new(false),
            close: AtomicBool::new(false),
            unread_body: AtomicBool::new(false),
            lingers: AtomicBool::new(false),
        };
        state.mark_idle();
        Arc::new(state)
    }

    /// The clock by which its times are measured.
    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    /// Whether a request is in progress.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    /// Whether the head did not arrive in time.
    pub(super) fn is_expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }

    /// Records that bytes were received, which belong to a next head unless a request is in progress.
    pub(super) fn begin_head(&self) {
        if !self.is_busy() && !self.head_begun.swap(true, Ordering::Relaxed) {
            // From here on the timeout of the head counts.
            self.mark_idle();
        }
    }

    /// Records that the head is no longer expected. Returns whether a part of it was received.
    pub(super) fn end_head(&self) -> bool {
        self.head_begun.swap(false, Ordering::Relaxed)
    }

    /// Records that our side has closed. Returns whether to wait for the client, because bytes from it were not read.
    pub(super) fn linger(&self) -> bool {
        let lingers = self.close.load(Ordering::Relaxed);
        self.lingers.store(lingers, Ordering::Relaxed);
        lingers
    }

    fn mark_idle(&self) {
        let now = u64::try_from(self.clock.mono().as_nanos()).unwrap_or(u64::MAX);
        self.idle_since.store(now, Ordering::Relaxed);
    }

    /// Records that a request's head was received. The connection is busy until the exchange is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Exchange {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.served.store(true, Ordering::Relaxed);
        self.place.begin_request();
        self.head_begun.store(false, Ordering::Relaxed);
        Exchange {
            state: Arc::clone(self),
            progress: Progress::current(),
            started: self.clock.mono(),
            route: None,
            answered: None,
            ticket: Ticket::default(),
        }
    }

    /// Records whether the client reads what is written.
    pub(super) fn wrote<T>(&self, written: &Poll<io::Result<T>>) {
        if written.is_ready() {
            if self.stalled_since.load(Ordering::Relaxed) != 0 {
                self.stalled_since.store(0, Ordering::Relaxed);
            }
        } else if self.stalled_since.load(Ordering::Relaxed) == 0 {
            let now = u64::try_from(self.clock.mono().as_nanos()).unwrap_or(u64::MAX);
            self.stalled_since.store(now.max(1), Ordering::Relaxed);
        }
    }

    /// The times that the connection's timer checks.
    pub(super) fn observed(&self) -> Observed {
        Observed {
            stalled: self.stalled_for(),
            head_begun: self.head_begun.load(Ordering::Relaxed),
            served: self.served.load(Ordering::Relaxed),
            idle: self.idle_for(),
        }
    }

    /// Records that the head is late. Then [`Watched`](super::watched::Watched) answers and ends the connection.
    pub(super) fn expire(&self) {
        self.expired.store(true, Ordering::Relaxed);
    }

    /// The connection must end after the exchange under way.
    pub(super) fn close_after(&self) {
        self.close.store(true, Ordering::Relaxed);
    }

    /// Records whether the body of the request in progress is still to be read.
    pub(super) fn set_unread_body(&self, is_unread: bool) {
        self.unread_body.store(is_unread, Ordering::Relaxed);
    }

    /// Whether the request in progress has a body that is not read to its end.
    pub(super) fn has_unread_body(&self) -> bool {
        self.unread_body.load(Ordering::Relaxed)
    }

    /// Whether an exchange requires that the connection is closed after it.
    pub(super) fn must_close(&self) -> bool {
        self.close.load(Ordering::Relaxed)
    }

    /// Whether our side has closed and waits until the client stops sending.
    pub(super) fn is_lingering(&self) -> bool {
        self.lingers.load(Ordering::Relaxed)
    }

    /// How long the client has read nothing although data is waiting for it.
    fn stalled_for(&self) -> Duration {
        match self.stalled_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.clock.mono().saturating_sub(Duration::from_nanos(since)),
        }
    }

    /// How long the connection has not been busy; `None` while it is.
    fn idle_for(&self) -> Option<Duration> {
        let since = Duration::from_nanos(self.idle_since.load(Ordering::Relaxed));
        (self.busy.load(Ordering::Relaxed) == 0).then(|| self.clock.mono().saturating_sub(since))
    }
}

/// The times that the connection's timer checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Observed {
    /// How long the client has read nothing although data is waiting for it.
    pub(super) stalled: Duration,
    /// Whether a part of a request's head has arrived.
    pub(super) head_begun: bool,
    /// Whether a request has arrived before.
    pub(super) served: bool,
    /// How long no request has been in progress; `None` if one is.
    pub(super) idle: Option<Duration>,
}

/// A request and its response, from the arrival of the head to the last byte of the response.
#[derive(Debug)]
pub(super) struct Exchange {
    state: Arc<State>,
    /// Of the stream on which it runs, over HTTP/2.
    progress: Option<Arc<Progress>>,
    started: Duration,
    route: Option<Arc<RouteMetrics>>,
    /// The status of the response.
    answered: Option<u16>,
    /// Its line in the access log.
    ticket: Ticket,
}

/// The status under which a request is counted if its client disconnected before the answer.
const CLIENT_LEFT: u16 = 499;

impl Exchange {
    /// The route under which it is counted.
    pub(super) fn count_as(&mut self, route: Arc<RouteMetrics>) {
        self.route = Some(route);
    }

    /// The line of the access log that is written when it ends.
    pub(super) fn log_as(&mut self, ticket: Ticket) {
        self.ticket = ticket;
    }

    /// Its line in the access log.
    pub(super) fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Records that the head of the response is being sent.
    pub(super) fn answered(&mut self, status: u16) {
        self.answered = Some(status);
        if let Some(route) = &self.route {
            route.count(status);
        }
        self.offer();
    }

    /// A piece of the response is there for the client.
    pub(super) fn offer(&self) {
        if let Some(progress) = &self.progress {
            progress.offer();
        }
    }

    /// The client has taken all pieces that were there.
    pub(super) fn take(&self) {
        if let Some(progress) = &self.progress {
            progress.take();
        }
    }

    /// Records that the connection must not be used again.
    pub(super) fn close_after(&self) {
        self.state.close_after();
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(route) = &self.route {
            if self.answered.is_none() {
                route.count(CLIENT_LEFT);
            }
            route
                .duration
                .observe(self.state.clock.mono().saturating_sub(self.started).as_secs_f64());
        }
        self.ticket.write(self.answered.unwrap_or(CLIENT_LEFT));
        self.state.mark_idle();
        if self.state.busy.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.state.place.end_request();
        }
    }
}
