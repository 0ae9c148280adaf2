//! Smooth weighted round robin.
//!
//! Each worker has a pass, the virtual time of its next turn; the earliest goes, and its next turn is a stride of
//! 1 / weight later (stride scheduling: C. Waldspurger, W. Weihl, 1995). Turns of one worker so lie evenly spread, and
//! with equal weights it is the plain cycle. A worker begins somewhere within its first stride by chance, so that
//! several routers that start together do not march in step.
//!
//! The state goes by worker id and is told nothing of what a worker is: it holds for any subset of candidates, as after
//! a retry or for several models. A worker that was away and whose pass lies far behind begins anew instead of catching
//! up on all that it missed.

use std::collections::HashMap;

use parking_lot::Mutex;
use rand::Rng;
use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::{Candidate, Decision, Hint, Kind, Pick, Policy, choose};

/// A stride of weight 1. With it a pass lasts for 2^44 turns of one worker.
const STRIDE: u64 = 1 << 20;
/// Workers that are remembered; beyond that all begin anew, which costs the evenness of one round.
const MAX_WORKERS: usize = 1 << 16;

/// Picks by turns.
#[derive(Debug, Default)]
pub(super) struct RoundRobin {
    turns: Mutex<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    slots: Vec<Slot>,
    places: HashMap<WorkerId, usize>,
    /// The slot of each candidate of this pick: kept for its memory.
    line: Vec<usize>,
}

#[derive(Debug)]
struct Slot {
    worker: WorkerId,
    pass: u64,
}

/// In [`Turns::line`]: not known yet.
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
        // Whoever takes part has its pass within one stride of the others, for the picked one was the earliest.
        let stale = known.latest.saturating_sub(stride(lightest));
        let (pass, index) = match known.earliest {
            Some((pass, index)) if known.all && pass >= stale => (pass, index),
            Some(_) | None => self.begin_anew(candidates, stale, rng)?,
        };
        self.slots[self.line[index]].pass = pass + stride(choose::weight(&candidates[index]));
        Some(index)
    }

    /// Fills `line`. Candidates come in much the same order each time, so the slot behind the last one is tried before
    /// the map.
    fn find(&mut self, candidates: &[Candidate]) -> Known {
        self.line.clear();
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
            self.line.push(at);
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

    /// Gives those that are new, or whose pass is `stale`, a place within their stride from the earliest of the others,
    /// and says which candidate is the earliest then.
    fn begin_anew(
        &mut self,
        candidates: &[Candidate],
        stale: u64,
        rng: &mut dyn Rng,
    ) -> Option<(u64, usize)> {
        let passes = self.line.iter().filter_map(|at| self.slots.get(*at)).map(|slot| slot.pass);
        let base = passes.filter(|pass| *pass >= stale).min().unwrap_or(0);
        let mut earliest: Option<(u64, usize)> = None;
        for (index, candidate) in candidates.iter().enumerate() {
            let begin = base + choose::below(rng, stride(choose::weight(candidate)));
            let at = self.line[index];
            let pass = match self.slots.get_mut(at) {
                Some(slot) if slot.pass >= stale => slot.pass,
                Some(slot) => {
                    slot.pass = begin;
                    begin
                }
                None => {
                    self.line[index] = self.slots.len();
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

/// What is known of the candidates of this pick.
#[derive(Debug)]
struct Known {
    /// Whether all have a slot.
    all: bool,
    /// The highest pass.
    latest: u64,
    /// The lowest pass, and the index of its candidate.
    earliest: Option<(u64, usize)>,
}

/// Virtual time between two turns of a worker of this weight.
fn stride(weight: u64) -> u64 {
    (STRIDE / weight).max(1)
}
