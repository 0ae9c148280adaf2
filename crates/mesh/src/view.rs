//! The values that the driver publishes to the rest of the router: the members as they are, and events as they happen.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use smg_cluster::Node;
use smg_cluster::membership::{Identity, MemberState, MemberView, RefusalReason, Transition};
use smg_cluster::state::StoreId;
use smg_cluster::state::stores::ChangedKeys;
use smg_types::ids::NodeId;
use smg_types::now::Now;

/// For each store, the time of the last comparison with another router or change by one, since the Unix epoch.
pub type Synced = BTreeMap<StoreId, Duration>;

/// The members of the cluster at one moment, as this router lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// This router's own entry.
    pub me: MemberView,
    /// The other members, by name; those that are DOWN are among them until they are forgotten.
    pub members: Vec<MemberView>,
    /// Why other routers refuse this one; `None` while they do not.
    pub refused: Option<RefusalReason>,
    /// Grows with each change of the members.
    pub version: u64,
    /// Whether this router has at some time had all the state of another router.
    pub warm: bool,
}

impl View {
    /// The other members that are ALIVE or SUSPECTED. A suspected member stays a member.
    pub fn present(&self) -> impl Iterator<Item = &MemberView> {
        self.members.iter().filter(|member| match member.state {
            MemberState::Alive | MemberState::Suspected => true,
            MemberState::Init | MemberState::Down | MemberState::Leaving => false,
        })
    }

    /// Whether another member is ALIVE or SUSPECTED.
    #[must_use]
    pub fn has_others(&self) -> bool {
        self.present().next().is_some()
    }
}

/// A change of the membership, as seen by this router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterEvent {
    /// Counts this router's events from 1.
    pub number: u64,
    /// The time of the event, since the Unix epoch.
    pub at: Duration,
    /// The kind of the change.
    pub kind: ClusterEventKind,
}

/// The kinds of changes of the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterEventKind {
    /// Another router's state changed.
    Member {
        /// The router, its state before and its state now.
        transition: Transition,
        /// The router's address, while it is listed.
        address: Option<SocketAddr>,
    },
    /// This router's state changed.
    Me {
        /// This router's state before the change.
        from: MemberState,
        /// This router's state after the change.
        to: MemberState,
    },
    /// Another router declared this one DOWN while it was alive, and this router refuted that.
    Renewed,
    /// This router continues under a new generation, because other routers know a later one than its own.
    Reborn {
        /// The name and the new generation.
        is: NodeId,
    },
    /// Other routers refuse this one.
    Refused(RefusalReason),
    /// Another live router uses this one's name.
    NameContested(Identity),
}

/// Applies changes of the shared state to the rest of the router. The driver calls it on the mesh's thread, so it must
/// return quickly and must not block.
pub trait Follower: Send + std::fmt::Debug {
    /// Applies the changes: `changed` holds the keys of the rows, `members` is true if the list of members has changed.
    /// The driver calls it before this router acknowledges the change to any other.
    fn apply(&mut self, node: &mut Node, changed: &ChangedKeys, members: bool, now: Now);
}
