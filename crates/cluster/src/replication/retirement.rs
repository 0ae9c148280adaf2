//! Writers that have ended: what ends with them, what other nodes adopt, and when they are retired.
//!
//! A writer has ended once a later generation of its node is known or its node was forgotten. What it measured ends at once
//! (R28). What it decided is adopted: it is written again in rows of the later generation or, for a forgotten node, of the
//! node with the lowest reachable name (R30). A write keeps its name whichever row it travels in, so adoption changes
//! nothing but where a write is found: it may be done by several nodes, twice, or by one that knows too little, and a
//! removal still finds each copy (R29).
//!
//! Once all of it is adopted and every member has applied all that it wrote, the writer is retired: its rows are dropped,
//! and its versions are kept (R33). A node that returns with older versions must load a snapshot (R34). A node that reports
//! newer versions of a retired writer reopens that writer (R35).

use std::collections::BTreeMap;
use std::time::Duration;

use smg_types::now::Now;

use crate::replication::changes::Changes;
use crate::replication::message::RetiredWriter;
use crate::replication::peers::Peers;
use crate::replication::stream::Stream;
use crate::state::writers::{StoreVersions, Writer};
use crate::state::{State, StoreId};

/// Rows that are adopted per round and store.
const ADOPTED_PER_ROUND: usize = 1000;

/// Which ended writers this node has adopted.
#[derive(Debug, Default)]
pub(super) struct Adoptions {
    /// Writers of which all rows up to these versions are adopted.
    finished: BTreeMap<Writer, StoreVersions>,
    /// When this node noticed that a writer had ended, by the monotonic clock.
    ended_at: BTreeMap<Writer, Duration>,
}

impl Adoptions {
    /// When this node noticed that `writer` had ended: now, if this is the first call for it.
    pub(super) fn note_ended(&mut self, writer: Writer, now: Duration) -> Duration {
        *self.ended_at.entry(writer).or_insert(now)
    }

    /// Adopts rows of `of`, up to a budget per store, except those that a member which has not ended holds too. Rows that
    /// are summed up are adopted only `with_sums`.
    pub(super) fn adopt(
        &mut self,
        state: &mut State,
        of: Writer,
        with_sums: bool,
        now: Now,
    ) -> Changes {
        let mut changes = Changes::default();
        let waits = |store: StoreId| store.is_summed_up() && !with_sums;
        let applied = |store| state.replica(store).applied(of);
        let versions = StoreId::ALL.map(|store| if waits(store) { 0 } else { applied(store) });
        if self.finished.get(&of) == Some(&versions) {
            return changes;
        }
        for store in StoreId::ALL.into_iter().filter(|store| !waits(*store)) {
            let (table, parts) = state.replica_mut(store, now);
            changes.touch(store, table.adopt(&parts, of, ADOPTED_PER_ROUND));
        }
        if changes.is_empty() {
            self.finished.insert(of, versions);
        }
        changes
    }

    /// `writer` is retired: nothing of it is left to adopt.
    pub(super) fn forget_writer(&mut self, writer: Writer) {
        self.finished.remove(&writer);
        self.ended_at.remove(&writer);
    }

    /// This node goes on as another writer, which has adopted nothing yet.
    pub(super) fn reset(&mut self) {
        self.finished.clear();
    }
}

/// The writers that have ended and are not retired, without this node itself.
pub(super) fn ended_writers(state: &State) -> Vec<Writer> {
    let writers = state.writers.current().map(|(writer, _)| writer);
    writers.filter(|writer| *writer != state.me && state.writers.has_ended(*writer)).collect()
}

/// Drops the measurements of `writer`, which has ended.
pub(super) fn drop_measurements(state: &mut State, writer: Writer, now: Now) -> Changes {
    let mut changes = Changes::default();
    for store in StoreId::ALL.into_iter().filter(|store| store.ends_with_writer()) {
        let (table, _) = state.replica_mut(store, now);
        changes.touch(store, table.end(writer));
    }
    changes
}

/// Whether `writer`, which has ended, may be retired: every member has applied exactly what this node has applied of it, and
/// all of that is in rows of other writers (R33).
pub(super) fn may_retire(state: &State, peers: &Peers, writer: Writer) -> bool {
    let decided = || StoreId::ALL.into_iter().filter(|store| !store.ends_with_writer());
    let is_known_by_all = peers.iter().all(|peer| {
        decided().all(|store| peer.known((store, writer)) == state.replica(store).applied(writer))
    });
    is_known_by_all && state.is_spent(writer)
}

/// Drops the rows of `writer` and keeps its versions.
pub(super) fn retire(state: &mut State, writer: Writer, now: Now) {
    for store in StoreId::ALL {
        let (table, _) = state.replica_mut(store, now);
        table.retire(writer);
    }
    state.writers.retire(writer, now);
}

/// Reopens the writer of `stream` if it is retired and a peer has applied more of the stream than this node: digests name it
/// again until all nodes have applied that too (R35).
pub(super) fn reopen_if_behind(state: &mut State, (store, writer): Stream, version: u64) {
    if state.writers.is_retired(writer)
        && !store.ends_with_writer()
        && version > state.replica(store).applied(writer)
    {
        state.writers.reopen(writer);
    }
}

/// The entries of a notice about `writers`, which have ended: their names, and the versions that this node has applied of those that
/// are retired (R34).
pub(super) fn ended(state: &State, writers: &[Writer]) -> Vec<RetiredWriter> {
    let entry = |writer: &Writer| {
        let id = state.writers.id(*writer)?;
        let closed = state.writers.is_retired(*writer);
        let applied = |store| state.replica(store).applied(*writer);
        let versions = if closed { StoreId::ALL.map(applied).to_vec() } else { Vec::new() };
        Some(RetiredWriter { writer: id.clone(), closed, versions })
    };
    writers.iter().filter_map(entry).collect()
}
