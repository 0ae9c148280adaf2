//! Replication: how the rows of each writer reach every node, whatever is lost, doubled, late or restarted.
//!
//! A state machine without I/O. A writer sends its new rows to every peer, coalesced per store; a peer applies a delta only
//! if it has everything before it, else it pulls. Once a second a digest goes to a random peer, which answers with what the
//! sender lacks, whoever wrote it. Who is behind collected tombstones joins a snapshot; fingerprints audit the rest. The
//! module is cut by topic: `receive` (messages in), `send` (deltas and acks out), `snapshot`, `audit`, `lives` (who carries
//! on what the dead wrote; retirement, collection), `told` (what has changed, what is counted).
//!
//! What is not guaranteed: that a write survives if its node dies before any peer has it; hints about prefixes.

mod audit;
mod lives;
pub mod message;
mod peer;
mod receive;
mod send;
mod snapshot;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;
use smg_types::ids::{NodeId, NodeName, WorkerId};
use smg_types::now::Now;
use told::Confirmations;

use crate::crdt::stamp::{HybridClock, millis};
use crate::replication::message::{ClaimsBuilder, Digest, Message};
use crate::replication::peer::{Peer, Stream};
use crate::replication::snapshot::Join;
use crate::state::stores::News;
use crate::state::table::RefusedRow;
use crate::state::writers::{StoreVersions, Writer};
use crate::state::{STORES, State, StoreId, Version, Write, prefixes};
use crate::timers::next_beat;
pub use told::{Changes, Counters};

/// Largest message body that is built: rows of a delta or of a part of a snapshot. One key's rows may exceed it.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// How often what is not urgent is looked after.
const ROUND: Duration = Duration::from_millis(250);
/// Acks wait this long for more to say.
const ACK_DELAY: Duration = Duration::from_millis(100);
/// Hints are told this often.
const HINT_DELAY: Duration = Duration::from_millis(50);
/// After somebody came or went, audits come this soon.
const AUDIT_SOON: Duration = Duration::from_secs(2);
/// What a peer lacks is served by others than its writer only once it is this old, at least: the writer's own push is
/// faster.
const SETTLE: Duration = Duration::from_millis(500);

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

#[derive(Debug, Clone, Copy, Default)]
struct Flush {
    due: Option<Duration>,
    last: Option<Duration>,
}

/// One replica: this node's rows, its copies of the others' rows, and what it must say to whom.
#[derive(Debug)]
pub struct Replication {
    me: NodeId,
    config: Config,
    state: State,
    peers: BTreeMap<NodeName, Peer>,
    forgotten: BTreeSet<NodeName>,
    flushes: [Flush; STORES],
    hints_at: Option<Duration>,
    next_round: Duration,
    next_digest: Option<Duration>,
    next_audit: Option<Duration>,
    /// Streams that moved within the last one or two settling times, each with where it stood before.
    moved: [BTreeMap<Stream, u64>; 2],
    moved_at: Duration,
    /// Streams in which a peer is ahead: how far, who, since when.
    behind: BTreeMap<Stream, (u64, NodeName, Duration)>,
    /// Streams that were asked for, until when to wait.
    asked: BTreeMap<Stream, Duration>,
    joins: BTreeMap<StoreId, Join>,
    next_session: u64,
    /// Writers that are over and whose rows up to these versions are carried on, as far as that is this node's to do.
    carried_on: BTreeMap<Writer, StoreVersions>,
    started: Duration,
    /// When a peer came up last.
    last_up: Duration,
    warm: bool,
    fenced: bool,
    /// The peer that was served last, for turns.
    turn: Option<NodeName>,
    counters: Counters,
    confirmations: Confirmations,
}

impl Replication {
    /// The replica of `me`, which knows nothing and nobody.
    #[must_use]
    pub fn new(me: NodeId, config: Config, now: Now) -> Self {
        let state = State::new(&me, config.max_ahead, config.prefixes);
        Self {
            me,
            state,
            peers: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            flushes: [Flush::default(); STORES],
            hints_at: None,
            next_round: now.mono,
            next_digest: None,
            next_audit: None,
            moved: [BTreeMap::new(), BTreeMap::new()],
            moved_at: now.mono,
            behind: BTreeMap::new(),
            asked: BTreeMap::new(),
            joins: BTreeMap::new(),
            next_session: 1,
            carried_on: BTreeMap::new(),
            started: now.mono,
            last_up: now.mono,
            warm: false,
            fenced: false,
            turn: None,
            counters: Counters::default(),
            confirmations: Confirmations::default(),
            config,
        }
    }

    /// Writes a row of this node; the version is what a receipt waits for, `None` when there was nothing to remove.
    ///
    /// # Errors
    /// The row is outside its bounds; nothing has changed.
    pub fn update(
        &mut self,
        now: Now,
        write: impl Into<Write>,
    ) -> Result<Option<Version>, RefusedRow> {
        self.skip_missed_rounds(now);
        let version = self.state.write(now, write.into())?;
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
        self.skip_missed_rounds(now);
        self.state.prefixes.served(now, worker, above, blocks);
        if self.state.prefixes.has_waiting() && self.hints_at.is_none() {
            self.hints_at = Some(now.mono + HINT_DELAY);
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
        let flush = &mut self.flushes[store.index()];
        if flush.due.is_none() {
            let earliest = flush.last.map_or(Duration::ZERO, |last| last + store.coalescing());
            flush.due = Some(now.mono.max(earliest));
            if self.peers.values().any(|peer| peer.up) {
                let version = self.state.replica(store).applied(self.state.me);
                self.confirmations.wrote(store, version, now.mono);
            }
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

    /// A peer can be reached, perhaps in a new life: it and this node say how far they are.
    pub fn peer_up(&mut self, now: Now, id: &NodeId) {
        self.skip_missed_rounds(now);
        if id.name == self.me.name {
            return;
        }
        let Some(writer) = self.state.writers.intern(id) else {
            self.counters.refused_messages += 1;
            return;
        };
        if let Some(peer) = self.peers.get(&id.name)
            && peer.id.generation > id.generation
        {
            return;
        }
        self.forgotten.remove(&id.name);
        let former = self.peers.get(&id.name).map(|peer| (peer.id.clone(), peer.writer));
        if former.as_ref().is_none_or(|(known, _)| known != id) {
            self.peers.insert(id.name.clone(), Peer::new(id.clone(), writer));
        }
        self.state.writers.set_down(writer, false);
        let first = !self.peers.values().any(|peer| peer.up);
        let peer = self.peers.get_mut(&id.name).expect("just inserted");
        if peer.up {
            return;
        }
        peer.up = true;
        self.last_up = now.mono;
        peer.credit = CHUNK_BYTES;
        peer.audit = Some((now.mono + AUDIT_SOON, AUDIT_SOON));
        // The first peer is asked for everything; of the others only their own rows, or each would send everything.
        let digest = self.greeting(now, first);
        let mut dropped = 0;
        let is_over = self.state.writers.is_over(writer);
        let retired = is_over.then(|| self.retired_message(&[writer]));
        if let Some(peer) = self.peers.get_mut(&id.name) {
            dropped += peer.say(Message::Digest(digest));
            if first && self.state.prefixes.is_empty() {
                dropped += peer.say(Message::HotSetRequest);
            }
            if let Some(retired) = retired {
                dropped += peer.say(retired);
            }
        }
        self.counters.dropped_messages += dropped;
    }

    /// A peer can't be reached. What it measured is hidden, what it decided stays.
    pub fn peer_down(&mut self, now: Now, id: &NodeId) {
        self.skip_missed_rounds(now);
        if id.name != self.me.name
            && !self.peers.contains_key(&id.name)
            && let Some(writer) = self.state.writers.intern(id)
        {
            // A joiner hears of members that it never met. It waits for their acks like everybody else: what it collects
            // without them, the others collect after it.
            self.peers.insert(id.name.clone(), Peer::new(id.clone(), writer));
        }
        if let Some(peer) = self.peers.get_mut(&id.name)
            && peer.id == *id
        {
            peer.cut();
        }
        // What it has not confirmed is not measured: it may be away for an hour.
        for store in StoreId::ALL {
            let stream = (store, self.state.me);
            let up = self.peers.values().filter(|peer| peer.up);
            let all = up.map(|peer| peer.known(stream)).min();
            self.confirmations.settle(store, all.unwrap_or(u64::MAX));
        }
        if let Some(writer) = self.state.writers.number(id) {
            self.state.writers.set_down(writer, true);
        }
        for peer in self.peers.values_mut().filter(|peer| peer.up) {
            peer.audit = Some((now.mono + AUDIT_SOON, AUDIT_SOON));
        }
    }

    /// A peer is gone for good: nobody waits for its acks any more, and the lowest living name adopts what it decided.
    pub fn peer_forgotten(&mut self, now: Now, id: &NodeId) {
        self.peer_down(now, id);
        if self.peers.get(&id.name).is_none_or(|peer| peer.id == *id) {
            // Also one that never was a peer here: its rows came from others, and it was gone before this node came.
            self.peers.remove(&id.name);
            self.forgotten.insert(id.name.clone());
        }
        if let Some(writer) = self.state.writers.number(id) {
            self.state.writers.end(writer);
        }
    }

    /// Whether a peer has retired `writer`.
    pub(crate) fn is_history_elsewhere(&self, writer: Writer) -> bool {
        self.peers.values().any(|peer| peer.retired.contains(&writer))
    }

    /// All members but this one that are not forgotten, each with whether it can be reached.
    pub fn members(&self) -> impl Iterator<Item = (&NodeId, bool)> {
        self.peers.values().map(|peer| (&peer.id, peer.up))
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
            self.fenced = false;
            self.carried_on.clear();
            self.flushes = [Flush::default(); STORES];
            self.confirmations.begin_life();
            for peer in self.peers.values_mut() {
                peer.cut();
            }
            self.next_round = now.mono;
        }
    }

    /// Looks after everything that time brings: call it when [`Replication::next_deadline`] has come.
    pub fn handle_tick(&mut self, now: Now, rng: &mut dyn Rng) -> Changes {
        let mut changes = Changes::default();
        let before = self.own_versions();
        if now.mono >= self.next_round {
            self.next_round = now.mono + ROUND;
            changes = self.round(now);
        }
        let jitter = |rng: &mut dyn Rng, interval: Duration| {
            let nanos = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1);
            Duration::from_nanos(rng.next_u64() % nanos)
        };
        if !self.peers.values().any(|peer| peer.up) {
            self.next_digest = None;
            self.next_audit = None;
        } else {
            let interval = self.config.digest_interval;
            let due = self.next_digest.get_or_insert_with(|| now.mono + jitter(rng, interval));
            if now.mono >= *due {
                *due = now.mono + interval;
                let digest = self.digest(now, true);
                self.say_to_any(Message::Digest(digest), rng);
            }
            let interval = self.config.audit_interval;
            let due =
                self.next_audit.get_or_insert_with(|| now.mono + interval + jitter(rng, interval));
            if now.mono >= *due {
                *due = now.mono + interval + jitter(rng, interval);
                self.audit_any(now, rng);
                changes = changes.and(self.release(now));
            }
        }
        if self.hints_at.is_some_and(|at| now.mono >= at) {
            self.tell_hints(now);
        }
        self.announce_moved(now, before);
        changes
    }

    /// When [`Replication::handle_tick`] or [`Replication::poll_transmit`] has something to do next, by the monotonic
    /// clock. `None`: not before another call changes something.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let flushes = self.flushes.iter().filter_map(|flush| flush.due);
        let acks = self.peers.values().filter_map(|peer| peer.ack_at);
        let round = (!self.is_at_rest()).then_some(self.next_round);
        let timers = [self.next_digest, self.next_audit, self.hints_at, round];
        flushes.chain(acks).chain(timers.into_iter().flatten()).min()
    }

    /// Whether the passing of time changes nothing here: this node has no peers, knows no other writer, and holds no
    /// tombstone, no hint and no row that expires. A node at rest needs no rounds, so a router alone is not woken.
    fn is_at_rest(&self) -> bool {
        self.peers.is_empty()
            && self.joins.is_empty()
            && self.state.prefixes.is_empty()
            && self.state.writers.current().all(|(writer, _)| writer == self.state.me)
            && StoreId::ALL.iter().all(|store| !self.state.replica(*store).changes_with_time())
    }

    /// If this node is at rest, moves its next round to the beat that the rounds would have kept. Call this before what
    /// may end the rest.
    fn skip_missed_rounds(&mut self, now: Now) {
        if self.is_at_rest() {
            self.next_round = next_beat(self.next_round, ROUND, now.mono);
        }
    }

    fn any_up(&self, rng: &mut dyn Rng) -> Option<NodeName> {
        let up: Vec<&NodeName> =
            self.peers.iter().filter(|(_, peer)| peer.up).map(|(name, _)| name).collect();
        let count = u64::try_from(up.len()).unwrap_or(u64::MAX);
        let at = usize::try_from(rng.next_u64().checked_rem(count)?).ok()?;
        up.get(at).map(|name| (*name).clone())
    }

    fn say(&mut self, to: &NodeName, message: Message) {
        if let Some(peer) = self.peers.get_mut(to)
            && peer.up
        {
            self.counters.dropped_messages += peer.say(message);
        }
    }

    fn say_to_any(&mut self, message: Message, rng: &mut dyn Rng) {
        if let Some(name) = self.any_up(rng) {
            self.say(&name, message);
        }
    }

    fn tell_hints(&mut self, now: Now) {
        let runs = self.state.prefixes.flush();
        self.hints_at = self.state.prefixes.has_waiting().then(|| now.mono + HINT_DELAY);
        if runs.is_empty() {
            return;
        }
        for peer in self.peers.values_mut().filter(|peer| peer.up) {
            self.counters.dropped_messages += peer.say(Message::Hints(runs.clone()));
        }
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

    /// Rows that arrived long enough ago that their writer's own push must have reached everybody that it can reach.
    fn settled(&self, stream: Stream) -> u64 {
        let before = self.moved[1].get(&stream).or_else(|| self.moved[0].get(&stream));
        before.copied().unwrap_or_else(|| self.state.replica(stream.0).applied(stream.1))
    }

    /// What looks after itself: four times a second, in time proportional to streams that moved, not to rows.
    fn round(&mut self, now: Now) -> Changes {
        let mut changes = Changes::default();
        if now.mono >= self.moved_at + SETTLE {
            self.moved_at = now.mono;
            self.moved[1] = std::mem::take(&mut self.moved[0]);
        }
        for store in StoreId::ALL {
            let (table, _) = self.state.replica_mut(store, now);
            let expired = table.expire(now);
            changes.touch(store, expired);
        }
        self.state.prefixes.expire(now, 4096);
        self.retry(now);
        self.pull_what_is_missing(now);
        self.look_after_joins(now);
        changes = changes.and(self.look_after_lives(now));
        self.collect(now);
        self.audit_soon(now);
        let refill = self.config.repair_bytes_per_second / 4;
        for peer in self.peers.values_mut() {
            peer.credit = (peer.credit + refill).min(refill.max(CHUNK_BYTES));
        }
        if !self.warm {
            self.warm = self.is_level_with_somebody();
        }
        changes
    }

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
        self.warm
    }

    /// Whether the others take this life for history.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Which members are known to have applied a write of this node.
    pub fn receipt(&self, version: Version) -> impl Iterator<Item = (&NodeId, bool)> {
        let stream = (version.store, self.state.me);
        self.peers.values().map(move |peer| (&peer.id, peer.known(stream) >= version.version))
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
        self.peers.get(peer).map(|peer| peer.wall_ahead_ms)
    }

    fn is_level_with_somebody(&self) -> bool {
        self.peers.values().any(|peer| peer.up && self.has_all_of(peer))
    }

    /// Whether everything that a peer said it has is here, as far as it still means something.
    fn has_all_of(&self, peer: &Peer) -> bool {
        let writers = &self.state.writers;
        peer.greeted
            && peer.known.iter().all(|((store, writer), known)| {
                *writer == self.state.me
                    || (store.ends_with_writer() && writers.is_over(*writer))
                    || self.state.replica(*store).applied(*writer) >= *known
            })
    }
}

#[cfg(test)]
mod tests;
