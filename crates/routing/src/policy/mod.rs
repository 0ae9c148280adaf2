//! Policies: rules that pick one candidate.
//!
//! A policy gets a slice of small [`Candidate`]s, the workers that the dispatcher considers for this attempt, and a [`Hint`]
//! with the parts of the request that matter for routing. It never sees a worker, a socket or a clock.
//!
//! All policies but `passthrough` break ties at random, never by position. All compare loads as (load + 1) / weight, so a
//! worker of twice the weight is as busy with twice the requests. A policy learns in [`Policy::sent`], when an attempt goes
//! out, and not in [`Policy::pick`], because the picked worker may have filled up since.

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
mod terms;

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use smg_types::ids::WorkerId;
use smg_types::now::Now;

use crate::prefix::{BLOCK_BYTES, Ignored, Recall};
use crate::speed::Speed;

pub use build::build;
pub use choose::shortest_wait;
pub(crate) use choose::{compare_load, within_balance as is_within_balance};
pub use memory::Memory;
pub use terms::TimeTerms;

/// The policies (`--policy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Picks the worker that has served the longest prefix of the prompt, within a bound on load.
    CacheAware,
    /// Smooth weighted round robin.
    RoundRobin,
    /// Picks at random, by weight.
    Random,
    /// Draws two candidates at random and picks the less loaded one.
    PowerOfTwo,
    /// Picks the least loaded candidate.
    LeastLoad,
    /// Rendezvous hashing with bounded load, keyed by session.
    ConsistentHashing,
    /// Rendezvous hashing with bounded load, keyed by the head of the prompt.
    PrefixHash,
    /// Sticky sessions with a time to live.
    Manual,
    /// Gives each worker a range of prompt lengths.
    Bucket,
    /// Picks the first candidate: for a single worker.
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

impl Kind {
    /// How the policy picks a worker, in one line.
    #[must_use]
    pub const fn summary(self) -> &'static str {
        match self {
            Self::CacheAware => "The worker with the shortest expected time to first token",
            Self::RoundRobin => "In turn, by weight",
            Self::Random => "At random, by weight",
            Self::PowerOfTwo => "The less loaded of two workers drawn at random",
            Self::LeastLoad => "The least loaded worker",
            Self::ConsistentHashing => "Rendezvous hashing of the session, with bounded load",
            Self::PrefixHash => "Rendezvous hashing of the prompt's head, with bounded load",
            Self::Manual => "Sticky sessions with a time to live",
            Self::Bucket => "A range of prompt lengths for each worker",
            Self::Passthrough => "The first worker: for a fleet of one",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of a policy; it holds the first 64 characters of the text.
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

/// What `cache_aware` compares workers by (`--cache-aware-by`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// The expected time to first token.
    Time,
    /// The length of the prefix that they have served, and their requests in flight.
    Requests,
}

/// Settings of the policies.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The policy of models that have none of their own.
    pub kind: Kind,
    /// What `cache_aware` compares workers by.
    pub cache_aware_by: Measure,
    /// `cache_aware` looks at a prefix if it is at least this fraction of the prompt, 0..=1.
    pub cache_threshold: f32,
    /// `cache_aware` and `bucket` leave the preferred worker if its load exceeds that of the least loaded one by more than this
    /// number of requests, and by more than `balance_rel_threshold` times.
    pub balance_abs_threshold: u32,
    /// The ratio of loads that goes with `balance_abs_threshold`, at least 1.
    pub balance_rel_threshold: f32,
    /// `manual` forgets a session that is not used for this time.
    pub session_ttl: Duration,
    /// Most sessions that `manual` remembers. It evicts the least recently used one first.
    pub max_sessions: usize,
    /// `cache_aware` and `manual` choose the worker of an unknown prompt or session by a hash of its key, among the workers
    /// with about the lowest load. So routers that have not yet exchanged their hints choose the same worker.
    pub agree_across_routers: bool,
    /// The text of prompts that is left out of [`Hint::blocks`].
    pub ignored: Arc<Ignored>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kind: Kind::CacheAware,
            cache_aware_by: Measure::Time,
            cache_threshold: 0.0,
            balance_abs_threshold: 64,
            balance_rel_threshold: 1.5,
            session_ttl: Duration::from_secs(3600),
            max_sessions: 1 << 20,
            agree_across_routers: false,
            ignored: Arc::default(),
        }
    }
}

/// A worker as a policy sees it, for one pick.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The worker's id.
    pub id: WorkerId,
    /// Requests in flight on the worker.
    pub load: u32,
    /// The worker's share of traffic relative to the other candidates; 0 counts as 1.
    pub weight: u32,
    /// Prompt tokens that wait on the worker for their computation.
    pub waiting: u32,
    /// The worker's speed; `None`: it has shown none yet.
    pub speed: Option<Speed>,
    /// Tokens per byte of prompt.
    pub tokens_per_byte: f32,
}

impl Candidate {
    /// A worker with `load` requests in flight, of which nothing else is known.
    #[must_use]
    pub const fn new(id: WorkerId, load: u32, weight: u32) -> Self {
        Self { id, load, weight, waiting: 0, speed: None, tokens_per_byte: 0.25 }
    }
}

/// The parts of a request that policies use.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hint<'a> {
    /// The session or routing key that the client sent.
    pub session: Option<&'a [u8]>,
    /// Chained hashes of the prompt's blocks, head first. Empty if there is no prompt, or if [`Policy::wants_blocks`] is false.
    pub blocks: &'a [u64],
    /// Length of the prompt in bytes.
    pub prompt_bytes: usize,
    /// The root of the model's prompt chains ([`crate::prefix::root`]). Equal session keys of two models are two sessions.
    pub model: u64,
}

/// The reason for a pick, for metrics and for `x-smg-decision`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// The policy looks only at load and weight.
    Plain,
    /// The worker has served a prefix of the prompt. Holds the matched fraction of the prompt, 0..=1.
    Hit(f32),
    /// The preferred worker was too busy; the pick is the least loaded one.
    Balance,
    /// No known prefix is long enough, or the session is new.
    Miss,
    /// The pick is the key's own worker.
    Sticky,
    /// The key's own worker is too busy or not a candidate; the pick is another one.
    Spill,
    /// The policy uses a key, and the request has none.
    NoKey,
}

impl Decision {
    /// The value of the metric label `decision`.
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

/// A policy's choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pick {
    /// Index into the slice of candidates.
    pub index: usize,
    /// The reason for the choice.
    pub decision: Decision,
    /// What is known of the prompt on the picked worker; nothing if the policy does not look at prefixes.
    pub recall: Recall,
}

impl Pick {
    /// The candidate at `index`, because it holds what the request goes on from.
    #[must_use]
    pub const fn sticky(index: usize) -> Self {
        Self::new(index, Decision::Sticky)
    }

    /// The tokens of a prompt of `prompt_bytes` bytes that the picked worker is expected to compute, at its `tokens_per_byte`.
    #[must_use]
    pub fn uncached_tokens(&self, prompt_bytes: usize, tokens_per_byte: f32) -> u32 {
        let held = self.recall.held as usize * BLOCK_BYTES;
        (prompt_bytes.saturating_sub(held) as f32 * tokens_per_byte) as u32
    }
}

/// A pick that was made to be shown.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Explained {
    /// The pick; `None` if there are no candidates.
    pub pick: Option<Pick>,
    /// The terms of each candidate, in the order of the candidates. Empty if the policy does not compare times.
    pub terms: Vec<TimeTerms>,
}

/// A rule that picks one candidate. Several threads of the request path call it at once: an implementation may hold a lock
/// for a few look-ups and must not block on anything else.
pub trait Policy: Send + Sync + fmt::Debug {
    /// The name for `--policy`, the worker label `policy` and metrics.
    fn name(&self) -> &'static str;

    /// Picks one of `candidates`; `None` only if there are none.
    fn pick(
        &self,
        candidates: &[Candidate],
        hint: &Hint<'_>,
        now: Now,
        rng: &mut dyn Rng,
    ) -> Option<Pick>;

    /// Decides as [`Policy::pick`] would, by the same code, and changes nothing that later picks or metrics depend on. The default
    /// suits a policy whose `pick` changes nothing.
    fn explain(
        &self,
        candidates: &[Candidate],
        hint: &Hint<'_>,
        now: Now,
        rng: &mut dyn Rng,
    ) -> Explained {
        Explained { pick: self.pick(candidates, hint, now, rng), terms: Vec::new() }
    }

    /// Called for each attempt, when it goes to `worker`. A policy learns here. The default does nothing.
    fn sent(&self, worker: WorkerId, hint: &Hint<'_>, now: Now) {
        let _ = (worker, hint, now);
    }

    /// Called when `worker` has left the fleet or has lost its cache. The policy must forget what it has learnt about the
    /// worker. The default does nothing.
    fn forget(&self, worker: WorkerId) {
        let _ = worker;
    }

    /// Whether the caller must compute [`Hint::blocks`] for this policy.
    fn wants_blocks(&self) -> bool {
        false
    }
}
