//! The leases of one router: its vote on all of them, and its claim to each one that it may hold.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use smg_types::ids::{NodeId, NodeName};

use crate::claim::{Audience, Claim, Effects, Event};
use crate::fence::{Fence, OutdatedTerm};
use crate::message::{Content, Message};
use crate::name::{LeaseName, Term};
use crate::quorum::Quorum;
use crate::standing::{Around, Member, Status, TransferError};
use crate::times::Times;
use crate::voter::Voter;
use crate::votes::Votes;

/// The most messages and events that wait to be taken. A driver takes them after each input.
const MAX_WAITING: usize = 4_096;

/// A message to send. It may be lost: whatever matters is sent again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Outgoing {
    /// The router to send it to.
    pub to: NodeId,
    /// The message.
    pub message: Message,
}

/// The leases of one router.
///
/// All times are readings of one clock of this process that goes on while the machine is suspended (L9). They never run
/// backward. After each input: publish what [`still_held`](Self::still_held) returns, then send what
/// [`poll_transmit`](Self::poll_transmit) returns, in this order, so that no other router takes over what this one believes to
/// hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Leases<V> {
    me: NodeId,
    times: Times,
    votes: V,
    voter: Voter,
    claims: BTreeMap<LeaseName, Claim>,
    quorum: Quorum,
    members: BTreeMap<NodeName, Member>,
    fence: Fence,
    is_leaving: bool,
    outgoing: VecDeque<Outgoing>,
    events: VecDeque<Event>,
}

impl<V: Votes> Leases<V> {
    /// The leases of the router `me`, which starts at `at` and may hold the leases `names`. `floor`: a term that is larger than
    /// all before, as far as it can be known: the start's time in milliseconds. It votes on all leases that others name.
    #[must_use]
    pub fn new(
        at: Duration,
        me: NodeId,
        names: impl IntoIterator<Item = LeaseName>,
        times: Times,
        floor: Term,
        mut votes: V,
    ) -> Self {
        let (voter, mut released) = Voter::new(at, times, floor, &mut votes);
        let claims = names.into_iter().map(|name| {
            let mut claim = Claim::new(name.clone(), floor);
            claim.released = released.remove(&name);
            (name, claim)
        });
        Self {
            me,
            times,
            votes,
            voter,
            claims: claims.collect(),
            quorum: Quorum::default(),
            members: BTreeMap::new(),
            fence: Fence::default(),
            is_leaving: false,
            outgoing: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Takes the voters. It takes effect at once: a lease that lacks a majority of the new ones is held no longer (L12).
    pub fn set_quorum(&mut self, at: Duration, quorum: Quorum) {
        if self.quorum != quorum {
            if !self.quorum.0.is_empty() {
                self.voter.raise_floor(at);
            }
            self.quorum = quorum;
            self.for_each_claim(at, Claim::surroundings_changed);
        }
    }

    /// Takes the other routers, as membership knows them.
    pub fn set_members(&mut self, at: Duration, members: impl IntoIterator<Item = Member>) {
        let members = members.into_iter().filter(|member| member.node.name != self.me.name);
        let members = members.map(|member| (member.node.name.clone(), member)).collect();
        if self.members != members {
            let reached = self.reaches_majority();
            self.members = members;
            if self.reaches_majority() && !reached {
                self.for_each_claim(at, Claim::surroundings_changed);
            }
        }
    }

    /// Goes on under another generation, because the others take the present one for ended. The votes stay, and the leases are
    /// given up, since another router can't be their holder.
    pub fn set_me(&mut self, at: Duration, me: NodeId) {
        if self.me != me {
            self.for_each_claim(at, |claim, around, effects| {
                claim.release(around, effects, None, Duration::ZERO);
            });
            self.me = me;
        }
    }

    /// Handles a message. The caller has checked that `from` is a member and that the message is for this generation (L8).
    pub fn handle_message(&mut self, at: Duration, from: &NodeId, message: Message) {
        self.deliver(at, VecDeque::from([(from.clone(), message)]));
    }

    /// Does what is due. Call it when [`next_deadline`](Self::next_deadline) has come.
    pub fn handle_timeout(&mut self, at: Duration) {
        self.for_each_claim(at, Claim::handle_timeout);
    }

    /// When something is due, by the same clock.
    #[must_use]
    pub fn next_deadline(&self, at: Duration) -> Option<Duration> {
        let due = |claim: &Claim| claim.deadline(&self.around(at, &claim.lease));
        self.claims.values().filter_map(due).min()
    }

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<Outgoing> {
        self.outgoing.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The term in which this router holds a lease at `at`, and until when it does without another vote. Check it before each
    /// act, with a new reading of the clock (L9).
    #[must_use]
    pub fn still_held(&self, at: Duration, lease: &LeaseName) -> Option<(Term, Duration)> {
        self.claims.get(lease)?.held(&self.around(at, lease))
    }

    /// What is known of each lease.
    pub fn statuses(&self, at: Duration) -> impl Iterator<Item = Status> {
        self.claims.values().map(move |claim| claim.status(&self.around(at, &claim.lease)))
    }

    /// Whether a majority of the voters can be reached, as membership knows them.
    #[must_use]
    pub fn reaches_majority(&self) -> bool {
        self.quorum.is_met(|name| {
            *name == self.me.name || self.members.get(name).is_some_and(|m| m.is_present)
        })
    }

    /// The voters.
    #[must_use]
    pub const fn quorum(&self) -> &Quorum {
        &self.quorum
    }

    /// For how much longer this router abstains.
    #[must_use]
    pub fn abstains_for(&self, at: Duration) -> Duration {
        self.voter.abstains_until().saturating_sub(at)
    }

    /// Lets an act of a holder in, unless a later term of the lease is known here (L10).
    ///
    /// # Errors
    ///
    /// A later term is known.
    pub fn admit(&mut self, lease: &LeaseName, term: Term) -> Result<(), OutdatedTerm> {
        self.fence.admit(lease, term)
    }

    /// Learns of a term from a resource that outlives the routers. If this router holds the lease in no later term, it goes on
    /// in one (L11).
    pub fn note_term(&mut self, at: Duration, lease: &LeaseName, term: Term) {
        if !self.voter.is_plausible(at, term) {
            return;
        }
        let _is_known = self.fence.admit(lease, term).is_ok();
        self.for_each_claim(at, |claim, around, effects| {
            let is_late = claim.held.as_ref().is_some_and(|tenure| tenure.term <= term);
            if claim.lease == *lease {
                claim.highest = claim.highest.max(term);
                if is_late {
                    claim.release(around, effects, None, Duration::ZERO);
                }
            }
        });
    }

    /// Hands a lease to another router, which should hold it a moment later. This router holds it no longer when this returns.
    ///
    /// # Errors
    ///
    /// This router does not hold it, or the other one can't take it; nothing has changed.
    pub fn transfer(
        &mut self,
        at: Duration,
        lease: &LeaseName,
        to: &NodeName,
    ) -> Result<(), TransferError> {
        let not_held = || TransferError::NotHeld { lease: lease.clone(), holder: None };
        let claim = self.claims.get(lease).ok_or_else(not_held)?;
        if *to == self.me.name && self.still_held(at, lease).is_some() {
            return Ok(());
        }
        claim.check_transfer(&self.around(at, lease), to)?;
        let pause = self.times.handover;
        self.for_each_claim(at, |claim, around, effects| {
            if claim.lease == *lease {
                claim.release(around, effects, Some(to), pause);
            }
        });
        Ok(())
    }

    /// Gives a lease up. Another router becomes the holder if there is one that can; this one does not campaign for two times
    /// the length of a vote.
    ///
    /// # Errors
    ///
    /// This router does not hold it.
    pub fn step_down(&mut self, at: Duration, lease: &LeaseName) -> Result<(), TransferError> {
        let claim = self.claims.get(lease);
        if self.still_held(at, lease).is_none() {
            let holder = claim.and_then(|claim| claim.status(&self.around(at, lease)).holder);
            return Err(TransferError::NotHeld { lease: lease.clone(), holder });
        }
        let pause = self.times.ttl * 2;
        self.for_each_claim(at, |claim, around, effects| {
            if claim.lease == *lease {
                let to = claim.successor(around);
                claim.release(around, effects, to.as_ref(), pause);
            }
        });
        Ok(())
    }

    /// Hands all leases over, because this router is about to leave, and campaigns no more (L14). It still votes.
    pub fn leave(&mut self, at: Duration) {
        self.is_leaving = true;
        self.for_each_claim(at, |claim, around, effects| {
            let to = claim.successor(around);
            claim.release(around, effects, to.as_ref(), Duration::ZERO);
        });
    }

    fn around(&self, at: Duration, lease: &LeaseName) -> Around<'_> {
        let (me, voter) = (&self.me, &self.voter);
        let free_at = voter.abstains_until().max(voter.votes_for_other_until(lease, me));
        let is_able = !self.is_leaving && self.quorum.contains(&me.name);
        Around {
            at,
            me,
            quorum: &self.quorum,
            members: &self.members,
            times: &self.times,
            may_campaign: is_able && self.reaches_majority(),
            free_at,
        }
    }

    fn for_each_claim(
        &mut self,
        at: Duration,
        mut act: impl FnMut(&mut Claim, &Around<'_>, &mut Effects),
    ) {
        let mut effects = Effects::default();
        let mut claims = std::mem::take(&mut self.claims);
        for claim in claims.values_mut() {
            act(claim, &self.around(at, &claim.lease), &mut effects);
        }
        self.claims = claims;
        let own = self.apply(effects);
        self.deliver(at, own);
    }

    /// Handles messages, and the messages of this router to itself that follow.
    fn deliver(&mut self, at: Duration, mut incoming: VecDeque<(NodeId, Message)>) {
        while let Some((from, message)) = incoming.pop_front() {
            let effects = self.handle_one(at, &from, message);
            incoming.extend(self.apply(effects));
        }
    }

    fn handle_one(&mut self, at: Duration, from: &NodeId, message: Message) -> Effects {
        let mut effects = Effects::default();
        if !self.voter.is_plausible(at, message.term) {
            return effects;
        }
        if let Some(mut claim) = self.claims.remove(&message.lease) {
            self.inform(at, &mut claim, from, &message, &mut effects);
            self.claims.insert(message.lease.clone(), claim);
        }
        let Message { lease, term, .. } = message;
        if let Some(content) = self.vote(at, &lease, from, term, message.content) {
            let message = Message { lease, term, content };
            match *from == self.me {
                true => effects.own.push_back(message),
                false => self.send(from.clone(), message),
            }
        }
        effects
    }

    /// Lets the claim of this router know of a message.
    fn inform(
        &self,
        at: Duration,
        claim: &mut Claim,
        from: &NodeId,
        message: &Message,
        effects: &mut Effects,
    ) {
        let around = self.around(at, &message.lease);
        let Message { term, content, .. } = message;
        let is_own = *from == self.me;
        claim.expire(&around, effects);
        match content {
            Content::Prepare { .. } => claim.highest = claim.highest.max(*term),
            Content::Promised => claim.promised(&around, from, *term, effects),
            Content::Propose { is_held, .. } if !is_own => {
                claim.observe_proposal(&around, from, *term, *is_held, effects);
            }
            Content::Voted { request } => claim.voted(&around, from, (*term, *request), effects),
            Content::Refused { highest, reason } => {
                let is_plausible = self.voter.is_plausible(at, *highest);
                let highest = if is_plausible { *highest } else { Term::default() };
                claim.refused(&around, from, (*term, highest), reason, effects);
            }
            Content::Release { to } if !is_own => {
                claim.observe_release(&around, from, *term, to.as_ref());
            }
            Content::Propose { .. } | Content::Release { .. } => {}
        }
    }

    /// Lets the voter of this router answer a message.
    fn vote(
        &mut self,
        at: Duration,
        lease: &LeaseName,
        from: &NodeId,
        term: Term,
        content: Content,
    ) -> Option<Content> {
        let is_holder = *from != self.me && self.still_held(at, lease).is_some();
        let Self { voter, votes, times, .. } = self;
        match content {
            // The vote of the only voter for itself is not renewed, but must count when there are others.
            Content::Prepare { .. } | Content::Propose { .. } if is_holder => {
                Some(voter.refuse_as_holder(lease, &self.me, times.ttl))
            }
            Content::Prepare { released } => {
                if let Some((former, until)) = released {
                    voter.release(lease, &former, until, votes);
                }
                Some(voter.prepare(at, lease, from, term, votes))
            }
            Content::Propose { request, is_held } => {
                if is_held {
                    let _is_newest = self.fence.admit(lease, term).is_ok();
                }
                Some(voter.propose(at, lease, from, (term, request), votes))
            }
            Content::Release { .. } => {
                voter.release(lease, from, term, votes);
                None
            }
            Content::Promised | Content::Voted { .. } | Content::Refused { .. } => None,
        }
    }

    /// Sends messages and keeps events. Returns the messages of this router to itself.
    fn apply(&mut self, effects: Effects) -> VecDeque<(NodeId, Message)> {
        let Effects { messages, own, events } = effects;
        for event in events {
            if self.events.len() < MAX_WAITING {
                self.events.push_back(event);
            }
        }
        let mut own: VecDeque<_> =
            own.into_iter().map(|message| (self.me.clone(), message)).collect();
        for (audience, message) in messages {
            let is_addressed = |member: &&Member| {
                audience == Audience::Everyone || self.quorum.contains(&member.node.name)
            };
            let members = self.members.values().filter(|member| member.is_present);
            let to: Vec<NodeId> =
                members.filter(is_addressed).map(|member| member.node.clone()).collect();
            for node in to {
                self.send(node, message.clone());
            }
            own.push_back((self.me.clone(), message));
        }
        own
    }

    fn send(&mut self, to: NodeId, message: Message) {
        if self.outgoing.len() < MAX_WAITING {
            self.outgoing.push_back(Outgoing { to, message });
        }
    }
}
