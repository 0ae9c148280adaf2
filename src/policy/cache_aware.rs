//! The longest known prefix, within a bound on load.
//!
//! A worker that has served the head of a prompt has its keys and values in memory, and prefill is most of the work of
//! a long prompt. So a prompt of which enough is known goes to the least loaded of the workers that know most of it, as
//! long as that one is not much busier than the least loaded of all; then to the longest match among those that are
//! not. Only when there is none that matches enough is affinity given up. What matches nothing goes to the least loaded
//! of all, one of them by chance, and makes its worker the one that knows it.

use std::sync::Arc;

use rand::Rng;

use super::{Candidate, Config, Decision, Hint, Kind, Pick, Policy, choose};
use crate::ids::WorkerId;
use crate::now::Now;
use crate::prefix::{Index, Match};

/// Picks by what workers have served.
#[derive(Debug)]
pub(super) struct CacheAware {
    config: Config,
    index: Arc<Index>,
}

impl CacheAware {
    pub(super) fn new(config: &Config, index: Arc<Index>) -> Self {
        Self { config: config.clone(), index }
    }

    /// The matched fraction of the prompt, if it is enough to follow.
    fn enough(&self, found: &Match, hint: &Hint<'_>) -> Option<f32> {
        let fraction = found.depth as f32 / hint.blocks.len() as f32;
        (fraction >= self.config.cache_threshold).then_some(fraction)
    }
}

impl Policy for CacheAware {
    fn name(&self) -> &'static str {
        Kind::CacheAware.name()
    }

    fn pick(
        &self,
        candidates: &[Candidate],
        hint: &Hint<'_>,
        now: Now,
        rng: &mut dyn Rng,
    ) -> Option<Pick> {
        let least = choose::least_loaded(candidates.iter().enumerate(), rng)?;
        if hint.blocks.is_empty() {
            return Some(Pick::new(least, Decision::NoKey));
        }
        let is_candidate = |worker| position(candidates, worker).is_some();
        let longest = self.index.longest(hint.blocks, now, is_candidate);
        let Some((longest, fraction)) =
            longest.and_then(|found| self.enough(&found, hint).map(|fraction| (found, fraction)))
        else {
            return Some(Pick::new(least, Decision::Miss));
        };
        let is_within =
            |at: usize| choose::within_balance(&candidates[at], &candidates[least], &self.config);
        // If the least loaded of the longest is too busy, so are the others.
        let best = least_of(candidates, &longest, rng)?;
        if is_within(best) {
            return Some(Pick::new(best, Decision::Hit(fraction)));
        }
        let is_candidate_within = |worker| position(candidates, worker).is_some_and(is_within);
        let shorter = self.index.shorter(hint.blocks, longest.depth, is_candidate_within);
        let shorter =
            shorter.and_then(|found| self.enough(&found, hint).map(|fraction| (found, fraction)));
        Some(match shorter {
            Some((found, fraction)) => {
                Pick::new(least_of(candidates, &found, rng)?, Decision::Hit(fraction))
            }
            None => Pick::new(least, Decision::Balance),
        })
    }

    fn sent(&self, worker: WorkerId, hint: &Hint<'_>, now: Now) {
        self.index.insert(hint.blocks, worker, now);
    }

    fn forget(&self, worker: WorkerId) {
        self.index.forget(worker);
    }

    fn wants_blocks(&self) -> bool {
        true
    }
}

fn position(candidates: &[Candidate], worker: WorkerId) -> Option<usize> {
    candidates.iter().position(|candidate| candidate.id == worker)
}

/// The least loaded of those that `found` names.
fn least_of(candidates: &[Candidate], found: &Match, rng: &mut dyn Rng) -> Option<usize> {
    let named = found.workers.iter().filter_map(|worker| position(candidates, *worker));
    choose::least_loaded(named.map(|at| (at, &candidates[at])), rng)
}
