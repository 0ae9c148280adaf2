//! Replication: how the rows of each writer reach every node, whatever is lost, duplicated, delayed or restarted.
//!
//! A state machine without I/O. A writer sends its new rows to every peer, coalesced per store. A peer applies a delta
//! only if it has applied everything before it; otherwise it pulls what is missing. Once a second a digest goes to a
//! random peer, which answers with the rows that the sender lacks, whoever wrote them. A node that is behind collected
//! tombstones loads a snapshot. Fingerprints audit what version vectors can't show. `docs/replication.md` has the whole
//! protocol, with the reason and the test of each rule; comments here name its rules as R1, R2 and so on.
//!
//! [`Replication`] reads like the protocol: writes and what membership reports (here), messages in (`receive`),
//! messages out (`send`), what time brings (`upkeep`). What must be remembered for that belongs to parts that own their
//! fields: the members, with what each has applied and is owed (`peers`, `peer`, `send_window`, `acks`), rows that are
//! missing here (`pulls`), snapshots on their way in (`snapshot_loads`), what was adopted (`retirement`), when
//! something is due (`schedule`, `coalescing`, `settling`). What needs no memory is a function of the state:
//! `snapshot`, `audit`, `collection`.
//!
//! Not guaranteed: that a write survives if its node dies before any peer has it; that a hint about a prefix arrives.

mod acks;
mod audit;
mod changes;
mod coalescing;
mod collection;
mod confirmations;
mod counters;
pub mod message;
mod peer;
mod peers;
mod pulls;
mod receive;
mod retirement;
mod schedule;
mod send;
mod send_window;
mod settling;
mod snapshot;
mod snapshot_loads;
mod upkeep;

use std::time::Duration;

use smg_types::ids::{NodeId, NodeName, WorkerId};
use smg_types::now::Now;

use crate::crdt::stamp::{HybridClock, millis};
pub use crate::replication::changes::Changes;
use crate::replication::coalescing::Coalescing;
use crate::replication::confirmations::Confirmations;
pub use crate::replication::counters::Counters;
use crate::replication::message::{ClaimsBuilder, Digest, Message, SnapshotChunk};
use crate::replication::peer::Peer;
use crate::replication::peers::{Connected, Peers};
use crate::replication::pulls::Pulls;
use crate::replication::retirement::Adoptions;
use crate::replication::schedule::Schedule;
use crate::replication::settling::Settling;
use crate::replication::snapshot_loads::{LeastClaim, SnapshotLoads};
use crate::state::row::Blob;
use crate::state::stores::ChangedKeys;
use crate::state::table::RefusedRow;
use crate::state::writers::Writer;
use crate::state::{STORES, State, StoreId, Version, Write, prefixes};

/// Bytes of rows that a delta or a part of a snapshot holds at most, unless the rows of a single key are more.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// Rows of other writers are relayed, and missing rows are pulled, only after this time: the writer's own delta is
/// usually faster.
const SETTLE: Duration = Duration::from_millis(500);

/// A stream: the rows of one writer in one store, in the order of their versions.
pub(crate) type Stream = (StoreId, Writer);

/// Settings of replication.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Time between two digests, each to a random peer.
    pub digest_interval: Duration,
    /// Least time between two audits of a random peer; each waits by chance for up to as long again.
    pub audit_interval: Duration,
    /// A delta that is not acknowledged, and a pull or a snapshot request that is not answered, is repeated after this
    /// time.
    pub retry: Duration,
    /// Bytes of deltas that may be sent to a peer and not be acknowledged yet.
    pub window_bytes: usize,
    /// Bytes per second of relayed rows and snapshots that one peer is sent.
    pub repair_bytes_per_second: usize,
    /// A stamp that is further than this ahead of this node's wall clock is not believed.
    pub max_ahead: Duration,
    /// A retired writer is remembered at least this long.
    pub fence: Duration,
    /// Bounds of the hints about prefixes.
    pub prefixes: prefixes::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            digest_interval: Duration::from_secs(1),
            audit_interval: Duration::from_secs(30),
            retry: Duration::from_secs(1),
            window_bytes: 1 << 20,
            repair_bytes_per_second: 16 << 20,
            max_ahead: HybridClock::MAX_AHEAD,
            fence: Duration::from_secs(48 * 3600),
            prefixes: prefixes::Config::default(),
        }
    }
}

/// One replica: this node's rows, its copies of the other writers' rows, and what it owes to its peers.
#[derive(Debug)]
pub struct Replication {
    me: NodeId,
    config: Config,
    state: State,
    peers: Peers,
    schedule: Schedule,
    coalescing: Coalescing,
    settling: Settling,
    pulls: Pulls,
    loads: SnapshotLoads,
    adoptions: Adoptions,
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
            state: State::new(&me, config.max_ahead, config.prefixes),
            peers: Peers::new(me.name.clone(), now),
            schedule: Schedule::new(now.mono),
            coalescing: Coalescing::default(),
            settling: Settling::new(now.mono),
            pulls: Pulls::default(),
            loads: SnapshotLoads::default(),
            adoptions: Adoptions::default(),
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
    pub fn forget_prefixes(&mut self, worker: WorkerId) {
        self.state.prefixes.forget(worker);
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

/// What membership reports.
impl Replication {
    /// A peer can be reached, perhaps as a new generation: both send each other a digest.
    pub fn peer_up(&mut self, now: Now, id: &NodeId) {
        self.skip_missed_rounds(now);
        if id.name == self.me.name {
            return;
        }
        let Some(writer) = self.state.writers.intern(id) else {
            self.counters.refused_messages += 1;
            return;
        };
        let connected = self.peers.connect(now, id, writer);
        if connected == Connected::Outdated {
            return;
        }
        self.state.writers.set_down(writer, false);
        if connected == Connected::Already {
            return;
        }
        // Only the first peer is asked for the rows of all writers: if each were, each would send everything (R21).
        let is_first = connected == Connected::First;
        let greeting = self.full_digest(now, is_first);
        self.queue(&id.name, Message::Digest(greeting));
        if is_first && self.state.prefixes.is_empty() {
            self.queue(&id.name, Message::HotSetRequest);
        }
        if self.state.writers.is_over(writer) {
            self.queue(&id.name, retirement::notice(&self.state, &[writer]));
        }
    }

    /// A peer can't be reached. Its measurements are hidden; what it decided stays.
    pub fn peer_down(&mut self, now: Now, id: &NodeId) {
        self.skip_missed_rounds(now);
        if id.name != self.me.name
            && self.peers.get(&id.name).is_none()
            && let Some(writer) = self.state.writers.intern(id)
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
            self.state.writers.set_down(writer, true);
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
        if let Some(writer) = self.state.begin_life(&me) {
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
        Digest { wall_ms: millis(now.wall), relay, claims: claims.build() }
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
    /// What this node holds.
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

    /// All members except this node, each with whether it is known to have applied a write of this node.
    pub fn receipt(&self, version: Version) -> impl Iterator<Item = (&NodeId, bool)> {
        let stream = (version.store, self.state.me);
        self.peers.iter().map(move |peer| (peer.id(), peer.known(stream) >= version.version))
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

    /// How far a peer's wall clock was ahead of this node's when its last digest came, in milliseconds.
    #[must_use]
    pub fn wall_ahead_ms(&self, peer: &NodeName) -> Option<i64> {
        self.peers.get(peer).map(Peer::wall_ahead_ms)
    }
}

/// Saving and restoring.
impl Replication {
    /// The range of keys of `store` after the key `after`, with all that is known about them; `None` if `after` is no
    /// key. A node may save all ranges to disk, see [`Replication::restore`].
    #[must_use]
    pub fn chunk(
        &self,
        store: StoreId,
        session: u64,
        after: Option<Blob>,
    ) -> Option<SnapshotChunk> {
        snapshot::chunk(&self.state, store, session, after)
    }

    /// Loads what an earlier generation of this node has saved: all ranges of a store, in order, as if a peer had sent
    /// them.
    pub fn restore(&mut self, now: Now, store: StoreId, chunks: Vec<SnapshotChunk>) -> Changes {
        let (mut changes, mut claim, mut after) = (Changes::default(), LeastClaim::default(), None);
        let count = chunks.len();
        for (at, chunk) in chunks.into_iter().enumerate() {
            let end = chunk.end.clone();
            let fits = chunk.store.store() == Some(store)
                && chunk.after == after
                && (end.is_none() == (at + 1 == count));
            let merged =
                if fits { snapshot::merge(&mut self.state, now, store, chunk) } else { None };
            let Some(merged) = merged else {
                self.counters.refused_messages += 1;
                return changes;
            };
            changes.touch(store, merged.rows);
            claim.narrow(&merged.marks);
            after = end;
        }
        self.claim(now, store, claim.into_claim());
        changes
    }

    /// All ranges of a snapshot are merged: what its donors covered is covered here too.
    fn claim(&mut self, now: Now, store: StoreId, claim: snapshot_loads::Claim) {
        for (stream, stood) in snapshot::claim(&mut self.state, now, store, claim) {
            self.note_move(stream, stood);
        }
    }
}

#[cfg(test)]
mod tests;
