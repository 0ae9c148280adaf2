//! Where the prefix is cached, within the bound on load.

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
        [Candidate { id: id("a"), load, weight: 10 }, Candidate { id: id("b"), load: 9, weight: 1 }]
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

/// A policy of a router that has others beside it.
fn one_of_several(kind: Kind) -> Arc<dyn Policy> {
    policy_with(kind, &Config { agree_across_routers: true, ..Config::default() })
}

#[test]
fn routers_that_know_nothing_of_each_other_agree_on_what_nobody_knows() {
    for kind in [Kind::CacheAware, Kind::Manual] {
        let (one, other) = (one_of_several(kind), one_of_several(kind));
        let mut chosen = std::collections::BTreeSet::new();
        for number in 0..100_u64 {
            let (blocks, key) = ([number * 7919 + 1, 2], number.to_le_bytes());
            let hint = Hint { session: Some(&key), ..prompt(&blocks) };
            let fleet = loads(&[("a", 1), ("b", 1), ("c", 0), ("d", 1)]);
            let picks: Vec<_> = [&one, &other]
                .iter()
                .zip(0..)
                .map(|(policy, seed)| {
                    let mut rng = StdRng::seed_from_u64(seed);
                    policy.pick(&fleet, &hint, Now::default(), &mut rng).unwrap().index
                })
                .collect();
            assert_eq!(picks[0], picks[1], "{kind}");
            chosen.insert(picks[0]);
        }
        assert_eq!(chosen.len(), 4, "{kind} spreads");
    }
}

#[test]
fn agreement_ends_where_a_worker_has_more_than_about_the_least_to_do() {
    let policy = one_of_several(Kind::CacheAware);
    for number in 1..100_u64 {
        check(&policy, &[("a", 2), ("b", 0)], &prompt(&[number]), picks("b"));
    }
}
