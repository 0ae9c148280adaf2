//! Learns how much a worker's prefix cache holds, from the cached tokens that its answers report.
//!
//! An engine evicts the blocks that were used least recently. The index can't see that; it only knows what it has sent. So each
//! worker has a *fill*: the number of blocks that it had to compute because they were not in its cache. The age of a block is the
//! fill since its last use. A cache with room for C blocks evicts a block at an age of about C (somewhat earlier, because blocks
//! that are used again stay in front of it), so one number per worker, the age up to which its blocks are there, says of each block
//! whether it was evicted.
//!
//! Each answer that reports its cached tokens is evidence: a block of this age was there, or it was not. A block that is gone at
//! an age at which blocks are usually there is no sign of a small cache; three such prompts in a row mean that the worker has lost
//! its cache, most likely because it was restarted.

use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

/// Prompts in a row of which little was cached although their blocks were no older than usual: the cache counts as lost.
const LOST_AFTER: u8 = 3;

/// The cache of one worker.
#[derive(Debug)]
pub(crate) struct Cache {
    /// Blocks that the worker had to compute, in all. It wraps.
    filled: AtomicU32,
    /// The age up to which blocks are expected to be in the cache; `u32::MAX`: nothing is known.
    limit: AtomicU32,
    evidence: Mutex<Evidence>,
}

#[derive(Debug, Default)]
struct Evidence {
    /// Moving average of the age of blocks that were in the cache.
    usual: u32,
    /// Contradictions in a row.
    contradictions: u8,
    /// The cache was lost, and no block has been in it since: as in an engine without a cache.
    is_lost: bool,
}

/// What was known of a prompt's blocks on one worker before the prompt was sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recall {
    /// Number of blocks, from the head on, that the worker was sent before.
    pub sent: u32,
    /// Of those, how many are expected to be in its cache still.
    pub held: u32,
    /// The age of the last block that was sent, as the fill since its last use.
    pub age: u32,
}

/// What the report of a worker on a prompt shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evicted {
    /// The worker had what it was sent before.
    Nothing,
    /// It had evicted blocks.
    Some,
    /// It has lost its whole cache.
    All,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            filled: AtomicU32::new(0),
            limit: AtomicU32::new(u32::MAX),
            evidence: Mutex::default(),
        }
    }
}

impl Cache {
    /// The present fill: the stamp of a block that is used now.
    pub(crate) fn stamp(&self) -> u32 {
        self.filled.load(Ordering::Relaxed)
    }

    /// The age of a block with this stamp.
    pub(crate) fn age(&self, stamp: u32) -> u32 {
        self.stamp().wrapping_sub(stamp)
    }

    /// Whether a block of this age is expected to be in the cache.
    pub(crate) fn holds(&self, age: u32) -> bool {
        age <= self.limit.load(Ordering::Relaxed)
    }

    /// The age up to which blocks are expected to be there, in blocks; `None`: nothing is known.
    pub(crate) fn limit(&self) -> Option<u32> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit != u32::MAX)
    }

    /// Notes that the worker computes `blocks` which it did not have.
    pub(crate) fn fill(&self, blocks: usize) {
        self.filled.fetch_add(u32::try_from(blocks).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Learns from the report of an answer: of the prompt's blocks, `cached` were in the cache.
    pub(crate) fn learn(&self, recall: Recall, cached: u32) -> Evicted {
        let Recall { sent, age, .. } = recall;
        // Engines cache in blocks of their own, so that the last part of a prefix may be missing.
        let is_there = cached >= (sent - sent / 8).saturating_sub(2);
        let mut evidence = self.evidence.lock();
        let limit = self.limit.load(Ordering::Relaxed);
        if is_there {
            evidence.contradictions = 0;
            evidence.is_lost = false;
            evidence.usual = match evidence.usual {
                0 => age,
                usual => usual - usual / 8 + age / 8,
            };
            if limit != u32::MAX && age > limit {
                self.limit.store(limit + (age - limit).div_ceil(2), Ordering::Relaxed);
            }
            return Evicted::Nothing;
        }
        // If no block has been seen in the cache, any age is usual.
        let is_usual = evidence.usual == 0 || age <= evidence.usual + evidence.usual / 8;
        if is_usual && cached < sent / 4 && !evidence.is_lost {
            evidence.contradictions += 1;
            if evidence.contradictions >= LOST_AFTER {
                *evidence = Evidence { is_lost: true, ..Evidence::default() };
                return Evicted::All;
            }
        }
        let lower = match limit {
            u32::MAX => age.max(evidence.usual),
            limit => limit - limit.saturating_sub(age) / 4,
        };
        self.limit.store(lower, Ordering::Relaxed);
        Evicted::Some
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    fn recall(sent: u32, age: u32) -> Recall {
        Recall { sent, held: sent, age }
    }

    #[test]
    fn the_limit_of_a_cache_is_learnt_from_what_it_has_evicted() {
        let cache = Cache::default();
        assert!(cache.holds(u32::MAX - 1));
        assert_eq!(cache.learn(recall(100, 5000), 0), Evicted::Some);
        assert_eq!(cache.limit(), Some(5000));
        for _ in 0..40 {
            cache.learn(recall(100, 2000), 0);
            cache.learn(recall(100, 1000), 100);
        }
        let limit = cache.limit().unwrap();
        assert!((1000..2100).contains(&limit), "{limit}");
    }

    #[test]
    fn an_lru_cache_of_any_size_is_learnt() {
        let mut rng = StdRng::seed_from_u64(1);
        for room in [100usize, 1000, 10_000] {
            let cache = Cache::default();
            // Prompts of ten blocks, in a cache without blocks that several prompts share.
            let mut held = VecDeque::new();
            let mut stamps = std::collections::HashMap::new();
            for _ in 0..20_000 {
                let prompt: u32 = rng.random_range(0..(room as u32 / 3));
                let there = held.iter().rev().any(|other| *other == prompt);
                if let Some(stamp) = stamps.get(&prompt) {
                    let age = cache.age(*stamp);
                    let lost = cache.learn(recall(10, age), if there { 10 } else { 0 });
                    assert_ne!(lost, Evicted::All, "room for {room} blocks");
                }
                held.retain(|other| *other != prompt);
                held.push_back(prompt);
                if held.len() > room / 10 {
                    held.pop_front();
                }
                stamps.insert(prompt, cache.stamp());
                cache.fill(if there { 0 } else { 10 });
            }
            let limit = cache.limit().unwrap() as usize;
            assert!((room / 4..=room + room / 10).contains(&limit), "{limit} of {room}");
        }
    }

    #[test]
    fn three_prompts_that_a_proven_cache_would_hold_mean_that_it_is_lost() {
        let cache = Cache::default();
        for _ in 0..20 {
            assert_eq!(cache.learn(recall(100, 500), 100), Evicted::Nothing);
        }
        let lost: Vec<_> = (0..3).map(|_| cache.learn(recall(100, 300), 3)).collect();
        assert_eq!(lost, [Evicted::Some, Evicted::Some, Evicted::All]);
    }

    #[test]
    fn a_worker_without_a_cache_is_taken_for_cold_once() {
        let cache = Cache::default();
        let seen: Vec<_> = (0..9).map(|_| cache.learn(recall(100, 300), 0)).collect();
        let count = seen.iter().filter(|evicted| **evicted == Evicted::All).count();
        assert_eq!((seen[2], count), (Evicted::All, 1), "{seen:?}");
    }

    #[test]
    fn a_full_cache_is_not_taken_for_lost() {
        let cache = Cache::default();
        for _ in 0..20 {
            cache.learn(recall(100, 500), 100);
        }
        for _ in 0..100 {
            assert_eq!(cache.learn(recall(100, 900), 0), Evicted::Some, "too old");
            assert_eq!(cache.learn(recall(100, 400), 60), Evicted::Some, "evicted in part");
        }
        assert!(cache.holds(100) && !cache.holds(900));
    }
}
