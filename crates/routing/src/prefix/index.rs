//! The index: it maps the hash of a prefix to the workers that have served it. All threads of the data path share it.
//!
//! Keys are distributed over shards, each a bounded [`Table`] behind its own lock. A look-up takes read locks only, one at a
//! time, and finds the longest match by bisecting the depth. Bisecting assumes that each shorter prefix of a known prefix is
//! known too. A sent prompt inserts all its blocks, so this mostly holds, and eviction takes deep blocks first: they count as a
//! little older, and of two equally old entries the deeper one goes. It fails where a shorter prefix was evicted all the same, and
//! where more workers share a short prefix than an entry remembers. Then the look-up may find a shorter match than the longest;
//! the next insertion of the prompt restores the path.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use prometheus::IntCounter;
use smallvec::SmallVec;
use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::table::{Entry, InsertOutcome, Table, WORKERS};
use super::workers::{Handle, WorkerHandles};
use super::{Config, MAX_BLOCKS};

/// Most shards: enough that threads rarely contend, few enough that the headers of all shards stay in the processor's cache.
const MAX_SHARDS: usize = 64;
/// Fewest entries that a shard is made for: the number of shards is the largest power of two that allows it.
const SHARD_ENTRIES: usize = 4096;
/// Sets that each insertion sweeps while entries may refer to forgotten workers.
const SWEEP_SETS: usize = 8;
/// One insertion in this many reports the whole prompt as unknown, so that the other routers get blocks in use again.
const REPUBLISH_EVERY: u32 = 64;
/// Blocks deeper than this count as no older than their parent.
const BIAS_DEPTH: u32 = 64;

/// The longest known prefix of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Length of the prefix in blocks, at least 1.
    pub depth: usize,
    /// The fit workers that have served the prefix, newest first; at least one.
    pub workers: SmallVec<[WorkerId; WORKERS]>,
}

/// The workers that have served each prompt prefix, for all models. The index is bounded and lossy.
pub struct Index {
    shards: Box<[RwLock<Table>]>,
    workers: RwLock<WorkerHandles>,
    entries: AtomicUsize,
    bytes: AtomicUsize,
    /// Moving average of the age of evicted entries, in ticks; 0 until the first eviction.
    horizon: AtomicU32,
    /// Number of shards that remain to be swept before no entry refers to a forgotten worker.
    unswept: AtomicUsize,
    sweeper: Mutex<Sweeper>,
    /// Number of prompts inserted by this router.
    inserts: AtomicU32,
    counters: Counters,
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

    /// The longest prefix of the prompt `blocks` that a fit worker has served. Counts a hit or a miss.
    pub fn longest(
        &self,
        blocks: &[u64],
        now: Now,
        fit: impl Fn(WorkerId) -> bool,
    ) -> Option<Match> {
        let found = self.search(blocks, now, fit);
        match found {
            Some(_) => self.counters.hits.inc(),
            None => self.counters.misses.inc(),
        }
        found
    }

    /// The longest prefix shorter than `depth` blocks that a fit worker has served, for a caller that can't use the workers of
    /// [`Index::longest`]. Counts neither a hit nor a miss.
    pub fn shorter(
        &self,
        blocks: &[u64],
        depth: usize,
        fit: impl Fn(WorkerId) -> bool,
    ) -> Option<Match> {
        let workers = self.workers.read();
        let below = depth.saturating_sub(1).min(blocks.len());
        deepest(0, below, |depth| fitting(&workers, self.handles(blocks, depth)?, &fit))
            .map(|(depth, workers)| Match { depth, workers })
    }

    /// Records that `worker` was sent the prompt `blocks`. Returns how many of them, from the head on, the index knew it to have
    /// been sent before. One call in `REPUBLISH_EVERY` returns 0, so that the caller publishes the whole prompt again.
    pub fn insert(&self, blocks: &[u64], worker: WorkerId, now: Now) -> usize {
        let known = self.insert_below(0, 0, blocks, worker, now);
        let again = self.inserts.fetch_add(1, Ordering::Relaxed).is_multiple_of(REPUBLISH_EVERY);
        if again { 0 } else { known }
    }

    /// Records the report of another router that `worker` was sent a prompt with these blocks. `parent` is the block before the
    /// first one; 0: the first one is the head of the prompt. The parent need not be known: it may have been evicted, or its
    /// report may follow.
    pub fn insert_remote(&self, parent: u64, blocks: &[u64], worker: WorkerId, now: Now) {
        let above = match parent {
            0 => 0,
            parent => self.shard(parent).read().find(parent).map_or(1, |entry| entry.depth.into()),
        };
        self.insert_below(parent, above, blocks, worker, now);
    }

    fn insert_below(
        &self,
        above: u64,
        depth: usize,
        blocks: &[u64],
        worker: WorkerId,
        now: Now,
    ) -> usize {
        if blocks.is_empty() {
            return 0;
        }
        let known = self.workers.read().handle(worker);
        let Some(handle) = known.or_else(|| self.workers.write().get_or_assign(worker)) else {
            return 0;
        };
        let workers = self.workers.read();
        let tick = tick(now);
        let mut parent = above;
        let mut maybe_known = true;
        // Number of blocks, from the head on, that the worker was known to have been sent.
        let mut sent = 0;
        for (at, &key) in (depth..MAX_BLOCKS).zip(blocks) {
            let stamp = self.stamp(tick, at + 1);
            if maybe_known {
                // The head of most prompts is known with this worker as its newest: then a read lock is enough.
                let shard = self.shard(key).read();
                let entry = shard.find(key).filter(|entry| entry.parent == parent);
                if let Some(entry) = entry.filter(|entry| entry.workers[0] == handle) {
                    entry.touched.store(stamp, Ordering::Relaxed);
                    parent = key;
                    sent += usize::from(sent == at - depth);
                    continue;
                }
                maybe_known = entry.is_some();
            }
            let mut shard = self.shard(key).write();
            match shard.find_mut(key) {
                Some(entry) => {
                    if entry.parent != parent {
                        // Two prefixes have the same hash: the newer one replaces the older one.
                        (entry.parent, entry.workers) = (parent, [Handle::NONE; WORKERS]);
                    }
                    sent += usize::from(sent == at - depth && entry.workers.contains(&handle));
                    put_first(&mut entry.workers, handle, |other| workers.id_of(other).is_some());
                    entry.touched.store(stamp, Ordering::Relaxed);
                }
                None => {
                    let entry = Entry {
                        parent,
                        workers: [handle, Handle::NONE, Handle::NONE, Handle::NONE],
                        touched: AtomicU32::new(stamp),
                        depth: (at + 1) as u16,
                    };
                    let before = (shard.len(), shard.bytes());
                    let outcome =
                        shard.insert(key, entry, tick, |other| workers.id_of(other).is_some());
                    self.account(outcome, before, (shard.len(), shard.bytes()));
                }
            }
            parent = key;
        }
        drop(workers);
        if self.unswept.load(Ordering::Relaxed) > 0 {
            self.sweep(SWEEP_SETS);
        }
        sent
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

    fn search(&self, blocks: &[u64], now: Now, fit: impl Fn(WorkerId) -> bool) -> Option<Match> {
        let workers = self.workers.read();
        // Most prompts without a match do not even match in their first block.
        let first = self.handles(blocks, 1)?;
        // The first bisection tests only whether a prefix is known, without looking at its workers.
        let (deep, handles) =
            deepest(1, blocks.len(), |depth| self.handles(blocks, depth)).unwrap_or((1, first));
        let at_deep = fitting(&workers, handles, &fit).map(|workers| (deep, workers));
        let (depth, workers) = at_deep.or_else(|| {
            deepest(0, deep - 1, |depth| fitting(&workers, self.handles(blocks, depth)?, &fit))
        })?;
        if let Some(entry) = self.shard(blocks[depth - 1]).read().find(blocks[depth - 1]) {
            entry.touched.store(self.stamp(tick(now), depth), Ordering::Relaxed);
        }
        Some(Match { depth, workers })
    }

    /// The handles of the prompt's prefix of `depth` blocks, if that prefix is known.
    fn handles(&self, blocks: &[u64], depth: usize) -> Option<[Handle; WORKERS]> {
        let key = *blocks.get(depth - 1)?;
        let parent = if depth == 1 { 0 } else { blocks[depth - 2] };
        let shard = self.shard(key).read();
        // Comparing the parent too makes a match one of 128 bits.
        shard.find(key).filter(|entry| entry.parent == parent).map(|entry| entry.workers)
    }

    fn shard(&self, key: u64) -> &RwLock<Table> {
        // The topmost bits choose the shard; the table uses the lowest.
        let bits = self.shards.len().ilog2();
        &self.shards[(key.rotate_left(bits) as usize) & (self.shards.len() - 1)]
    }

    /// The tick that marks a block at `depth` as used now. Deep blocks are marked up to a quarter of the horizon in the past, so
    /// that an unused path is evicted from its end.
    fn stamp(&self, tick: u32, depth: usize) -> u32 {
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
    hits: IntCounter,
    misses: IntCounter,
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
fn tick(now: Now) -> u32 {
    (now.mono_nanos() >> 24) as u32
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

/// The workers of `handles` that are known and fit; `None` if there are none.
fn fitting(
    workers: &WorkerHandles,
    handles: [Handle; WORKERS],
    fit: &impl Fn(WorkerId) -> bool,
) -> Option<SmallVec<[WorkerId; WORKERS]>> {
    let found: SmallVec<_> =
        handles.iter().filter_map(|h| workers.id_of(*h)).filter(|w| fit(*w)).collect();
    (!found.is_empty()).then_some(found)
}

/// Moves `handle` to the front. If it is new, it replaces a dead handle, else the oldest one.
fn put_first(workers: &mut [Handle; WORKERS], handle: Handle, alive: impl Fn(Handle) -> bool) {
    let place = workers
        .iter()
        .position(|other| *other == handle)
        .or_else(|| workers.iter().position(|other| !alive(*other)))
        .unwrap_or(WORKERS - 1);
    workers[..=place].rotate_right(1);
    workers[0] = handle;
}
