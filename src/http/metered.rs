//! The body of a worker's answer on its way to the client: the meter reads it, and the usage that only the router asked for
//! is removed.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use smg_proxy::dispatch::{self, BodyError};
use smg_proxy::usage::Strip;

use super::metering::Meter;

/// A worker's body with its meter.
#[derive(Debug)]
pub(super) struct Metered {
    body: dispatch::ResponseBody,
    meter: Meter,
    /// `None`: the client gets the worker's bytes unchanged.
    strip: Option<Box<Strip>>,
}

impl Metered {
    /// `strip`: what removes the usage that the client did not ask for.
    pub(super) fn new(
        body: dispatch::ResponseBody,
        mut meter: Meter,
        strip: Option<Box<Strip>>,
    ) -> Self {
        if body.is_end_stream() {
            meter.end(true);
        }
        Self { body, meter, strip }
    }

    /// The tunnel to the worker, after its answer of 101.
    pub(super) fn take_tunnel(&mut self) -> Option<dispatch::Tunnel> {
        self.body.take_tunnel()
    }

    /// Whether the stream broke and was ended with an error.
    pub(super) fn is_broken(&self) -> bool {
        self.body.is_broken()
    }

    /// The next piece for the client.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    self.meter.end(false);
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.meter.end(true);
                    let rest = self.strip.as_mut().map(|strip| strip.rest());
                    let rest = rest.filter(|rest| !rest.is_empty());
                    return Poll::Ready(rest.map(|rest| Ok(Frame::data(rest))));
                }
            };
            let piece = match frame.into_data() {
                Ok(piece) => piece,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            };
            if self.body.is_broken() {
                // This piece is the router's own: it ends the stream with an error.
                self.meter.end(false);
            } else {
                self.meter.observe(&piece);
                if self.body.is_end_stream() {
                    self.meter.end(true);
                }
            }
            let piece = match &mut self.strip {
                None => piece,
                Some(strip) => strip.feed(piece),
            };
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.strip.as_ref().is_none_or(|strip| strip.is_empty())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match &self.strip {
            None => self.body.size_hint(),
            Some(_) => SizeHint::default(),
        }
    }
}
