//! Types that all crates of `smg` share: identifiers, time as an argument, and the specification of a worker.
//!
//! Every other crate may depend on this one, and it depends on none of them. A bound that is stated here holds for the HTTP API,
//! the configuration and the replicated form of a value alike.

pub mod bounds;
pub mod ids;
pub mod now;
pub mod spec;
