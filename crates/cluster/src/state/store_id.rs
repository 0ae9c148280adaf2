//! The numbers of the stores, by which rows, messages and log lines refer to them.
//!
//! The file of each store states its properties (see `store`), and [`stores`](crate::state::stores) connects the numbers
//! with those files.

use serde::{Deserialize, Serialize};

/// A store. The order is that of the numbers on the wire, and the one in which a node that joins requests snapshots.
///
/// The number of a store is its number on the wire, which is also its place in [`StoreId::ALL`]. It never changes and is
/// never given to another store, because routers of different versions share a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum StoreId {
    /// The workers of the fleet, with their specs, overrides and administrative states.
    Workers = 0,
    /// The policy of each model.
    Policies = 1,
    /// The limits.
    Rules = 2,
    /// The rights that nodes have granted to each other.
    Rights = 3,
    /// The requests and tokens that each node has admitted.
    Usage = 4,
    /// The tokens that each node has reserved and returned.
    Tokens = 5,
    /// The worker to which each session is bound.
    Sessions = 6,
    /// The measurements that each router has made of each worker.
    Observations = 7,
    /// The requests and tokens that each router has in flight at each worker.
    Load = 8,
    /// The requests ever served, per model and outcome.
    Totals = 9,
    /// The models whose last worker was removed.
    Departures = 10,
    /// The routers among which the limits are divided.
    Rosters = 11,
    /// Each node's regular message about the limits.
    Beats = 12,
}

/// How many stores there are.
pub const STORES: usize = StoreId::ALL.len();

impl StoreId {
    /// All stores.
    pub const ALL: [Self; 13] = [
        Self::Workers,
        Self::Policies,
        Self::Rules,
        Self::Rights,
        Self::Usage,
        Self::Tokens,
        Self::Sessions,
        Self::Observations,
        Self::Load,
        Self::Totals,
        Self::Departures,
        Self::Rosters,
        Self::Beats,
    ];

    /// The place in [`StoreId::ALL`], from 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The number on the wire.
    #[must_use]
    pub const fn wire_id(self) -> u8 {
        self as u8
    }

    /// The store with this number on the wire, if this router has it.
    #[must_use]
    pub fn from_wire_id(id: u8) -> Option<Self> {
        Self::ALL.get(usize::from(id)).copied()
    }
}

// Messages name stores by number, and `RetiredWriter` has one version per store in the order of the list.
const _: () = {
    let mut place = 0;
    while place < STORES {
        assert!(StoreId::ALL[place].index() == place, "a store's number is its place in the list");
        place += 1;
    }
    assert!(STORES <= u16::BITS as usize, "`Changes` has a bit for each store");
};
