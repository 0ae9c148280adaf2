//! Picks the worker that is expected to begin its answer first: it has served the head of the prompt, or little waits on it.
//!
//! A worker that has served the head of a prompt has the keys and values of that head in its cache, and prefill is most of the
//! work of a long prompt. Two rules weigh that against the load of the workers: [`by_time`] (the default) and [`by_requests`].

mod by_requests;
mod by_time;

use std::sync::Arc;

use rand::Rng;
use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::memory::Memory;
use super::{Candidate, Config, Explained, Hint, Kind, Measure, Pick, Policy, TimeTerms};

/// The policy `cache_aware`.
#[derive(Debug)]
pub(super) struct CacheAware {
    config: Config,
    memory: Arc<Memory>,
}

impl CacheAware {
    pub(super) fn new(config: &Config, memory: Arc<Memory>) -> Self {
        Self { config: config.clone(), memory }
    }
}

impl CacheAware {
    /// Picks a worker. `used`: the time, if the request is about to be sent. `explained` receives the terms of the decision.
    fn decide(
        &self,
        candidates: &[Candidate],
        hint: &Hint<'_>,
        used: Option<Now>,
        rng: &mut dyn Rng,
        explained: Option<&mut Vec<TimeTerms>>,
    ) -> Option<Pick> {
        match self.config.cache_aware_by {
            Measure::Time => self.pick_by_time(candidates, hint, used, rng, explained),
            Measure::Requests => self.pick_by_requests(candidates, hint, used, rng),
        }
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
        self.decide(candidates, hint, Some(now), rng, None)
    }

    fn explain(
        &self,
        candidates: &[Candidate],
        hint: &Hint<'_>,
        _now: Now,
        rng: &mut dyn Rng,
    ) -> Explained {
        let mut terms = Vec::new();
        let pick = self.decide(candidates, hint, None, rng, Some(&mut terms));
        Explained { pick, terms }
    }

    fn sent(&self, worker: WorkerId, hint: &Hint<'_>, now: Now) {
        let unshared = self.memory.index.insert(hint.blocks, worker, now);
        self.memory.journal.record_prompt(worker, unshared.parent(), unshared.keys());
    }

    fn forget(&self, worker: WorkerId) {
        self.memory.forget(worker);
    }

    fn wants_blocks(&self) -> bool {
        true
    }
}

/// The index of the candidate `worker`.
fn position(candidates: &[Candidate], worker: WorkerId) -> Option<usize> {
    candidates.iter().position(|candidate| candidate.id == worker)
}
