//! Flags that list the workers, choose the policy, and limit the requests that are admitted.

use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use smg_routing::limit::Priority;
use smg_routing::policy::Kind;
use smg_types::spec::{Secret, WorkerUrl};

use crate::cli::values::{
    Limit, ModelAlias, between, limit, place, seconds, secret, whole, worker_url,
};

/// The workers that are configured.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Workers")]
pub struct WorkerArgs {
    /// Workers to route to.
    ///
    /// A list of http:// or https:// URLs. The router asks the workers for their models. `[[workers]]` tables of the
    /// file describe workers in more detail; further workers may be registered at run time. Default: none.
    #[arg(long, value_name = "URL", num_args = 1.., value_parser = worker_url)]
    pub worker_urls: Vec<WorkerUrl>,
    /// Key that is sent to workers that have no key of their own.
    ///
    /// Replaces the client's `authorization` header in requests to the workers of --worker-urls and of `[[workers]]`
    /// tables that name no key. Prefer the variable: every process of the machine can read a command line. Default:
    /// none; the client's header is forwarded to the worker unless it authenticated the client to the router.
    #[arg(long, value_name = "KEY", value_parser = secret, hide_env_values = true)]
    pub worker_api_key: Option<Secret>,
    /// Other names for models, as alias=model, whichever workers serve them.
    ///
    /// A request for the alias is forwarded as one for the model. A list. A worker's own aliases are set in its
    /// `[[workers]]` table. Default: none.
    #[arg(
        long,
        value_name = "ALIAS=MODEL",
        num_args = 1..,
        value_parser = crate::cli::values::model_alias
    )]
    pub model_alias: Vec<ModelAlias>,
    /// Networks in which workers are allowed although none are expected there, as 169.254.7.0/24.
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
    /// How long the requests in flight of a deleted worker may take to finish, 0 to 86400 seconds.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds(0.0, 86_400.0))]
    pub drain_timeout_secs: Duration,
}

/// Parses the name of a policy; `--help` lists the names with one sentence each.
fn policy() -> impl TypedValueParser<Value = Kind> {
    let named = |kind: Kind| {
        PossibleValue::new(kind.name()).aliases(other_names(kind)).help(kind.summary())
    };
    PossibleValuesParser::new(Kind::ALL.map(named)).map(|name| {
        let other = Kind::ALL.into_iter().find(|kind| other_names(*kind).contains(&name.as_str()));
        other.unwrap_or_else(|| name.parse().expect("only names of policies are possible values"))
    })
}

/// Parses the name of a priority class.
fn priority() -> impl TypedValueParser<Value = Priority> {
    PossibleValuesParser::new(Priority::ALL.map(Priority::name))
        .map(|name| name.parse().expect("only names of classes are possible values"))
}

/// The names of a policy in other routers, which are accepted as well.
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

/// What cache_aware compares workers by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Measure {
    /// The expected time to first token: the prompts that wait on the worker and the part of this one that it has not
    /// cached, at the worker's speed
    Time,
    /// The length of the prefix that the worker has served, and its requests in flight
    Requests,
}

/// How the router chooses a worker.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Routing")]
pub struct RoutingArgs {
    /// The policy that chooses a worker for each request.
    ///
    /// The default suits workers that keep a prefix cache, as vLLM and SGLang do. A worker's label `policy` sets
    /// another policy for its models.
    #[arg(long, value_name = "NAME", default_value = "cache_aware", value_parser = policy())]
    pub policy: Kind,
    /// What cache_aware compares workers by.
    ///
    /// The times and the sizes of the workers' caches are learnt from their answers, best if these report their cached tokens
    /// in `usage` (with vLLM: --enable-prompt-tokens-details).
    #[arg(long, value_name = "MEASURE", default_value = "time")]
    pub cache_aware_by: Measure,
    /// Share of a prompt that must be cached before cache_aware takes notice of it, 0 to 1.
    ///
    /// Default: 0; with --cache-aware-by requests 0.3, because a shorter match is worth less than even load.
    #[arg(long, value_name = "SHARE", value_parser = between(0.0, 1.0))]
    pub cache_threshold: Option<f32>,
    /// Requests by which the load of a worker may exceed the least loaded one for cache_aware to choose it, 0 to 1000000.
    ///
    /// A worker is left out only if this and --balance-rel-threshold are both exceeded. A good value is about the number
    /// of requests that one worker batches.
    #[arg(long, value_name = "N", default_value = "64", value_parser = whole::<u32>(0, 1_000_000))]
    pub balance_abs_threshold: u32,
    /// Ratio by which the load of a worker may exceed the least loaded one for cache_aware to choose it, 1 to 1000.
    ///
    /// A worker is left out only if this and --balance-abs-threshold are both exceeded.
    #[arg(long, value_name = "RATIO", default_value = "1.5", value_parser = between(1.0, 1000.0))]
    pub balance_rel_threshold: f32,
    /// Prompt blocks that cache_aware remembers, over all models, 1024 to 1073741824.
    ///
    /// The least recently used blocks are evicted first. The memory grows with the number of blocks, whatever the
    /// length of the prompts; /metrics shows how much is used.
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
    /// The most sessions that the manual policy remembers, 1 to 1073741824.
    ///
    /// The least recently used sessions are evicted first.
    #[arg(
        long,
        value_name = "N",
        default_value = "1048576",
        value_parser = whole::<usize>(1, 1 << 30)
    )]
    pub max_sessions: usize,
    /// Text of prompts that is ignored when prompts are compared, as a regular expression.
    ///
    /// For text that is different in each request and not worth a cache miss, such as the time of day. cache_aware and
    /// prefix_hash treat prompts as equal that differ only in it; the worker gets the prompt unchanged. The pattern is applied
    /// to the JSON of the request, where a line break is \n, in the first 64 KiB each of tools, system prompt and messages. May be
    /// given up to 16 times; in the variable, each line is a pattern. Syntax: docs.rs/regex. Default: none, besides the billing
    /// line of Claude Code.
    #[arg(long, value_name = "REGEX", value_parser = crate::cli::values::prefix_pattern)]
    pub prefix_ignore: Vec<String>,
    /// Request headers that carry a session's key, in order of preference.
    ///
    /// The policies consistent_hashing and manual read them after x-smg-routing-key and before the body's
    /// prompt_cache_key and user. A list of at most 16 names.
    #[arg(
        long,
        value_name = "HEADER",
        num_args = 1..,
        default_value = "x-session-id",
        value_parser = crate::cli::values::header_name
    )]
    pub session_header: Vec<http::HeaderName>,
    /// Show clients which worker, policy and decision served them.
    ///
    /// Adds x-smg-* headers to responses. Meant for experiments: it shows worker ids to every client. Without it, a response has
    /// them if its request has the header x-smg-debug: true and a key that may read the admin routes.
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
    /// The zone of this router: it prefers workers of its own zone.
    ///
    /// A worker's zone stands in its `[[workers]]` table or in the API. Requests go to workers of another zone while those of
    /// the own zone are out or full, or while the least loaded of them exceeds the least loaded worker by more than
    /// --balance-abs-threshold and --balance-rel-threshold allow. Default: none, no worker is preferred for its zone.
    #[arg(long, value_name = "NAME", value_parser = place)]
    pub node_zone: Option<String>,
    /// The region of this router: it prefers workers of its own region.
    ///
    /// As --node-zone, one step wider: a worker of the own zone comes first, then one of the own region, then any. Zones of
    /// the same name in two regions are two zones. Default: none, no worker is preferred for its region.
    #[arg(long, value_name = "NAME", value_parser = place)]
    pub node_region: Option<String>,
}

/// How many requests are admitted.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Admission")]
pub struct AdmissionArgs {
    /// The most requests in flight at all workers together; 0 or -1: no limit; up to 1000000.
    ///
    /// This router counts a request until the last byte of its response. Further requests wait in the queue. A value a
    /// little above what all workers batch together keeps them busy without long queues inside them.
    #[arg(
        long,
        value_name = "N",
        default_value = "0",
        allow_negative_numbers = true,
        value_parser = limit(1_000_000)
    )]
    pub max_concurrent_requests: Limit,
    /// The most requests that may wait in the queue, 0 to 1000000; 0: none waits.
    ///
    /// Requests wait because of --max-concurrent-requests, because all workers of their model have as many requests as their
    /// own max_concurrent allows, or because of --max-expected-wait. A request that finds the queue full is answered 429
    /// at once.
    #[arg(long, value_name = "N", default_value = "100", value_parser = whole::<u32>(0, 1_000_000))]
    pub queue_size: u32,
    /// How long a request may wait in the queue, 0.001 to 86400 seconds.
    ///
    /// Then it is answered 503 with Retry-After. Set it below the clients' own timeout, or they give up first.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "60",
        value_parser = seconds(0.001, 86_400.0)
    )]
    pub queue_timeout_secs: Duration,
    /// The longest that a request should wait for the prompts before it on a worker, 0 to 86400 seconds; 0: no limit.
    ///
    /// While every worker of the model has more to compute than that, requests wait in the queue of the router, where
    /// x-smg-priority orders them, and not in the queues of the engines. The time follows from the prompts in flight, those of other
    /// routers included, and from the speed that each worker has shown; POST /ha/explain shows it.
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds(0.0, 86_400.0))]
    pub max_expected_wait: Duration,
    /// Most requests per minute of all clients together, on all routers of the cluster, 1 to 1000000000.
    ///
    /// More are answered 429 with Retry-After. The short form of a rule; docs/limits.md shows what else rules can do. Default:
    /// no limit.
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1, 1_000_000_000))]
    pub rate_limit_requests_per_minute: Option<u64>,
    /// Most tokens per minute, of prompts and answers, of all clients together, on all routers of the cluster, 1 to
    /// 1000000000000.
    ///
    /// A request reserves its prompt and the most that it may answer, and returns what it did not use. Default: no limit.
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1, 1_000_000_000_000))]
    pub rate_limit_tokens_per_minute: Option<u64>,
    /// The most urgent priority class that a client may claim in x-smg-priority.
    ///
    /// A claim above it counts as this class. A more urgent class is served first from the queue, so lower this to
    /// default if the clients are strangers.
    #[arg(
        long,
        value_name = "CLASS",
        default_value = "interactive",
        value_parser = priority()
    )]
    pub max_client_priority: Priority,
    /// How long a request waits if workers are known but none is available, 0 to 86400 seconds.
    ///
    /// 0 answers 503 at once. A few seconds let requests survive the restart of a single worker.
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds(0.0, 86_400.0))]
    pub no_worker_wait_secs: Duration,
    /// How long a model whose last worker was removed is remembered, 0 to 2592000 seconds.
    ///
    /// A request for such a model is answered 503 with Retry-After, which clients repeat, and 404 only afterwards. 0 answers 404
    /// at once. The routers of a cluster share the names.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "86400",
        value_parser = seconds(0.0, 2_592_000.0)
    )]
    pub model_memory_secs: Duration,
}
