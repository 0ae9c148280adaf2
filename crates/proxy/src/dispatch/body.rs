//! The body of a response for the client: counts the request until its last byte, judges the worker by the end of the
//! body, and ends a broken stream with an event that clients understand.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use smg_routing::fleet::Outcome;
use smg_routing::policies::Ending;
use tracing::warn;

use super::account::Account;
use super::tunnel::Tunnel;
use crate::causes::with_causes;
use crate::upstream;

/// The end of a broken stream, so that a client does not take it for complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// The body is not a stream of events: the connection is aborted.
    Cut,
    /// A terminal event with these bytes, then the end of the body.
    Event(&'static str),
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The worker broke off, or took too long.
    #[error(transparent)]
    Worker(upstream::BodyError),
    /// The worker was removed, and its drain timeout has passed.
    #[error("the worker was removed")]
    TakenAway,
}

impl BodyError {
    fn is_about_the_worker(&self) -> bool {
        match self {
            Self::Worker(error) => error.is_about_the_worker(),
            Self::TakenAway => false,
        }
    }
}

/// The body of a response.
#[derive(Debug)]
pub struct ResponseBody {
    inner: upstream::ResponseBody,
    /// Taken when the body ends.
    account: Option<Account>,
    stream_end: StreamEnd,
    /// Whether the terminal event was sent.
    broken: bool,
}

impl ResponseBody {
    pub(super) fn new(
        inner: upstream::ResponseBody,
        account: Account,
        stream_end: StreamEnd,
    ) -> Self {
        let mut body = Self { inner, account: Some(account), stream_end, broken: false };
        if body.inner.is_end_stream() {
            body.complete();
        }
        body
    }

    /// Whether the stream broke and was ended with an error, so that the connection must not be used again.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The tunnel to the worker, after an answer of 101. `None`: the connection is closed already.
    pub fn take_tunnel(&mut self) -> Option<Tunnel> {
        let worker = self.inner.take_tunnel()?;
        Some(Tunnel::new(worker, self.account.take()?))
    }

    fn complete(&mut self) {
        if let Some(account) = self.account.take() {
            let ending = if account.is_error { Ending::WorkerError } else { Ending::Complete };
            let outcome = account.outcome;
            account.settle(ending, outcome);
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
        if this.broken {
            return Poll::Ready(None);
        }
        let mut polled = Pin::new(&mut this.inner)
            .poll_frame(cx)
            .map(|frame| frame.map(|frame| frame.map_err(BodyError::Worker)));
        if let Some(in_flight) =
            this.account.as_mut().and_then(|account| account.in_flight.as_mut())
            && (polled.is_pending() || in_flight.is_aborted())
            && in_flight.poll_abort(cx).is_ready()
        {
            this.inner.close();
            polled = Poll::Ready(Some(Err(BodyError::TakenAway)));
        }
        match ready!(polled) {
            Some(Ok(frame)) => {
                if let (Some(account), Some(piece)) = (this.account.as_mut(), frame.data_ref()) {
                    account.observe(piece);
                }
                if this.inner.is_end_stream() {
                    this.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                if let Some(account) = this.account.take() {
                    warn!(
                        worker = %account.worker,
                        request_id = str::from_utf8(&account.request_id).unwrap_or_default(),
                        error = %with_causes(&error),
                        "response broke off"
                    );
                    let outcome = if error.is_about_the_worker() {
                        Outcome::Failure
                    } else {
                        Outcome::Neutral
                    };
                    account.settle(Ending::Broken, outcome);
                }
                match this.stream_end {
                    StreamEnd::Cut => Poll::Ready(Some(Err(error))),
                    StreamEnd::Event(event) => {
                        this.broken = true;
                        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(event.as_bytes())))))
                    }
                }
            }
            None => {
                this.complete();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.broken || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.stream_end {
            StreamEnd::Cut => self.inner.size_hint(),
            // The terminal event may exceed the announced length.
            StreamEnd::Event(_) => SizeHint::default(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Some(account) = self.account.take() {
            // The client disconnected before the end, which is no verdict on the worker.
            account.settle(Ending::ClientLeft, Outcome::Neutral);
        }
    }
}
