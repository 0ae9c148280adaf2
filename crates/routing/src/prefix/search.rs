//! Look-ups in the index.
//!
//! A look-up takes read locks only, one at a time, and finds the longest match by bisecting the depth. Bisecting assumes that each
//! shorter prefix of a known prefix is known too. A sent prompt inserts all its prefixes, so this mostly holds. It fails where a
//! shorter prefix was evicted all the same, and where more workers share a short prefix than an entry remembers. Then the look-up
//! may find a shorter match than the longest; the next insertion of the prompt restores the path.

use std::sync::atomic::Ordering;

use smallvec::SmallVec;
use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::capacity::{Cache, Recall};
use super::checkpoints::Stored;
use super::index::{Index, tick};
use super::table::WORKERS;
use super::workers::{Handle, WorkerHandles};

/// The longest known prefix of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Length of the prefix in blocks, at least 1.
    pub depth: usize,
    /// The fit workers that have served the prefix, newest first; at least one.
    pub workers: SmallVec<[WorkerId; WORKERS]>,
    /// The position of the prefix among those that are stored.
    position: usize,
}

/// What is known of a prompt.
#[derive(Debug, Clone, Default)]
pub struct Recalls {
    /// What is known of it on each of the workers with the longest prefixes.
    pub workers: SmallVec<[(WorkerId, Recall); 8]>,
    /// Whether different prompts have had the longest known prefix, as prompts with one system prompt do. The longest prefix of
    /// a conversation is its own.
    pub is_shared: bool,
}

/// Most bisections of one look-up for the prefixes that different workers have served.
const MOST_ROUNDS: usize = 4;

/// The workers of one entry, with the fill of their caches when they last served its prefix.
type Holders = [(Handle, u32); WORKERS];

impl Index {
    /// The longest prefix of the prompt `blocks` that a fit worker has served. `used`: the time, if the prompt is about to be sent:
    /// then a hit or a miss is counted, and the prefix counts as used. Otherwise the look-up changes nothing.
    pub fn longest(
        &self,
        blocks: &[u64],
        used: impl Into<Option<Now>>,
        fit: impl Fn(WorkerId) -> bool,
    ) -> Option<Match> {
        let used = used.into();
        let workers = self.workers.read();
        let found = self.deepest_fit(&workers, blocks, &fit);
        if used.is_some() {
            self.count(found.is_some());
        }
        let (stored, position, workers) = found?;
        self.visit(stored.key(position), used, position);
        Some(Match { depth: stored.depth(position), workers, position })
    }

    /// The longest prefix shorter than that of `found` that a fit worker has served, for a caller that can't use the workers of
    /// [`Index::longest`]. Counts neither a hit nor a miss.
    pub fn shorter(
        &self,
        blocks: &[u64],
        found: &Match,
        fit: impl Fn(WorkerId) -> bool,
    ) -> Option<Match> {
        let workers = self.workers.read();
        let stored = Stored::new(blocks);
        let below = (found.position - 1).min(stored.len());
        let fitting = |position| fitting(&workers, self.holders(stored, position)?, &fit);
        deepest(0, below, fitting).map(|(position, workers)| Match {
            depth: stored.depth(position),
            workers,
            position,
        })
    }

    /// What each fit worker was sent of the prompt `blocks` and is expected to hold, for the workers with the longest prefixes.
    /// `used` is as in [`Index::longest`].
    pub fn recalls(
        &self,
        blocks: &[u64],
        used: impl Into<Option<Now>>,
        fit: impl Fn(WorkerId) -> bool,
    ) -> Recalls {
        let used = used.into();
        let workers = self.workers.read();
        let mut recalls = Recalls::default();
        let found = self.deepest_fit(&workers, blocks, &fit);
        if used.is_some() {
            self.count(found.is_some());
        }
        let Some((stored, position, _)) = found else { return recalls };
        recalls.is_shared = self.visit(stored.key(position), used, position) > 1;
        let found = &mut recalls.workers;
        let mut at = Some(position);
        for _ in 0..MOST_ROUNDS {
            let Some(position) = at else { break };
            let before = found.len();
            for (handle, stamp) in self.holders(stored, position).unwrap_or_default() {
                let Some((worker, cache)) = workers.cache_of(handle).filter(|(w, _)| fit(*w))
                else {
                    continue;
                };
                if found[..before].iter().all(|(other, _)| *other != worker) {
                    found.push((worker, self.recall(stored, position, handle, stamp, cache)));
                }
            }
            let is_new = |worker| fit(worker) && found.iter().all(|(w, _)| *w != worker);
            let fitting = |at| fitting(&workers, self.holders(stored, at)?, &is_new);
            at = deepest(0, position - 1, fitting).map(|(position, _)| position);
        }
        recalls
    }

    /// What the worker with this handle holds of the prefix at `position`, which it was sent when its cache had the fill `stamp`.
    fn recall(
        &self,
        stored: Stored<'_>,
        position: usize,
        handle: Handle,
        stamp: u32,
        cache: &Cache,
    ) -> Recall {
        let age = cache.age(stamp);
        let blocks = |position| u32::try_from(stored.depth(position)).unwrap_or(u32::MAX);
        let sent = blocks(position);
        if cache.holds(age) {
            return Recall { sent, held: sent, age };
        }
        // A shorter prefix may have been used later.
        let is_held = |at| {
            let shard = self.shard(stored.key(at)).read();
            let stamp = shard.find(stored.key(at))?.stamp_of(handle)?;
            cache.holds(cache.age(stamp)).then_some(())
        };
        let held = deepest(0, position - 1, is_held).map_or(0, |(at, ())| blocks(at));
        Recall { sent, held, age }
    }

    /// The longest stored prefix that a fit worker has served: the prefixes among which it is, its position, and the workers.
    fn deepest_fit<'a>(
        &self,
        workers: &WorkerHandles,
        blocks: &'a [u64],
        fit: &impl Fn(WorkerId) -> bool,
    ) -> Option<(Stored<'a>, usize, SmallVec<[WorkerId; WORKERS]>)> {
        let stored = Stored::new(blocks);
        // Most prompts without a match do not even match in their first block.
        let first = self.holders(stored, 1)?;
        // The first bisection tests only whether a prefix is known, without looking at its workers.
        let (mut deep, mut holders) =
            deepest(1, stored.checkpoints(), |at| self.holders(stored, at)).unwrap_or((1, first));
        let stored = stored.up_to(deep);
        if stored.len() > deep {
            let behind = deepest(deep, stored.len(), |at| self.holders(stored, at));
            (deep, holders) = behind.unwrap_or((deep, holders));
        }
        if let Some(workers) = fitting(workers, holders, fit) {
            return Some((stored, deep, workers));
        }
        let fitting = |at| fitting(workers, self.holders(stored, at)?, fit);
        deepest(0, deep - 1, fitting).map(|(at, workers)| (stored, at, workers))
    }

    /// The workers of the stored prefix at `position`, if that prefix is known.
    fn holders(&self, stored: Stored<'_>, position: usize) -> Option<Holders> {
        if position > stored.len() {
            return None;
        }
        let (key, parent) = (stored.key(position), stored.key(position - 1));
        let shard = self.shard(key).read();
        // Comparing the parent too makes a match one of 128 bits.
        let entry = shard.find(key).filter(|entry| entry.parent == parent)?;
        Some(entry.holders.each_ref().map(|h| (h.handle, h.stamp.load(Ordering::Relaxed))))
    }

    /// The number of prompts that have had a prefix. It is marked as used if it is used now.
    fn visit(&self, key: u64, used: Option<Now>, position: usize) -> u16 {
        let shard = self.shard(key).read();
        let Some(entry) = shard.find(key) else { return 0 };
        if let Some(now) = used {
            entry.touched.store(self.touch(tick(now), position), Ordering::Relaxed);
        }
        entry.prompts.load(Ordering::Relaxed)
    }

    fn count(&self, is_hit: bool) {
        if is_hit { self.counters.hits.inc() } else { self.counters.misses.inc() }
    }
}

/// Bisects for the largest number in `known + 1..=most` for which `probe` returns a value, and returns both. It assumes that
/// `probe` returns a value for each smaller number too.
fn deepest<T>(
    known: usize,
    most: usize,
    mut probe: impl FnMut(usize) -> Option<T>,
) -> Option<(usize, T)> {
    let (mut low, mut high) = (known, most);
    let mut best = None;
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        match probe(middle) {
            Some(found) => {
                best = Some((middle, found));
                low = middle;
            }
            None => high = middle - 1,
        }
    }
    best
}

/// The workers of `holders` that are known and fit; `None` if there are none.
fn fitting(
    workers: &WorkerHandles,
    holders: Holders,
    fit: &impl Fn(WorkerId) -> bool,
) -> Option<SmallVec<[WorkerId; WORKERS]>> {
    let found: SmallVec<_> =
        holders.iter().filter_map(|(h, _)| workers.id_of(*h)).filter(|w| fit(*w)).collect();
    (!found.is_empty()).then_some(found)
}
