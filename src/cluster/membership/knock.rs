//! Coming in, and staying in touch: knocking at join addresses and at members that are down, for ever.
//!
//! A knock (`Hello`) is answered with everybody that is known (`Welcome`), so that a newcomer needs one exchange at any
//! size of the cluster. Knocking never ends: a join address without an alive member and a member that is down are tried
//! again and again, which heals partitions of any length and lets a seed come up after its joiner.
//!
//! A name has one holder. Whoever is asked by a newcomer for a name that a live member has *at another address* asks
//! the holder whether it is still there; if it is, the newcomer is refused, if not, it is the holder who has moved. Two
//! processes of one name that meet settle it between themselves: who is in a cluster comes before who is not, then the
//! older before the younger. An answer counts only if it names the generation it answers to, so that delayed ones do nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use foca::{Member, State};
use rand::RngExt;

use crate::cluster::codec::{self, Frame, Kind, PayloadError};
use crate::cluster::membership::identity::Identity;
use crate::cluster::membership::message::{
    Challenge, Hello, Listed, ListedState, MAX_WELCOME_MEMBERS, Refusal, RefusalReason, StillHere,
    Welcome,
};
use crate::cluster::membership::packet::PacketCodec;
use crate::cluster::membership::state::MemberState;
use crate::cluster::membership::{Due, Event, Membership, NEWCOMER_LISTED, RANK_OWN};
use crate::ids::{Generation, NodeName};
use crate::now::Now;

/// Most join addresses remembered.
const MAX_ADDRESSES: usize = 1024;

/// Most newcomers that wait until the holder of their name has answered.
const MAX_CHALLENGED: usize = 64;

/// How often a namesake that is only known by hearsay is asked whether it lives.
const CONTESTS: u32 = 5;

/// What is needed to come in and to stay in touch.
#[derive(Debug, Default)]
pub(super) struct Knocking {
    /// Where others may be.
    addresses: BTreeSet<SocketAddr>,
    /// Those that turned out to be this node.
    mine: BTreeSet<SocketAddr>,
    /// When the next round is due; an older timer is void.
    at: Duration,
    /// Newcomers whose name is held by somebody, until the holder answers.
    challenged: BTreeMap<NodeName, (Hello, SocketAddr)>,
    /// Somebody else with this node's name, and how often it was asked.
    namesake: Option<(Identity, u32)>,
}

impl Membership {
    /// Tells where others may be: the whole list, each time it was resolved. An empty list says that there is nobody to
    /// look for.
    pub fn join(&mut self, now: Now, addresses: &[SocketAddr]) {
        self.knocking.addresses = addresses.iter().copied().take(MAX_ADDRESSES).collect();
        self.become_alive_if_alone(now);
        // Not before the first round is over: the list is told again and again.
        if self.knocking.at == Duration::ZERO {
            self.knock(now);
        }
    }

    pub(super) fn knock_if_current(&mut self, now: Now, at: Duration) {
        if at == self.knocking.at {
            self.knock(now);
        }
    }

    pub(super) fn knock_at(&mut self, address: SocketAddr) {
        let (identity, seated) = (self.swim.identity().clone(), self.is_seated());
        let hello = Hello { identity, dialled: address, seated };
        self.send_message(address, None, Kind::Hello, &hello);
    }

    fn knock(&mut self, now: Now) {
        let is_alone = self.swim.num_members() == 0;
        let join_addresses = self.knocking.addresses.iter().copied().filter(|address| {
            !self.knocking.mine.contains(address) && !self.table.is_present_at(*address)
        });
        let down = self
            .table
            .iter()
            .filter(|record| record.state == Some(MemberState::Down))
            .map(|record| record.identity.address);
        let mine = self.swim.identity().address;
        let candidates: BTreeSet<_> =
            join_addresses.chain(down).filter(|address| *address != mine).collect();
        if self.me.state != MemberState::Leaving {
            let chosen = self.pick(candidates.into_iter().collect(), self.config.knock_fanout.get());
            for address in chosen {
                self.knock_at(address);
            }
        }
        let period =
            if is_alone { self.config.knock_alone_period } else { self.config.knock_period };
        let at = now.mono + period.mul_f64(self.rng.random_range(0.75..1.25));
        self.knocking.at = at;
        self.timers.schedule(at, RANK_OWN, Due::Knock { at });
    }

    /// Nobody to look for, or only oneself: that is a cluster of one.
    fn become_alive_if_alone(&mut self, now: Now) {
        let mine = self.swim.identity().address;
        let is_alone = self
            .knocking
            .addresses
            .iter()
            .all(|address| *address == mine || self.knocking.mine.contains(address));
        if is_alone && self.me.state == MemberState::Init && self.me.refused.is_none() {
            self.turn(now, MemberState::Alive);
        }
    }

    pub(super) fn handle_hello(&mut self, now: Now, from: SocketAddr, hello: &Hello) {
        let (me, it) = (self.swim.identity(), &hello.identity);
        if !it.is_plausible() || self.me.refused.is_some() {
            self.counters.stray_messages += 1;
            return;
        }
        if it.name == me.name {
            return self.handle_hello_of_namesake(now, from, hello);
        }
        let holder = self.table.get(&it.name).filter(|record| {
            matches!(record.state, Some(MemberState::Alive | MemberState::Suspected))
                && record.identity.generation != it.generation
                && record.identity.address != it.address
        });
        let Some(holder) = holder.map(|record| record.identity.clone()) else {
            return self.welcome(now, from, hello);
        };
        let waits = self.knocking.challenged.contains_key(&it.name);
        if waits || self.knocking.challenged.len() == MAX_CHALLENGED {
            return;
        }
        self.knocking.challenged.insert(it.name.clone(), (hello.clone(), from));
        let at = now.mono + self.config.challenge_timeout;
        self.timers.schedule(at, RANK_OWN, Due::Answer(it.name.clone()));
        self.challenge(holder, it.clone(), hello.seated);
    }

    fn handle_hello_of_namesake(&mut self, now: Now, from: SocketAddr, hello: &Hello) {
        let (me, it) = (self.swim.identity(), &hello.identity);
        if it.generation == me.generation {
            // Our own knock came back.
            if self.knocking.mine.len() < MAX_ADDRESSES {
                self.knocking.mine.insert(hello.dialled);
            }
            self.become_alive_if_alone(now);
        } else if it.address == me.address {
            // A former life of this very place.
            self.counters.stray_messages += 1;
        } else if self.me.state == MemberState::Leaving {
            // It takes over.
            self.welcome(now, from, hello);
        } else {
            self.settle_with_namesake(it.clone(), hello.seated);
        }
    }

    /// The holder did not say in time that it is still there: its name is free.
    pub(super) fn answer_challenged(&mut self, now: Now, name: &NodeName) {
        if let Some((hello, from)) = self.knocking.challenged.remove(name) {
            self.counters.unanswered_challenges += 1;
            self.welcome(now, from, &hello);
        }
    }

    fn welcome(&mut self, now: Now, from: SocketAddr, hello: &Hello) {
        let it = &hello.identity;
        let known = self.table.get(&it.name).map(|record| record.identity.clone());
        // What we hold for dead must claim more to be believed again, even if it is the very same life.
        let known = known.filter(|known| {
            self.table.get(&it.name).is_some_and(|record| match record.state {
                Some(MemberState::Down) | None => true,
                Some(_) => known.generation != it.generation,
            })
        });
        let me = Listed {
            identity: self.swim.identity().clone(),
            incarnation: 0,
            state: match self.me.state {
                MemberState::Leaving => ListedState::Leaving,
                MemberState::Init
                | MemberState::Alive
                | MemberState::Suspected
                | MemberState::Down => ListedState::Alive,
            },
        };
        let others = self.table.iter().filter_map(|record| {
            let state = match record.state? {
                MemberState::Init => return None,
                MemberState::Alive => ListedState::Alive,
                MemberState::Suspected => ListedState::Suspected,
                MemberState::Leaving => ListedState::Leaving,
                MemberState::Down => ListedState::Down(now.mono.saturating_sub(record.since)),
            };
            let (identity, incarnation) = (record.identity.clone(), record.incarnation);
            (identity.name != it.name).then_some(Listed { identity, incarnation, state })
        });
        let welcome = Welcome {
            to: it.generation,
            from: me.identity.clone(),
            seen_as: from,
            known,
            members: std::iter::once(me).chain(others).take(MAX_WELCOME_MEMBERS).collect(),
        };
        if self.table.len() < self.config.max_members.get() {
            self.table.list_newcomer(now.mono, it, now.mono + NEWCOMER_LISTED);
        }
        self.send_message(it.address, Some(it.name.clone()), Kind::Welcome, &welcome);
        self.absorb(now, &BTreeMap::new());
    }

    pub(super) fn handle_welcome(&mut self, now: Now, welcome: Welcome) {
        let me = self.swim.identity();
        let is_ours = welcome.to == me.generation
            && welcome.from.name != me.name
            && welcome.from.is_plausible()
            && self.me.state != MemberState::Leaving;
        if !is_ours {
            self.counters.stray_messages += 1;
            return;
        }
        self.me.refused = None;
        if let Some(known) = welcome.known.filter(|known| known.name == me.name) {
            if !known.is_plausible() {
                self.counters.stray_messages += 1;
                return;
            }
            self.claim_more_than(now, &known);
        }
        if self.me.state == MemberState::Init {
            self.turn(now, MemberState::Alive);
        }
        self.learn(now, welcome.members);
        let host = welcome.from;
        self.drive(now, |swim, effects| swim.announce(host, effects));
    }

    /// Makes this node believable to those who know `known` under its name.
    fn claim_more_than(&mut self, now: Now, known: &Identity) {
        let me = self.swim.identity().clone();
        if known.generation > me.generation {
            // A later life than this one has written rows. Going on below it would mean to be taken for its past.
            let above = known.generation.0 + 1 + u64::from(self.rng.random::<u16>());
            let reborn = Identity { generation: Generation(above), renewal: 0, ..me.clone() };
            let reborn = reborn.raised_above(known.claim());
            self.events.push_back(Event::Reborn { was: me.node(), is: reborn.node() });
            self.reidentify(now, reborn);
        } else if known.claim() >= me.claim() {
            self.counters.renewals += 1;
            let raised = me.raised_above(known.claim());
            self.reidentify(now, raised.clone());
            self.events.push_back(Event::Renewed(raised));
        }
    }

    /// Takes over a member list. The dead are only added if nobody here knows them: a list from the other side of a
    /// partition would kill the living.
    fn learn(&mut self, now: Now, members: Vec<Listed>) {
        let mine = self.swim.identity().name.clone();
        let mut updates = Vec::new();
        let mut down_since = BTreeMap::new();
        let mut leaving = Vec::new();
        for Listed { identity, incarnation, state } in members {
            if identity.name == mine || !identity.is_plausible() {
                continue;
            }
            let known = self.table.get(&identity.name);
            let is_unknown = known.is_none_or(|record| record.state == Some(MemberState::Init));
            match state {
                ListedState::Alive => {
                    updates.push(Member::new(identity, incarnation, State::Alive));
                }
                ListedState::Suspected => {
                    updates.push(Member::new(identity, incarnation, State::Suspect));
                }
                ListedState::Leaving => {
                    leaving.push((identity.name.clone(), identity.generation));
                    updates.push(Member::new(identity, incarnation, State::Alive));
                }
                ListedState::Down(ago) => {
                    if is_unknown && ago < self.config.forget_after && self.table.len() < self.config.max_members.get() {
                        down_since.insert(identity.name.clone(), now.mono.saturating_sub(ago));
                        updates.push(Member::new(identity, incarnation, State::Down));
                    }
                }
            }
        }
        let mut effects = std::mem::take(&mut self.effects);
        let applied = self.swim.apply_many(updates.into_iter(), false, &mut effects);
        self.effects = effects;
        self.absorb(now, &down_since);
        for (name, generation) in leaving {
            self.table.mark_leaving(now.mono, &name, generation);
        }
        // Hands over what foca wanted done above.
        self.drive(now, |_, _| applied);
    }

    pub(super) fn handle_refusal(&mut self, now: Now, refusal: Refusal) {
        let me = self.swim.identity();
        if refusal.to != me.generation {
            self.counters.stray_messages += 1;
            return;
        }
        match refusal.reason {
            RefusalReason::DuplicateName(holder) => {
                self.handle_live_namesake(now, &holder, refusal.seated);
            }
            RefusalReason::ForeignCluster(_) => {
                // Other addresses may be right, so this ends nothing; it is told, for somebody must mend it.
                self.events.push_back(Event::Refused(refusal.reason));
            }
        }
    }

    /// Somebody thinks that `holder` has a name that somebody else claims.
    pub(super) fn handle_challenge(&mut self, now: Now, challenge: &Challenge) {
        let Challenge { holder, claimant, asker, seated } = challenge;
        let me = self.swim.identity().clone();
        let is_about_me = holder.name == me.name
            && holder.generation == me.generation
            && claimant.name == me.name
            && claimant.generation != me.generation;
        let stays = self.me.state != MemberState::Leaving && self.me.refused.is_none();
        if !is_about_me || !stays || !claimant.is_plausible() {
            self.counters.stray_messages += 1;
            return;
        }
        let answer = StillHere { holder: me, claimant: claimant.clone(), seated: self.is_seated() };
        self.send_message(*asker, None, Kind::StillHere, &answer);
        self.note_contest(now, claimant);
        self.settle_with_namesake(claimant.clone(), *seated);
    }

    pub(super) fn handle_still_here(&mut self, now: Now, answer: &StillHere) {
        let StillHere { holder, claimant, seated } = answer;
        let me = self.swim.identity();
        if holder.name != claimant.name || !holder.is_plausible() {
            self.counters.stray_messages += 1;
        } else if claimant.name == me.name {
            if claimant.generation == me.generation {
                self.handle_live_namesake(now, holder, *seated);
            } else {
                self.counters.stray_messages += 1;
            }
        } else if let Some((hello, _)) = self.knocking.challenged.remove(&claimant.name) {
            self.refuse(&hello.identity, holder.clone(), *seated);
        }
    }

    /// Whether this node is in the cluster, and so keeps its name before any newcomer.
    fn is_seated(&self) -> bool {
        self.me.state == MemberState::Alive && self.me.refused.is_none()
    }

    /// Whether this node yields its name to `other`: who is in comes before who is not, then the older comes first.
    fn yields_to(&self, other: &Identity, other_seated: bool) -> bool {
        let rank = |seated: bool, generation: Generation| (!seated, generation);
        let mine = rank(self.is_seated(), self.swim.identity().generation);
        mine > rank(other_seated, other.generation)
    }

    /// `namesake` was just heard of, perhaps only by an old message: who must yield is refused, who need not is asked.
    fn settle_with_namesake(&mut self, namesake: Identity, seated: bool) {
        let me = self.swim.identity().clone();
        let i_am_seated = self.is_seated();
        if self.yields_to(&namesake, seated) {
            self.challenge(namesake, me, i_am_seated);
        } else {
            self.refuse(&namesake, me, i_am_seated);
        }
    }

    /// It is certain that `holder`, another process of this node's name, lives: one of the two steps back.
    fn handle_live_namesake(&mut self, now: Now, holder: &Identity, seated: bool) {
        let me = self.swim.identity().clone();
        if holder.name != me.name || holder.generation == me.generation || self.me.departed {
            return;
        }
        if self.me.state == MemberState::Leaving {
            // It has taken over; nothing is left to say.
            self.me.departed = true;
        } else if self.yields_to(holder, seated) {
            self.step_back(now, holder.clone());
        } else {
            self.note_contest(now, holder);
            self.refuse(holder, me.clone(), self.is_seated());
            if holder.claim() >= me.claim() && holder.is_plausible() {
                self.reidentify(now, me.raised_above(holder.claim()));
            }
        }
    }

    fn step_back(&mut self, now: Now, holder: Identity) {
        let reason = RefusalReason::DuplicateName(holder);
        if self.me.refused.is_none() {
            self.me.refused = Some(reason.clone());
            if self.swim.num_members() > 0 {
                self.drive(now, |swim, effects| swim.leave_cluster(effects));
            }
            self.turn(now, MemberState::Init);
            self.events.push_back(Event::Refused(reason));
        } else {
            self.me.refused = Some(reason);
        }
    }

    fn refuse(&mut self, newcomer: &Identity, holder: Identity, seated: bool) {
        self.counters.refusals += 1;
        let refusal = Refusal {
            to: newcomer.generation,
            reason: RefusalReason::DuplicateName(holder),
            seated,
        };
        self.send_message(newcomer.address, Some(newcomer.name.clone()), Kind::Refusal, &refusal);
    }

    fn challenge(&mut self, holder: Identity, claimant: Identity, seated: bool) {
        let (to, name) = (holder.address, holder.name.clone());
        let asker = self.swim.identity().address;
        let challenge = Challenge { holder, claimant, asker, seated };
        self.send_message(to, Some(name), Kind::Challenge, &challenge);
    }

    /// A frame of another cluster. A newcomer is told, in a frame of its own cluster; everything else is dropped.
    pub(super) fn handle_foreign(&mut self, frame: &Frame<'_>) -> Result<(), PayloadError> {
        if frame.kind == Kind::Hello {
            let hello: Hello = frame.decode()?;
            let refusal = Refusal {
                to: hello.identity.generation,
                reason: RefusalReason::ForeignCluster(hello.dialled),
                seated: true,
            };
            let bytes = codec::frame(Kind::Refusal, frame.cluster, &codec::encode(&refusal));
            self.send(hello.identity.address, None, bytes);
        }
        Ok(())
    }

    /// foca refused a packet because it came from this node's own name.
    pub(super) fn notice_namesake_packet(&mut self, now: Now, packet: &[u8]) {
        if let Ok(header) = foca::Codec::decode_header(&mut PacketCodec, packet) {
            self.notice_namesake(now, &header.src);
        }
    }

    /// foca lists everybody else of this node's name as down; so that is where a namesake shows that nobody met.
    pub(super) fn notice_namesake_in_list(&mut self, now: Now) {
        let me = self.swim.identity();
        let namesake = self
            .swim
            .iter_membership_state()
            .map(Member::id)
            .find(|id| id.name == me.name && id.generation != me.generation)
            .cloned();
        if let Some(namesake) = namesake {
            self.notice_namesake(now, &namesake);
        }
    }

    fn notice_namesake(&mut self, now: Now, namesake: &Identity) {
        let me = self.swim.identity();
        let is_another =
            namesake.generation != me.generation && namesake.address != me.address;
        let is_known =
            self.knocking.namesake.as_ref().is_some_and(|(known, _)| known.node() == namesake.node());
        if is_another && !is_known {
            let asks_already = self.knocking.namesake.is_some();
            self.knocking.namesake = Some((namesake.clone(), 0));
            if !asks_already {
                self.timers.schedule(now.mono, RANK_OWN, Due::Contest);
            }
        }
    }

    /// Asks the namesake whether it lives, a few times.
    pub(super) fn contest(&mut self, now: Now) {
        let Some((namesake, asked)) = &mut self.knocking.namesake else { return };
        *asked += 1;
        let is_over = *asked >= CONTESTS;
        let namesake = namesake.clone();
        if self.me.state != MemberState::Leaving && self.me.refused.is_none() {
            self.challenge(namesake, self.swim.identity().clone(), self.is_seated());
        }
        if !is_over {
            let at = now.mono + self.config.probe_period;
            self.timers.schedule(at, RANK_OWN, Due::Contest);
        }
    }

    fn note_contest(&mut self, now: Now, namesake: &Identity) {
        let is_known =
            self.knocking.namesake.as_ref().is_some_and(|(known, _)| known.node() == namesake.node());
        if !is_known {
            self.events.push_back(Event::NameContested(namesake.clone()));
        }
        self.notice_namesake(now, namesake);
    }
}
