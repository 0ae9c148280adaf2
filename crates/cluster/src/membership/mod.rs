//! Which nodes are in the cluster: SWIM by foca, and what SWIM leaves open.
//!
//! [`Membership`] is a state machine: packets, time and commands go in, packets and events come out. foca probes,
//! suspects, refutes and gossips. Added here are identities that survive a false DOWN (`identity`), join probes that
//! never end (`joining`), names that have one holder (`names`, `claims`), graceful leaving (`leaving`), the five states
//! (`table`), and three guards that foca requires of its driver: no timer is lost; the timer of a refuted suspicion
//! never declares a member down; a process that was frozen does not suspect the others for its own silence.
//!
//! Not guaranteed: that two nodes list the same members at the same moment. Nothing here is a consensus.

mod claims;
mod config;
mod counters;
mod drive;
mod event;
mod identity;
mod join_state;
mod joining;
mod leaving;
mod message;
mod names;
mod packet;
mod screening;
mod state;
mod swim;
mod table;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use foca::{Foca, Timer};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

pub use crate::membership::config::{Config, ConfigError};
pub use crate::membership::counters::Counters;
pub use crate::membership::event::{Event, MemberView};
pub use crate::membership::identity::{Identity, generation_at};
pub use crate::membership::message::RefusalReason;
pub use crate::membership::state::{MemberState, Transition};

use crate::codec::{self, ClusterId, Frame, Kind, PayloadError};
use crate::membership::join_state::JoinState;
use crate::membership::message::Goodbye;
use crate::membership::packet::PacketCodec;
use crate::membership::swim::{Effects, Swim};
use crate::membership::table::Table;
use crate::timers::Timers;
use smg_types::ids::{Generation, NodeId, NodeName};
use smg_types::now::Now;

/// Frames that wait for `poll_transmit`, which a driver drains after each call. Beyond, the oldest are dropped and
/// counted; gossip may be lost.
const MAX_OUTGOING: usize = 16 * 1024;

/// A newcomer that was let in is listed as INIT for this long, unless it becomes a member before.
const NEWCOMER_LISTED: Duration = Duration::from_secs(5);

/// A frame to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The address to send it to.
    pub to: SocketAddr,
    /// The node at that address; `None` for a join probe, whose receiver is not known yet.
    pub peer: Option<NodeName>,
    /// The whole frame.
    pub bytes: Vec<u8>,
}

#[derive(Debug)]
enum Due {
    Swim(Timer<Identity>),
    JoinRound { at: Duration },
    EndChallenge(NodeName),
    ChallengeNamesake,
    Renew { at: Duration },
    Goodbye,
    RelayGoodbyes,
    NotifySuspects,
    Sweep,
}

/// The state of this node itself.
#[derive(Debug)]
struct Me {
    state: MemberState,
    since: Duration,
    /// Set once the node has left: it handles and sends nothing any more.
    departed: bool,
    /// The earliest time of the next renewal.
    renew_at: Duration,
    /// The time of the renewal that is scheduled, or was.
    renewal_scheduled_for: Option<Duration>,
    /// Why it is not let in, while it is not.
    refused: Option<RefusalReason>,
    /// It was a member and gave up its name: it has declared its identity dead, and comes in again only under a renewed
    /// one.
    gave_up_name: bool,
    /// When it began its latest generations without a new process, the earliest first.
    generations_begun: VecDeque<Duration>,
    /// The latest generation of its own name that this node has received and not exceeded yet.
    must_exceed: Generation,
}

/// A node begins at most [`MAX_GENERATIONS`] generations in this time: each is another writer for all nodes to remember, and a
/// few forged messages could ask for thousands.
const GENERATIONS_PERIOD: Duration = Duration::from_secs(30);
const MAX_GENERATIONS: usize = 3;

impl Me {
    /// Whether the node may begin another generation now; if so, it counts.
    fn may_begin_generation(&mut self, now: Duration) -> bool {
        let is_old = |at: &Duration| *at + GENERATIONS_PERIOD <= now;
        while self.generations_begun.front().is_some_and(is_old) {
            self.generations_begun.pop_front();
        }
        let may = self.generations_begun.len() < MAX_GENERATIONS;
        if may {
            self.generations_begun.push_back(now);
        }
        may
    }
}

/// The membership of one node.
#[derive(Debug)]
pub struct Membership {
    config: Config,
    cluster: ClusterId,
    swim: Swim,
    me: Me,
    table: Table,
    joining: JoinState,
    timers: Timers<Due>,
    rng: StdRng,
    effects: Effects,
    /// Goodbyes that are relayed, each with the number of rounds left.
    relays: Vec<(Goodbye, u32)>,
    /// Whether a sweep of the table is scheduled. None is while the table is empty.
    is_sweep_scheduled: bool,
    /// When the next sweep is due, or would be.
    next_sweep: Duration,
    /// Whether a round of `notify_suspects` is scheduled.
    notifies_suspects: bool,
    /// The next round of gossip and its time, while it is held back because there is nothing to send.
    gossip: Option<(Duration, Timer<Identity>)>,
    /// The probe in flight: the member, the number of the probe, and when it was sent.
    probe: Option<(NodeName, u8, Duration)>,
    /// The size of the cluster that foca is configured for.
    configured_for: usize,
    outgoing: VecDeque<Outgoing>,
    events: VecDeque<Event>,
    counters: Counters,
}

impl Membership {
    /// The membership of a node that starts as `identity`. It is in INIT until it is given the addresses of others with
    /// `join`.
    ///
    /// # Errors
    ///
    /// All that is wrong with the configuration.
    pub fn try_new(
        config: Config,
        cluster: ClusterId,
        identity: Identity,
        now: Now,
        rng: &mut dyn Rng,
    ) -> Result<Self, Vec<ConfigError>> {
        let mistakes = config.mistakes();
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let swim_rng = StdRng::from_rng(rng);
        let mut this = Self {
            swim: Foca::new(identity, config.foca(1), swim_rng, PacketCodec),
            me: Me {
                state: MemberState::Init,
                since: now.mono,
                departed: false,
                renew_at: now.mono,
                renewal_scheduled_for: None,
                refused: None,
                gave_up_name: false,
                generations_begun: VecDeque::new(),
                must_exceed: Generation(0),
            },
            table: Table::default(),
            joining: JoinState::default(),
            timers: Timers::default(),
            rng: StdRng::from_rng(rng),
            effects: Effects::default(),
            relays: Vec::new(),
            is_sweep_scheduled: false,
            next_sweep: now.mono,
            notifies_suspects: false,
            gossip: None,
            probe: None,
            configured_for: 1,
            outgoing: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            config,
            cluster,
        };
        this.next_sweep += this.sweep_period();
        Ok(this)
    }

    /// Handles a frame of membership that came from `from`.
    ///
    /// # Errors
    ///
    /// Its payload can't be decoded.
    pub fn handle_frame(
        &mut self,
        now: Now,
        from: SocketAddr,
        frame: &Frame<'_>,
    ) -> Result<(), PayloadError> {
        if self.me.departed {
            return Ok(());
        }
        if frame.cluster != self.cluster {
            self.counters.foreign_cluster += 1;
            return self.answer_foreign_frame(frame);
        }
        match frame.kind {
            Kind::Swim => self.handle_packet(now, frame.payload),
            Kind::Hello => self.handle_hello(now, from, &frame.decode()?),
            Kind::Welcome => self.handle_welcome(now, frame.decode()?),
            Kind::Refusal => self.handle_refusal(now, frame.decode()?),
            Kind::Challenge => self.handle_challenge(now, &frame.decode()?),
            Kind::StillHere => self.handle_still_here(now, &frame.decode()?),
            Kind::Goodbye => self.handle_goodbye(now, &frame.decode()?),
            Kind::Suspicion => self.handle_suspicion(now, frame.decode()?),
            Kind::State | Kind::Lease => self.counters.stray_messages += 1,
        }
        Ok(())
    }

    /// Does what is due. Call it when `next_deadline` has come.
    pub fn handle_timeout(&mut self, now: Now) {
        if self.me.departed {
            return;
        }
        let late = self.next_deadline().map_or(Duration::ZERO, |at| now.mono.saturating_sub(at));
        if late > self.config.stall {
            // Answers to probes may wait in the inbox: no member is suspected before those were read.
            self.counters.stalls += 1;
            self.timers.postpone(late + self.config.probe_timeout);
            return;
        }
        while let Some(due) = self.timers.pop_due(now.mono) {
            match due {
                Due::Swim(timer) => self.handle_swim_timer(now, timer),
                Due::JoinRound { at } => self.run_join_round_if_current(now, at),
                Due::EndChallenge(name) => self.end_claim(now, &name),
                Due::ChallengeNamesake => self.challenge_namesake(now),
                Due::Renew { at } => {
                    if at == self.me.renew_at {
                        self.renew(now);
                    }
                }
                Due::RelayGoodbyes => self.relay_goodbyes(now),
                Due::NotifySuspects => self.notify_suspects(now),
                Due::Goodbye => self.announce_leaving(now),
                Due::Sweep => self.sweep(now),
            }
        }
    }

    /// When to call `handle_timeout` next, by the monotonic clock. `None`: not before another call, because this node has
    /// left, or it knows no other node and no address to find one.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.me.departed { None } else { self.timers.next_deadline() }
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Outgoing> {
        self.outgoing.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Announces to all members that this node is leaving, and repeats it. It stays a member until `depart`.
    pub fn leave(&mut self, now: Now) {
        if self.me.departed || self.me.state == MemberState::Leaving {
            return;
        }
        self.set_own_state(now, MemberState::Leaving);
        self.announce_leaving(now);
    }

    /// Leaves: announces that to all members, and handles and sends nothing any more.
    pub fn depart(&mut self, now: Now) {
        if self.me.departed {
            return;
        }
        self.leave(now);
        // Not with foca's own message: gossip that overtakes the goodbye would show this node as DOWN.
        self.send_goodbye(true);
        self.me.departed = true;
    }

    /// Goes on at another address: the pod was moved, or the address turned out to be wrong.
    pub fn readdress(&mut self, now: Now, address: SocketAddr) {
        let identity = self.swim.identity();
        if identity.address != address {
            let moved = Identity { address, ..identity.raised_above(identity.claim()) };
            self.change_identity(now, moved);
        }
    }

    /// Goes on as a later generation without a new process: peers have retired the present one, or another process
    /// writes as it. `known`: the latest other generation of this name that is known, which the new one exceeds too.
    pub fn begin_generation(&mut self, now: Now, known: Option<Generation>) {
        let me = self.swim.identity();
        let generation = known.map_or(me.generation, |known| known.max(me.generation));
        let above = Identity { generation, ..me.clone() };
        self.begin_generation_above(now, &above);
    }

    /// Stops listing a member that is down. Returns whether it was.
    pub fn forget(&mut self, now: Now, name: &NodeName) -> bool {
        let is_down = self.table.get(name).is_some_and(|r| r.state == Some(MemberState::Down));
        if is_down && let Some(identity) = self.table.forget(name) {
            self.drive(now, |swim, effects| {
                swim.handle_timer(Timer::RemoveDown(identity), effects)
            });
        }
        is_down
    }

    /// The identity of this node.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        self.swim.identity()
    }

    /// This node as a member.
    #[must_use]
    pub fn me(&self) -> MemberView {
        let identity = self.swim.identity();
        MemberView {
            node: identity.node(),
            address: identity.address,
            state: self.me.state,
            since: self.me.since,
            renewal: identity.renewal,
            incarnation: 0,
            rtt: None,
        }
    }

    /// The other members that are listed, by name.
    pub fn members(&self) -> impl Iterator<Item = MemberView> {
        self.table.iter().filter_map(|record| {
            Some(MemberView {
                node: record.identity.node(),
                address: record.identity.address,
                state: record.state?,
                since: record.since,
                renewal: record.identity.renewal,
                incarnation: record.incarnation,
                rtt: record.rtt,
            })
        })
    }

    /// Whether another member is listed under `name`, in whatever state.
    #[must_use]
    pub fn lists(&self, name: &NodeName) -> bool {
        self.table.get(name).is_some_and(|record| record.state.is_some())
    }

    /// The address of this generation of a member, if it is alive, suspected or leaving.
    #[must_use]
    pub fn address_of(&self, node: &NodeId) -> Option<SocketAddr> {
        let record = self.table.get(&node.name)?;
        let is_there = record.state.is_some_and(MemberState::is_present)
            && record.identity.generation == node.generation;
        is_there.then_some(record.identity.address)
    }

    /// Whether this node has left.
    #[must_use]
    pub const fn has_departed(&self) -> bool {
        self.me.departed
    }

    /// Why this node is not let in, while it is not.
    #[must_use]
    pub const fn refused(&self) -> Option<&RefusalReason> {
        self.me.refused.as_ref()
    }

    /// Counts since the process started.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// How many names are remembered, timers are scheduled and updates foca still gossips: all must stay bounded.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.table.len(), self.timers.len(), self.swim.updates_backlog())
    }

    /// A number that grows with each change of what `members` shows.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.table.version()
    }
}

/// Steps that several parts share.
impl Membership {
    fn send_packet(&mut self, to: &Identity, packet: &[u8]) {
        let left = self.table.get(&to.name).is_some_and(|record| {
            record.state.is_none() && record.identity.generation == to.generation
        });
        if left || to.name == self.swim.identity().name {
            return;
        }
        let bytes = codec::frame(Kind::Swim, self.cluster, packet);
        self.send(to.address, Some(to.name.clone()), bytes);
    }

    fn send_message(
        &mut self,
        to: SocketAddr,
        peer: Option<NodeName>,
        kind: Kind,
        message: &impl serde::Serialize,
    ) {
        let bytes = codec::frame(kind, self.cluster, &codec::encode(message));
        self.send(to, peer, bytes);
    }

    fn send(&mut self, to: SocketAddr, peer: Option<NodeName>, bytes: Vec<u8>) {
        if self.outgoing.len() == MAX_OUTGOING {
            self.outgoing.pop_front();
            self.counters.dropped_frames += 1;
        }
        self.outgoing.push_back(Outgoing { to, peer, bytes });
    }

    /// Up to `count` random items of `from`.
    fn pick<T>(&mut self, mut from: Vec<T>, count: usize) -> Vec<T> {
        let count = count.min(from.len());
        for i in 0..count {
            let j = self.rng.random_range(i..from.len());
            from.swap(i, j);
        }
        from.truncate(count);
        from
    }
}

/// The rank of this crate's own timers: after those of foca that are due at the same moment.
const RANK_OWN: u8 = 10;

#[cfg(test)]
mod tests;
