//! What membership says besides foca's packets: knocking, answers to it, and goodbyes.
//!
//! An answer names the generation it answers to. A generation is one process's and has random bits, so that an answer
//! to an earlier life, or made up by somebody who never heard the question, is not taken.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_types::ids::Generation;

use crate::membership::identity::Identity;

/// Most members in one welcome: what is beyond is learned by gossip.
pub(super) const MAX_WELCOME_MEMBERS: usize = 4096;

/// A knock at `dialled`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) identity: Identity,
    /// The address that was knocked at: a node that hears its own knock learns that this address is its own.
    pub(super) dialled: SocketAddr,
    /// Whether it is in a cluster already, and only looks for those it lost.
    pub(super) joined: bool,
}

/// Come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Welcome {
    /// Whom it answers.
    pub(super) to: Generation,
    /// Who answers.
    pub(super) from: Identity,
    /// The address that the knock came from, as seen by who answers.
    pub(super) seen_as: SocketAddr,
    /// What was known under the newcomer's name: it must claim more than this to be believed.
    pub(super) known: Option<Identity>,
    /// Everybody that is known, who answers included, except the newcomer.
    pub(super) members: Vec<Listed>,
}

/// A member as one node tells another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listed {
    pub(super) identity: Identity,
    pub(super) incarnation: u16,
    pub(super) state: ListedState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ListedState {
    Alive,
    Suspected,
    Leaving,
    /// Said goodbye and went: whoever takes it for dead need not.
    Gone,
    /// With the time since: so that it is forgotten everywhere at the same moment and not told round for ever.
    Down(Duration),
}

/// You can't come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refusal {
    /// Whom it answers.
    pub(super) to: Generation,
    pub(super) reason: RefusalReason,
    /// Whether the holder is in a cluster.
    pub(super) joined: bool,
}

/// Why a newcomer can't come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RefusalReason {
    /// Somebody alive has the name.
    #[error(
        "the name is taken by {0}, which is alive; give this router another --mesh-server-name"
    )]
    DuplicateName(Identity),
    /// The address belongs to another cluster.
    #[error("{0} belongs to another cluster; check --mesh-cluster-id and --mesh-peer-urls")]
    ForeignCluster(SocketAddr),
}

/// To the holder of a name: somebody else claims it, are you still there?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Challenge {
    /// Who is believed to hold the name.
    pub(super) holder: Identity,
    /// Who claims it.
    pub(super) claimant: Identity,
    /// Who asks.
    pub(super) asker: SocketAddr,
    /// Whether the claimant is in a cluster already.
    pub(super) joined: bool,
}

/// Still here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StillHere {
    pub(super) holder: Identity,
    pub(super) claimant: Identity,
    /// Whether the holder is in a cluster.
    pub(super) joined: bool,
}

/// Said by a node that will go, and passed on by who hears it for the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Goodbye {
    pub(super) identity: Identity,
    /// Not only announced but done: nobody needs to probe it.
    pub(super) gone: bool,
}

/// To a member that has been suspected for a while: its refutation did not arrive, or it was never told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Suspicion {
    pub(super) suspect: Identity,
    pub(super) incarnation: u16,
}
