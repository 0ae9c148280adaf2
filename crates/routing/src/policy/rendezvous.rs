//! Who owns a key: weighted rendezvous hashing with bounded load.
//!
//! Each candidate gets a score from key and id; the highest owns the key. So all routers that see the same workers
//! agree without a word, a new worker takes its share evenly from all others, and one that leaves gives its keys to all
//! others: nothing else moves. No ring has to be built or kept (D. Thaler, C. Ravishankar, "Using name-based mappings
//! to increase hit rates", 1998; weights: score = -weight / ln(u), C. Schindelhauer, G. Schomaker, 2005).
//!
//! An owner whose load would pass 1.25 times its share of all requests spills to the next in the key's order (V.
//! Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent hashing with bounded loads", 2018). The bound rounds up, so that
//! each worker may take one request at least.

use rand::Rng;

use super::{Candidate, Decision, Pick, choose};

/// The owner of `key`, as [`owner`] finds it; without a key the least loaded candidate.
pub(super) fn owner_or_least_loaded(
    candidates: &[Candidate],
    key: Option<u64>,
    rng: &mut dyn Rng,
) -> Option<Pick> {
    match key {
        Some(key) => owner(candidates, key),
        None => choose::least_loaded(candidates.iter().enumerate(), rng)
            .map(|index| Pick::new(index, Decision::NoKey)),
    }
}

/// The owner of `key` if its load is within the bound, else the next in the key's order whose load is.
pub(super) fn owner(candidates: &[Candidate], key: u64) -> Option<Pick> {
    let bound = Bound::of(candidates);
    let (owner, within) = order(candidates, key, |candidate| bound.admits(candidate));
    let owner = owner?;
    // Somebody is always below 1.25 times the average.
    let index = within.unwrap_or(owner);
    Some(Pick::new(index, if index == owner { Decision::Sticky } else { Decision::Spill }))
}

/// The first in the key's order of those that are fit.
pub(super) fn highest(
    candidates: &[Candidate],
    key: u64,
    fit: impl Fn(&Candidate) -> bool,
) -> Option<usize> {
    order(candidates, key, fit).1
}

/// The first in the key's order, and the first of those that are fit.
fn order(
    candidates: &[Candidate],
    key: u64,
    fit: impl Fn(&Candidate) -> bool,
) -> (Option<usize>, Option<usize>) {
    let even = candidates.windows(2).all(|pair| pair[0].weight == pair[1].weight);
    let mut first = Best::default();
    let mut first_fit = Best::default();
    for (index, candidate) in candidates.iter().enumerate() {
        let hash = mix(key, candidate.id.as_u64());
        let score = if even {
            // The same order as with the logarithm, without its price.
            (hash >> 12) as f64
        } else {
            // Half steps keep it clear of 0 and of 1.
            let uniform = ((hash >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
            choose::weight(candidate) as f64 / -uniform.ln()
        };
        first.offer(index, score);
        if first_fit.is_below(score) && fit(candidate) {
            first_fit.offer(index, score);
        }
    }
    (first.index, first_fit.index)
}

/// The candidate with the highest score so far.
#[derive(Debug, Default)]
struct Best {
    index: Option<usize>,
    score: f64,
}

impl Best {
    fn is_below(&self, score: f64) -> bool {
        self.index.is_none() || score > self.score
    }

    fn offer(&mut self, index: usize, score: f64) {
        if self.is_below(score) {
            *self = Self { index: Some(index), score };
        }
    }
}

/// The load that each may have: 1.25 times its share, by weight, of all requests with the one that is being placed.
#[derive(Debug)]
struct Bound {
    requests: u64,
    weights: u64,
}

impl Bound {
    fn of(candidates: &[Candidate]) -> Self {
        let loads: u64 = candidates.iter().map(|candidate| u64::from(candidate.load)).sum();
        Self { requests: loads + 1, weights: choose::total_weight(candidates) }
    }

    /// Whether one more fits: load + 1 <= ceil(1.25 * requests * weight / weights).
    fn admits(&self, candidate: &Candidate) -> bool {
        let load = 4 * u128::from(candidate.load) * u128::from(self.weights);
        load < 5 * u128::from(self.requests) * u128::from(choose::weight(candidate))
    }
}

/// A hash of both, the same on all routers and in all versions: the output function of SplitMix64 (S. Vigna, 2015).
fn mix(key: u64, id: u64) -> u64 {
    let mut mixed = key.wrapping_add(id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
