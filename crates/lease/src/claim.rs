//! The claim of this router to one lease: whether it holds it, and who else does. [`campaign`](crate::campaign) is how it becomes
//! the holder.

use std::collections::VecDeque;
use std::time::Duration;

use smg_types::ids::{NodeId, NodeName};

use crate::message::{Content, Message};
use crate::name::{LeaseName, Term};
use crate::round::Round;
use crate::standing::{Around, Status, TransferError};
use crate::tenure::Tenure;

/// A change of this router's part in a lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Event {
    /// The lease.
    pub lease: LeaseName,
    /// The term that it concerns.
    pub term: Term,
    /// What has happened.
    pub kind: EventKind,
}

/// What has happened to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// This router campaigns.
    Started,
    /// This router holds the lease.
    Won,
    /// This router has campaigned, and another router holds the lease.
    Lost,
    /// This router holds the lease no longer, because a majority has not voted for it in time.
    Expired,
    /// This router has given the lease up.
    Released,
    /// This router goes on as the holder in a later term (L16).
    Raised,
}

impl EventKind {
    /// The name, for metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Won => "won",
            Self::Lost => "lost",
            Self::Expired => "expired",
            Self::Released => "released",
            Self::Raised => "raised",
        }
    }
}

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Audience {
    /// All voters, this router included.
    Voters,
    /// All voters and all members: those without a vote learn who holds the lease.
    Everyone,
}

/// What a claim wants done.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) messages: VecDeque<(Audience, Message)>,
    /// Answers of this router to itself.
    pub(crate) own: VecDeque<Message>,
    pub(crate) events: Vec<Event>,
}

/// Another router that holds the lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) holder: NodeId,
    pub(crate) term: Term,
    /// Until when it may hold it without another message.
    pub(crate) until: Duration,
}

/// The claim of this router to one lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    pub(crate) lease: LeaseName,
    /// The largest term that is known (L11).
    pub(crate) highest: Term,
    /// Own terms up to this one have ended, except the held one (L6).
    pub(crate) ended: Term,
    pub(crate) seen: Option<Seen>,
    /// The last holder that has released its terms, and the last one of these.
    pub(crate) released: Option<(NodeId, Term)>,
    pub(crate) round: Option<Round>,
    /// The term that was asked for last, if no request for votes was sent in it.
    pub(crate) unused: Option<Term>,
    /// The term for which votes are being asked.
    pub(crate) proposed: Option<Tenure>,
    pub(crate) held: Option<Tenure>,
    /// When this router may campaign.
    pub(crate) not_before: Duration,
    /// The number of campaigns since a holder was known.
    pub(crate) attempts: u32,
    /// The number of the last request.
    pub(crate) requests: u64,
}

impl Claim {
    pub(crate) fn new(lease: LeaseName, floor: Term) -> Self {
        Self {
            lease,
            highest: floor,
            ended: Term(0),
            seen: None,
            released: None,
            round: None,
            unused: None,
            proposed: None,
            held: None,
            not_before: Duration::ZERO,
            attempts: 0,
            requests: 0,
        }
    }

    /// Until when this router holds the lease, and in which term.
    pub(crate) fn held(&self, around: &Around<'_>) -> Option<(Term, Duration)> {
        let tenure = self.held.as_ref()?;
        let until = tenure.until(around.quorum, &around.me.name)?;
        (around.at < until).then_some((tenure.term, until))
    }

    pub(crate) fn status(&self, around: &Around<'_>) -> Status {
        let held = self.held(around);
        let seen = self.seen.as_ref().filter(|seen| around.at < seen.until);
        let holder = match held {
            Some(_) => Some(around.me.clone()),
            None => seen.map(|seen| seen.holder.clone()),
        };
        let last = self.seen.as_ref().map_or(Term(0), |seen| seen.term).max(self.ended);
        let term = held.map(|(term, _)| term).or_else(|| seen.map(|seen| seen.term));
        Status {
            lease: self.lease.clone(),
            holder,
            term: term.unwrap_or(last),
            known_until: match held {
                Some((_, until)) => until,
                None => seen.map_or(Duration::ZERO, |seen| seen.until),
            },
            held_until: held.map(|(_, until)| until),
        }
    }

    /// When something is due.
    pub(crate) fn deadline(&self, around: &Around<'_>) -> Option<Duration> {
        let me = &around.me.name;
        let held = self.held.as_ref().map(|tenure| match tenure.until(around.quorum, me) {
            Some(Duration::MAX) => Duration::MAX,
            Some(until) if self.proposed.is_some() => until,
            Some(until) => until.min(tenure.renew_at),
            None => around.at,
        });
        let proposed = self.proposed.as_ref().map(|tenure| tenure.since + around.times.round);
        let round = self.round.as_ref().map(|round| round.since + around.times.round);
        let campaign = self.campaign_at(around);
        let all = [held, proposed, round, campaign];
        all.into_iter().flatten().min().filter(|due| *due < Duration::MAX)
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, around: &Around<'_>, effects: &mut Effects) {
        self.expire(around, effects);
        let renews = self.proposed.is_none() && !around.quorum.is_only(&around.me.name);
        if renews && self.held.as_ref().is_some_and(|tenure| tenure.renew_at <= around.at) {
            self.request_votes(around, effects);
        }
        self.advance_campaign(around, effects);
    }

    /// Ends the own term if its votes have ended. This comes before everything else, so that votes that arrive late do not
    /// bring an ended term back (L6).
    pub(crate) fn expire(&mut self, around: &Around<'_>, effects: &mut Effects) {
        if self.held.is_some() && self.held(around).is_none() {
            self.end_terms(around, effects, EventKind::Expired, None);
            self.not_before = around.at + around.stagger(&self.lease, self.attempts);
        }
    }

    /// The voters are others than before, or a majority of them can be reached again.
    pub(crate) fn surroundings_changed(&mut self, around: &Around<'_>, effects: &mut Effects) {
        self.expire(around, effects);
        let stagger = around.stagger(&self.lease, self.attempts);
        self.not_before = self.not_before.max(around.at + stagger);
    }

    /// Ends all terms of this router, for good.
    fn end_terms(
        &mut self,
        around: &Around<'_>,
        effects: &mut Effects,
        kind: EventKind,
        to: Option<&NodeName>,
    ) {
        self.round = None;
        let held = self.held.take().map(|tenure| tenure.term);
        let proposed = self.proposed.take().map(|tenure| tenure.term);
        if held.or(proposed).is_some() {
            self.ended = self.ended.max(held.max(proposed).unwrap_or_default());
            self.broadcast(
                effects,
                Audience::Voters,
                self.ended,
                Content::Release { to: to.cloned() },
            );
        }
        if let Some(term) = held {
            effects.events.push(Event { lease: self.lease.clone(), term, kind });
            self.attempts = 0;
        }
        self.not_before = self.not_before.max(around.at);
    }

    /// Gives the lease up, for `to` or for whoever comes. This router does not campaign for `pause`.
    pub(crate) fn release(
        &mut self,
        around: &Around<'_>,
        effects: &mut Effects,
        to: Option<&NodeName>,
        pause: Duration,
    ) {
        self.end_terms(around, effects, EventKind::Released, to);
        self.not_before = around.at + pause + around.stagger(&self.lease, self.attempts);
    }

    /// Whether the lease can be handed to `to`.
    pub(crate) fn check_transfer(
        &self,
        around: &Around<'_>,
        to: &NodeName,
    ) -> Result<(), TransferError> {
        let tenure = self.held.as_ref().filter(|_| self.held(around).is_some());
        let Some(tenure) = tenure else {
            let Status { lease, holder, .. } = self.status(around);
            return Err(TransferError::NotHeld { lease, holder });
        };
        if !around.quorum.contains(to) {
            return Err(TransferError::NoVoter(to.clone()));
        }
        let votes = tenure.vote_of(to).is_some_and(|until| around.at < until);
        let member = around.members.get(to);
        let is_ready = member.is_some_and(|member| member.is_present && !member.is_leaving);
        match votes && is_ready {
            true => Ok(()),
            false => Err(TransferError::NotReady(to.clone())),
        }
    }

    /// The router to which the lease is handed when this one leaves: the ready one with the latest vote.
    pub(crate) fn successor(&self, around: &Around<'_>) -> Option<NodeName> {
        let names = around.quorum.names().into_iter().filter(|name| **name != around.me.name);
        let ready = names.filter(|name| self.check_transfer(around, name).is_ok());
        let latest = |name: &&NodeName| self.held.as_ref().and_then(|tenure| tenure.vote_of(name));
        ready.max_by_key(latest).cloned()
    }

    /// Learns that another router asks for votes, or holds the lease.
    pub(crate) fn observe_proposal(
        &mut self,
        around: &Around<'_>,
        from: &NodeId,
        term: Term,
        is_held: bool,
        effects: &mut Effects,
    ) {
        self.highest = self.highest.max(term);
        if !is_held {
            // It has the promises of a majority: let it finish.
            self.not_before = self.not_before.max(around.at + around.times.round);
            return;
        }
        if self.seen.as_ref().is_some_and(|seen| seen.term > term) {
            return;
        }
        let ends_ours = self.held.as_ref().is_some_and(|tenure| tenure.term < term);
        if ends_ours {
            // Never while the rules hold. If they do not, because a clock is wrong beyond its bound, the later term counts.
            self.end_terms(around, effects, EventKind::Expired, None);
        }
        if self.attempts > 0 && self.held.is_none() {
            self.attempts = 0;
            let kind = EventKind::Lost;
            effects.events.push(Event { lease: self.lease.clone(), term, kind });
        }
        let until = around.at + around.times.ttl;
        self.seen = Some(Seen { holder: from.clone(), term, until });
        self.not_before = until + around.stagger(&self.lease, 0);
    }

    /// Learns that another router has released a term.
    pub(crate) fn observe_release(
        &mut self,
        around: &Around<'_>,
        from: &NodeId,
        term: Term,
        to: Option<&NodeName>,
    ) {
        self.highest = self.highest.max(term);
        let is_of_it = |seen: &Seen| seen.term <= term && seen.holder == *from;
        if !self.seen.as_ref().is_some_and(is_of_it) {
            return;
        }
        self.seen = None;
        self.released = Some((from.clone(), term));
        let stagger = around.stagger(&self.lease, 0);
        self.not_before = match to {
            Some(name) if *name == around.me.name => around.at,
            Some(_) => around.at + around.times.handover + stagger,
            None => around.at + stagger,
        };
    }

    pub(crate) fn broadcast(
        &self,
        effects: &mut Effects,
        audience: Audience,
        term: Term,
        content: Content,
    ) {
        let lease = self.lease.clone();
        effects.messages.push_back((audience, Message { lease, term, content }));
    }
}
