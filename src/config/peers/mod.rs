//! Flags and variables of the routers that people come from, and what each means here.
//!
//! One table, cut by topic, is the only source: the parser takes every flag of it, so that none is "no such flag";
//! messages, `smg check-config` and `docs/migrating.md` are made from it. A flag is the same here, another name of one
//! of ours, something that is always so, or refused with what to use instead. `tests/golden/peer-flags.txt` lists what
//! the programs themselves say they take; a test holds the table against it.

mod engine;
mod metrics;
mod operations;
mod page;
mod routing;
mod table;
mod traffic;
mod translate;
mod variables;
mod vocabulary;
mod workers;

#[cfg(test)]
pub(super) use metrics::METRICS;
pub use page::migrating;
pub(super) use table::{aliases, flag, flags, is_accepted};
pub(super) use translate::{
    Said, arguments, hint, refused_key, refused_subcommand, subcommands, translate, unread_variable,
};
pub(super) use variables::{VARIABLES, unread_variables};
pub(super) use vocabulary::{Here, PeerFlag, ROUTERS, Takes};

use vocabulary::{
    ALL, COMMANDS, PeerCommand, Routers, SGLANG, SGLANG_VLLM, SMG, SMG_SGLANG, SMG_VLLM, VALUES,
    VLLM, alias, always, only, refused, same,
};
