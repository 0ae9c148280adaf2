//! The state of a node's leases.

use smg_lease::{Leases, Votes};

/// The leases, with a memory of votes of any kind.
pub type NodeLeases = Leases<Box<dyn Votes>>;

/// The leases of a node and what they have been given.
#[derive(Debug)]
pub(super) struct LeasePart {
    pub(super) leases: NodeLeases,
    /// The version of the list of members that the leases have.
    pub(super) members: Option<u64>,
    /// Grows with each input.
    pub(super) version: u64,
}
