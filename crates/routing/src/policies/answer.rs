//! Learns from an answer: the worker's speed, the tokens of a byte, and what the worker's cache holds.

use smg_types::ids::WorkerId;

use super::Entry;
use super::metrics::Reported;
use crate::fleet::InFlight;
use crate::prefix::{Evicted, Recall};

/// A request, as far as an answer says something about what was expected of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// What was known of the prompt on the worker.
    pub recall: Recall,
    /// Number of blocks of the prompt; 0 if they were not computed.
    pub blocks: usize,
    /// Length of the prompt in bytes.
    pub prompt_bytes: usize,
}

/// The tokens of a prompt as a worker reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptTokens {
    /// All tokens of the prompt.
    pub all: u64,
    /// Those that were in the worker's cache; `None`: the worker does not report it.
    pub cached: Option<u64>,
}

/// Prompts with fewer tokens prove nothing about a cache: engines cache in blocks of up to this size.
const LONG_PROMPT: u64 = 64;

impl Entry {
    /// Learns from the end of an answer of `worker`. `reported`: `None` if it reports no tokens.
    pub fn learn(
        &self,
        worker: WorkerId,
        asked: Asked,
        reported: Option<PromptTokens>,
        in_flight: &InFlight,
    ) -> Evicted {
        self.metrics.count_report(match reported {
            Some(PromptTokens { cached: Some(_), .. }) => Reported::Cached,
            Some(PromptTokens { cached: None, .. }) => Reported::Prompt,
            None => Reported::Nothing,
        });
        let Some(PromptTokens { all, cached }) = reported.filter(|tokens| tokens.all > 0) else {
            in_flight.learn_speed(None);
            return Evicted::Nothing;
        };
        in_flight.learn_tokens(all, asked.prompt_bytes);
        if let Some(cached) = cached {
            in_flight.count_cached(all, cached);
        }
        let computed = cached.map(|cached| all.saturating_sub(cached).min(u32::MAX.into()) as u32);
        in_flight.learn_speed(computed);
        let Some(cached) = cached.filter(|cached| *cached <= all && asked.blocks > 0) else {
            return Evicted::Nothing;
        };
        if asked.recall.held > 0 {
            let expected = u128::from(asked.recall.held) * u128::from(all) / asked.blocks as u128;
            self.count_cached(u64::try_from(expected).unwrap_or(all), cached);
        }
        if all < LONG_PROMPT || asked.recall.sent == 0 {
            return Evicted::Nothing;
        }
        let cached_blocks = u128::from(cached) * asked.blocks as u128 / u128::from(all);
        let cached_blocks = u32::try_from(cached_blocks).unwrap_or(u32::MAX);
        self.memory.index.learn_cached(worker, asked.recall, cached_blocks)
    }
}
