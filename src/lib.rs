//! `smg`: an LLM inference router that stays up.
//!
//! This crate is the program: the HTTP surface ([`http`]), the connection between cluster and routing ([`bridge`]), the
//! configuration ([`cli`], [`config`]), the `smg mesh` commands ([`console`]), `smg doctor` ([`doctor`]), the composition root ([`app`]), and the
//! reactions to signals ([`signals`], [`reload`]), and the reports to systemd ([`supervisor`]). Its parts are the crates under `crates/`; ARCHITECTURE.md has the
//! map, and `tests/tidy` checks which module may import which.

pub mod bridge;
pub mod http;

pub mod cli;
pub mod config;
pub mod console;

pub mod app;
pub mod doctor;
pub mod reload;
pub mod signals;
pub mod supervisor;
