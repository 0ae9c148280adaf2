//! The vocabulary of `smg`: identifiers, time as an argument, and the specification of a worker.
//!
//! Every other crate may use this one; it uses none of them. Bounds of a field are stated here once, so that the HTTP API,
//! the configuration and the replicated form of a value refuse the same inputs.

pub mod bounds;
pub mod ids;
pub mod now;
pub mod spec;
