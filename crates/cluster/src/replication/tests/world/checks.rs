//! The checks of a world: what must hold after every step, and what all replicas must agree on after the last fault.

use std::collections::BTreeSet;
use std::time::Duration;

use smg_types::ids::{ModelId, NodeId};

use crate::replication::peer::MAX_OUTBOX;
use crate::replication::tests::world::World;
use crate::replication::{CHUNK_BYTES, Replication};
use crate::state::StoreId;
use crate::state::totals::Outcome;

impl World {
    /// Checks what must hold after every step.
    pub(super) fn check(&mut self, at: usize) {
        let seed = self.seed;
        if self.nodes[at].replica.is_none() {
            return;
        }
        let me = self.replica(at).me().clone();
        // No resurrection: a value that is gone here never returns.
        for n in 0..6 {
            let key = ModelId::new(format!("m{n}"));
            let here = self.values(at, &key);
            let node = &self.nodes[at];
            let back: Vec<&u64> = here.intersection(&node.gone).collect();
            assert!(back.is_empty(), "seed {seed}: {back:?} came back under {key} at {me}");
            if node.seen.get(&key) != Some(&here) {
                let node = &mut self.nodes[at];
                let before = node.seen.insert(key, here.clone()).unwrap_or_default();
                node.gone.extend(before.difference(&here));
            }
        }
        // Vector honesty: a replica that claims a version of a writer has all rows of that writer up to it.
        let replica = self.replica(at);
        for node in self.nodes.iter().filter(|node| node.id != me) {
            let Some(writer) = &node.replica else { continue };
            // Once any node takes it for ended its measurements end, and it will be notified.
            let over = self.nodes.iter().filter_map(|other| other.replica.as_ref()).any(|other| {
                let number = other.state.writers.number(writer.me());
                number.is_some_and(|number| other.state.writers.has_ended(number))
            });
            if over {
                continue;
            }
            for store in StoreId::ALL {
                let Some(number) = replica.state.writers.number(writer.me()) else { continue };
                let claimed = replica.state.replica(store).applied(number);
                if claimed == 0 || replica.state.writers.has_ended(number) {
                    continue;
                }
                let theirs = writer.state.living_rows(store, writer.me(), claimed);
                let mine = replica.state.living_rows(store, writer.me(), u64::MAX);
                // Counts that were adopted by a node that has crashed since are in the base of its row.
                let taken_over = self.faults.restarts && store == StoreId::Totals;
                if !store.is_shared() && !taken_over {
                    let missing = theirs.iter().find(|row| !mine.contains(row));
                    let id = writer.me();
                    assert!(
                        missing.is_none(),
                        "seed {seed}: {me} claims {claimed} of {id} in {store}"
                    );
                } else if store == StoreId::Policies {
                    for (key, version) in theirs.iter().filter(|row| !mine.contains(row)) {
                        let model: ModelId = crate::state::row::decode_key(key).unwrap();
                        let value = writer.state.tables.policies.value_of(&model, writer.state.me);
                        // A row may carry only what others wrote.
                        let Some(value) = value else { continue };
                        let number: u64 = value.get().unwrap().policy.parse().unwrap();
                        let excused = self.superseded.contains(&number) || self.faults.restarts;
                        let id = writer.me();
                        assert!(
                            excused,
                            "seed {seed}: {me} claims {claimed} of {id} without {version}"
                        );
                    }
                }
            }
        }
        let sound = replica.state.check_logs();
        assert!(sound.is_ok(), "seed {seed}: {me}: {sound:?}");
        // Bounds.
        for peer in replica.peers.iter() {
            let in_flight = peer.window.in_flight_bytes();
            assert!(in_flight <= replica.config.window_bytes + 2 * CHUNK_BYTES);
            assert!(peer.outbox_len() <= MAX_OUTBOX);
        }
    }

    /// The faults end: after a while all replicas agree with each other and with what was written.
    pub(in crate::replication::tests) fn heal_and_check(&mut self) {
        self.heal();
        self.run(Duration::from_secs(20));
        for node in &self.nodes {
            self.check_agreement(node.replica.as_ref().unwrap());
        }
        self.check_what_is_read();
    }

    /// Ends all faults.
    fn heal(&mut self) {
        self.loss = 0.0;
        self.faults.network = false;
        self.mend();
        for at in 0..self.nodes.len() {
            if self.nodes[at].replica.is_none() {
                self.revive(at, false);
            }
        }
        // Nodes that were forgotten while they ran are found again.
        for a in 0..self.nodes.len() {
            for b in 0..a {
                self.connect(a, b);
            }
        }
    }

    /// A replica holds and reads what the first one does.
    fn check_agreement(&self, replica: &Replication) {
        let seed = self.seed;
        let first = self.replica(0);
        for store in StoreId::ALL {
            // Rows whose counts are contained in another row may be gone here and not yet there, if a node that was
            // forgotten goes on because all nodes that forgot it have crashed. The sums are compared below.
            let contained = self.faults.restarts && store == StoreId::Totals;
            assert!(
                contained || replica.state().fingerprint(store) == first.state().fingerprint(store),
                "seed {seed}: {store} differs between {} and {}\n{:?}\n{:?}",
                replica.me(),
                first.me(),
                living(replica, store),
                living(first, store)
            );
            // A kill of a write that was lost with its author waits for ever.
            let chunk = replica.chunk(store, 0, None).unwrap();
            let waits =
                chunk.pending.iter().map(|(of, _, _)| &chunk.claims.writers[usize::from(*of)]);
            let has_ended = |id: &NodeId| {
                let writers = replica.state().writers();
                writers.number(id).is_some_and(|writer| writers.has_ended(writer))
            };
            let living: Vec<_> = waits.filter(|id| !has_ended(id)).collect();
            assert!(living.is_empty(), "seed {seed}: {store} waits for {living:?}");
        }
        assert_eq!(
            replica.state().policies().collect::<Vec<_>>(),
            first.state().policies().collect::<Vec<_>>(),
            "seed {seed}"
        );
        assert_eq!(
            replica.state().workers().collect::<Vec<_>>(),
            first.state().workers().collect::<Vec<_>>(),
            "seed {seed}"
        );
        let total = |r: &Replication| r.state().total(&"m".into(), Outcome::Ok);
        assert_eq!(total(replica), total(first), "seed {seed}");
        assert!(replica.is_warm(), "seed {seed}: {} is not warm", replica.me());
    }

    /// No loss, no resurrection: each replica reads the latest of the values that were not superseded.
    fn check_what_is_read(&self) {
        let (seed, first) = (self.seed, self.replica(0));
        for n in 0..6 {
            let key = ModelId::new(format!("m{n}"));
            let should: BTreeSet<u64> = self
                .written
                .iter()
                .filter(|(number, of)| **of == key && !self.superseded.contains(number))
                .map(|(number, _)| *number)
                .collect();
            let reads: Option<u64> =
                first.state().policy(&key).map(|policy| policy.policy.parse().unwrap());
            let uncertain = self
                .written
                .iter()
                .any(|(number, of)| *of == key && self.uncertain.contains(number));
            if uncertain {
                continue;
            }
            assert_eq!(
                reads.is_some(),
                !should.is_empty(),
                "seed {seed}: {key} {reads:?} {should:?}"
            );
            assert!(
                reads.is_none_or(|n| should.contains(&n)),
                "seed {seed}: {key} {reads:?} {should:?}"
            );
        }
    }
}

fn living(replica: &Replication, store: StoreId) -> Vec<String> {
    let state = replica.state();
    let writers: Vec<NodeId> = state.writers().current().map(|(_, id)| id.clone()).collect();
    writers
        .iter()
        .map(|id| {
            let rows = state.living_rows(store, id, u64::MAX);
            let applied =
                state.versions(store).find(|(known, _)| *known == id).map_or(0, |(_, v)| v);
            format!("{id} to {applied}: {:?}", rows.iter().map(|(_, v)| *v).collect::<Vec<_>>())
        })
        .collect()
}
