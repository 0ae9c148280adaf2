//! Wraps a client's socket for hyper, and adds three things that hyper lacks. It records when a request's head begins,
//! and answers by itself if the head takes too long. It replaces hyper's answer to input that is not HTTP by an error
//! in the usual format. And it closes late, so that a client that still sends can read its answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::error;
use super::exchange::State;

/// The most bytes of an unwanted request that are read before the connection closes.
const MOST_LINGER: usize = 1 << 20;

/// The stream of one HTTP/1.1 connection.
#[derive(Debug)]
pub(super) struct Watched<T> {
    inner: T,
    state: Arc<State>,
    /// The answer that replaces hyper's answer of this length.
    instead: Option<(Bytes, usize)>,
    /// The number of bytes read since the last write.
    lingered: Option<usize>,
}

impl<T> Watched<T> {
    pub(super) fn new(inner: T, state: Arc<State>) -> Self {
        Self { inner, state, instead: None, lingered: None }
    }
}

impl<T: AsyncWrite + Unpin> Watched<T> {
    /// Writes our answer, then reports to hyper that all of its bytes are written.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while let Some((ours, length)) = &mut self.instead {
            if ours.is_empty() {
                let length = *length;
                self.instead = None;
                return Poll::Ready(Ok(length));
            }
            match ready!(Pin::new(&mut self.inner).poll_write(cx, ours))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => ours.advance(written),
            }
        }
        Poll::Ready(Ok(0))
    }

    /// Whether hyper answers by itself: between two requests, and without the id that all our answers have.
    fn is_hypers(&self, bytes: &[u8]) -> bool {
        bytes.starts_with(b"HTTP/1.1 4")
            && bytes.ends_with(b"\r\n\r\n")
            && !self.state.is_busy()
            && memchr::memmem::find(bytes, b"\r\nx-request-id: ").is_none()
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.state.is_expired() {
            if this.state.end_head() {
                // Best effort, because a client that does not send may not receive either.
                let _written =
                    Pin::new(&mut this.inner).poll_write(cx, &error::unread(408, &error::new_id()));
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            this.state.begin_head();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.as_mut().poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    /// Closes our side, then reads for a while. Closing with unread bytes would reset the connection, and a reset may
    /// overtake the answer (RFC 9112, section 9.6).
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingered.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            if !this.state.linger() {
                return Poll::Ready(Ok(()));
            }
            this.lingered = Some(0);
        }
        while let Some(lingered) = this.lingered.as_mut().filter(|so_far| **so_far < MOST_LINGER) {
            let mut space = [std::mem::MaybeUninit::uninit(); 4096];
            let mut read = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                break;
            }
            *lingered += read.filled().len();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let (None, Some(first)) = (&this.instead, bufs.first())
            && this.is_hypers(first)
            && bufs[1..].iter().all(|buf| buf.is_empty())
        {
            let status =
                first[9..].iter().take(3).fold(0, |n, digit| n * 10 + u16::from(digit - b'0'));
            this.instead = Some((error::unread(status, &error::new_id()), first.len()));
        }
        let written = if this.instead.is_some() {
            this.poll_instead(cx)
        } else {
            Pin::new(&mut this.inner).poll_write_vectored(cx, bufs)
        };
        this.state.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
