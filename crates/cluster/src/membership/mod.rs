//! Who is in the cluster: SWIM by foca, and around it what SWIM leaves open.
//!
//! [`Membership`] is a state machine: packets, time and commands in, packets and events out. foca probes, suspects,
//! refutes and gossips. What is added here: identities that survive a false DOWN (`identity`), knocking that never
//! gives up (`knock`), names that can't be taken twice (`names`), goodbyes, the five states (`table`), and three guards that
//! foca's driver owes it: timers are never lost, a suspicion that was refuted never kills, and a process that was
//! frozen doesn't accuse the others of its own silence.
//!
//! Not guaranteed: that two nodes list the same members at the same moment; nothing here is a consensus.

mod config;
mod drive;
mod identity;
mod joining;
mod leaving;
mod message;
mod names;
mod packet;
mod state;
mod table;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use foca::{Foca, NoCustomBroadcast, Timer};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

pub use crate::membership::config::{Config, ConfigError};
pub use crate::membership::identity::{Identity, generation_at};
pub use crate::membership::message::RefusalReason;
pub use crate::membership::state::{MemberState, Transition};

use crate::codec::{self, ClusterId, Frame, Kind, PayloadError};
use crate::membership::drive::Effects;
use crate::membership::joining::Joining;
use crate::membership::message::Goodbye;
use crate::membership::packet::PacketCodec;
use crate::membership::table::Table;
use crate::timers::Timers;
use smg_types::ids::{NodeId, NodeName};
use smg_types::now::Now;

type Swim = Foca<Identity, PacketCodec, StdRng, NoCustomBroadcast>;

/// Most frames that wait for `poll_transmit`; it is drained after each call, so that reaching this means a driver that
/// doesn't. The oldest are dropped and counted: gossip may be lost.
const MAX_OUTGOING: usize = 16 * 1024;

/// How long a newcomer that was welcomed is listed as INIT without being heard of.
const NEWCOMER_LISTED: Duration = Duration::from_secs(5);

/// A frame to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to.
    pub to: SocketAddr,
    /// To whom, if it is a member.
    pub peer: Option<NodeName>,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// What happened to this node or to its view of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Another node changed its state.
    Member(Transition),
    /// This node changed its state.
    OwnState {
        /// Before.
        from: MemberState,
        /// After.
        to: MemberState,
    },
    /// This node was declared down while it was alive, and has said so under a renewed identity. Nothing was reset.
    Renewed(Identity),
    /// Others know a later life under this node's name than it had taken for itself (the clock was set back, the disk
    /// is gone): it goes on as another writer. Whatever it counts from its start it must count from zero again, for what
    /// was counted is kept as that of a former life.
    NewGeneration {
        /// What it was until now.
        was: NodeId,
        /// What it is from now on.
        is: NodeId,
    },
    /// This node can't come in.
    Refused(RefusalReason),
    /// Another live process claims this node's name.
    NameContested(Identity),
}

/// One member, this node included, as shown to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// Which life of which router.
    pub node: NodeId,
    /// Where it is reached.
    pub address: SocketAddr,
    /// What is believed of it.
    pub state: MemberState,
    /// Since when, by the monotonic clock of this node.
    pub since: Duration,
    /// How often it had to raise its claim: grows with false DOWNs.
    pub renewal: u64,
    /// The number that it raised to refute suspicions.
    pub incarnation: u16,
    /// How long its last answer to a probe of this node took.
    pub rtt: Option<Duration>,
}

/// What was counted since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Times that this node was declared down while alive, and renewed.
    pub renewals: u64,
    /// Timers of suspicions that were refuted in time: each would have killed a live member.
    pub stale_suspicions: u64,
    /// Probes that nobody answered, neither directly nor through others.
    pub failed_probes: u64,
    /// Turns that came so late that the process must have been frozen.
    pub stalls: u64,
    /// Packets that foca refused.
    pub refused_packets: u64,
    /// Messages that answered another life, came from ourselves, or spoke of members that nobody knows.
    pub stray_messages: u64,
    /// Frames of another cluster.
    pub foreign_cluster: u64,
    /// Newcomers that were refused.
    pub refusals: u64,
    /// Holders of a name that did not say that they are still there, when a newcomer came with it.
    pub unanswered_challenges: u64,
    /// Frames dropped because nobody took them.
    pub dropped_frames: u64,
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

/// This node's own place in the cluster.
#[derive(Debug)]
struct Me {
    state: MemberState,
    since: Duration,
    /// Set once the node has left: it hears and says nothing any more.
    departed: bool,
    /// Not before this does it renew again.
    renew_at: Duration,
    /// Why it can't come in.
    refused: Option<RefusalReason>,
    /// It was in and stepped back: it has called this identity dead itself, and comes in again only under a renewed one.
    gave_up_name: bool,
}

/// The membership of one node.
#[derive(Debug)]
pub struct Membership {
    config: Config,
    cluster: ClusterId,
    swim: Swim,
    me: Me,
    table: Table,
    joining: Joining,
    timers: Timers<Due>,
    rng: StdRng,
    effects: Effects,
    /// Goodbyes that are passed on, and for how many rounds more.
    relays: Vec<(Goodbye, u32)>,
    /// Whether a round of `notify_suspects` is scheduled.
    notifies_suspects: bool,
    /// The next gossip and when it is due, while there is nothing to pass on.
    gossip: Option<(Duration, Timer<Identity>)>,
    /// The probe under way: whom, its number, since when.
    probe: Option<(NodeName, u8, Duration)>,
    /// The size that foca's configuration was made for.
    configured_for: usize,
    outgoing: VecDeque<Outgoing>,
    events: VecDeque<Event>,
    counters: Counters,
}

impl Membership {
    /// The membership of a node that starts as `identity`, in INIT until it is told where to knock (`join`).
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
                refused: None,
                gave_up_name: false,
            },
            table: Table::default(),
            joining: Joining::default(),
            timers: Timers::default(),
            rng: StdRng::from_rng(rng),
            effects: Effects::default(),
            relays: Vec::new(),
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
        this.schedule_sweep(now.mono);
        Ok(this)
    }

    /// Feeds a frame that was read, and came from `from`.
    ///
    /// # Errors
    ///
    /// If its payload can't be decoded.
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
            Kind::State => self.counters.stray_messages += 1,
        }
        Ok(())
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        if self.me.departed {
            return;
        }
        let late = self.next_deadline().map_or(Duration::ZERO, |at| now.mono.saturating_sub(at));
        if late > self.config.stall {
            // Answers to our probes may wait in the inbox: judge nobody before it was read.
            self.counters.stalls += 1;
            self.timers.postpone(late + self.config.probe_timeout);
            return;
        }
        while let Some(due) = self.timers.pop_due(now.mono) {
            match due {
                Due::Swim(timer) => self.handle_swim_timer(now, timer),
                Due::JoinRound { at } => self.run_join_round_if_current(now, at),
                Due::EndChallenge(name) => self.welcome_if_unanswered(now, &name),
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

    /// When to call `handle_timeout` next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.me.departed { None } else { self.timers.next_deadline() }
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Outgoing> {
        self.outgoing.pop_front()
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Tells everybody that this node will go, and keeps telling. It stays a member until `depart`.
    pub fn leave(&mut self, now: Now) {
        if self.me.departed || self.me.state == MemberState::Leaving {
            return;
        }
        self.set_own_state(now, MemberState::Leaving);
        self.announce_leaving(now);
    }

    /// Leaves: tells everybody and falls silent.
    pub fn depart(&mut self, now: Now) {
        if self.me.departed {
            return;
        }
        self.leave(now);
        // Not by foca's own message: gossip that overtakes the goodbye would show this node as DOWN.
        self.send_goodbye(true);
        self.me.departed = true;
    }

    /// Goes on at another address: the pod moved, or the address turned out to be wrong.
    pub fn readdress(&mut self, now: Now, address: SocketAddr) {
        let identity = self.swim.identity();
        if identity.address != address {
            let moved = Identity { address, ..identity.raised_above(identity.claim()) };
            self.change_identity(now, moved);
        }
    }

    /// Begins a later life without a new process: the others take the present one for history, or somebody else writes
    /// as it.
    pub fn begin_generation(&mut self, now: Now) {
        let above = self.swim.identity().clone();
        self.begin_generation_above(now, &above);
    }

    /// Stops listing a member that is down.
    pub fn forget(&mut self, now: Now, name: &NodeName) -> bool {
        let is_down = self.table.get(name).is_some_and(|r| r.state == Some(MemberState::Down));
        if is_down && let Some(identity) = self.table.forget(name) {
            self.drive(now, |swim, effects| {
                swim.handle_timer(Timer::RemoveDown(identity), effects)
            });
        }
        is_down
    }

    /// What this node is to the others.
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

    /// Whether another member, dead or alive, is listed under `name`.
    #[must_use]
    pub fn lists(&self, name: &NodeName) -> bool {
        self.table.get(name).is_some_and(|record| record.state.is_some())
    }

    /// Where a life of a member is reached, if it is believed to be there.
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

    /// Why this node can't come in, while it can't.
    #[must_use]
    pub const fn refused(&self) -> Option<&RefusalReason> {
        self.me.refused.as_ref()
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Names remembered, timers waiting, updates that foca still passes on: what must stay bounded.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.table.len(), self.timers.len(), self.swim.updates_backlog())
    }

    /// Grows with each change of what `members` shows.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.table.version()
    }
}

/// What the parts share.
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

    /// Up to `count` of `from`, by chance.
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

/// Own timers come after foca's of the same moment.
const RANK_OWN: u8 = 10;

#[cfg(test)]
mod tests;
