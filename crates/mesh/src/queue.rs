//! The queue of frames for one peer on one connection. It is bounded, and drops its oldest frames.
//!
//! The driver never waits for a peer: it queues frames and continues. A dropped frame has the same effect as one that
//! is lost in the network, which `cluster` tolerates; it is counted.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

/// The bounds of a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) frames: usize,
    pub(super) bytes: usize,
}

/// The frames for one peer on one connection.
#[derive(Debug)]
pub(super) struct Queue {
    bounds: Bounds,
    // Locked only for a push or a pop, never across an await.
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// The task that waits for a frame.
    waker: Option<Waker>,
    /// Whether the queue is closed, so that no frame will be added.
    closed: bool,
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, inner: Mutex::default() }
    }

    /// Adds a frame. Returns how many of the oldest frames were dropped for it.
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

    /// Closes the queue. A waiting task is woken when all frames are taken.
    pub(super) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }

    /// Takes the oldest frame; `None` if the queue is closed and empty. Only one task at a time may wait.
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

    /// Waits until there is a frame (`true`), or until the queue is closed and empty (`false`).
    pub(super) async fn has_frame(&self) -> bool {
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

    /// Whether no frame waits.
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
    fn the_oldest_frame_is_sent_first_and_dropped_first() {
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
    async fn a_waiting_task_is_woken_by_a_frame_and_by_the_close() {
        let queue = std::sync::Arc::new(queue(2, 100));
        let (a, b) = tokio::join!(queue.has_frame(), async { queue.push("a".into()) });
        assert_eq!((a, b), (true, 0));
        take_all(&queue);
        let (more, ()) = tokio::join!(queue.has_frame(), async { queue.close() });
        assert!(!more);
    }
}
