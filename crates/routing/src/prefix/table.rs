//! One shard of the index: a set-associative table.
//!
//! A key may lie in two neighbouring sets of 16 slots; a new key goes to the emptier one. The keys of a set fill two cache
//! lines, so a look-up reads four lines in a row, and one more if it finds its key. If both sets are full, the oldest of their 32
//! entries is evicted: an approximation of LRU that needs no list. A client that crafts colliding prompts can only fill two sets,
//! because no chain can grow.
//!
//! The choice of two sets keeps a set from overflowing early: with four slots in five taken, about one entry in a thousand is
//! evicted before the table has reached its bound. The table begins small and doubles up to its bound.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use super::workers::Handle;

/// Slots in a set.
pub(super) const WAYS: usize = 16;
/// Workers that an entry remembers.
pub(super) const WORKERS: usize = 4;
/// Sets of a new table, unless its bound is lower.
const FIRST_SETS: usize = 8;

/// The workers that have served one prefix.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// The hash of the next shorter prefix that is stored; 0 for the shortest one.
    pub(super) parent: u64,
    /// The workers that have served the prefix, newest first; unused elements have the default handle.
    pub(super) holders: [Holder; WORKERS],
    /// Tick of the last use. It is atomic, so that a look-up needs only a read lock.
    pub(super) touched: AtomicU32,
    /// The position of the prefix among those of its prompt that are stored, from 1 on.
    pub(super) depth: u16,
    /// Number of prompts that have had the prefix; it stops at the largest number.
    pub(super) prompts: AtomicU16,
}

/// A worker that has served a prefix.
#[derive(Debug, Default)]
pub(super) struct Holder {
    pub(super) handle: Handle,
    /// The fill of the worker's cache when it last served the prefix. It is atomic for the same reason as [`Entry::touched`].
    pub(super) stamp: AtomicU32,
}

impl Entry {
    /// The stamp of the worker with this handle.
    pub(super) fn stamp_of(&self, handle: Handle) -> Option<u32> {
        let holder = self.holders.iter().find(|holder| holder.handle == handle)?;
        Some(holder.stamp.load(Ordering::Relaxed))
    }

    /// Notes that the worker with this handle has served the prefix now, and moves it to the front. A new one replaces one that
    /// is forgotten, else the oldest one.
    pub(super) fn put_first(&mut self, handle: Handle, stamp: u32, alive: impl Fn(Handle) -> bool) {
        let place = self
            .holders
            .iter()
            .position(|other| other.handle == handle)
            .or_else(|| self.holders.iter().position(|other| !alive(other.handle)))
            .unwrap_or(WORKERS - 1);
        self.holders[..=place].rotate_right(1);
        self.holders[0] = Holder { handle, stamp: AtomicU32::new(stamp) };
    }

    /// Counts a prompt that has the prefix.
    pub(super) fn count_prompt(&self) {
        let before = self.prompts.load(Ordering::Relaxed);
        // A lost update between two threads does no harm.
        self.prompts.store(before.saturating_add(1), Ordering::Relaxed);
    }

    fn is_served(&self, alive: &impl Fn(Handle) -> bool) -> bool {
        self.holders.iter().any(|holder| alive(holder.handle))
    }

    /// Ticks since the last use. Negative if another thread with a later clock has used the entry.
    fn age(&self, tick: u32) -> i32 {
        tick.wrapping_sub(self.touched.load(Ordering::Relaxed)).cast_signed()
    }
}

/// A bounded map from key to [`Entry`]. Key 0 is not allowed: it marks a free slot.
#[derive(Debug)]
pub(super) struct Table {
    keys: Vec<[u64; WAYS]>,
    entries: Vec<[Entry; WAYS]>,
    live: usize,
    max_entries: usize,
    max_sets: usize,
}

/// How an insertion found its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InsertOutcome {
    /// A slot was free.
    Free,
    /// An entry without living workers was replaced.
    Swept,
    /// The least recently used entry was evicted. Holds its age in ticks.
    Evicted(i32),
    /// The bound is 0, so the entry was not stored.
    None,
}

impl Table {
    /// An empty table for `max_entries`. It has a quarter more slots, so that few sets fill up before the bound is reached.
    pub(super) fn new(max_entries: usize) -> Self {
        let max_sets = (max_entries + max_entries / 4).div_ceil(WAYS).max(1);
        let mut table =
            Self { keys: Vec::new(), entries: Vec::new(), live: 0, max_entries, max_sets };
        if max_entries > 0 {
            table.make_sets(max_sets.min(FIRST_SETS));
        }
        table
    }

    /// The number of entries in the table.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// Number of sets at present.
    pub(super) fn sets(&self) -> usize {
        self.keys.len()
    }

    /// Memory that the table has allocated, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.keys.capacity() * size_of::<[u64; WAYS]>()
            + self.entries.capacity() * size_of::<[Entry; WAYS]>()
    }

    /// The entry of `key`.
    pub(super) fn find(&self, key: u64) -> Option<&Entry> {
        let (set, way) = self.slot_of(key)?;
        Some(&self.entries[set][way])
    }

    /// The entry of `key`, mutable.
    pub(super) fn find_mut(&mut self, key: u64) -> Option<&mut Entry> {
        let (set, way) = self.slot_of(key)?;
        Some(&mut self.entries[set][way])
    }

    /// Adds an entry whose key is not in the table. `alive` says whether a handle's worker is still known.
    pub(super) fn insert(
        &mut self,
        key: u64,
        entry: Entry,
        tick: u32,
        alive: impl Fn(Handle) -> bool,
    ) -> InsertOutcome {
        debug_assert!(self.slot_of(key).is_none(), "a key is inserted once");
        if self.max_entries == 0 {
            return InsertOutcome::None;
        }
        if self.sets() < self.max_sets && (self.live + 1) * 4 > self.sets() * WAYS * 3 {
            self.grow();
        }
        let free = self.free_slot(key).filter(|_| self.live < self.max_entries);
        let ((set, way), outcome) = match free {
            Some(place) => (place, InsertOutcome::Free),
            None => {
                let first = self.sets_of(key)[0];
                // If the table is at its bound, both sets may be empty: then the next pair with an entry evicts one.
                let victim = (first..first + self.sets())
                    .step_by(2)
                    .find_map(|at| self.oldest(at, tick, &alive))
                    .expect("a table that is full or at its bound has an entry");
                let outcome = self.remove(victim, tick, &alive);
                (self.free_slot(key).unwrap_or(victim), outcome)
            }
        };
        self.keys[set][way] = key;
        self.entries[set][way] = entry;
        self.live += 1;
        outcome
    }

    /// Removes dead handles from the entries of one set, and entries without a living handle. Returns the number of removed
    /// entries.
    pub(super) fn sweep(&mut self, set: usize, alive: impl Fn(Handle) -> bool) -> usize {
        let mut removed = 0;
        for way in 0..WAYS {
            if self.keys[set][way] == 0 {
                continue;
            }
            let entry = &mut self.entries[set][way];
            let mut kept = 0;
            for at in 0..WORKERS {
                if alive(entry.holders[at].handle) {
                    entry.holders.swap(kept, at);
                    kept += 1;
                }
            }
            entry.holders[kept..].fill_with(Holder::default);
            if kept == 0 {
                self.keys[set][way] = 0;
                self.live -= 1;
                removed += 1;
            }
        }
        removed
    }

    /// The two sets that `key` may lie in; a table of one set gives the same twice. Keys are hashes, so scaling their lower half
    /// replaces a division. The upper bits have chosen the shard.
    fn sets_of(&self, key: u64) -> [usize; 2] {
        let first = (((key & 0xffff_ffff) * self.sets() as u64) >> 32) as usize;
        [first, (first + 1) % self.sets()]
    }

    fn slot_of(&self, key: u64) -> Option<(usize, usize)> {
        if self.keys.is_empty() {
            return None;
        }
        self.sets_of(key).into_iter().find_map(|set| {
            let way = self.keys[set].iter().position(|k| *k == key)?;
            Some((set, way))
        })
    }

    /// A free slot for `key` in the emptier of its sets.
    fn free_slot(&self, key: u64) -> Option<(usize, usize)> {
        let taken = |set: &usize| self.keys[*set].iter().filter(|k| **k != 0).count();
        let set = self.sets_of(key).into_iter().min_by_key(taken)?;
        let way = self.keys[set].iter().position(|k| *k == 0)?;
        Some((set, way))
    }

    /// Finds the entry to replace in the sets `first` and the next one: the first entry without living workers, else the oldest
    /// one. Of equally old entries the deepest is taken, so that an ancestor outlives its descendants.
    fn oldest(
        &self,
        first: usize,
        tick: u32,
        alive: &impl Fn(Handle) -> bool,
    ) -> Option<(usize, usize)> {
        let mut oldest = None;
        for set in [first % self.sets(), (first + 1) % self.sets()] {
            for way in (0..WAYS).filter(|way| self.keys[set][*way] != 0) {
                let entry = &self.entries[set][way];
                if !entry.is_served(alive) {
                    return Some((set, way));
                }
                let rank = (entry.age(tick), entry.depth);
                if oldest.is_none_or(|(highest, _)| rank > highest) {
                    oldest = Some((rank, (set, way)));
                }
            }
        }
        oldest.map(|(_, place)| place)
    }

    fn remove(
        &mut self,
        (set, way): (usize, usize),
        tick: u32,
        alive: &impl Fn(Handle) -> bool,
    ) -> InsertOutcome {
        let entry = &self.entries[set][way];
        let outcome = if entry.is_served(alive) {
            InsertOutcome::Evicted(entry.age(tick))
        } else {
            InsertOutcome::Swept
        };
        self.keys[set][way] = 0;
        self.live -= 1;
        outcome
    }

    fn make_sets(&mut self, sets: usize) {
        self.keys = vec![[0; WAYS]; sets];
        self.entries = std::iter::repeat_with(Default::default).take(sets).collect();
    }

    /// Doubles the number of sets, up to the bound. An entry that does not fit, which is rare, is dropped.
    fn grow(&mut self) {
        let old_keys = std::mem::take(&mut self.keys);
        let old_entries = std::mem::take(&mut self.entries);
        self.make_sets((old_keys.len() * 2).min(self.max_sets));
        self.live = 0;
        for (keys, entries) in old_keys.into_iter().zip(old_entries) {
            for (key, entry) in keys.into_iter().zip(entries).filter(|(key, _)| *key != 0) {
                if let Some((set, way)) = self.free_slot(key) {
                    self.keys[set][way] = key;
                    self.entries[set][way] = entry;
                    self.live += 1;
                }
            }
        }
    }
}
