//! A voter: promises terms to candidates, and votes for at most one router at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use smg_types::ids::NodeId;

use crate::message::{Content, Refusal};
use crate::name::{LeaseName, Term};
use crate::times::Times;
use crate::votes::{Remembered, StoredVote, Votes};

/// The most leases that a voter votes on. A stranger can name many.
pub(crate) const MAX_LEASES: usize = 64;

/// How far a term may be ahead of the present time in milliseconds: a week, as for versions of rows.
const PLAUSIBLE: u64 = 7 * 24 * 3_600_000;

/// What a voter knows of one lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Ballot {
    promised: Term,
    promised_to: Option<NodeId>,
    voted: Option<Vote>,
    /// Whether another vote may be in the memory instead, because storing it has failed (L13).
    is_in_doubt: bool,
}

/// A vote, which ends by the voter's clock.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Vote {
    term: Term,
    holder: NodeId,
    until: Duration,
}

impl Ballot {
    fn stored(&self) -> StoredVote {
        StoredVote {
            promised: self.promised,
            promised_to: self.promised_to.clone(),
            voted: self.voted.as_ref().map(|vote| (vote.term, vote.holder.clone())),
        }
    }
}

/// The terms that a router has released, or would have if it had not ended before.
pub(crate) type Released = (NodeId, Term);

/// The votes of one router.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Voter {
    times: Times,
    /// Until when it abstains (L5).
    abstains_until: Duration,
    started: Duration,
    /// A term above all before the start.
    first_floor: Term,
    /// It promises no term up to this one, and votes in none (L11).
    floor: Term,
    ballots: BTreeMap<LeaseName, Ballot>,
}

impl Voter {
    /// A voter that starts at `at`. It promises only terms above `floor`, which should be larger than any term before the
    /// start: the start's time in milliseconds is. Returns also what the process before has released by its end.
    #[must_use]
    pub(crate) fn new(
        at: Duration,
        times: Times,
        floor: Term,
        votes: &mut impl Votes,
    ) -> (Self, BTreeMap<LeaseName, Released>) {
        let ballots = BTreeMap::new();
        let first_floor = floor;
        let mut voter =
            Self { times, abstains_until: at, started: at, first_floor, floor, ballots };
        let mut released = BTreeMap::new();
        // A term that was promised while the clock was far ahead could not be exceeded by any candidate: such a memory is dropped,
        // and the voter abstains as one without a memory does.
        let counts = |memory: &Remembered| {
            memory.votes.values().all(|vote| voter.is_plausible(at, vote.promised))
        };
        let Some(Remembered { votes: stored, ended }) = votes.load().filter(counts) else {
            voter.abstains_until = at + times.abstain;
            return (voter, released);
        };
        let until = at + times.ttl;
        for (lease, StoredVote { promised, promised_to, voted }) in stored {
            let voted = voted.map(|(term, holder)| Vote { term, holder, until });
            let ballot = Ballot { promised, promised_to, voted, is_in_doubt: false };
            voter.ballots.insert(lease.clone(), ballot);
            // L20: nobody waits for a process that has ended.
            if let Some(ended) = &ended
                && let Some(term) = voter.release_ended(&lease, ended)
            {
                released.insert(lease, (ended.clone(), term));
            }
        }
        (voter, released)
    }

    /// Ends the vote for a process that has ended, and takes its promise back. Returns the latest term that this concerns. It is
    /// not stored: the memory says the same again at the next start.
    fn release_ended(&mut self, lease: &LeaseName, ended: &NodeId) -> Option<Term> {
        let ballot = self.ballots.get_mut(lease)?;
        let voted = ballot.voted.take_if(|vote| vote.holder == *ended).map(|vote| vote.term);
        let promised = ballot.promised_to.take_if(|to| to == ended).map(|_| ballot.promised);
        voted.max(promised)
    }

    /// Until when this voter abstains.
    #[must_use]
    pub(crate) const fn abstains_until(&self) -> Duration {
        self.abstains_until
    }

    /// Whether a term can have been reached by now. Without this, one wrong number would end all elections.
    pub(crate) fn is_plausible(&self, at: Duration, term: Term) -> bool {
        let running = u64::try_from(at.saturating_sub(self.started).as_millis());
        let ahead = running.unwrap_or(u64::MAX).saturating_add(PLAUSIBLE);
        term.0 <= self.first_floor.0.saturating_add(ahead)
    }

    /// Raises the floor to the present time, because the voters change: a majority of the new ones need not know the terms that
    /// the former ones have promised.
    pub(crate) fn raise_floor(&mut self, at: Duration) {
        let running = u64::try_from(at.saturating_sub(self.started).as_millis());
        let floor = self.first_floor.0.saturating_add(running.unwrap_or(u64::MAX));
        self.floor = self.floor.max(Term(floor));
    }

    /// Until when this voter votes for a router other than `me`.
    pub(crate) fn votes_for_other_until(&self, lease: &LeaseName, me: &NodeId) -> Duration {
        let vote = self.ballots.get(lease).and_then(|ballot| ballot.voted.as_ref());
        vote.filter(|vote| vote.holder != *me).map_or(Duration::ZERO, |vote| vote.until)
    }

    /// Answers a request for a promise.
    pub(crate) fn prepare(
        &mut self,
        at: Duration,
        lease: &LeaseName,
        from: &NodeId,
        term: Term,
        votes: &mut impl Votes,
    ) -> Content {
        if let Some(refusal) = self.refusal(at, lease, from, term) {
            return self.refused(lease, refusal);
        }
        let ballot = self.ballot(lease);
        let is_repeated = ballot.promised == term && ballot.promised_to.as_ref() == Some(from);
        // L4: a term is promised once.
        if !is_repeated && term <= ballot.promised {
            return self.refused(lease, Refusal::Outdated);
        }
        let before = ballot.clone();
        ballot.promised = term;
        ballot.promised_to = Some(from.clone());
        self.keep(lease, before, Content::Promised, votes)
    }

    /// Answers a request for a vote.
    pub(crate) fn propose(
        &mut self,
        at: Duration,
        lease: &LeaseName,
        from: &NodeId,
        (term, request): (Term, u64),
        votes: &mut impl Votes,
    ) -> Content {
        if let Some(refusal) = self.refusal(at, lease, from, term) {
            return self.refused(lease, refusal);
        }
        let until = at + self.times.ttl;
        let ballot = self.ballot(lease);
        let is_promised_to_other = ballot.promised_to.as_ref() != Some(from);
        if term < ballot.promised || term == ballot.promised && is_promised_to_other {
            return self.refused(lease, Refusal::Outdated);
        }
        let before = ballot.clone();
        ballot.promised = term;
        ballot.promised_to = Some(from.clone());
        ballot.voted = Some(Vote { term, holder: from.clone(), until });
        self.keep(lease, before, Content::Voted { request }, votes)
    }

    /// Ends the vote for a router that has released its terms up to `term` (L7). None of them is voted for again, though a
    /// request for it may still be on its way.
    pub(crate) fn release(
        &mut self,
        lease: &LeaseName,
        from: &NodeId,
        term: Term,
        votes: &mut impl Votes,
    ) {
        let Some(ballot) = self.ballots.get_mut(lease) else { return };
        let before = ballot.stored();
        let is_of_it = |vote: &Vote| vote.term <= term && vote.holder == *from;
        if ballot.voted.as_ref().is_some_and(is_of_it) {
            ballot.voted = None;
        }
        if ballot.promised <= term && ballot.promised_to.as_ref() == Some(from) {
            ballot.promised_to = None;
        }
        if ballot.stored() != before {
            // A release that is not remembered delays the next holder and does nothing else.
            ballot.is_in_doubt = votes.store(lease, &ballot.stored()).is_err();
        }
    }

    /// The refusal of a router that holds the lease itself.
    pub(crate) fn refuse_as_holder(
        &self,
        lease: &LeaseName,
        me: &NodeId,
        ttl: Duration,
    ) -> Content {
        self.refused(lease, Refusal::HasVoted { holder: me.clone(), for_ms: millis(ttl) })
    }

    /// Why neither a promise nor a vote can be given, whatever was promised.
    fn refusal(
        &self,
        at: Duration,
        lease: &LeaseName,
        from: &NodeId,
        term: Term,
    ) -> Option<Refusal> {
        if at < self.abstains_until {
            return Some(Refusal::Abstains { for_ms: millis(self.abstains_until - at) });
        }
        if !self.is_plausible(at, term) {
            return Some(Refusal::Unable);
        }
        let Some(ballot) = self.ballots.get(lease) else {
            let is_full = self.ballots.len() >= MAX_LEASES;
            return is_full.then_some(Refusal::Unable).or_else(|| self.below_floor(term));
        };
        // L2: one vote at a time.
        let vote = ballot.voted.as_ref().filter(|vote| at < vote.until && vote.holder != *from);
        let has_voted = |vote: &Vote| Refusal::HasVoted {
            holder: vote.holder.clone(),
            for_ms: millis(vote.until - at),
        };
        vote.map(has_voted).or_else(|| self.below_floor(term))
    }

    fn below_floor(&self, term: Term) -> Option<Refusal> {
        (term <= self.floor).then_some(Refusal::Outdated)
    }

    fn refused(&self, lease: &LeaseName, reason: Refusal) -> Content {
        let highest = self.ballots.get(lease).map_or(self.floor, |ballot| ballot.promised);
        Content::Refused { highest: highest.max(self.floor), reason }
    }

    fn ballot(&mut self, lease: &LeaseName) -> &mut Ballot {
        let floor = self.floor;
        let new = || Ballot { promised: floor, promised_to: None, voted: None, is_in_doubt: false };
        self.ballots.entry(lease.clone()).or_insert_with(new)
    }

    /// Stores a changed ballot before it is answered; what can't be stored does not count.
    fn keep(
        &mut self,
        lease: &LeaseName,
        before: Ballot,
        answer: Content,
        votes: &mut impl Votes,
    ) -> Content {
        let ballot = self.ballot(lease);
        let stored = ballot.stored();
        if stored != before.stored() || before.is_in_doubt {
            if votes.store(lease, &stored).is_err() {
                *ballot = Ballot { is_in_doubt: true, ..before };
                return self.refused(lease, Refusal::Unable);
            }
            ballot.is_in_doubt = false;
        }
        answer
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}
