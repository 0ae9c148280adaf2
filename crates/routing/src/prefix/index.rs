//! The index: it maps the hash of a prefix to the workers that have served it. All threads of the data path share it.
//!
//! Keys are distributed over shards, each a bounded [`Table`] behind its own lock. Eviction takes deep prefixes first: they count
//! as a little older, and of two equally old entries the deeper one goes. Look-ups are in [`super::search`].

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use prometheus::IntCounter;
use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::Config;
use super::capacity::{Evicted, Recall};
use super::checkpoints::{self, Stored};
use super::table::{Entry, InsertOutcome, Table};
use super::workers::WorkerHandles;

/// Most shards: enough that threads rarely contend, few enough that the headers of all shards stay in the processor's cache.
const MAX_SHARDS: usize = 64;
/// Fewest entries that a shard is made for: the number of shards is the largest power of two that allows it.
const SHARD_ENTRIES: usize = 4096;
/// Sets that each insertion sweeps while entries may refer to forgotten workers.
const SWEEP_SETS: usize = 8;
/// One insertion in this many reports the whole prompt as unknown, so that the other routers get blocks in use again.
const REPUBLISH_EVERY: u32 = 64;
/// Prefixes deeper than this count as no older than their parent.
const BIAS_DEPTH: u32 = 64;
/// More prefixes than any prompt stores.
const MOST_STORED: usize = 4096;

/// The workers that have served each prompt prefix, for all models. The index is bounded and lossy.
pub struct Index {
    shards: Box<[RwLock<Table>]>,
    pub(super) workers: RwLock<WorkerHandles>,
    entries: AtomicUsize,
    bytes: AtomicUsize,
    /// Moving average of the age of evicted entries, in ticks; 0 until the first eviction.
    horizon: AtomicU32,
    /// Number of shards that remain to be swept before no entry refers to a forgotten worker.
    unswept: AtomicUsize,
    sweeper: Mutex<Sweeper>,
    /// Number of prompts inserted by this router.
    inserts: AtomicU32,
    pub(super) counters: Counters,
}

/// The prefixes of a prompt that the other routers should learn of.
#[derive(Debug, Clone, Copy)]
pub struct Unshared<'a> {
    stored: Stored<'a>,
    known: usize,
}

impl Unshared<'_> {
    /// The hash of the prefix before them; 0 if they begin with the shortest one.
    #[must_use]
    pub fn parent(&self) -> u64 {
        self.stored.key(self.known)
    }

    /// Their hashes, shortest prefix first.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = u64> {
        self.stored.keys_behind(self.known)
    }
}

/// The next set to sweep.
#[derive(Debug, Default)]
struct Sweeper {
    shard: usize,
    set: usize,
}

impl Index {
    /// An empty index.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let wanted = (config.max_entries / SHARD_ENTRIES).clamp(1, MAX_SHARDS);
        // The count is a power of two, so that a rotation and a mask choose the shard. The shards' bounds add up to the index's.
        let count = 1 << wanted.ilog2();
        let shards: Box<[_]> = (0..count)
            .map(|at| {
                let more = usize::from(at < config.max_entries % count);
                RwLock::new(Table::new(config.max_entries / count + more))
            })
            .collect();
        let bytes = shards.iter().map(|shard| shard.read().bytes()).sum();
        Self {
            shards,
            workers: RwLock::default(),
            entries: AtomicUsize::new(0),
            bytes: AtomicUsize::new(bytes),
            horizon: AtomicU32::new(0),
            unswept: AtomicUsize::new(0),
            sweeper: Mutex::default(),
            inserts: AtomicU32::new(0),
            counters: Counters::new(),
        }
    }

    /// Records that `worker` was sent the prompt `blocks`. Returns the prefixes that the other routers should learn of: those that
    /// the worker's cache was not known to hold. One call in `REPUBLISH_EVERY` returns the whole prompt.
    pub fn insert<'a>(&self, blocks: &'a [u64], worker: WorkerId, now: Now) -> Unshared<'a> {
        let stored = Stored::new(blocks);
        let held =
            self.insert_below(0, 0, stored.keys_behind(0), |at| stored.depth(at), worker, now);
        let again = self.inserts.fetch_add(1, Ordering::Relaxed).is_multiple_of(REPUBLISH_EVERY);
        let known = if again { 0 } else { held };
        Unshared { stored, known }
    }

    /// Records the report of another router that `worker` was sent a prompt with these stored prefixes. `parent` is the prefix
    /// before the first one; 0: the first one is the head of the prompt. The parent need not be known: it may have been evicted,
    /// or its report may follow. What is known of the prompt before the parent was used too.
    pub fn insert_remote(&self, parent: u64, keys: &[u64], worker: WorkerId, now: Now) {
        let above = match parent {
            0 => 0,
            parent => self.shard(parent).read().find(parent).map_or(1, |entry| entry.depth.into()),
        };
        self.touch_ancestors(parent, worker, now);
        // The depth of the prefixes behind a last checkpoint is not known here: they count as checkpoints, so the fill of the
        // worker's cache is somewhat too high after prompts of more than 128 KiB.
        self.insert_below(parent, above, keys.iter().copied(), checkpoints::depth_of, worker, now);
    }

    /// Marks the prefix with the hash `key`, and all shorter ones, as used by `worker`.
    fn touch_ancestors(&self, mut key: u64, worker: WorkerId, now: Now) {
        let workers = self.workers.read();
        let Some(handle) = workers.handle(worker) else { return };
        let Some((_, cache)) = workers.cache_of(handle) else { return };
        let (stamp, tick) = (cache.stamp(), tick(now));
        // Hashes that collide might form a circle.
        for _ in 0..MOST_STORED {
            let shard = self.shard(key).read();
            let Some(entry) = shard.find(key) else { return };
            if let Some(holder) = entry.holders.iter().find(|holder| holder.handle == handle) {
                holder.stamp.store(stamp, Ordering::Relaxed);
            }
            entry.touched.store(self.touch(tick, usize::from(entry.depth)), Ordering::Relaxed);
            key = entry.parent;
        }
    }

    /// Inserts the prefixes `keys`, which follow the one with the hash `parent` at the position `above`. `depth_at` gives the number
    /// of blocks of the prefix at a position. Returns the position of the last of them, from the first one on, that the worker's
    /// cache was expected to hold.
    fn insert_below(
        &self,
        parent: u64,
        above: usize,
        keys: impl ExactSizeIterator<Item = u64>,
        depth_at: impl Fn(usize) -> usize,
        worker: WorkerId,
        now: Now,
    ) -> usize {
        let count = keys.len();
        if count == 0 {
            return 0;
        }
        let known = self.workers.read().handle(worker);
        let Some(handle) = known.or_else(|| self.workers.write().get_or_assign(worker)) else {
            return 0;
        };
        let workers = self.workers.read();
        let Some((_, cache)) = workers.cache_of(handle) else { return 0 };
        let is_alive = |other| workers.id_of(other).is_some();
        let (tick, stamp) = (tick(now), cache.stamp());
        let mut parent = parent;
        let mut maybe_known = true;
        let mut held = above;
        for (position, key) in (above + 1..).zip(keys) {
            let touched = self.touch(tick, position);
            let mut holds = |before: Option<u32>| {
                let is_held = before.is_some_and(|before| cache.holds(stamp.wrapping_sub(before)));
                held += usize::from(is_held && held + 1 == position);
            };
            if maybe_known {
                // The head of most prompts is known with this worker as its newest: then a read lock is enough.
                let shard = self.shard(key).read();
                let entry = shard.find(key).filter(|entry| entry.parent == parent);
                if let Some(entry) = entry.filter(|entry| entry.holders[0].handle == handle) {
                    entry.touched.store(touched, Ordering::Relaxed);
                    entry.count_prompt();
                    holds(Some(entry.holders[0].stamp.swap(stamp, Ordering::Relaxed)));
                    parent = key;
                    continue;
                }
                maybe_known = entry.is_some();
            }
            let mut shard = self.shard(key).write();
            match shard.find_mut(key) {
                Some(entry) => {
                    if entry.parent != parent {
                        // Two prefixes have the same hash: the newer one replaces the older one.
                        (entry.parent, entry.holders) = (parent, Default::default());
                    }
                    holds(entry.stamp_of(handle));
                    entry.put_first(handle, stamp, is_alive);
                    entry.touched.store(touched, Ordering::Relaxed);
                    entry.count_prompt();
                }
                None => {
                    let mut entry = Entry {
                        parent,
                        touched: AtomicU32::new(touched),
                        depth: u16::try_from(position).unwrap_or(u16::MAX),
                        ..Entry::default()
                    };
                    entry.put_first(handle, stamp, is_alive);
                    entry.count_prompt();
                    let before = (shard.len(), shard.bytes());
                    let outcome = shard.insert(key, entry, tick, is_alive);
                    self.account(outcome, before, (shard.len(), shard.bytes()));
                }
            }
            parent = key;
        }
        cache.fill(depth_at(above + count) - depth_at(held));
        drop(workers);
        if self.unswept.load(Ordering::Relaxed) > 0 {
            self.sweep(SWEEP_SETS);
        }
        held - above
    }

    /// Learns from a worker's report how much of a prompt, of which `recall` was known before it was sent, was in its cache.
    pub fn learn_cached(&self, worker: WorkerId, recall: Recall, cached_blocks: u32) -> Evicted {
        let workers = self.workers.read();
        let cache = workers.handle(worker).and_then(|handle| workers.cache_of(handle));
        cache.map_or(Evicted::Nothing, |(_, cache)| cache.learn(recall, cached_blocks))
    }

    /// The number of blocks that fit into a worker's cache, as far as it was learnt; `None`: nothing is known.
    #[must_use]
    pub fn capacity(&self, worker: WorkerId) -> Option<u32> {
        let workers = self.workers.read();
        workers.handle(worker).and_then(|handle| workers.cache_of(handle))?.1.limit()
    }

    /// Forgets the prefixes of `worker`. Look-ups ignore it at once; its entries are freed step by step.
    pub fn forget(&self, worker: WorkerId) {
        if self.workers.write().forget(worker) {
            // One more than the number of shards, because the current shard was swept in part before this call.
            self.unswept.store(self.shards.len() + 1, Ordering::Relaxed);
        }
    }

    /// Removes the entries of forgotten workers from the next `sets` sets of 16 entries, if there may be any. Returns the number
    /// of removed entries. Insertions sweep too, so no caller has to.
    pub fn sweep(&self, sets: usize) -> usize {
        let Some(mut at) = self.sweeper.try_lock() else { return 0 };
        let workers = self.workers.read();
        let mut left = sets;
        let mut removed = 0;
        while left > 0 && self.unswept.load(Ordering::Relaxed) > 0 {
            let mut shard = self.shards[at.shard].write();
            let end = shard.sets().min(at.set.saturating_add(left));
            for set in at.set..end {
                removed += shard.sweep(set, |handle| workers.id_of(handle).is_some());
            }
            left -= end.saturating_sub(at.set).clamp(1, left);
            at.set = end;
            if end == shard.sets() {
                *at = Sweeper { shard: (at.shard + 1) % self.shards.len(), set: 0 };
                self.unswept.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.entries.fetch_sub(removed, Ordering::Relaxed);
        removed
    }

    /// Number of remembered prefixes. Those of forgotten workers count until they are swept.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// Memory that the tables have allocated, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Number of look-ups that found a match of at least one block.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.counters.hits.get()
    }

    /// Number of look-ups that found no match.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.counters.misses.get()
    }

    /// Number of entries that were evicted for newer ones.
    #[must_use]
    pub fn evictions(&self) -> u64 {
        self.counters.evictions.get()
    }

    #[cfg(test)]
    pub(super) fn shards_hold(&self, key: u64) -> bool {
        self.shard(key).read().find(key).is_some()
    }

    #[cfg(test)]
    pub(super) fn count_by_hand(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn shard(&self, key: u64) -> &RwLock<Table> {
        // The topmost bits choose the shard; the table uses the lowest.
        let bits = self.shards.len().ilog2();
        &self.shards[(key.rotate_left(bits) as usize) & (self.shards.len() - 1)]
    }

    /// The tick that marks a prefix at position `depth` as used now. Deep ones are marked up to a quarter of the horizon in the past, so
    /// that an unused path is evicted from its end.
    pub(super) fn touch(&self, tick: u32, depth: usize) -> u32 {
        let depth = u32::try_from(depth).unwrap_or(BIAS_DEPTH).min(BIAS_DEPTH);
        let bias = u64::from(self.horizon.load(Ordering::Relaxed)) * u64::from(depth);
        tick.wrapping_sub((bias / u64::from(4 * BIAS_DEPTH)) as u32)
    }

    /// Updates the counts after an insertion that changed (entries, bytes) of a shard. The caller holds the shard's lock, so
    /// that no entry is subtracted before it was added.
    fn account(&self, outcome: InsertOutcome, before: (usize, usize), after: (usize, usize)) {
        self.entries.fetch_add(after.0.saturating_sub(before.0), Ordering::Relaxed);
        self.entries.fetch_sub(before.0.saturating_sub(after.0), Ordering::Relaxed);
        self.bytes.fetch_add(after.1.saturating_sub(before.1), Ordering::Relaxed);
        match outcome {
            InsertOutcome::Free | InsertOutcome::Swept | InsertOutcome::None => {}
            InsertOutcome::Evicted(age) => {
                self.counters.evictions.inc();
                // A moving average: a concurrent update may get lost, which does no harm.
                let horizon = i64::from(self.horizon.load(Ordering::Relaxed));
                let moved = horizon + (i64::from(age.max(0)) - horizon) / 16;
                self.horizon.store(u32::try_from(moved).unwrap_or(0), Ordering::Relaxed);
            }
        }
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("entries", &self.entries())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// Counters since the start of the process.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) hits: IntCounter,
    pub(super) misses: IntCounter,
    evictions: IntCounter,
}

impl Counters {
    fn new() -> Self {
        let counter = |name, help| IntCounter::new(name, help).expect("a well-formed name");
        Self {
            hits: counter(
                "smg_prefix_hits_total",
                "Prompts of which at least the first block was in the radix routing tree.",
            ),
            misses: counter(
                "smg_prefix_misses_total",
                "Prompts of which no block was in the radix routing tree.",
            ),
            evictions: counter(
                "smg_prefix_evictions_total",
                "Prompt blocks that were evicted from the radix routing tree for newer ones.",
            ),
        }
    }

    pub(super) fn all(&self) -> [&IntCounter; 3] {
        [&self.hits, &self.misses, &self.evictions]
    }
}

/// The monotonic clock in steps of 17 ms. It wraps after 834 days, so ages up to half of that are right.
pub(super) fn tick(now: Now) -> u32 {
    (now.mono_nanos() >> 24) as u32
}
