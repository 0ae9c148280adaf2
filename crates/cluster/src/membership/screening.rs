//! Which reports of members are believed: bounds that hold whatever a member sends.
//!
//! A packet does not prove its sender. So the number of members that one packet can add is limited, and a member that no
//! reachable node confirms is forgotten within a minute:
//!
//! * A member is *met* once it has answered a probe of this node. At most [`MAX_STRANGERS`] members that were never met
//!   are listed as present. Beyond, a member is asked with a join probe, and listed when it answers. Its failure to answer
//!   probes then removes a made-up member as it removes one that has crashed.
//! * A member that is down or gone and was never met is forgotten after 15 s, unless another member that this
//!   node has met goes on listing it. The reports of others do not bring it back within a minute.
//! * A claim that is absurd against the clock counts only if the process makes it itself, is never taken from the reports of
//!   others, and is forgotten as soon as the process can't be reached. Otherwise the claim would keep the owner of the name
//!   out for ever, because it can't claim more.
//! * A full list takes a new member only in the place of one that is down or gone.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use foca::{Member, State, Timer};
use smg_types::ids::NodeName;
use smg_types::now::Now;

use crate::membership::Membership;
use crate::membership::identity::Identity;
use crate::membership::join_state::ANSWER_WITHIN;
use crate::membership::state::MemberState;

/// Most members listed as present of which none has answered a probe of this node yet. All can be probed within a quarter
/// of a minute.
const MAX_STRANGERS: usize = 16;

/// Most members that are down or gone and were never met.
const MAX_UNMET_ABSENT: usize = 64;

/// Most join probes to members that are not believed yet, per probe period.
const MAX_QUESTIONS: usize = 32;

/// The source of a report of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// Another node reports it.
    Relayed,
    /// It comes from the member itself, as far as the message says.
    Sender,
    /// The member answers a join probe of this node.
    Answer,
}

/// The numbers of unknown members that one message may still add.
#[derive(Debug)]
pub(super) struct Room {
    /// Members that were never met and are said to be present.
    strangers: usize,
    /// Members that were never met and are said to be down.
    absent: usize,
    /// The members that the message has reported already: each counts once.
    reported: BTreeSet<NodeName>,
}

impl Membership {
    /// The limits for one message. Call it once per message, because it scans the whole table.
    pub(super) fn room(&self) -> Room {
        let (strangers, absent) = self.table.count_unmet();
        Room {
            strangers: MAX_STRANGERS.saturating_sub(strangers),
            absent: MAX_UNMET_ABSENT.saturating_sub(absent),
            reported: BTreeSet::new(),
        }
    }

    /// Whether a report of a member may change the list. What is refused is counted.
    pub(super) fn believes(
        &mut self,
        now: Now,
        member: &Member<Identity>,
        evidence: Evidence,
        room: &mut Room,
    ) -> bool {
        let identity = member.id();
        if identity.name == self.swim.identity().name {
            // A report of this node's own name never adds a member.
            return true;
        }
        if !room.reported.insert(identity.name.clone()) {
            self.counters.stray_messages += 1;
            return false;
        }
        let is_down = member.state() == State::Down;
        if identity.is_absurd(now) && !self.counts_although_absurd(now, identity, evidence) {
            self.counters.absurd_claims += 1;
            if !is_down {
                self.ask(now, identity.address);
            }
            return false;
        }
        let known = self.table.get(&identity.name);
        if known.is_some_and(|record| record.state != Some(MemberState::Init)) {
            return true;
        }
        if evidence == Evidence::Relayed && self.joining.was_forgotten(now.mono, &identity.name) {
            self.counters.refused_strangers += 1;
            if !is_down {
                self.ask(now, identity.address);
            }
            return false;
        }
        if is_down {
            if room.absent == 0 {
                self.counters.refused_strangers += 1;
                return false;
            }
            room.absent -= 1;
        } else if evidence != Evidence::Answer {
            if room.strangers == 0 {
                self.counters.refused_strangers += 1;
                self.ask(now, identity.address);
                return false;
            }
            room.strangers -= 1;
        }
        self.make_room(now)
    }

    /// Whether a claim that is beyond the clock may count: one that is known already, or one that the process makes itself.
    /// A member that is present does not raise its own claim that far.
    fn counts_although_absurd(&self, now: Now, identity: &Identity, evidence: Evidence) -> bool {
        let record = self.table.get(&identity.name);
        if let Some(record) = record
            && record.identity.generation == identity.generation
        {
            let is_present = record.state.is_some_and(MemberState::is_present);
            if record.identity.claim() >= identity.claim() {
                return true;
            }
            if is_present && !record.identity.is_absurd(now) {
                return false;
            }
        }
        evidence != Evidence::Relayed
    }

    /// Makes room for one more name. Returns whether there is some.
    fn make_room(&mut self, now: Now) -> bool {
        if self.table.len() < self.config.max_members.get() {
            return true;
        }
        let Some(identity) = self.table.forget_oldest_absent() else {
            self.counters.refused_members += 1;
            return false;
        };
        self.drive(now, |swim, effects| swim.handle_timer(Timer::RemoveDown(identity), effects));
        true
    }

    /// Asks the process at `address` whether it is there, unless it was asked a moment ago or many others were.
    fn ask(&mut self, now: Now, address: SocketAddr) {
        let period = self.config.probe_period;
        let recent = self.joining.asked.values().filter(|at| now.mono < **at + period).count();
        if recent >= MAX_QUESTIONS
            || self.was_asked_within(period, now, address)
            || address == self.swim.identity().address
        {
            return;
        }
        self.send_join_probe(now, address);
    }

    /// Whether a join probe was sent to `address` so lately that a message from there may be the answer.
    pub(super) fn was_asked(&self, now: Now, address: SocketAddr) -> bool {
        self.was_asked_within(ANSWER_WITHIN, now, address)
    }

    /// Whether a join probe was sent to `address` within `time`.
    pub(super) fn was_asked_within(&self, time: Duration, now: Now, address: SocketAddr) -> bool {
        self.joining.asked.get(&address).is_some_and(|at| now.mono < *at + time)
    }

    /// Asks a member for its list, if there are members that are down, were never met, and were not listed lately.
    pub(super) fn seek_vouchers(&mut self, now: Now) {
        if !self.table.has_unvouched(now.mono) {
            return;
        }
        let met = self.table.present().filter(|record| record.met);
        let met: Vec<SocketAddr> = met.map(|record| record.identity.address).collect();
        for address in self.pick(met, 1) {
            self.send_join_probe(now, address);
        }
    }
}
