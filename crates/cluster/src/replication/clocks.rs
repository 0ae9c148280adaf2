//! The clocks of this node and of its peers.

use smg_types::ids::NodeName;
use smg_types::now::Now;

use crate::crdt::stamp::millis;
use crate::replication::Replication;
use crate::replication::cluster_time::{Epoch, OwnClock, agreed, known_to_peers};
use crate::replication::peer::Peer;

impl Replication {
    /// The time of the cluster when the clocks of this node show `reading`. All other methods take the time of the
    /// cluster; a driver calls this for each reading of its clock.
    pub fn cluster_time(&mut self, reading: Now) -> Now {
        let own = Epoch::new(millis(reading.wall), reading.mono);
        let mut peers = self.peers.reachable().filter_map(Peer::clock).peekable();
        let is_alone = peers.peek().is_none();
        let shown = self.own_clock.shown.filter(|_| !is_alone);
        let agreed = agreed(known_to_peers(own, shown), peers);
        self.own_clock = OwnClock { clock: Some(own), shown, correction_ms: agreed.ahead_of(own) };
        if agreed == own { reading } else { Now { wall: agreed.at(reading.mono), ..reading } }
    }

    /// How far the wall clock of a peer is ahead of this node's own, in milliseconds, as its last digest showed. `None`: there
    /// is no such peer, it has sent no digest, or this node's clock was never read.
    #[must_use]
    pub fn wall_ahead_ms(&self, peer: &NodeName) -> Option<i64> {
        Some(self.peers.get(peer)?.clock()?.ahead_of(self.own_clock.clock?))
    }

    /// How far the time of the cluster was ahead of this node's own wall clock at the last reading, in milliseconds.
    #[must_use]
    pub fn correction_ms(&self) -> i64 {
        self.own_clock.correction_ms
    }
}
