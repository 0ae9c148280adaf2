//! Between the cluster and this router: what the cluster knows becomes what is routed by, and what this router sees
//! becomes what the cluster knows. The only place that knows both.
//!
//! A router alone is a cluster of one: every administrator's write goes through [`Admin`] into the cluster node, and comes
//! from there into routing, with other routers or without.
//!
//! Inward, `picture` follows the shared state on the mesh's thread and puts each change into the fleet and the policies
//! before any other router is told that it was applied: who waits for a receipt has waited for routing itself. Outward,
//! [`Bridge::run`] compares what the fleet sees with what was last said, forty times a second while there is anything to
//! say and ten times a second while there is not, and says what has changed. Where nobody can join, it says nothing.
//! Both are level-triggered: doing either twice does no harm.
//!
//! No request waits for any of it. When the cluster node fails, routing goes on by what was last known and by what this
//! router sees itself, and administrators' writes are refused.

mod admin;
mod gate;
mod health;
mod metrics;
mod parts;
mod picture;
mod publish;
mod run;
mod settings;
mod settle;

pub use admin::{Admin, Observed, Receipt, Wait, WorkerSeen, WriteError, Written};
pub use gate::Gate;
pub use metrics::Metrics;
pub use parts::{Bridge, Config};
pub use settings::{PolicyDocument, PolicyError};
