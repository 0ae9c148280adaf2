//! Why a request would go to a worker: every worker with what is known of it, and the pick.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use smg_routing::fleet::Worker;
use smg_routing::policies::{self, Entry};
use smg_routing::policy::{Candidate, Decision, TimeTerms};
use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::request::{Criteria, DispatchError};
use super::standing::Standing;

/// What would happen to a request, and why.
#[derive(Debug)]
pub struct Explanation {
    /// The entry of the model, with its policy.
    pub entry: Arc<Entry>,
    /// The length of the prompt, in bytes.
    pub prompt_bytes: usize,
    /// Number of blocks of the prompt that were hashed; 0 if the policy does not look at prompts.
    pub blocks: usize,
    /// The worker that would get the request, and why; `None` if no worker can take it now. Where chance decides between workers
    /// that are about equally good, another call may name another one.
    pub pick: Option<(WorkerId, Decision)>,
    /// Why no worker can take the request; `None` if one can, or if the request would wait.
    pub refusal: Option<DispatchError>,
    /// Whether the request would wait in the queue.
    pub must_wait: bool,
    /// The shortest time that the request would wait for the prompts before it at any candidate; `None`: there are none.
    pub shortest_wait: Option<Duration>,
    /// All workers: the candidates, in the order in which the policy gets them, and then the others.
    pub workers: Vec<Considered>,
}

/// A worker as it was considered for a request.
#[derive(Debug)]
pub struct Considered {
    /// The worker.
    pub worker: Arc<Worker>,
    /// Whether it is a candidate.
    pub standing: Standing,
    /// What a policy sees of it.
    pub candidate: Candidate,
    /// The terms of its expected time, if the policy compares times and the worker is a candidate.
    pub terms: Option<TimeTerms>,
}

impl Explanation {
    pub(super) fn new(entry: &Arc<Entry>, criteria: &Criteria<'_>) -> Self {
        Self {
            entry: Arc::clone(entry),
            prompt_bytes: criteria.prompt.iter().map(|piece| piece.len()).sum(),
            blocks: 0,
            pick: None,
            refusal: None,
            must_wait: false,
            shortest_wait: None,
            workers: Vec::new(),
        }
    }
}

impl Considered {
    /// A worker that is no candidate.
    pub(super) fn left_out(
        worker: &Arc<Worker>,
        standing: Standing,
        weights: &BTreeMap<WorkerId, u32>,
        now: Now,
    ) -> Self {
        let weight = weights.get(&worker.id).copied().unwrap_or_else(|| worker.spec.weight.get());
        let candidate = policies::candidate(worker, weight, now);
        Self { worker: Arc::clone(worker), standing, candidate, terms: None }
    }
}
