//! The timers of HTTP/2 streams. hyper runs each stream as a task and polls its body only when the client has read the
//! previous piece. So a client that opens no window would keep its request, and its place at the worker, for ever. Each
//! task has a timer, which ends the stream if its client reads nothing for too long.
//!
//! hyper owns the future of a stream, and only the body inside it knows whether the client reads. Both share a
//! [`Progress`], which is a task-local variable.

#![expect(
    clippy::disallowed_methods,
    reason = "streams are tasks that end with their connection, and the timer is on tokio's clock"
)]

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smg_runtime::clock::Clock;
use tracing::debug;

tokio::task_local! {
    static PROGRESS: Arc<Progress>;
}

/// The shortest time until the timer fires again.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

/// Whether a stream waits for its client.
#[derive(Debug)]
pub(super) struct Progress {
    clock: Clock,
    /// `Clock::mono` in nanoseconds since when the client has not read the data that waits for it; 0 if no data waits.
    waiting_since: AtomicU64,
}

impl Progress {
    /// The progress of the stream whose task runs now; `None` outside of HTTP/2.
    pub(super) fn current() -> Option<Arc<Self>> {
        PROGRESS.try_with(Arc::clone).ok()
    }

    /// Records that data waits for the client.
    pub(super) fn offer(&self) {
        let now = u64::try_from(self.clock.mono().as_nanos()).unwrap_or(u64::MAX);
        self.waiting_since.store(now.max(1), Ordering::Relaxed);
    }

    /// Records that the client has read all data.
    pub(super) fn take(&self) {
        self.waiting_since.store(0, Ordering::Relaxed);
    }

    /// How long the client has read nothing although data waits for it.
    fn stalled_for(&self) -> Duration {
        match self.waiting_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.clock.mono().saturating_sub(Duration::from_nanos(since)),
        }
    }
}

/// Runs the streams of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams {
    pub(super) clock: Clock,
    /// The most time until the client reads the next piece of a response.
    pub(super) limit: Duration,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let progress = Arc::new(Progress { clock: self.clock, waiting_since: AtomicU64::new(0) });
        let bounded = bounded(stream, Arc::clone(&progress), self.limit);
        tokio::spawn(PROGRESS.scope(progress, bounded));
    }
}

/// Runs a stream to its end, or until its client has read nothing for `limit`. Dropping the future resets the stream.
async fn bounded(stream: impl Future, progress: Arc<Progress>, limit: Duration) {
    let mut stream = pin!(stream);
    let mut timer = pin!(tokio::time::sleep(limit));
    loop {
        tokio::select! {
            biased;
            _output = stream.as_mut() => return,
            () = timer.as_mut() => {}
        }
        let left = limit.saturating_sub(progress.stalled_for());
        if left.is_zero() {
            debug!("a stream is reset: its client took nothing of the response for too long");
            return;
        }
        timer.as_mut().reset(tokio::time::Instant::now() + left.max(SHORTEST_WAIT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a stream that offers a piece every second, and whose client reads each one after `pause`, `pieces` times.
    /// Returns how many pieces the client has read.
    async fn taken(pieces: u32, pause: Duration, limit: Duration) -> u32 {
        let clock = Clock::start();
        let progress = Arc::new(Progress { clock, waiting_since: AtomicU64::new(0) });
        let (of_stream, count) = (Arc::clone(&progress), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&count);
        let stream = async move {
            for _ in 0..pieces {
                tokio::time::sleep(Duration::from_secs(1)).await;
                of_stream.offer();
                tokio::time::sleep(pause).await;
                of_stream.take();
                counter.fetch_add(1, Ordering::Relaxed);
            }
        };
        bounded(stream, progress, limit).await;
        u32::try_from(count.load(Ordering::Relaxed)).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_when_its_client_takes_nothing_and_not_before() {
        let seconds = Duration::from_secs;
        assert_eq!(taken(30, seconds(4), seconds(5)).await, 30, "a slow client is no dead one");
        assert_eq!(taken(30, seconds(6), seconds(5)).await, 0);
        assert_eq!(taken(3, seconds(0), Duration::from_millis(100)).await, 3, "a slow worker");
    }
}
