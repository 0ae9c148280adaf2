//! Buckets by length of the prompt.

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
    let workers = |len| by_length[&len].iter().enumerate().filter(|(_, n)| **n > 0).map(|w| w.0);
    // Half of all bytes are in the longest prompts: they fill two workers, the short ones are all on another.
    assert_eq!(workers(100).count(), 1, "{by_length:?}");
    assert!(workers(51_200).count() <= 3, "{by_length:?}");
    assert!(workers(51_200).all(|long| workers(100).all(|short| short != long)), "{by_length:?}");
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
