//! Replication: how the rows of each writer reach every node, whatever is lost, duplicated, delayed or restarted.
//!
//! A state machine without I/O. A writer sends its new rows to every peer, coalesced per store. A peer applies a delta
//! only if it has applied everything before it; otherwise it pulls what is missing. Once a second a digest goes to a
//! random peer, which answers with the rows that the sender lacks, whoever wrote them. A node that is behind collected
//! tombstones loads a snapshot. Fingerprints audit what version vectors can't show. `docs/replication.md` has the whole
//! protocol, with the reason and the test of each rule; comments here name its rules as R1, R2 and so on.
//!
//! [`Replication`] reads like the protocol: writes (here), reports of membership (`members`), messages in (`receive`),
//! messages out (`send`), what time brings (`upkeep`), what a node keeps on disk (`saving`, `restore`). What must be remembered for that belongs to parts that own their
//! fields: the members, with what each has applied and is owed (`peers`, `peer`, `send_window`, `acks`), rows that are
//! missing here (`pulls`), snapshots on their way in (`snapshot_loads`), what was adopted (`retirement`), when
//! something is due (`schedule`, `coalescing`, `settling`), what a member that lied has left behind (`leftovers`, `healing`). What needs no memory is a function of the state:
//! `snapshot`, `audit`, `collection`.
//!
//! Not guaranteed: that a write survives if its node dies before any peer has it; that a hint about a prefix arrives.

mod acknowledgement;
mod acks;
mod audit;
mod changes;
mod clocks;
mod cluster_time;
mod coalescing;
mod collection;
mod config;
mod confirmations;
mod counters;
mod healing;
mod leftovers;
mod members;
pub mod message;
mod not_applied;
mod peer;
mod peers;
mod pulls;
mod receive;
mod restore;
mod retirement;
mod saved;
mod saving;
mod schedule;
mod send;
mod send_window;
mod settling;
mod snapshot;
mod snapshot_loads;
mod stream;
mod upkeep;

use std::time::Duration;

use smg_types::ids::{NodeId, NodeName, WorkerId};
use smg_types::now::Now;

pub use crate::replication::acknowledgement::Acknowledgement;
pub use crate::replication::changes::Changes;
use crate::replication::cluster_time::OwnClock;
use crate::replication::coalescing::Coalescing;
pub use crate::replication::config::Config;
use crate::replication::confirmations::Confirmations;
pub use crate::replication::counters::Counters;
use crate::replication::leftovers::Leftovers;
use crate::replication::message::{ClaimsBuilder, Digest, Message};
use crate::replication::peers::Peers;
use crate::replication::pulls::Pulls;
use crate::replication::retirement::Adoptions;
use crate::replication::saved::Saving;
pub use crate::replication::saved::{Restored, SavedEntry, is_saved_key, saved_generation};
use crate::replication::schedule::Schedule;
use crate::replication::settling::Settling;
use crate::replication::snapshot_loads::SnapshotLoads;
pub use crate::replication::stream::CHUNK_BYTES;
use crate::replication::stream::Stream;
use crate::state::stores::ChangedKeys;
use crate::state::table::{NotAppliedReason, RefusedRow};
use crate::state::writers::Writer;
use crate::state::{STORES, State, StoreId, Version, Write};

/// One replica: this node's rows, its copies of the other writers' rows, and what it owes to its peers.
#[derive(Debug)]
pub struct Replication {
    me: NodeId,
    config: Config,
    state: State,
    peers: Peers,
    own_clock: OwnClock,
    schedule: Schedule,
    coalescing: Coalescing,
    settling: Settling,
    pulls: Pulls,
    loads: SnapshotLoads,
    adoptions: Adoptions,
    leftovers: Leftovers,
    saving: Saving,
    /// Whether this node has ever applied all that some reachable peer had applied.
    is_warm: bool,
    /// Whether a peer has retired the present generation of this node, or knows that it has ended.
    is_fenced: bool,
    counters: Counters,
    confirmations: Confirmations,
}

impl Replication {
    /// The replica of `me`, without any row and any peer.
    #[must_use]
    pub fn new(me: NodeId, config: Config, now: Now) -> Self {
        Self {
            state: State::new(&me, config.prefixes),
            peers: Peers::new(me.name.clone(), now),
            own_clock: OwnClock::default(),
            schedule: Schedule::new(now.mono),
            coalescing: Coalescing::default(),
            settling: Settling::new(now.mono),
            pulls: Pulls::default(),
            loads: SnapshotLoads::default(),
            adoptions: Adoptions::default(),
            leftovers: Leftovers::default(),
            saving: Saving::default(),
            is_warm: false,
            is_fenced: false,
            counters: Counters::default(),
            confirmations: Confirmations::default(),
            me,
            config,
        }
    }
}

/// Writing.
impl Replication {
    /// Writes a row of this node. Returns its version, which a receipt waits for; `None` when there was nothing to
    /// remove.
    ///
    /// # Errors
    ///
    /// The row is outside of its bounds; nothing has changed.
    pub fn update(
        &mut self,
        now: Now,
        write: impl Into<Write>,
    ) -> Result<Option<Version>, RefusedRow> {
        self.skip_missed_rounds(now);
        let version = self.state.write(now, write.into())?;
        if let Some(version) = version {
            self.plan_push(now, version.store);
        }
        Ok(version)
    }

    /// Records that `worker` served a prompt with these chained blocks; the hint is sent to the peers within 50 ms.
    pub fn served(&mut self, now: Now, worker: WorkerId, blocks: &[u64]) {
        self.served_below(now, worker, 0, blocks);
    }

    /// Records the same of a prompt whose blocks up to `above` have been recorded before.
    pub fn served_below(&mut self, now: Now, worker: WorkerId, above: u64, blocks: &[u64]) {
        self.skip_missed_rounds(now);
        self.state.prefixes.served(now, worker, above, blocks);
        if self.state.prefixes.has_waiting() {
            self.coalescing.plan_hints(now.mono);
        }
    }

    /// Drops all hints about a worker that left or restarted with a cold cache.
    pub fn forget_prefixes(&mut self, now: Now, worker: WorkerId) {
        self.state.prefixes.forget(now, worker);
    }

    pub(crate) fn track_changed_keys(&mut self) {
        self.state.track_changed_keys();
    }

    pub(crate) fn take_changed_keys(&mut self) -> ChangedKeys {
        self.state.take_changed_keys()
    }

    /// Plans to send the new rows of `store`: at once, or with the next ones if some were sent a moment ago.
    fn plan_push(&mut self, now: Now, store: StoreId) {
        if self.coalescing.plan_rows(store, now.mono) && self.peers.has_reachable() {
            let version = self.state.replica(store).applied(self.state.me);
            self.confirmations.note_written(store, version, now.mono);
        }
    }

    fn own_versions(&self) -> [u64; STORES] {
        StoreId::ALL.map(|store| self.state.replica(store).applied(self.state.me))
    }

    /// Plans to send the rows that this node wrote while it applied rows of others or adopted them. `before`: its
    /// versions before that.
    fn plan_push_of_moved(&mut self, now: Now, before: [u64; STORES]) {
        for (store, (before, after)) in
            StoreId::ALL.iter().zip(before.iter().zip(self.own_versions()))
        {
            if after > *before {
                self.plan_push(now, *store);
            }
        }
    }
}

/// Steps that several inputs share.
impl Replication {
    fn queue(&mut self, to: &NodeName, message: Message) {
        self.counters.dropped_messages += self.peers.queue(to, message);
    }

    /// The versions of all writers that are not retired: the regular digest.
    fn digest(&self, now: Now, relay: bool) -> Digest {
        self.digest_of(self.state.writers.current(), now, relay)
    }

    /// The versions of all writers, the retired ones included: a peer that was away may have missed that they were
    /// retired.
    fn full_digest(&self, now: Now, relay: bool) -> Digest {
        self.digest_of(self.state.writers.all(), now, relay)
    }

    fn digest_of<'a>(
        &self,
        writers: impl Iterator<Item = (Writer, &'a NodeId)>,
        now: Now,
        relay: bool,
    ) -> Digest {
        let mut claims = ClaimsBuilder::default();
        for (writer, id) in writers {
            for store in StoreId::ALL {
                let replica = self.state.replica(store);
                let version = replica.applied(writer);
                if version > 0 {
                    claims.push(id, store, version, replica.floor(writer));
                }
            }
        }
        Digest { wall_ms: self.own_clock.wall_ms(now), relay, claims: claims.build() }
    }

    /// Pulls those of `streams` from `from` that are not being pulled already.
    fn pull(&mut self, now: Now, from: &NodeName, streams: &[Stream]) {
        let mut claims = ClaimsBuilder::default();
        for stream in streams {
            let (store, writer) = *stream;
            if self.pulls.may_ask(*stream, now.mono)
                && let Some(id) = self.state.writers.id(writer)
            {
                let replica = self.state.replica(store);
                claims.push(id, store, replica.applied(writer), replica.floor(writer));
                self.pulls.note_asked(*stream, now.mono + self.config.retry);
            }
        }
        if !claims.is_empty() {
            self.counters.pulls += 1;
            self.queue(from, Message::Pull(claims.build()));
        }
    }

    /// Begins to load a snapshot from `from` if this node has not applied the stream up to `floor`, so that deltas
    /// can't bring it further (R12).
    fn load_if_behind(&mut self, now: Now, from: &NodeName, stream: Stream, floor: u64) {
        let (store, writer) = stream;
        let behind = writer != self.state.me && self.state.replica(store).applied(writer) < floor;
        if behind && let Some((donor, request)) = self.loads.begin(store, from, now.mono) {
            self.counters.snapshots_joined += 1;
            self.queue(&donor, Message::SnapshotRequest(request));
        }
    }

    /// Whether the passing of time changes nothing here: this node has no peers, knows no other writer, and holds no
    /// tombstone, no hint and no row that expires. A node at rest needs no rounds, so a router alone is not woken.
    fn is_at_rest(&self) -> bool {
        self.peers.is_empty()
            && self.loads.is_empty()
            && self.state.prefixes.is_empty()
            && self.state.writers.current().all(|(writer, _)| writer == self.state.me)
            && StoreId::ALL.iter().all(|store| !self.state.replica(*store).changes_with_time())
    }

    /// If this node is at rest, moves its next round to when it would be due if rounds had gone on. Call this before
    /// anything that may end the rest.
    fn skip_missed_rounds(&mut self, now: Now) {
        if self.is_at_rest() {
            self.schedule.skip_missed_rounds(now.mono);
        }
    }

    /// `stream` has moved on from version `stood`.
    fn note_move(&mut self, stream: Stream, stood: u64) {
        self.settling.note_move(stream, stood);
        let (store, writer) = stream;
        self.pulls.note_applied(stream, self.state.replica(store).applied(writer));
    }
}

/// Reading.
impl Replication {
    /// The state that this node holds.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The present generation of this node.
    #[must_use]
    pub fn me(&self) -> &NodeId {
        &self.me
    }

    /// Counts since the process started.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The times that peers took to confirm what this node wrote, since this was last called. Each runs from a write
    /// that was not held back for an earlier one to the message that confirms it, which may wait 100 ms for more to
    /// acknowledge.
    pub fn take_confirmation_times(&mut self) -> Vec<Duration> {
        self.confirmations.take()
    }

    /// Whether this node has ever applied all that some reachable peer had applied: a joiner is ready only then.
    #[must_use]
    pub fn is_warm(&self) -> bool {
        self.is_warm
    }

    /// Whether a peer has retired the present generation of this node, or knows that it has ended.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.is_fenced
    }

    /// All members except this node, each with whether it has applied a write of this node, as far as this node knows.
    pub fn receipt(&self, version: Version) -> impl Iterator<Item = (&NodeId, Acknowledgement)> {
        let stream = (version.store, self.state.me);
        self.peers.iter().map(move |peer| {
            let acknowledgement = match peer.not_applied(version) {
                Some(reason) => Acknowledgement::NotApplied(reason),
                None if peer.known(stream) >= version.version => Acknowledgement::Applied,
                None => Acknowledgement::Pending,
            };
            (peer.id(), acknowledgement)
        })
    }

    /// The present rows of this node that have no effect at a peer, as the peer has reported.
    pub fn not_applied(&self) -> impl Iterator<Item = (&NodeId, Version, NotAppliedReason)> {
        self.peers.iter().flat_map(move |peer| {
            let rows = peer.all_not_applied().filter(|(Version { store, version }, _)| {
                self.state.replica(*store).has_row(self.state.me, *version)
            });
            rows.map(|(version, reason)| (peer.id(), version, reason))
        })
    }

    /// How many of this node's versions a peer is not known to have applied, over all stores; `None` if there is no
    /// such peer.
    #[must_use]
    pub fn lag(&self, peer: &NodeName) -> Option<u64> {
        let peer = self.peers.get(peer)?;
        let own = self.own_versions();
        Some(StoreId::ALL.iter().zip(own).fold(0, |lag, (store, version)| {
            lag + version.saturating_sub(peer.known((*store, self.state.me)))
        }))
    }
}

#[cfg(test)]
mod tests;
