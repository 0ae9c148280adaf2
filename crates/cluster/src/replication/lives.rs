//! The lives of writers: what ends with them, who carries on the rest, and when nothing of them need be spoken of.
//!
//! A writer is over once its node began a later life or was forgotten. What it measured ends at once; what it decided is
//! carried on in rows of the later life of its name or, for a forgotten node, of the lowest living name. That changes
//! nothing but where a write is found, so it may be done by several, twice, or by somebody who knows too little. When all
//! of it is carried on and every member has had all that it wrote, it is retired: its rows go, how far its logs were stays.
//! Who comes back and is behind that joins a snapshot; who knows more of it than that makes it spoken of again.

use smg_types::now::Now;

use crate::replication::{Changes, Replication};
use crate::state::StoreId;
use crate::state::writers::Writer;

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
            if self.is_adopter(now, writer) {
                changes = changes.and(self.adopt(now, writer));
            }
            if self.is_known_by_all(writer) && self.state.is_spent(writer) {
                self.retire(now, writer);
            }
        }
        self.state.forget_retired(now.mono.saturating_sub(self.config.fence), now);
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

    /// Whether this node has been among others for a while and has all that they have: what they know to be removed need not
    /// be carried on.
    fn is_level_with_all(&self, now: Now) -> bool {
        let mut up = self.peers.values().filter(|peer| peer.up).peekable();
        let alone = self.peers.is_empty() && now.mono >= self.started + ALONE;
        (up.peek().is_some() || alone)
            && self.joins.is_empty()
            && now.mono >= self.last_up + 3 * self.config.digest_interval
            && up.all(|peer| self.has_all_of(peer))
    }

    fn adopt(&mut self, now: Now, of: Writer) -> Changes {
        let mut changes = Changes::default();
        // Taking over counts says that all earlier lives are in them. A member that can't be reached may know of one that
        // is not known here, and nothing is gained by haste: the writer is not retired without that member either.
        let all_up = self.peers.values().all(|peer| peer.up);
        let waits = |store: StoreId| store.is_summed_up() && !all_up;
        let applied = |store| self.state.replica(store).applied(of);
        let versions = StoreId::ALL.map(|store| if waits(store) { 0 } else { applied(store) });
        if self.carried_on.get(&of) == Some(&versions) {
            return changes;
        }
        for store in StoreId::ALL.into_iter().filter(|store| !waits(*store)) {
            let (table, cx) = self.state.replica_mut(store, now);
            let rows = table.adopt(&cx, of, ADOPTED_PER_ROUND);
            self.counters.adopted += rows as u64;
            changes.touch(store, rows);
        }
        if changes.is_empty() {
            self.carried_on.insert(of, versions);
        }
        changes
    }

    /// Whether every member has had exactly what this node has of `writer`.
    fn is_known_by_all(&self, writer: Writer) -> bool {
        self.peers.values().all(|peer| {
            let decided = StoreId::ALL.into_iter().filter(|store| !store.ends_with_writer());
            decided.into_iter().all(|store| {
                peer.known((store, writer)) == self.state.replica(store).applied(writer)
            })
        })
    }

    fn retire(&mut self, now: Now, writer: Writer) {
        for store in StoreId::ALL {
            let (table, _) = self.state.replica_mut(store, now);
            table.retire(writer);
        }
        self.state.writers.retire(writer, now);
        for peer in self.peers.values_mut() {
            for store in StoreId::ALL {
                peer.stop((store, writer));
                peer.known.remove(&(store, writer));
            }
            peer.retired.remove(&writer);
        }
        self.behind.retain(|(_, of), _| *of != writer);
        self.carried_on.remove(&writer);
        self.counters.retired += 1;
    }

    /// Drops tombstones that every member has seen. Who has not is behind the log's floor and joins a snapshot, so waiting
    /// only saves those.
    pub(super) fn collect(&mut self, now: Now) {
        if self.peers.is_empty() && now.mono < self.started + ALONE {
            // It may only not have been found yet.
            return;
        }
        for store in StoreId::ALL {
            for writer in self.state.replica(store).writers() {
                let replica = self.state.replica(store);
                if !replica.has_tombstones(writer) {
                    continue;
                }
                let acked = self.peers.values().map(|peer| peer.known((store, writer)));
                let stable = acked.fold(replica.applied(writer), u64::min);
                let (table, _) = self.state.replica_mut(store, now);
                self.counters.collected += table.collect(writer, stable) as u64;
            }
        }
    }
}
