//! Parts of snapshots: cut from the state of a donor, and merged into that of a node that is behind.
//!
//! A range of keys, with the donor's version vector, is a legal delta by itself. So ranges may come from different donors
//! and between any other messages. Which range comes next is decided in `snapshot_loads`.

use smg_types::now::Now;

use crate::replication::message::{ClaimsBuilder, SnapshotChunk};
use crate::replication::retirement::reopen_if_behind;
use crate::replication::snapshot_loads::Claim;
use crate::replication::stream::{CHUNK_BYTES, Stream};
use crate::state::row::Blob;
use crate::state::table::{Mark, SnapshotRange};
use crate::state::writers::Writer;
use crate::state::{State, StoreId};

/// The result of merging a part of a snapshot.
#[derive(Debug)]
pub(super) struct Merged {
    /// The versions that its donor covered.
    pub(super) marks: Vec<Mark>,
    /// How many rows are different now.
    pub(super) rows: usize,
}

/// The range of keys of `store` after the key `after` with all that is known about them; `None` if `after` is no key.
pub(super) fn chunk(
    state: &State,
    store: StoreId,
    session: u64,
    after: Option<Blob>,
) -> Option<SnapshotChunk> {
    let writers = &state.writers;
    let section = state.replica(store).range_after(writers, after, CHUNK_BYTES)?;
    let mut claims = ClaimsBuilder::default();
    let mut place = |writer: Writer| claims.place(writers.id(writer)?);
    let rows = section.rows.into_iter();
    let rows = rows.filter_map(|(writer, row)| Some((place(writer)?, row))).collect();
    let pending = section.pending.into_iter();
    let pending = pending.filter_map(|(w, key, up_to)| Some((place(w)?, key, up_to))).collect();
    for mark in section.marks {
        if let Some(id) = writers.id(mark.writer) {
            claims.push(id, store, mark.version, mark.floor);
        }
    }
    let (after, end) = (section.after, section.end);
    let claims = claims.build();
    Some(SnapshotChunk { store: store.into(), session, after, end, claims, rows, pending })
}

/// Merges a part of a snapshot of `store`; `None` if it contradicts itself.
pub(super) fn merge(
    state: &mut State,
    now: Now,
    store: StoreId,
    chunk: SnapshotChunk,
) -> Option<Merged> {
    let mut writers: Vec<Option<Writer>> = Vec::with_capacity(chunk.claims.writers.len());
    for id in &chunk.claims.writers {
        writers.push(state.writers.intern(id));
    }
    let writer = |place: u16| writers.get(usize::from(place)).copied().flatten();
    let mut marks = Vec::new();
    for claim in &chunk.claims.claims {
        let (version, floor) = (claim.version, claim.floor);
        marks.push(Mark { writer: writer(claim.writer)?, version, floor });
    }
    let mut rows = Vec::with_capacity(chunk.rows.len());
    for (place, row) in chunk.rows {
        rows.push((writer(place)?, row));
    }
    let mut pending = Vec::new();
    for (place, key, up_to) in chunk.pending {
        pending.push((writer(place)?, key, up_to));
    }
    for mark in &marks {
        reopen_if_behind(state, (store, mark.writer), mark.version);
    }
    let section =
        SnapshotRange { after: chunk.after, end: chunk.end, marks: marks.clone(), rows, pending };
    let (table, mut parts) = state.replica_mut(store, now);
    let rows = table.merge_range(&mut parts, &section)?;
    Some(Merged { marks, rows })
}

/// All ranges of a snapshot are merged: what its donors covered is covered here too. Returns the streams that moved by
/// that, each with the version at which it stood.
pub(super) fn claim(
    state: &mut State,
    now: Now,
    store: StoreId,
    claim: Claim,
) -> Vec<(Stream, u64)> {
    let mut moved = Vec::new();
    for (writer, version) in claim {
        if writer == state.me {
            continue;
        }
        let stood = state.replica(store).applied(writer);
        let (table, _) = state.replica_mut(store, now);
        if table.claim(writer, version) {
            moved.push(((store, writer), stood));
        }
    }
    moved
}
