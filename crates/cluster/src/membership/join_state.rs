//! The memory of a node that joins and stays in touch: which addresses it probes, and which claims to a name it has not
//! decided yet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use smg_types::ids::NodeName;

use crate::membership::identity::Identity;
use crate::membership::message::Hello;

/// Join addresses that are remembered; more are ignored.
pub(super) const MAX_ADDRESSES: usize = 1024;

/// The addresses to probe, and the claims to a name that are not decided yet.
#[derive(Debug, Default)]
pub(super) struct JoinState {
    /// The join addresses.
    pub(super) addresses: BTreeSet<SocketAddr>,
    /// Addresses that turned out to be this node's.
    pub(super) own_addresses: BTreeSet<SocketAddr>,
    /// Addresses that were probed since all of them had their turn.
    pub(super) probed: BTreeSet<SocketAddr>,
    /// When the next round is due; an older timer is void.
    pub(super) next_round_at: Duration,
    /// No round is scheduled: there is no join address but this node's own, and no other node is known.
    pub(super) is_paused: bool,
    /// Newcomers whose name has a holder, until that has answered: the join probe, and the address it came from.
    pub(super) challenged: BTreeMap<NodeName, (Hello, SocketAddr)>,
    /// Another process with this node's name, and how often it was challenged.
    pub(super) namesake: Option<(Identity, u32)>,
}
