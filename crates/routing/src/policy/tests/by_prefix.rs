//! The policy `cache_aware` by requests, and agreement between routers.

use super::*;
use crate::policy::Measure;

fn by_requests() -> Arc<dyn Policy> {
    let config =
        Config { cache_aware_by: Measure::Requests, cache_threshold: 0.3, ..Config::default() };
    policy_with(Kind::CacheAware, &config)
}

/// A policy that has sent prompts with these blocks to these workers.
fn served(prompts: &[(&str, &[u64])]) -> Arc<dyn Policy> {
    let policy = by_requests();
    for (worker, blocks) in prompts {
        policy.sent(id(worker), &prompt(blocks), Now::default());
    }
    policy
}

#[test]
fn a_prompt_goes_to_the_worker_with_the_longest_match() {
    let policy = served(&[("a", &[1, 2, 3, 4]), ("b", &[1, 2]), ("c", &[9])]);
    let fleet = [("a", 5), ("b", 0), ("c", 0)];
    check(&policy, &fleet, &prompt(&[1, 2, 3, 4, 5]), decides("a", Decision::Hit(0.8)));
    check(&policy, &fleet, &prompt(&[9, 10]), decides("c", Decision::Hit(0.5)));
}

#[test]
fn of_several_longest_matches_the_least_loaded_is_picked() {
    let policy = served(&[("a", &[1, 2]), ("b", &[1, 2]), ("c", &[1])]);
    let fleet = [("a", 5), ("b", 3), ("c", 0)];
    check(&policy, &fleet, &prompt(&[1, 2]), decides("b", Decision::Hit(1.0)));
}

#[test]
fn a_match_below_the_threshold_is_a_miss() {
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
fn affinity_ends_when_the_load_exceeds_both_bounds() {
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
fn a_shorter_match_within_the_bounds_comes_before_the_least_loaded() {
    let policy = served(&[("a", &[1, 2, 3, 4]), ("b", &[1, 2]), ("c", &[1])]);
    let asked = prompt(&[1, 2, 3, 4]);
    check(
        &policy,
        &[("a", 70), ("b", 9), ("c", 3), ("d", 0)],
        &asked,
        decides("b", Decision::Hit(0.5)),
    );
    // A match of one block in four is below the threshold.
    check(
        &policy,
        &[("a", 70), ("b", 70), ("c", 3), ("d", 0)],
        &asked,
        decides("d", Decision::Balance),
    );
    check(&policy, &[("a", 70), ("c", 3), ("d", 0)], &asked, decides("d", Decision::Balance));
}

#[test]
fn the_bounds_scale_with_the_weight() {
    let policy = served(&[("a", &[1])]);
    let fleet = |load| [Candidate::new(id("a"), load, 10), Candidate::new(id("b"), 9, 1)];
    // Ten requests on b are as much as a hundred on a.
    let at = |load, expected: &dyn Fn(&[Candidate], Option<Pick>) -> bool| {
        check_at(&policy, &fleet(load), &prompt(&[1]), Now::default(), expected);
    };
    at(150, &decides("a", Decision::Hit(1.0)));
    at(163, &decides("a", Decision::Hit(1.0)));
    at(164, &decides("b", Decision::Balance));
}

#[test]
fn the_policy_learns_from_sent_requests_and_forgets_a_worker() {
    let policy = by_requests();
    let fleet = [("a", 0), ("b", 9)];
    check(&policy, &fleet, &prompt(&[1, 2]), decides("a", Decision::Miss));
    check(&policy, &fleet, &prompt(&[1, 2]), decides("a", Decision::Miss));
    policy.sent(id("b"), &prompt(&[1, 2]), Now::default());
    check(&policy, &fleet, &prompt(&[1, 2]), decides("b", Decision::Hit(1.0)));
    // If the worker with the match is not a candidate, no other worker here has one.
    check(&policy, &[("a", 0)], &prompt(&[1, 2]), decides("a", Decision::Miss));
    policy.forget(id("b"));
    check(&policy, &fleet, &prompt(&[1, 2]), decides("a", Decision::Miss));
}

/// One of many conversations that run at the same time.
struct Conversation {
    text: Vec<u8>,
    last: Option<WorkerId>,
}

#[test]
fn conversations_keep_their_workers_and_spread_evenly() {
    for (kind, seed) in [(Kind::CacheAware, 1), (Kind::CacheAware, 2), (Kind::PrefixHash, 3)] {
        let policy = policy(kind);
        let mut fleet = idle(8);
        let mut rng = StdRng::seed_from_u64(seed);
        let root = prefix::root(&ModelId::from("m"));
        let opening = |n: usize, rng: &mut StdRng| {
            // All conversations share a preamble; each continues with its own text.
            let mut text = vec![b's'; 300];
            text.extend(format!("talk {n}").bytes());
            text.extend((0..900).map(|_| rng.random::<u8>()));
            text
        };
        let mut conversations: Vec<_> =
            (0..400).map(|n| Conversation { text: opening(n, &mut rng), last: None }).collect();
        let (mut followups, mut kept) = (0, 0);
        let mut homes = HashMap::<WorkerId, usize>::new();
        let mut running = std::collections::VecDeque::new();
        for _ in 0..8 {
            conversations.shuffle(&mut rng);
            for conversation in &mut conversations {
                let mut blocks = Vec::new();
                prefix::chain(root, &[b"tools", &conversation.text], &mut blocks);
                let hint = prompt(&blocks);
                let pick = policy.pick(&fleet, &hint, Now::default(), &mut rng).unwrap();
                let worker = fleet[pick.index].id;
                policy.sent(worker, &hint, Now::default());
                match conversation.last {
                    Some(last) => {
                        followups += 1;
                        kept += u32::from(last == worker);
                    }
                    None => *homes.entry(worker).or_default() += 1,
                }
                conversation.last = Some(worker);
                conversation.text.extend((0..500).map(|_| rng.random::<u8>()));
                // With cache_aware 40 requests are in flight at once, about 5 on each worker. prefix_hash has the tighter
                // bound on load, so its requests end at once.
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

/// A policy of a router in a cluster.
fn in_cluster(kind: Kind) -> Arc<dyn Policy> {
    policy_with(kind, &Config { agree_across_routers: true, ..Config::default() })
}

#[test]
fn routers_agree_on_unknown_prompts_and_sessions_without_messages() {
    for kind in [Kind::CacheAware, Kind::Manual] {
        let (one, other) = (in_cluster(kind), in_cluster(kind));
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
fn the_choice_by_key_ends_where_a_worker_has_more_than_about_the_lowest_load() {
    let policy = policy_with(
        Kind::CacheAware,
        &Config {
            cache_aware_by: Measure::Requests,
            agree_across_routers: true,
            ..Config::default()
        },
    );
    for number in 1..100_u64 {
        check(&policy, &[("a", 2), ("b", 0)], &prompt(&[number]), picks("b"));
    }
}
