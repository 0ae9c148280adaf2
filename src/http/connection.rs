//! One client connection: hyper's HTTP/1.1 (or, agreed on by TLS, HTTP/2) with three things around it that hyper leaves
//! to us without a timer per request: a request's head must arrive in time, an idle connection is not kept for ever,
//! and a shutdown or a broken stream ends it after the exchange that is under way.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use smg_runtime::clock::Clock;
use smg_runtime::tasks::turned_on;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use super::metrics::RouteMetrics;
use super::watched::Watched;

/// What the parts of one connection know of each other.
#[derive(Debug)]
pub(super) struct State {
    clock: Clock,
    /// Requests under way: 0 or 1, more with HTTP/2.
    busy: AtomicU32,
    /// `Clock::mono` in nanoseconds when it was last not busy.
    idle_since: AtomicU64,
    /// `Clock::mono` in nanoseconds since when the client takes nothing of what is there for it; 0: it takes.
    stalled_since: AtomicU64,
    /// Bytes of a next request have come.
    head_begun: AtomicBool,
    /// The head did not come in time.
    expired: AtomicBool,
    /// Must end after the exchange under way.
    close: AtomicBool,
    /// Has said its last and waits for the client to stop sending.
    lingers: AtomicBool,
}

impl State {
    pub(super) fn new(clock: Clock) -> Arc<Self> {
        let state = Self {
            clock,
            busy: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            stalled_since: AtomicU64::new(0),
            head_begun: AtomicBool::new(false),
            expired: AtomicBool::new(false),
            close: AtomicBool::new(false),
            lingers: AtomicBool::new(false),
        };
        state.mark_idle();
        Arc::new(state)
    }

    /// Whether a request is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    /// Whether the head did not come in time.
    pub(super) fn is_expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }

    /// Bytes have come: of a next head, unless a request is under way.
    pub(super) fn begin_head(&self) {
        if !self.is_busy() && !self.head_begun.swap(true, Ordering::Relaxed) {
            // From here on the head's own time counts.
            self.mark_idle();
        }
    }

    /// Nobody waits for the head any more. Whether some of it had come.
    pub(super) fn end_head(&self) -> bool {
        self.head_begun.swap(false, Ordering::Relaxed)
    }

    /// Our side has closed. Whether to wait for the client: something it sent was not read.
    pub(super) fn linger(&self) -> bool {
        let lingers = self.close.load(Ordering::Relaxed);
        self.lingers.store(lingers, Ordering::Relaxed);
        lingers
    }

    fn mark_idle(&self) {
        let now = u64::try_from(self.clock.mono().as_nanos()).unwrap_or(u64::MAX);
        self.idle_since.store(now, Ordering::Relaxed);
    }

    /// A request's head has come: the connection is busy until the exchange is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Exchange {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.head_begun.store(false, Ordering::Relaxed);
        Exchange {
            state: Arc::clone(self),
            started: self.clock.mono(),
            route: None,
            answered: false,
        }
    }

    /// Notes whether the client takes what is written.
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

    /// How long the client has taken nothing although something is there for it.
    fn stalled_for(&self) -> Duration {
        match self.stalled_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.clock.mono().saturating_sub(Duration::from_nanos(since)),
        }
    }

    /// How long it has not been busy; `None` while it is.
    fn idle_for(&self) -> Option<Duration> {
        let since = Duration::from_nanos(self.idle_since.load(Ordering::Relaxed));
        (self.busy.load(Ordering::Relaxed) == 0).then(|| self.clock.mono().saturating_sub(since))
    }
}

/// A request and its response, from the head's arrival to the last byte's departure.
#[derive(Debug)]
pub(super) struct Exchange {
    state: Arc<State>,
    started: Duration,
    route: Option<Arc<RouteMetrics>>,
    answered: bool,
}

/// What a request is counted as whose client left before it was answered.
const CLIENT_LEFT: u16 = 499;

impl Exchange {
    /// The route under which it is counted.
    pub(super) fn count_as(&mut self, route: Arc<RouteMetrics>) {
        self.route = Some(route);
    }

    /// The head of the response is on its way.
    pub(super) fn answered(&mut self, status: u16) {
        self.answered = true;
        if let Some(route) = &self.route {
            route.count(status);
        }
    }

    /// The connection must not be used again.
    pub(super) fn close_after(&self) {
        self.state.close.store(true, Ordering::Relaxed);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(route) = &self.route {
            if !self.answered {
                route.count(CLIENT_LEFT);
            }
            route
                .duration
                .observe(self.state.clock.mono().saturating_sub(self.started).as_secs_f64());
        }
        self.state.mark_idle();
        self.state.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is read at once, and the longest head of a request.
const MAX_BUFFER: usize = 64 << 10;

/// How long a client that was refused may go on sending before the connection is cut.
const LINGER: Duration = Duration::from_secs(1);

/// Between two pings over HTTP/2, and how long the answer may take.
const PING: Duration = Duration::from_secs(20);

/// How long a connection may be what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For a request's head to arrive once it has begun.
    pub(super) head: Duration,
    /// Without a request.
    pub(super) idle: Duration,
    /// For the client to take the next piece of a response.
    pub(super) write: Duration,
}

impl Patience {
    /// Time between two looks at a connection.
    fn look(&self) -> Duration {
        self.head.min(self.idle)
    }
}

/// Serves HTTP/1.1 until the client leaves, patience ends, or `closing` turns true and the exchange under way is over.
pub(super) async fn serve_http1<T, S, B>(
    io: T,
    service: S,
    state: Arc<State>,
    patience: Patience,
    mut closing: watch::Receiver<bool>,
) where
    T: AsyncRead + AsyncWrite + Unpin,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let watched = Watched::new(io, Arc::clone(&state));
    let mut connection = pin!(
        http1::Builder::new()
            .max_headers(256)
            .max_buf_size(MAX_BUFFER)
            .serve_connection(TokioIo::new(watched), service)
    );
    let mut watchdog = pin!(tokio::time::sleep(patience.look()));
    let mut told = false;
    let mut lingers = false;
    loop {
        let end = tokio::select! {
            biased;
            end = std::future::poll_fn(|cx| {
                if let Poll::Ready(served) = connection.as_mut().poll(cx) {
                    return Poll::Ready(End::Served(served));
                }
                if !lingers && state.lingers.load(Ordering::Relaxed) {
                    return Poll::Ready(End::Linger);
                }
                if !told && state.close.load(Ordering::Relaxed) {
                    return Poll::Ready(End::Close);
                }
                Poll::Pending
            }) => end,
            () = turned_on(&mut closing), if !told => End::Close,
            () = watchdog.as_mut() => End::Look,
        };
        match end {
            End::Served(Ok(())) => return,
            End::Served(Err(error)) => {
                debug!(%error, "connection of a client ended");
                return;
            }
            End::Close => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            End::Linger => {
                lingers = true;
                watchdog.as_mut().reset(next_look(LINGER));
            }
            End::Look if lingers => return,
            End::Look => {
                if state.stalled_for() >= patience.write {
                    // Its request holds a place at a worker for as long as it is here.
                    debug!("a client took nothing of its response for too long");
                    return;
                }
                let begun = state.head_begun.load(Ordering::Relaxed);
                let most = if begun { patience.head } else { patience.idle };
                let left = state
                    .idle_for()
                    .map_or_else(|| patience.look(), |idle| most.saturating_sub(idle));
                if left.is_zero() {
                    state.expired.store(true, Ordering::Relaxed);
                }
                let next = left.min(patience.look()).max(Duration::from_millis(10));
                watchdog.as_mut().reset(next_look(next));
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a timer of tokio's, on tokio's clock")]
fn next_look(after: Duration) -> Instant {
    Instant::now() + after
}

/// Why a connection's turn ended.
enum End {
    Served(hyper::Result<()>),
    Close,
    Linger,
    Look,
}

/// Serves HTTP/2 until the client leaves, has no request for too long, or `closing` turns true and what is under way is
/// over. One stream's trouble is not the others': nothing that an exchange says closes the connection.
pub(super) async fn serve_http2<T, S, B>(
    io: T,
    service: S,
    state: Arc<State>,
    patience: Patience,
    mut closing: watch::Receiver<bool>,
) where
    T: AsyncRead + AsyncWrite + Unpin,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut connection = pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            // Who answers no ping is gone, and its requests with it.
            .keep_alive_interval(Some(PING))
            .keep_alive_timeout(PING)
            .max_concurrent_streams(256)
            .serve_connection(TokioIo::new(io), service)
    );
    let mut watchdog = pin!(tokio::time::sleep(patience.look()));
    let mut told = false;
    loop {
        let end = tokio::select! {
            biased;
            served = connection.as_mut() => End::Served(served),
            () = turned_on(&mut closing), if !told => End::Close,
            () = watchdog.as_mut() => End::Look,
        };
        match end {
            End::Served(Ok(())) => return,
            End::Served(Err(error)) => {
                debug!(%error, "connection of a client ended");
                return;
            }
            End::Close => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            End::Linger | End::Look => {
                let left = state
                    .idle_for()
                    .map_or(patience.idle, |idle| patience.idle.saturating_sub(idle));
                // It was told to go and has not gone.
                if told && left.is_zero() {
                    return;
                }
                if left.is_zero() {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                let next = left.min(patience.look()).max(Duration::from_millis(10));
                watchdog.as_mut().reset(next_look(if told { patience.head } else { next }));
            }
        }
    }
}
