//! What each policy promises, on candidates that are three literals.
//!
//! All chance comes from a fixed seed that the failure names; proptest prints its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::{Candidate, Config, Decision, Hint, Kind, Pick, Policy, build};
use crate::ids::{ModelId, WorkerId};
use crate::now::Now;
use crate::prefix;

const SEED: u64 = 7;

fn policy_with(kind: Kind, config: &Config) -> Arc<dyn Policy> {
    build(kind, config, Arc::new(prefix::Index::new(&prefix::Config { max_entries: 1 << 16 })))
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

/// Candidates of weight 1, by name and load.
fn loads(named: &[(&str, u32)]) -> Vec<Candidate> {
    named.iter().map(|(name, load)| Candidate { id: id(name), load: *load, weight: 1 }).collect()
}

/// Idle candidates, numbered, by weight.
fn weights(weights: &[u32]) -> Vec<Candidate> {
    let numbered = weights.iter().enumerate();
    numbered
        .map(|(n, weight)| Candidate { id: id(&format!("w{n}")), load: 0, weight: *weight })
        .collect()
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

/// Thirty picks, since a tie that is broken by chance might be right once.
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
            "{} said {pick:?} = {name:?}, seed {seed}",
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

/// How often each candidate is picked in `count` picks that change nothing.
fn shares(policy: &Arc<dyn Policy>, candidates: &[Candidate], count: usize) -> Vec<usize> {
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut shares = vec![0; candidates.len()];
    for _ in 0..count {
        let pick = policy.pick(candidates, &Hint::default(), Now::default(), &mut rng).unwrap();
        shares[pick.index] += 1;
    }
    shares
}

/// Sum of (observed - expected)^2 / expected over an even expectation.
fn chi_square(observed: &[usize]) -> f64 {
    let expected = observed.iter().sum::<usize>() as f64 / observed.len() as f64;
    observed.iter().map(|n| (*n as f64 - expected).powi(2) / expected).sum()
}

#[track_caller]
fn assert_even(observed: &[usize]) {
    assert_eq!(observed.len(), 8);
    // Seven degrees of freedom: chance exceeds this once in a thousand seeds.
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

mod all {
    use super::*;

    #[test]
    fn a_kind_prints_and_parses() {
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
            assert_eq!(policy(kind).name(), kind.name());
        }
        assert_eq!(
            "robin".parse::<Kind>().unwrap_err().to_string(),
            "policy \"robin\" is not one of cache_aware, round_robin, random, power_of_two, \
             least_load, consistent_hashing, prefix_hash, manual, bucket, passthrough"
        );
    }

    #[test]
    fn no_candidates_no_pick() {
        for kind in Kind::ALL {
            check(&policy(kind), &[], &session("s"), |_, pick| pick.is_none());
            check(&policy(kind), &[], &prompt(&[1]), |_, pick| pick.is_none());
        }
    }

    #[test]
    fn blocks_are_computed_where_they_are_read() {
        let wanting: Vec<&str> =
            Kind::ALL.into_iter().filter(|k| policy(*k).wants_blocks()).map(Kind::name).collect();
        assert_eq!(wanting, ["cache_aware", "prefix_hash"]);
    }

    #[test]
    fn nobody_is_favoured_at_idle() {
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Passthrough) {
            let policy = policy(kind);
            let fleet = idle(8);
            let mut rng = StdRng::seed_from_u64(SEED);
            let mut shares = vec![0; 8];
            for n in 0..8000_u64 {
                // A request of its own each time: another session, another prompt.
                let (key, blocks) = (n.to_le_bytes(), [rng.random(), rng.random()]);
                let hint = Hint { session: Some(&key), blocks: &blocks, prompt_bytes: 600 };
                let pick = policy.pick(&fleet, &hint, Now::default(), &mut rng).unwrap();
                policy.sent(fleet[pick.index].id, &hint, Now::default());
                shares[pick.index] += 1;
            }
            assert_even(&shares);
        }
    }

    #[test]
    fn a_burst_spreads() {
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Passthrough) {
            let policy = policy(kind);
            let mut fleet = idle(8);
            let mut rng = StdRng::seed_from_u64(SEED);
            for n in 0..800_u64 {
                let (key, blocks) = (n.to_le_bytes(), [rng.random(), rng.random()]);
                let hint = Hint { session: Some(&key), blocks: &blocks, prompt_bytes: 600 };
                let pick = policy.pick(&fleet, &hint, Now::default(), &mut rng).unwrap();
                policy.sent(fleet[pick.index].id, &hint, Now::default());
                fleet[pick.index].load += 1;
            }
            let most = fleet.iter().map(|candidate| candidate.load).max().unwrap();
            let most_allowed = match kind {
                // Chance alone.
                Kind::Random => 130,
                // Up to 64 above the least loaded.
                Kind::Bucket => 150,
                Kind::ConsistentHashing | Kind::PrefixHash => 125,
                Kind::PowerOfTwo => 104,
                Kind::CacheAware
                | Kind::RoundRobin
                | Kind::LeastLoad
                | Kind::Manual
                | Kind::Passthrough => 101,
            };
            assert!(most <= most_allowed, "{kind}: {most} of 800 on one of 8, seed {SEED}");
        }
    }

    proptest! {
        #[test]
        fn any_numbers_will_do(
            kind in prop::sample::select(Kind::ALL.to_vec()),
            numbers in prop::collection::vec(
                (any::<u64>(), prop_oneof![0..9u32, any::<u32>()], prop_oneof![0..9u32, any::<u32>()]),
                1..12,
            ),
            thresholds in (any::<f32>(), any::<u32>(), any::<f32>()),
            requests in prop::collection::vec(
                (prop::option::of(any::<u8>()), prop::collection::vec(1..4u64, 0..5), any::<usize>()),
                1..8,
            ),
        ) {
            let config = Config {
                cache_threshold: thresholds.0,
                balance_abs_threshold: thresholds.1,
                balance_rel_threshold: thresholds.2,
                ..Config::default()
            };
            let policy = policy_with(kind, &config);
            let candidates: Vec<_> = numbers
                .into_iter()
                .map(|(id, load, weight)| Candidate { id: WorkerId::from_u64(id), load, weight })
                .collect();
            let mut rng = StdRng::seed_from_u64(SEED);
            for (key, blocks, prompt_bytes) in requests {
                let key = key.map(|key| [key]);
                let session = key.as_ref().map(<[u8; 1]>::as_slice);
                let hint = Hint { session, blocks: &blocks, prompt_bytes };
                let pick = policy.pick(&candidates, &hint, Now::default(), &mut rng);
                let index = pick.map(|pick| pick.index);
                prop_assert!(index.is_some_and(|index| index < candidates.len()));
                policy.sent(candidates[index.unwrap()].id, &hint, Now::default());
            }
        }
    }
}

mod by_load {
    use super::*;

    #[test]
    fn the_least_loaded_is_picked() {
        let any = Hint::default();
        check(&least_load(), &[("a", 3), ("b", 1)], &any, picks("b"));
        check(&least_load(), &[("a", 0), ("b", 1)], &any, picks("a"));
        check(&least_load(), &[("a", u32::MAX), ("b", u32::MAX - 1)], &any, picks("b"));
    }

    #[test]
    fn weight_makes_load_lighter() {
        let heavy = Candidate { id: id("heavy"), load: 7, weight: 4 };
        let light = Candidate { id: id("light"), load: 2, weight: 1 };
        for kind in [Kind::LeastLoad, Kind::PowerOfTwo] {
            let policy = policy(kind);
            check_at(&policy, &[light, heavy], &Hint::default(), Now::default(), picks("heavy"));
        }
    }

    #[test]
    fn two_of_two_is_the_less_loaded() {
        let any = Hint::default();
        check(&policy(Kind::PowerOfTwo), &[("a", 3), ("b", 1)], &any, picks("b"));
        check(&policy(Kind::PowerOfTwo), &[("a", 3)], &any, picks("a"));
    }

    #[test]
    fn two_choices_never_take_the_most_loaded_of_many() {
        let mut fleet = idle(8);
        fleet[5].load = 9;
        assert_eq!(shares(&policy(Kind::PowerOfTwo), &fleet, 2000)[5], 0);
    }

    #[test]
    fn loads_grow_in_proportion_to_weights() {
        for (kind, tolerance) in [(Kind::LeastLoad, 0.02), (Kind::PowerOfTwo, 0.1)] {
            let policy = policy(kind);
            let given = [1, 1, 2, 4, 8];
            let mut fleet = weights(&given);
            let mut rng = StdRng::seed_from_u64(SEED);
            for _ in 0..8000 {
                let pick = policy.pick(&fleet, &Hint::default(), Now::default(), &mut rng);
                fleet[pick.unwrap().index].load += 1;
            }
            let loads: Vec<usize> = fleet.iter().map(|c| c.load as usize).collect();
            assert_proportional(&loads, &given, tolerance);
        }
    }

    #[test]
    fn the_first_is_passed_through_to() {
        check(&policy(Kind::Passthrough), &[("a", 9), ("b", 0)], &Hint::default(), picks("a"));
    }
}

mod by_weight {
    use super::*;

    #[test]
    fn chance_follows_weights() {
        let given = [1, 2, 3, 10];
        let shares = shares(&policy(Kind::Random), &weights(&given), 32_000);
        assert_proportional(&shares, &given, 0.1);
    }

    #[test]
    fn equal_weights_take_turns() {
        let policy = policy(Kind::RoundRobin);
        let fleet = idle(5);
        let mut rng = StdRng::seed_from_u64(SEED);
        let turns: Vec<usize> = (0..50)
            .map(|_| policy.pick(&fleet, &Hint::default(), Now::default(), &mut rng).unwrap().index)
            .collect();
        for round in turns.chunks(5) {
            assert_eq!(round, &turns[..5], "{turns:?}");
        }
        let mut once = turns[..5].to_vec();
        once.sort_unstable();
        assert_eq!(once, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn turns_of_a_heavy_worker_are_spread() {
        let policy = policy(Kind::RoundRobin);
        let fleet = weights(&[5, 1, 1]);
        let mut rng = StdRng::seed_from_u64(SEED);
        let turns: Vec<usize> = (0..700)
            .map(|_| policy.pick(&fleet, &Hint::default(), Now::default(), &mut rng).unwrap().index)
            .collect();
        // Five in seven: the light ones may come in a row, so at most two in four turns are not the heavy one's.
        for window in turns.windows(7) {
            let heavy = window.iter().filter(|index| **index == 0).count();
            assert!((4..=6).contains(&heavy), "{window:?}");
        }
    }

    #[test]
    fn several_routers_do_not_begin_with_the_same_worker() {
        let fleet = idle(8);
        let mut firsts = vec![0; 8];
        for seed in 0..8000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let fresh = super::super::round_robin::RoundRobin::default();
            let pick = fresh.pick(&fleet, &Hint::default(), Now::default(), &mut rng);
            firsts[pick.unwrap().index] += 1;
        }
        assert_even(&firsts);
    }

    #[test]
    fn threads_share_the_turns() {
        let policy = policy(Kind::RoundRobin);
        let fleet = idle(8);
        let counts: Vec<Vec<usize>> = std::thread::scope(|scope| {
            let (policy, fleet) = (&policy, &fleet);
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(move || shares(policy, fleet, 1000))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for worker in 0..8 {
            assert_eq!(counts.iter().map(|shares| shares[worker]).sum::<usize>(), 500);
        }
    }

    #[test]
    fn who_was_away_does_not_catch_up() {
        let policy = policy(Kind::RoundRobin);
        let fleet = idle(4);
        shares(&policy, &fleet, 40);
        shares(&policy, &fleet[..3], 3000);
        let back = shares(&policy, &fleet, 40);
        assert!(back.iter().all(|n| (9..=11).contains(n)), "{back:?}");
        let grown = shares(&policy, &idle(5), 50);
        assert!(grown.iter().all(|n| (9..=11).contains(n)), "{grown:?}");
        policy.forget(fleet[1].id);
        let renewed = shares(&policy, &fleet, 40);
        assert!(renewed.iter().all(|n| (9..=11).contains(n)), "{renewed:?}");
    }

    #[test]
    fn models_that_share_the_policy_do_not_disturb_each_other() {
        let policy = policy(Kind::RoundRobin);
        let fleet = idle(6);
        let mut counts = vec![0; 6];
        for _ in 0..300 {
            for (model, workers) in [(0, &fleet[..3]), (3, &fleet[3..])] {
                let mut rng = StdRng::seed_from_u64(SEED);
                let pick = policy.pick(workers, &Hint::default(), Now::default(), &mut rng);
                counts[model + pick.unwrap().index] += 1;
            }
        }
        assert_eq!(counts, [100; 6]);
    }

    proptest! {
        #[test]
        fn turns_follow_weights(given in prop::collection::vec(1..12u32, 1..9)) {
            let rounds = 20;
            let total: u32 = given.iter().sum();
            let counts =
                shares(&policy(Kind::RoundRobin), &weights(&given), (rounds * total) as usize);
            for (count, weight) in counts.iter().zip(&given) {
                let due = (rounds * weight) as usize;
                prop_assert!(count.abs_diff(due) <= 1, "{:?} for {:?}", counts, given);
            }
        }
    }
}

mod by_hash {
    use super::*;

    fn owner(fleet: &[Candidate], key: &str) -> WorkerId {
        static POLICY: LazyLock<Arc<dyn Policy>> =
            LazyLock::new(|| policy(Kind::ConsistentHashing));
        let mut rng = StdRng::seed_from_u64(SEED);
        fleet[POLICY.pick(fleet, &session(key), Now::default(), &mut rng).unwrap().index].id
    }

    #[test]
    fn a_key_stays_and_a_request_without_one_goes_to_the_least_loaded() {
        let policy = policy(Kind::ConsistentHashing);
        let home = owner(&idle(9), "alice");
        check_at(&policy, &idle(9), &session("alice"), Now::default(), |fleet, pick| {
            let pick = pick.unwrap();
            fleet[pick.index].id == home && pick.decision == Decision::Sticky
        });
        check(&policy, &[("a", 1), ("b", 0)], &Hint::default(), decides("b", Decision::NoKey));
    }

    #[test]
    fn keys_spread_by_weight() {
        for given in [vec![1, 1, 1, 1, 1], vec![1, 2, 4, 8]] {
            let fleet = weights(&given);
            let mut counts = HashMap::<WorkerId, usize>::new();
            for n in 0..40_000 {
                *counts.entry(owner(&fleet, &format!("key-{n}"))).or_default() += 1;
            }
            let counts: Vec<usize> = fleet.iter().map(|candidate| counts[&candidate.id]).collect();
            assert_proportional(&counts, &given, 0.05);
        }
    }

    #[test]
    fn an_overloaded_owner_spills_to_whoever_owns_without_it() {
        let mut fleet = idle(8);
        for n in 0..200 {
            let key = format!("key-{n}");
            let home = owner(&fleet, &key);
            let without: Vec<_> = fleet.iter().copied().filter(|c| c.id != home).collect();
            let next = owner(&without, &key);
            let at = fleet.iter().position(|c| c.id == home).unwrap();
            fleet[at].load = 10;
            let policy = policy(Kind::ConsistentHashing);
            check_at(&policy, &fleet, &session(&key), Now::default(), |fleet, pick| {
                let pick = pick.unwrap();
                fleet[pick.index].id == next && pick.decision == Decision::Spill
            });
            fleet[at].load = 0;
        }
    }

    #[test]
    fn a_growing_conversation_keeps_its_head() {
        let policy = policy(Kind::PrefixHash);
        let fleet = idle(8);
        let mut rng = StdRng::seed_from_u64(SEED);
        let blocks: Vec<u64> = (0..40).map(|_| rng.random()).collect();
        let mut at = |turn: &[u64]| {
            policy.pick(&fleet, &prompt(turn), Now::default(), &mut rng).unwrap().index
        };
        let home = at(&blocks[..4]);
        assert!((4..40).all(|len| at(&blocks[..len]) == home));
        assert_eq!(at(&blocks[..2]), at(&blocks[..3]));
        check(&policy, &[("a", 1), ("b", 0)], &prompt(&[]), decides("b", Decision::NoKey));
    }

    proptest! {
        #[test]
        fn a_new_worker_takes_its_share_and_nothing_else_moves(
            mut given in prop::collection::vec(1..6u32, 1..30),
            added in 1..6u32,
        ) {
            let before = weights(&given);
            given.push(added);
            let after = weights(&given);
            let newcomer = after[after.len() - 1].id;
            let mut moved = 0;
            for n in 0..1000 {
                let key = format!("key-{n}");
                let (old, new) = (owner(&before, &key), owner(&after, &key));
                prop_assert!(new == old || new == newcomer, "{} moved between old workers", key);
                moved += u32::from(new != old);
            }
            // Removing it is the same read backwards.
            let share = f64::from(added) / f64::from(given.iter().sum::<u32>());
            prop_assert!(f64::from(moved) <= 1000.0 * share + 70.0, "{} of 1000 moved", moved);
        }

        #[test]
        fn all_routers_agree_in_whatever_order_they_see_the_workers(
            given in prop::collection::vec((1..4u32, 0..5u32), 1..20),
            seed in any::<u64>(),
        ) {
            let mut fleet = weights(&given.iter().map(|(weight, _)| *weight).collect::<Vec<_>>());
            for (candidate, (_, load)) in fleet.iter_mut().zip(&given) {
                candidate.load = *load;
            }
            let mut shuffled = fleet.clone();
            shuffled.shuffle(&mut StdRng::seed_from_u64(seed));
            for n in 0..50 {
                let key = format!("key-{n}");
                prop_assert_eq!(owner(&fleet, &key), owner(&shuffled, &key));
            }
        }

        #[test]
        fn nobody_takes_more_than_a_quarter_above_its_share(
            given in prop::collection::vec(1..6u32, 1..12),
            steps in prop::collection::vec((0..6u8, any::<prop::sample::Index>()), 1..300),
        ) {
            let policy = policy(Kind::ConsistentHashing);
            let total: u32 = given.iter().sum();
            let mut fleet = weights(&given);
            let mut rng = StdRng::seed_from_u64(SEED);
            let mut running = Vec::new();
            for (key, end) in steps {
                // Few keys, so that some workers would be far too busy; every third request ends one.
                if key < 2 && !running.is_empty() {
                    let at: usize = running.swap_remove(end.index(running.len()));
                    fleet[at].load -= 1;
                }
                let key = [key];
                let hint = Hint { session: Some(&key), ..Hint::default() };
                let at = policy.pick(&fleet, &hint, Now::default(), &mut rng).unwrap().index;
                fleet[at].load += 1;
                running.push(at);
                let share =
                    f64::from(fleet[at].weight) * running.len() as f64 / f64::from(total);
                prop_assert!(f64::from(fleet[at].load) <= (1.25 * share).ceil());
            }
        }
    }
}

mod by_session {
    use super::*;

    fn second(n: u64) -> Now {
        Now::at(Duration::from_secs(n))
    }

    #[test]
    fn a_session_stays_where_it_was_sent() {
        let policy = policy(Kind::Manual);
        let alice = session("alice");
        check(&policy, &[("a", 1), ("b", 0)], &alice, decides("b", Decision::Miss));
        // Picked was b; a retry went to a.
        policy.sent(id("a"), &alice, Now::default());
        check(&policy, &[("a", 90), ("b", 0)], &alice, decides("a", Decision::Sticky));
        check(&policy, &[("a", 1), ("b", 0)], &session("bob"), decides("b", Decision::Miss));
        check(&policy, &[("a", 1), ("b", 0)], &Hint::default(), decides("b", Decision::NoKey));
    }

    #[test]
    fn a_session_whose_worker_is_out_moves_for_good() {
        let policy = policy(Kind::Manual);
        let alice = session("alice");
        policy.sent(id("a"), &alice, Now::default());
        check(&policy, &[("b", 5), ("c", 2)], &alice, decides("c", Decision::Spill));
        policy.sent(id("c"), &alice, Now::default());
        check(&policy, &[("a", 0), ("b", 0), ("c", 2)], &alice, decides("c", Decision::Sticky));
    }

    #[test]
    fn a_session_ends_with_its_time_to_live_or_its_worker() {
        let config = Config { session_ttl: Duration::from_secs(60), ..Config::default() };
        let policy = policy_with(Kind::Manual, &config);
        let alice = session("alice");
        let fleet = loads(&[("a", 3), ("b", 0)]);
        policy.sent(id("a"), &alice, second(0));
        check_at(&policy, &fleet, &alice, second(60), decides("a", Decision::Sticky));
        check_at(&policy, &fleet, &alice, second(61), decides("b", Decision::Miss));
        policy.sent(id("a"), &alice, second(61));
        check_at(&policy, &fleet, &alice, second(100), decides("a", Decision::Sticky));
        policy.forget(id("a"));
        check_at(&policy, &fleet, &alice, second(100), decides("b", Decision::Miss));
    }
}

mod by_length {
    use super::*;

    fn length(prompt_bytes: usize) -> Hint<'static> {
        Hint { prompt_bytes, ..Hint::default() }
    }

    /// Bytes that each of `fleet` gets of prompts whose lengths `draw` makes, after the boundaries have settled.
    fn bytes_of(fleet: &[Candidate], draw: impl Fn(&mut StdRng) -> usize) -> Vec<usize> {
        let policy = policy(Kind::Bucket);
        let mut rng = StdRng::seed_from_u64(SEED);
        let mut bytes = vec![0; fleet.len()];
        for n in 0..20_000 {
            let len = draw(&mut rng);
            let pick = policy.pick(fleet, &length(len), Now::default(), &mut rng).unwrap();
            policy.sent(fleet[pick.index].id, &length(len), Now::default());
            if n >= 4000 {
                bytes[pick.index] += len;
            }
        }
        bytes
    }

    #[test]
    fn workers_get_bytes_by_weight_whatever_the_lengths() {
        let given = [1, 2, 3];
        let fleet = weights(&given);
        assert_proportional(&bytes_of(&fleet, |_| 1000), &given, 0.05);
        assert_proportional(&bytes_of(&fleet, |rng| rng.random_range(1..60_000)), &given, 0.1);
        let two_sizes = |rng: &mut StdRng| if rng.random_ratio(1, 50) { 50_000 } else { 500 };
        assert_proportional(&bytes_of(&fleet, two_sizes), &given, 0.15);
    }

    #[test]
    fn long_prompts_do_not_meet_short_ones() {
        let policy = policy(Kind::Bucket);
        let fleet = idle(4);
        let mut rng = StdRng::seed_from_u64(SEED);
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for n in 0..20_000 {
            let len = 100 << rng.random_range(0..10);
            let pick = policy.pick(&fleet, &length(len), Now::default(), &mut rng).unwrap();
            policy.sent(fleet[pick.index].id, &length(len), Now::default());
            if n >= 4000 {
                by_length.entry(len).or_insert_with(|| vec![0; 4])[pick.index] += 1;
            }
        }
        let workers =
            |len| by_length[&len].iter().enumerate().filter(|(_, n)| **n > 0).map(|w| w.0);
        // Half of all bytes are in the longest prompts: they fill two workers, the short ones are all on another.
        assert_eq!(workers(100).count(), 1, "{by_length:?}");
        assert!(workers(51_200).count() <= 3, "{by_length:?}");
        assert!(
            workers(51_200).all(|long| workers(100).all(|short| short != long)),
            "{by_length:?}"
        );
    }

    #[test]
    fn a_busy_worker_gives_its_range_up() {
        let policy = policy(Kind::Bucket);
        for _ in 0..100 {
            policy.sent(id("a"), &length(1000), Now::default());
        }
        let busy = [("a", 200), ("b", 0), ("c", 200)];
        check(&policy, &busy, &length(1000), picks("b"));
    }
}

mod by_prefix {
    use super::*;

    /// A policy that has sent prompts of these blocks to these workers.
    fn served(prompts: &[(&str, &[u64])]) -> Arc<dyn Policy> {
        let policy = policy(Kind::CacheAware);
        for (worker, blocks) in prompts {
            policy.sent(id(worker), &prompt(blocks), Now::default());
        }
        policy
    }

    #[test]
    fn a_prompt_goes_where_most_of_it_was_served() {
        let policy = served(&[("a", &[1, 2, 3, 4]), ("b", &[1, 2]), ("c", &[9])]);
        let fleet = [("a", 5), ("b", 0), ("c", 0)];
        check(&policy, &fleet, &prompt(&[1, 2, 3, 4, 5]), decides("a", Decision::Hit(0.8)));
        check(&policy, &fleet, &prompt(&[9, 10]), decides("c", Decision::Hit(0.5)));
    }

    #[test]
    fn of_those_that_match_longest_the_least_loaded_is_taken() {
        let policy = served(&[("a", &[1, 2]), ("b", &[1, 2]), ("c", &[1])]);
        let fleet = [("a", 5), ("b", 3), ("c", 0)];
        check(&policy, &fleet, &prompt(&[1, 2]), decides("b", Decision::Hit(1.0)));
    }

    #[test]
    fn too_short_a_match_is_none() {
        let policy = served(&[("a", &[1, 2, 3])]);
        let fleet = [("a", 5), ("b", 0)];
        check(&policy, &fleet, &prompt(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), picks("a"));
        check(
            &policy,
            &fleet,
            &prompt(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
            decides("b", Decision::Miss),
        );
        check(&policy, &fleet, &prompt(&[]), decides("b", Decision::NoKey));
    }

    #[test]
    fn affinity_ends_where_both_bounds_are_passed() {
        let policy = served(&[("a", &[1])]);
        let hit = || decides("a", Decision::Hit(1.0));
        let balance = || decides("b", Decision::Balance);
        check(&policy, &[("a", 64), ("b", 0)], &prompt(&[1]), hit());
        check(&policy, &[("a", 65), ("b", 0)], &prompt(&[1]), balance());
        // More than 64 above, but not 1.5 times as much.
        check(&policy, &[("a", 284), ("b", 189)], &prompt(&[1]), hit());
        check(&policy, &[("a", 285), ("b", 189)], &prompt(&[1]), balance());
    }

    #[test]
    fn a_shorter_match_inside_the_bound_comes_before_giving_up() {
        let policy = served(&[("a", &[1, 2, 3, 4]), ("b", &[1, 2]), ("c", &[1])]);
        let asked = prompt(&[1, 2, 3, 4]);
        check(
            &policy,
            &[("a", 70), ("b", 9), ("c", 3), ("d", 0)],
            &asked,
            decides("b", Decision::Hit(0.5)),
        );
        // One block of four is not enough to follow.
        check(
            &policy,
            &[("a", 70), ("b", 70), ("c", 3), ("d", 0)],
            &asked,
            decides("d", Decision::Balance),
        );
        check(&policy, &[("a", 70), ("c", 3), ("d", 0)], &asked, decides("d", Decision::Balance));
    }

    #[test]
    fn a_heavier_worker_may_have_more() {
        let policy = served(&[("a", &[1])]);
        let fleet = |load| {
            [
                Candidate { id: id("a"), load, weight: 10 },
                Candidate { id: id("b"), load: 9, weight: 1 },
            ]
        };
        // Ten requests on b are as much as a hundred on a.
        let at = |load, expected: &dyn Fn(&[Candidate], Option<Pick>) -> bool| {
            check_at(&policy, &fleet(load), &prompt(&[1]), Now::default(), expected);
        };
        at(150, &decides("a", Decision::Hit(1.0)));
        at(163, &decides("a", Decision::Hit(1.0)));
        at(164, &decides("b", Decision::Balance));
    }

    #[test]
    fn it_learns_where_the_request_went_and_forgets_with_the_worker() {
        let policy = policy(Kind::CacheAware);
        let fleet = [("a", 0), ("b", 9)];
        check(&policy, &fleet, &prompt(&[1, 2]), decides("a", Decision::Miss));
        check(&policy, &fleet, &prompt(&[1, 2]), decides("a", Decision::Miss));
        policy.sent(id("b"), &prompt(&[1, 2]), Now::default());
        check(&policy, &fleet, &prompt(&[1, 2]), decides("b", Decision::Hit(1.0)));
        // Tried already, or out: others that know the prompt come next, here nobody.
        check(&policy, &[("a", 0)], &prompt(&[1, 2]), decides("a", Decision::Miss));
        policy.forget(id("b"));
        check(&policy, &fleet, &prompt(&[1, 2]), decides("a", Decision::Miss));
    }

    /// Conversations that go on, many at once, over workers that are more or less busy.
    struct Talk {
        text: Vec<u8>,
        last: Option<WorkerId>,
    }

    #[test]
    fn conversations_stay_and_spread() {
        for (kind, seed) in [(Kind::CacheAware, 1), (Kind::CacheAware, 2), (Kind::PrefixHash, 3)] {
            let policy = policy(kind);
            let mut fleet = idle(8);
            let mut rng = StdRng::seed_from_u64(seed);
            let root = prefix::root(&ModelId::from("m"));
            let opening = |n: usize, rng: &mut StdRng| {
                // A preamble that all share, then a question of one's own.
                let mut text = vec![b's'; 300];
                text.extend(format!("talk {n}").bytes());
                text.extend((0..900).map(|_| rng.random::<u8>()));
                text
            };
            let mut talks: Vec<_> =
                (0..400).map(|n| Talk { text: opening(n, &mut rng), last: None }).collect();
            let (mut followups, mut kept) = (0, 0);
            let mut homes = HashMap::<WorkerId, usize>::new();
            let mut running = std::collections::VecDeque::new();
            for _ in 0..8 {
                talks.shuffle(&mut rng);
                for talk in &mut talks {
                    let mut blocks = Vec::new();
                    prefix::chain(root, &[b"tools", &talk.text], &mut blocks);
                    let hint = prompt(&blocks);
                    let pick = policy.pick(&fleet, &hint, Now::default(), &mut rng).unwrap();
                    let worker = fleet[pick.index].id;
                    policy.sent(worker, &hint, Now::default());
                    match talk.last {
                        Some(last) => {
                            followups += 1;
                            kept += u32::from(last == worker);
                        }
                        None => *homes.entry(worker).or_default() += 1,
                    }
                    talk.last = Some(worker);
                    talk.text.extend((0..500).map(|_| rng.random::<u8>()));
                    // Up to 40 at once, 5 on each worker if all is well. prefix_hash has the tighter bound, so there
                    // requests end at once.
                    fleet[pick.index].load += 1;
                    running.push_back(pick.index);
                    if running.len() > if kind == Kind::CacheAware { 40 } else { 0 } {
                        fleet[running.pop_front().unwrap()].load -= 1;
                    }
                }
            }
            assert!(kept * 100 >= followups * 95, "{kind}: {kept} of {followups}, seed {seed}");
            let most = *homes.values().max().unwrap();
            assert!(most * 8 <= 400 * 3 / 2, "{kind}: {homes:?}, seed {seed}");
        }
    }
}
