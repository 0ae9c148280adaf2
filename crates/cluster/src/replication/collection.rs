//! Collecting tombstones that every member has applied.
//!
//! Waiting for all is not needed for safety: a node that has not applied a collected tombstone is below the log's floor,
//! and loads a snapshot (R12). Waiting saves those snapshots (R22).

use smg_types::now::Now;

use crate::replication::peers::Peers;
use crate::state::{State, StoreId};

/// Drops the tombstones that all members have applied, reachable or not. Returns how many.
pub(super) fn collect_tombstones(state: &mut State, peers: &Peers, now: Now) -> usize {
    if peers.may_be_unknown(now) {
        // A peer that was not found yet would need a snapshot.
        return 0;
    }
    let mut collected = 0;
    for store in StoreId::ALL {
        for writer in state.replica(store).writers() {
            let replica = state.replica(store);
            if !replica.has_tombstones(writer) {
                continue;
            }
            let applied = replica.applied(writer);
            let stable = peers.lowest_known((store, writer)).map_or(applied, |v| v.min(applied));
            let (table, _) = state.replica_mut(store, now);
            collected += table.collect(writer, stable);
        }
    }
    collected
}
