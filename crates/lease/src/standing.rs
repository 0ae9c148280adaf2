//! What a router knows of the others, and what it reports of a lease.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use smg_types::ids::{NodeId, NodeName};
use xxhash_rust::xxh3::xxh3_64;

use crate::name::{LeaseName, Term};
use crate::quorum::Quorum;
use crate::times::Times;

/// Another router of the cluster, as membership knows it. Membership only decides whom a router sends messages to and when it
/// campaigns; what a lease needs does not depend on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Name and generation.
    pub node: NodeId,
    /// Whether it can be reached.
    pub is_present: bool,
    /// Whether it is leaving, so that it should become no holder.
    pub is_leaving: bool,
}

/// What is around a claim when something happens to it.
#[derive(Debug)]
pub(crate) struct Around<'a> {
    pub(crate) at: Duration,
    pub(crate) me: &'a NodeId,
    pub(crate) quorum: &'a Quorum,
    pub(crate) members: &'a BTreeMap<NodeName, Member>,
    pub(crate) times: &'a Times,
    /// Whether this router may become a holder: it is a voter, is not leaving, and reaches a majority.
    pub(crate) may_campaign: bool,
    /// When this router neither abstains nor votes for another one any more.
    pub(crate) free_at: Duration,
}

impl Around<'_> {
    /// Whether a majority may still agree when these have refused.
    pub(crate) fn can_reach_majority(&self, refused: &BTreeSet<NodeName>) -> bool {
        let is_present = |name: &NodeName| {
            *name == self.me.name || self.members.get(name).is_some_and(|other| other.is_present)
        };
        self.quorum.is_met(|name| is_present(name) && !refused.contains(name))
    }

    /// How long this router waits before it campaigns, so that one router campaigns before the others, another one for each
    /// lease (L15). `attempts`: the number of campaigns that have failed.
    pub(crate) fn stagger(&self, lease: &LeaseName, attempts: u32) -> Duration {
        let weight = |name: &NodeName| xxh3_64(format!("{lease} {name}").as_bytes());
        let is_candidate = |name: &&NodeName| {
            self.members.get(*name).is_some_and(|member| member.is_present && !member.is_leaving)
        };
        let own = weight(&self.me.name);
        let names = self.quorum.names();
        let before = names.into_iter().filter(is_candidate).filter(|name| weight(name) < own);
        let rank = u32::try_from(before.count()).unwrap_or(u32::MAX).min(20);
        self.times.stagger * rank + self.jitter(lease, attempts)
    }

    /// A part of `stagger` that differs between routers and attempts. Routers whose attempts collided must not repeat in step.
    pub(crate) fn jitter(&self, lease: &LeaseName, attempts: u32) -> Duration {
        let text = format!("{lease} {} {attempts}", self.me);
        let parts = u32::try_from(xxh3_64(text.as_bytes()) % 1_000).unwrap_or(0);
        self.times.stagger * parts / 1_000
    }
}

/// What is known of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The lease.
    pub lease: LeaseName,
    /// The router that holds it, as far as it is known here.
    pub holder: Option<NodeId>,
    /// The holder's term; without a holder, the last term that is known.
    pub term: Term,
    /// Until when what is known of the holder counts.
    pub known_until: Duration,
    /// Until when this router holds it by its clock; `None`: it does not hold it.
    pub held_until: Option<Duration>,
}

/// Why a lease can't be handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This router does not hold the lease.
    #[error("this router does not hold the lease {lease}")]
    NotHeld {
        /// The lease.
        lease: LeaseName,
        /// The router that does, if it is known.
        holder: Option<NodeId>,
    },
    /// The other router has no vote.
    #[error("router {0} is not one of the routers that vote")]
    NoVoter(NodeName),
    /// The other router can't be reached, abstains or is leaving.
    #[error("router {0} can't take over now: it does not vote, can't be reached or is leaving")]
    NotReady(NodeName),
}
