//! `smg`: an LLM inference router that stays up.
//!
//! The modules in reading order, lowest layer first; `tests/tidy.rs` holds who may import whom, and ARCHITECTURE.md
//! tells the journeys through them.

pub mod ids;
pub mod now;
pub mod spec;

pub mod crdt;
pub mod policy;

pub mod limit;
pub mod prefix;

pub mod cluster;
pub mod fleet;

pub mod clock;
pub mod mesh;
pub mod tasks;
pub mod tls;
pub mod upstream;

pub mod bridge;
pub mod dispatch;
pub mod prober;

pub mod http;

pub mod cli;
pub mod config;
pub mod console;
pub mod telemetry;

pub mod app;

pub mod mock;
