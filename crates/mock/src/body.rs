//! The bodies of answers: complete, or token by token.
//!
//! A stream holds its [`Job`], so that the slot is occupied until the last token was handed over, and a disconnect of
//! the client is noticed. The times of tokens are counted from the first one, not from the previous one: a slow reader
//! finds the tokens that it missed ready, as with an engine that generates independently of the reader.

use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;

use crate::engine::Job;
use crate::script::Script;

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Body {
    /// A complete body; `None` after it was handed over.
    Full(Option<Bytes>),
    /// A body that is generated while it is sent.
    Stream(Box<Stream>),
}

impl Body {
    pub(super) fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => {
                stream.poll_next(cx).map(|next| next.map(|made| made.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// The text around the tokens of a stream.
#[derive(Debug, Default)]
pub(super) struct StreamShape {
    /// Sent before the first token.
    pub(super) prologue: String,
    /// The text before each token.
    pub(super) before: String,
    /// The text after each token.
    pub(super) after: String,
    /// The number of the first event, if events are numbered. The number follows `after`.
    pub(super) numbered_from: Option<u32>,
    /// The text that ends each token's event.
    pub(super) close: &'static str,
    /// Whether each event repeats the text of the previous ones.
    pub(super) cumulative: bool,
    /// The text after the last token.
    pub(super) epilogue: String,
}

/// The state of a stream that is being sent.
#[derive(Debug)]
pub(super) struct Stream {
    job: Option<Job>,
    shape: StreamShape,
    text: String,
    chunk_bytes: usize,
    tokens: u32,
    next: u32,
    token_time: Duration,
    due: Option<Pin<Box<Sleep>>>,
    stall_after: Option<u32>,
    cut_after: Option<u32>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Prologue,
    Tokens,
    /// The connection is closed next, after the text that is already queued was sent.
    Cutting,
    Ended,
}

impl Stream {
    pub(super) fn new(job: Job, shape: StreamShape, tokens: u32, script: &Script) -> Self {
        Self {
            token_time: job.token_time(),
            job: Some(job),
            shape,
            text: String::new(),
            chunk_bytes: script.chunk_bytes.map_or(0, |bytes| bytes as usize),
            tokens,
            next: 0,
            due: None,
            stall_after: script.stall_after_chunks,
            cut_after: script.cut_after_chunks,
            stage: Stage::Prologue,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.stage != Stage::Ended && self.stall_after == Some(self.next) {
            // Only the connection wakes this task, when the client disconnects.
            return Poll::Pending;
        }
        if self.stage != Stage::Ended && self.cut_after == Some(self.next) {
            if self.stage != Stage::Cutting {
                // The connection gets one poll to send what it holds, because an error would discard that.
                self.stage = Stage::Cutting;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.finish(Job::fail);
            return Poll::Ready(Some(Err(io::Error::other("cut by script"))));
        }
        match self.stage {
            Stage::Prologue if !self.shape.prologue.is_empty() => {
                self.stage = Stage::Tokens;
                let prologue = std::mem::take(&mut self.shape.prologue);
                Poll::Ready(Some(Ok(prologue.into())))
            }
            Stage::Prologue | Stage::Tokens | Stage::Cutting => self.poll_token(cx),
            Stage::Ended => Poll::Ready(None),
        }
    }

    fn poll_token(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.next == self.tokens {
            self.finish(Job::complete);
            let epilogue = std::mem::take(&mut self.shape.epilogue);
            return Poll::Ready(Some(Ok(epilogue.into())));
        }
        if self.next > 0 && !self.token_time.is_zero() {
            let due = self.due.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.token_time)));
            std::task::ready!(due.as_mut().poll(cx));
            let next = due.deadline() + self.token_time;
            due.as_mut().reset(next);
        }
        let event = self.event();
        self.next += 1;
        if let Some(job) = &self.job {
            job.generated(1);
        }
        Poll::Ready(Some(Ok(event)))
    }

    fn event(&mut self) -> Bytes {
        if !self.shape.cumulative {
            self.text.clear();
        }
        push_token(&mut self.text, self.next, self.chunk_bytes);
        let StreamShape { before, after, numbered_from, close, .. } = &self.shape;
        let length = before.len() + self.text.len() + after.len() + close.len() + 10;
        let mut event = BytesMut::with_capacity(length);
        event.put_slice(before.as_bytes());
        event.put_slice(self.text.as_bytes());
        event.put_slice(after.as_bytes());
        if let Some(first) = numbered_from {
            // Writing to a growable buffer can't fail.
            let _infallible = write!(event, "{}", first + self.next);
        }
        event.put_slice(close.as_bytes());
        event.freeze()
    }

    fn finish(&mut self, end: impl FnOnce(Job)) {
        self.stage = Stage::Ended;
        if let Some(job) = self.job.take() {
            end(job);
        }
    }
}

/// Appends token number `nth`, padded to `chunk_bytes`. None of its characters needs an escape in JSON.
pub(super) fn push_token(text: &mut String, nth: u32, chunk_bytes: usize) {
    let start = text.len();
    text.push('w');
    push_number(text, nth);
    text.push(' ');
    let padding = chunk_bytes.saturating_sub(text.len() - start);
    text.extend(std::iter::repeat_n('x', padding));
}

/// Appends decimal digits by hand: using a formatter for each token would take a tenth of a request's time.
fn push_number(text: &mut String, number: u32) {
    if number >= 10 {
        push_number(text, number / 10);
    }
    text.push(char::from(b"0123456789"[(number % 10) as usize]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_numbered_and_padded() {
        let mut text = String::new();
        for nth in [0, 9, 10, 12_345, u32::MAX] {
            push_token(&mut text, nth, 0);
        }
        assert_eq!(text, "w0 w9 w10 w12345 w4294967295 ");
        text.clear();
        push_token(&mut text, 7, 6);
        assert_eq!(text, "w7 xxx");
    }
}
