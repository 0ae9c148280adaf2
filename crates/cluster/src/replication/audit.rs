//! Audits: fingerprints that find what version vectors can't show, a row that is missing or should not be there.
//!
//! Only the writer itself knows which of its rows are right, so only it audits them; for a writer that does not run the
//! node with the lowest reachable name does. Fingerprints may be compared only at the same version of the stream and, in
//! shared stores, where one stream's rows are ended by another's, only at the same version vector (R37).
//!
//! Each peer is audited every 20 to 40 s, in turn. When a member comes or goes, rows that died with it may have reached some
//! nodes and not others, so then all peers are audited soon, and a few times more (R39).

use smg_types::ids::NodeId;
use smg_types::now::Now;

use crate::crdt::stamp::Author;
use crate::replication::changes::Changes;
use crate::replication::message::{Audit, AuditPull, AuditRows};
use crate::replication::snapshot_loads::SnapshotLoads;
use crate::replication::stream::CHUNK_BYTES;
use crate::state::table::BUCKETS;
use crate::state::writers::Writer;
use crate::state::{State, StoreId};

/// The fingerprints of all writers about which this node `is_authority`. A store of which a snapshot is on its way in is
/// left out: it is not whole.
pub(super) fn fingerprints(
    state: &State,
    loads: &SnapshotLoads,
    is_authority: impl Fn(Writer) -> bool,
) -> Vec<Audit> {
    let mut audits = Vec::new();
    for store in StoreId::ALL.into_iter().filter(|store| !loads.has(*store)) {
        let replica = state.replica(store);
        let vector = vector_hash(state, store);
        for (writer, id) in state.writers.current().filter(|(writer, _)| is_authority(*writer)) {
            let version = replica.applied(writer);
            if version > 0 {
                let fingerprints = replica.fingerprints(writer).to_vec();
                let writer = id.clone();
                audits.push(Audit { store: store.into(), writer, version, vector, fingerprints });
            }
        }
    }
    audits
}

/// The buckets in which this node's rows of `writer` differ from those of the auditor; `None` if none does, or if the
/// fingerprints can't be compared.
pub(super) fn differing_buckets(
    state: &State,
    loads: &SnapshotLoads,
    store: StoreId,
    writer: Writer,
    audit: &Audit,
) -> Option<AuditPull> {
    if !is_comparable(state, loads, store, writer, (audit.version, audit.vector)) {
        return None;
    }
    let pairs =
        state.replica(store).fingerprints(writer).into_iter().zip(&audit.fingerprints).enumerate();
    let mask =
        pairs.fold(0, |mask, (bucket, (mine, theirs))| mask | u64::from(mine != *theirs) << bucket);
    let (writer, version) = (audit.writer.clone(), audit.version);
    (mask != 0).then_some(AuditPull { store: audit.store, writer, version, mask })
}

/// The rows of the buckets that a peer asks for, as far as they fit into a message, and how many buckets are too large for
/// any message. What does not fit beside the others is found by the next audit.
pub(super) fn rows_of_buckets(
    state: &State,
    store: StoreId,
    writer: Writer,
    pull: &AuditPull,
) -> (Option<AuditRows>, u64) {
    let (mut mask, mut rows, mut bytes, mut too_large) = (0, Vec::new(), 0, 0);
    for bucket in (0..BUCKETS).filter(|bucket| pull.mask >> bucket & 1 == 1) {
        let bucket_rows = state.replica(store).bucket_rows(&state.writers, writer, 1 << bucket);
        let size: usize = bucket_rows.iter().map(|row| row.wire_bytes()).sum();
        if size > CHUNK_BYTES {
            too_large += 1;
        } else if bytes + size <= CHUNK_BYTES {
            bytes += size;
            mask |= 1 << bucket;
            rows.extend(bucket_rows);
        }
    }
    if mask == 0 {
        return (None, too_large);
    }
    rows.sort_by_key(|row| row.version);
    let vector = vector_hash(state, store);
    let (writer, version) = (pull.writer.clone(), pull.version);
    (Some(AuditRows { store: pull.store, writer, version, vector, mask, rows }), too_large)
}

/// Makes the buckets equal to the auditor's `rows`, if this node is still at the version that they belong to. Returns how
/// many rows had to change.
pub(super) fn repair(
    state: &mut State,
    loads: &SnapshotLoads,
    now: Now,
    (store, writer): (StoreId, Writer),
    rows: &AuditRows,
) -> usize {
    let is_in_order = rows.rows.iter().all(|row| row.version <= rows.version);
    if !is_in_order || !is_comparable(state, loads, store, writer, (rows.version, rows.vector)) {
        return 0;
    }
    let (table, mut parts) = state.replica_mut(store, now);
    table.repair(&mut parts, writer, rows.mask, &rows.rows)
}

/// Decodes again what is in quarantine: a stamp may have become believable.
pub(super) fn release_quarantine(state: &mut State, now: Now) -> Changes {
    let mut changes = Changes::default();
    for store in StoreId::ALL {
        let (table, mut parts) = state.replica_mut(store, now);
        changes.touch(store, table.release(&mut parts));
    }
    changes
}

/// Whether fingerprints taken at `version` of the stream, and at the version vector with the hash `vector`, say something
/// about the rows here.
fn is_comparable(
    state: &State,
    loads: &SnapshotLoads,
    store: StoreId,
    writer: Writer,
    (version, vector): (u64, u64),
) -> bool {
    writer != state.me
        && !loads.has(store)
        && state.replica(store).applied(writer) == version
        && vector_hash(state, store) == vector
}

/// A hash of the store's version vector where rows depend on more than their own stream; else 0.
fn vector_hash(state: &State, store: StoreId) -> u64 {
    if !store.is_shared() {
        return 0;
    }
    let mut versions: Vec<(&NodeId, u64)> = state.versions(store).collect();
    versions.sort_unstable();
    versions.iter().fold(1, |hash, (id, version)| {
        let author = Author::of(id).as_u64();
        xxhash_rust::xxh3::xxh3_64_with_seed(&version.to_le_bytes(), hash ^ author)
    })
}
