//! Streams that moved a moment ago, each with the version at which it stood before.
//!
//! A node relays rows of other writers only once they are so old that the writer's own delta must have reached every node
//! that it can reach (R21). Otherwise every node would send every new row to every other node.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::replication::stream::{SETTLE, Stream};

/// Where streams stood before they moved within the last one or two settling times.
#[derive(Debug)]
pub(super) struct Settling {
    recent: BTreeMap<Stream, u64>,
    before: BTreeMap<Stream, u64>,
    rotated_at: Duration,
}

impl Settling {
    pub(super) fn new(now: Duration) -> Self {
        Self { recent: BTreeMap::new(), before: BTreeMap::new(), rotated_at: now }
    }

    /// `stream` has moved on from version `stood`.
    pub(super) fn note_move(&mut self, stream: Stream, stood: u64) {
        self.recent.entry(stream).or_insert(stood);
    }

    /// Lets moves settle that are old enough.
    pub(super) fn advance(&mut self, now: Duration) {
        if now >= self.rotated_at + SETTLE {
            self.rotated_at = now;
            self.before = std::mem::take(&mut self.recent);
        }
    }

    /// The version up to which `stream` has settled; `None`: it did not move lately.
    pub(super) fn settled(&self, stream: Stream) -> Option<u64> {
        self.before.get(&stream).or_else(|| self.recent.get(&stream)).copied()
    }
}

#[cfg(test)]
mod tests {
    use smg_types::ids::{Generation, NodeId};

    use super::*;
    use crate::state::StoreId;
    use crate::state::writers::Writers;

    #[test]
    fn a_version_settles_after_half_a_second_and_before_a_whole_one_has_passed() {
        let ms = Duration::from_millis;
        let id = NodeId { name: "w".parse().unwrap(), generation: Generation(1) };
        let stream = (StoreId::Workers, Writers::default().intern(&id).unwrap());
        let mut settling = Settling::new(ms(0));
        settling.advance(ms(500));
        settling.note_move(stream, 3);
        settling.note_move(stream, 4);
        settling.advance(ms(750));
        assert_eq!(settling.settled(stream), Some(3), "where it stood first");
        settling.advance(ms(1000));
        settling.note_move(stream, 5);
        assert_eq!(settling.settled(stream), Some(3), "it has not been there for long enough");
        settling.advance(ms(1500));
        assert_eq!(settling.settled(stream), Some(5));
        settling.advance(ms(2000));
        assert_eq!(settling.settled(stream), None, "all of it has settled");
    }
}
