//! Policies by load: `least_load`, `power_of_two`, `passthrough`.

use super::*;

#[test]
fn the_least_loaded_is_picked() {
    let any = Hint::default();
    check(&least_load(), &[("a", 3), ("b", 1)], &any, picks("b"));
    check(&least_load(), &[("a", 0), ("b", 1)], &any, picks("a"));
    check(&least_load(), &[("a", u32::MAX), ("b", u32::MAX - 1)], &any, picks("b"));
}

#[test]
fn a_load_is_compared_relative_to_the_weight() {
    let heavy = Candidate::new(id("heavy"), 7, 4);
    let light = Candidate::new(id("light"), 2, 1);
    for kind in [Kind::LeastLoad, Kind::PowerOfTwo] {
        let policy = policy(kind);
        check_at(&policy, &[light, heavy], &Hint::default(), Now::default(), picks("heavy"));
    }
}

#[test]
fn of_two_candidates_the_less_loaded_is_picked() {
    let any = Hint::default();
    check(&policy(Kind::PowerOfTwo), &[("a", 3), ("b", 1)], &any, picks("b"));
    check(&policy(Kind::PowerOfTwo), &[("a", 3)], &any, picks("a"));
}

#[test]
fn two_choices_never_pick_the_most_loaded_of_many() {
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
fn passthrough_picks_the_first_candidate() {
    check(&policy(Kind::Passthrough), &[("a", 9), ("b", 0)], &Hint::default(), picks("a"));
}
