//! Properties that all policies share.

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
fn without_candidates_there_is_no_pick() {
    for kind in Kind::ALL {
        check(&policy(kind), &[], &session("s"), |_, pick| pick.is_none());
        check(&policy(kind), &[], &prompt(&[1]), |_, pick| pick.is_none());
    }
}

#[test]
fn only_policies_by_prefix_want_blocks() {
    let wanting: Vec<&str> =
        Kind::ALL.into_iter().filter(|k| policy(*k).wants_blocks()).map(Kind::name).collect();
    assert_eq!(wanting, ["cache_aware", "prefix_hash"]);
}

#[test]
fn idle_workers_get_even_shares() {
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Passthrough) {
        let policy = policy(kind);
        let fleet = idle(8);
        let mut rng = StdRng::seed_from_u64(SEED);
        let mut shares = vec![0; 8];
        for n in 0..8000_u64 {
            // Each request has its own session and prompt.
            let (key, blocks) = (n.to_le_bytes(), [rng.random(), rng.random()]);
            let hint = Hint { session: Some(&key), blocks: &blocks, prompt_bytes: 600, model: 0 };
            let pick = policy.pick(&fleet, &hint, Now::default(), &mut rng).unwrap();
            policy.sent(fleet[pick.index].id, &hint, Now::default());
            shares[pick.index] += 1;
        }
        assert_even(&shares);
    }
}

#[test]
fn a_burst_spreads_over_all_workers() {
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Passthrough) {
        let policy = policy(kind);
        let mut fleet = idle(8);
        let mut rng = StdRng::seed_from_u64(SEED);
        for n in 0..800_u64 {
            let (key, blocks) = (n.to_le_bytes(), [rng.random(), rng.random()]);
            let hint = Hint { session: Some(&key), blocks: &blocks, prompt_bytes: 600, model: 0 };
            let pick = policy.pick(&fleet, &hint, Now::default(), &mut rng).unwrap();
            policy.sent(fleet[pick.index].id, &hint, Now::default());
            fleet[pick.index].load += 1;
        }
        let most = fleet.iter().map(|candidate| candidate.load).max().unwrap();
        let most_allowed = match kind {
            // Loads play no part.
            Kind::Random => 130,
            // The bound is 64 requests above the least loaded worker.
            Kind::Bucket => 150,
            Kind::ConsistentHashing | Kind::PrefixHash => 125,
            Kind::PowerOfTwo => 104,
            // Workers whose loads differ by two are alike.
            Kind::CacheAware => 103,
            Kind::RoundRobin | Kind::LeastLoad | Kind::Manual | Kind::Passthrough => 101,
        };
        assert!(most <= most_allowed, "{kind}: {most} of 800 on one of 8, seed {SEED}");
    }
}

proptest! {
    #[test]
    fn every_policy_picks_a_candidate_whatever_the_numbers(
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
            .map(|(id, load, weight)| Candidate::new(WorkerId::from_u64(id), load, weight))
            .collect();
        let mut rng = StdRng::seed_from_u64(SEED);
        for (key, blocks, prompt_bytes) in requests {
            let key = key.map(|key| [key]);
            let session = key.as_ref().map(<[u8; 1]>::as_slice);
            let hint = Hint { session, blocks: &blocks, prompt_bytes, model: 0 };
            let pick = policy.pick(&candidates, &hint, Now::default(), &mut rng);
            let index = pick.map(|pick| pick.index);
            prop_assert!(index.is_some_and(|index| index < candidates.len()));
            policy.sent(candidates[index.unwrap()].id, &hint, Now::default());
        }
    }
}
