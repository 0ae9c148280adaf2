//! Messages in: what each kind of message changes, and what it is answered with.

use std::collections::BTreeMap;

use smg_types::ids::{NodeId, NodeName};
use smg_types::now::Now;

use crate::plausible::latest_generation;
use crate::replication::changes::Changes;
use crate::replication::cluster_time::Epoch;
use crate::replication::message::{
    Audit, AuditPull, AuditRows, Claims, Delta, Digest, Message, Offer, RetiredWriter,
    SnapshotChunk, SnapshotRequest, StoreNumber,
};
use crate::replication::peer::Peer;
use crate::replication::retirement::reopen_if_behind;
use crate::replication::snapshot_loads::AfterChunk;
use crate::replication::stream::{CHUNK_BYTES, Stream};
use crate::replication::{Replication, audit, retirement, snapshot};
use crate::state::StoreId;
use crate::state::table::{Applied, BUCKETS};
use crate::state::writers::Writer;

/// The claim of a peer about one stream: it has applied it up to `version`, and may lack tombstones up to `floor`.
#[derive(Debug, Clone, Copy)]
struct StreamClaim {
    stream: Stream,
    version: u64,
    floor: u64,
}

impl Replication {
    /// Handles a message of the reachable peer `from`. It never fails: what can't be used is counted.
    pub fn handle_message(&mut self, now: Now, from: &NodeId, message: Message) -> Changes {
        if !self.peers.is_reachable(from) {
            self.counters.refused_messages += 1;
            return Changes::default();
        }
        self.state.writers.set_latest(latest_generation(now));
        let before = self.own_versions();
        let from = &from.name;
        let mut changes = match message {
            Message::Digest(digest) => self.handle_digest(now, from, &digest),
            Message::Delta(delta) => self.handle_delta(now, from, &delta),
            Message::Ack(claims) => self.handle_ack(now, from, &claims),
            Message::Pull(claims) => self.handle_pull(now, from, &claims),
            Message::Offer(offer) => self.handle_offer(now, from, &offer),
            Message::SnapshotRequest(request) => self.handle_snapshot_request(from, request),
            Message::Snapshot(chunk) => self.handle_snapshot(now, from, chunk),
            Message::Audit(audit) => self.handle_audit(from, &audit),
            Message::AuditPull(pull) => self.handle_audit_pull(from, &pull),
            Message::AuditRows(rows) => self.handle_audit_rows(now, from, &rows),
            Message::Retired(retired) => self.handle_retired(now, from, &retired),
            Message::Hints(runs) => Changes::of_hints(self.state.prefixes.merge(now, &runs)),
            Message::HotSetRequest => self.handle_hot_set_request(now, from),
            Message::NotApplied(rows) => self.handle_not_applied(from, &rows),
        };
        changes.conflict |= self.is_killed_in_advance();
        self.plan_push_of_moved(now, before);
        changes
    }

    /// The store with this number; `None` if this router does not have it, which is counted.
    fn known_store(&mut self, number: StoreNumber) -> Option<StoreId> {
        let store = number.store();
        self.counters.unknown_stores += u64::from(store.is_none());
        store
    }
}

/// Digests, acknowledgements and pulls: what a peer has applied.
impl Replication {
    /// Resolves `claims`. Returns the streams of writers that are not retired here, and the retired writers among those
    /// named.
    fn streams(&mut self, now: Now, claims: &Claims) -> (Vec<StreamClaim>, Vec<Writer>) {
        let mut writers: Vec<Option<Writer>> = Vec::with_capacity(claims.writers.len());
        for id in &claims.writers {
            let writer = self.state.writers.intern(id);
            self.counters.refused_writers += u64::from(writer.is_none());
            writers.push(writer);
        }
        let (mut streams, mut retired) = (Vec::new(), Vec::new());
        for claim in &claims.claims {
            let place = usize::from(claim.writer);
            let (Some(id), Some(writer)) = (claims.writers.get(place), writers.get(place)) else {
                self.counters.refused_messages += 1;
                continue;
            };
            let Some(writer) = *writer else { continue };
            if !self.is_reachable_version(now, id, claim.version.max(claim.floor)) {
                continue;
            }
            let Some(store) = self.known_store(claim.store) else { continue };
            let (stream, version, floor) = ((store, writer), claim.version, claim.floor);
            reopen_if_behind(&mut self.state, stream, version);
            if !self.state.writers.is_retired(writer) {
                streams.push(StreamClaim { stream, version, floor });
            } else if !retired.contains(&writer) {
                retired.push(writer);
            }
        }
        (streams, retired)
    }

    fn handle_digest(&mut self, now: Now, from: &NodeName, digest: &Digest) -> Changes {
        let (streams, mut retired) = self.streams(now, &digest.claims);
        let mut changes = Changes::default();
        // A node whose generation has ended here is notified after each of its digests, until it goes on as a later one (R34).
        let sender = self.peers.get(from).map(Peer::writer);
        retired.extend(
            sender.filter(|writer| {
                self.state.writers.has_ended(*writer) && !retired.contains(writer)
            }),
        );
        let peer = self.peers.get_mut(from);
        let is_first = peer
            .is_some_and(|peer| peer.note_digest(Epoch::new(digest.wall_ms, now.mono), now.mono));
        if is_first {
            // The peer's membership may have found this node later than the reverse: the first digest to it was then
            // lost (R20).
            let answer = self.full_digest(now, false);
            self.queue_digest(from, answer);
        }
        for claim in &streams {
            changes.conflict |= self.apply_claim(now, from, *claim);
        }
        let claimed = streams.iter().map(|claim| (claim.stream, claim.version)).collect();
        self.compare_with_digest(now, from, &claimed);
        if !retired.is_empty() {
            self.queue_notice(from, &retired);
        }
        self.send_missing_rows(now, from, &claimed, digest.relay);
        changes
    }

    /// Sends the sender of a digest the rows that it lacks: this node's own and, if it asks for `relay`, those of other
    /// writers that have settled.
    fn send_missing_rows(
        &mut self,
        now: Now,
        to: &NodeName,
        claimed: &BTreeMap<Stream, u64>,
        relay: bool,
    ) {
        // The digest counts, not what the peer claimed before: it may have restarted without its rows.
        let me = self.state.me;
        let writers: Vec<Writer> = self.state.writers.current().map(|(writer, _)| writer).collect();
        for store in StoreId::ALL {
            for writer in &writers {
                let (stream, is_own) = ((store, *writer), *writer == me);
                if !(is_own || relay) {
                    continue;
                }
                let mine = self.state.replica(store).applied(*writer);
                let settled = if is_own { None } else { self.settling.settled(stream) };
                let mine = settled.unwrap_or(mine);
                let Some(peer) = self.peers.get_mut(to) else { return };
                // A digest does not name writers that the peer has retired.
                let unnamed = if peer.has_retired(*writer) { peer.known(stream) } else { 0 };
                let theirs = claimed.get(&stream).copied().unwrap_or(unnamed);
                if mine <= theirs {
                    continue;
                }
                if peer.writer() == *writer && theirs == 0 {
                    // A writer that has lost its own rows must not get them back as those of another node: it goes on
                    // as a later generation.
                    continue;
                }
                if !peer.window.waits_for_ack(stream, now.mono, self.config.retry) {
                    peer.window.restart(stream, theirs, mine);
                }
            }
        }
    }

    /// Takes in what a peer claims about one stream. Returns whether another process has written as this node (R19).
    fn apply_claim(&mut self, now: Now, from: &NodeName, claim: StreamClaim) -> bool {
        let StreamClaim { stream, version, floor } = claim;
        let (store, writer) = stream;
        if let Some(peer) = self.peers.get_mut(from) {
            let before = peer.known(stream);
            peer.note_version(stream, version);
            peer.note_not_retired(writer);
            if writer == self.state.me && version > before {
                let all = self.peers.lowest_known_of_reachable(stream).unwrap_or(version);
                self.confirmations.note_confirmed(store, before, version, now.mono);
                self.confirmations.settle(store, all);
            }
        }
        let mine = self.state.replica(store).applied(writer);
        if floor > self.state.replica(store).floor(writer) && mine >= floor {
            let (table, _) = self.state.replica_mut(store, now);
            self.counters.collected += table.raise_floor(writer, floor) as u64;
        }
        if version > mine {
            if writer == self.state.me {
                return true;
            }
            self.pulls.note_ahead(stream, version, from, now.mono);
        }
        false
    }

    fn handle_ack(&mut self, now: Now, from: &NodeName, claims: &Claims) -> Changes {
        let (streams, _) = self.streams(now, claims);
        if let Some(peer) = self.peers.get_mut(from) {
            peer.window.reset_backoff();
        }
        let mut changes = Changes::default();
        for claim in streams {
            changes.conflict |= self.apply_claim(now, from, claim);
        }
        changes
    }

    fn handle_pull(&mut self, now: Now, from: &NodeName, claims: &Claims) -> Changes {
        let (streams, retired) = self.streams(now, claims);
        let mut changes = Changes::default();
        if !retired.is_empty() {
            self.queue_notice(from, &retired);
        }
        for StreamClaim { stream, version, .. } in streams {
            let target = self.state.replica(stream.0).applied(stream.1);
            // The peer has received versions that this node has not written (R19, R45).
            changes.conflict |= stream.1 == self.state.me && version > target;
            if let Some(peer) = self.peers.get_mut(from) {
                peer.window.reset_backoff();
                peer.window.restart(stream, version, target);
            }
        }
        changes
    }
}

/// Deltas.
impl Replication {
    fn handle_delta(&mut self, now: Now, from: &NodeName, delta: &Delta) -> Changes {
        let mut changes = Changes::default();
        let Some(store) = self.known_store(delta.store) else { return changes };
        let highest = delta.to.max(delta.upto).max(delta.floor);
        if !self.is_reachable_version(now, &delta.writer, highest) {
            return changes;
        }
        let Some(writer) = self.state.writers.intern(&delta.writer) else {
            self.counters.refused_writers += 1;
            return changes;
        };
        let stream = (store, writer);
        let applied = self.state.replica(store).applied(writer);
        if writer == self.state.me {
            changes.conflict = delta.to > applied;
            return changes;
        }
        reopen_if_behind(&mut self.state, stream, delta.to);
        if self.state.writers.is_retired(writer) {
            self.queue_notice(from, &[writer]);
            return changes;
        }
        if !delta.is_in_order() {
            self.counters.refused_messages += 1;
            return changes;
        }
        if delta.from > applied {
            // A gap (R16).
            self.counters.gaps += 1;
            self.pull(now, from, &[stream]);
            return changes;
        }
        if applied < delta.floor {
            // Tombstones that this node has not applied are missing (R12).
            self.load_if_behind(now, from, stream, delta.floor);
            return changes;
        }
        let bytes: usize = delta.rows.iter().map(|row| row.wire_bytes()).sum();
        self.counters.received_bytes[store.index()] += bytes as u64;
        self.counters.rows_received += delta.rows.len() as u64;
        changes.touch(store, self.apply(now, stream, applied, delta));
        if self.peers.get(from).is_some_and(|peer| peer.writer() == writer) {
            // Before the acknowledgement, which covers rows of the sender that have no effect here (R41).
            self.report_not_applied(from);
        }
        if let Some(peer) = self.peers.get_mut(from) {
            peer.note_version(stream, delta.to);
            peer.acks.note_delta(stream, bytes, now.mono);
        }
        changes
    }

    /// Applies a delta that begins at or before `applied`, the version of the stream here. Returns how many rows are
    /// different now.
    fn apply(&mut self, now: Now, stream: Stream, applied: u64, delta: &Delta) -> usize {
        let (store, writer) = stream;
        let (table, mut parts) = self.state.replica_mut(store, now);
        self.counters.collected += table.raise_floor(writer, delta.floor) as u64;
        let mut changed = 0;
        for row in &delta.rows {
            if row.version <= applied {
                self.counters.rows_known += 1;
                continue;
            }
            match table.apply_row(&mut parts, writer, row) {
                Applied::Nothing => {}
                Applied::Changed => changed += 1,
                Applied::Quarantined => {
                    changed += 1;
                    self.counters.quarantined_rows += 1;
                }
                Applied::Refused(_) => self.counters.refused_rows += 1,
            }
        }
        if table.advance_to(writer, delta.to, delta.upto) {
            self.note_move(stream, applied);
        }
        changed
    }
}

/// Snapshots.
impl Replication {
    fn handle_offer(&mut self, now: Now, from: &NodeName, offer: &Offer) -> Changes {
        if let Some(store) = self.known_store(offer.store)
            && self.is_reachable_version(now, &offer.writer, offer.floor)
            && let Some(writer) = self.state.writers.intern(&offer.writer)
        {
            self.load_if_behind(now, from, (store, writer), offer.floor);
        }
        Changes::default()
    }

    fn handle_snapshot_request(&mut self, from: &NodeName, request: SnapshotRequest) -> Changes {
        if let Some(store) = self.known_store(request.store)
            && let Some(peer) = self.peers.get_mut(from)
        {
            peer.request_snapshot(store, request);
        }
        Changes::default()
    }

    fn handle_snapshot(&mut self, now: Now, from: &NodeName, chunk: SnapshotChunk) -> Changes {
        let mut changes = Changes::default();
        let Some(store) = self.known_store(chunk.store) else { return changes };
        if !self.loads.expects(store, from, &chunk) {
            return changes;
        }
        if !self.are_reachable_versions(now, &chunk.claims) {
            self.loads.abandon(store);
            return changes;
        }
        let end = chunk.end.clone();
        let bytes: usize = chunk.rows.iter().map(|(_, row)| row.wire_bytes()).sum();
        self.counters.received_bytes[store.index()] += bytes as u64;
        let Some(merged) = snapshot::merge(&mut self.state, now, store, chunk) else {
            self.counters.refused_messages += 1;
            self.loads.abandon(store);
            return changes;
        };
        changes.touch(store, merged.rows);
        match self.loads.advance(store, &merged.marks, end, now.mono) {
            Some(AfterChunk::Ask(donor, request)) => {
                self.queue(&donor, Message::SnapshotRequest(request));
            }
            Some(AfterChunk::Done(claim)) => self.claim(now, store, claim),
            None => {}
        }
        changes
    }
}

/// Audits.
impl Replication {
    fn handle_audit(&mut self, from: &NodeName, audit: &Audit) -> Changes {
        let Some(store) = self.known_store(audit.store) else { return Changes::default() };
        let Some(writer) = self.state.writers.number(&audit.writer) else {
            return Changes::default();
        };
        if audit.fingerprints.len() != BUCKETS {
            self.counters.refused_messages += 1;
            return Changes::default();
        }
        let pull = audit::differing_buckets(&self.state, &self.loads, store, writer, audit);
        if let Some(pull) = pull {
            if let Some(peer) = self.peers.get_mut(from) {
                peer.note_audit_pull((store, writer), pull.version);
            }
            self.queue(from, Message::AuditPull(pull));
        }
        Changes::default()
    }

    fn handle_audit_pull(&mut self, from: &NodeName, pull: &AuditPull) -> Changes {
        let Some(store) = self.known_store(pull.store) else { return Changes::default() };
        if let Some(writer) = self.state.writers.number(&pull.writer)
            && self.state.replica(store).applied(writer) == pull.version
            && self.is_authority(writer)
        {
            let (rows, too_large) = audit::rows_of_buckets(&self.state, store, writer, pull);
            self.counters.unrepairable += too_large;
            if let Some(rows) = rows {
                self.queue(from, Message::AuditRows(rows));
            }
        }
        Changes::default()
    }

    fn handle_audit_rows(&mut self, now: Now, from: &NodeName, rows: &AuditRows) -> Changes {
        let mut changes = Changes::default();
        if let Some(store) = self.known_store(rows.store)
            && let Some(writer) = self.state.writers.number(&rows.writer)
        {
            let stream = (store, writer);
            let peer = self.peers.get_mut(from);
            if !peer.is_some_and(|peer| peer.take_audit_pull(stream, rows.version)) {
                // This node did not request these rows (R51).
                self.counters.refused_messages += 1;
                return changes;
            }
            let repaired = audit::repair(&mut self.state, &self.loads, now, stream, rows);
            self.counters.repaired += repaired as u64;
            changes.touch(store, repaired);
        }
        changes
    }
}

/// Retired writers and hints.
impl Replication {
    /// Informs a peer that `writers` have ended. If the peer is not the latest generation of its name that is known here, the
    /// notice names that one first, so that the peer goes on above it.
    pub(super) fn queue_notice(&mut self, to: &NodeName, writers: &[Writer]) {
        let mut retired = Vec::new();
        if let Some(peer) = self.peers.get(to)
            && let Some(generation) = self.state.writers.later_generation(peer.id())
        {
            let writer = NodeId { name: to.clone(), generation };
            retired.push(RetiredWriter { writer, closed: false, versions: Vec::new() });
        }
        retired.extend(retirement::ended(&self.state, writers));
        self.queue(to, Message::Retired(retired));
    }

    fn handle_retired(&mut self, now: Now, from: &NodeName, retired: &[RetiredWriter]) -> Changes {
        let mut changes = Changes::default();
        // The sender knows a later generation of this node, which must exceed the latest one.
        let own = retired.iter().map(|history| &history.writer);
        let own = own.filter(|id| id.name == self.me.name && id.generation > self.me.generation);
        if let Some(latest) = own.filter(|id| id.generation <= latest_generation(now)).max() {
            let is_known = self.state.writers.intern(latest).is_some();
            self.counters.refused_writers += u64::from(!is_known);
            self.is_fenced |= is_known;
            changes.fenced |= is_known;
        }
        for history in retired {
            let Some(writer) = self.state.writers.number(&history.writer) else { continue };
            if writer == self.state.me {
                self.is_fenced = true;
                changes.fenced = true;
            }
            let highest = history.versions.iter().copied().max().unwrap_or(0);
            if !history.closed
                || self.state.writers.is_retired(writer)
                || !self.is_reachable_version(now, &history.writer, highest)
            {
                continue;
            }
            for (store, version) in StoreId::ALL.into_iter().zip(&history.versions) {
                if store.ends_with_writer() {
                    continue;
                }
                let stream = (store, writer);
                if let Some(peer) = self.peers.get_mut(from) {
                    peer.note_version(stream, *version);
                }
                self.load_if_behind(now, from, stream, *version);
            }
            if let Some(peer) = self.peers.get_mut(from) {
                peer.note_retired(writer);
            }
        }
        changes
    }

    fn handle_hot_set_request(&mut self, now: Now, from: &NodeName) -> Changes {
        let is_turn = self.peers.get_mut(from).is_some_and(|peer| peer.take_hot_set_turn(now));
        if is_turn {
            for chunk in self.state.prefixes.hot_set(CHUNK_BYTES) {
                self.queue(from, Message::Hints(chunk));
            }
        }
        Changes::default()
    }
}
