//! The lives of writers: what ends with them, who takes over the rest, and when nothing of them need be remembered.
//!
//! A writer is over once its node began a later life or was forgotten. What it measured ends at once; what it decided is
//! adopted, by the later life of its name or, for a forgotten node, by the lowest living name. When nothing of it is left
//! and every member has had all that it wrote, it is retired: a fence with its last versions refuses late packets. A node
//! that comes back with rows from beyond the fence adopts them; those that the fence covers are dead.

use crate::cluster::replication::{Changes, Replication};
use crate::cluster::state::StoreId;
use crate::cluster::state::table::Context;
use crate::cluster::state::writers::{Retired, StoreVersions, Writer};
use crate::now::Now;

/// Rows that are adopted per round and store.
const ADOPTED_PER_ROUND: usize = 1000;
/// After this long without a peer a node takes itself to be alone.
const ALONE: std::time::Duration = std::time::Duration::from_secs(10);

impl Replication {
    pub(super) fn look_after_lives(&mut self, now: Now) -> Changes {
        let mut changes = Changes::default();
        let over: Vec<Writer> = self
            .state
            .writers
            .current()
            .map(|(writer, _)| writer)
            .filter(|writer| *writer != self.state.me && self.state.writers.is_over(*writer))
            .collect();
        for writer in over {
            for store in StoreId::ALL.into_iter().filter(|store| store.ends_with_writer()) {
                let (table, _) = self.state.replica_mut(store, now);
                changes.touch(store, table.end(writer));
            }
            let settled = self.state.totals.drop_settled(writer, &self.state.writers);
            changes.touch(StoreId::Totals, settled);
            if let Some((from, versions)) = self.fences.get(&writer).cloned() {
                if self.peers.get(&from).is_some_and(|peer| self.has_all_of(peer)) {
                    changes = changes.and(self.close(now, writer, versions));
                }
                continue;
            }
            if self.is_adopter(now, writer) {
                changes = changes.and(self.adopt(now, writer, false));
            }
            self.retire_if_done(now, writer);
        }
        self.fences.retain(|writer, _| self.state.writers.retired(*writer).is_none());
        self.state.writers.forget_fences(now.mono.saturating_sub(self.config.fence));
        changes
    }

    fn is_adopter(&self, now: Now, writer: Writer) -> bool {
        let Some(id) = self.state.writers.id(writer) else { return false };
        if !self.is_level_with_all(now) {
            return false;
        }
        if id.name == self.me.name {
            return id.generation < self.me.generation;
        }
        self.forgotten.contains(&id.name) && self.is_lowest_name()
    }

    /// Whether this node has been among others for a while and has all that they have: who adopts what others know to be
    /// removed would bring it back.
    fn is_level_with_all(&self, now: Now) -> bool {
        let mut up = self.peers.values().filter(|peer| peer.up).peekable();
        let alone = self.peers.is_empty() && now.mono >= self.started + ALONE;
        (up.peek().is_some() || alone)
            && self.joins.is_empty()
            && now.mono >= self.last_up + 3 * self.config.digest_interval
            && up.all(|peer| self.has_all_of(peer))
    }

    fn adopt(&mut self, now: Now, of: Writer, closing: bool) -> Changes {
        let mut changes = Changes::default();
        let state = &mut self.state;
        let mut cx =
            Context { writers: &mut state.writers, clock: &mut state.clock, me: state.me, now };
        let budget = ADOPTED_PER_ROUND;
        let adopted = [
            (StoreId::Workers, state.workers.adopt(&mut cx, of, closing, budget)),
            (StoreId::Policies, state.policies.adopt(&mut cx, of, closing, budget)),
            (StoreId::Rules, state.rules.adopt(&mut cx, of, closing, budget)),
            (StoreId::Sessions, state.sessions.adopt(&mut cx, of, closing, budget)),
            (StoreId::Totals, state.totals.adopt_counts(&mut cx, of, budget)),
        ];
        for (store, rows) in adopted {
            self.counters.adopted += rows as u64;
            changes.touch(store, rows);
        }
        changes
    }

    /// Others closed `writer` at `versions`: what they had is dead or adopted, what they had not is adopted here.
    fn close(&mut self, now: Now, writer: Writer, versions: StoreVersions) -> Changes {
        let mut changes = Changes::default();
        for (store, version) in StoreId::ALL.into_iter().zip(versions) {
            let (table, _) = self.state.replica_mut(store, now);
            changes.touch(store, table.drop_rows_up_to(writer, version));
        }
        changes = changes.and(self.adopt(now, writer, true));
        let left = StoreId::ALL
            .into_iter()
            .filter(|store| store.is_shared())
            .any(|store| !self.state.replica(store).is_empty_of(writer));
        if !left {
            self.retire(now, writer, versions);
        }
        changes
    }

    fn retire_if_done(&mut self, now: Now, writer: Writer) {
        if StoreId::ALL.iter().any(|store| !self.state.replica(*store).is_empty_of(writer)) {
            return;
        }
        let versions = StoreId::ALL.map(|store| self.state.replica(store).applied(writer));
        let all_agree = self.peers.values().all(|peer| {
            peer.retired.contains(&writer)
                || StoreId::ALL
                    .iter()
                    .zip(versions)
                    .filter(|(store, _)| !store.ends_with_writer())
                    .all(|(store, version)| peer.known((*store, writer)) == version)
        });
        if all_agree {
            self.retire(now, writer, versions);
        }
    }

    fn retire(&mut self, now: Now, writer: Writer, versions: StoreVersions) {
        for store in StoreId::ALL {
            let (table, _) = self.state.replica_mut(store, now);
            table.retire(writer);
        }
        self.state.writers.retire(writer, Retired { at: now, versions });
        for peer in self.peers.values_mut() {
            for store in StoreId::ALL {
                peer.stop((store, writer));
                peer.known.remove(&(store, writer));
            }
        }
        self.behind.retain(|(_, of), _| *of != writer);
        self.counters.retired += 1;
    }

    /// Drops tombstones that every member has seen. An ack counts only once everything that the member had written until
    /// then is here: after that, nothing that the tombstone removes can arrive any more.
    pub(super) fn collect(&mut self, now: Now) {
        if self.peers.is_empty() && now.mono < self.started + ALONE {
            // It may only not have been found yet.
            return;
        }
        for store in StoreId::ALL {
            for writer in self.state.replica(store).writers() {
                let replica = self.state.replica(store);
                // Where a peer has closed the writer its tombstones are yet to be said again by this node.
                let closed = self.peers.values().any(|peer| peer.retired.contains(&writer));
                if closed || !replica.has_tombstones(writer) {
                    continue;
                }
                let mut stable = replica.applied(writer);
                for peer in self.peers.values() {
                    let level = replica.applied(peer.writer) >= peer.known((store, peer.writer));
                    let acked = if level { peer.known((store, writer)) } else { 0 };
                    stable = stable.min(acked);
                }
                let (table, _) = self.state.replica_mut(store, now);
                self.counters.collected += table.collect(writer, stable) as u64;
            }
        }
    }
}
