//! How long peers take to confirm what this node wrote: for the metric of replication lag.

use std::collections::VecDeque;
use std::time::Duration;

use crate::state::{STORES, StoreId};

/// Writes of a store that wait for confirmations; beyond, the oldest is not measured.
const MAX_WRITTEN: usize = 64;
/// Times that are kept until somebody asks for them; beyond, they are not measured.
const MAX_TIMES: usize = 4096;

/// When this node wrote what its peers confirm, and how long they took.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    /// Per store: the first version of each group that is sent together, and when it was written; oldest first.
    written: [VecDeque<(u64, Duration)>; STORES],
    times: Vec<Duration>,
}

impl Confirmations {
    /// This node has written `version`, which will be sent at once and not together with an earlier one.
    pub(super) fn note_written(&mut self, store: StoreId, version: u64, at: Duration) {
        let written = &mut self.written[store.index()];
        if written.len() == MAX_WRITTEN {
            written.pop_front();
        }
        written.push_back((version, at));
    }

    /// A peer that was known to be at version `before` has confirmed `version`.
    pub(super) fn note_confirmed(
        &mut self,
        store: StoreId,
        before: u64,
        version: u64,
        now: Duration,
    ) {
        let written = &self.written[store.index()];
        let new = written.iter().filter(|(at, _)| (before + 1..=version).contains(at));
        let room = MAX_TIMES - self.times.len();
        self.times.extend(new.map(|(_, at)| now.saturating_sub(*at)).take(room));
    }

    /// All peers that can be reached have confirmed `version`: nothing up to it is awaited.
    pub(super) fn settle(&mut self, store: StoreId, version: u64) {
        let written = &mut self.written[store.index()];
        while written.front().is_some_and(|(first, _)| *first <= version) {
            written.pop_front();
        }
    }

    /// This node goes on as another writer, with other versions.
    pub(super) fn reset(&mut self) {
        self.written = Default::default();
    }

    /// The times since this was last called, in no particular order.
    pub(super) fn take(&mut self) -> Vec<Duration> {
        std::mem::take(&mut self.times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn each_peer_that_confirms_a_version_is_measured_once() {
        let store = StoreId::Workers;
        let mut confirmations = Confirmations::default();
        confirmations.note_written(store, 5, ms(0));
        confirmations.note_confirmed(store, 4, 5, ms(10));
        confirmations.note_confirmed(store, 5, 5, ms(20));
        confirmations.note_confirmed(store, 0, 6, ms(30));
        assert_eq!(confirmations.take(), [ms(10), ms(30)]);
        confirmations.settle(store, 5);
        confirmations.note_confirmed(store, 0, 6, ms(40));
        assert_eq!(confirmations.take(), []);
    }

    #[test]
    fn neither_writes_nor_times_pile_up() {
        let store = StoreId::Workers;
        let mut confirmations = Confirmations::default();
        for version in 1..=200 {
            confirmations.note_written(store, version, ms(0));
        }
        for _ in 0..100 {
            confirmations.note_confirmed(store, 0, 200, ms(1));
        }
        assert_eq!(confirmations.take().len(), MAX_TIMES);
        assert_eq!(confirmations.written[store.index()].len(), MAX_WRITTEN);
    }
}
