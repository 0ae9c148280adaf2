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
mod traffic;
mod translate;
mod variables;
mod workers;

#[cfg(test)]
pub(super) use metrics::METRICS;
pub use page::migrating;
pub(super) use translate::{
    Said, arguments, hint, refused_key, refused_subcommand, subcommands, translate, unread_variable,
};
pub(super) use variables::{VARIABLES, unread_variables};

/// A set of routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Routers(u8);

const SMG: Routers = Routers(1);
const SGLANG: Routers = Routers(2);
const VLLM: Routers = Routers(4);
const SMG_SGLANG: Routers = Routers(SMG.0 | SGLANG.0);
const SGLANG_VLLM: Routers = Routers(SGLANG.0 | VLLM.0);
const SMG_VLLM: Routers = Routers(SMG.0 | VLLM.0);
const ALL: Routers = Routers(SMG.0 | SGLANG.0 | VLLM.0);

/// The routers, each alone, with the name of its package.
pub(super) const ROUTERS: [(Routers, &str); 3] =
    [(SMG, "smg"), (SGLANG, "sglang-router"), (VLLM, "vllm-router")];

impl Routers {
    /// Whether all of `others` are among these.
    pub(super) const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// Their names as a sentence has them: `smg and vllm-router`.
    pub(super) fn names(self) -> String {
        let names: Vec<&str> = ROUTERS
            .iter()
            .filter(|(router, _)| self.contains(*router))
            .map(|(_, name)| *name)
            .collect();
        match names.as_slice() {
            [] => String::new(),
            [one] => (*one).to_owned(),
            [before @ .., last] => format!("{} and {last}", before.join(", ")),
        }
    }
}

/// How many values a flag takes on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// None: a switch.
    Nothing,
    /// One.
    One,
    /// Any number, up to the next flag.
    Many,
}

/// What a flag of another router means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Here {
    /// This router has a flag of the same name and meaning.
    Same {
        /// What differs in bounds, default or unit; empty: nothing.
        differs: &'static str,
    },
    /// Another name of a flag of this router.
    Alias {
        /// That flag, without its dashes.
        of: &'static str,
        /// What differs in bounds, default or unit; empty: nothing.
        differs: &'static str,
        /// Values that mean something else there, each with why it is refused.
        except: &'static [(&'static str, &'static str)],
    },
    /// What it asks for is always so: it is accepted with this reason.
    Always(&'static str),
    /// Only these values ask for what is always so; others are refused with the reason.
    Only(&'static [&'static str], &'static str),
    /// It is refused: why, and what to use instead.
    Refused(&'static str),
}

/// A flag of another router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PeerFlag {
    /// Its name with its dashes.
    pub(super) flag: &'static str,
    /// The routers that have it.
    pub(super) routers: Routers,
    /// How many values it takes.
    pub(super) takes: Takes,
    /// What it means here.
    pub(super) here: Here,
}

impl PeerFlag {
    /// The name without its dashes.
    pub(super) fn name(&self) -> &'static str {
        self.flag.trim_start_matches('-')
    }

    /// Whether this router itself has a flag of that name.
    pub(super) const fn is_ours(&self) -> bool {
        matches!(self.here, Here::Same { .. })
    }
}

/// Every flag of the table.
pub(super) fn flags() -> impl Iterator<Item = &'static PeerFlag> {
    [routing::FLAGS, workers::FLAGS, traffic::FLAGS, engine::FLAGS, operations::FLAGS]
        .into_iter()
        .flatten()
}

/// The flag of another router with this name, given without its dashes.
pub(super) fn flag(name: &str) -> Option<&'static PeerFlag> {
    flags().find(|flag| flag.name() == name)
}

/// The flags of other routers that are names of this one's flag, given without its dashes.
pub(super) fn aliases(name: &str) -> impl Iterator<Item = &'static PeerFlag> {
    flags().filter(move |flag| matches!(flag.here, Here::Alias { of, .. } if of == name))
}

/// Whether a flag, given with its dashes, does something here: a flag of this router, or another name of one.
pub(super) fn is_accepted(with_dashes: &str) -> bool {
    flag(with_dashes.trim_start_matches('-'))
        .is_none_or(|flag| matches!(flag.here, Here::Same { .. } | Here::Alias { .. }))
}

/// A value of a flag that both have, which only another router knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PeerValue {
    /// The flag's name without its dashes.
    pub(super) flag: &'static str,
    /// What the value is or begins with.
    pub(super) value: &'static str,
    /// The routers that take it.
    pub(super) routers: Routers,
    /// What to use instead.
    pub(super) instead: &'static str,
}

/// Values that need a hint of their own.
pub(super) const VALUES: &[PeerValue] = &[
    PeerValue {
        flag: "policy",
        value: "kv_aware",
        routers: VLLM,
        instead: "cache_aware learns what workers have cached without KV events",
    },
    PeerValue {
        flag: "policy",
        value: "sticky_least_loaded",
        routers: VLLM,
        instead: "manual keeps a session on its worker, the least loaded one when the session began",
    },
    PeerValue {
        flag: "worker-urls",
        value: "grpc://",
        routers: ALL,
        instead: "engines are spoken to over HTTP: start the engine's HTTP server and give its http:// URL",
    },
    PeerValue {
        flag: "worker-urls",
        value: "ipc://",
        routers: SMG,
        instead: "engines are spoken to over HTTP: start the engine's HTTP server and give its http:// URL",
    },
];

/// A subcommand of another router that this one does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PeerCommand {
    /// Its name.
    pub(super) name: &'static str,
    /// The routers that have it.
    pub(super) routers: Routers,
    /// What to do instead.
    pub(super) instead: &'static str,
}

/// Subcommands that need a line of their own.
pub(super) const COMMANDS: &[PeerCommand] = &[
    PeerCommand { name: "serve", routers: SMG, instead: STARTS_NO_ENGINES },
    PeerCommand { name: "server", routers: SGLANG, instead: STARTS_NO_ENGINES },
];

const STARTS_NO_ENGINES: &str =
    "engines are not started from here; start them, then run smg --worker-urls URL URL";

const fn same(flag: &'static str, routers: Routers, differs: &'static str) -> PeerFlag {
    PeerFlag { flag, routers, takes: Takes::One, here: Here::Same { differs } }
}

const fn alias(
    flag: &'static str,
    routers: Routers,
    takes: Takes,
    of: &'static str,
    differs: &'static str,
) -> PeerFlag {
    PeerFlag { flag, routers, takes, here: Here::Alias { of, differs, except: &[] } }
}

const fn always(flag: &'static str, routers: Routers, takes: Takes, why: &'static str) -> PeerFlag {
    PeerFlag { flag, routers, takes, here: Here::Always(why) }
}

const fn only(
    flag: &'static str,
    routers: Routers,
    takes: Takes,
    values: &'static [&'static str],
    why: &'static str,
) -> PeerFlag {
    PeerFlag { flag, routers, takes, here: Here::Only(values, why) }
}

const fn refused(
    flag: &'static str,
    routers: Routers,
    takes: Takes,
    why: &'static str,
) -> PeerFlag {
    PeerFlag { flag, routers, takes, here: Here::Refused(why) }
}
