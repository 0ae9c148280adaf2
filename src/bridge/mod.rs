//! Connects the cluster node with routing: the only module that knows both.
//!
//! A router alone is a cluster of one. Every administrator's write goes through [`Admin`] into the cluster node, and from
//! there into routing, with other routers or without.
//!
//! Inward, `follower` runs on the mesh's thread and applies each change of the shared state to the fleet and the policies
//! before the node acknowledges the change to any other router. So a receipt means that the named routers route by the write.
//! In the other direction, [`Bridge::run`] compares what the fleet observes with what it last published, and publishes
//! the difference: every 25 ms while anything changes, every 100 ms while nothing does. A router without a mesh
//! publishes nothing. Both directions are level-triggered: doing either twice does no harm.
//!
//! No request waits for any of this. After the cluster node has failed, the router routes by the last state and by its
//! own observations, and refuses administrators' writes.

mod admin;
mod declared;
mod follower;
mod gate;
mod health;
mod limit_metrics;
mod limits;
mod metrics;
mod parts;
mod publish;
mod receipt;
mod run;
mod settings;
mod startup;

pub use admin::{Admin, Observed, WorkerSeen, WriteError, Written};
pub use declared::{Declared, Redeclared};
pub use gate::Gate;
pub use limit_metrics::LimitMetrics;
pub use limits::{Division, Limits};
pub use metrics::Metrics;
pub use parts::{Bridge, Config};
pub use receipt::{NotApplied, Receipt, Wait};
pub use settings::{PolicyDocument, PolicyError};
