//! The cluster: the nodes and what they agree on, as state machines without I/O.

pub mod replication;
pub mod state;
