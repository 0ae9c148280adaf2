//! The messages of membership besides foca's packets: join probes, the answers to them, and goodbyes.
//!
//! An answer names the generation that it answers. A generation belongs to one process and has random bits, so an
//! answer to an earlier process, or one that was made up by a node that never received the question, is not taken.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_types::ids::Generation;

use crate::codec::at_most;
use crate::membership::identity::Identity;

/// Most members in a welcome; further ones are learned by gossip.
pub(super) const MAX_WELCOME_MEMBERS: usize = 4096;

/// A join probe to the address `dialled`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) identity: Identity,
    /// The address that the probe was sent to: a node that receives its own probe learns that this address is its own.
    pub(super) dialled: SocketAddr,
    /// Whether the sender is in a cluster already and only looks for members that it has lost.
    pub(super) joined: bool,
}

/// The answer to a join probe: the receiver is let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Welcome {
    /// The generation that is answered.
    pub(super) to: Generation,
    /// The node that answers.
    pub(super) from: Identity,
    /// The address that the probe came from, as seen by the node that answers.
    pub(super) seen_as: SocketAddr,
    /// The identity that was known under the newcomer's name: the newcomer must claim more than it to be believed.
    pub(super) known: Option<Identity>,
    /// All members that are known, except the newcomer; the node that answers is among them.
    #[serde(deserialize_with = "at_most::<_, _, MAX_WELCOME_MEMBERS>")]
    pub(super) members: Vec<Listed>,
}

/// A member in a member list.
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
    /// It has left: a node that takes it for down must not.
    Gone,
    /// It has been down for this long, so that all nodes forget it at the same time and no list brings it back.
    Down(Duration),
}

/// The answer to a join probe: the receiver is not let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refusal {
    /// The generation that is answered.
    pub(super) to: Generation,
    pub(super) reason: RefusalReason,
    /// Whether the holder of the name is in a cluster.
    pub(super) joined: bool,
}

/// Why a node is not let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RefusalReason {
    /// A live member has its name.
    #[error(
        "the name is taken by {0}, which is alive; give this router another --mesh-server-name"
    )]
    DuplicateName(Identity),
    /// The address belongs to another cluster.
    #[error("{0} belongs to another cluster; check --mesh-cluster-id and --mesh-peer-urls")]
    ForeignCluster(SocketAddr),
}

/// A question to the holder of a name that another process claims: does it still run?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Challenge {
    /// The holder of the name, as the asker believes.
    pub(super) holder: Identity,
    /// The process that claims the name.
    pub(super) claimant: Identity,
    /// The address to answer to.
    pub(super) asker: SocketAddr,
    /// Whether the claimant is in a cluster already.
    pub(super) joined: bool,
}

/// The answer to a challenge: the holder still runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StillHere {
    pub(super) holder: Identity,
    pub(super) claimant: Identity,
    /// Whether the holder is in a cluster.
    pub(super) joined: bool,
}

/// A node is leaving. Members that receive this for the first time relay it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Goodbye {
    pub(super) identity: Identity,
    /// Whether the node is gone already, so that it need not be probed any more.
    pub(super) gone: bool,
}

/// A notice to a member that has been suspected for a while: gossip did not reach it, or its refutation was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Suspicion {
    pub(super) suspect: Identity,
    pub(super) incarnation: u16,
}
