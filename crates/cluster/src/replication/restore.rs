//! Saving and restoring: the ranges of keys of a store, written to disk by a node and loaded by a later generation of it.

use smg_types::now::Now;

use crate::replication::changes::Changes;
use crate::replication::message::SnapshotChunk;
use crate::replication::snapshot_loads::LeastClaim;
use crate::replication::{Replication, snapshot, snapshot_loads};
use crate::state::StoreId;
use crate::state::row::Blob;

impl Replication {
    /// The range of keys of `store` after the key `after`, with all that is known about them; `None` if `after` is no
    /// key. A node may save all ranges to disk, see [`Replication::restore`].
    #[must_use]
    pub fn chunk(
        &self,
        store: StoreId,
        session: u64,
        after: Option<Blob>,
    ) -> Option<SnapshotChunk> {
        snapshot::chunk(&self.state, store, session, after)
    }

    /// Loads what an earlier generation of this node has saved: all ranges of a store, in order, as if a peer had sent
    /// them.
    pub fn restore(&mut self, now: Now, store: StoreId, chunks: Vec<SnapshotChunk>) -> Changes {
        let (mut changes, mut claim, mut after) = (Changes::default(), LeastClaim::default(), None);
        let count = chunks.len();
        for (at, chunk) in chunks.into_iter().enumerate() {
            let end = chunk.end.clone();
            let fits = chunk.store.store() == Some(store)
                && chunk.after == after
                && (end.is_none() == (at + 1 == count));
            let merged =
                if fits { snapshot::merge(&mut self.state, now, store, chunk) } else { None };
            let Some(merged) = merged else {
                self.counters.refused_messages += 1;
                return changes;
            };
            changes.touch(store, merged.rows);
            claim.narrow(&merged.marks);
            after = end;
        }
        self.claim(now, store, claim.into_claim());
        changes
    }

    /// All ranges of a snapshot are merged: what its donors covered is covered here too.
    pub(super) fn claim(&mut self, now: Now, store: StoreId, claim: snapshot_loads::Claim) {
        for (stream, stood) in snapshot::claim(&mut self.state, now, store, claim) {
            self.note_move(stream, stood);
        }
    }
}
