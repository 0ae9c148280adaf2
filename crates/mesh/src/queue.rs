//! What waits to be sent to one peer on one connection: bounded, the oldest is dropped.
//!
//! The driver never waits for a peer: it puts frames here and goes on. A frame that is dropped is as good as lost on the
//! way, which everything in `cluster` is made for; it is counted.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) frames: usize,
    pub(super) bytes: usize,
}

/// The frames for one peer on one connection.
#[derive(Debug)]
pub(super) struct Queue {
    bounds: Bounds,
    // Held for a push or a pop, never across an await.
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// Who waits for a frame.
    waker: Option<Waker>,
    /// Nothing more will come.
    closed: bool,
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, inner: Mutex::default() }
    }

    /// Puts a frame at the end; how many of the oldest had to go for it.
    pub(super) fn push(&self, frame: Bytes) -> u64 {
        let mut inner = self.inner.lock();
        inner.bytes += frame.len();
        inner.frames.push_back(frame);
        let mut dropped = 0;
        while inner.frames.len() > self.bounds.frames
            || (inner.bytes > self.bounds.bytes && inner.frames.len() > 1)
        {
            if let Some(oldest) = inner.frames.pop_front() {
                inner.bytes -= oldest.len();
                dropped += 1;
            }
        }
        let waker = inner.waker.take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
        dropped
    }

    /// Nothing more will come: who waits learns it once all is taken.
    pub(super) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }

    /// The oldest frame; `None` once it is closed and empty. One task at a time may wait.
    pub(super) fn poll_pop(&self, cx: &Context<'_>) -> Poll<Option<Bytes>> {
        let mut inner = self.inner.lock();
        match inner.frames.pop_front() {
            Some(frame) => {
                inner.bytes -= frame.len();
                Poll::Ready(Some(frame))
            }
            None if inner.closed => Poll::Ready(None),
            None => {
                inner.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Waits until there is a frame (`true`) or there never will be (`false`).
    pub(super) async fn wanted(&self) -> bool {
        std::future::poll_fn(|cx| {
            let mut inner = self.inner.lock();
            if !inner.frames.is_empty() {
                Poll::Ready(true)
            } else if inner.closed {
                Poll::Ready(false)
            } else {
                inner.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.inner.lock().frames.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(frames: usize, bytes: usize) -> Queue {
        Queue::new(Bounds { frames, bytes })
    }

    fn take_all(queue: &Queue) -> Vec<Bytes> {
        let cx = Context::from_waker(Waker::noop());
        let mut taken = Vec::new();
        while let Poll::Ready(Some(frame)) = queue.poll_pop(&cx) {
            taken.push(frame);
        }
        taken
    }

    #[test]
    fn the_oldest_goes_first_and_is_dropped_first() {
        let queue = queue(2, 100);
        let dropped: u64 = ["a", "b", "c"].into_iter().map(|f| queue.push(f.into())).sum();
        assert_eq!((dropped, take_all(&queue)), (1, vec!["b".into(), "c".into()]));
    }

    #[test]
    fn bytes_are_bounded_but_one_frame_always_fits() {
        let queue = queue(10, 4);
        queue.push("aaa".into());
        assert_eq!(queue.push("bbbbbbb".into()), 1);
        assert_eq!(take_all(&queue), ["bbbbbbb"]);
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_a_frame_and_by_the_end() {
        let queue = std::sync::Arc::new(queue(2, 100));
        let (a, b) = tokio::join!(queue.wanted(), async { queue.push("a".into()) });
        assert_eq!((a, b), (true, 0));
        take_all(&queue);
        let (more, ()) = tokio::join!(queue.wanted(), async { queue.close() });
        assert!(!more);
    }
}
