//! The flags and variables of other routers that users may come from, and the meaning of each here.
//!
//! One table, split by topic, is the only source: the parser accepts every flag of it, so that none is reported as
//! unknown. Messages, `smg check-config` and `docs/migrating.md` are generated from it. A flag of another router either
//! means the same here, or is an alias of a flag here, or asks for what always applies here, or is refused with an
//! alternative. `tests/golden/peer-flags.txt` lists the flags that the programs themselves document; a test compares
//! the table with it.

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
    AliasUse, arguments, hint, refused_key, refused_subcommand, subcommands, translate,
    unread_variable,
};
pub(super) use variables::{VARIABLES, unread_variables};
pub(super) use vocabulary::{Here, PeerFlag, ROUTERS, Takes};

use vocabulary::{
    ALL, COMMANDS, PeerCommand, Routers, SGLANG, SGLANG_VLLM, SMG, SMG_SGLANG, SMG_VLLM, VALUES,
    VLLM, alias, always, only, refused, same,
};
