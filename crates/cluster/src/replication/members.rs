//! The reports of membership: peers that can be reached, can't be reached, or are gone for good, and a later generation of
//! this node.

use smg_types::ids::NodeId;
use smg_types::now::Now;

use crate::plausible::latest_generation;
use crate::replication::Replication;
use crate::replication::message::Message;
use crate::replication::peers::Connected;
use crate::state::StoreId;
use crate::state::writers::Writer;

impl Replication {
    /// A peer can be reached, perhaps as a new generation: both send each other a digest.
    pub fn peer_up(&mut self, now: Now, id: &NodeId) {
        self.skip_missed_rounds(now);
        if id.name == self.me.name {
            return;
        }
        self.state.writers.set_latest(latest_generation(now));
        let Some(writer) = self.state.writers.intern_member(id) else {
            self.counters.refused_writers += 1;
            return;
        };
        let connected = self.peers.connect(now, id, writer);
        if connected == Connected::Outdated {
            return;
        }
        self.state.writers.note_member(writer, false);
        if connected == Connected::Already {
            return;
        }
        // Only the first peer is asked for the rows of all writers: if each were, each would send everything (R21).
        let is_first = connected == Connected::First;
        let greeting = self.full_digest(now, is_first);
        self.queue_digest(&id.name, greeting);
        if is_first && self.state.prefixes.is_empty() {
            self.queue(&id.name, Message::HotSetRequest);
        }
        if self.state.writers.has_ended(writer) {
            self.queue_notice(&id.name, &[writer]);
        }
    }

    /// A peer can't be reached. Its measurements are hidden; what it decided stays.
    pub fn peer_down(&mut self, now: Now, id: &NodeId) {
        self.skip_missed_rounds(now);
        if id.name != self.me.name
            && self.peers.get(&id.name).is_none()
            && let Some(writer) = self.state.writers.intern_member(id)
        {
            self.peers.list_unreachable(id, writer);
        }
        self.peers.disconnect(id);
        // What that peer has not confirmed yet is not measured: it may be away for an hour.
        for store in StoreId::ALL {
            let all = self.peers.lowest_known_of_reachable((store, self.state.me));
            self.confirmations.settle(store, all.unwrap_or(u64::MAX));
        }
        if let Some(writer) = self.state.writers.number(id) {
            self.state.writers.note_member(writer, true);
        }
        self.peers.reachable_mut().for_each(|peer| peer.audit_soon(now));
    }

    /// A peer is gone for good: nobody waits for its acknowledgements any more, and the node with the lowest reachable
    /// name adopts what it decided.
    pub fn peer_forgotten(&mut self, now: Now, id: &NodeId) {
        self.peer_down(now, id);
        self.peers.forget(id);
        if let Some(writer) = self.state.writers.number(id) {
            self.state.writers.end(writer);
        }
    }

    /// Whether this generation of a peer is connected.
    pub(crate) fn reaches(&self, id: &NodeId) -> bool {
        self.peers.is_reachable(id)
    }

    /// Whether any peer has retired `writer`.
    pub(crate) fn is_retired_by_a_peer(&self, writer: Writer) -> bool {
        self.peers.iter().any(|peer| peer.has_retired(writer))
    }

    /// All members except this node that are not forgotten, each with whether it can be reached.
    pub fn members(&self) -> impl Iterator<Item = (&NodeId, bool)> {
        self.peers.iter().map(|peer| (peer.id(), peer.is_reachable()))
    }

    /// Goes on as the later generation `me`, after the peers have retired the present one or another process has
    /// written as it. What the former generation decided is adopted. The new generation must be higher than any that
    /// this name ever had.
    pub fn begin_generation(&mut self, now: Now, me: NodeId) {
        debug_assert!(
            me.name == self.me.name && me.generation > self.me.generation,
            "a later generation of the same name"
        );
        if let Some(writer) = self.state.begin_generation(&me) {
            self.me = me;
            self.state.me = writer;
            self.is_fenced = false;
            self.adoptions.reset();
            self.coalescing.reset_rows();
            self.confirmations.reset();
            self.peers.disconnect_all();
            self.schedule.hurry(now.mono);
        }
    }
}
