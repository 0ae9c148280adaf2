//! Messages in.

use smg_types::ids::{NodeId, NodeName};
use smg_types::now::Now;

use crate::crdt::stamp::millis;
use crate::replication::message::{Claims, Delta, Digest, Message, Offer, RetiredWriter};
use crate::replication::peer::{Peer, Stream};
use crate::replication::{ACK_DELAY, CHUNK_BYTES, Changes, ClaimsBuilder, Replication, SETTLE};
use crate::state::StoreId;
use crate::state::table::Applied;
use crate::state::writers::Writer;

/// A joiner is given the hot set once in this time.
const HOT_SET_INTERVAL: std::time::Duration = std::time::Duration::from_secs(60);

impl Replication {
    /// Takes a message of `from`, a peer that is up. Never fails: what can't be used is counted.
    pub fn handle_message(&mut self, now: Now, from: &NodeId, message: Message) -> Changes {
        let is_peer = self.peers.get(&from.name).is_some_and(|peer| peer.id == *from && peer.up);
        if !is_peer {
            self.counters.refused_messages += 1;
            return Changes::default();
        }
        let before = self.own_versions();
        let from = &from.name;
        let changes = match message {
            Message::Digest(digest) => self.on_digest(now, from, &digest),
            Message::Delta(delta) => self.on_delta(now, from, &delta),
            Message::Ack(claims) => self.on_ack(now, from, &claims),
            Message::Pull(claims) => self.on_pull(from, &claims),
            Message::Offer(offer) => self.on_offer(now, from, &offer),
            Message::SnapshotRequest(request) => self.on_snapshot_request(from, request),
            Message::Snapshot(chunk) => self.on_snapshot(now, from, chunk),
            Message::Audit(audit) => self.on_audit(from, &audit),
            Message::AuditPull(pull) => self.on_audit_pull(from, &pull),
            Message::AuditRows(rows) => self.on_audit_rows(now, &rows),
            Message::Retired(retired) => self.on_retired(now, from, &retired),
            Message::Hints(runs) => {
                let hints = self.state.prefixes.merge(now, &runs);
                Changes { hints, ..Changes::default() }
            }
            Message::HotSetRequest => self.on_hot_set_request(now, from),
        };
        self.announce_moved(now, before);
        changes
    }

    /// The streams that `claims` speaks of, as far as they are known here; writers that are history are set apart.
    fn streams(&mut self, claims: &Claims) -> (Vec<(Stream, u64, u64)>, Vec<Writer>) {
        let mut writers: Vec<Option<Writer>> = Vec::with_capacity(claims.writers.len());
        for id in &claims.writers {
            writers.push(self.state.writers.intern(id));
        }
        let (mut streams, mut retired) = (Vec::new(), Vec::new());
        for claim in &claims.claims {
            let Some(writer) = writers.get(usize::from(claim.writer)).copied().flatten() else {
                self.counters.refused_messages += 1;
                continue;
            };
            let Some(store) = claim.store.store() else {
                self.counters.unknown_stores += 1;
                continue;
            };
            self.reopen_if_behind((store, writer), claim.version);
            if !self.state.writers.is_retired(writer) {
                streams.push(((store, writer), claim.version, claim.floor));
            } else if !retired.contains(&writer) {
                retired.push(writer);
            }
        }
        (streams, retired)
    }

    /// Somebody knows more of a retired writer than this node did: it is spoken of again until all know that.
    pub(super) fn reopen_if_behind(&mut self, (store, writer): Stream, version: u64) {
        if self.state.writers.is_retired(writer)
            && !store.ends_with_writer()
            && version > self.state.replica(store).applied(writer)
        {
            self.state.writers.reopen(writer);
        }
    }

    fn on_digest(&mut self, now: Now, from: &NodeName, digest: &Digest) -> Changes {
        let (streams, mut retired) = self.streams(&digest.claims);
        let mut changes = Changes::default();
        // A node that was forgotten and still runs must hear, until it does, that it has to begin again.
        let sender = self.peers.get(from).map(|peer| peer.writer);
        retired.extend(
            sender
                .filter(|writer| self.state.writers.is_over(*writer) && !retired.contains(writer)),
        );
        let greeting = self.peers.get(from).is_some_and(|peer| !peer.greeted);
        if greeting {
            // Its membership may have found this node later than it was found: what was said before got lost.
            let answer = Message::Digest(self.greeting(now, false));
            self.say(from, answer);
        }
        if let Some(peer) = self.peers.get_mut(from) {
            peer.greeted = true;
            let ahead = i128::from(digest.wall_ms) - i128::from(millis(now.wall));
            peer.wall_ahead_ms = i64::try_from(ahead).unwrap_or(i64::MAX);
        }
        for (stream, version, floor) in &streams {
            changes.conflict |= self.learn(now, from, *stream, (*version, *floor));
        }
        if !retired.is_empty() {
            let message = self.retired_message(&retired);
            self.say(from, message);
        }
        // What the sender lacks, its own words taken over what was said before: it may have lost its memory.
        let claimed: std::collections::BTreeMap<Stream, u64> =
            streams.iter().map(|(stream, version, _)| (*stream, *version)).collect();
        let me = self.state.me;
        let writers: Vec<Writer> = self.state.writers.current().map(|(writer, _)| writer).collect();
        for store in StoreId::ALL {
            for writer in &writers {
                let stream = (store, *writer);
                let silent = |peer: &Peer| {
                    // What it has retired it speaks of no more.
                    if peer.retired.contains(writer) { peer.known(stream) } else { 0 }
                };
                let theirs = claimed.get(&stream).copied();
                let theirs = theirs.or_else(|| self.peers.get(from).map(silent)).unwrap_or(0);
                let own = *writer == me;
                let mine =
                    if own { self.state.replica(store).applied(me) } else { self.settled(stream) };
                if mine <= theirs || !(own || digest.relay) {
                    continue;
                }
                let Some(peer) = self.peers.get_mut(from) else { continue };
                if peer.writer == *writer && theirs == 0 {
                    // Its own rows from before it lost its memory would come back as another's: it begins a new life.
                    continue;
                }
                let retry = peer.retry_after(self.config.retry);
                let on_its_way = peer
                    .cursors
                    .get(&stream)
                    .is_some_and(|c| c.in_flight > 0 && now.mono < c.sent_at + retry);
                if !on_its_way {
                    peer.stop(stream);
                    peer.serve(stream, theirs, mine);
                }
            }
        }
        changes
    }

    /// A peer has said how far it is in a stream. Says whether somebody writes as this node.
    fn learn(
        &mut self,
        now: Now,
        from: &NodeName,
        stream: Stream,
        (version, floor): (u64, u64),
    ) -> bool {
        let (store, writer) = stream;
        if let Some(peer) = self.peers.get_mut(from) {
            let before = peer.known(stream);
            peer.learn(stream, version);
            peer.retired.remove(&writer);
            if writer == self.state.me && version > before {
                let up = self.peers.values().filter(|peer| peer.up);
                let all = up.map(|peer| peer.known(stream)).min().unwrap_or(version);
                self.confirmations.confirmed(store, (before, version, all), now.mono);
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
            let behind =
                self.behind.entry(stream).or_insert_with(|| (version, from.clone(), now.mono));
            if version > behind.0 {
                (behind.0, behind.1) = (version, from.clone());
            }
        }
        false
    }

    fn on_ack(&mut self, now: Now, from: &NodeName, claims: &Claims) -> Changes {
        let (streams, _) = self.streams(claims);
        if let Some(peer) = self.peers.get_mut(from) {
            peer.reads();
        }
        let mut changes = Changes::default();
        for (stream, version, floor) in streams {
            changes.conflict |= self.learn(now, from, stream, (version, floor));
        }
        changes
    }

    fn on_pull(&mut self, from: &NodeName, claims: &Claims) -> Changes {
        let (streams, retired) = self.streams(claims);
        if !retired.is_empty() {
            let message = self.retired_message(&retired);
            self.say(from, message);
        }
        for (stream, version, _) in streams {
            let target = self.state.replica(stream.0).applied(stream.1);
            if let Some(peer) = self.peers.get_mut(from) {
                peer.reads();
                peer.stop(stream);
                peer.serve(stream, version, target);
            }
        }
        Changes::default()
    }

    fn on_delta(&mut self, now: Now, from: &NodeName, delta: &Delta) -> Changes {
        let mut changes = Changes::default();
        let Some(store) = delta.store.store() else {
            self.counters.unknown_stores += 1;
            return changes;
        };
        let Some(writer) = self.state.writers.intern(&delta.writer) else {
            self.counters.refused_messages += 1;
            return changes;
        };
        if writer == self.state.me {
            changes.conflict = delta.to > self.state.replica(store).applied(writer);
            return changes;
        }
        self.reopen_if_behind((store, writer), delta.to);
        if self.state.writers.is_retired(writer) {
            let message = self.retired_message(&[writer]);
            self.say(from, message);
            return changes;
        }
        let mut last = delta.from;
        let ordered = delta.rows.iter().all(|row| {
            let ok = row.version > last && row.version <= delta.to;
            last = row.version;
            ok
        });
        if !ordered || delta.to <= delta.from || delta.upto < delta.to {
            self.counters.refused_messages += 1;
            return changes;
        }
        let stream = (store, writer);
        let applied = self.state.replica(store).applied(writer);
        if delta.from > applied {
            self.counters.gaps += 1;
            self.pull(now, from, &[stream]);
            return changes;
        }
        if applied < delta.floor {
            let floor = delta.floor;
            let offer = Offer { store: delta.store, writer: delta.writer.clone(), floor };
            return self.on_offer(now, from, &offer);
        }
        let bytes: usize = delta.rows.iter().map(|row| row.wire_bytes()).sum();
        self.counters.received_bytes[store.index()] += bytes as u64;
        self.counters.rows_received += delta.rows.len() as u64;
        let (table, mut cx) = self.state.replica_mut(store, now);
        self.counters.collected += table.raise_floor(writer, delta.floor) as u64;
        let (mut changed, mut known) = (0, 0);
        for row in &delta.rows {
            if row.version <= applied {
                known += 1;
                continue;
            }
            match table.apply_row(&mut cx, writer, row) {
                Applied::Nothing => {}
                Applied::Changed => changed += 1,
                Applied::Quarantined => {
                    changed += 1;
                    self.counters.quarantined_rows += 1;
                }
                Applied::Refused => self.counters.refused_rows += 1,
            }
        }
        let moved = table.advance_to(writer, delta.to, delta.upto);
        self.counters.rows_known += known;
        changes.touch(store, changed);
        if moved {
            self.note_move(stream, applied);
        }
        if let Some(peer) = self.peers.get_mut(from) {
            peer.learn(stream, delta.to);
            peer.ack_due.insert(stream);
            peer.unacked_bytes += bytes;
            let delay = if peer.unacked_bytes >= CHUNK_BYTES || store.is_awaited() {
                std::time::Duration::ZERO
            } else {
                ACK_DELAY
            };
            let at = now.mono + delay;
            peer.ack_at = Some(peer.ack_at.map_or(at, |before| before.min(at)));
        }
        changes
    }

    /// A stream has moved on from where it stood.
    pub(super) fn note_move(&mut self, stream: Stream, stood: u64) {
        self.moved[0].entry(stream).or_insert(stood);
        let (store, writer) = stream;
        let applied = self.state.replica(store).applied(writer);
        if self.behind.get(&stream).is_some_and(|(version, _, _)| *version <= applied) {
            self.behind.remove(&stream);
        }
        self.asked.remove(&stream);
    }

    /// Asks `from` for streams that are not being asked for.
    pub(super) fn pull(&mut self, now: Now, from: &NodeName, streams: &[Stream]) {
        let mut claims = ClaimsBuilder::default();
        for stream in streams {
            if self.asked.get(stream).is_some_and(|until| now.mono < *until) {
                continue;
            }
            let (store, writer) = *stream;
            if let Some(id) = self.state.writers.id(writer) {
                let replica = self.state.replica(store);
                claims.push(id, store, replica.applied(writer), replica.floor(writer));
                self.asked.insert(*stream, now.mono + self.config.retry);
            }
        }
        if !claims.is_empty() {
            self.counters.pulls += 1;
            self.say(from, Message::Pull(claims.build()));
        }
    }

    /// Asks for what a peer has been ahead in for a while.
    pub(super) fn pull_what_is_missing(&mut self, now: Now) {
        let mut wanted: std::collections::BTreeMap<NodeName, Vec<Stream>> =
            std::collections::BTreeMap::new();
        self.behind.retain(|stream, (version, from, since)| {
            let writers = &self.state.writers;
            let missing = self.state.replica(stream.0).applied(stream.1) < *version
                && !writers.is_retired(stream.1);
            if missing && now.mono >= *since + SETTLE {
                wanted.entry(from.clone()).or_default().push(*stream);
            }
            missing
        });
        for (from, streams) in wanted {
            if self.peers.get(&from).is_some_and(|peer| peer.up) {
                self.pull(now, &from, &streams);
            } else {
                // Somebody else will say that it has them.
                for stream in streams {
                    self.behind.remove(&stream);
                }
            }
        }
        self.asked.retain(|_, until| now.mono < *until);
    }

    pub(super) fn retired_message(&self, writers: &[Writer]) -> Message {
        let mut retired = Vec::new();
        for writer in writers {
            let Some(id) = self.state.writers.id(*writer) else { continue };
            let closed = self.state.writers.is_retired(*writer);
            let applied = |store| self.state.replica(store).applied(*writer);
            let versions = if closed { StoreId::ALL.map(applied).to_vec() } else { Vec::new() };
            retired.push(RetiredWriter { writer: id.clone(), closed, versions });
        }
        Message::Retired(retired)
    }

    fn on_retired(&mut self, now: Now, from: &NodeName, retired: &[RetiredWriter]) -> Changes {
        let mut changes = Changes::default();
        for history in retired {
            let Some(writer) = self.state.writers.number(&history.writer) else { continue };
            if writer == self.state.me {
                self.fenced = true;
                changes.fenced = true;
            }
            if !history.closed || self.state.writers.is_retired(writer) {
                continue;
            }
            for (store, version) in StoreId::ALL.into_iter().zip(&history.versions) {
                if store.ends_with_writer() {
                    continue;
                }
                if let Some(peer) = self.peers.get_mut(from) {
                    peer.learn((store, writer), *version);
                }
                self.join_if_behind(now, from, (store, writer), *version);
            }
            if let Some(peer) = self.peers.get_mut(from) {
                peer.retired.insert(writer);
            }
        }
        changes
    }

    fn on_hot_set_request(&mut self, now: Now, from: &NodeName) -> Changes {
        let Some(peer) = self.peers.get_mut(from) else { return Changes::default() };
        let recently = peer.hot_set_at.is_some_and(|at| now.mono < at + HOT_SET_INTERVAL);
        if !recently {
            peer.hot_set_at = Some(now.mono);
            for chunk in self.state.prefixes.hot_set(CHUNK_BYTES) {
                self.counters.dropped_messages += peer.say(Message::Hints(chunk));
            }
        }
        Changes::default()
    }
}
