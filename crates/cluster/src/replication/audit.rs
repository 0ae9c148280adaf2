//! Audits: fingerprints that find what the version vectors can't, a row that is missing or should not be there.
//!
//! Only the writer itself knows which of its rows are right, so only it audits them; for writers that do not run the lowest
//! living name does. Comparing makes sense only at the same version, and in shared stores, where one stream's rows end by
//! another's, only at the same version vector.
//!
//! Every half minute or so a random peer is audited. When somebody comes or goes, what was written by who died with it may
//! be missed by some and not by others, so then all are audited soon, and a few times more.

use rand::Rng;
use smg_types::ids::{NodeId, NodeName};
use smg_types::now::Now;

use crate::replication::message::{Audit, AuditPull, AuditRows, Message};
use crate::replication::{CHUNK_BYTES, Changes, Replication};
use crate::state::StoreId;
use crate::state::table::BUCKETS;
use crate::state::writers::Writer;

impl Replication {
    /// A hash of the store's version vector where rows depend on more than their own stream; else 0.
    fn vector_hash(&self, store: StoreId) -> u64 {
        if !store.is_shared() {
            return 0;
        }
        let mut ids: Vec<(&NodeId, u64)> = self.state.versions(store).collect();
        ids.sort_unstable();
        ids.iter().fold(1, |hash, (id, version)| {
            let author = crate::crdt::stamp::Author::of(id).as_u64();
            xxhash_rust::xxh3::xxh3_64_with_seed(&version.to_le_bytes(), hash ^ author)
        })
    }

    /// Whether this node knows best about the rows of `writer`.
    fn is_authority(&self, writer: Writer) -> bool {
        if writer == self.state.me {
            return true;
        }
        let runs = self.peers.values().any(|peer| peer.up && peer.writer == writer);
        !runs && self.is_lowest_name()
    }

    /// Whether no reachable peer has a lower name.
    pub(super) fn is_lowest_name(&self) -> bool {
        !self.peers.iter().any(|(name, peer)| peer.up && *name < self.me.name)
    }

    pub(super) fn audit_any(&mut self, _now: Now, rng: &mut dyn Rng) {
        if let Some(name) = self.any_up(rng) {
            self.audit(&name);
        }
    }

    /// Audits out of turn whom it is time to.
    pub(super) fn audit_soon(&mut self, now: Now) {
        let mut due = Vec::new();
        for (name, peer) in &mut self.peers {
            if let Some((at, gap)) = peer.audit
                && now.mono >= at
            {
                let again = gap * 2 < self.config.audit_interval;
                peer.audit = again.then_some((now.mono + gap, gap * 2));
                due.push(name.clone());
            }
        }
        for name in due {
            self.audit(&name);
        }
    }

    fn audit(&mut self, name: &NodeName) {
        let writers: Vec<(Writer, NodeId)> =
            self.state.writers.current().map(|(writer, id)| (writer, id.clone())).collect();
        for store in StoreId::ALL {
            if self.joins.contains_key(&store) {
                continue;
            }
            for (writer, id) in &writers {
                let version = self.state.replica(store).applied(*writer);
                if version == 0 || !self.is_authority(*writer) {
                    continue;
                }
                let audit = Audit {
                    store: store.into(),
                    writer: id.clone(),
                    version,
                    vector: self.vector_hash(store),
                    prints: self.state.replica(store).prints(*writer).to_vec(),
                };
                self.say(name, Message::Audit(audit));
            }
        }
    }

    fn same_place(&self, store: StoreId, writer: Writer, version: u64, vector: u64) -> bool {
        writer != self.state.me
            && !self.joins.contains_key(&store)
            && self.state.replica(store).applied(writer) == version
            && self.vector_hash(store) == vector
    }

    pub(super) fn on_audit(&mut self, from: &NodeName, audit: &Audit) -> Changes {
        let Some(store) = audit.store.store() else {
            self.counters.unknown_stores += 1;
            return Changes::default();
        };
        let Some(writer) = self.state.writers.number(&audit.writer) else {
            return Changes::default();
        };
        if audit.prints.len() != BUCKETS {
            self.counters.refused_messages += 1;
            return Changes::default();
        }
        if self.same_place(store, writer, audit.version, audit.vector) {
            let mine = self.state.replica(store).prints(writer);
            let pairs = mine.iter().zip(&audit.prints).enumerate();
            let mask = pairs.fold(0, |mask, (bucket, (mine, theirs))| {
                mask | u64::from(mine != theirs) << bucket
            });
            if mask != 0 {
                let (writer, version) = (audit.writer.clone(), audit.version);
                let pull = AuditPull { store: audit.store, writer, version, mask };
                self.say(from, Message::AuditPull(pull));
            }
        }
        Changes::default()
    }

    pub(super) fn on_audit_pull(&mut self, from: &NodeName, pull: &AuditPull) -> Changes {
        let Some(store) = pull.store.store() else {
            self.counters.unknown_stores += 1;
            return Changes::default();
        };
        let Some(writer) = self.state.writers.number(&pull.writer) else {
            return Changes::default();
        };
        let replica = self.state.replica(store);
        if replica.applied(writer) != pull.version || !self.is_authority(writer) {
            return Changes::default();
        }
        let (mut mask, mut rows, mut bytes, mut unrepairable) = (0, Vec::new(), 0, 0);
        for bucket in (0..BUCKETS).filter(|bucket| pull.mask >> bucket & 1 == 1) {
            let bucket_rows = replica.bucket_rows(&self.state.writers, writer, 1 << bucket);
            let size: usize = bucket_rows.iter().map(|row| row.wire_bytes()).sum();
            if size > CHUNK_BYTES {
                unrepairable += 1;
            } else if bytes + size <= CHUNK_BYTES {
                bytes += size;
                mask |= 1 << bucket;
                rows.extend(bucket_rows);
            }
            // What does not fit is found again by the next audit.
        }
        self.counters.unrepairable += unrepairable;
        if mask != 0 {
            rows.sort_by_key(|row| row.version);
            let vector = self.vector_hash(store);
            let (writer, version) = (pull.writer.clone(), pull.version);
            let rows = AuditRows { store: pull.store, writer, version, vector, mask, rows };
            self.say(from, Message::AuditRows(rows));
        }
        Changes::default()
    }

    pub(super) fn on_audit_rows(&mut self, now: Now, rows: &AuditRows) -> Changes {
        let mut changes = Changes::default();
        let Some(store) = rows.store.store() else {
            self.counters.unknown_stores += 1;
            return changes;
        };
        if let Some(writer) = self.state.writers.number(&rows.writer)
            && self.same_place(store, writer, rows.version, rows.vector)
            && rows.rows.iter().all(|row| row.version <= rows.version)
        {
            let (table, mut cx) = self.state.replica_mut(store, now);
            let repaired = table.repair(&mut cx, writer, rows.mask, &rows.rows);
            self.counters.repaired += repaired as u64;
            changes.touch(store, repaired);
        }
        changes
    }

    /// Reads again what is in quarantine.
    pub(super) fn release(&mut self, now: Now) -> Changes {
        let mut changes = Changes::default();
        for store in StoreId::ALL {
            let (table, mut cx) = self.state.replica_mut(store, now);
            let released = table.release(&mut cx);
            self.counters.released_rows += released as u64;
            changes.touch(store, released);
        }
        changes
    }
}
