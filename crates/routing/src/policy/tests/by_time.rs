//! The policy `cache_aware` by the expected time to first token.

use super::*;
use crate::prefix::{Index, Recall};
use crate::speed::Speed;

/// A policy with its index.
fn with_index(config: &Config) -> (Arc<dyn Policy>, Arc<Index>) {
    let index = Arc::new(Index::new(&prefix::Config { max_entries: 1 << 16 }));
    let memory = Arc::new(Memory::new(config, Arc::clone(&index)));
    (build(Kind::CacheAware, config, memory), index)
}

/// A prompt of `count` blocks that begins like other prompts with the same `head`.
fn blocks(head: u64, count: u64) -> Vec<u64> {
    (0..count).map(|n| (head * 1_000_003 + n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect()
}

/// A worker on which these prompt tokens wait, and which computes this many per second.
fn worker(name: &str, waiting: u32, rate: f32) -> Candidate {
    let speed = Speed { overhead: 0.01, per_token: 1.0 / rate, per_request: 0.0 };
    Candidate { waiting, speed: Some(speed), ..Candidate::new(id(name), 0, 1) }
}

fn picked(policy: &Arc<dyn Policy>, fleet: &[Candidate], blocks: &[u64]) -> (WorkerId, Decision) {
    let pick = policy
        .pick(fleet, &prompt(blocks), Now::default(), &mut StdRng::seed_from_u64(SEED))
        .unwrap();
    (fleet[pick.index].id, pick.decision)
}

#[test]
fn a_prefix_is_followed_until_more_waits_than_it_saves() {
    let policy = policy(Kind::CacheAware);
    let asked = blocks(1, 100);
    policy.sent(id("a"), &prompt(&asked[..50]), Now::default());
    // The prefix has 50 blocks of 64 tokens, which count twice.
    let saved = 2 * 50 * 64;
    let fleet = |waiting| [worker("a", waiting, 1000.0), worker("b", 0, 1000.0)];
    assert_eq!(picked(&policy, &fleet(saved - 100), &asked), (id("a"), Decision::Hit(0.5)));
    assert_eq!(picked(&policy, &fleet(saved + 100), &asked), (id("b"), Decision::Balance));
}

#[test]
fn a_short_prefix_counts_as_much_as_it_saves() {
    let policy = policy(Kind::CacheAware);
    let asked = blocks(1, 100);
    policy.sent(id("a"), &prompt(&asked[..10]), Now::default());
    let fleet = [worker("a", 500, 1000.0), worker("b", 0, 1000.0)];
    assert_eq!(picked(&policy, &fleet, &asked), (id("a"), Decision::Hit(0.1)));
    let config = Config { cache_threshold: 0.2, ..Config::default() };
    let policy = policy_with(Kind::CacheAware, &config);
    policy.sent(id("a"), &prompt(&asked[..10]), Now::default());
    assert_eq!(picked(&policy, &fleet, &asked).0, id("b"), "it is below the threshold");
}

#[test]
fn a_slow_worker_gets_less_and_a_new_one_is_taken_for_average() {
    let policy = policy(Kind::CacheAware);
    let long = blocks(3, 200);
    let fleet = [worker("slow", 0, 500.0), worker("fast", 20_000, 4000.0)];
    assert_eq!(picked(&policy, &fleet, &long).0, id("fast"));
    let fleet =
        [worker("slow", 0, 500.0), worker("fast", 0, 4000.0), Candidate::new(id("new"), 0, 1)];
    assert_eq!(picked(&policy, &fleet, &long).0, id("fast"));
    let fleet = [
        worker("slow", 0, 500.0),
        worker("fast", 100_000, 4000.0),
        Candidate::new(id("new"), 0, 1),
    ];
    assert_eq!(picked(&policy, &fleet, &long).0, id("new"));
}

#[test]
fn a_prefix_that_was_evicted_is_not_followed() {
    let (policy, index) = with_index(&Config::default());
    let (old, new) = (blocks(1, 100), blocks(2, 100));
    policy.sent(id("a"), &prompt(&old), Now::default());
    policy.sent(id("a"), &prompt(&new), Now::default());
    let fleet = [worker("a", 1000, 1000.0), worker("b", 0, 1000.0)];
    assert_eq!(picked(&policy, &fleet, &old).0, id("a"));
    // The worker reports that nothing was left of a prompt since which it had computed 150 blocks.
    let seen = Recall { sent: 50, held: 50, age: 150 };
    index.learn_cached(id("a"), seen, 0);
    assert_eq!(picked(&policy, &fleet, &old).0, id("b"), "200 blocks ago");
    assert_eq!(picked(&policy, &fleet, &new).0, id("a"), "100 blocks ago");
}

#[test]
fn requests_with_one_head_spread_over_idle_workers() {
    let policy = policy(Kind::CacheAware);
    let mut fleet: Vec<_> = ["a", "b", "c", "d"].map(|name| worker(name, 0, 2000.0)).into();
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut counts = [0; 4];
    for number in 0..40u64 {
        // 20 KB in common, and 1 KB of each one's own.
        let asked = [blocks(1, 80), blocks(100 + number, 4)].concat();
        let pick = policy.pick(&fleet, &prompt(&asked), Now::default(), &mut rng).unwrap();
        policy.sent(fleet[pick.index].id, &prompt(&asked), Now::default());
        counts[pick.index] += 1;
        fleet[pick.index].load += 1;
        fleet[pick.index].waiting += pick.uncached_tokens(84 * 256, 0.25);
    }
    assert!(counts.iter().all(|count| (5..=16).contains(count)), "{counts:?}");
}

#[test]
fn heads_of_a_megabyte_with_short_tails_are_told_apart() {
    let policy = policy(Kind::CacheAware);
    let head = blocks(1, 4096);
    let tails = ["a", "b"].map(|name| {
        let asked = [head.clone(), blocks(u64::from(name.as_bytes()[0]), 8)].concat();
        policy.sent(id(name), &prompt(&asked), Now::default());
        (name, asked)
    });
    let fleet = [worker("a", 0, 1000.0), worker("b", 0, 1000.0)];
    for (name, asked) in tails {
        let next = [asked, blocks(77, 20)].concat();
        assert_eq!(picked(&policy, &fleet, &next).0, id(name));
    }
}
