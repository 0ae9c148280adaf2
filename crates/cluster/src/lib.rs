//! What makes routers agree, without a socket: who is in the cluster, and what they know together.
//!
//! Everything here is a state machine: frames, time and commands in (`handle_*`), frames and events out (`poll_*`).
//! [`Node`] puts them together; `mesh` owns the sockets and the clock, `tests/sim` plays both.
//!
//! A driver's loop is: feed one input, then drain `poll_transmit` and `poll_event`, then wait until `next_deadline`.
//!
//! The two parts don't know each other. Membership says who can be reached, replication keeps up with those; and when
//! replication finds that the others take this life for history, membership begins another.

pub mod codec;
pub mod crdt;
pub mod membership;
pub mod replication;
pub mod state;
pub mod timers;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use smg_types::ids::{Generation, NodeId, NodeName, WorkerId};
use smg_types::now::Now;

use crate::codec::{ClusterId, Frame, FrameError, Kind, PayloadError};
use crate::membership::{ConfigError, Identity, MemberState, MemberView, Membership, Transition};
use crate::replication::message::Message;
use crate::replication::{Changes, Replication};
use crate::state::news::News;
use crate::state::table::RefusedRow;
use crate::state::{State, Version, Write};

/// Most events that wait for `poll_event`; it is drained after each call. The oldest are dropped and counted: whoever
/// follows events must look at the whole from time to time.
const MAX_EVENTS: usize = 16 * 1024;

/// How a node behaves.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Frames of other clusters are refused.
    pub cluster: ClusterId,
    /// Probing, suspicion, knocking.
    pub membership: membership::Config,
    /// Digests, audits, budgets.
    pub replication: replication::Config,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// To this node's place in the cluster, or to another member.
    Membership(membership::Event),
    /// Rows came in: something that was read before may read otherwise now.
    Changed(Changes),
}

/// Which connection a frame travels on: state must never delay a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Small and urgent: the membership's.
    Swim,
    /// Bulk.
    State,
}

/// A frame to send. It may be lost: whatever matters is repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// To whom; unknown while knocking at a join address.
    pub peer: Option<NodeName>,
    /// On which connection.
    pub lane: Lane,
    /// What it is, from a closed set: for metrics.
    pub kind: &'static str,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// What was refused at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameCounters {
    /// Frames that were taken.
    pub taken: u64,
    /// Frames of a later minor version's kind: skipped.
    pub unknown_kind: u64,
    /// Frames of another major version: refused.
    pub unknown_version: u64,
    /// Frames that are not what was sent, or not frames at all.
    pub corrupted: u64,
    /// Frames whose payload is not what their kind says.
    pub undecodable: u64,
    /// State from or for another life, or from somebody who is no member.
    pub misdirected: u64,
    /// Messages that would not fit a frame.
    pub oversized: u64,
    /// Events dropped because nobody took them.
    pub dropped_events: u64,
}

/// A message of one replica to another. Both are named, for an address may have passed to somebody else.
#[derive(Debug, Serialize, Deserialize)]
struct Letter {
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
    /// Frames taken, by what they were.
    received: BTreeMap<&'static str, u64>,
    /// When to look for writers that are history again.
    look_at: Duration,
    /// The time of the last input: what is sent is sent at that time.
    now: Now,
}

impl Node {
    /// A node called `name`, reached at `address`, in the life `generation`, which must be larger than that of any of
    /// its earlier lives: see [`membership::generation_at`].
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
            look_at: now.mono,
            now,
        })
    }

    /// Feeds a frame that came from `from`. Whatever is wrong with it is counted; nothing foreign stops a node.
    pub fn handle_frame(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) {
        self.now = now;
        let frame = match Frame::read(bytes) {
            Ok(frame) => frame,
            Err(error) => return self.count(error),
        };
        let handled = if frame.kind == Kind::State && frame.cluster == self.cluster {
            self.handle_letter(now, &frame)
        } else {
            *self.received.entry(frame.kind.name()).or_default() += 1;
            self.membership.handle_frame(now, from, &frame)
        };
        match handled {
            Ok(()) => self.frames.taken += 1,
            Err(error) => {
                self.frames.undecodable += 1;
                tracing::debug!(%error, kind = ?frame.kind, %from, "frame refused");
            }
        }
        self.follow_membership(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        self.now = now;
        self.membership.handle_timeout(now);
        self.follow_membership(now);
        if self.is_in_touch() && self.replication.next_deadline() <= now.mono {
            let changes = self.replication.handle_tick(now, &mut self.rng);
            self.follow_replication(now, changes);
        }
        if now.mono >= self.look_at {
            self.look_at = now.mono + Duration::from_secs(1);
            self.end_unlisted_writers(now);
        }
    }

    /// Writes a row; the version is what a receipt waits for, `None` when there was nothing to remove.
    ///
    /// # Errors
    ///
    /// The row is outside its bounds; nothing has changed.
    pub fn update(&mut self, now: Now, write: Write) -> Result<Option<Version>, RefusedRow> {
        self.now = now;
        self.replication.update(now, write)
    }

    /// Learns that `worker` served a prompt with these chained blocks, of which the first hangs below `above` (0: it is the
    /// head), and tells the others soon.
    pub fn served(&mut self, now: Now, worker: WorkerId, above: u64, blocks: &[u64]) {
        self.now = now;
        self.replication.served_below(now, worker, above, blocks);
    }

    /// Forgets all hints at a worker that left or came back with a cold cache.
    pub fn forget_prefixes(&mut self, worker: WorkerId) {
        self.replication.forget_prefixes(worker);
    }

    /// From now on what changes is kept for [`Node::take_news`].
    pub fn follow(&mut self) {
        self.replication.follow();
    }

    /// What has changed since this was last asked, whoever changed it: this node too.
    pub fn take_news(&mut self) -> News {
        self.replication.take_news()
    }

    /// How long the others took to confirm what this node wrote: see [`Replication::take_confirmation_times`].
    pub fn take_confirmation_times(&mut self) -> Vec<Duration> {
        self.replication.take_confirmation_times()
    }

    /// When to call `handle_timeout` next, by the monotonic clock; `None` once it has left.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let membership = self.membership.next_deadline()?;
        let replication = self.is_in_touch().then(|| self.replication.next_deadline());
        Some(replication.map_or(membership, |replication| replication.min(membership)))
    }

    /// The next frame to send: the membership's first.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        if let Some(outgoing) = self.membership.poll_transmit() {
            let membership::Outgoing { to, peer, bytes } = outgoing;
            let kind = codec::kind_of(&bytes).map_or("unknown", Kind::name);
            return Some(Transmit { to, peer, lane: Lane::Swim, kind, bytes });
        }
        while self.is_in_touch()
            && let Some((to, message, _urgency)) = self.replication.poll_transmit(self.now)
        {
            let Some(address) = self.membership.address_of(&to) else {
                self.frames.misdirected += 1;
                continue;
            };
            let from = self.replication.me().clone();
            let peer = Some(to.name.clone());
            let kind = message.kind();
            let payload = codec::encode(&Letter { from, to, message });
            if payload.len() > codec::MAX_FRAME_BYTES - codec::HEADER_BYTES {
                self.frames.oversized += 1;
                continue;
            }
            let bytes = codec::frame(Kind::State, self.cluster, &payload);
            return Some(Transmit { to: address, peer, lane: Lane::State, kind, bytes });
        }
        None
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Tells where others may be, each time that was found out; see [`Membership::join`].
    pub fn join(&mut self, now: Now, addresses: &[SocketAddr]) {
        self.now = now;
        self.membership.join(now, addresses);
        self.follow_membership(now);
    }

    /// Tells everybody that this node will go. It goes on as a member until `depart`.
    pub fn leave(&mut self, now: Now) {
        self.now = now;
        self.membership.leave(now);
        self.follow_membership(now);
    }

    /// Leaves and falls silent; what is to be sent is still to be sent.
    pub fn depart(&mut self, now: Now) {
        self.now = now;
        self.membership.depart(now);
        self.follow_membership(now);
    }

    /// Goes on at another address.
    pub fn readdress(&mut self, now: Now, address: SocketAddr) {
        self.now = now;
        self.membership.readdress(now, address);
        self.follow_membership(now);
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

    /// The membership, to look at.
    #[must_use]
    pub const fn membership(&self) -> &Membership {
        &self.membership
    }

    /// What the nodes agree on, as far as this one knows.
    #[must_use]
    pub fn state(&self) -> &State {
        self.replication.state()
    }

    /// The replication, to look at.
    #[must_use]
    pub const fn replication(&self) -> &Replication {
        &self.replication
    }

    /// What was refused at the door.
    #[must_use]
    pub const fn frames(&self) -> FrameCounters {
        self.frames
    }

    /// Frames received since the start, by what they were: a closed set, for metrics.
    #[must_use]
    pub const fn received(&self) -> &BTreeMap<&'static str, u64> {
        &self.received
    }

    /// Whether state is exchanged: not by who has left, nor by who was refused its name and must not write under it.
    fn is_in_touch(&self) -> bool {
        self.membership.refused().is_none() && !self.membership.has_departed()
    }

    fn handle_letter(&mut self, now: Now, frame: &Frame<'_>) -> Result<(), PayloadError> {
        let Letter { from, to, message } = frame.decode()?;
        if to != *self.replication.me() || !self.is_in_touch() {
            self.frames.misdirected += 1;
            return Ok(());
        }
        *self.received.entry(message.kind()).or_default() += 1;
        let changes = self.replication.handle_message(now, &from, message);
        self.follow_replication(now, changes);
        Ok(())
    }

    fn follow_membership(&mut self, now: Now) {
        while let Some(event) = self.membership.poll_event() {
            match &event {
                membership::Event::Member(transition) => self.follow_member(now, transition),
                membership::Event::Reborn { is, .. } => {
                    self.replication.begin_generation(now, is.clone());
                    // All ties are cut by that; none of the others has gone.
                    let present = self.membership.members().filter(|m| m.state.is_present());
                    for member in present {
                        self.replication.peer_up(now, &member.node);
                    }
                }
                membership::Event::Me { .. }
                | membership::Event::Renewed(_)
                | membership::Event::Refused(_)
                | membership::Event::NameContested(_) => {}
            }
            self.tell(Event::Membership(event));
        }
    }

    fn follow_member(&mut self, now: Now, transition: &Transition) {
        let Transition { node, to, .. } = transition;
        match to {
            Some(MemberState::Alive | MemberState::Suspected | MemberState::Leaving) => {
                self.replication.peer_up(now, node);
            }
            Some(MemberState::Down) => self.replication.peer_down(now, node),
            Some(MemberState::Init) => {}
            // Another life of the same name takes over what this one wrote.
            None if self.membership.lists(&node.name) => self.replication.peer_down(now, node),
            None => self.replication.peer_forgotten(now, node),
        }
    }

    fn follow_replication(&mut self, now: Now, changes: Changes) {
        if changes.fenced || changes.conflict {
            self.membership.begin_generation(now);
            self.follow_membership(now);
        }
        if !changes.is_empty() {
            self.tell(Event::Changed(changes));
        }
    }

    /// A joiner is given rows of nodes that left before it came, and no goodbye of them. That others call them history
    /// while they are no members here is enough; that they are no members is not, for who is down may be unknown here.
    fn end_unlisted_writers(&mut self, now: Now) {
        let writers = self.replication.state().writers();
        let me = &self.replication.me().name;
        let unlisted: Vec<NodeId> = writers
            .current()
            .filter(|(writer, id)| {
                id.name != *me
                    && !writers.is_over(*writer)
                    && !self.membership.lists(&id.name)
                    && self.replication.is_retired_by_a_peer(*writer)
            })
            .map(|(_, id)| id.clone())
            .collect();
        for id in unlisted {
            self.replication.peer_forgotten(now, &id);
        }
    }

    fn tell(&mut self, event: Event) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
            self.frames.dropped_events += 1;
        }
        self.events.push_back(event);
    }

    fn count(&mut self, error: FrameError) {
        match error {
            FrameError::UnknownKind(_) | FrameError::UnknownFlags(_) => {
                self.frames.unknown_kind += 1;
            }
            FrameError::Version { .. } => self.frames.unknown_version += 1,
            FrameError::TooShort(_)
            | FrameError::TooLong(_)
            | FrameError::Length { .. }
            | FrameError::Checksum => self.frames.corrupted += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLUSTER: ClusterId = ClusterId(7);

    fn node(name: &str, host: u8) -> Node {
        let config = Config {
            cluster: CLUSTER,
            membership: membership::Config::lan(),
            replication: replication::Config::default(),
        };
        let address = address(host);
        let mut rng = StdRng::seed_from_u64(u64::from(host));
        let name = name.parse().unwrap();
        Node::try_new(config, name, Generation(u64::from(host)), address, now(), &mut rng).unwrap()
    }

    fn address(host: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], 39527))
    }

    fn now() -> Now {
        Now::at(Duration::from_secs(1_000_000))
    }

    /// Frames that two nodes exchange until they fall silent.
    fn exchange(a: &mut Node, b: &mut Node) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let before = frames.len();
            while let Some(transmit) = a.poll_transmit() {
                b.handle_frame(now(), address(1), &transmit.bytes);
                frames.push(transmit.bytes);
            }
            while let Some(transmit) = b.poll_transmit() {
                a.handle_frame(now(), address(2), &transmit.bytes);
                frames.push(transmit.bytes);
            }
            if frames.len() == before {
                return frames;
            }
        }
    }

    fn pair() -> (Node, Node, Vec<Vec<u8>>) {
        let (mut a, mut b) = (node("a", 1), node("b", 2));
        a.join(now(), &[]);
        b.join(now(), &[address(1)]);
        let frames = exchange(&mut a, &mut b);
        (a, b, frames)
    }

    #[test]
    fn who_joins_is_a_peer_of_both_parts() {
        let (a, b, _) = pair();
        assert_eq!(a.members().map(|m| m.state).collect::<Vec<_>>(), [MemberState::Alive]);
        assert!(b.replication().members().all(|(_, is_up)| is_up));
        assert_eq!((a.frames().misdirected, b.frames().misdirected), (0, 0));
    }

    #[test]
    fn state_for_another_life_is_not_taken() {
        let (mut a, b, _) = pair();
        let former = NodeId { name: a.me().node.name, generation: Generation(0) };
        let message = Message::HotSetRequest;
        let letter = Letter { from: b.me().node, to: former, message };
        let bytes = codec::frame(Kind::State, CLUSTER, &codec::encode(&letter));
        a.handle_frame(now(), address(2), &bytes);
        assert_eq!(a.frames().misdirected, 1);
    }

    #[test]
    fn who_has_left_says_nothing_more() {
        let (mut a, mut b, _) = pair();
        b.depart(now());
        exchange(&mut a, &mut b);
        assert_eq!((a.members().count(), b.next_deadline()), (0, None));
    }

    proptest! {
        #[test]
        fn any_payload_of_any_kind_is_taken_or_refused(
            kind in proptest::sample::select(&Kind::ALL[..]),
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let (mut a, _, _) = pair();
            a.handle_frame(now(), address(9), &codec::frame(kind, CLUSTER, &payload));
            while a.poll_transmit().is_some() {}
            a.handle_timeout(now() + Duration::from_millis(100));
        }

        #[test]
        fn a_real_frame_with_changed_bytes_is_taken_or_refused(
            which in any::<proptest::sample::Index>(),
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let (mut a, mut b, frames) = pair();
            let frame = Frame::read(which.get::<Vec<u8>>(&frames)).unwrap();
            let mut payload = frame.payload.to_vec();
            for (at, byte) in changes {
                if !payload.is_empty() {
                    *at.get_mut(&mut payload) = byte;
                }
            }
            for node in [&mut a, &mut b] {
                node.handle_frame(now(), address(9), &codec::frame(frame.kind, CLUSTER, &payload));
                while node.poll_transmit().is_some() {}
                node.handle_timeout(now() + Duration::from_millis(100));
            }
        }
    }
}
