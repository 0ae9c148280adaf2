//! Replication: how the rows of each writer reach every node, whatever is lost, doubled, late or restarted.
//!
//! A state machine without I/O. A writer sends its new rows to every peer, coalesced per store; a peer applies a delta only
//! if it has everything before it, else it pulls. Once a second a digest goes to a random peer, which answers with what the
//! sender lacks, whoever wrote it. Who is behind collected tombstones joins a snapshot; fingerprints audit the rest.
//!
//! [`Replication`] reads like the protocol: writes and what membership reports (here), messages in (`receive`), messages
//! out (`send`), what time brings (`upkeep`). What must be remembered for that belongs to its parts, each of which owns its fields: the members
//! and what each of them has applied and is owed (`peers`, `peer`, `send_window`, `acks`), rows that are missing here
//! (`pulls`), snapshots on their way in (`joins`), what was adopted (`retirement`), when something is due (`schedule`,
//! `coalescing`, `settling`). What needs no memory is a function of the state: `snapshot`, `audit`, `collection`.
//!
//! What is not guaranteed: that a write survives if its node dies before any peer has it; hints about prefixes.

mod acks;
mod audit;
mod changes;
mod coalescing;
mod collection;
mod confirmations;
mod counters;
mod joins;
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
mod upkeep;

use std::time::Duration;

use smg_types::ids::{NodeId, NodeName, WorkerId};
use smg_types::now::Now;

use crate::crdt::stamp::{HybridClock, millis};
pub use crate::replication::changes::Changes;
use crate::replication::coalescing::Coalescing;
use crate::replication::confirmations::Confirmations;
pub use crate::replication::counters::Counters;
use crate::replication::joins::{Joins, LeastClaim};
use crate::replication::message::{ClaimsBuilder, Digest, Message, SnapshotChunk};
use crate::replication::peer::Peer;
use crate::replication::peers::{Connected, Peers};
use crate::replication::pulls::Pulls;
use crate::replication::retirement::Adoptions;
use crate::replication::schedule::Schedule;
use crate::replication::settling::Settling;
use crate::state::news::News;
use crate::state::row::Blob;
use crate::state::table::RefusedRow;
use crate::state::writers::Writer;
use crate::state::{STORES, State, StoreId, Version, Write, prefixes};

/// Largest message body that is built: rows of a delta or of a part of a snapshot. One key's rows may exceed it.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// What a peer lacks is served by others than its writer only once it is this old, at least: the writer's own push is
/// faster.
const SETTLE: Duration = Duration::from_millis(500);

/// A stream: the rows of one writer in one store.
pub(crate) type Stream = (StoreId, Writer);

/// What replication can be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Time between digests.
    pub digest_interval: Duration,
    /// Time between audits; each waits this long and up to as long again.
    pub audit_interval: Duration,
    /// What was sent and not acknowledged is sent again after this long; what was asked for is asked again.
    pub retry: Duration,
    /// Bytes of deltas that may be on their way to a peer.
    pub window_bytes: usize,
    /// Bytes per second of relayed rows and snapshots that a peer is given.
    pub repair_bytes_per_second: usize,
    /// How far ahead of this node's wall a stamp may be.
    pub max_ahead: Duration,
    /// How long a retired writer is refused.
    pub fence: Duration,
    /// Bounds of the hints.
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

/// One replica: this node's rows, its copies of the others' rows, and what it must say to whom.
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
    joins: Joins,
    adoptions: Adoptions,
    /// Whether this node has once had all that some peer had.
    is_warm: bool,
    /// Whether the others take this life for history.
    is_fenced: bool,
    counters: Counters,
    confirmations: Confirmations,
}

impl Replication {
    /// The replica of `me`, which knows nothing and nobody.
    #[must_use]
    pub fn new(me: NodeId, config: Config, now: Now) -> Self {
        Self {
            state: State::new(&me, config.max_ahead, config.prefixes),
            peers: Peers::new(me.name.clone(), now),
            schedule: Schedule::new(now.mono),
            coalescing: Coalescing::default(),
            settling: Settling::new(now.mono),
            pulls: Pulls::default(),
            joins: Joins::default(),
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
    /// Writes a row of this node; the version is what a receipt waits for, `None` when there was nothing to remove.
    ///
    /// # Errors
    /// The row is outside its bounds; nothing has changed.
    pub fn update(&mut self, now: Now, write: Write) -> Result<Option<Version>, RefusedRow> {
        let version = self.state.write(now, write)?;
        if let Some(version) = version {
            self.announce(now, version.store);
        }
        Ok(version)
    }

    /// Learns that `worker` served a prompt with these chained blocks, and tells the others soon.
    pub fn served(&mut self, now: Now, worker: WorkerId, blocks: &[u64]) {
        self.served_below(now, worker, 0, blocks);
    }

    /// The same of a prompt whose part up to the block `above` is told already.
    pub fn served_below(&mut self, now: Now, worker: WorkerId, above: u64, blocks: &[u64]) {
        self.state.prefixes.served(now, worker, above, blocks);
        if self.state.prefixes.has_waiting() {
            self.coalescing.plan_hints(now.mono);
        }
    }

    /// Forgets all hints at a worker that left or came back with a cold cache.
    pub fn forget_prefixes(&mut self, worker: WorkerId) {
        self.state.prefixes.forget(worker);
    }

    pub(crate) fn follow(&mut self) {
        self.state.follow();
    }

    pub(crate) fn take_news(&mut self) -> News {
        self.state.take_news()
    }

    /// New rows of `store` are to be sent: at once if the last ones went long enough ago, else with those that come.
    fn announce(&mut self, now: Now, store: StoreId) {
        if self.coalescing.plan_rows(store, now.mono) && self.peers.has_reachable() {
            let version = self.state.replica(store).applied(self.state.me);
            self.confirmations.note_written(store, version, now.mono);
        }
    }

    fn own_versions(&self) -> [u64; STORES] {
        StoreId::ALL.map(|store| self.state.replica(store).applied(self.state.me))
    }

    /// Announces stores whose own stream moved while foreign rows were applied.
    fn announce_moved(&mut self, now: Now, before: [u64; STORES]) {
        for (store, (before, after)) in
            StoreId::ALL.iter().zip(before.iter().zip(self.own_versions()))
        {
            if after > *before {
                self.announce(now, *store);
            }
        }
    }
}

/// What membership reports.
impl Replication {
    /// A peer can be reached, perhaps in a new life: it and this node say how far they are.
    pub fn peer_up(&mut self, now: Now, id: &NodeId) {
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
        // The first peer is asked for everything; of the others only their own rows, or each would send everything.
        let is_first = connected == Connected::First;
        let greeting = self.greeting(now, is_first);
        self.say(&id.name, Message::Digest(greeting));
        if is_first && self.state.prefixes.is_empty() {
            self.say(&id.name, Message::HotSetRequest);
        }
        if self.state.writers.is_over(writer) {
            self.say(&id.name, retirement::notice(&self.state, &[writer]));
        }
    }

    /// A peer can't be reached. What it measured is hidden, what it decided stays.
    pub fn peer_down(&mut self, now: Now, id: &NodeId) {
        if id.name != self.me.name
            && self.peers.get(&id.name).is_none()
            && let Some(writer) = self.state.writers.intern(id)
        {
            self.peers.list_unreachable(id, writer);
        }
        self.peers.disconnect(id);
        // What it has not confirmed is not measured: it may be away for an hour.
        for store in StoreId::ALL {
            let all = self.peers.lowest_known_of_reachable((store, self.state.me));
            self.confirmations.settle(store, all.unwrap_or(u64::MAX));
        }
        if let Some(writer) = self.state.writers.number(id) {
            self.state.writers.set_down(writer, true);
        }
        self.peers.reachable_mut().for_each(|peer| peer.audit_soon(now));
    }

    /// A peer is gone for good: nobody waits for its acks any more, and the lowest living name adopts what it decided.
    pub fn peer_forgotten(&mut self, now: Now, id: &NodeId) {
        self.peer_down(now, id);
        self.peers.forget(id);
        if let Some(writer) = self.state.writers.number(id) {
            self.state.writers.end(writer);
        }
    }

    /// Whether a peer has retired `writer`.
    pub(crate) fn is_history_elsewhere(&self, writer: Writer) -> bool {
        self.peers.iter().any(|peer| peer.has_retired(writer))
    }

    /// All members but this one that are not forgotten, each with whether it can be reached.
    pub fn members(&self) -> impl Iterator<Item = (&NodeId, bool)> {
        self.peers.iter().map(|peer| (peer.id(), peer.is_reachable()))
    }

    /// Begins a new life after the others took the present one for history, or after a false start. What the former life
    /// decided is adopted; `generation` must be higher than any that this name had.
    pub fn begin_life(&mut self, now: Now, me: NodeId) {
        debug_assert!(
            me.name == self.me.name && me.generation > self.me.generation,
            "a later life"
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

/// What several inputs need.
impl Replication {
    fn say(&mut self, to: &NodeName, message: Message) {
        self.counters.dropped_messages += self.peers.queue(to, message);
    }

    /// How far this node is in everything that is still spoken of.
    fn digest(&self, now: Now, relay: bool) -> Digest {
        self.digest_of(self.state.writers.current(), now, relay)
    }

    /// How far this node is in everything: who was away may have missed what is spoken of no more.
    fn greeting(&self, now: Now, relay: bool) -> Digest {
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

    /// Asks `from` for streams that are not being asked for.
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
            self.say(from, Message::Pull(claims.build()));
        }
    }

    /// Asks `from` for a snapshot if this node is behind what a log still holds.
    fn join_if_behind(&mut self, now: Now, from: &NodeName, stream: Stream, floor: u64) {
        let (store, writer) = stream;
        let behind = writer != self.state.me && self.state.replica(store).applied(writer) < floor;
        if behind && let Some((donor, request)) = self.joins.begin(store, from, now.mono) {
            self.counters.snapshots_joined += 1;
            self.say(&donor, Message::SnapshotRequest(request));
        }
    }

    /// A stream has moved on from where it stood.
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

    /// Who this node is.
    #[must_use]
    pub fn me(&self) -> &NodeId {
        &self.me
    }

    /// What has been counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How long peers took to confirm what this node wrote, each since this was last asked: from a write that was not
    /// held back with an earlier one to the message that says it is applied, which may wait 100 ms for more to say.
    pub fn take_confirmation_times(&mut self) -> Vec<Duration> {
        self.confirmations.take()
    }

    /// Whether this node has once had all that some peer had: what a joiner waits for before it is ready.
    #[must_use]
    pub fn is_warm(&self) -> bool {
        self.is_warm
    }

    /// Whether the others take this life for history.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.is_fenced
    }

    /// Which members are known to have applied a write of this node.
    pub fn receipt(&self, version: Version) -> impl Iterator<Item = (&NodeId, bool)> {
        let stream = (version.store, self.state.me);
        self.peers.iter().map(move |peer| (peer.id(), peer.known(stream) >= version.version))
    }

    /// By how many of this node's writes a peer is known to be behind, over all stores; `None` for a stranger.
    #[must_use]
    pub fn lag(&self, peer: &NodeName) -> Option<u64> {
        let peer = self.peers.get(peer)?;
        let own = self.own_versions();
        Some(StoreId::ALL.iter().zip(own).fold(0, |lag, (store, version)| {
            lag + version.saturating_sub(peer.known((*store, self.state.me)))
        }))
    }

    /// How far a peer's wall clock was ahead of this node's when it last said, in milliseconds.
    #[must_use]
    pub fn wall_ahead_ms(&self, peer: &NodeName) -> Option<i64> {
        self.peers.get(peer).map(Peer::wall_ahead_ms)
    }
}

/// Saving and restoring.
impl Replication {
    /// A range of keys of `store` with all that is known about them; `None` if `after` is no key. Also what a node saves
    /// to disk: see [`Replication::restore`].
    #[must_use]
    pub fn chunk(
        &self,
        store: StoreId,
        session: u64,
        after: Option<Blob>,
    ) -> Option<SnapshotChunk> {
        snapshot::chunk(&self.state, store, session, after)
    }

    /// Takes in what this node saved in a former life: all parts of a store, in order. They count like a donor's.
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

    /// All ranges of a snapshot are merged: what its donors covered is true here too.
    fn claim(&mut self, now: Now, store: StoreId, claim: joins::Claim) {
        for (stream, stood) in snapshot::claim(&mut self.state, now, store, claim) {
            self.note_move(stream, stood);
        }
    }
}

#[cfg(test)]
mod tests;
