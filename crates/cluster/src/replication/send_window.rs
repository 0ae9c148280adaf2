//! Deltas in flight to one peer: what was sent and not yet acknowledged, and what is to be sent.
//!
//! No rows are queued for a peer, only versions: a delta is cut from the state at the moment when it can be sent. So a slow
//! peer costs no memory, and it receives the newest rows once it reads again (R18).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::replication::stream::Stream;

/// How often the retry time is doubled, and the window divided by eight, for a peer that acknowledges nothing: up to 4 s
/// and 16 KiB at the defaults, because whatever was lost in a partition must arrive within seconds of its end.
const MAX_BACKOFF: u32 = 2;

/// A stream that is being sent.
#[derive(Debug, Clone, Copy, Default)]
struct Cursor {
    /// Rows up to this version have been sent.
    sent: u64,
    /// Rows up to this version are to be sent.
    target: u64,
    /// Bytes sent and not yet acknowledged.
    in_flight: usize,
    sent_at: Duration,
}

/// The streams that are being sent to one peer.
#[derive(Debug, Default)]
pub(super) struct SendWindow {
    cursors: BTreeMap<Stream, Cursor>,
    /// Streams of which rows are to be sent.
    due: BTreeSet<Stream>,
    /// Bytes sent and not yet acknowledged, over all streams.
    in_flight: usize,
    /// Rounds of retries since the peer last acknowledged or asked for something.
    backoff: u32,
}

impl SendWindow {
    /// Forgets everything: the link is gone, and with it whatever was in flight.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Bytes that may be in flight, of at most `max_bytes`.
    pub(super) fn limit(&self, max_bytes: usize) -> usize {
        (max_bytes >> (3 * self.backoff)).max(1)
    }

    /// The next stream to send, of those that `may_send` accepts, and the version from which it goes on; `None` also when
    /// as many bytes are in flight as may be.
    pub(super) fn next(
        &self,
        max_bytes: usize,
        may_send: impl Fn(Stream) -> bool,
    ) -> Option<(Stream, u64)> {
        if self.in_flight >= self.limit(max_bytes) {
            return None;
        }
        let stream = *self.due.iter().find(|stream| may_send(**stream))?;
        Some((stream, self.cursors.get(&stream).map_or(0, |cursor| cursor.sent)))
    }

    /// Has `stream` sent up to version `target` to a peer that has it up to `from`. If it is being sent already, it goes on
    /// from where it is.
    pub(super) fn extend(&mut self, stream: Stream, from: u64, target: u64) {
        if target <= from {
            return;
        }
        let cursor = self
            .cursors
            .entry(stream)
            .or_insert_with(|| Cursor { sent: from, ..Cursor::default() });
        cursor.target = target.max(cursor.target);
        if cursor.sent < cursor.target {
            self.due.insert(stream);
        }
    }

    /// Has `stream` sent from version `from` up to `target`, whatever was sent of it before.
    pub(super) fn restart(&mut self, stream: Stream, from: u64, target: u64) {
        self.cancel(stream);
        self.extend(stream, from, target);
    }

    /// Sends `stream` no further.
    pub(super) fn cancel(&mut self, stream: Stream) {
        if let Some(cursor) = self.cursors.remove(&stream) {
            self.in_flight -= cursor.in_flight;
        }
        self.due.remove(&stream);
    }

    /// A delta of `bytes` that leads to version `to` was sent.
    pub(super) fn record_sent(&mut self, stream: Stream, to: u64, bytes: usize, at: Duration) {
        if let Some(cursor) = self.cursors.get_mut(&stream) {
            cursor.sent = to;
            cursor.in_flight += bytes;
            cursor.sent_at = at;
            self.in_flight += bytes;
            if to >= cursor.target {
                self.due.remove(&stream);
            }
        }
    }

    /// The peer has `stream` up to version `known`.
    pub(super) fn acknowledge(&mut self, stream: Stream, known: u64) {
        if let Some(cursor) = self.cursors.get_mut(&stream)
            && known >= cursor.sent
        {
            self.in_flight -= cursor.in_flight;
            cursor.in_flight = 0;
            cursor.sent = known;
            if known >= cursor.target {
                self.cursors.remove(&stream);
                self.due.remove(&stream);
            }
        }
    }

    /// The peer has acknowledged or asked for something, so it reads what is sent to it.
    pub(super) fn reset_backoff(&mut self) {
        self.backoff = 0;
    }

    /// Whether a delta of `stream` was sent so recently that its acknowledgement may still come.
    pub(super) fn waits_for_ack(&self, stream: Stream, now: Duration, retry: Duration) -> bool {
        let cursor = self.cursors.get(&stream);
        cursor.is_some_and(|c| c.in_flight > 0 && now < c.sent_at + self.retry_after(retry))
    }

    /// The streams whose acknowledgement did not come in time. If there are any, the next retry waits longer and the window
    /// gets smaller, because what a peer does not read piles up on its link.
    pub(super) fn take_overdue(&mut self, now: Duration, retry: Duration) -> Vec<Stream> {
        let retry = self.retry_after(retry);
        let is_overdue = |c: &Cursor| c.in_flight > 0 && now >= c.sent_at + retry;
        let overdue = self.cursors.iter().filter(|(_, cursor)| is_overdue(cursor));
        let overdue: Vec<Stream> = overdue.map(|(stream, _)| *stream).collect();
        if !overdue.is_empty() {
            self.backoff = (self.backoff + 1).min(MAX_BACKOFF);
        }
        overdue
    }

    /// Has `stream` sent again from version `known`: what was in flight is lost.
    pub(super) fn rewind(&mut self, stream: Stream, known: u64) {
        if let Some(cursor) = self.cursors.get_mut(&stream) {
            self.in_flight -= cursor.in_flight;
            cursor.in_flight = 0;
            cursor.sent = known;
            if cursor.sent < cursor.target {
                self.due.insert(stream);
            }
        }
    }

    fn retry_after(&self, retry: Duration) -> Duration {
        retry * (1 << self.backoff)
    }

    #[cfg(test)]
    pub(super) fn in_flight_bytes(&self) -> usize {
        self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use smg_types::ids::{Generation, NodeId};

    use super::*;
    use crate::state::StoreId;
    use crate::state::writers::Writers;

    const RETRY: Duration = Duration::from_secs(1);
    const WINDOW: usize = 1000;

    fn stream() -> Stream {
        let id = NodeId { name: "a".parse().unwrap(), generation: Generation(1) };
        (StoreId::Workers, Writers::default().intern(&id).unwrap())
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_stream_is_sent_once_and_is_done_when_it_is_acknowledged() {
        let (mut window, stream) = (SendWindow::default(), stream());
        window.extend(stream, 3, 9);
        assert_eq!(window.next(WINDOW, |_| true), Some((stream, 3)));
        window.record_sent(stream, 9, 100, seconds(0));
        assert_eq!(window.next(WINDOW, |_| true), None, "all of it is in flight");
        window.acknowledge(stream, 9);
        assert_eq!((window.in_flight, window.cursors.len()), (0, 0));
    }

    #[test]
    fn a_full_window_waits_for_an_acknowledgement() {
        let (mut window, stream) = (SendWindow::default(), stream());
        window.extend(stream, 0, 9);
        window.record_sent(stream, 4, WINDOW, seconds(0));
        assert_eq!(window.next(WINDOW, |_| true), None);
        window.acknowledge(stream, 4);
        assert_eq!(window.next(WINDOW, |_| true), Some((stream, 4)));
    }

    #[test]
    fn what_was_not_acknowledged_in_time_is_sent_again_later_and_less() {
        let (mut window, stream) = (SendWindow::default(), stream());
        window.extend(stream, 0, 9);
        window.record_sent(stream, 9, 100, seconds(0));
        assert!(window.waits_for_ack(stream, Duration::from_millis(999), RETRY));
        assert_eq!(window.take_overdue(seconds(1), RETRY), [stream]);
        window.rewind(stream, 2);
        assert_eq!(window.next(WINDOW, |_| true), Some((stream, 2)));
        assert_eq!(window.limit(WINDOW), WINDOW / 8);
        window.record_sent(stream, 9, 100, seconds(1));
        assert_eq!(
            window.take_overdue(seconds(2), RETRY),
            [],
            "the second retry waits twice as long"
        );
        assert_eq!(window.take_overdue(seconds(3), RETRY), [stream]);
        window.reset_backoff();
        assert_eq!(window.limit(WINDOW), WINDOW);
    }

    #[test]
    fn a_stream_that_is_cancelled_gives_its_bytes_back() {
        let (mut window, stream) = (SendWindow::default(), stream());
        window.extend(stream, 0, 9);
        window.record_sent(stream, 4, 100, seconds(0));
        window.restart(stream, 1, 9);
        assert_eq!((window.in_flight, window.next(WINDOW, |_| true)), (0, Some((stream, 1))));
        window.cancel(stream);
        assert_eq!(window.next(WINDOW, |_| true), None);
    }
}
