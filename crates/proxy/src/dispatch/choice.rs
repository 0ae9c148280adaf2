//! One pick: which worker gets the next attempt.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use smg_routing::fleet::{Fitness, Fleet, InFlight, Member, Rank, ServedBy, Snapshot, Worker};
use smg_routing::limit::Place;
use smg_routing::policies::{Asked, Entry, Policies};
use smg_routing::policy::{Decision, Explained, Hint, Pick};
use smg_routing::prefix;
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;

use super::candidates::{self, Candidates};
use super::explanation::{Considered, Explanation};
use super::request::{Criteria, DispatchError};
use super::standing::Standing;

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
    /// The place in the queue that the request had. The next request of its line may choose once this one's prompt is counted.
    pub(super) place: Option<Place>,
}

/// Why there is no choice.
#[derive(Debug)]
pub(super) enum NoChoice {
    /// No worker can take the request.
    Error(DispatchError),
    /// Workers that could take the request have no room at present.
    NoRoom,
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

/// What a choice is made from. All choices of requests, and all explanations, are made here.
struct Round<'a> {
    members: &'a [Member],
    hint: Hint<'a>,
    found: Candidates,
    /// The worker that holds what the request goes on from.
    holder: Option<WorkerId>,
    /// Whether the candidates are workers that were not tried before.
    untried: bool,
}

impl<'a> Round<'a> {
    /// Finds the candidates of the request among `members`. `left_out` is as in [`candidates::of`].
    fn of(
        (fleet, snapshot, members): (&Fleet, &Snapshot, &'a [Member]),
        (policies, entry): (&Policies, &'a Arc<Entry>),
        criteria: &Criteria<'a>,
        tried: &[WorkerId],
        blocks: &'a mut Blocks,
        now: Now,
        left_out: &mut impl FnMut(u32, Standing),
    ) -> Self {
        if entry.policy.wants_blocks() {
            let root = entry.root(criteria.model);
            blocks.compute(root, criteria.prompt, &entry.config().ignored);
        }
        let hint = criteria.hint(blocks.hashes(), entry);
        let weights = &entry.weights;
        let mut found = candidates::of(members, tried, now, fleet.config(), weights, left_out);
        let mut untried = true;
        if let (true, Some(last)) = (found.list.is_empty(), tried.last()) {
            // All were tried: then any worker but the last one, and the last one only if it is the only one. A worker that
            // is merely full is worth waiting for.
            untried = false;
            let last = std::slice::from_ref(last);
            found = candidates::of(members, last, now, fleet.config(), weights, left_out);
            if found.list.is_empty() && !found.full {
                found = candidates::of(members, &[], now, fleet.config(), weights, left_out);
            }
        }
        if snapshot.has_ranks() {
            found.prefer(members, entry);
        }
        let holder = criteria.goes_on_from.and_then(|id| policies.memory().holder(id, now));
        Self { members, hint, found, holder, untried }
    }

    /// Whether the request must wait, because the prompts that wait on each candidate need more than `most`.
    fn must_wait(&self, most: Option<Duration>) -> bool {
        most.is_some_and(|most| self.found.shortest_wait().is_some_and(|wait| wait > most))
    }

    /// The candidate that holds what the request goes on from, because no other can answer it; else the one that `policy` picks.
    fn pick(&self, policy: impl FnOnce() -> Option<Pick>) -> Option<Pick> {
        let held =
            self.holder.and_then(|id| self.found.list.iter().position(|worker| worker.id == id));
        held.map_or_else(policy, |index| Some(Pick::sticky(index)))
    }

    fn member(&self, pick: &Pick) -> &'a Member {
        &self.members[self.found.members[pick.index] as usize]
    }
}

/// The workers that serve a model.
fn members<'s>(
    fleet: &Fleet,
    snapshot: &'s Snapshot,
    model: Option<&str>,
    now: Now,
) -> Result<&'s [Member], DispatchError> {
    match (snapshot.served_by(model), model) {
        (ServedBy::Members(members), _) => Ok(members),
        (ServedBy::NotYetKnown, _) | (ServedBy::UnknownModel, None) => {
            Err(DispatchError::NoneAvailable)
        }
        (ServedBy::UnknownModel, Some(model)) if fleet.has_departed(model, now) => {
            Err(DispatchError::ModelDeparted)
        }
        (ServedBy::UnknownModel, Some(_)) => Err(DispatchError::NoSuchModel),
    }
}

/// The line in which requests for a model wait. Requests for its aliases wait in the same one.
pub(super) fn line(fleet: &Fleet, model: Option<&str>) -> u64 {
    let snapshot = fleet.load();
    let own_name = match snapshot.served_by(model) {
        ServedBy::Members([first, ..]) => first.renamed.clone(),
        ServedBy::Members([]) | ServedBy::NotYetKnown | ServedBy::UnknownModel => None,
    };
    prefix::root(&own_name.unwrap_or_else(|| ModelId::from(model.unwrap_or_default())))
}

/// Picks a worker from the present snapshot of the fleet and takes a place on it. `tried`: the workers that were tried
/// before, the last one at the end. `max_wait`: the longest time that the prompts which wait on the best worker may need.
///
/// # Errors
/// If no worker serves the model, or none can take the request now.
pub(super) fn choose(
    (fleet, policies, max_wait): (&Fleet, &Policies, Option<Duration>),
    criteria: &Criteria<'_>,
    tried: &[WorkerId],
    blocks: &mut Blocks,
    now: Now,
    rng: &mut dyn Rng,
) -> Result<Chosen, NoChoice> {
    let snapshot = fleet.load();
    let members = members(fleet, &snapshot, criteria.model, now).map_err(NoChoice::Error)?;
    let table = policies.table(&snapshot);
    let entry = table.entry(criteria.model);
    let served = (fleet, &**snapshot, members);
    let mut round =
        Round::of(served, (policies, entry), criteria, tried, blocks, now, &mut |_, _| {});
    if round.must_wait(max_wait) {
        return Err(NoChoice::NoRoom);
    }
    let breaker = &fleet.config().breaker;
    loop {
        let Round { found, hint, .. } = &round;
        let Some(pick) = round.pick(|| entry.policy.pick(&found.list, hint, now, rng)) else {
            return Err(match found.full {
                true => NoChoice::NoRoom,
                false => NoChoice::Error(DispatchError::NoneAvailable),
            });
        };
        let member = round.member(&pick);
        // Since the candidates were listed, the worker may have filled up, or its half-open breaker may have let its one
        // request through.
        let Some(in_flight) = member.worker.begin(now, breaker, found.anyway) else {
            round.found.full |= member.worker.fitness(now, breaker) == Fitness::Full;
            round.found.remove(pick.index, members, entry);
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
            place: None,
            others: round.untried && found.has_several(),
        });
    }
}

/// Picks a worker as `choose` does for the first attempt of a request, takes no place on it, and says why. Nothing is sent,
/// counted or learnt.
#[must_use]
pub fn explain(
    (fleet, policies, max_wait): (&Fleet, &Policies, Option<Duration>),
    criteria: &Criteria<'_>,
    now: Now,
    rng: &mut dyn Rng,
) -> Explanation {
    let snapshot = fleet.load();
    let table = policies.table(&snapshot);
    let entry = table.entry(criteria.model);
    let mut explanation = Explanation::new(entry, criteria);
    let members = members(fleet, &snapshot, criteria.model, now);
    let mut standings = Vec::new();
    let served = match members {
        Ok(members) => members,
        Err(error) => {
            explanation.refusal = Some(error);
            &[]
        }
    };
    let mut blocks = Blocks::default();
    let round = Round::of(
        (fleet, &snapshot, served),
        (policies, entry),
        criteria,
        &[],
        &mut blocks,
        now,
        &mut |at, standing| standings.push((at, standing)),
    );
    let Round { found, hint, .. } = &round;
    let mut explained = Explained::default();
    let pick = round.pick(|| {
        explained = entry.policy.explain(&found.list, hint, now, rng);
        explained.pick
    });
    explanation.blocks = hint.blocks.len();
    explanation.shortest_wait = found.shortest_wait();
    explanation.must_wait = round.must_wait(max_wait) || (pick.is_none() && found.full);
    explanation.pick = pick.map(|pick| (round.member(&pick).worker.id, pick.decision));
    if pick.is_none() && !found.full {
        explanation.refusal.get_or_insert(DispatchError::NoneAvailable);
    }
    let chosen_rank = found.members.first().map(|at| served[*at as usize].rank);
    for (nth, (candidate, at)) in found.all().enumerate() {
        let member = &served[at as usize];
        let standing = match chosen_rank {
            _ if nth < found.list.len() => Standing::Candidate,
            Some(Rank { priority, .. }) if member.rank.priority < priority => {
                Standing::LowerPriority
            }
            Some(_) | None => Standing::FartherAway,
        };
        explanation.workers.push(Considered {
            worker: Arc::clone(&member.worker),
            standing,
            candidate: *candidate,
            terms: explained.terms.get(nth).copied(),
        });
    }
    let weights = &entry.weights;
    for (at, standing) in standings {
        let worker = &served[at as usize].worker;
        explanation.workers.push(Considered::left_out(worker, standing, weights, now));
    }
    let is_other = |worker: &&Arc<Worker>| {
        explanation.workers.iter().all(|considered| considered.worker.id != worker.id)
    };
    let others: Vec<_> = snapshot.workers().iter().filter(is_other).cloned().collect();
    for worker in others {
        // A worker whose models are unknown may serve this one.
        let standing = match worker.fitness(now, &fleet.config().breaker) {
            Fitness::Out(outage) => Standing::Out(outage),
            Fitness::Fit | Fitness::PushesBack | Fitness::Full | Fitness::Ejected { .. } => {
                Standing::OtherModel
            }
        };
        explanation.workers.push(Considered::left_out(&worker, standing, weights, now));
    }
    explanation
}
