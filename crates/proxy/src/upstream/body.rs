//! The body of a worker's response. It applies the timeouts, and returns the connection to the pool at its end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use smg_runtime::clock::Clock;
use smg_runtime::shortage::Kind;
use tokio::time::Sleep;

use super::connection::Connection;
use super::decode::{FramingError, Incoming};
use super::pool::Pool;
use super::target::Place;
use super::tunnel::Tunnel;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection closed or failed before the end of the body.
    #[error("the worker's response broke off")]
    Broken(#[source] io::Error),
    /// The bytes that arrived violate the framing of the body.
    #[error("the framing of the worker's response is wrong")]
    Framing(#[source] FramingError),
    /// No bytes arrived within the idle timeout.
    #[error("the worker sent nothing for {0:?}")]
    Idle(Duration),
    /// The exchange took longer than the total timeout.
    #[error("the worker's response was not complete in time")]
    Total,
}

impl BodyError {
    /// Whether the worker caused the error. The router's own shortages are not the worker's fault.
    #[must_use]
    pub fn is_about_the_worker(&self) -> bool {
        match self {
            Self::Broken(error) => Kind::of(error).is_none(),
            Self::Framing(_) | Self::Idle(_) | Self::Total => true,
        }
    }
}

/// The timeouts of a body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The longest time between two frames.
    pub(super) idle: Duration,
    /// The `Clock::mono` at which the body must have ended; `None` means no limit.
    pub(super) deadline: Option<Duration>,
    /// Whether the client asked for a stream.
    pub(super) stream: bool,
}

/// The body of a worker's response. At its end the connection returns to the pool. Dropping the body earlier closes the
/// connection, so that the worker stops.
#[derive(Debug)]
pub struct ResponseBody {
    incoming: Incoming,
    /// `None` after the end.
    connection: Option<Connection>,
    /// The pool to which the connection returns; `None` if the worker closes the connection.
    home: Option<(Arc<Pool>, Place)>,
    clock: Clock,
    limits: Limits,
    /// `Clock::mono` of the last frame.
    last: Duration,
    /// Created at the first wait: most bodies arrive at once and need no timer.
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether a frame was returned since the last wait, so that the caller may not have sent it to the client yet.
    fresh: bool,
    /// The error that the next poll returns.
    failed: Option<BodyError>,
}

impl ResponseBody {
    pub(super) fn new(
        incoming: Incoming,
        connection: Connection,
        home: Option<(Arc<Pool>, Place)>,
        clock: Clock,
        limits: Limits,
    ) -> Self {
        let last = clock.mono();
        let mut body = Self {
            incoming,
            connection: Some(connection),
            home,
            clock,
            limits,
            last,
            timer: None,
            fresh: true,
            failed: None,
        };
        if body.incoming.has_ended() {
            body.give_back();
        }
        body
    }

    /// Whether the client asked for a stream.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        self.limits.stream
    }

    /// The connection itself, after an answer of 101. No frames follow. `None`: it is closed already.
    pub fn take_tunnel(&mut self) -> Option<Tunnel> {
        let mut first = BytesMut::new();
        while let Some(piece) = self.incoming.next_piece() {
            first.extend_from_slice(&piece);
        }
        self.connection.take().map(|connection| Tunnel::new(connection, first.freeze()))
    }

    /// Closes the connection. No more frames follow.
    pub fn close(&mut self) {
        self.connection = None;
        self.home = None;
    }

    /// Returns the connection to the pool if it can be used again.
    fn give_back(&mut self) {
        if let (Some(connection), Some((pool, worker))) = (self.connection.take(), self.home.take())
            && connection.is_sent()
            && self.incoming.ends_clean()
        {
            pool.put(worker, connection, self.last);
        }
    }

    /// The next piece; `None` at the end.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            if let Some(piece) = self.incoming.next_piece() {
                return Poll::Ready(Some(Ok(piece)));
            }
            if let Some(error) = self.incoming.wrong() {
                return Poll::Ready(Some(Err(BodyError::Framing(error))));
            }
            let Some(connection) = self.connection.as_mut().filter(|_| !self.incoming.has_ended())
            else {
                return Poll::Ready(None);
            };
            // A worker may respond while it reads the request. If it stops reading, its response is still valid.
            let _sent = connection.poll_send(cx);
            match ready!(connection.poll_read(cx, |read| self.incoming.feed(read))) {
                Ok(Some(())) => {}
                Ok(None) if self.incoming.close() => {}
                Ok(None) => {
                    let early = io::ErrorKind::UnexpectedEof.into();
                    return Poll::Ready(Some(Err(BodyError::Broken(early))));
                }
                Err(error) => return Poll::Ready(Some(Err(BodyError::Broken(error)))),
            }
        }
    }

    /// The `Clock::mono` at which the wait for the next frame times out.
    fn expires(&self) -> Duration {
        let idle = self.last + self.limits.idle;
        self.limits.deadline.map_or(idle, |deadline| idle.min(deadline))
    }

    /// Ready when the wait has timed out. The timer is set once and reads the time of the last frame when it fires, so
    /// that a frame does not reset a timer.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        loop {
            let expires = self.expires();
            let clock = self.clock;
            let timer = self.timer.get_or_insert_with(|| {
                Box::pin(tokio::time::sleep_until(clock.instant_at(expires)))
            });
            ready!(timer.as_mut().poll(cx));
            let now = clock.mono();
            if now >= expires {
                let total = self.limits.deadline.is_some_and(|deadline| now >= deadline);
                return Poll::Ready(if total {
                    BodyError::Total
                } else {
                    BodyError::Idle(self.limits.idle)
                });
            }
            timer.as_mut().reset(clock.instant_at(expires));
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(error) = this.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let error = match this.poll_piece(cx) {
            Poll::Ready(Some(Ok(piece))) => {
                this.last = this.clock.mono();
                this.fresh = true;
                if this.incoming.has_ended() {
                    this.give_back();
                }
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            Poll::Ready(None) => {
                this.give_back();
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => error,
            Poll::Pending => {
                this.fresh = false;
                ready!(this.poll_expired(cx))
            }
        };
        this.connection = None;
        if std::mem::take(&mut this.fresh) {
            // On an error the caller drops the frames that it has not sent yet, the head included. It sends them while
            // it waits, so the error is returned one poll later.
            this.failed = Some(error);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_done()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.left().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
