//! The words of the table: routers, what a flag takes, and what it means here.

/// A set of routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct Routers(u8);

pub(super) const SMG: Routers = Routers(1);
pub(super) const SGLANG: Routers = Routers(2);
pub(super) const VLLM: Routers = Routers(4);
pub(super) const SMG_SGLANG: Routers = Routers(SMG.0 | SGLANG.0);
pub(super) const SGLANG_VLLM: Routers = Routers(SGLANG.0 | VLLM.0);
pub(super) const SMG_VLLM: Routers = Routers(SMG.0 | VLLM.0);
pub(super) const ALL: Routers = Routers(SMG.0 | SGLANG.0 | VLLM.0);

/// The routers, each alone, with the name of its package.
pub(in crate::config) const ROUTERS: [(Routers, &str); 3] =
    [(SMG, "smg"), (SGLANG, "sglang-router"), (VLLM, "vllm-router")];

impl Routers {
    /// Whether all of `others` are among these.
    pub(in crate::config) const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// Their names as a sentence has them: `smg and vllm-router`.
    pub(in crate::config) fn names(self) -> String {
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
pub(in crate::config) enum Takes {
    /// None: a switch.
    Nothing,
    /// One.
    One,
    /// Any number, up to the next flag.
    Many,
}

/// What a flag of another router means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) enum Here {
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
pub(in crate::config) struct PeerFlag {
    /// Its name with its dashes.
    pub(in crate::config) flag: &'static str,
    /// The routers that have it.
    pub(in crate::config) routers: Routers,
    /// How many values it takes.
    pub(in crate::config) takes: Takes,
    /// What it means here.
    pub(in crate::config) here: Here,
}

impl PeerFlag {
    /// The name without its dashes.
    pub(in crate::config) fn name(&self) -> &'static str {
        self.flag.trim_start_matches('-')
    }

    /// Whether this router itself has a flag of that name.
    pub(in crate::config) const fn is_ours(&self) -> bool {
        matches!(self.here, Here::Same { .. })
    }
}

/// A value of a flag that both have, which only another router knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct PeerValue {
    /// The flag's name without its dashes.
    pub(in crate::config) flag: &'static str,
    /// What the value is or begins with.
    pub(in crate::config) value: &'static str,
    /// The routers that take it.
    pub(in crate::config) routers: Routers,
    /// What to use instead.
    pub(in crate::config) instead: &'static str,
}

/// Values that need a hint of their own.
pub(in crate::config) const VALUES: &[PeerValue] = &[
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
pub(in crate::config) struct PeerCommand {
    /// Its name.
    pub(in crate::config) name: &'static str,
    /// The routers that have it.
    pub(in crate::config) routers: Routers,
    /// What to do instead.
    pub(in crate::config) instead: &'static str,
}

/// Subcommands that need a line of their own.
pub(in crate::config) const COMMANDS: &[PeerCommand] = &[
    PeerCommand { name: "serve", routers: SMG, instead: STARTS_NO_ENGINES },
    PeerCommand { name: "server", routers: SGLANG, instead: STARTS_NO_ENGINES },
];

pub(super) const STARTS_NO_ENGINES: &str =
    "engines are not started from here; start them, then run smg --worker-urls URL URL";

pub(super) const fn same(flag: &'static str, routers: Routers, differs: &'static str) -> PeerFlag {
    PeerFlag { flag, routers, takes: Takes::One, here: Here::Same { differs } }
}

pub(super) const fn alias(
    flag: &'static str,
    routers: Routers,
    takes: Takes,
    of: &'static str,
    differs: &'static str,
) -> PeerFlag {
    PeerFlag { flag, routers, takes, here: Here::Alias { of, differs, except: &[] } }
}

pub(super) const fn always(
    flag: &'static str,
    routers: Routers,
    takes: Takes,
    why: &'static str,
) -> PeerFlag {
    PeerFlag { flag, routers, takes, here: Here::Always(why) }
}

pub(super) const fn only(
    flag: &'static str,
    routers: Routers,
    takes: Takes,
    values: &'static [&'static str],
    why: &'static str,
) -> PeerFlag {
    PeerFlag { flag, routers, takes, here: Here::Only(values, why) }
}

pub(super) const fn refused(
    flag: &'static str,
    routers: Routers,
    takes: Takes,
    why: &'static str,
) -> PeerFlag {
    PeerFlag { flag, routers, takes, here: Here::Refused(why) }
}
