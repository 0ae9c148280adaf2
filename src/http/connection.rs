//! One client connection: hyper's HTTP/1.1 or HTTP/2 (negotiated by TLS, or begun by the client's preface), with the
//! timers that hyper does not have.
//!
//! One timer per connection serves all purposes: a request's head must arrive in time, an idle connection is closed,
//! and a client that reads nothing of its response is disconnected (over HTTP/2, `streams` resets the stream). A
//! shutdown ends the connection after the exchanges in progress, and so does a broken stream over HTTP/1.1.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::HttpService;
use hyper_util::rt::{TokioIo, TokioTimer};
use smg_runtime::tasks::turned_on;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use super::Config;
use super::exchange::{Observed, State};
use super::streams::Streams;
use super::watched::Watched;

/// The most bytes that are read at once, and the longest head of a request, in bytes.
const MAX_BUFFER: usize = 64 << 10;

/// How long a refused client may continue to send before the connection is aborted.
const LINGER: Duration = Duration::from_secs(1);

/// The time between two pings over HTTP/2, and the time limit for the answer to one.
const PING: Duration = Duration::from_secs(20);

/// The shortest time until the timer fires again.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Timeouts of a client connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// For the rest of a request's head after its first byte, and for the first head after the connection was accepted.
    pub(super) head: Duration,
    /// For the next request on an idle connection.
    pub(super) idle: Duration,
    /// For the client to read the next piece of a response.
    pub(super) write: Duration,
}

impl Timeouts {
    pub(super) fn of(config: &Config) -> Self {
        Self { head: config.header_timeout, idle: config.idle_timeout, write: config.body_timeout }
    }

    /// How long a connection without a request is kept: a client has as long for its first request as for a head.
    fn until_request(self, found: Observed) -> Duration {
        if found.head_begun || !found.served { self.head } else { self.idle }
    }

    /// The time after which the timer of a connection fires at the latest.
    fn longest_wait(self) -> Duration {
        self.head.min(self.idle)
    }
}

/// The protocol of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1: one exchange at a time.
    Http1,
    /// HTTP/2: many exchanges at a time. A broken stream does not affect the others, so no exchange closes the
    /// connection.
    Http2,
}

/// The action that follows when the timer fires.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing is due; check again after this time.
    Wait(Duration),
    /// The head has not arrived in time; check again after this time.
    Expire(Duration),
    /// The connection must end after the exchanges in progress; check again after this time.
    Close(Duration),
    /// The connection is aborted, for this reason.
    Cut(&'static str),
}

/// Why the driver of a connection was woken.
enum Event {
    Ended(hyper::Result<()>),
    /// No more requests are accepted.
    Close,
    /// Our side is closed, and the client still sends.
    Linger,
    Timer,
}

/// Serves a connection until the client disconnects, a timeout passes, or `closing` is true and the exchanges in
/// progress have ended.
pub(super) async fn serve<T, S, B>(
    protocol: Protocol,
    io: T,
    service: S,
    state: Arc<State>,
    timeouts: Timeouts,
    closing: watch::Receiver<bool>,
) where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    match protocol {
        Protocol::Http1 => serve_http1(io, service, state, timeouts, closing).await,
        // Boxed, so that a connection over HTTP/1.1 does not pay for the larger state.
        Protocol::Http2 => Box::pin(serve_http2(io, service, state, timeouts, closing)).await,
    }
}

/// [`serve`] over HTTP/1.1, for services that need not be `Send`. A connection that switches to another protocol is no
/// longer served here.
pub(super) async fn serve_http1<T, S, B>(
    io: T,
    service: S,
    state: Arc<State>,
    timeouts: Timeouts,
    closing: watch::Receiver<bool>,
) where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    let watched = Watched::new(io, Arc::clone(&state));
    let connection = pin!(
        http1::Builder::new()
            .max_headers(256)
            .max_buf_size(MAX_BUFFER)
            .serve_connection(TokioIo::new(watched), service)
            .with_upgrades()
    );
    let close =
        |connection: Pin<&mut http1::UpgradeableConnection<_, _>>| connection.graceful_shutdown();
    drive(connection, close, Protocol::Http1, &state, timeouts, closing).await;
}

async fn serve_http2<T, S, B>(
    io: T,
    service: S,
    state: Arc<State>,
    timeouts: Timeouts,
    closing: watch::Receiver<bool>,
) where
    T: AsyncRead + AsyncWrite + Unpin,
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let connection = pin!(
        http2::Builder::new(Streams { clock: state.clock(), limit: timeouts.write })
            .timer(TokioTimer::new())
            // A client that does not answer a ping is gone, and its requests are aborted.
            .keep_alive_interval(Some(PING))
            .keep_alive_timeout(PING)
            .max_concurrent_streams(256)
            .serve_connection(TokioIo::new(io), service)
    );
    let close = |connection: Pin<&mut http2::Connection<_, _, _>>| connection.graceful_shutdown();
    drive(connection, close, Protocol::Http2, &state, timeouts, closing).await;
}

/// Drives hyper's `connection` to its end. `close` makes it accept no more requests.
async fn drive<C>(
    mut connection: Pin<&mut C>,
    close: impl Fn(Pin<&mut C>),
    protocol: Protocol,
    state: &State,
    timeouts: Timeouts,
    mut closing: watch::Receiver<bool>,
) where
    C: Future<Output = hyper::Result<()>>,
{
    let heeds_exchanges = protocol == Protocol::Http1;
    let mut timer = pin!(tokio::time::sleep(timeouts.longest_wait()));
    let mut is_closing = false;
    let mut lingers = false;
    loop {
        let event = tokio::select! {
            biased;
            event = std::future::poll_fn(|cx| {
                if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                    return Poll::Ready(Event::Ended(ended));
                }
                if heeds_exchanges && !lingers && state.is_lingering() {
                    return Poll::Ready(Event::Linger);
                }
                if heeds_exchanges && !is_closing && state.must_close() {
                    return Poll::Ready(Event::Close);
                }
                Poll::Pending
            }) => event,
            () = turned_on(&mut closing), if !is_closing => Event::Close,
            () = timer.as_mut() => Event::Timer,
        };
        let verdict = match event {
            Event::Ended(ended) => {
                if let Err(error) = ended {
                    debug!(%error, "connection of a client ended");
                }
                return;
            }
            Event::Close => {
                is_closing = true;
                close(connection.as_mut());
                continue;
            }
            Event::Linger => {
                lingers = true;
                Verdict::Wait(LINGER)
            }
            Event::Timer if lingers => return,
            Event::Timer => protocol.judge(state.observed(), timeouts, is_closing),
        };
        let wait = match verdict {
            Verdict::Wait(wait) => wait,
            Verdict::Expire(wait) => {
                state.expire();
                wait
            }
            Verdict::Close(wait) => {
                is_closing = true;
                close(connection.as_mut());
                wait
            }
            Verdict::Cut(reason) => {
                debug!(reason, "connection of a client is cut");
                return;
            }
        };
        timer.as_mut().reset(in_future(wait));
    }
}

impl Protocol {
    /// Decides the action from the state that the timer has found. `is_closing` means that the connection accepts no
    /// more requests.
    fn judge(self, found: Observed, timeouts: Timeouts, is_closing: bool) -> Verdict {
        match self {
            Self::Http1 => {
                // A request whose client reads nothing occupies a place at a worker.
                if found.stalled >= timeouts.write {
                    return Verdict::Cut("the client took nothing of its response for too long");
                }
                let most = timeouts.until_request(found);
                let left = found
                    .idle
                    .map_or_else(|| timeouts.longest_wait(), |idle| most.saturating_sub(idle));
                let wait = left.min(timeouts.longest_wait()).max(SHORTEST_WAIT);
                if left.is_zero() { Verdict::Expire(wait) } else { Verdict::Wait(wait) }
            }
            Self::Http2 => {
                let most = timeouts.until_request(found);
                let left = most.saturating_sub(found.idle.unwrap_or_default());
                match (left.is_zero(), is_closing) {
                    (true, true) => Verdict::Cut("the client did not leave after the last request"),
                    (true, false) => Verdict::Close(timeouts.head),
                    (false, true) => Verdict::Wait(timeouts.head),
                    (false, false) => {
                        Verdict::Wait(left.min(timeouts.longest_wait()).max(SHORTEST_WAIT))
                    }
                }
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a timer of tokio's, on tokio's clock")]
fn in_future(wait: Duration) -> Instant {
    Instant::now() + wait
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(75),
        write: Duration::from_secs(60),
    };

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn idle(n: u64) -> Observed {
        Observed {
            stalled: Duration::ZERO,
            head_begun: false,
            served: true,
            idle: Some(seconds(n)),
        }
    }

    #[test]
    fn a_client_that_says_nothing_has_as_long_as_a_head() {
        let silent = |n| Observed { served: false, ..idle(n) };
        let judge = |protocol: Protocol, n| protocol.judge(silent(n), TIMEOUTS, false);
        assert_eq!(judge(Protocol::Http1, 9), Verdict::Wait(seconds(1)));
        assert_eq!(judge(Protocol::Http1, 10), Verdict::Expire(SHORTEST_WAIT));
        assert_eq!(judge(Protocol::Http2, 9), Verdict::Wait(seconds(1)));
        assert_eq!(judge(Protocol::Http2, 10), Verdict::Close(seconds(10)));
    }

    #[test]
    fn a_head_has_less_time_than_an_idle_connection() {
        let judge = |found| Protocol::Http1.judge(found, TIMEOUTS, false);
        assert_eq!(judge(idle(9)), Verdict::Wait(seconds(10)));
        assert_eq!(judge(idle(74)), Verdict::Wait(seconds(1)));
        assert_eq!(judge(idle(75)), Verdict::Expire(SHORTEST_WAIT));
        let begun = |n| Observed { head_begun: true, ..idle(n) };
        assert_eq!(judge(begun(9)), Verdict::Wait(seconds(1)));
        assert_eq!(judge(begun(10)), Verdict::Expire(SHORTEST_WAIT));
    }

    #[test]
    fn a_client_that_takes_nothing_is_cut_off_over_http_1_only() {
        let busy = Observed { stalled: seconds(60), idle: None, ..idle(0) };
        let cut = |protocol: Protocol, found| {
            matches!(protocol.judge(found, TIMEOUTS, false), Verdict::Cut(_))
        };
        assert!(cut(Protocol::Http1, busy) && !cut(Protocol::Http2, busy));
        assert!(!cut(Protocol::Http1, Observed { stalled: seconds(59), ..busy }));
    }

    #[test]
    fn an_idle_http_2_connection_is_closed_and_then_cut() {
        let judge = |found, is_closing| Protocol::Http2.judge(found, TIMEOUTS, is_closing);
        assert_eq!(judge(idle(70), false), Verdict::Wait(seconds(5)));
        assert_eq!(judge(idle(75), false), Verdict::Close(seconds(10)));
        assert_eq!(judge(idle(70), true), Verdict::Wait(seconds(10)));
        assert!(matches!(judge(idle(75), true), Verdict::Cut(_)));
        let busy = Observed { idle: None, ..idle(0) };
        assert_eq!(judge(busy, true), Verdict::Wait(seconds(10)));
    }
}
