//! The faults of a world: partitions, crashes, restarts with and without saved rows, members that are forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;
use smg_types::ids::NodeId;

use crate::replication::Replication;
use crate::replication::tests::world::{Event, World};
use crate::state::StoreId;

impl World {
    pub(super) fn break_something(&mut self) {
        let count = self.nodes.len();
        let at = self.rng.random_range(0..count);
        match self.rng.random_range(0..if self.faults.restarts { 8 } else { 4 }) {
            0 => {
                // Some nodes are cut off from the others.
                let side: Vec<bool> = (0..count).map(|_| self.rng.random_bool(0.5)).collect();
                for a in 0..count {
                    for b in 0..count {
                        if side[a] != side[b] {
                            self.cut.insert((a, b));
                            let after = Duration::from_millis(self.rng.random_range(500..3_000));
                            self.push(after, Event::Down(a, b));
                        }
                    }
                }
            }
            1 => {
                // One direction of one link is cut, for too short a time for membership to notice.
                let other = self.rng.random_range(0..count);
                self.cut.insert((at, other));
            }
            2 | 3 => self.mend(),
            4 => self.kill(at),
            5 | 6 => {
                if self.nodes[at].replica.is_none() {
                    let with_disk = self.rng.random_bool(0.3);
                    self.revive(at, with_disk);
                } else {
                    self.save(at);
                }
            }
            _ => self.forget(at),
        }
    }

    pub(super) fn mend(&mut self) {
        let cut: BTreeSet<(usize, usize)> =
            std::mem::take(&mut self.cut).into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
        for (a, b) in cut {
            if a != b && self.nodes[a].replica.is_some() && self.nodes[b].replica.is_some() {
                self.connect(a, b);
            }
        }
    }

    /// Writes to disk what has changed since the last time, in a store at a time, as a router does.
    fn save(&mut self, at: usize) {
        let with_positions = self.rng.random_bool(0.5);
        let node = &mut self.nodes[at];
        let replica = node.replica.as_mut().unwrap();
        let entries = replica.take_unsaved(with_positions);
        if with_positions {
            node.saved = Some(held(replica));
        } else if !entries.is_empty() {
            node.saved = None;
        }
        for (key, value) in entries {
            match value {
                Some(value) => node.disk.insert(key, value),
                None => node.disk.remove(&key),
            };
        }
    }

    fn living(&self) -> usize {
        self.nodes.iter().filter(|node| node.replica.is_some()).count()
    }

    pub(in crate::replication::tests) fn kill(&mut self, at: usize) {
        if self.living() <= 2 || self.nodes[at].replica.is_none() {
            return;
        }
        let replica = self.nodes[at].replica.take().unwrap();
        self.crashed.push(*replica.counters());
        // Writes that it had not sent to any node may be lost, and then what they had superseded stays. So either
        // may be read under the keys concerned. The same holds for writes of others that only this node still had.
        let alone_with = replica.state.versions(StoreId::Policies).any(|(id, version)| {
            let others = self.nodes.iter().filter_map(|other| other.replica.as_ref());
            !others.into_iter().any(|other| {
                other.state.writers.number(id).is_some_and(|writer| {
                    other.state.writers.is_retired(writer)
                        || other.state.replica(StoreId::Policies).applied(writer) >= version
                })
            })
        });
        if alone_with {
            self.uncertain.extend(self.written.keys());
        }
        let node = &mut self.nodes[at];
        node.seen.clear();
        node.gone.clear();
        for other in 0..self.nodes.len() {
            let after = Duration::from_millis(self.rng.random_range(500..3_000));
            self.push(after, Event::Down(other, at));
        }
    }

    pub(in crate::replication::tests) fn revive(&mut self, at: usize, with_disk: bool) {
        self.nodes[at].id.generation.0 += 1;
        self.nodes[at].counted = 0;
        self.nodes[at].isolated = false;
        self.start(at);
        if with_disk {
            let now = self.now_at(at);
            // Saved rows may live again if this node adopts them before it meets a node that has removed them.
            let stale: Vec<u64> = self.written.keys().copied().collect();
            self.uncertain.extend(stale);
            let disk = self.nodes[at].disk.clone();
            let replica = self.nodes[at].replica.as_mut().unwrap();
            let restored =
                replica.restore_saved(now, disk.iter().map(|(k, v)| (k.as_slice(), v.as_slice())));
            assert_eq!(restored.unusable, 0);
            if let Some(saved) = self.nodes[at].saved.take() {
                assert_eq!(
                    held(self.replica(at)),
                    saved,
                    "the state of the moment when it was saved"
                );
            }
            self.check(at);
        }
        // What the new generation saves replaces all that is there.
        self.nodes[at].disk.clear();
        self.nodes[at].saved = None;
    }

    /// All others forget a node: one that has crashed, or one that is only cut off and will return.
    fn forget(&mut self, at: usize) {
        if self.living() <= 2 {
            return;
        }
        self.nodes[at].isolated = true;
        for other in 0..self.nodes.len() {
            if other == at {
                continue;
            }
            if self.nodes[at].replica.is_some() {
                self.cut.insert((at, other));
                self.cut.insert((other, at));
            }
            let (now, id) = (self.now_at(other), self.nodes[at].id.clone());
            if let Some(replica) = &mut self.nodes[other].replica {
                replica.peer_forgotten(now, &id);
            }
            let (now, id) = (self.now_at(at), self.nodes[other].id.clone());
            if let Some(replica) = &mut self.nodes[at].replica {
                replica.peer_down(now, &id);
            }
        }
    }
}

/// The fingerprint of each store that is saved, and the versions that are covered in it.
fn held(replica: &Replication) -> Vec<(u64, BTreeMap<NodeId, u64>)> {
    let state = replica.state();
    let covered = |store| state.covered(store).map(|(id, version)| (id.clone(), version)).collect();
    StoreId::durable().map(|store| (state.fingerprint(store), covered(store))).collect()
}
