//! Tests of the policies on candidates that are written as literals.
//!
//! All random numbers come from fixed seeds, and a failure prints its seed; proptest prints its own.

mod all;
mod by_hash;
mod by_length;
mod by_load;
mod by_prefix;
mod by_session;
mod by_time;
mod by_weight;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;

use super::{Candidate, Config, Decision, Hint, Kind, Memory, Pick, Policy, build};
use crate::prefix;

const SEED: u64 = 7;

fn policy_with(kind: Kind, config: &Config) -> Arc<dyn Policy> {
    let index = Arc::new(prefix::Index::new(&prefix::Config { max_entries: 1 << 16 }));
    build(kind, config, Arc::new(Memory::new(config, index)))
}

fn policy(kind: Kind) -> Arc<dyn Policy> {
    policy_with(kind, &Config::default())
}

fn least_load() -> Arc<dyn Policy> {
    policy(Kind::LeastLoad)
}

fn id(name: &str) -> WorkerId {
    WorkerId::of_url(name)
}

/// Candidates of weight 1 with these names and loads.
fn loads(named: &[(&str, u32)]) -> Vec<Candidate> {
    named.iter().map(|(name, load)| Candidate::new(id(name), *load, 1)).collect()
}

/// Idle candidates `w0`, `w1`, … with these weights.
fn weights(weights: &[u32]) -> Vec<Candidate> {
    let numbered = weights.iter().enumerate();
    numbered.map(|(n, weight)| Candidate::new(id(&format!("w{n}")), 0, *weight)).collect()
}

fn idle(count: usize) -> Vec<Candidate> {
    weights(&vec![1; count])
}

fn picks(name: &str) -> impl Fn(&[Candidate], Option<Pick>) -> bool {
    let expected = id(name);
    move |candidates, pick| pick.is_some_and(|pick| candidates[pick.index].id == expected)
}

fn decides(name: &str, decision: Decision) -> impl Fn(&[Candidate], Option<Pick>) -> bool {
    let chosen = picks(name);
    move |candidates, pick| chosen(candidates, pick) && pick.map(|p| p.decision) == Some(decision)
}

/// Checks thirty picks with different seeds, because a tie that is broken at random may be right once by accident.
fn check(
    policy: &Arc<dyn Policy>,
    named: &[(&str, u32)],
    hint: &Hint<'_>,
    expected: impl Fn(&[Candidate], Option<Pick>) -> bool,
) {
    check_at(policy, &loads(named), hint, Now::default(), expected);
}

fn check_at(
    policy: &Arc<dyn Policy>,
    candidates: &[Candidate],
    hint: &Hint<'_>,
    now: Now,
    expected: impl Fn(&[Candidate], Option<Pick>) -> bool,
) {
    for seed in 0..30 {
        let pick = policy.pick(candidates, hint, now, &mut StdRng::seed_from_u64(seed));
        let name = pick.map(|pick| candidates[pick.index].id);
        assert!(
            expected(candidates, pick),
            "{} picked {pick:?} = {name:?}, seed {seed}",
            policy.name()
        );
    }
}

fn session(key: &str) -> Hint<'_> {
    Hint { session: Some(key.as_bytes()), ..Hint::default() }
}

fn prompt(blocks: &[u64]) -> Hint<'_> {
    Hint { blocks, prompt_bytes: blocks.len() * prefix::BLOCK_BYTES, ..Hint::default() }
}

/// Number of times that each candidate is picked in `count` picks, without loads changing.
fn shares(policy: &Arc<dyn Policy>, candidates: &[Candidate], count: usize) -> Vec<usize> {
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut shares = vec![0; candidates.len()];
    for _ in 0..count {
        let pick = policy.pick(candidates, &Hint::default(), Now::default(), &mut rng).unwrap();
        shares[pick.index] += 1;
    }
    shares
}

/// Chi-square of `observed` against an even distribution: the sum of (observed - expected)^2 / expected.
fn chi_square(observed: &[usize]) -> f64 {
    let expected = observed.iter().sum::<usize>() as f64 / observed.len() as f64;
    observed.iter().map(|n| (*n as f64 - expected).powi(2) / expected).sum()
}

#[track_caller]
fn assert_even(observed: &[usize]) {
    assert_eq!(observed.len(), 8);
    // With seven degrees of freedom an even distribution exceeds this for one seed in a thousand.
    assert!(chi_square(observed) < 24.3, "{observed:?} is not even, seed {SEED}");
}

#[track_caller]
fn assert_proportional(observed: &[usize], weights: &[u32], tolerance: f64) {
    let (sum, total) = (observed.iter().sum::<usize>() as f64, weights.iter().sum::<u32>());
    for (at, weight) in weights.iter().enumerate() {
        let expected = sum * f64::from(*weight) / f64::from(total);
        let off = (observed[at] as f64 - expected).abs() / expected;
        assert!(off <= tolerance, "{observed:?} for weights {weights:?}, seed {SEED}");
    }
}
