//! The types of the table: routers, how many values a flag takes, and what it means here.

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

/// Each single router, with the name of its package.
pub(in crate::config) const ROUTERS: [(Routers, &str); 3] =
    [(SMG, "smg"), (SGLANG, "sglang-router"), (VLLM, "vllm-router")];

impl Routers {
    /// Whether this set contains all of `others`.
    pub(in crate::config) const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// The names as part of a sentence: `smg and vllm-router`.
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
    /// No value: the flag is a switch.
    Nothing,
    /// One value.
    One,
    /// Any number of values, up to the next flag.
    Many,
}

/// What a flag of another router means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) enum Here {
    /// This router has a flag of the same name and meaning.
    Same {
        /// The difference in bounds, default or unit; empty if there is none.
        differs: &'static str,
    },
    /// The flag is another name of a flag of this router.
    Alias {
        /// The name of this router's flag, without its dashes.
        of: &'static str,
        /// The difference in bounds, default or unit; empty if there is none.
        differs: &'static str,
        /// The values that mean something else in the other router, each with the reason why it is refused.
        except: &'static [(&'static str, &'static str)],
    },
    /// The flag asks for what always applies here. It is accepted and logged with this reason.
    Always(&'static str),
    /// These values ask for what always applies here; others are refused with the reason.
    Only(&'static [&'static str], &'static str),
    /// The flag is refused with this reason and alternative.
    Refused(&'static str),
}

/// A flag of another router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct PeerFlag {
    /// The flag's name with its dashes.
    pub(in crate::config) flag: &'static str,
    /// The routers that have it.
    pub(in crate::config) routers: Routers,
    /// How many values the flag takes.
    pub(in crate::config) takes: Takes,
    /// The meaning of the flag here.
    pub(in crate::config) here: Here,
}

impl PeerFlag {
    /// The flag's name without its dashes.
    pub(in crate::config) fn name(&self) -> &'static str {
        self.flag.trim_start_matches('-')
    }

    /// Whether this router has a flag of that name itself.
    pub(in crate::config) const fn is_ours(&self) -> bool {
        matches!(self.here, Here::Same { .. })
    }
}

/// A value that only another router knows, of a flag that both routers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct PeerValue {
    /// The flag's name without its dashes.
    pub(in crate::config) flag: &'static str,
    /// The value, or its beginning.
    pub(in crate::config) value: &'static str,
    /// The routers that take it.
    pub(in crate::config) routers: Routers,
    /// The alternative to the value.
    pub(in crate::config) instead: &'static str,
}

/// The values that need a hint of their own.
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
    /// The subcommand's name.
    pub(in crate::config) name: &'static str,
    /// The routers that have it.
    pub(in crate::config) routers: Routers,
    /// The alternative to the subcommand.
    pub(in crate::config) instead: &'static str,
}

/// The subcommands that are refused with an alternative.
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
