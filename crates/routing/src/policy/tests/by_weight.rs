//! Policies by weight: `round_robin` and `random`.

use super::*;

#[test]
fn random_picks_follow_weights() {
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
fn the_turns_of_a_heavy_worker_are_spread() {
    let policy = policy(Kind::RoundRobin);
    let fleet = weights(&[5, 1, 1]);
    let mut rng = StdRng::seed_from_u64(SEED);
    let turns: Vec<usize> = (0..700)
        .map(|_| policy.pick(&fleet, &Hint::default(), Now::default(), &mut rng).unwrap().index)
        .collect();
    // The heavy worker has five turns in seven. The light ones may follow each other, so a window may hold one turn more or less.
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
fn a_worker_that_returns_does_not_catch_up_on_missed_turns() {
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
fn models_that_share_a_policy_do_not_affect_each_other() {
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
