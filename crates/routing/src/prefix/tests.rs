//! The index compared with a naive search, its bounds, forgetting of workers, and its metrics.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;

use super::{Config, Index, Metrics, chain, root};

fn index(max_entries: usize) -> Index {
    Index::new(&Config { max_entries })
}

fn worker(n: u64) -> WorkerId {
    WorkerId::from_u64(n)
}

fn second(n: u64) -> Now {
    Now::at(Duration::from_secs(n))
}

/// The blocks of a prompt in which each letter fills one block.
fn prompt(letters: &str) -> Vec<u64> {
    let bytes: Vec<u8> = letters.bytes().flat_map(|letter| [letter; super::BLOCK_BYTES]).collect();
    let mut blocks = Vec::new();
    chain(root(&ModelId::from("m")), &[&bytes], &mut blocks);
    blocks
}

/// A prompt of `len` random blocks.
fn unique(rng: &mut StdRng, len: usize) -> Vec<u64> {
    (0..len).map(|_| rng.random_range(1..=u64::MAX)).collect()
}

fn check(index: &Index, letters: &str, expected: Option<(usize, &[u64])>) {
    let found = index.longest(&prompt(letters), second(0), |_| true);
    let found = found.map(|m| (m.depth, m.workers.iter().map(|w| w.as_u64()).collect::<Vec<_>>()));
    let expected = expected.map(|(depth, workers)| (depth, workers.to_vec()));
    assert_eq!(found, expected, "prompt {letters:?}");
}

fn learn(index: &Index, letters: &str, n: u64) {
    index.insert(&prompt(letters), worker(n), second(0));
}

#[test]
fn the_longest_prefix_is_found_and_its_newest_worker_comes_first() {
    let index = index(1000);
    check(&index, "abc", None);
    learn(&index, "abcd", 1);
    learn(&index, "abx", 2);
    check(&index, "abcde", Some((4, &[1])));
    check(&index, "abz", Some((2, &[2, 1])));
    check(&index, "abxyz", Some((3, &[2])));
    check(&index, "bcd", None);
    learn(&index, "abcd", 1);
    check(&index, "ab", Some((2, &[1, 2])));
    assert_eq!((index.hits(), index.misses()), (4, 2));
}

#[test]
fn the_four_newest_workers_are_remembered() {
    let index = index(1000);
    for n in 1..=5 {
        learn(&index, "a", n);
    }
    check(&index, "a", Some((1, &[5, 4, 3, 2])));
    learn(&index, "a", 3);
    check(&index, "a", Some((1, &[3, 5, 4, 2])));
}

#[test]
fn without_fit_workers_a_shorter_match_of_others_is_found() {
    let index = index(1000);
    learn(&index, "abcdefgh", 1);
    learn(&index, "abc", 2);
    let blocks = prompt("abcdefghij");
    let found = index.longest(&blocks, second(0), |w| w != worker(1)).unwrap();
    assert_eq!((found.depth, found.workers.as_slice()), (3, [worker(2)].as_slice()));
    let longest = index.longest(&blocks, second(0), |_| true).unwrap();
    let found = index.shorter(&blocks, &longest, |w| w == worker(2)).unwrap();
    assert_eq!((found.depth, found.workers.as_slice()), (3, [worker(2)].as_slice()));
    let shorter = index.shorter(&blocks, &found, |_| true).unwrap();
    assert_eq!(shorter.depth, 2);
    let shortest = index.shorter(&blocks, &shorter, |_| true).unwrap();
    assert_eq!(index.shorter(&blocks, &shortest, |_| true), None);
    assert_eq!(index.longest(&blocks, second(0), |_| false), None);
}

#[test]
fn a_forgotten_worker_is_not_found_again() {
    let index = index(1000);
    learn(&index, "abcd", 1);
    learn(&index, "ab", 2);
    index.forget(worker(1));
    check(&index, "abcd", Some((2, &[2])));
    index.forget(worker(2));
    check(&index, "abcd", None);
    // The worker returns with an empty cache.
    learn(&index, "x", 1);
    check(&index, "abcd", None);
    check(&index, "xy", Some((1, &[1])));
}

#[test]
fn insertions_sweep_the_entries_of_forgotten_workers() {
    let mut rng = StdRng::seed_from_u64(1);
    let index = index(100_000);
    for _ in 0..1000 {
        index.insert(&unique(&mut rng, 20), worker(1), second(0));
    }
    assert!(index.entries() > 19_900);
    index.forget(worker(1));
    let mut insertions = 0;
    while index.entries() > insertions {
        assert!(insertions < 2000, "{} entries left after {insertions} prompts", index.entries());
        index.insert(&unique(&mut rng, 1), worker(2), second(1));
        insertions += 1;
    }
    assert_eq!(index.sweep(usize::MAX), 0, "entries were left to sweep");
}

#[test]
fn an_index_with_bound_zero_stores_nothing() {
    let index = index(0);
    learn(&index, "abc", 1);
    check(&index, "abc", None);
    assert_eq!(index.entries(), 0);
}

#[test]
fn the_number_of_entries_and_the_memory_are_bounded() {
    let mut rng = StdRng::seed_from_u64(2);
    for max in [1, 7, 16, 100, 5000, 70_000] {
        let index = index(max);
        for at in 0..(max as u64 / 4).max(100) {
            index.insert(&unique(&mut rng, 10), worker(at % 7), second(at));
            assert!(index.entries() <= max, "{} entries of {max}", index.entries());
        }
        assert!(index.entries() * 100 >= max * 99, "{} entries of {max}", index.entries());
        assert!(index.evictions() > 0);
        let per_entry = index.bytes() as f64 / max as f64;
        assert!(max < 1000 || per_entry <= 72.0, "{per_entry} bytes per entry of {max}");
    }
}

#[test]
fn few_entries_are_evicted_before_the_bound() {
    let mut rng = StdRng::seed_from_u64(3);
    let index = index(100_000);
    for _ in 0..9000 {
        index.insert(&unique(&mut rng, 10), worker(1), second(0));
    }
    let lost = 90_000 - index.entries();
    assert!(lost < 180, "{lost} entries of 90,000 were lost under a bound of 100,000");
}

#[test]
fn the_least_recently_used_are_evicted_and_heads_outlive_their_tails() {
    let mut rng = StdRng::seed_from_u64(4);
    let index = index(20_000);
    let kept: Vec<_> = (0..50).map(|_| unique(&mut rng, 20)).collect();
    let mut others = Vec::new();
    for at in 0..4000 {
        let other = unique(&mut rng, 20);
        index.insert(&other, worker(1), second(at));
        others.push(other);
        let used = &kept[at as usize % kept.len()];
        index.insert(used, worker(2), second(at));
    }
    let depth =
        |blocks: &[u64]| index.longest(blocks, second(4000), |_| true).map_or(0, |m| m.depth);
    for blocks in &kept {
        assert_eq!(depth(blocks), 20, "a prompt in use lost a part");
    }
    assert!(others[..2500].iter().all(|blocks| depth(blocks) == 0), "an old prompt survived");
    assert!(others[3600..].iter().all(|blocks| depth(blocks) == 20), "a young prompt is gone");
    // Some paths between the two are evicted in part. An entry whose head is gone can't be found.
    let has = |key: u64| index.shards_hold(key);
    let (mut reached, mut held) = (0, 0);
    for blocks in &others {
        reached += depth(blocks);
        held += blocks.iter().filter(|key| has(**key)).count();
    }
    assert!(reached * 100 >= held * 90, "{reached} of {held} remembered blocks can be found");
}

#[test]
fn a_scrape_shows_the_index() {
    let registry = prometheus::Registry::new();
    let index = Arc::new(index(1000));
    Metrics::register(&registry, &index).unwrap();
    assert!(Metrics::register(&registry, &index).is_err());
    learn(&index, "abc", 1);
    check(&index, "ab", Some((2, &[1])));
    check(&index, "x", None);
    let shown: HashMap<String, f64> = registry
        .gather()
        .iter()
        .map(|family| {
            let metric = &family.get_metric()[0];
            let value = metric.get_gauge().get_value() + metric.get_counter().get_value();
            (family.name().to_owned(), value)
        })
        .collect();
    let expected = [
        ("smg_prefix_entries", 3.0),
        ("smg_prefix_bytes", index.bytes() as f64),
        ("smg_prefix_hits_total", 1.0),
        ("smg_prefix_misses_total", 1.0),
        ("smg_prefix_evictions_total", 0.0),
    ];
    assert_eq!(shown, expected.map(|(name, value)| (name.to_owned(), value)).into());
}

#[test]
fn threads_share_the_index() {
    let index = index(5000);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let index = &index;
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(thread);
                let shared = prompt("abcdefgh");
                for at in 0..3000 {
                    index.insert(&shared, worker(thread), second(at));
                    index.insert(&unique(&mut rng, 8), worker(thread), second(at));
                    if at % 100 == 0 {
                        index.forget(worker((thread + 1) % 4));
                    }
                    let found = index.longest(&shared, second(at), |_| true);
                    assert!(found.is_none_or(|m| m.depth <= 8 && m.workers.len() <= 4));
                }
            });
        }
    });
    assert!(index.entries() <= 5000);
    index.sweep(usize::MAX);
    assert_eq!(index.entries(), index.count_by_hand());
}

/// The expected content of the index: for each prefix the workers that have served it.
#[derive(Default)]
struct Oracle(HashMap<Vec<u8>, BTreeSet<u64>>);

impl Oracle {
    fn longest(&self, letters: &[u8], fit: impl Fn(u64) -> bool) -> Option<(usize, BTreeSet<u64>)> {
        (1..=letters.len()).rev().find_map(|depth| {
            let served = self.0.get(&letters[..depth])?;
            let fit: BTreeSet<u64> = served.iter().copied().filter(|w| fit(*w)).collect();
            (!fit.is_empty()).then_some((depth, fit))
        })
    }
}

#[derive(Debug, Clone)]
enum Op {
    Insert(Vec<u8>, u64),
    Forget(u64),
    Sweep,
    Longest(Vec<u8>, u64),
}

/// Operations on prompts of two letters, which share many prefixes, and on four workers, as many as an entry remembers.
fn op() -> impl Strategy<Value = Op> {
    let letters = || prop::collection::vec(b'a'..=b'b', 1..24);
    prop_oneof![
        4 => (letters(), 0..4u64).prop_map(|(l, w)| Op::Insert(l, w)),
        1 => (0..4u64).prop_map(Op::Forget),
        1 => Just(Op::Sweep),
        // The second number is a set of unfit workers.
        6 => (letters(), 0..16u64).prop_map(|(l, unfit)| Op::Longest(l, unfit)),
    ]
}

proptest! {
    #[test]
    fn the_longest_match_is_that_of_a_naive_search(ops in prop::collection::vec(op(), 1..120)) {
        let index = index(100_000);
        let mut oracle = Oracle::default();
        for op in ops {
            match op {
                Op::Insert(letters, n) => {
                    learn(&index, std::str::from_utf8(&letters).unwrap(), n);
                    for depth in 1..=letters.len() {
                        oracle.0.entry(letters[..depth].to_vec()).or_default().insert(n);
                    }
                }
                Op::Forget(n) => {
                    index.forget(worker(n));
                    oracle.0.values_mut().for_each(|served| { served.remove(&n); });
                }
                Op::Sweep => { index.sweep(1); }
                Op::Longest(letters, unfit) => {
                    let fit = |n: u64| unfit & (1 << n) == 0;
                    let blocks = prompt(std::str::from_utf8(&letters).unwrap());
                    let found = index
                        .longest(&blocks, second(0), |w| fit(w.as_u64()))
                        .map(|m| (m.depth, m.workers.iter().map(|w| w.as_u64()).collect()));
                    prop_assert_eq!(found, oracle.longest(&letters, fit));
                }
            }
        }
    }
}

#[test]
fn reports_of_parts_are_found_as_a_whole() {
    let index = Index::new(&Config { max_entries: 1 << 12 });
    let (a, now) = (WorkerId::from_u64(1), Now::default());
    index.insert_remote(12, &[13, 14], a, now);
    assert_eq!(index.longest(&[11, 12, 13, 14], now, |_| true), None, "its head is unknown");
    index.insert_remote(0, &[11, 12], a, now);
    let found = index.longest(&[11, 12, 13, 14, 15], now, |_| true).unwrap();
    assert_eq!((found.depth, found.workers.as_slice()), (4, &[a][..]));
}

#[test]
fn an_insertion_returns_the_blocks_that_the_worker_was_not_sent_before() {
    let index = Index::new(&Config { max_entries: 1 << 12 });
    let (a, b, now) = (WorkerId::from_u64(1), WorkerId::from_u64(2), Now::default());
    let insert = |blocks: &[u64], worker| {
        let unshared = index.insert(blocks, worker, now);
        (unshared.parent(), unshared.keys().collect::<Vec<_>>())
    };
    // One insertion in 64, beginning with the first, returns all.
    assert_eq!(insert(&[1, 2], a), (0, vec![1, 2]));
    assert_eq!(insert(&[1, 2, 3], a), (2, vec![3]));
    assert_eq!(insert(&[1, 2, 3], a), (3, vec![]));
    assert_eq!(insert(&[1, 2, 3], b), (0, vec![1, 2, 3]));
    assert_eq!(insert(&[1, 2, 3, 4], a), (3, vec![4]));
    let republished = (0..640).filter(|_| insert(&[1, 2, 3, 4], a).0 == 0).count();
    assert_eq!(republished, 10);
}
