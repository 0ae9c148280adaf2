//! Choices that several policies use: by load, by weight, at random.
//!
//! Comparisons use integers that can't overflow: a load plus one has at most 33 bits, and a weight at most 32.

use std::cmp::Ordering;
use std::time::Duration;

use rand::Rng;

use super::{Candidate, Config, Pick};
use crate::prefix::Recall;
use crate::speed::Speed;

/// A random number below `n`, uniform to within 2^-64; 0 if `n` is 0.
pub(super) fn below(rng: &mut dyn Rng, n: u64) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(n)) >> 64) as u64
}

/// The weight of a candidate, at least 1.
pub(super) fn weight(candidate: &Candidate) -> u64 {
    u64::from(candidate.weight.max(1))
}

/// Compares two candidates by (load + 1) / weight.
pub(crate) fn compare_load(a: &Candidate, b: &Candidate) -> Ordering {
    // Each product is at most 2^32 * (2^32 - 1).
    let left = (u64::from(a.load) + 1) * weight(b);
    let right = (u64::from(b.load) + 1) * weight(a);
    left.cmp(&right)
}

/// The index of the candidate with the lowest (load + 1) / weight; one of several at random.
pub(super) fn least_loaded<'a>(
    candidates: impl Iterator<Item = (usize, &'a Candidate)> + Clone,
    rng: &mut dyn Rng,
) -> Option<usize> {
    let mut rest = candidates.clone();
    let (mut index, mut least) = rest.next()?;
    let mut equals = 1;
    for (at, candidate) in rest {
        match compare_load(candidate, least) {
            Ordering::Less => (index, least, equals) = (at, candidate, 1),
            Ordering::Equal => equals += 1,
            Ordering::Greater => {}
        }
    }
    if equals == 1 {
        return Some(index);
    }
    let chosen = below(rng, equals) as usize;
    candidates
        .filter(|(_, candidate)| compare_load(candidate, least).is_eq())
        .nth(chosen)
        .map(|(at, _)| at)
}

/// Draws the position of a candidate with a probability in proportion to its weight; `None` if there are no candidates.
pub(super) fn weighted<'a>(
    candidates: impl Iterator<Item = &'a Candidate> + Clone,
    rng: &mut dyn Rng,
) -> Option<usize> {
    let mut candidates = candidates;
    let mut drawn = below(rng, candidates.clone().map(weight).sum());
    candidates.position(|candidate| {
        let share = weight(candidate);
        let is_drawn = drawn < share;
        drawn = drawn.saturating_sub(share);
        is_drawn
    })
}

/// The sum of the weights of all candidates.
pub(super) fn total_weight(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(weight).sum()
}

/// The mean speed of the candidates that have shown theirs, for the others.
pub(super) fn mean_speed<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> Speed {
    let mut sum = Speed { overhead: 0.0, per_token: 0.0, per_request: 0.0 };
    let mut count = 0.0;
    for speed in candidates.filter_map(|candidate| candidate.speed) {
        sum.overhead += speed.overhead;
        sum.per_token += speed.per_token;
        sum.per_request += speed.per_request;
        count += 1.0;
    }
    if count == 0.0 {
        return Speed::ASSUMED;
    }
    Speed {
        overhead: sum.overhead / count,
        per_token: sum.per_token / count,
        per_request: sum.per_request / count,
    }
}

/// The shortest time that a request would wait for the prompts before it at one of the candidates; `None`: there are none.
pub fn shortest_wait<'a>(
    candidates: impl Iterator<Item = &'a Candidate> + Clone,
) -> Option<Duration> {
    let assumed = mean_speed(candidates.clone());
    let waits = candidates.map(|candidate| expected_wait(candidate, assumed));
    waits
        .min_by(f32::total_cmp)
        .map(|wait| Duration::try_from_secs_f32(wait).unwrap_or(Duration::MAX))
}

/// The seconds that a request would wait for the prompts before it. `assumed`: the speed of a candidate that has shown none.
fn expected_wait(candidate: &Candidate, assumed: Speed) -> f32 {
    candidate.waiting as f32 * candidate.speed.unwrap_or(assumed).per_token
}

/// Whether the load of `candidate` is low enough to prefer it to the `least` loaded one. It is not if it exceeds the load of
/// `least` by more than `balance_abs_threshold` and by more than `balance_rel_threshold` times. The load of `least` is scaled to
/// the weight of `candidate` first.
pub(crate) fn within_balance(candidate: &Candidate, least: &Candidate, config: &Config) -> bool {
    let load = f64::from(candidate.load) + 1.0;
    let scale = weight(candidate) as f64 / weight(least) as f64;
    let fair = (f64::from(least.load) + 1.0) * scale;
    // With a ratio below 1, or NaN, equal loads would count as exceeded.
    let ratio = f64::from(config.balance_rel_threshold).max(1.0);
    load - fair <= f64::from(config.balance_abs_threshold) || load <= fair * ratio
}

/// Whether the load of `candidate` exceeds that of the `least` loaded one by at most a quarter plus `more` requests. Within this
/// bound a choice by key spreads a burst about as evenly as a choice by load.
pub(super) fn is_near(candidate: &Candidate, least: &Candidate, more: u32) -> bool {
    let fair = (u64::from(least.load) + 1) * weight(candidate);
    let most = fair + fair / 4 + u64::from(more) * weight(candidate);
    (u64::from(candidate.load) + 1) * weight(least) <= most
}

impl Pick {
    /// The candidate at `index`, for the reason `decision`.
    pub(super) const fn new(index: usize, decision: super::Decision) -> Self {
        Self { index, decision, recall: Recall { sent: 0, held: 0, age: 0 } }
    }
}
