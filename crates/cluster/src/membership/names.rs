//! Names: each has one holder. Another process with the name of this node is its namesake.
//!
//! When a newcomer claims a name that a live member has *at another address*, the node that was asked challenges the
//! holder. If the holder answers, the newcomer is refused; if not, the holder has moved and is the newcomer. Two
//! processes of one name that meet decide it between themselves: one that is in a cluster goes before one that is not,
//! then the older before the younger. An answer counts only if it names the generation that it answers, so delayed
//! answers do nothing.

use std::net::SocketAddr;

use foca::Member;
use smg_types::ids::Generation;
use smg_types::now::Now;

use crate::codec::Kind;
use crate::membership::event::Event;
use crate::membership::identity::Identity;
use crate::membership::message::{Challenge, Hello, Refusal, RefusalReason, StillHere};
use crate::membership::packet::PacketCodec;
use crate::membership::state::MemberState;
use crate::membership::{Due, Membership, RANK_OWN};

/// How often a namesake that is only known from other nodes is challenged.
const MAX_CHALLENGES: u32 = 5;

impl Membership {
    pub(super) fn handle_hello_of_namesake(&mut self, now: Now, from: SocketAddr, hello: &Hello) {
        let (me, it) = (self.swim.identity(), &hello.identity);
        if it.generation == me.generation {
            // This is our own join probe.
            self.joining.note_own_address(now.mono, hello.dialled);
            self.become_alive_if_alone(now);
        } else if it.address == me.address {
            // It is an earlier generation at this very address.
            self.counters.stray_messages += 1;
        } else if self.me.state == MemberState::Leaving {
            // It takes over the name.
            self.send_welcome(now, from, hello);
        } else {
            self.resolve_name_conflict(it.clone(), hello.joined);
        }
    }

    pub(super) fn handle_refusal(&mut self, now: Now, refusal: Refusal) {
        let me = self.swim.identity();
        if refusal.to != me.generation {
            self.counters.stray_messages += 1;
            return;
        }
        match refusal.reason {
            RefusalReason::DuplicateName(holder) => {
                self.handle_live_namesake(now, &holder, refusal.joined);
            }
            RefusalReason::ForeignCluster(_) => {
                // Other join addresses may be right, so this ends nothing; an operator must know of it.
                self.events.push_back(Event::Refused(refusal.reason));
            }
        }
    }

    /// A node believes that this one holds a name that another process claims.
    pub(super) fn handle_challenge(&mut self, now: Now, challenge: &Challenge) {
        let Challenge { holder, claimant, asker, joined } = challenge;
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
        let answer = StillHere { holder: me, claimant: claimant.clone(), joined: self.is_joined() };
        self.send_message(*asker, None, Kind::StillHere, &answer);
        self.report_contest(now, claimant);
        self.resolve_name_conflict(claimant.clone(), *joined);
    }

    pub(super) fn handle_still_here(&mut self, now: Now, answer: &StillHere) {
        let StillHere { holder, claimant, joined } = answer;
        let me = self.swim.identity();
        if holder.name != claimant.name || !holder.is_plausible() {
            self.counters.stray_messages += 1;
        } else if claimant.name == me.name {
            if claimant.generation == me.generation {
                self.handle_live_namesake(now, holder, *joined);
            } else {
                self.counters.stray_messages += 1;
            }
        } else {
            self.refuse_claim(answer);
        }
    }

    /// Whether this node is in a cluster, and so keeps its name before any newcomer.
    pub(super) fn is_joined(&self) -> bool {
        self.me.state == MemberState::Alive && self.me.refused.is_none()
    }

    /// Whether this node gives up its name for `other`: a node in a cluster goes before one that is not, then the older
    /// one goes first.
    pub(super) fn yields_to(&self, other: &Identity, other_joined: bool) -> bool {
        let rank = |joined: bool, generation: Generation| (!joined, generation);
        let mine = rank(self.is_joined(), self.swim.identity().generation);
        mine > rank(other_joined, other.generation)
    }

    /// Another process with this node's name is known, perhaps only from an old message. If it must give up the name it
    /// is refused; otherwise it is challenged.
    pub(super) fn resolve_name_conflict(&mut self, namesake: Identity, joined: bool) {
        let me = self.swim.identity().clone();
        let am_joined = self.is_joined();
        if self.yields_to(&namesake, joined) {
            self.challenge(namesake, me, am_joined);
        } else {
            self.refuse(&namesake, me, am_joined);
        }
    }

    /// `holder`, another process with this node's name, certainly runs: one of the two gives up the name.
    pub(super) fn handle_live_namesake(&mut self, now: Now, holder: &Identity, joined: bool) {
        let me = self.swim.identity().clone();
        if holder.name != me.name || holder.generation == me.generation || self.me.departed {
            return;
        }
        if self.me.state == MemberState::Leaving {
            // It has taken over the name, and this node has nothing left to send.
            self.me.departed = true;
        } else if self.yields_to(holder, joined) {
            self.give_up_name(now, holder.clone());
        } else {
            self.report_contest(now, holder);
            // Its claim may be higher, but this node need not raise its own: a member that lists this node asks it first
            // (`claims`), and a node that lists the other process says so in its welcome.
            self.refuse(holder, me, self.is_joined());
        }
    }

    pub(super) fn give_up_name(&mut self, now: Now, holder: Identity) {
        let reason = RefusalReason::DuplicateName(holder);
        if self.me.refused.is_none() {
            self.me.refused = Some(reason.clone());
            if self.swim.num_members() > 0 {
                self.me.gave_up_name = true;
                self.drive(now, |swim, effects| swim.leave_cluster(effects));
            }
            self.set_own_state(now, MemberState::Init);
            self.events.push_back(Event::Refused(reason));
        } else {
            self.me.refused = Some(reason);
        }
    }

    pub(super) fn refuse(&mut self, newcomer: &Identity, holder: Identity, joined: bool) {
        self.counters.refusals += 1;
        let refusal = Refusal {
            to: newcomer.generation,
            reason: RefusalReason::DuplicateName(holder),
            joined,
        };
        self.send_message(newcomer.address, Some(newcomer.name.clone()), Kind::Refusal, &refusal);
    }

    pub(super) fn challenge(&mut self, holder: Identity, claimant: Identity, joined: bool) {
        let (to, name) = (holder.address, holder.name.clone());
        let asker = self.swim.identity().address;
        let challenge = Challenge { holder, claimant, asker, joined };
        self.send_message(to, Some(name), Kind::Challenge, &challenge);
    }

    /// foca refused a packet because it came from this node's own name.
    pub(super) fn notice_namesake_packet(&mut self, now: Now, packet: &[u8]) {
        if let Ok(header) = foca::Codec::decode_header(&mut PacketCodec, packet) {
            self.notice_namesake(now, &header.src);
        }
    }

    /// foca lists other processes of this node's name as down, so its list may show a namesake that this node never
    /// met.
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

    pub(super) fn notice_namesake(&mut self, now: Now, namesake: &Identity) {
        let me = self.swim.identity();
        let is_another = namesake.generation != me.generation && namesake.address != me.address;
        let is_known = self
            .joining
            .namesake
            .as_ref()
            .is_some_and(|(known, _)| known.node() == namesake.node());
        if is_another && !is_known {
            let asks_already = self.joining.namesake.is_some();
            self.joining.namesake = Some((namesake.clone(), 0));
            if !asks_already {
                self.timers.schedule(now.mono, RANK_OWN, Due::ChallengeNamesake);
            }
        }
    }

    /// Challenges the namesake, a few times.
    pub(super) fn challenge_namesake(&mut self, now: Now) {
        let Some((namesake, asked)) = &mut self.joining.namesake else { return };
        *asked += 1;
        let was_last = *asked >= MAX_CHALLENGES;
        let namesake = namesake.clone();
        if self.me.state != MemberState::Leaving && self.me.refused.is_none() {
            self.challenge(namesake, self.swim.identity().clone(), self.is_joined());
        }
        if !was_last {
            let at = now.mono + self.config.probe_period;
            self.timers.schedule(at, RANK_OWN, Due::ChallengeNamesake);
        }
    }

    pub(super) fn report_contest(&mut self, now: Now, namesake: &Identity) {
        let is_known = self
            .joining
            .namesake
            .as_ref()
            .is_some_and(|(known, _)| known.node() == namesake.node());
        if !is_known {
            self.events.push_back(Event::NameContested(namesake.clone()));
        }
        self.notice_namesake(now, namesake);
    }
}
