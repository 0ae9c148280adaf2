//! The body of a worker's response: watched by timers, and the one that gives the connection back.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use smg_runtime::clock::Clock;
use smg_runtime::shortage::Kind;
use smg_types::ids::WorkerId;
use tokio::time::Sleep;

use super::connection::Connection;
use super::decode::{FramingError, Incoming};
use super::pool::Pool;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The worker broke off.
    #[error("the worker's response broke off")]
    Broken(#[source] io::Error),
    /// What came is not a body.
    #[error("the framing of the worker's response is wrong")]
    Framing(#[source] FramingError),
    /// Nothing came for too long.
    #[error("nothing came from the worker for {0:?}")]
    Idle(Duration),
    /// The whole exchange took too long.
    #[error("the worker's response was not complete in time")]
    Total,
}

impl BodyError {
    /// Whether it says something of the worker. What the router lacks itself does not.
    #[must_use]
    pub fn is_about_the_worker(&self) -> bool {
        match self {
            Self::Broken(error) => Kind::of(error).is_none(),
            Self::Framing(_) | Self::Idle(_) | Self::Total => true,
        }
    }
}

/// How long a body may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Between two frames.
    pub(super) idle: Duration,
    /// `Clock::mono` at which it must have ended.
    pub(super) deadline: Option<Duration>,
    /// Whether the client asked for a stream.
    pub(super) stream: bool,
}

/// The body of a worker's response. At its end the connection goes back to the pool; dropped before, the connection is
/// closed, and the worker sees it.
#[derive(Debug)]
pub struct ResponseBody {
    incoming: Incoming,
    /// Taken at the end.
    connection: Option<Connection>,
    /// Where the connection goes; `None`: the worker closes it.
    home: Option<(Arc<Pool>, WorkerId)>,
    clock: Clock,
    limits: Limits,
    /// `Clock::mono` of the last frame.
    last: Duration,
    /// Made at the first wait: most bodies are there at once.
    timer: Option<Pin<Box<Sleep>>>,
    /// Something was given since the last wait, so that who sends it on may not have done so yet.
    fresh: bool,
    /// Why it ended, until that is told.
    failed: Option<BodyError>,
}

impl ResponseBody {
    pub(super) fn new(
        incoming: Incoming,
        connection: Connection,
        home: Option<(Arc<Pool>, WorkerId)>,
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

    /// Closes the connection: nothing more comes.
    pub fn close(&mut self) {
        self.connection = None;
        self.home = None;
    }

    /// The connection is not needed any more: others may have it, if it can be used again.
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
            // A worker may answer while it reads. If it reads no more, its answer is still an answer.
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

    /// When the wait for the next frame is over.
    fn expires(&self) -> Duration {
        let idle = self.last + self.limits.idle;
        self.limits.deadline.map_or(idle, |deadline| idle.min(deadline))
    }

    /// Ready once the wait took too long. The timer is set once and looks at the time of the last frame when it fires,
    /// so that a frame costs no timer.
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
            // Who learns of an error drops what it has not sent on yet, head included. It sends while it waits.
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
