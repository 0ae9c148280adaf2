//! A term of this router: the requests for votes that it has sent, and the votes that it has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use smg_types::ids::NodeName;

use crate::name::Term;
use crate::quorum::Quorum;
use crate::times::Times;

/// The most requests whose answers are still counted.
const MAX_REQUESTS: usize = 8;

/// A term of this router, from the first request for votes on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Tenure {
    pub(crate) term: Term,
    /// When the first request was sent.
    pub(crate) since: Duration,
    /// When the next request is due.
    pub(crate) renew_at: Duration,
    /// The last requests: the number of each, and when it was sent.
    requests: VecDeque<(u64, Duration)>,
    /// Until when the vote of each voter counts.
    votes: BTreeMap<NodeName, Duration>,
    /// The voters that have refused.
    pub(crate) refused: BTreeSet<NodeName>,
}

impl Tenure {
    pub(crate) fn new(term: Term, at: Duration) -> Self {
        Self {
            term,
            since: at,
            renew_at: at,
            requests: VecDeque::new(),
            votes: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    /// Notes that a request is about to be sent.
    pub(crate) fn request(&mut self, request: u64, at: Duration, times: &Times) {
        if self.requests.len() == MAX_REQUESTS {
            self.requests.pop_front();
        }
        self.requests.push_back((request, at));
        self.renew_at = at + times.renew;
    }

    /// Counts a vote from before its request was sent (L3). An answer to no known request does not count (L8).
    pub(crate) fn vote(&mut self, from: &NodeName, request: u64, times: &Times) {
        let Some((_, sent)) = self.requests.iter().find(|(known, _)| *known == request) else {
            return;
        };
        let until = self.votes.entry(from.clone()).or_default();
        *until = (*until).max(*sent + times.hold);
    }

    /// Until when the votes are enough; `None`: they are not. The only voter's vote does not end, so that a router that is
    /// alone is not woken to renew it.
    pub(crate) fn until(&self, quorum: &Quorum, me: &NodeName) -> Option<Duration> {
        if quorum.is_only(me) && self.votes.contains_key(me) {
            return Some(Duration::MAX);
        }
        quorum.held_until(&self.votes)
    }

    /// Until when the vote of one voter counts.
    pub(crate) fn vote_of(&self, name: &NodeName) -> Option<Duration> {
        self.votes.get(name).copied()
    }
}
