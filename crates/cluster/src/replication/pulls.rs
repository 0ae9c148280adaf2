//! Rows that a peer has and this node lacks, and the pulls in flight that ask for them.
//!
//! A gap is pulled at once. What a digest or an acknowledgement shows to be missing is pulled only if it is still missing
//! after a while, because its writer's own delta is usually on its way (R16).

use std::collections::BTreeMap;
use std::time::Duration;

use smg_types::ids::NodeName;

use crate::replication::stream::{SETTLE, Stream};
use crate::state::writers::Writer;

/// A peer has more of a stream than this node.
#[derive(Debug)]
struct Ahead {
    /// The highest version that any peer has claimed.
    version: u64,
    /// The peer that claimed it.
    peer: NodeName,
    /// When the first such claim came.
    since: Duration,
}

/// Streams of which rows are missing here, and streams that were asked for.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    ahead: BTreeMap<Stream, Ahead>,
    /// Streams that were asked for, and until when not to ask again.
    asked: BTreeMap<Stream, Duration>,
}

impl Pulls {
    /// `peer` has applied `stream` up to `version`, which is more than this node has.
    pub(super) fn note_ahead(
        &mut self,
        stream: Stream,
        version: u64,
        peer: &NodeName,
        now: Duration,
    ) {
        let ahead = self.ahead.entry(stream).or_insert_with(|| Ahead {
            version,
            peer: peer.clone(),
            since: now,
        });
        if version > ahead.version {
            (ahead.version, ahead.peer) = (version, peer.clone());
        }
    }

    /// This node has moved on in `stream` and has applied it up to version `applied`.
    pub(super) fn note_applied(&mut self, stream: Stream, applied: u64) {
        if self.ahead.get(&stream).is_some_and(|ahead| ahead.version <= applied) {
            self.ahead.remove(&stream);
        }
        self.asked.remove(&stream);
    }

    /// Whether `stream` may be asked for: it was not, or too long ago.
    pub(super) fn may_ask(&self, stream: Stream, now: Duration) -> bool {
        self.asked.get(&stream).is_none_or(|until| now >= *until)
    }

    /// `stream` was asked for; it is not asked for again before `until`, unless it moves.
    pub(super) fn note_asked(&mut self, stream: Stream, until: Duration) {
        self.asked.insert(stream, until);
    }

    /// The streams that have been missing for long enough to be pulled, by the peer that has most of each. Streams of which
    /// nothing `is_missing` any more, up to the version that the peer given has claimed, are dropped.
    pub(super) fn due(
        &mut self,
        now: Duration,
        is_missing: impl Fn(Stream, u64, &NodeName) -> bool,
    ) -> BTreeMap<NodeName, Vec<Stream>> {
        let mut due: BTreeMap<NodeName, Vec<Stream>> = BTreeMap::new();
        self.ahead.retain(|stream, ahead| {
            let is_missing = is_missing(*stream, ahead.version, &ahead.peer);
            if is_missing && now >= ahead.since + SETTLE {
                due.entry(ahead.peer.clone()).or_default().push(*stream);
            }
            is_missing
        });
        due
    }

    /// The peer that claimed to have more of `streams` can't be reached. Another one will claim it if it has it.
    pub(super) fn drop_claims(&mut self, streams: &[Stream]) {
        for stream in streams {
            self.ahead.remove(stream);
        }
    }

    /// Forgets pulls that were not answered in time.
    pub(super) fn expire(&mut self, now: Duration) {
        self.asked.retain(|_, until| now < *until);
    }

    /// `writer` is retired: nothing of it is missing.
    pub(super) fn forget_writer(&mut self, writer: Writer) {
        self.ahead.retain(|(_, of), _| *of != writer);
    }
}

#[cfg(test)]
mod tests {
    use smg_types::ids::{Generation, NodeId};

    use super::*;
    use crate::state::StoreId;
    use crate::state::writers::Writers;

    fn stream() -> Stream {
        let id = NodeId { name: "w".parse().unwrap(), generation: Generation(1) };
        (StoreId::Workers, Writers::default().intern(&id).unwrap())
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn what_is_still_missing_after_half_a_second_is_pulled_from_the_peer_that_has_most() {
        let (mut pulls, stream) = (Pulls::default(), stream());
        let [a, b]: [NodeName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        pulls.note_ahead(stream, 5, &a, ms(0));
        pulls.note_ahead(stream, 9, &b, ms(100));
        pulls.note_ahead(stream, 7, &a, ms(200));
        assert!(pulls.due(ms(499), |_, _, _| true).is_empty());
        assert_eq!(pulls.due(ms(500), |_, version, _| version == 9), [(b, vec![stream])].into());
        pulls.note_applied(stream, 9);
        assert!(pulls.due(ms(5000), |_, _, _| true).is_empty());
    }

    #[test]
    fn a_stream_is_not_asked_for_twice_at_a_time() {
        let (mut pulls, stream) = (Pulls::default(), stream());
        assert!(pulls.may_ask(stream, ms(0)));
        pulls.note_asked(stream, ms(1000));
        assert!(!pulls.may_ask(stream, ms(999)) && pulls.may_ask(stream, ms(1000)));
        pulls.note_applied(stream, 1);
        assert!(pulls.may_ask(stream, ms(999)), "the answer has come");
    }
}
