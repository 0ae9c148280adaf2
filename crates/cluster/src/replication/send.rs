//! Messages out: small ones first, then deltas cut from the state in the moment in which they can go, then snapshots.

use std::time::Duration;

use smg_types::ids::{NodeId, NodeName};
use smg_types::now::Now;

use crate::replication::message::{ClaimsBuilder, Delta, Message, Offer, Urgency};
use crate::replication::peer::{Peer, Stream};
use crate::replication::{CHUNK_BYTES, Flush, Replication};
use crate::state::StoreId;
use crate::state::table::Cut;

impl Replication {
    /// The next message to send, if any. A message that the link drops is made up for later.
    pub fn poll_transmit(&mut self, now: Now) -> Option<(NodeId, Message, Urgency)> {
        self.open_flushes(now);
        let names: Vec<NodeName> = {
            // Peers take turns, so that one with much to catch up with does not hold up the others.
            let after = self.turn.clone();
            let up = |(_, peer): &(&NodeName, &Peer)| peer.up;
            let later = self.peers.iter().filter(up).map(|(name, _)| name);
            let (mut later, earlier): (Vec<_>, Vec<_>) =
                later.cloned().partition(|name| after.as_ref().is_none_or(|after| name > after));
            later.extend(earlier);
            later
        };
        for name in names {
            if let Some((message, urgency)) = self.next_for(now, &name) {
                let id = self.peers.get(&name)?.id.clone();
                self.turn = Some(name);
                return Some((id, message, urgency));
            }
        }
        None
    }

    fn open_flushes(&mut self, now: Now) {
        for store in StoreId::ALL {
            let flush = &mut self.flushes[store.index()];
            if flush.due.is_none_or(|due| due > now.mono) {
                continue;
            }
            *flush = Flush { due: None, last: Some(now.mono) };
            let stream = (store, self.state.me);
            let target = self.state.replica(store).applied(self.state.me);
            for peer in self.peers.values_mut().filter(|peer| peer.up && peer.greeted) {
                let known = peer.known(stream);
                peer.serve(stream, known, target);
            }
        }
    }

    fn next_for(&mut self, now: Now, name: &NodeName) -> Option<(Message, Urgency)> {
        let peer = self.peers.get_mut(name)?;
        if let Some(message) = peer.outbox.pop_front() {
            return Some((message, Urgency::Now));
        }
        if peer.ack_at.is_some_and(|at| now.mono >= at) {
            return Some((self.ack(name)?, Urgency::Now));
        }
        if let Some(delta) = self.next_delta(now, name) {
            return Some(delta);
        }
        self.next_chunk(name).map(|message| (message, Urgency::Bulk))
    }

    /// Says how far this node is where it moved on.
    fn ack(&mut self, name: &NodeName) -> Option<Message> {
        let peer = self.peers.get_mut(name)?;
        peer.ack_at = None;
        peer.unacked_bytes = 0;
        let streams = std::mem::take(&mut peer.ack_due);
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
            let window = peer.window(self.config.window_bytes);
            if peer.in_flight >= window {
                return None;
            }
            let stream = peer.due.iter().find(|(_, writer)| *writer == me || peer.credit > 0);
            let stream = *stream?;
            let (store, writer) = stream;
            let from = peer.cursors.get(&stream).map_or(0, |cursor| cursor.sent);
            let replica = self.state.replica(store);
            let floor = replica.floor(writer);
            let Some(id) = self.state.writers.id(writer).cloned() else {
                peer.stop(stream);
                continue;
            };
            if from < floor {
                peer.stop(stream);
                let offer = Offer { store: store.into(), writer: id, floor };
                return Some((Message::Offer(offer), Urgency::Now));
            }
            let budget = CHUNK_BYTES.min(window);
            let cut = replica.rows_after(&self.state.writers, writer, from, budget);
            let Cut { rows, to, upto } = cut;
            if to <= from {
                peer.stop(stream);
                continue;
            }
            let bytes: usize = rows.iter().map(|row| row.wire_bytes()).sum();
            peer.sent(stream, to, bytes.max(1), now.mono);
            if writer != me {
                peer.credit = peer.credit.saturating_sub(bytes);
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

    /// Sends again what was not acknowledged in time: less and less often, and less at a time, to who acknowledges nothing.
    pub(super) fn retry(&mut self, now: Now) {
        for peer in self.peers.values_mut().filter(|peer| peer.up) {
            let retry = peer.retry_after(self.config.retry);
            let late: Vec<Stream> = peer
                .cursors
                .iter()
                .filter(|(_, c)| c.in_flight > 0 && now.mono >= c.sent_at + retry)
                .map(|(stream, _)| *stream)
                .collect();
            if !late.is_empty() {
                peer.lose_patience();
            }
            for stream in late {
                self.counters.retries += 1;
                let known = peer.known(stream);
                peer.rewind(stream, known);
            }
        }
    }
}
