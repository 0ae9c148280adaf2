//! `smg`: an LLM inference router that stays up.
//!
//! The modules in reading order, lowest layer first; `tests/tidy.rs` holds who may import whom, and ARCHITECTURE.md
//! tells the journeys through them.

pub mod ids;
pub mod now;
pub mod spec;

pub mod policy;

pub mod clock;
pub mod tasks;
