//! Flags that say which workers there are, how one is chosen, and how many requests are let in.

use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use smg_routing::limit::Priority;
use smg_routing::policy::Kind;
use smg_types::spec::{Secret, WorkerUrl};

use crate::cli::values::{Limit, ModelAlias, between, limit, seconds, secret, whole, worker_url};

/// Which workers there are.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Workers")]
pub struct WorkerArgs {
    /// Workers to route to.
    ///
    /// A list of http:// or https:// URLs. Models are asked of the workers themselves. More can be told in `[[workers]]`
    /// tables of the file; further workers may be registered at run time. Default: none.
    #[arg(long, value_name = "URL", num_args = 1.., value_parser = worker_url)]
    pub worker_urls: Vec<WorkerUrl>,
    /// Key that is sent to workers which have none of their own.
    ///
    /// Replaces the client's `authorization` on the way to the workers of --worker-urls and of `[[workers]]` tables that
    /// name no key. Prefer the variable: a command line can be read by every process of the machine. Default: none, the
    /// client's header goes on to the worker unless it proved itself with it.
    #[arg(long, value_name = "KEY", value_parser = secret, hide_env_values = true)]
    pub worker_api_key: Option<Secret>,
    /// Other names for models, as alias=model, whichever workers serve them.
    ///
    /// A request for the alias is sent as one for the model. A worker's own aliases stand in its `[[workers]]` table. A
    /// list. Default: none.
    #[arg(
        long,
        value_name = "ALIAS=MODEL",
        num_args = 1..,
        value_parser = crate::cli::values::model_alias
    )]
    pub model_alias: Vec<ModelAlias>,
    /// Networks in which workers may be although no worker is expected there, as 169.254.7.0/24.
    ///
    /// Without it the router connects neither to link-local addresses (169.254.0.0/16, fe80::/10) nor to those of cloud
    /// metadata services, which hand out credentials: not when a worker is registered, and not when a worker's name
    /// resolves to one. A list. Default: none.
    #[arg(
        long,
        value_name = "CIDR",
        num_args = 1..,
        value_parser = crate::cli::values::network
    )]
    pub allow_worker_cidr: Vec<ipnet::IpNet>,
    /// How long a deleted worker may finish what is in flight, 0 to 86400 seconds.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds(0.0, 86_400.0))]
    pub drain_timeout_secs: Duration,
}

/// Reads the name of a policy; `--help` lists the names with one sentence each.
fn policy() -> impl TypedValueParser<Value = Kind> {
    let named =
        |kind: Kind| PossibleValue::new(kind.name()).aliases(other_names(kind)).help(summary(kind));
    PossibleValuesParser::new(Kind::ALL.map(named)).map(|name| {
        let other = Kind::ALL.into_iter().find(|kind| other_names(*kind).contains(&name.as_str()));
        other.unwrap_or_else(|| name.parse().expect("only names of policies are possible values"))
    })
}

/// Reads the name of a class in the queue.
fn priority() -> impl TypedValueParser<Value = Priority> {
    PossibleValuesParser::new(Priority::ALL.map(Priority::name))
        .map(|name| name.parse().expect("only names of classes are possible values"))
}

/// What other routers call a policy.
const fn other_names(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::ConsistentHashing => &["consistent_hash", "rendezvous_hash"],
        Kind::CacheAware
        | Kind::RoundRobin
        | Kind::Random
        | Kind::PowerOfTwo
        | Kind::LeastLoad
        | Kind::PrefixHash
        | Kind::Manual
        | Kind::Bucket
        | Kind::Passthrough => &[],
    }
}

/// How a policy picks, in one line.
const fn summary(kind: Kind) -> &'static str {
    match kind {
        Kind::CacheAware => {
            "The worker that has served the longest prefix of the prompt, within a bound on load"
        }
        Kind::RoundRobin => "In turn, by weight",
        Kind::Random => "At random, by weight",
        Kind::PowerOfTwo => "The less loaded of two workers drawn at random",
        Kind::LeastLoad => "The least loaded worker",
        Kind::ConsistentHashing => "Rendezvous hashing of the session, with bounded load",
        Kind::PrefixHash => "Rendezvous hashing of the prompt's head, with bounded load",
        Kind::Manual => "Sticky sessions with a time to live",
        Kind::Bucket => "A range of prompt lengths for each worker",
        Kind::Passthrough => "The first worker: for a fleet of one",
    }
}

/// How a worker is chosen.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Routing")]
pub struct RoutingArgs {
    /// How a worker is chosen for a request.
    ///
    /// The default suits workers that keep a prefix cache, which vLLM and SGLang do. A worker's label `policy` sets
    /// another one for its models.
    #[arg(long, value_name = "NAME", default_value = "cache_aware", value_parser = policy())]
    pub policy: Kind,
    /// Matched share of a prompt from which cache_aware follows the prefix, 0 to 1.
    ///
    /// Lower it when prompts share a short head that is expensive to compute; raise it when even load matters more.
    #[arg(long, value_name = "SHARE", default_value = "0.3", value_parser = between(0.0, 1.0))]
    pub cache_threshold: f32,
    /// Requests by which a worker with the prefix may exceed the least loaded one, 0 to 1000000.
    ///
    /// Affinity is given up only when this and --balance-rel-threshold are both exceeded. About the number of requests
    /// that one worker batches is a good value.
    #[arg(long, value_name = "N", default_value = "64", value_parser = whole::<u32>(0, 1_000_000))]
    pub balance_abs_threshold: u32,
    /// Ratio by which a worker with the prefix may exceed the least loaded one, 1 to 1000.
    ///
    /// Affinity is given up only when this and --balance-abs-threshold are both exceeded.
    #[arg(long, value_name = "RATIO", default_value = "1.5", value_parser = between(1.0, 1000.0))]
    pub balance_rel_threshold: f32,
    /// Prompt blocks that cache_aware remembers, over all models, 1024 to 1073741824.
    ///
    /// The least recently used go first. Every entry costs memory, whatever the prompt's length; /metrics shows how
    /// much is used.
    #[arg(
        long,
        value_name = "ENTRIES",
        default_value = "1048576",
        value_parser = whole::<usize>(1024, 1 << 30)
    )]
    pub max_tree_size: usize,
    /// How long the manual policy remembers an unused session, 1 to 2592000 seconds.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "3600",
        value_parser = seconds(1.0, 2_592_000.0)
    )]
    pub session_ttl_secs: Duration,
    /// Sessions that the manual policy remembers at most, 1 to 1073741824.
    ///
    /// The least recently used go first.
    #[arg(
        long,
        value_name = "N",
        default_value = "1048576",
        value_parser = whole::<usize>(1, 1 << 30)
    )]
    pub max_sessions: usize,
    /// Request headers that carry a session's key, best first.
    ///
    /// Read by consistent_hashing and manual after x-smg-routing-key and before the body's prompt_cache_key and user. A
    /// list of at most 16 names.
    #[arg(
        long,
        value_name = "HEADER",
        num_args = 1..,
        default_value = "x-session-id",
        value_parser = crate::cli::values::header_name
    )]
    pub session_header: Vec<http::HeaderName>,
    /// Tell clients which worker, policy and decision served them.
    ///
    /// Adds x-smg-* headers to responses. Meant for trying things out: it shows worker ids to every client.
    #[arg(
        long,
        value_name = "YES",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        value_parser = crate::cli::values::yes_or_no,
        action = clap::ArgAction::Set
    )]
    pub debug_headers: bool,
}

/// How many requests are let in.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Admission")]
pub struct AdmissionArgs {
    /// Requests at the workers at once; 0 or -1: no limit; up to 1000000.
    ///
    /// Counted by this router until the response's last byte. What is above it waits in the queue. A little more than
    /// what all workers together batch keeps them busy without piling work up in them.
    #[arg(
        long,
        value_name = "N",
        default_value = "0",
        allow_negative_numbers = true,
        value_parser = limit(1_000_000)
    )]
    pub max_concurrent_requests: Limit,
    /// Requests that may wait for a place, 0 to 1000000; 0: none waits.
    ///
    /// Only --max-concurrent-requests makes requests wait here. What finds the queue full is answered 429 at once.
    #[arg(long, value_name = "N", default_value = "100", value_parser = whole::<u32>(0, 1_000_000))]
    pub queue_size: u32,
    /// How long a request may wait in the queue, 0.001 to 86400 seconds.
    ///
    /// It is answered 503 with Retry-After after that. Shorter than what clients wait, or they leave first.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "60",
        value_parser = seconds(0.001, 86_400.0)
    )]
    pub queue_timeout_secs: Duration,
    /// The most urgent class that a client may claim in x-smg-priority.
    ///
    /// A claim above it counts as this class. Lower it to default where clients are strangers, for a class is a head
    /// start in the queue.
    #[arg(
        long,
        value_name = "CLASS",
        default_value = "interactive",
        value_parser = priority()
    )]
    pub max_client_priority: Priority,
    /// How long a request waits when workers are known and none is available, 0 to 86400 seconds.
    ///
    /// 0 answers 503 at once. Some seconds carry requests over a restart of a single worker.
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds(0.0, 86_400.0))]
    pub no_worker_wait_secs: Duration,
}
