//! The policy `bucket`.

use super::*;

fn length(prompt_bytes: usize) -> Hint<'static> {
    Hint { prompt_bytes, ..Hint::default() }
}

/// Bytes that each worker gets of prompts with lengths from `draw`, after the first 4,000 prompts have settled the ranges.
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
fn bytes_are_distributed_by_weight_among_prompts_of_similar_lengths() {
    let given = [1, 2, 3];
    let fleet = weights(&given);
    assert_proportional(&bytes_of(&fleet, |_| 1000), &given, 0.05);
    assert_proportional(&bytes_of(&fleet, |rng| rng.random_range(1..60_000)), &given, 0.1);
    let two_sizes = |rng: &mut StdRng| if rng.random_ratio(1, 4) { 1500 } else { 500 };
    assert_proportional(&bytes_of(&fleet, two_sizes), &given, 0.15);
}

/// The candidates that get prompts of each of two lengths, which take turns, after the first `settled` prompts.
fn workers_of(fleet: &[Candidate], [short, long]: [usize; 2], settled: usize) -> [Vec<usize>; 2] {
    let policy = policy(Kind::Bucket);
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut workers = [Vec::new(), Vec::new()];
    for n in 0..settled + 1000 {
        let len = [short, long][n % 2];
        let pick = policy.pick(fleet, &length(len), Now::default(), &mut rng).unwrap();
        policy.sent(fleet[pick.index].id, &length(len), Now::default());
        let seen = &mut workers[n % 2];
        if n >= settled && !seen.contains(&pick.index) {
            seen.push(pick.index);
        }
    }
    workers
}

#[test]
fn two_lengths_that_lie_far_apart_never_share_a_worker_after_the_first_prompts() {
    for (workers, lengths) in [(2, [60, 6000]), (2, [30, 300]), (3, [60, 6000]), (8, [1, 100_000])]
    {
        let [short, long] = workers_of(&idle(workers), lengths, 2);
        assert_eq!(short.len(), 1, "the short ones are the smaller part of the bytes");
        assert_eq!(long.len(), workers - 1, "{workers} workers: {short:?} {long:?}");
        assert!(!long.contains(&short[0]), "{workers} workers: {short:?} {long:?}");
    }
}

#[test]
fn long_and_short_prompts_go_to_different_workers() {
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
    let workers = |len| by_length[&len].iter().enumerate().filter(|(_, n)| **n > 0).map(|w| w.0);
    // The longest prompts hold half of all bytes, so they fill two workers; the short ones share another.
    assert_eq!(workers(100).count(), 1, "{by_length:?}");
    assert!(workers(51_200).count() <= 3, "{by_length:?}");
    assert!(workers(51_200).all(|long| workers(100).all(|short| short != long)), "{by_length:?}");
}

#[test]
fn a_prompt_leaves_a_range_whose_worker_is_too_busy() {
    let policy = policy(Kind::Bucket);
    for _ in 0..100 {
        policy.sent(id("a"), &length(1000), Now::default());
    }
    let busy = [("a", 200), ("b", 0), ("c", 200)];
    check(&policy, &busy, &length(1000), picks("b"));
}
