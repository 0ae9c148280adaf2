//! The state of the leases as the driver publishes it for other threads.

use std::sync::LazyLock;

use serde::Serialize;
use smg_lease::{LeaseName, Status};
use smg_types::ids::NodeName;

/// The lease of the router that does the jobs of which the cluster needs one.
pub static LEADER: LazyLock<LeaseName> =
    LazyLock::new(|| "leader".parse().expect("the name of the lease is valid"));

/// The state of the leases as the driver publishes it. Times are readings of the clock of leases.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct LeaseView {
    pub(super) leader: Option<Status>,
    pub(super) reaches_majority: bool,
    pub(super) voters: Vec<NodeName>,
    /// How many votes are needed, of the largest cluster that counts.
    pub(super) needed: usize,
}

/// A router's part in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HaMode {
    /// No other router can join. It leads itself.
    Standalone,
    /// It holds the lease.
    Leader,
    /// It reaches a majority of the configured routers, and does not hold the lease.
    Follower,
    /// It reaches no majority: it serves requests, and jobs of the leader pause.
    ReadOnly,
}

impl HaMode {
    /// The name in documents, labels and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::ReadOnly => "read_only",
        }
    }
}

/// The state of the leases that was published last.
#[derive(Debug)]
pub(super) struct PublishedLeases {
    pub(super) version: u64,
    pub(super) mode: HaMode,
}

impl PublishedLeases {
    pub(super) const fn new() -> Self {
        Self { version: 0, mode: HaMode::ReadOnly }
    }
}
