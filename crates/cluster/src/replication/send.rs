//! Messages out: small ones first, then deltas, then parts of snapshots. Deltas and parts are cut from the state when
//! they can be sent, not before.

use std::collections::BTreeSet;
use std::time::Duration;

use smg_types::ids::{NodeId, NodeName};
use smg_types::now::Now;

use crate::replication::message::{ClaimsBuilder, Delta, Message, Offer, Urgency};
use crate::replication::stream::{CHUNK_BYTES, Stream};
use crate::replication::{Replication, snapshot};
use crate::state::StoreId;
use crate::state::table::LogRange;

impl Replication {
    /// The next message to send, if any. Whatever the link drops is sent again later.
    pub fn poll_transmit(&mut self, now: Now) -> Option<(NodeId, Message, Urgency)> {
        self.begin_due_pushes(now);
        for name in self.peers.in_turn() {
            if let Some((message, urgency)) = self.next_for(now, &name) {
                let id = self.peers.get(&name)?.id().clone();
                self.peers.note_served(name);
                return Some((id, message, urgency));
            }
        }
        None
    }

    /// Lets the new rows of this node go out to all peers, for each store whose coalescing time is over.
    fn begin_due_pushes(&mut self, now: Now) {
        for store in StoreId::ALL {
            if self.coalescing.take_due_rows(store, now.mono) {
                let stream = (store, self.state.me);
                let target = self.state.replica(store).applied(self.state.me);
                for peer in self.peers.reachable_mut().filter(|peer| peer.has_greeted()) {
                    let known = peer.known(stream);
                    peer.window.extend(stream, known, target);
                }
            }
        }
    }

    fn next_for(&mut self, now: Now, name: &NodeName) -> Option<(Message, Urgency)> {
        let peer = self.peers.get_mut(name)?;
        if let Some(message) = peer.next_message() {
            return Some((message, Urgency::Now));
        }
        if let Some(streams) = peer.acks.take_due(now.mono) {
            return Some((self.ack(streams)?, Urgency::Now));
        }
        if let Some(delta) = self.next_delta(now, name) {
            return Some(delta);
        }
        self.next_chunk(name).map(|message| (message, Urgency::Bulk))
    }

    /// An acknowledgement of `streams`: the versions up to which they are applied here.
    fn ack(&self, streams: BTreeSet<Stream>) -> Option<Message> {
        let mut claims = ClaimsBuilder::default();
        for (store, writer) in streams {
            if let Some(id) = self.state.writers.id(writer) {
                let replica = self.state.replica(store);
                claims.push(id, store, replica.applied(writer), replica.floor(writer));
            }
        }
        (!claims.is_empty()).then(|| Message::Ack(claims.build()))
    }

    fn next_delta(&mut self, now: Now, name: &NodeName) -> Option<(Message, Urgency)> {
        let me = self.state.me;
        loop {
            let peer = self.peers.get_mut(name)?;
            let may_send = |(_, writer): Stream| writer == me || peer.has_repair_credit();
            let (stream, from) = peer.window.next(self.config.window_bytes, may_send)?;
            let (store, writer) = stream;
            let replica = self.state.replica(store);
            let floor = replica.floor(writer);
            let Some(id) = self.state.writers.id(writer).cloned() else {
                peer.window.cancel(stream);
                continue;
            };
            if from < floor {
                // A delta from there would lack tombstones (R12).
                peer.window.cancel(stream);
                let offer = Offer { store: store.into(), writer: id, floor };
                return Some((Message::Offer(offer), Urgency::Now));
            }
            let budget = CHUNK_BYTES.min(peer.window.limit(self.config.window_bytes));
            let cut = replica.rows_after(&self.state.writers, writer, from, budget);
            let LogRange { rows, to, upto } = cut;
            if to <= from {
                peer.window.cancel(stream);
                continue;
            }
            let bytes: usize = rows.iter().map(|row| row.wire_bytes()).sum();
            peer.window.record_sent(stream, to, bytes.max(1), now.mono);
            if writer != me {
                peer.spend_repair_credit(bytes);
            }
            self.counters.rows_sent += rows.len() as u64;
            self.counters.sent_bytes[store.index()] += bytes as u64;
            let urgency = if writer != me {
                Urgency::Bulk
            } else if store.coalescing() <= Duration::from_millis(10) {
                Urgency::Now
            } else {
                Urgency::Soon
            };
            let delta = Delta { store: store.into(), writer: id, from, to, upto, floor, rows };
            return Some((Message::Delta(delta), urgency));
        }
    }

    /// The next part of a snapshot that the peer `name` has asked for, most important store first.
    fn next_chunk(&mut self, name: &NodeName) -> Option<Message> {
        let (store, request) = self.peers.get_mut(name)?.next_snapshot_request()?;
        let chunk = snapshot::chunk(&self.state, store, request.session, request.after);
        let Some(chunk) = chunk else {
            self.counters.refused_messages += 1;
            return None;
        };
        let bytes: usize = chunk.rows.iter().map(|(_, row)| row.wire_bytes()).sum();
        self.counters.snapshot_chunks_served += 1;
        self.counters.sent_bytes[store.index()] += bytes as u64;
        if let Some(peer) = self.peers.get_mut(name) {
            peer.spend_repair_credit(bytes);
        }
        Some(Message::Snapshot(chunk))
    }
}
