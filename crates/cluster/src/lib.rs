//! A node of a cluster, without a socket: membership, and the state that nodes replicate.
//!
//! Everything here is a state machine: frames, time and commands go in (`handle_*`), frames and events come out
//! (`poll_*`). [`Node`] combines membership and replication (`node`). The crate `smg-mesh` owns the sockets and the clock; the
//! simulator in `tests/sim` plays both.
//!
//! A driver's loop is: feed one input, then drain `poll_transmit` and `poll_event`, then wait until `next_deadline`.
//!
//! The two parts don't know each other. Membership reports which nodes can be reached, and replication exchanges state
//! with those. When replication finds that peers have retired this generation of the node, membership begins a later
//! one.

pub mod codec;
pub mod crdt;
pub mod membership;
mod node;
mod plausible;
pub mod replication;
pub mod state;
pub mod timers;

pub use node::{Config, Event, FrameCounters, Lane, Node, NodeLeases, Transmit};
