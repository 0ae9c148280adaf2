//! The bodies of responses: complete ones, those that stream from a worker, and those that axum makes.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use smg_proxy::dispatch;

use super::access_log::End;
use super::exchange::Exchange;
use super::metered::Metered;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A response's body. While it exists, its connection is busy.
#[derive(Debug)]
pub(super) struct Body {
    kind: Kind,
    /// Ends together with the body.
    exchange: Option<Exchange>,
}

#[derive(Debug)]
enum Kind {
    Empty,
    Full(Bytes),
    Worker(Box<Metered>),
    Axum(axum::body::Body),
    Beats(Box<dyn Beats>),
}

/// The part of a stream before the worker's first byte.
pub(super) trait Beats: std::fmt::Debug + Send {
    /// The next item of the stream.
    fn poll_beat(&mut self, cx: &mut Context<'_>) -> Poll<Beat>;
}

/// An item of a stream before the worker's first byte.
pub(super) enum Beat {
    /// A comment, or the event that ends the stream.
    Own(Bytes),
    /// The first piece of the worker's stream, if there is one, and the rest of it.
    Worker(Option<Result<Frame<Bytes>, BoxError>>, Box<Body>),
    /// The end of the stream.
    End,
}

impl Body {
    pub(super) fn empty() -> Self {
        Kind::Empty.into()
    }

    pub(super) fn full(bytes: impl Into<Bytes>) -> Self {
        Kind::Full(bytes.into()).into()
    }

    pub(super) fn worker(body: Metered) -> Self {
        Kind::Worker(Box::new(body)).into()
    }

    pub(super) fn axum(body: axum::body::Body) -> Self {
        Kind::Axum(body).into()
    }

    /// A stream that `beats` begins.
    pub(super) fn beats(beats: impl Beats + 'static) -> Self {
        Kind::Beats(Box::new(beats)).into()
    }

    /// The tunnel to the worker, after its answer of 101.
    pub(super) fn take_tunnel(&mut self) -> Option<dispatch::Tunnel> {
        match &mut self.kind {
            Kind::Worker(body) => body.take_tunnel(),
            Kind::Empty | Kind::Full(_) | Kind::Axum(_) | Kind::Beats(_) => None,
        }
    }

    /// Attaches the exchange that ends together with the body.
    pub(super) fn ending(mut self, exchange: Exchange) -> Self {
        if self.is_end_stream() {
            exchange.ticket().note_end(End::Complete);
        }
        self.exchange = Some(exchange);
        self
    }

    /// Notes in the access log what was polled.
    fn note(&self, exchange: &Exchange, polled: &Poll<Option<Result<Frame<Bytes>, BoxError>>>) {
        let ticket = exchange.ticket();
        match polled {
            _ if !ticket.is_open() => {}
            Poll::Pending => {}
            Poll::Ready(Some(Ok(frame))) => {
                let is_answer = !matches!(self.kind, Kind::Beats(_));
                ticket.note_piece(frame.data_ref().map_or(0, Bytes::len), is_answer);
                if self.is_broken() {
                    ticket.note_end(End::WorkerFailed);
                } else if self.is_end_stream() {
                    ticket.note_end(End::Complete);
                }
            }
            Poll::Ready(Some(Err(_))) => ticket.note_end(End::WorkerFailed),
            Poll::Ready(None) if self.is_broken() => {}
            Poll::Ready(None) => ticket.note_end(End::Complete),
        }
    }

    /// Whether the worker's stream broke and was ended with an error.
    fn is_broken(&self) -> bool {
        match &self.kind {
            Kind::Worker(body) => body.is_broken(),
            Kind::Empty | Kind::Full(_) | Kind::Axum(_) | Kind::Beats(_) => false,
        }
    }

    /// Polls the body for its next piece.
    fn poll_kind(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Kind::Worker(body) => {
                let polled = body.poll_frame(cx);
                if body.is_broken()
                    && let Some(exchange) = &self.exchange
                {
                    exchange.close_after();
                }
                polled.map_err(Into::into)
            }
            Kind::Axum(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Beats(beats) => match ready!(beats.poll_beat(cx)) {
                Beat::Own(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Beat::Worker(piece, body) => {
                    self.kind = body.kind;
                    Poll::Ready(piece)
                }
                Beat::End => {
                    self.kind = Kind::Empty;
                    Poll::Ready(None)
                }
            },
        }
    }
}

impl From<Kind> for Body {
    fn from(kind: Kind) -> Self {
        Self { kind, exchange: None }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = self.poll_kind(cx);
        if let Some(exchange) = &self.exchange {
            self.note(exchange, &polled);
            match polled {
                Poll::Ready(Some(_)) => exchange.offer(),
                // Whoever asks for the next piece has sent the last one.
                Poll::Ready(None) | Poll::Pending => exchange.take(),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Worker(body) => body.is_end_stream(),
            Kind::Axum(body) => body.is_end_stream(),
            Kind::Beats(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Worker(body) => body.size_hint(),
            Kind::Axum(body) => body.size_hint(),
            Kind::Beats(_) => SizeHint::default(),
        }
    }
}
