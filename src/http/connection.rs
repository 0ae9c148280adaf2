//! One client connection: hyper's HTTP/1.1 (or, agreed on by TLS, HTTP/2) with three things around it that hyper leaves
//! to us without a timer per request: a request's head must arrive in time, an idle connection is not kept for ever,
//! and a shutdown or a broken stream ends it after the exchange that is under way.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use super::error::HEAD_TIMEOUT;
use super::metrics::RouteMetrics;
use crate::clock::Clock;
use crate::tasks::turned_on;

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
        };
        state.mark_idle();
        Arc::new(state)
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
    fn wrote<T>(&self, written: &Poll<io::Result<T>>) {
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

/// A stream that notes when a head begins, and that ends by itself, with a word of explanation, when it takes too long.
#[derive(Debug)]
struct Watched<T> {
    inner: T,
    state: Arc<State>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.state.expired.load(Ordering::Relaxed) {
            if this.state.head_begun.swap(false, Ordering::Relaxed) {
                // Best effort: who did not send may not receive either.
                let _written = Pin::new(&mut this.inner).poll_write(cx, HEAD_TIMEOUT);
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        if buf.filled().len() > before
            && this.state.busy.load(Ordering::Relaxed) == 0
            && !this.state.head_begun.swap(true, Ordering::Relaxed)
        {
            // From here on the head's own time counts.
            this.state.mark_idle();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.state.wrote(&written);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.state.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
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
    let watched = Watched { inner: io, state: Arc::clone(&state) };
    let mut connection = pin!(
        http1::Builder::new()
            .max_headers(256)
            .max_buf_size(MAX_BUFFER)
            .serve_connection(TokioIo::new(watched), service)
    );
    let mut watchdog = pin!(tokio::time::sleep(patience.head));
    let mut told = false;
    loop {
        let end = tokio::select! {
            biased;
            end = std::future::poll_fn(|cx| {
                if let Poll::Ready(served) = connection.as_mut().poll(cx) {
                    return Poll::Ready(End::Served(served));
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
            End::Look => {
                if state.stalled_for() >= patience.write {
                    // Its request holds a place at a worker for as long as it is here.
                    debug!("a client took nothing of its response for too long");
                    return;
                }
                let begun = state.head_begun.load(Ordering::Relaxed);
                let most = if begun { patience.head } else { patience.idle };
                let left = state.idle_for().map_or(patience.head, |idle| most.saturating_sub(idle));
                if left.is_zero() {
                    state.expired.store(true, Ordering::Relaxed);
                }
                let next = left.min(patience.head).max(Duration::from_millis(10));
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
    Look,
}
