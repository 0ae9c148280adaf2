//! One pick: which worker gets the next attempt.

use std::sync::Arc;

use rand::Rng;
use smg_routing::fleet::{Fleet, InFlight, ServedBy, Worker};
use smg_routing::policies::{Asked, Entry, Policies};
use smg_routing::policy::{Decision, Pick};
use smg_routing::prefix;
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;

use super::candidates;
use super::request::{DispatchError, Request};

/// The choice for one attempt.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) worker: Arc<Worker>,
    /// What the worker calls the model, if it is another name than the client's.
    pub(super) renamed: Option<ModelId>,
    pub(super) in_flight: InFlight,
    pub(super) entry: Arc<Entry>,
    pub(super) decision: Decision,
    /// What was known of the prompt on the worker.
    pub(super) asked: Asked,
    /// Tokens of the prompt that the worker is expected to compute.
    pub(super) tokens: u32,
    /// Whether another worker could be tried after this one.
    pub(super) others: bool,
}

/// Block hashes of the prompt, computed when a policy first asks for them.
#[derive(Debug, Default)]
pub(super) struct Blocks(Option<Vec<u64>>);

impl Blocks {
    /// The hashes; none while no policy has asked for them.
    pub(super) fn hashes(&self) -> &[u64] {
        self.0.as_deref().unwrap_or_default()
    }

    fn compute(&mut self, root: u64, prompt: &[&[u8]], ignored: &prefix::Ignored) {
        if self.0.is_none() {
            let mut hashes = Vec::new();
            prefix::chain(root, &ignored.without(prompt), &mut hashes);
            self.0 = Some(hashes);
        }
    }
}

/// Picks a worker from the present snapshot of the fleet and takes a place on it. `tried`: the workers that were tried
/// before, the last one at the end.
///
/// # Errors
/// If no worker serves the model, or none can take the request now.
pub(super) fn choose(
    fleet: &Fleet,
    policies: &Policies,
    request: &Request<'_>,
    tried: &[WorkerId],
    blocks: &mut Blocks,
    now: Now,
    rng: &mut dyn Rng,
) -> Result<Chosen, DispatchError> {
    let snapshot = fleet.load();
    let members = match snapshot.served_by(request.model) {
        ServedBy::Members(members) => members,
        ServedBy::NotYetKnown => return Err(DispatchError::NoneAvailable),
        ServedBy::UnknownModel => {
            return Err(match request.model {
                None => DispatchError::NoneAvailable,
                Some(model) if fleet.has_departed(model, now) => DispatchError::ModelDeparted,
                Some(_) => DispatchError::NoSuchModel,
            });
        }
    };
    let table = policies.table(&snapshot);
    let entry = table.entry(request.model);
    if entry.policy.wants_blocks() {
        let root = entry.root(request.model);
        blocks.compute(root, request.prompt, &policies.config().ignored);
    }
    let hint = request.hint(blocks.hashes(), entry);
    let weights = &entry.weights;
    let mut found = candidates::of(members, tried, now, fleet.config(), weights);
    let mut untried = true;
    if let (true, Some(last)) = (found.list.is_empty(), tried.last()) {
        // All were tried: then any worker but the last one, and the last one only if it is the only one. A worker that
        // is merely full is worth waiting for, if that is allowed.
        untried = false;
        let last = std::slice::from_ref(last);
        found = candidates::of(members, last, now, fleet.config(), weights);
        if found.list.is_empty() && !found.full {
            found = candidates::of(members, &[], now, fleet.config(), weights);
        }
    }
    if snapshot.has_ranks() {
        found.prefer(members, entry);
    }
    let holder = request.goes_on_from.and_then(|id| policies.memory().holder(id, now));
    loop {
        let held = holder.and_then(|id| found.list.iter().position(|worker| worker.id == id));
        let pick = match held {
            // No other worker can answer it, whatever the policy.
            Some(index) => Some(Pick::sticky(index)),
            None => entry.policy.pick(&found.list, &hint, now, rng),
        };
        let Some(pick) = pick else {
            return Err(DispatchError::NoneAvailable);
        };
        let member = &members[found.members[pick.index] as usize];
        // Since the candidates were listed, the worker may have filled up, or its half-open breaker may have let its one
        // request through.
        let Some(in_flight) = member.worker.begin(now, &fleet.config().breaker, found.anyway)
        else {
            found.remove(pick.index, members, entry);
            continue;
        };
        entry.count_decision(pick.decision);
        return Ok(Chosen {
            worker: Arc::clone(&member.worker),
            renamed: member.renamed.clone(),
            in_flight,
            entry: Arc::clone(entry),
            decision: pick.decision,
            asked: Asked {
                recall: pick.recall,
                blocks: hint.blocks.len(),
                prompt_bytes: hint.prompt_bytes,
            },
            tokens: pick.uncached_tokens(hint.prompt_bytes, member.worker.tokens_per_byte()),
            others: untried && found.has_several(),
        });
    }
}
