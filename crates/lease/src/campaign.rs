//! How a router becomes the holder of a lease: it asks for the promises of a majority, and then for its votes.

use std::collections::BTreeSet;
use std::time::Duration;

use smg_types::ids::NodeId;

use crate::claim::{Audience, Claim, Effects, Event, EventKind};
use crate::message::{Content, Refusal};
use crate::name::Term;
use crate::round::Round;
use crate::standing::Around;
use crate::tenure::Tenure;

/// Pause before a candidate repeats a campaign that was refused only because it did not know the latest term.
const REPEAT: Duration = Duration::from_millis(10);

impl Claim {
    /// When this router campaigns; `None`: not as things are.
    pub(crate) fn campaign_at(&self, around: &Around<'_>) -> Option<Duration> {
        let is_idle = self.held.is_none() && self.proposed.is_none() && self.round.is_none();
        if !is_idle || !around.may_campaign {
            return None;
        }
        let seen = self.seen.as_ref().map_or(Duration::ZERO, |seen| seen.until);
        let free = around.free_at + around.stagger(&self.lease, self.attempts);
        Some(self.not_before.max(seen).max(free))
    }

    /// Begins a campaign that is due, and ends one that has failed.
    pub(crate) fn advance_campaign(&mut self, around: &Around<'_>, effects: &mut Effects) {
        let is_over = |since: Duration| since + around.times.round <= around.at;
        if self.proposed.as_ref().is_some_and(|tenure| is_over(tenure.since)) {
            self.give_up_proposal(around, effects);
        }
        if self.round.as_ref().is_some_and(|round| is_over(round.since)) {
            self.fail(around, None);
        }
        if self.campaign_at(around).is_some_and(|due| due <= around.at) {
            self.begin_round(around, effects);
        }
    }

    /// Asks for promises in a term above all that are known (L11).
    fn begin_round(&mut self, around: &Around<'_>, effects: &mut Effects) {
        let term = match self.unused {
            // Nobody has refused it: no need for another number while no majority answers.
            Some(term) if term == self.highest => term,
            _ => self.highest.next(),
        };
        self.highest = term;
        self.unused = Some(term);
        if self.held.is_none() {
            if self.attempts == 0 {
                let kind = EventKind::Started;
                effects.events.push(Event { lease: self.lease.clone(), term, kind });
            }
            self.attempts += 1;
        }
        self.round = Some(Round {
            term,
            since: around.at,
            promised: BTreeSet::new(),
            refused: BTreeSet::new(),
            wait: None,
        });
        self.broadcast(
            effects,
            Audience::Voters,
            term,
            Content::Prepare { released: self.released.clone() },
        );
    }

    /// Counts a promise. With those of a majority, asks for votes.
    pub(crate) fn promised(
        &mut self,
        around: &Around<'_>,
        from: &NodeId,
        term: Term,
        effects: &mut Effects,
    ) {
        let Some(round) = self.round.as_mut().filter(|round| round.term == term) else { return };
        round.promised.insert(from.name.clone());
        let round = &*round;
        if !around.quorum.is_met(|name| round.promised.contains(name)) {
            return;
        }
        self.round = None;
        self.unused = None;
        self.proposed = Some(Tenure::new(term, around.at));
        self.request_votes(around, effects);
    }

    /// Sends a request for votes: in the proposed term if there is one, else in the held one.
    pub(crate) fn request_votes(&mut self, around: &Around<'_>, effects: &mut Effects) {
        let is_held = self.proposed.is_none();
        let Some(tenure) = self.proposed.as_mut().or(self.held.as_mut()) else { return };
        self.requests += 1;
        let request = self.requests;
        tenure.request(request, around.at, around.times);
        let term = tenure.term;
        self.broadcast(effects, Audience::Everyone, term, Content::Propose { request, is_held });
    }

    /// Counts a vote.
    pub(crate) fn voted(
        &mut self,
        around: &Around<'_>,
        from: &NodeId,
        (term, request): (Term, u64),
        effects: &mut Effects,
    ) {
        let of_term = |tenure: &&mut Tenure| tenure.term == term;
        if let Some(tenure) = self.held.as_mut().filter(of_term) {
            tenure.vote(&from.name, request, around.times);
        }
        let Some(tenure) = self.proposed.as_mut().filter(of_term) else { return };
        tenure.vote(&from.name, request, around.times);
        if tenure.until(around.quorum, &around.me.name).is_none_or(|until| until <= around.at) {
            return;
        }
        let was_held = self.held.take();
        self.held = self.proposed.take();
        self.seen = None;
        self.attempts = 0;
        let kind = match was_held {
            Some(former) => {
                self.ended = self.ended.max(former.term);
                EventKind::Raised
            }
            None => EventKind::Won,
        };
        effects.events.push(Event { lease: self.lease.clone(), term, kind });
        // The others learn at once who holds the lease.
        self.request_votes(around, effects);
    }

    /// Learns that a voter has refused a promise or a vote.
    pub(crate) fn refused(
        &mut self,
        around: &Around<'_>,
        from: &NodeId,
        (term, highest): (Term, Term),
        reason: &Refusal,
        effects: &mut Effects,
    ) {
        self.highest = self.highest.max(highest);
        if highest >= term && self.unused == Some(term) {
            self.unused = None;
        }
        let of_term = |tenure: &&mut Tenure| tenure.term == term;
        if let Some(tenure) = self.proposed.as_mut().filter(of_term) {
            tenure.refused.insert(from.name.clone());
            let tenure = &*tenure;
            if !around.can_reach_majority(&tenure.refused) {
                self.give_up_proposal(around, effects);
            }
        } else if self.held.as_mut().is_some_and(|tenure| tenure.term == term) {
            if *reason == Refusal::Outdated && self.round.is_none() && self.proposed.is_none() {
                // L16: the voter has promised a later term in vain. Above it, it can vote for the holder again.
                self.begin_round(around, effects);
            }
        } else if let Some(round) = self.round.as_mut().filter(|round| round.term == term) {
            round.refused.insert(from.name.clone());
            let wait = match reason {
                Refusal::Abstains { for_ms } | Refusal::HasVoted { for_ms, .. } => {
                    Some(Duration::from_millis(*for_ms).min(around.times.ttl * 2))
                }
                Refusal::Outdated if self.attempts <= 1 => Some(REPEAT),
                Refusal::Outdated => None,
                Refusal::Unable => Some(around.times.round),
            };
            round.wait = round.wait.into_iter().chain(wait).min();
            let round = &*round;
            if !around.can_reach_majority(&round.refused) {
                let wait = round.wait;
                self.fail(around, wait);
            }
        }
    }

    /// Ends a proposal that no majority has voted for. Those that have voted need not wait until their votes end, unless this
    /// router holds the lease in an earlier term: then those votes are still counted (L7).
    fn give_up_proposal(&mut self, around: &Around<'_>, effects: &mut Effects) {
        let Some(tenure) = self.proposed.take() else { return };
        self.ended = self.ended.max(tenure.term);
        if self.held.is_none() {
            self.broadcast(effects, Audience::Voters, tenure.term, Content::Release { to: None });
        }
        self.fail(around, None);
    }

    /// Ends a round without success. The next one comes after `wait`, or after a pause that grows with the attempts.
    fn fail(&mut self, around: &Around<'_>, wait: Option<Duration>) {
        self.round = None;
        let pause = match wait {
            Some(wait) => wait + around.jitter(&self.lease, self.attempts) / 4,
            None => {
                around.times.stagger * self.attempts.clamp(1, 4)
                    + around.jitter(&self.lease, self.attempts) * 2
            }
        };
        self.not_before = around.at + pause;
    }
}
