//! Acknowledgements that this node owes to one peer.
//!
//! An acknowledgement waits a little for more to acknowledge, unless an administrator waits for it or much has arrived.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::replication::stream::{CHUNK_BYTES, Stream};

/// An acknowledgement waits this long for more to acknowledge.
const ACK_DELAY: Duration = Duration::from_millis(100);

/// The streams that moved and were not acknowledged yet.
#[derive(Debug, Default)]
pub(super) struct PendingAcks {
    streams: BTreeSet<Stream>,
    /// When the acknowledgement is to be sent.
    due_at: Option<Duration>,
    /// Bytes of rows received since the last acknowledgement.
    bytes: usize,
}

impl PendingAcks {
    /// Forgets everything: the link is gone.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// A delta of `stream` with `bytes` of rows was received.
    pub(super) fn note_delta(&mut self, stream: Stream, bytes: usize, now: Duration) {
        self.streams.insert(stream);
        self.bytes += bytes;
        let is_urgent = self.bytes >= CHUNK_BYTES || stream.0.is_awaited();
        let due_at = if is_urgent { now } else { now + ACK_DELAY };
        self.due_at = Some(self.due_at.map_or(due_at, |before| before.min(due_at)));
    }

    /// When an acknowledgement is to be sent next.
    pub(super) fn due_at(&self) -> Option<Duration> {
        self.due_at
    }

    /// Takes the streams to acknowledge, if it is time to.
    pub(super) fn take_due(&mut self, now: Duration) -> Option<BTreeSet<Stream>> {
        if self.due_at.is_none_or(|due_at| now < due_at) {
            return None;
        }
        self.due_at = None;
        self.bytes = 0;
        Some(std::mem::take(&mut self.streams))
    }
}

#[cfg(test)]
mod tests {
    use smg_types::ids::{Generation, NodeId};

    use super::*;
    use crate::state::StoreId;
    use crate::state::writers::Writers;

    fn stream(store: StoreId) -> Stream {
        let id = NodeId { name: "a".parse().unwrap(), generation: Generation(1) };
        (store, Writers::default().intern(&id).unwrap())
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn measurements_are_acknowledged_together_after_100_ms() {
        let mut acks = PendingAcks::default();
        acks.note_delta(stream(StoreId::Load), 10, ms(0));
        acks.note_delta(stream(StoreId::Observations), 10, ms(50));
        assert_eq!(acks.take_due(ms(99)), None);
        assert_eq!(acks.take_due(ms(100)).map(|streams| streams.len()), Some(2));
        assert_eq!(acks.take_due(ms(1000)), None, "nothing is acknowledged twice");
    }

    #[test]
    fn what_an_administrator_waits_for_is_acknowledged_at_once() {
        let mut acks = PendingAcks::default();
        acks.note_delta(stream(StoreId::Load), 10, ms(0));
        acks.note_delta(stream(StoreId::Workers), 10, ms(5));
        assert_eq!(acks.due_at(), Some(ms(5)));
    }

    #[test]
    fn much_is_acknowledged_at_once_so_that_the_window_opens() {
        let mut acks = PendingAcks::default();
        acks.note_delta(stream(StoreId::Load), CHUNK_BYTES, ms(0));
        assert_eq!(acks.due_at(), Some(ms(0)));
    }
}
