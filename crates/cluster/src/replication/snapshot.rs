//! Snapshots: how a node that is behind collected tombstones becomes level again.
//!
//! The asker drives: it asks for one range of keys after the other, joins each as it comes, and at the end claims the least
//! that its donors had claimed along the way. A range with the donor's version vector is a legal delta by itself, so ranges
//! may come from different donors, in the middle of anything else, and a transfer goes on where it was broken off.

use std::collections::BTreeMap;
use std::time::Duration;

use smg_types::ids::NodeName;
use smg_types::now::Now;

use crate::replication::message::{ClaimsBuilder, Message, Offer, SnapshotChunk, SnapshotRequest};
use crate::replication::peer::Stream;
use crate::replication::{CHUNK_BYTES, Changes, Replication};
use crate::state::StoreId;
use crate::state::row::Blob;
use crate::state::table::{Mark, Section};
use crate::state::writers::Writer;

/// A snapshot on its way in.
#[derive(Debug)]
pub(super) struct Join {
    donor: NodeName,
    session: u64,
    after: Option<Blob>,
    /// The least that the donors claimed so far; none before the first part.
    claim: Option<BTreeMap<Writer, u64>>,
    asked_at: Duration,
}

impl Replication {
    pub(super) fn on_offer(&mut self, now: Now, from: &NodeName, offer: &Offer) -> Changes {
        let Some(store) = offer.store.store() else {
            self.counters.unknown_stores += 1;
            return Changes::default();
        };
        if let Some(writer) = self.state.writers.intern(&offer.writer) {
            self.join_if_behind(now, from, (store, writer), offer.floor);
        }
        Changes::default()
    }

    /// Asks `from` for a snapshot if this node is behind what a log still holds.
    pub(super) fn join_if_behind(&mut self, now: Now, from: &NodeName, stream: Stream, floor: u64) {
        let (store, writer) = stream;
        let behind = writer != self.state.me && self.state.replica(store).applied(writer) < floor;
        if behind && !self.joins.contains_key(&store) {
            self.counters.snapshots_joined += 1;
            let session = self.session();
            let donor = from.clone();
            let join = Join { donor, session, after: None, claim: None, asked_at: now.mono };
            self.joins.insert(store, join);
            self.ask_for_chunk(now, store);
        }
    }

    fn session(&mut self) -> u64 {
        self.next_session += 1;
        self.next_session
    }

    fn ask_for_chunk(&mut self, now: Now, store: StoreId) {
        if let Some(join) = self.joins.get_mut(&store) {
            join.asked_at = now.mono;
            let (session, after) = (join.session, join.after.clone());
            let request = SnapshotRequest { store: store.into(), session, after };
            let donor = join.donor.clone();
            self.say(&donor, Message::SnapshotRequest(request));
        }
    }

    /// Goes on with another donor where one has fallen silent.
    pub(super) fn look_after_joins(&mut self, now: Now) {
        let silent: Vec<StoreId> = self
            .joins
            .iter()
            .filter(|(_, join)| now.mono >= join.asked_at + 2 * self.config.retry)
            .map(|(store, _)| *store)
            .collect();
        for store in silent {
            let session = self.session();
            let up: Vec<&NodeName> =
                self.peers.iter().filter(|(_, peer)| peer.up).map(|(name, _)| name).collect();
            let Some(join) = self.joins.get_mut(&store) else { continue };
            let next = up.iter().find(|name| ***name > join.donor).or_else(|| up.first());
            if let Some(next) = next {
                join.donor = (*next).clone();
                join.session = session;
                self.ask_for_chunk(now, store);
            }
        }
    }

    pub(super) fn on_snapshot_request(
        &mut self,
        from: &NodeName,
        request: SnapshotRequest,
    ) -> Changes {
        let Some(store) = request.store.store() else {
            self.counters.unknown_stores += 1;
            return Changes::default();
        };
        if let Some(peer) = self.peers.get_mut(from) {
            peer.requests.insert(store, request);
        }
        Changes::default()
    }

    /// The next part of a snapshot that `name` asked for, most important store first.
    pub(super) fn next_chunk(&mut self, name: &NodeName) -> Option<Message> {
        let peer = self.peers.get_mut(name)?;
        if peer.credit == 0 {
            return None;
        }
        let (store, request) = peer.requests.pop_first()?;
        let Some(chunk) = self.chunk(store, request.session, request.after) else {
            self.counters.refused_messages += 1;
            return None;
        };
        let bytes: usize = chunk.rows.iter().map(|(_, row)| row.wire_bytes()).sum();
        self.counters.snapshot_chunks_served += 1;
        self.counters.sent_bytes[store.index()] += bytes as u64;
        if let Some(peer) = self.peers.get_mut(name) {
            peer.credit = peer.credit.saturating_sub(bytes);
        }
        Some(Message::Snapshot(chunk))
    }

    /// A range of keys of `store` with all that is known about them; `None` if `after` is no key. Also what a node saves
    /// to disk: see [`Replication::restore`].
    #[must_use]
    pub fn chunk(
        &self,
        store: StoreId,
        session: u64,
        after: Option<Blob>,
    ) -> Option<SnapshotChunk> {
        let writers = &self.state.writers;
        let section = self.state.replica(store).section(writers, after, CHUNK_BYTES)?;
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

    pub(super) fn on_snapshot(
        &mut self,
        now: Now,
        from: &NodeName,
        chunk: SnapshotChunk,
    ) -> Changes {
        let Some(store) = chunk.store.store() else {
            self.counters.unknown_stores += 1;
            return Changes::default();
        };
        // A part of an attempt that was given up is of no use: its range may have been joined since.
        let wanted = self.joins.get(&store).is_some_and(|join| {
            join.donor == *from && join.session == chunk.session && join.after == chunk.after
        });
        if !wanted {
            return Changes::default();
        }
        let mut changes = Changes::default();
        let end = chunk.end.clone();
        let Some((marks, rows)) = self.join_chunk(now, store, chunk) else {
            self.counters.refused_messages += 1;
            self.joins.remove(&store);
            return changes;
        };
        changes.touch(store, rows);
        let Some(join) = self.joins.get_mut(&store) else { return changes };
        narrow(&mut join.claim, &marks);
        join.after.clone_from(&end);
        if end.is_some() {
            self.ask_for_chunk(now, store);
        } else if let Some(join) = self.joins.remove(&store) {
            self.claim(now, store, join.claim.unwrap_or_default());
        }
        changes
    }

    /// Joins a part of a snapshot; what its donor claimed and how many rows changed, `None` if it contradicts itself.
    fn join_chunk(
        &mut self,
        now: Now,
        store: StoreId,
        chunk: SnapshotChunk,
    ) -> Option<(Vec<Mark>, usize)> {
        let mut writers: Vec<Option<Writer>> = Vec::with_capacity(chunk.claims.writers.len());
        for id in &chunk.claims.writers {
            writers.push(self.state.writers.intern(id));
        }
        let writer = |place: u16| writers.get(usize::from(place)).copied().flatten();
        let mut marks = Vec::new();
        for claim in &chunk.claims.claims {
            let (version, floor) = (claim.version, claim.floor);
            marks.push(Mark { writer: writer(claim.writer)?, version, floor });
        }
        let mut rows = Vec::with_capacity(chunk.rows.len());
        let mut bytes = 0;
        for (place, row) in chunk.rows {
            bytes += row.wire_bytes();
            rows.push((writer(place)?, row));
        }
        let mut pending = Vec::new();
        for (place, key, up_to) in chunk.pending {
            pending.push((writer(place)?, key, up_to));
        }
        for mark in &marks {
            self.reopen_if_behind((store, mark.writer), mark.version);
        }
        self.counters.received_bytes[store.index()] += bytes as u64;
        let section =
            Section { after: chunk.after, end: chunk.end, marks: marks.clone(), rows, pending };
        let (table, mut cx) = self.state.replica_mut(store, now);
        let changed = table.join_section(&mut cx, &section)?;
        Some((marks, changed))
    }

    /// All ranges are joined: what the donors claimed is true here too.
    fn claim(&mut self, now: Now, store: StoreId, claim: BTreeMap<Writer, u64>) {
        for (writer, version) in claim {
            if writer == self.state.me {
                continue;
            }
            let stood = self.state.replica(store).applied(writer);
            let (table, _) = self.state.replica_mut(store, now);
            if table.claim(writer, version) {
                self.note_move((store, writer), stood);
            }
        }
    }

    /// Takes in what this node saved in a former life: all parts of a store, in order. They count like a donor's.
    pub fn restore(&mut self, now: Now, store: StoreId, chunks: Vec<SnapshotChunk>) -> Changes {
        let (mut changes, mut claim, mut after) = (Changes::default(), None, None);
        let count = chunks.len();
        for (at, chunk) in chunks.into_iter().enumerate() {
            let end = chunk.end.clone();
            let fits = chunk.store.store() == Some(store)
                && chunk.after == after
                && (end.is_none() == (at + 1 == count));
            let joined = if fits { self.join_chunk(now, store, chunk) } else { None };
            let Some((marks, rows)) = joined else {
                self.counters.refused_messages += 1;
                return changes;
            };
            changes.touch(store, rows);
            narrow(&mut claim, &marks);
            after = end;
        }
        self.claim(now, store, claim.unwrap_or_default());
        changes
    }
}

/// Lowers `claim` to what `marks` claim too.
fn narrow(claim: &mut Option<BTreeMap<Writer, u64>>, marks: &[Mark]) {
    let theirs: BTreeMap<Writer, u64> = marks.iter().map(|m| (m.writer, m.version)).collect();
    match claim {
        None => *claim = Some(theirs),
        Some(claim) => {
            claim.retain(|writer, _| theirs.contains_key(writer));
            for (writer, version) in claim {
                *version = (*version).min(theirs[writer]);
            }
        }
    }
}
