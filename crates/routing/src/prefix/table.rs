//! One shard of the index: a set-associative table.
//!
//! A key belongs into one of two neighbouring sets of 16 places, the emptier one when it comes. The keys of a set lie
//! together in two cache lines, so that a look-up that finds nothing reads four lines in a row and one that finds its
//! key reads one line more. Two full sets give up the oldest of their 32 entries, which is LRU by sample without a list
//! to keep; a client who crafts colliding prompts wears out two sets and nothing else, since no chain can grow. The
//! choice of two keeps sets from overflowing early: with four places in five taken, about one entry in a thousand goes
//! before the table is at its bound. The table begins small and doubles up to that.

use std::sync::atomic::{AtomicU32, Ordering};

use super::workers::Handle;

/// Places in a set.
pub(super) const WAYS: usize = 16;
/// WorkerHandles that an entry remembers.
pub(super) const WORKERS: usize = 4;
/// Sets that a table begins with, if it is allowed as many.
const FIRST_SETS: usize = 8;

/// What is known of one prefix.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// The number of the prefix one block shorter, 0 for the first block.
    pub(super) parent: u64,
    /// Who has served it, newest first; free places are [`Handle::NONE`].
    pub(super) workers: [Handle; WORKERS],
    /// Tick of the last use: an atomic, so that a look-up needs no more than a read lock.
    pub(super) touched: AtomicU32,
    /// How many blocks the prefix has.
    pub(super) depth: u16,
}

impl Entry {
    /// Ticks since the last use. Signed, for another thread may have touched it with a younger clock.
    fn age(&self, tick: u32) -> i32 {
        tick.wrapping_sub(self.touched.load(Ordering::Relaxed)).cast_signed()
    }
}

/// A bounded map from key to [`Entry`]. Key 0 is not allowed: it marks a free place.
#[derive(Debug)]
pub(super) struct Table {
    keys: Vec<[u64; WAYS]>,
    entries: Vec<[Entry; WAYS]>,
    live: usize,
    max_entries: usize,
    max_sets: usize,
}

/// What became of the entry that had to go for a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InsertOutcome {
    /// Nothing had to go.
    Free,
    /// An entry whose workers are all forgotten.
    Swept,
    /// The least recently used one, so many ticks old.
    Evicted(i32),
    /// The bound is 0: nothing is kept.
    None,
}

impl Table {
    /// An empty table for `max_entries`. A quarter more places than that keep sets from filling up long before.
    pub(super) fn new(max_entries: usize) -> Self {
        let max_sets = (max_entries + max_entries / 4).div_ceil(WAYS).max(1);
        let mut table =
            Self { keys: Vec::new(), entries: Vec::new(), live: 0, max_entries, max_sets };
        if max_entries > 0 {
            table.make_sets(max_sets.min(FIRST_SETS));
        }
        table
    }

    /// Entries in it.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// Sets that it has now.
    pub(super) fn sets(&self) -> usize {
        self.keys.len()
    }

    /// Bytes that it holds, used or not.
    pub(super) fn bytes(&self) -> usize {
        self.keys.capacity() * size_of::<[u64; WAYS]>()
            + self.entries.capacity() * size_of::<[Entry; WAYS]>()
    }

    /// The entry of `key`.
    pub(super) fn find(&self, key: u64) -> Option<&Entry> {
        let (set, way) = self.place_of(key)?;
        Some(&self.entries[set][way])
    }

    /// The entry of `key`, to be changed.
    pub(super) fn find_mut(&mut self, key: u64) -> Option<&mut Entry> {
        let (set, way) = self.place_of(key)?;
        Some(&mut self.entries[set][way])
    }

    /// Adds an entry that is not there yet.
    pub(super) fn insert(
        &mut self,
        key: u64,
        entry: Entry,
        tick: u32,
        alive: impl Fn(Handle) -> bool,
    ) -> InsertOutcome {
        debug_assert!(self.place_of(key).is_none(), "a key is inserted once");
        if self.max_entries == 0 {
            return InsertOutcome::None;
        }
        if self.sets() < self.max_sets && (self.live + 1) * 4 > self.sets() * WAYS * 3 {
            self.grow();
        }
        let free = self.free_place(key).filter(|_| self.live < self.max_entries);
        let ((set, way), room) = match free {
            Some(place) => (place, InsertOutcome::Free),
            None => {
                let first = self.sets_of(key)[0];
                // At the bound these two may be empty; then whoever comes next pays.
                let victim = (first..first + self.sets())
                    .step_by(2)
                    .find_map(|at| self.oldest(at, tick, &alive))
                    .expect("a table that is full or at its bound has an entry");
                let room = self.remove(victim, tick, &alive);
                (self.free_place(key).unwrap_or(victim), room)
            }
        };
        self.keys[set][way] = key;
        self.entries[set][way] = entry;
        self.live += 1;
        room
    }

    /// Removes what is dead from one set: dead handles from entries, and entries without a living one. How many entries
    /// that was.
    pub(super) fn sweep(&mut self, set: usize, alive: impl Fn(Handle) -> bool) -> usize {
        let mut removed = 0;
        for way in 0..WAYS {
            if self.keys[set][way] == 0 {
                continue;
            }
            let entry = &mut self.entries[set][way];
            let mut kept = [Handle::NONE; WORKERS];
            let living = entry.workers.iter().copied().filter(|handle| alive(*handle));
            for (place, handle) in kept.iter_mut().zip(living) {
                *place = handle;
            }
            entry.workers = kept;
            if kept[0] == Handle::NONE {
                self.keys[set][way] = 0;
                self.live -= 1;
                removed += 1;
            }
        }
        removed
    }

    /// The two sets that `key` may lie in, the same one twice if there is no other. Keys are hashes: their lower half,
    /// scaled, is as good as a division. (The upper bits have chosen the shard.)
    fn sets_of(&self, key: u64) -> [usize; 2] {
        let first = (((key & 0xffff_ffff) * self.sets() as u64) >> 32) as usize;
        [first, (first + 1) % self.sets()]
    }

    fn place_of(&self, key: u64) -> Option<(usize, usize)> {
        if self.keys.is_empty() {
            return None;
        }
        self.sets_of(key).into_iter().find_map(|set| {
            let way = self.keys[set].iter().position(|k| *k == key)?;
            Some((set, way))
        })
    }

    /// A free place for `key` in the emptier of its sets.
    fn free_place(&self, key: u64) -> Option<(usize, usize)> {
        let taken = |set: &usize| self.keys[*set].iter().filter(|k| **k != 0).count();
        let set = self.sets_of(key).into_iter().min_by_key(taken)?;
        let way = self.keys[set].iter().position(|k| *k == 0)?;
        Some((set, way))
    }

    /// Place of the first dead or else the oldest entry in the sets `first` and the next. Among equals the deepest: an
    /// ancestor outlives its descendants.
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
                if !entry.workers.iter().any(|handle| alive(*handle)) {
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
        let room = if entry.workers.iter().any(|handle| alive(*handle)) {
            InsertOutcome::Evicted(entry.age(tick))
        } else {
            InsertOutcome::Swept
        };
        self.keys[set][way] = 0;
        self.live -= 1;
        room
    }

    fn make_sets(&mut self, sets: usize) {
        self.keys = vec![[0; WAYS]; sets];
        self.entries = std::iter::repeat_with(Default::default).take(sets).collect();
    }

    /// Twice the sets, or as many as are allowed. What does not fit, hardly ever anything, is forgotten.
    fn grow(&mut self) {
        let old_keys = std::mem::take(&mut self.keys);
        let old_entries = std::mem::take(&mut self.entries);
        self.make_sets((old_keys.len() * 2).min(self.max_sets));
        self.live = 0;
        for (keys, entries) in old_keys.into_iter().zip(old_entries) {
            for (key, entry) in keys.into_iter().zip(entries).filter(|(key, _)| *key != 0) {
                if let Some((set, way)) = self.free_place(key) {
                    self.keys[set][way] = key;
                    self.entries[set][way] = entry;
                    self.live += 1;
                }
            }
        }
    }
}
