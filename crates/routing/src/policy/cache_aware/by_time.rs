//! Compares workers by the time to the first token that is expected of them (`--cache-aware-by time`).
//!
//! What a request waits for is prefill: that of the prompts which wait on the worker before it, and that of the part of its own
//! prompt which is not in the worker's cache. Both are counted in tokens and become seconds by the speed that the worker has shown
//! ([`Speed`]). A worker that generates tokens for many requests computes prompts more slowly, so each request in
//! flight adds a little.
//!
//! The own part counts [`OWN_WEIGHT`] times: what a worker computes now evicts prefixes that are worth as much to other requests, and
//! a conversation that moves leaves a prefix behind that nobody will use. Neither holds if different prompts share the prefix and the
//! worker is idle: then a second copy of it is worth what it takes.

use rand::Rng;
use smallvec::SmallVec;
use smg_types::now::Now;

use super::{CacheAware, position};
use crate::policy::{Candidate, Decision, Hint, Pick, TimeTerms, choose, rendezvous};
use crate::prefix::{BLOCK_BYTES, Recall, Recalls};
use crate::speed::Speed;

/// How much the computation of the own prompt counts, relative to waiting for others. On the conversation trace (`tests/bench/traces`, 8
/// workers, one router) 1, 2 and 4 give hit rates of .228, .243 and .251, and means of 1.25, 1.24 and 1.27 s.
const OWN_WEIGHT: f32 = 2.0;
/// The least time that a request in flight adds, in seconds: while nothing waits for prefill, requests spread evenly.
const CROWDING: f32 = 0.002;
/// Workers whose times differ by less than this share of the own prefill are alike.
const ALIKE: f32 = 0.05;
/// And those whose times differ by less than this, in seconds: two requests in flight.
const ALIKE_SECONDS: f32 = 2.0 * CROWDING;

/// Positions among the candidates.
type Positions = SmallVec<[usize; 16]>;

impl CacheAware {
    /// `explained` receives the terms of all candidates.
    pub(super) fn pick_by_time(
        &self,
        candidates: &[Candidate],
        hint: &Hint<'_>,
        used: Option<Now>,
        rng: &mut dyn Rng,
        explained: Option<&mut Vec<TimeTerms>>,
    ) -> Option<Pick> {
        let least_loaded = choose::least_loaded(candidates.iter().enumerate(), rng)?;
        let is_candidate = |worker| position(candidates, worker).is_some();
        let mut recalls = self.memory.index.recalls(hint.blocks, used, is_candidate);
        for (_, recall) in &mut recalls.workers {
            if (recall.held as f32) < self.config.cache_threshold * hint.blocks.len() as f32 {
                recall.held = 0;
            }
        }
        let terms = terms(candidates, &recalls, hint);
        let is_within = |at: usize| {
            choose::within_balance(&candidates[at], &candidates[least_loaded], &self.config)
        };
        let within: Positions = (0..candidates.len()).filter(|at| is_within(*at)).collect();
        let best = cheapest(&terms, &within)?;
        let alike = terms[best].cost + ALIKE_SECONDS + ALIKE * terms[best].own_seconds;
        let is_alike = |at: &usize| {
            terms[*at].cost <= alike && terms[*at].recall.held == terms[best].recall.held
        };
        let alike: Positions = within.iter().copied().filter(is_alike).collect();
        let index = self.one_of(candidates, &alike, hint, terms[best].recall, rng).unwrap_or(best);
        let recall = terms[index].recall;
        let longest = recalls.workers.iter().map(|(_, recall)| recall.held).max().unwrap_or(0);
        let decision = if hint.blocks.is_empty() {
            Decision::NoKey
        } else if recall.held == 0 && longest == 0 {
            Decision::Miss
        } else if recall.held == 0 {
            Decision::Balance
        } else {
            Decision::Hit(recall.held as f32 / hint.blocks.len() as f32)
        };
        if let Some(explained) = explained {
            explained.extend(terms.iter().enumerate().map(|(at, terms)| TimeTerms {
                is_within_balance: within.contains(&at),
                is_alike: alike.contains(&at),
                ..*terms
            }));
        }
        Some(Pick { index, decision, recall })
    }

    /// One of the candidates at these positions, which are alike: at random, or by the first block that they do not hold, so that
    /// routers that have not yet exchanged their hints choose the same one.
    fn one_of(
        &self,
        candidates: &[Candidate],
        alike: &[usize],
        hint: &Hint<'_>,
        recall: Recall,
        rng: &mut dyn Rng,
    ) -> Option<usize> {
        if let [only] = alike {
            return Some(*only);
        }
        let key = hint.blocks.get(recall.held as usize).or_else(|| hint.blocks.last());
        let drawn = match key.filter(|_| self.config.agree_across_routers) {
            Some(key) => {
                let alike: SmallVec<[Candidate; 16]> =
                    alike.iter().map(|at| candidates[*at]).collect();
                rendezvous::highest(&alike, *key, |_| true)
            }
            None => choose::weighted(alike.iter().map(|at| &candidates[*at]), rng),
        };
        drawn.map(|at| alike[at])
    }
}

/// The candidate with the least time, of those at these positions.
fn cheapest(terms: &[TimeTerms], within: &[usize]) -> Option<usize> {
    within.iter().copied().min_by(|a, b| terms[*a].cost.total_cmp(&terms[*b].cost))
}

/// The expected times of all candidates for a prompt of which `recalls` is known.
fn terms(
    candidates: &[Candidate],
    recalls: &Recalls,
    hint: &Hint<'_>,
) -> SmallVec<[TimeTerms; 16]> {
    let assumed = choose::mean_speed(candidates.iter());
    let mean_weight = choose::total_weight(candidates) as f32 / candidates.len() as f32;
    let mut terms: SmallVec<[TimeTerms; 16]> = candidates
        .iter()
        .map(|candidate| TimeTerms::of_speed(candidate.speed.unwrap_or(assumed)))
        .collect();
    for (worker, recall) in &recalls.workers {
        if let Some(at) = position(candidates, *worker) {
            terms[at].recall = *recall;
        }
    }
    for (candidate, terms) in candidates.iter().zip(&mut terms) {
        let held = terms.recall.held as usize * BLOCK_BYTES;
        let own = hint.prompt_bytes.saturating_sub(held) as f32 * candidate.tokens_per_byte;
        let is_free = recalls.is_shared && candidate.waiting == 0;
        let Speed { overhead, per_token, per_request } = terms.speed;
        terms.own_tokens = own;
        terms.own_seconds = per_token * own;
        terms.own_weight = if is_free { 1.0 } else { OWN_WEIGHT };
        terms.waiting_seconds = per_token * candidate.waiting as f32;
        terms.crowding_seconds = per_request.max(CROWDING) * candidate.load as f32;
        terms.share_factor = mean_weight / choose::weight(candidate) as f32;
        let time = overhead
            + terms.waiting_seconds
            + terms.own_weight * terms.own_seconds
            + terms.crowding_seconds;
        terms.cost = time * terms.share_factor;
    }
    terms
}
