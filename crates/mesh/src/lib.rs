//! Runs the cluster node, and connects it with those of other routers: the sockets, clock and tasks around `cluster`,
//! which makes all decisions.
//!
//! Everything here runs on a thread and a runtime of its own. Otherwise a flood of requests would delay probes, and a
//! healthy router would look dead. One task, the driver, owns the `cluster::Node`. Links send its frames, the server
//! receives those of other routers, `join` resolves names. A router without a network has only the driver. The rest of
//! the router holds a [`Handle`]: it provides the newest [`View`] and the events, and runs visits to the node.
//!
//! The consequences for requests are decided elsewhere, in `bridge` and `fleet`.

mod admission;
mod advertise;
mod concealed;
mod config;
mod driver;
mod durability;
mod engine;
mod handle;
mod join;
mod join_address;
mod keys;
mod lease_view;
mod leases;
mod link;
mod mesh;
mod metrics;
mod net;
mod purpose;
mod queue;
mod refusals;
mod seal;
mod security;
mod server;
mod service;
mod status;
mod view;
mod wire;

pub use advertise::{Source, Wanted};
pub use config::{BindError, ClientEndpoint, Config, HostServices, NetworkConfig};
pub use durability::{DataConfig, DiskMetrics, Durability};
pub use handle::{Handle, KeyReceipts, KeysError, VisitError};
pub use join_address::{DEFAULT_PORT, JoinAddress, ParseJoinAddressError};
pub use lease_view::{HaMode, LEADER};
pub use leases::{LeaderError, Leadership};
pub use link::{LaneStatus, LinkStatus};
pub use mesh::{Mesh, Running};
pub use metrics::Metrics;
pub use seal::{KeyId, Mode, ParseKeyError, Ring, RingError, SharedKey};
pub use security::{Config as SecurityConfig, KeyChange};
pub use smg_cluster::membership::MemberState;
pub use smg_lease::{Term, TransferError};
pub use status::{
    ConnectionStatus, Drift, Health, JoinStatus, NodeStatus, PeerStatus, Router, Status,
    StoreStatus, rfc3339,
};
pub use view::{ClusterEvent, ClusterEventKind, Follower, Synced, View};

#[cfg(test)]
mod tests;
