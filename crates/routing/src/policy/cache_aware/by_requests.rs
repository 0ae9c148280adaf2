//! Compares workers by their requests in flight (`--cache-aware-by requests`). This is the rule of earlier versions, and about
//! that of other routers; it sees neither how long the prompts are that wait on a worker, nor how fast it computes them.
//!
//! A worker that has served the head of a prompt has the keys and values of that head in its cache, and prefill is most of the
//! work of a long prompt. The rule therefore picks in this order:
//!
//! 1. the least loaded of the workers with the longest match, unless that one is much busier than the least loaded candidate;
//! 2. the least loaded of the workers with the longest match among those that are not much busier;
//! 3. the least loaded candidate.
//!
//! A match counts only if it covers `cache_threshold` of the prompt. If no worker has a match that counts, the least loaded
//! candidate is picked, one of several at random. With `agree_across_routers` the first unknown block decides instead, among
//! the candidates with about the lowest load: so routers that have not yet exchanged their hints pick the same worker.

use rand::Rng;
use smg_types::now::Now;

use super::{CacheAware, position};
use crate::policy::{Candidate, Decision, Hint, Pick, choose, rendezvous};
use crate::prefix::Match;

impl CacheAware {
    pub(super) fn pick_by_requests(
        &self,
        candidates: &[Candidate],
        hint: &Hint<'_>,
        used: Option<Now>,
        rng: &mut dyn Rng,
    ) -> Option<Pick> {
        let least = choose::least_loaded(candidates.iter().enumerate(), rng)?;
        if hint.blocks.is_empty() {
            return Some(Pick::new(least, Decision::NoKey));
        }
        let is_candidate = |worker| position(candidates, worker).is_some();
        let longest = self.memory.index.longest(hint.blocks, used, is_candidate);
        let known = longest.as_ref().map_or(0, |found| found.depth);
        let Some((longest, fraction)) = longest.and_then(|found| {
            self.fraction_if_enough(&found, hint).map(|fraction| (found, fraction))
        }) else {
            let index = self.pick_unknown(candidates, least, hint.blocks, known);
            return Some(Pick::new(index, Decision::Miss));
        };
        let is_within =
            |at: usize| choose::within_balance(&candidates[at], &candidates[least], &self.config);
        // If the least loaded worker with the longest match is too busy, so are the others with that match.
        let best = least_of(candidates, &longest, rng)?;
        if is_within(best) {
            return Some(Pick::new(best, Decision::Hit(fraction)));
        }
        let is_candidate_within = |worker| position(candidates, worker).is_some_and(is_within);
        let shorter = self.memory.index.shorter(hint.blocks, &longest, is_candidate_within);
        let shorter = shorter.and_then(|found| {
            self.fraction_if_enough(&found, hint).map(|fraction| (found, fraction))
        });
        Some(match shorter {
            Some((found, fraction)) => {
                Pick::new(least_of(candidates, &found, rng)?, Decision::Hit(fraction))
            }
            None => Pick::new(least, Decision::Balance),
        })
    }

    /// Picks for a prompt without a match that counts. Some worker has served its first `known` blocks.
    fn pick_unknown(
        &self,
        candidates: &[Candidate],
        least: usize,
        blocks: &[u64],
        known: usize,
    ) -> usize {
        let key = blocks.get(known).or_else(|| blocks.last());
        let agreed = key.filter(|_| self.config.agree_across_routers).and_then(|key| {
            rendezvous::highest(candidates, *key, |c| choose::is_near(c, &candidates[least], 1))
        });
        agreed.unwrap_or(least)
    }

    /// The matched fraction of the prompt, if it reaches `cache_threshold`.
    fn fraction_if_enough(&self, found: &Match, hint: &Hint<'_>) -> Option<f32> {
        let fraction = found.depth as f32 / hint.blocks.len() as f32;
        (fraction >= self.config.cache_threshold).then_some(fraction)
    }
}

/// The least loaded of the workers in `found` that are candidates.
fn least_of(candidates: &[Candidate], found: &Match, rng: &mut dyn Rng) -> Option<usize> {
    let named = found.workers.iter().filter_map(|worker| position(candidates, *worker));
    choose::least_loaded(named.map(|at| (at, &candidates[at])), rng)
}
