//! Policies: rules that pick one candidate.
//!
//! A policy sees a slice of small [`Candidate`]s that are already fit to serve (ready, admitted by their breaker, below
//! their own limit, not tried yet) and a [`Hint`] of what is known about the request. It never sees a worker, a socket
//! or a clock. Ties are broken by chance, never by position. Loads are compared as (load + 1) / weight everywhere, so
//! that a worker of twice the weight is as busy with twice the requests.
//!
//! A policy learns in [`Policy::sent`], when the request goes out, and not in [`Policy::pick`]: after a retry the worker
//! that got the request is another than the one that was picked first.

mod bucket;
mod build;
mod cache_aware;
mod choose;
mod consistent_hashing;
pub mod journal;
mod least_load;
mod manual;
mod memory;
mod passthrough;
mod power_of_two;
mod prefix_hash;
mod random;
mod rendezvous;
mod round_robin;
mod sessions;

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::Rng;
use smg_types::ids::WorkerId;
use smg_types::now::Now;

pub use build::build;
pub use memory::Memory;

/// The policies by name (`--policy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The longest known prefix, within a bound on load.
    CacheAware,
    /// Smooth weighted round robin.
    RoundRobin,
    /// Weighted chance.
    Random,
    /// Two by chance, the less loaded of them.
    PowerOfTwo,
    /// The least loaded.
    LeastLoad,
    /// A ring with bounded load, keyed by session.
    ConsistentHashing,
    /// The same ring, keyed by the head of the prompt.
    PrefixHash,
    /// Sticky sessions with a time to live.
    Manual,
    /// By length of the prompt.
    Bucket,
    /// Whatever comes first, counted all the same: for a single worker.
    Passthrough,
}

impl Kind {
    /// All policies, the default first.
    pub const ALL: [Self; 10] = [
        Self::CacheAware,
        Self::RoundRobin,
        Self::Random,
        Self::PowerOfTwo,
        Self::LeastLoad,
        Self::ConsistentHashing,
        Self::PrefixHash,
        Self::Manual,
        Self::Bucket,
        Self::Passthrough,
    ];

    /// The name for `--policy`, the worker label `policy` and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CacheAware => "cache_aware",
            Self::RoundRobin => "round_robin",
            Self::Random => "random",
            Self::PowerOfTwo => "power_of_two",
            Self::LeastLoad => "least_load",
            Self::ConsistentHashing => "consistent_hashing",
            Self::PrefixHash => "prefix_hash",
            Self::Manual => "manual",
            Self::Bucket => "bucket",
            Self::Passthrough => "passthrough",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy {0:?} is not one of {names}", names = Kind::ALL.map(Kind::name).join(", "))]
pub struct ParseKindError(String);

impl FromStr for Kind {
    type Err = ParseKindError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| ParseKindError(text.chars().take(64).collect()))
    }
}

/// What the policies can be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The policy of models that do not name one.
    pub kind: Kind,
    /// Matched fraction of a prompt, 0..=1, from which on cache_aware follows the prefix.
    pub cache_threshold: f32,
    /// Requests in flight by which the affine worker may exceed the least loaded one before affinity is given up;
    /// both bounds must be exceeded.
    pub balance_abs_threshold: u32,
    /// Ratio by which it may, at least 1.
    pub balance_rel_threshold: f32,
    /// How long the manual policy remembers a session that is not used.
    pub session_ttl: Duration,
    /// Sessions that the manual policy remembers at most, least recently used out first.
    pub max_sessions: usize,
    /// What nobody knows yet goes where its key says, among those with about the least to do: so that routers which have
    /// not heard of each other choose alike.
    pub agree: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kind: Kind::CacheAware,
            cache_threshold: 0.3,
            balance_abs_threshold: 64,
            balance_rel_threshold: 1.5,
            session_ttl: Duration::from_secs(3600),
            max_sessions: 1 << 20,
            agree: false,
        }
    }
}

/// A worker as a policy sees it, for one pick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which worker.
    pub id: WorkerId,
    /// Requests in flight on it.
    pub load: u32,
    /// Its share of traffic relative to the others, at least 1.
    pub weight: u32,
}

/// What is known about a request when a worker is picked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hint<'a> {
    /// The session or routing key that the client sent, if any.
    pub session: Option<&'a [u8]>,
    /// Chained hashes of the prompt's blocks, head first; empty when there is no prompt or no policy asked for them.
    pub blocks: &'a [u64],
    /// Length of the prompt in bytes.
    pub prompt_bytes: usize,
    /// What the chains of the model's prompts begin with: so that two models' sessions of one name are two.
    pub model: u64,
}

/// Why the candidate was picked, for metrics and for `x-smg-decision`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// The policy looks at nothing but the candidates.
    Plain,
    /// The longest known prefix: the matched fraction of the prompt, 0..=1.
    Hit(f32),
    /// The worker that the prompt belongs to was too busy: affinity was given up for the least loaded.
    Balance,
    /// No known prefix was long enough; or the session is new.
    Miss,
    /// The key's own worker.
    Sticky,
    /// The key's own worker was too busy or gone: the next one.
    Spill,
    /// The policy wanted a key and the request has none.
    NoKey,
}

impl Decision {
    /// A name from a closed set: the metric label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Hit(_) => "hit",
            Self::Balance => "balance",
            Self::Miss => "miss",
            Self::Sticky => "sticky",
            Self::Spill => "spill",
            Self::NoKey => "no_key",
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hit(fraction) => write!(f, "hit {fraction:.2}"),
            other => f.write_str(other.name()),
        }
    }
}

/// One pick: which candidate and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pick {
    /// Index into the slice of candidates.
    pub index: usize,
    /// Why that one.
    pub decision: Decision,
}

/// A rule that picks one candidate. Called on the request path from several threads at once: an implementation holds a
/// lock for a few look-ups at most and never blocks on anything else.
pub trait Policy: Send + Sync + fmt::Debug {
    /// The name under which it is chosen (`--policy`).
    fn name(&self) -> &'static str;

    /// Picks one of `candidates`; `None` only when there are none.
    fn pick(
        &self,
        candidates: &[Candidate],
        hint: &Hint<'_>,
        now: Now,
        rng: &mut dyn Rng,
    ) -> Option<Pick>;

    /// Told after `pick`, once the request really goes to `worker` (it may be another than the picked one after a
    /// retry): the place to learn from. Does nothing by default.
    fn sent(&self, worker: WorkerId, hint: &Hint<'_>, now: Now) {
        let _ = (worker, hint, now);
    }

    /// Told when `worker` left, or came back with a cold cache: what was learnt of it is void.
    fn forget(&self, worker: WorkerId) {
        let _ = worker;
    }

    /// Whether [`Hint::blocks`] are worth computing for this policy.
    fn wants_blocks(&self) -> bool {
        false
    }
}
