//! `smg`: an LLM inference router that stays up.
//!
//! This crate is the program: the surface ([`http`]), the connection between cluster and routing ([`bridge`]), the
//! configuration ([`cli`], [`config`]), the `smg mesh` commands ([`console`]) and the composition root ([`app`]). What
//! it is made of lives in the crates under `crates/`; ARCHITECTURE.md has the map, and `tests/tidy` checks who may
//! import whom.

pub mod bridge;
pub mod http;

pub mod cli;
pub mod config;
pub mod console;

pub mod app;
