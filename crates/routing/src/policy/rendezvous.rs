//! Weighted rendezvous hashing with bounded load: the candidate that owns a key.
//!
//! A hash of the key and a candidate's id gives the candidate a score; the candidate with the highest score owns the key. All
//! routers with the same workers therefore agree without exchanging messages. A new worker takes its share of the keys evenly
//! from all others, and a worker that leaves gives its keys to all others; no other key moves. There is no ring to build or keep
//! (D. Thaler, C. Ravishankar, "Using name-based mappings to increase hit rates", 1998; weights: score = -weight / ln(u),
//! C. Schindelhauer, G. Schomaker, 2005).
//!
//! If one more request would raise the load of the owner above 1.25 times its share of all requests, the key spills to the
//! candidate with the next lower score (V. Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent hashing with bounded loads",
//! 2018). The bound rounds up, so each worker may take at least one request.

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
    let bound = LoadBound::of(candidates);
    let (owner, within) =
        highest_and_highest_fit(candidates, key, |candidate| bound.admits(candidate));
    let owner = owner?;
    // Some candidate is always below 1.25 times the average; the fallback only satisfies the type.
    let index = within.unwrap_or(owner);
    Some(Pick::new(index, if index == owner { Decision::Sticky } else { Decision::Spill }))
}

/// The fit candidate with the highest score for `key`.
pub(super) fn highest(
    candidates: &[Candidate],
    key: u64,
    fit: impl Fn(&Candidate) -> bool,
) -> Option<usize> {
    highest_and_highest_fit(candidates, key, fit).1
}

/// The candidate with the highest score for `key`, and the fit candidate with the highest score.
fn highest_and_highest_fit(
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
            // With equal weights the hash orders the candidates as the logarithm would, and costs less.
            (hash >> 12) as f64
        } else {
            // Adding a half keeps the number above 0 and below 1.
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

/// The bound on the load of a candidate: 1.25 times its share, by weight, of all requests including the one to be placed.
#[derive(Debug)]
struct LoadBound {
    requests: u64,
    weights: u64,
}

impl LoadBound {
    fn of(candidates: &[Candidate]) -> Self {
        let loads: u64 = candidates.iter().map(|candidate| u64::from(candidate.load)).sum();
        Self { requests: loads + 1, weights: choose::total_weight(candidates) }
    }

    /// Whether the candidate may take one more request: load + 1 <= ceil(1.25 * requests * weight / weights).
    fn admits(&self, candidate: &Candidate) -> bool {
        let load = 4 * u128::from(candidate.load) * u128::from(self.weights);
        load < 5 * u128::from(self.requests) * u128::from(choose::weight(candidate))
    }
}

/// Hashes a key and an id, equally on all routers and in all versions: the output function of SplitMix64 (S. Vigna, 2015).
fn mix(key: u64, id: u64) -> u64 {
    let mut mixed = key.wrapping_add(id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
