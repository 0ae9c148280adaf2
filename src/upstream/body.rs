//! The body of a worker's response: watched by timers, and the one that gives the connection back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::connection::Connection;
use super::pool::Pool;
use crate::clock::Clock;
use crate::ids::WorkerId;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The worker broke off.
    #[error("the worker's response broke off")]
    Broken(#[source] hyper::Error),
    /// Nothing came for too long.
    #[error("nothing came from the worker for {0:?}")]
    Idle(Duration),
    /// The whole exchange took too long.
    #[error("the worker's response was not complete in time")]
    Total,
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
        let mut body =
            Self { incoming, connection: Some(connection), home, clock, limits, last, timer: None };
        if body.incoming.is_end_stream() {
            body.give_back();
        }
        body
    }

    /// Whether the client asked for a stream.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        self.limits.stream
    }

    fn give_back(&mut self) {
        if let (Some(connection), Some((pool, worker))) = (self.connection.take(), self.home.take())
        {
            pool.put(worker, connection, self.last);
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
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.last = this.clock.mono();
                if this.incoming.is_end_stream() {
                    this.give_back();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.connection = None;
                Poll::Ready(Some(Err(BodyError::Broken(error))))
            }
            Poll::Ready(None) => {
                this.give_back();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let error = ready!(this.poll_expired(cx));
                this.connection = None;
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
