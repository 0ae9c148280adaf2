//! Smooth weighted round robin.
//!
//! Each worker has a pass: the virtual time of its next turn. The worker with the earliest pass is picked, and its pass
//! increases by a stride of 1 / weight (stride scheduling: C. Waldspurger, W. Weihl, 1995). So the turns of a worker are evenly
//! spread, and with equal weights the workers take turns in a fixed cycle. The first pass of a worker is random within its first
//! stride, so that routers that start together do not pick the same workers in step.
//!
//! The state is a map from worker id to pass, so one policy works for any subset of candidates: after a retry, or for several
//! models. A worker that was not a candidate for a while gets a new pass, so that it does not catch up on the turns it missed.

use std::collections::HashMap;

use parking_lot::Mutex;
use rand::Rng;
use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::{Candidate, Decision, Explained, Hint, Kind, Pick, Policy, choose};

/// The stride of weight 1. A pass of 64 bits lasts for 2^44 turns of such a worker.
const STRIDE: u64 = 1 << 20;
/// Most workers in the map. When it is full all passes are dropped, which makes one round uneven.
const MAX_WORKERS: usize = 1 << 16;

/// The policy `round_robin`.
#[derive(Debug, Default)]
pub(super) struct RoundRobin {
    turns: Mutex<Turns>,
}

#[derive(Debug, Clone, Default)]
struct Turns {
    slots: Vec<Slot>,
    places: HashMap<WorkerId, usize>,
    /// The slot of each candidate of this pick. The field keeps the allocation between picks.
    candidate_slots: Vec<usize>,
}

#[derive(Debug, Clone)]
struct Slot {
    worker: WorkerId,
    pass: u64,
}

/// In [`Turns::candidate_slots`]: the candidate has no slot yet.
const NEW: usize = usize::MAX;

impl Policy for RoundRobin {
    fn name(&self) -> &'static str {
        Kind::RoundRobin.name()
    }

    fn pick(
        &self,
        candidates: &[Candidate],
        _hint: &Hint<'_>,
        _now: Now,
        rng: &mut dyn Rng,
    ) -> Option<Pick> {
        let index = self.turns.lock().next(candidates, rng)?;
        Some(Pick::new(index, Decision::Plain))
    }

    fn explain(
        &self,
        candidates: &[Candidate],
        _hint: &Hint<'_>,
        _now: Now,
        rng: &mut dyn Rng,
    ) -> Explained {
        // Nobody's turn is used up.
        let mut turns = self.turns.lock().clone();
        let pick = turns.next(candidates, rng).map(|index| Pick::new(index, Decision::Plain));
        Explained { pick, terms: Vec::new() }
    }

    fn forget(&self, worker: WorkerId) {
        self.turns.lock().remove(worker);
    }
}

impl Turns {
    fn next(&mut self, candidates: &[Candidate], rng: &mut dyn Rng) -> Option<usize> {
        if self.slots.len() + candidates.len() > MAX_WORKERS {
            self.slots.clear();
            self.places.clear();
        }
        let lightest = candidates.iter().map(choose::weight).min()?;
        let known = self.find(candidates);
        // Only the earliest pass moves, by one stride. So the passes of workers that take part lie within one stride of each
        // other, and a pass further behind is stale.
        let stale = known.latest.saturating_sub(stride(lightest));
        let (pass, index) = match known.earliest {
            Some((pass, index)) if known.all && pass >= stale => (pass, index),
            Some(_) | None => self.renew_stale(candidates, stale, rng)?,
        };
        self.slots[self.candidate_slots[index]].pass =
            pass + stride(choose::weight(&candidates[index]));
        Some(index)
    }

    /// Looks up the slots of the candidates. Candidates mostly come in the same order, so the slot after the last one found is
    /// tried before the map.
    fn find(&mut self, candidates: &[Candidate]) -> Known {
        self.candidate_slots.clear();
        let mut known = Known { all: true, latest: 0, earliest: None };
        let mut guess = 0;
        for (index, candidate) in candidates.iter().enumerate() {
            let guessed = self.slots.get(guess).is_some_and(|slot| slot.worker == candidate.id);
            let at = if guessed {
                guess
            } else {
                self.places.get(&candidate.id).copied().unwrap_or(NEW)
            };
            guess = at.wrapping_add(1);
            self.candidate_slots.push(at);
            match self.slots.get(at) {
                Some(Slot { pass, .. }) => {
                    known.latest = known.latest.max(*pass);
                    if known.earliest.is_none_or(|(first, _)| *pass < first) {
                        known.earliest = Some((*pass, index));
                    }
                }
                None => known.all = false,
            }
        }
        known
    }

    /// Gives each candidate that is new or whose pass is `stale` a random pass within one stride of the earliest other one.
    /// Returns the earliest pass and the index of its candidate.
    fn renew_stale(
        &mut self,
        candidates: &[Candidate],
        stale: u64,
        rng: &mut dyn Rng,
    ) -> Option<(u64, usize)> {
        let passes =
            self.candidate_slots.iter().filter_map(|at| self.slots.get(*at)).map(|slot| slot.pass);
        let base = passes.filter(|pass| *pass >= stale).min().unwrap_or(0);
        let mut earliest: Option<(u64, usize)> = None;
        for (index, candidate) in candidates.iter().enumerate() {
            let begin = base + choose::below(rng, stride(choose::weight(candidate)));
            let at = self.candidate_slots[index];
            let pass = match self.slots.get_mut(at) {
                Some(slot) if slot.pass >= stale => slot.pass,
                Some(slot) => {
                    slot.pass = begin;
                    begin
                }
                None => {
                    self.candidate_slots[index] = self.slots.len();
                    self.places.insert(candidate.id, self.slots.len());
                    self.slots.push(Slot { worker: candidate.id, pass: begin });
                    begin
                }
            };
            if earliest.is_none_or(|(first, _)| pass < first) {
                earliest = Some((pass, index));
            }
        }
        earliest
    }

    fn remove(&mut self, worker: WorkerId) {
        let Some(at) = self.places.remove(&worker) else { return };
        self.slots.swap_remove(at);
        if let Some(moved) = self.slots.get(at) {
            self.places.insert(moved.worker, at);
        }
    }
}

/// The passes of this pick's candidates.
#[derive(Debug)]
struct Known {
    /// Whether all candidates have a slot.
    all: bool,
    /// The latest pass among them.
    latest: u64,
    /// The earliest pass, and the index of its candidate.
    earliest: Option<(u64, usize)>,
}

/// Virtual time between two turns of a worker of weight `weight`.
fn stride(weight: u64) -> u64 {
    (STRIDE / weight).max(1)
}
