//! The memory of a node that joins and stays in touch: which addresses it probes, and which claims to a name it has not
//! decided yet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use foca::Member;
use smg_types::ids::NodeName;

use crate::membership::identity::Identity;
use crate::membership::message::Hello;

/// Join addresses that are remembered; more are ignored.
pub(super) const MAX_ADDRESSES: usize = 1024;

/// How long an answer to a join probe counts as one.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A member that was forgotten is not listed again for this long, unless it answers or reports itself.
const FORGOTTEN_FOR: Duration = Duration::from_secs(60);

/// How long an address counts as this node's own.
const OWN_ADDRESS_LASTS: Duration = Duration::from_secs(30);

/// The addresses to probe, and the claims to a name that are not decided yet.
#[derive(Debug, Default)]
pub(super) struct JoinState {
    /// The join addresses.
    pub(super) addresses: BTreeSet<SocketAddr>,
    /// Addresses that turned out to be this node's, each with when that was. They are forgotten after a while, because
    /// any node may have sent the probe that seemed to come back.
    pub(super) own_addresses: BTreeMap<SocketAddr, Duration>,
    /// Names that were forgotten lately, and when: others may report them still, and each would bring them back.
    pub(super) forgotten: BTreeMap<NodeName, Duration>,
    /// Addresses that were sent a join probe, and when.
    pub(super) asked: BTreeMap<SocketAddr, Duration>,
    /// Addresses that were probed since all of them had their turn.
    pub(super) probed: BTreeSet<SocketAddr>,
    /// When the next round is due; an older timer is void.
    pub(super) next_round_at: Duration,
    /// No round is scheduled: there is no join address but this node's own, and no other node is known.
    pub(super) is_paused: bool,
    /// Claims to names of live members, until the holders have answered or their time is over.
    pub(super) claims: BTreeMap<NodeName, Claim>,
    /// Another process with this node's name, and how often it was challenged.
    pub(super) namesake: Option<(Identity, u32)>,
}

impl JoinState {
    /// Notes that a join probe to `address` came back to this node.
    pub(super) fn note_own_address(&mut self, now: Duration, address: SocketAddr) {
        if self.own_addresses.len() < MAX_ADDRESSES || self.own_addresses.contains_key(&address) {
            self.own_addresses.insert(address, now);
        }
    }

    /// Forgets addresses of this node that were not seen to be its own for a while.
    pub(super) fn expire_own_addresses(&mut self, now: Duration) {
        self.own_addresses.retain(|_, at| now < *at + OWN_ADDRESS_LASTS);
    }

    /// Notes that the member `name` is forgotten.
    pub(super) fn note_forgotten(&mut self, now: Duration, name: NodeName) {
        self.forgotten.retain(|_, at| now < *at + FORGOTTEN_FOR);
        if self.forgotten.len() < MAX_ADDRESSES {
            self.forgotten.insert(name, now);
        }
    }

    /// Whether the member `name` was forgotten lately.
    pub(super) fn was_forgotten(&self, now: Duration, name: &NodeName) -> bool {
        self.forgotten.get(name).is_some_and(|at| now < *at + FORGOTTEN_FOR)
    }

    /// Notes that `address` is sent a join probe.
    pub(super) fn note_asked(&mut self, now: Duration, address: SocketAddr) {
        if self.asked.len() >= MAX_ADDRESSES / 4 {
            self.asked.retain(|_, at| now < *at + ANSWER_WITHIN);
        }
        if self.asked.len() < MAX_ADDRESSES {
            self.asked.insert(address, now);
        }
    }
}

/// A claim to the name of a live member.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) claimant: Claimant,
    pub(super) outcome: ClaimOutcome,
    /// When the time of the holder is over, or later when the outcome is forgotten.
    pub(super) ends_at: Duration,
}

/// The outcome of a claim. A claim is remembered for a while, because it is repeated by other ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimOutcome {
    /// The holder may still answer.
    Waiting,
    /// The holder has answered.
    Refused,
    /// The holder has not answered in time: the name is the claimant's.
    Granted,
}

/// A process that claims a name, with the step that follows if the name is free.
#[derive(Debug, Clone)]
pub(super) enum Claimant {
    /// It has sent a join probe, from this address: it is welcomed.
    Newcomer(Hello, SocketAddr),
    /// Another node reports it as a member: it becomes one here.
    Listed(Member<Identity>),
}

impl Claimant {
    pub(super) const fn identity(&self) -> &Identity {
        match self {
            Self::Newcomer(hello, _) => &hello.identity,
            Self::Listed(member) => member.id(),
        }
    }
}
