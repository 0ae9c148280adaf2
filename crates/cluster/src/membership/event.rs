//! The reports of membership to the code that uses it: changes as they happen, and members as they are.

use std::net::SocketAddr;
use std::time::Duration;

use smg_types::ids::NodeId;

use crate::membership::identity::Identity;
use crate::membership::message::RefusalReason;
use crate::membership::state::{MemberState, Transition};

/// A change of this node's own state, or of what it believes of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Another member has changed its state.
    Member(Transition),
    /// This node has changed its state.
    OwnState {
        /// The state before.
        from: MemberState,
        /// The state after.
        to: MemberState,
    },
    /// This node was declared down while it was alive, and has refuted that with a renewed identity. Nothing was reset.
    Renewed(Identity),
    /// Others know a later generation of this node's name than its own, because its clock was set back or its disk is
    /// gone; or they have retired its generation. It goes on as another writer. Whatever it counts since its start it
    /// must count from zero again, because the counts so far belong to the earlier generation.
    NewGeneration {
        /// The generation until now.
        was: NodeId,
        /// The generation from now on.
        is: NodeId,
    },
    /// This node is not let in.
    Refused(RefusalReason),
    /// Another process that runs claims this node's name.
    NameContested(Identity),
}

/// A member, or this node itself, as others may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// Its name and generation.
    pub node: NodeId,
    /// The address at which it is reached.
    pub address: SocketAddr,
    /// Its state, as this node believes.
    pub state: MemberState,
    /// When it came into that state, by the monotonic clock of this node.
    pub since: Duration,
    /// How much it has raised its claim within its generation: it grows when the node is declared down while it is
    /// alive.
    pub renewal: u64,
    /// The number that it raises to refute a suspicion.
    pub incarnation: u16,
    /// The round trip of the last probe that it answered to this node.
    pub rtt: Option<Duration>,
}
