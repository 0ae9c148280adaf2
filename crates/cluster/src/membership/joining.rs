//! Joining, and staying in touch: join probes to join addresses and to members that are down, for ever.
//!
//! A join probe (`Hello`) is answered with all members that are known (`Welcome`), so that a newcomer needs one
//! exchange at any size of the cluster. Join probes never end: a join address without a live member, and a member that
//! is down, are probed again and again. That heals partitions of any length, and a router may start before the ones
//! that it is to join.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use foca::{Member, State};
use rand::RngExt;
use smg_types::ids::{Generation, NodeId};
use smg_types::now::Now;

use crate::codec::{self, Frame, Kind, PayloadError};
use crate::membership::event::{Event, MemberView};
use crate::membership::identity::Identity;
use crate::membership::join_state::MAX_ADDRESSES;
use crate::membership::message::{
    Goodbye, Hello, Listed, ListedState, MAX_WELCOME_MEMBERS, Refusal, RefusalReason, Welcome,
};
use crate::membership::screening::Evidence;
use crate::membership::state::MemberState;
use crate::membership::{Due, Membership, NEWCOMER_LISTED, RANK_OWN};
use crate::plausible::{CLOCK_ERROR, claims_of};

impl Membership {
    /// Takes the join addresses: the whole list, each time that names were resolved. An empty list means that there is
    /// no other router to join.
    pub fn join(&mut self, now: Now, addresses: &[SocketAddr]) {
        self.joining.expire_own_addresses(now.mono);
        let addresses = addresses.iter().copied().take(MAX_ADDRESSES).collect();
        let former = std::mem::replace(&mut self.joining.addresses, addresses);
        self.become_alive_if_alone(now);
        // Later calls wait for the next round: the list comes again and again.
        if self.joining.next_round_at == Duration::ZERO
            || (self.joining.is_paused && self.may_find_others())
        {
            self.run_join_round(now);
        } else if self.swim.num_members() == 0 && self.me.state != MemberState::Leaving {
            self.probe_new_addresses(now, &former);
        }
    }

    /// Probes join addresses that were not in the list before. Names are resolved one by one: if the first address is that
    /// of a router that is gone, the others must not wait for the next round.
    fn probe_new_addresses(&mut self, now: Now, former: &BTreeSet<SocketAddr>) {
        let mine = self.swim.identity().address;
        let new = self.joining.addresses.difference(former).copied().filter(|address| {
            *address != mine && !self.joining.own_addresses.contains_key(address)
        });
        let new = self.pick(new.collect(), self.config.join_alone_fanout.get());
        for address in &new {
            self.send_join_probe(now, *address);
        }
        self.joining.probed.extend(new);
    }

    /// Goes on with join rounds after a pause: a member is known now, and it may go down.
    pub(super) fn resume_join_rounds(&mut self, now: Now) {
        if std::mem::take(&mut self.joining.is_paused) {
            self.schedule_join_round(now);
        }
    }

    /// Whether there is an address to probe, now or later.
    fn may_find_others(&self) -> bool {
        self.table.len() > 0 || self.has_foreign_join_address()
    }

    /// Whether a join address is not known to be this node's own.
    fn has_foreign_join_address(&self) -> bool {
        let mine = self.swim.identity().address;
        let mut addresses = self.joining.addresses.iter();
        addresses
            .any(|address| *address != mine && !self.joining.own_addresses.contains_key(address))
    }

    pub(super) fn run_join_round_if_current(&mut self, now: Now, at: Duration) {
        if at == self.joining.next_round_at {
            self.run_join_round(now);
        }
    }

    pub(super) fn send_join_probe(&mut self, now: Now, address: SocketAddr) {
        self.joining.note_asked(now.mono, address);
        let (identity, joined) = (self.swim.identity().clone(), self.is_joined());
        let hello = Hello { identity, dialled: address, joined };
        self.send_message(address, None, Kind::Hello, &hello);
    }

    fn run_join_round(&mut self, now: Now) {
        let is_alone = self.swim.num_members() == 0;
        let join_addresses = self.joining.addresses.iter().copied().filter(|address| {
            !self.joining.own_addresses.contains_key(address) && !self.table.is_present_at(*address)
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
            let fanout =
                if is_alone { self.config.join_alone_fanout } else { self.config.join_fanout };
            for address in self.pick_in_turn(&candidates, fanout.get()) {
                self.send_join_probe(now, address);
            }
        }
        self.joining.is_paused = !self.may_find_others();
        if !self.joining.is_paused {
            self.schedule_join_round(now);
        }
    }

    fn schedule_join_round(&mut self, now: Now) {
        let is_alone = self.swim.num_members() == 0;
        let period = if is_alone { self.config.join_alone_period } else { self.config.join_period };
        let at = now.mono + period.mul_f64(self.rng.random_range(0.75..1.25));
        self.joining.next_round_at = at;
        self.timers.schedule(at, RANK_OWN, Due::JoinRound { at });
    }

    /// Up to `count` random addresses of `candidates`; those that had no turn yet come first.
    fn pick_in_turn(&mut self, candidates: &BTreeSet<SocketAddr>, count: usize) -> Vec<SocketAddr> {
        self.joining.probed.retain(|address| candidates.contains(address));
        let waiting: Vec<_> = candidates.difference(&self.joining.probed).copied().collect();
        let mut chosen = self.pick(waiting, count);
        if chosen.len() < count {
            let had_turn: Vec<_> = self.joining.probed.iter().copied().collect();
            self.joining.probed.clear();
            chosen.extend(self.pick(had_turn, count - chosen.len()));
        }
        self.joining.probed.extend(&chosen);
        chosen
    }

    /// A node without join addresses, or with only its own, is a cluster of one.
    pub(super) fn become_alive_if_alone(&mut self, now: Now) {
        if !self.has_foreign_join_address()
            && self.me.state == MemberState::Init
            && self.me.refused.is_none()
        {
            self.set_own_state(now, MemberState::Alive);
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
        if !self.defers_newcomer(now, from, hello) {
            self.send_welcome(now, from, hello);
        }
    }

    pub(super) fn send_welcome(&mut self, now: Now, from: SocketAddr, hello: &Hello) {
        let it = &hello.identity;
        let known = self.table.get(&it.name).map(|record| record.identity.clone());
        // A member that is down or gone here must claim more to be believed again, even if it is the same generation.
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
            let state = match record.state {
                // A member that this node has not met is not listed, so that nodes do not repeat each other's reports for ever.
                Some(MemberState::Down) | None if !record.met => return None,
                None => ListedState::Gone,
                Some(MemberState::Init) => return None,
                Some(MemberState::Alive) => ListedState::Alive,
                Some(MemberState::Suspected) => ListedState::Suspected,
                Some(MemberState::Leaving) => ListedState::Leaving,
                Some(MemberState::Down) => ListedState::Down(now.mono.saturating_sub(record.since)),
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
        self.update_table(now, &BTreeMap::new());
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
        let has_answered = self.was_asked(now, welcome.from.address);
        if let Some(known) = welcome.known.filter(|known| known.name == me.name) {
            if !known.is_plausible() {
                self.counters.stray_messages += 1;
                return;
            }
            self.raise_claim_above(now, &known);
        }
        if self.me.gave_up_name {
            // The host may not know that this node gave up its name. Others do, and foca does nothing until its
            // identity changes.
            self.renew(now);
        }
        if self.me.state == MemberState::Init {
            self.set_own_state(now, MemberState::Alive);
        }
        let host = welcome.from;
        self.merge_member_list(now, &host, has_answered, welcome.members);
        if !self.is_claim(now, &host) {
            self.drive(now, |swim, effects| swim.announce(host, effects));
        }
    }

    /// Raises this node's claim above `known`, so that nodes which know `known` under its name believe it. But not so far
    /// that no room is left for later raises; and a node that is in a cluster does not follow a claim that is beyond both
    /// the clock and its own claim, because the nodes that hold it forget it.
    pub(super) fn raise_claim_above(&mut self, now: Now, known: &Identity) {
        let me = self.swim.identity().clone();
        let is_far = known.is_absurd(now)
            && known.claim().saturating_sub(me.claim()) > claims_of(CLOCK_ERROR)
            && self.me.state != MemberState::Init;
        if is_far || known.claim() >= Identity::MAX_CLAIM - Identity::CLAIM_ROOM {
            self.counters.absurd_claims += 1;
            return;
        }
        if known.generation > me.generation {
            // A later generation has written rows. If this node went on below it, it would be taken for the earlier
            // one.
            self.begin_generation_above(now, known);
        } else if known.claim() >= me.claim() {
            self.counters.renewals += 1;
            let raised = me.raised_above(known.claim());
            self.change_identity(now, raised.clone());
            self.events.push_back(Event::Renewed(raised));
        }
    }

    /// Informs a member that a later generation of its name is remembered here, so that it goes on above that one (R45).
    pub(crate) fn report_generation(&mut self, member: &MemberView, later: Generation) {
        let NodeId { name, generation } = &member.node;
        let known =
            Identity { name: name.clone(), generation: later, renewal: 0, address: member.address };
        let welcome = Welcome {
            to: *generation,
            from: self.swim.identity().clone(),
            seen_as: member.address,
            known: Some(known),
            members: Vec::new(),
        };
        self.send_message(member.address, Some(name.clone()), Kind::Welcome, &welcome);
    }

    pub(super) fn begin_generation_above(&mut self, now: Now, known: &Identity) {
        let me = self.swim.identity().clone();
        self.me.must_exceed = self.me.must_exceed.max(known.generation);
        if !self.me.may_begin_generation(now.mono) {
            self.counters.refused_generations += 1;
            return;
        }
        // A random part, so that two processes which do this at the same time get different generations.
        let above = self.me.must_exceed.0 + 1 + u64::from(self.rng.random::<u16>());
        let later = Identity { generation: Generation(above), renewal: 0, ..me.clone() };
        let later = later.raised_above(known.claim());
        self.events.push_back(Event::NewGeneration { was: me.node(), is: later.node() });
        self.change_identity(now, later);
    }

    /// Merges a member list. Members that are down are added only if they are unknown here: a list from the other side
    /// of a partition must not declare live members down.
    fn merge_member_list(
        &mut self,
        now: Now,
        host: &Identity,
        has_answered: bool,
        members: Vec<Listed>,
    ) {
        let mine = self.swim.identity().name.clone();
        let mut room = self.room();
        let host_is_met = has_answered || self.table.get(&host.name).is_some_and(|host| host.met);
        let mut updates = Vec::new();
        let mut down_since = BTreeMap::new();
        let mut leaving = Vec::new();
        let mut gone = Vec::new();
        for Listed { identity, incarnation, state } in members {
            if identity.name == mine || !identity.is_plausible() {
                continue;
            }
            let known = self.table.get(&identity.name);
            let is_unknown = known.is_none_or(|record| record.state == Some(MemberState::Init));
            match state {
                ListedState::Alive | ListedState::Suspected | ListedState::Leaving => {
                    let is_suspected = state == ListedState::Suspected;
                    let in_foca = if is_suspected { State::Suspect } else { State::Alive };
                    let evidence = if identity != *host {
                        Evidence::Relayed
                    } else if has_answered {
                        Evidence::Answer
                    } else {
                        Evidence::Sender
                    };
                    let member = Member::new(identity.clone(), incarnation, in_foca);
                    if !self.believes(now, &member, evidence, &mut room)
                        || self.defers_member(now, &member)
                    {
                        continue;
                    }
                    updates.push(member);
                    // Of a member that is known, only its own goodbyes count: lists would repeat a false one for ever.
                    if state == ListedState::Leaving && is_unknown {
                        leaving.push(identity);
                    }
                }
                ListedState::Gone => gone.push(Goodbye { identity, gone: true }),
                ListedState::Down(ago) => {
                    let member = Member::new(identity.clone(), incarnation, State::Down);
                    if !is_unknown {
                        if host_is_met {
                            self.table.vouch(now.mono, &identity);
                        }
                    } else if ago < self.config.forget_after
                        && self.believes(now, &member, Evidence::Relayed, &mut room)
                    {
                        down_since.insert(identity.name, now.mono.saturating_sub(ago));
                        updates.push(member);
                    }
                }
            }
        }
        let mut effects = std::mem::take(&mut self.effects);
        let applied = self.swim.apply_many(updates.into_iter(), false, &mut effects);
        self.effects = effects;
        self.update_table(now, &down_since);
        for identity in leaving {
            self.table.mark_leaving(now.mono, &identity);
        }
        if has_answered
            && let Some(record) = self.table.get_mut(&host.name)
            && record.identity.generation == host.generation
        {
            record.met = true;
        }
        // Does what foca wanted done above.
        self.drive(now, |_, _| applied);
        for goodbye in gone {
            self.apply_goodbye(now, &goodbye);
        }
    }

    /// Handles a frame of another cluster. A newcomer is refused, in a frame of its own cluster; everything else is
    /// dropped.
    pub(super) fn answer_foreign_frame(&mut self, frame: &Frame<'_>) -> Result<(), PayloadError> {
        if frame.kind == Kind::Hello {
            let hello: Hello = frame.decode()?;
            let refusal = Refusal {
                to: hello.identity.generation,
                reason: RefusalReason::ForeignCluster(hello.dialled),
                joined: true,
            };
            let bytes = codec::frame(Kind::Refusal, frame.cluster, &codec::encode(&refusal));
            self.send(hello.identity.address, None, bytes);
        }
        Ok(())
    }
}
