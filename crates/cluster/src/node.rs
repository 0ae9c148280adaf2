//! A node: one router's part in the cluster. It combines membership and replication, and owns what passes between them.
//!
//! Frames of membership go to `membership` and frames of replication to `replication`, if they are meant for this
//! generation of the node. What membership reports of other nodes goes to replication, and when replication finds that
//! peers have retired this generation, membership begins a later one. Events of both wait here for the driver.

mod disk;
mod lease_part;
mod leases;
mod upkeep;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use smg_types::ids::{Generation, NodeId, NodeName, WorkerId};
use smg_types::now::Now;

use crate::codec::{self, ClusterId, Frame, Kind, PayloadError};
use crate::membership::{
    self, ConfigError, Identity, MemberState, MemberView, Membership, Transition,
};
use crate::replication::message::Message;
use crate::replication::{self, Changes, Replication};
use crate::state::stores::ChangedKeys;
use crate::state::table::RefusedRow;
use crate::state::{State, Version, Write};

/// Events that wait for `poll_event`, which a driver drains after each input. Beyond, the oldest are dropped and
/// counted, so a reader of events must compare with the whole list of members from time to time.
const MAX_EVENTS: usize = 16 * 1024;

pub use lease_part::NodeLeases;

/// Settings of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The id of the cluster: frames of other clusters are refused.
    pub cluster: ClusterId,
    /// Settings of membership: probes, suspicion, joining.
    pub membership: membership::Config,
    /// Settings of replication: digests, audits, budgets.
    pub replication: replication::Config,
}

/// A change that a driver may want to know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// This node's own state or that of another member has changed.
    Membership(membership::Event),
    /// Rows or hints have changed, by a message or by the passing of time.
    Changed(Changes),
}

/// The connection that a frame travels on. State has one of its own, so that it never delays a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Frames of membership: small and urgent.
    Swim,
    /// Frames of replication: they may be large.
    State,
}

/// A frame to send. The link may drop it: whatever matters is sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// The address to send it to.
    pub to: SocketAddr,
    /// The node at that address; `None` for a join probe, whose receiver is not known yet.
    pub peer: Option<NodeName>,
    /// The connection to send it on.
    pub lane: Lane,
    /// The kind of message, from a closed set: for metrics.
    pub kind: &'static str,
    /// The whole frame, at most [`codec::MAX_FRAME_BYTES`] long.
    pub bytes: Vec<u8>,
}

/// Counts of frames since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameCounters {
    /// Frames that were handled.
    pub taken: u64,
    /// Frames of a kind, or with flags, of a later minor version: skipped.
    pub unknown_kind: u64,
    /// Frames of another major version: refused.
    pub unknown_version: u64,
    /// Frames with a wrong length or checksum.
    pub corrupted: u64,
    /// Frames whose payload can't be decoded as what their kind says.
    pub undecodable: u64,
    /// State messages to or from another generation, or from a node that is not a member.
    pub misdirected: u64,
    /// Messages that would not fit a frame and were not sent.
    pub oversized: u64,
    /// Events that were dropped because nobody took them.
    pub dropped_events: u64,
}

/// A message of one replica to another. It names both, because an address may have passed to another node.
#[derive(Debug, Serialize, Deserialize)]
struct Envelope {
    from: NodeId,
    to: NodeId,
    message: Message,
}

/// One router's part in the cluster.
#[derive(Debug)]
pub struct Node {
    cluster: ClusterId,
    membership: Membership,
    replication: Replication,
    rng: StdRng,
    events: VecDeque<Event>,
    frames: FrameCounters,
    /// Frames handled, by kind.
    received: BTreeMap<&'static str, u64>,
    /// When to compare writers and peers with the members next.
    compare_at: Duration,
    /// Writers that have not ended and whose names membership does not list, and since when.
    unlisted: BTreeMap<NodeId, Duration>,
    /// Members that are present although a later generation of their name is known, and since when.
    outdated: BTreeMap<NodeId, Duration>,
    /// The leases, once they are started.
    leases: Option<lease_part::LeasePart>,
    /// How long the machine has been suspended since the start of the process.
    suspended: Duration,
    /// The time of the last input, which is the time of what is sent after it.
    now: Now,
}

impl Node {
    /// A node called `name` that is reached at `address`. Its `generation` must be higher than that of any earlier
    /// process of that name: see [`membership::generation_at`].
    ///
    /// # Errors
    ///
    /// All that is wrong with the configuration.
    pub fn try_new(
        config: Config,
        name: NodeName,
        generation: Generation,
        address: SocketAddr,
        now: Now,
        rng: &mut dyn Rng,
    ) -> Result<Self, Vec<ConfigError>> {
        let identity = Identity { name, generation, renewal: 0, address };
        let me = identity.node();
        let membership =
            Membership::try_new(config.membership, config.cluster, identity, now, rng)?;
        Ok(Self {
            cluster: config.cluster,
            membership,
            replication: Replication::new(me, config.replication, now),
            rng: StdRng::from_rng(rng),
            events: VecDeque::new(),
            frames: FrameCounters::default(),
            received: BTreeMap::new(),
            compare_at: now.mono,
            unlisted: BTreeMap::new(),
            outdated: BTreeMap::new(),
            leases: None,
            suspended: Duration::ZERO,
            now,
        })
    }

    /// Handles a frame that came from `from`. Whatever is wrong with it is counted; no frame stops a node.
    pub fn handle_frame(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) {
        self.now = now;
        let frame = match Frame::read(bytes) {
            Ok(frame) => frame,
            Err(error) => return self.count_refused(error),
        };
        let is_own = frame.cluster == self.cluster;
        let handled = match frame.kind {
            Kind::State if is_own => self.handle_state_message(now, &frame),
            Kind::Lease if is_own => self.handle_lease_message(now, &frame),
            kind => {
                *self.received.entry(kind.name()).or_default() += 1;
                self.membership.handle_frame(now, from, &frame)
            }
        };
        match handled {
            Ok(()) => self.frames.taken += 1,
            Err(error) => {
                self.frames.undecodable += 1;
                tracing::debug!(%error, kind = ?frame.kind, %from, "frame refused");
            }
        }
        self.apply_membership_events(now);
    }

    /// Does what is due. Call it when [`Node::next_deadline`] has come.
    pub fn handle_timeout(&mut self, now: Now) {
        self.now = now;
        self.membership.handle_timeout(now);
        self.apply_membership_events(now);
        let is_due = self.replication.next_deadline().is_some_and(|at| at <= now.mono);
        if self.exchanges_state() && is_due {
            let changes = self.replication.handle_tick(now, &mut self.rng);
            self.apply_changes(now, changes);
        }
        self.handle_lease_timeout(now);
        if now.mono >= self.compare_at {
            self.compare_at = now.mono + Duration::from_secs(1);
            self.end_unlisted_writers(now);
            self.connect_missing_peers(now);
        }
    }

    /// Writes a row. Returns its version, which a receipt waits for; `None` when there was nothing to remove.
    ///
    /// # Errors
    ///
    /// The row is outside of its bounds; nothing has changed.
    pub fn update(
        &mut self,
        now: Now,
        write: impl Into<Write>,
    ) -> Result<Option<Version>, RefusedRow> {
        self.now = now;
        self.replication.update(now, write)
    }

    /// Records that `worker` served a prompt with these chained blocks; the first follows the block `above` (0: it is
    /// the first of the prompt). The hint is sent to the peers within 50 ms.
    pub fn served(&mut self, now: Now, worker: WorkerId, above: u64, blocks: &[u64]) {
        self.now = now;
        self.replication.served_below(now, worker, above, blocks);
    }

    /// Drops all hints about a worker that left or restarted with a cold cache, and ignores those that peers made before now.
    pub fn forget_prefixes(&mut self, now: Now, worker: WorkerId) {
        self.now = now;
        self.replication.forget_prefixes(now, worker);
    }

    /// Keeps the keys that change from now on for [`Node::take_changed_keys`].
    pub fn track_changed_keys(&mut self) {
        self.replication.track_changed_keys();
    }

    /// The keys under which something has changed since this was last called, whether this node or another one changed
    /// it.
    pub fn take_changed_keys(&mut self) -> ChangedKeys {
        self.replication.take_changed_keys()
    }

    /// The times that peers took to confirm what this node wrote: see [`Replication::take_confirmation_times`].
    pub fn take_confirmation_times(&mut self) -> Vec<Duration> {
        self.replication.take_confirmation_times()
    }

    /// When to call `handle_timeout` next, by the monotonic clock. `None`: not before another call, because this node has
    /// left, or it is alone and nothing that it holds changes with time.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let exchanges_state = self.exchanges_state();
        let replication = exchanges_state.then(|| self.replication.next_deadline()).flatten();
        let leases = self.lease_deadline();
        self.membership.next_deadline().into_iter().chain(replication).chain(leases).min()
    }

    /// The next frame to send. Frames of membership come first.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        if let Some(outgoing) = self.membership.poll_transmit() {
            let membership::Outgoing { to, peer, bytes } = outgoing;
            let kind = codec::kind_of(&bytes).map_or("unknown", Kind::name);
            return Some(Transmit { to, peer, lane: Lane::Swim, kind, bytes });
        }
        if let Some(transmit) = self.poll_lease_transmit() {
            return Some(transmit);
        }
        while self.exchanges_state()
            && let Some((to, message, _urgency)) = self.replication.poll_transmit(self.now)
        {
            let Some(address) = self.membership.address_of(&to) else {
                self.frames.misdirected += 1;
                continue;
            };
            let from = self.replication.me().clone();
            let peer = Some(to.name.clone());
            let kind = message.kind();
            let payload = codec::encode(&Envelope { from, to, message });
            if payload.len() > codec::MAX_FRAME_BYTES - codec::HEADER_BYTES {
                self.frames.oversized += 1;
                continue;
            }
            let bytes = codec::frame(Kind::State, self.cluster, &payload);
            return Some(Transmit { to: address, peer, lane: Lane::State, kind, bytes });
        }
        None
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The time of the cluster when the clocks of this node show `reading`: see [`Replication::cluster_time`]. All other
    /// methods take the time of the cluster, so a driver calls this for each reading of its clocks.
    pub fn cluster_time(&mut self, reading: Now) -> Now {
        self.replication.cluster_time(reading)
    }

    /// Takes the addresses of other routers, each time that their names were resolved: see [`Membership::join`].
    pub fn join(&mut self, now: Now, addresses: &[SocketAddr]) {
        self.now = now;
        self.membership.join(now, addresses);
        self.apply_membership_events(now);
    }

    /// Announces to all members that this node is leaving. It stays a member until `depart`.
    pub fn leave(&mut self, now: Now) {
        self.now = now;
        self.leave_leases(now);
        self.membership.leave(now);
        self.apply_membership_events(now);
    }

    /// Leaves. Frames that are waiting may still be sent; nothing is handled any more.
    pub fn depart(&mut self, now: Now) {
        self.now = now;
        self.membership.depart(now);
        self.apply_membership_events(now);
    }

    /// Goes on at another address.
    pub fn readdress(&mut self, now: Now, address: SocketAddr) {
        self.now = now;
        self.membership.readdress(now, address);
        self.apply_membership_events(now);
    }

    /// This node as a member.
    #[must_use]
    pub fn me(&self) -> MemberView {
        self.membership.me()
    }

    /// The other members that are listed, by name.
    pub fn members(&self) -> impl Iterator<Item = MemberView> {
        self.membership.members()
    }

    /// The membership, for reading.
    #[must_use]
    pub const fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The replicated state, as far as this node has it.
    #[must_use]
    pub fn state(&self) -> &State {
        self.replication.state()
    }

    /// The replication, for reading.
    #[must_use]
    pub const fn replication(&self) -> &Replication {
        &self.replication
    }

    /// Counts of frames since the process started.
    #[must_use]
    pub const fn frames(&self) -> FrameCounters {
        self.frames
    }

    /// Frames handled since the process started, by kind from a closed set: for metrics.
    #[must_use]
    pub const fn received(&self) -> &BTreeMap<&'static str, u64> {
        &self.received
    }

    /// Whether state is exchanged. A node that has left does not, nor one that was refused its name, because it must
    /// not write under that name.
    fn exchanges_state(&self) -> bool {
        self.membership.refused().is_none() && !self.membership.has_departed()
    }

    fn handle_state_message(&mut self, now: Now, frame: &Frame<'_>) -> Result<(), PayloadError> {
        let Envelope { from, to, message } = frame.decode()?;
        if to != *self.replication.me() || !self.exchanges_state() {
            self.frames.misdirected += 1;
            return Ok(());
        }
        *self.received.entry(message.kind()).or_default() += 1;
        let changes = self.replication.handle_message(now, &from, message);
        self.apply_changes(now, changes);
        Ok(())
    }

    fn apply_membership_events(&mut self, now: Now) {
        while let Some(event) = self.membership.poll_event() {
            match &event {
                membership::Event::Member(transition) => self.apply_transition(now, transition),
                membership::Event::NewGeneration { is, .. } => {
                    self.replication.begin_generation(now, is.clone());
                    // That has disconnected all peers, but none of them has gone.
                    let present = self.membership.members().filter(|m| m.state.is_present());
                    for member in present {
                        self.replication.peer_up(now, &member.node);
                    }
                }
                membership::Event::OwnState { .. }
                | membership::Event::Renewed(_)
                | membership::Event::Refused(_)
                | membership::Event::NameContested(_) => {}
            }
            self.push_event(Event::Membership(event));
        }
        self.follow_members(now);
    }

    fn apply_transition(&mut self, now: Now, transition: &Transition) {
        let Transition { node, to, .. } = transition;
        match to {
            Some(MemberState::Alive | MemberState::Suspected | MemberState::Leaving) => {
                self.replication.peer_up(now, node);
            }
            Some(MemberState::Down) => self.replication.peer_down(now, node),
            Some(MemberState::Init) => {}
            // A later generation of the same name adopts what this one wrote.
            None if self.membership.lists(&node.name) => self.replication.peer_down(now, node),
            None => self.replication.peer_forgotten(now, node),
        }
    }

    fn apply_changes(&mut self, now: Now, changes: Changes) {
        if changes.fenced || changes.conflict {
            // Below a generation that peers know, the new one would have ended at once.
            let writers = self.replication.state().writers();
            let known = writers.later_generation(self.replication.me());
            self.membership.begin_generation(now, known);
            self.apply_membership_events(now);
        }
        if !changes.is_empty() {
            self.push_event(Event::Changed(changes));
        }
    }

    fn push_event(&mut self, event: Event) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
            self.frames.dropped_events += 1;
        }
        self.events.push_back(event);
    }
}

#[cfg(test)]
mod tests;
