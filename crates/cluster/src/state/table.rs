//! A table: the rows of one store, and for each writer a log of its rows.
//!
//! Each row has one writer. A write replaces that writer's older row under the same key and appends the new row to the
//! writer's log. Memory therefore grows with the number of live keys and of recent removals, not with the number of
//! writes. The rows after version v are a range of the log; versions that are missing in it were overwritten.
//!
//! A write is named by a *dot*: its writer and its version. A row contains dots with their values, and *kills*, which name
//! dots that are dead. Most rows contain one dot, that of their own writer and version. A row may also carry dots of other
//! writers, so that a writer that has ended can be forgotten while its writes stay. A dot keeps its name in every row that
//! carries it, and a kill of the dot ends it in all of them. One rule decides which dots are live: **a dot that a node
//! covers and does not hold is dead**. A node covers a dot if it has applied the log of the dot's writer up to the dot.
//!
//! The rules in short; `docs/replication.md` gives the reason and the test of each. R2: a kill names all dots of one writer
//! up to a version, under the row's key. R3: the kills of a row stay when its writer writes the row again. R4: a row without
//! dots and kills is a tombstone, which relays keep too. R5: a kill of dots that are not covered yet waits in `pending`. R6:
//! a row of which all dots are dead, and that has no kills, is dropped without a tombstone. R7: a snapshot ends the dots that
//! its donor covers and does not hold, in all logs of the store. R8: a snapshot includes the waiting kills.

mod apply;
mod cell;
mod log;
mod not_applied;
mod parts;
mod range;
mod replica;
mod snapshot;
#[cfg(test)]
pub(crate) mod tests;
mod tombstones;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use smallvec::SmallVec;

use crate::crdt::Merge;
use crate::state::row::Blob;
use crate::state::store::Store;
use crate::state::table::cell::{Body, Cell, Dot, Row, fingerprint_of, has_value};
use crate::state::table::log::Log;
use crate::state::table::range::MergedRange;
use crate::state::writers::{Writer, Writers};

pub(crate) use apply::Applied;
pub use cell::BUCKETS;
pub use log::{BrokenInvariant, LogPosition};
pub use not_applied::NotAppliedReason;
pub use parts::NodeParts;
pub(crate) use range::{Mark, SavedKey, SnapshotRange};
pub use replica::Sizes;
pub(crate) use replica::{LogRange, Replica};
pub use write::RefusedRow;

/// Readers ignore a row when it has expired, but it is dropped this much later, because the clocks of nodes differ.
const EXPIRY_GRACE_MS: u64 = 60_000;
/// Most bytes of contents in quarantine that a table keeps.
const QUARANTINE_BYTES: usize = 1 << 20;
/// Most kills that wait for their dots.
const MAX_PENDING: usize = 65_536;

/// The rows of one store.
#[derive(Debug)]
pub struct Table<S: Store> {
    cells: BTreeMap<S::Key, Cell<S::Value>>,
    logs: BTreeMap<Writer, Log<S::Key>>,
    /// Kills of dots that are not covered yet, by the writer of the dots.
    pending: BTreeMap<Writer, BTreeMap<S::Key, u64>>,
    /// Ranges of snapshots whose donors covered more than the logs here do.
    merged_ranges: Vec<MergedRange<S::Key>>,
    /// When live writes expire (milliseconds of wall time), the writer of their row, and their key.
    expiries: BTreeSet<(u64, Writer, S::Key)>,
    quarantine: BTreeSet<(S::Key, Writer)>,
    quarantine_bytes: usize,
    /// For each writer, how many of its dots rows of other writers carry.
    carried: BTreeMap<Writer, usize>,
    /// The number of dots held, each counted once.
    dots: usize,
    bytes: usize,
    tombstones: usize,
    /// The combined hashes of all dots held, each counted once.
    fingerprint: u64,
    /// Keys under which something has changed since they were last taken; `None`: nobody takes them.
    changed_keys: Option<BTreeSet<S::Key>>,
    /// Keys under which a row or a waiting kill has changed since they were last saved; `None`: nobody saves them.
    unsaved_keys: Option<BTreeSet<S::Key>>,
}

impl<S: Store> Default for Table<S> {
    fn default() -> Self {
        Self {
            cells: BTreeMap::new(),
            logs: BTreeMap::new(),
            pending: BTreeMap::new(),
            merged_ranges: Vec::new(),
            expiries: BTreeSet::new(),
            quarantine: BTreeSet::new(),
            quarantine_bytes: 0,
            carried: BTreeMap::new(),
            dots: 0,
            bytes: 0,
            tombstones: 0,
            fingerprint: 0,
            changed_keys: None,
            unsaved_keys: None,
        }
    }
}

/// Reading.
impl<S: Store> Table<S> {
    /// The live values under `key`, each with its writer, in no particular order. A write that several rows carry comes
    /// once for each.
    pub fn values<'a>(
        &'a self,
        key: &S::Key,
    ) -> impl Iterator<Item = (Writer, &'a S::Value)> + use<'a, S> {
        let rows = self.cells.get(key).into_iter().flatten();
        rows.flat_map(|(w, row)| row.writes(*w)).map(|((writer, _), value)| (writer, value))
    }

    /// All keys that have a live value, in order.
    pub fn keys(&self) -> impl Iterator<Item = &S::Key> {
        self.cells.iter().filter(|(_, cell)| has_value(cell)).map(|(key, _)| key)
    }

    /// All keys that have a live value, in order, from `first` on.
    pub(crate) fn keys_from<'a>(
        &'a self,
        first: &S::Key,
    ) -> impl Iterator<Item = &'a S::Key> + use<'a, S> {
        self.cells.range(first.clone()..).filter(|(_, cell)| has_value(cell)).map(|(key, _)| key)
    }

    /// The keys under which `writer` has a live value in its own row.
    pub(crate) fn keys_of(&self, writer: Writer) -> Vec<S::Key> {
        let keys = self.logs.get(&writer).into_iter().flat_map(|log| log.by_version.values());
        keys.filter(|key| self.value_of(key, writer).is_some()).cloned().collect()
    }

    /// The live value under `key` in the row of `writer`, without values that the row carries.
    #[must_use]
    pub fn value_of(&self, key: &S::Key, writer: Writer) -> Option<&S::Value> {
        self.row(key, writer).and_then(Row::own)
    }

    /// Keeps the keys that change from now on, until they are taken.
    pub(crate) fn track_changed_keys(&mut self) {
        self.changed_keys.get_or_insert_default();
    }

    /// Takes the keys that have changed since the last call.
    pub(crate) fn take_changed_keys(&mut self) -> BTreeSet<S::Key> {
        self.changed_keys.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// A hash of the rows of writers that are believed to run.
    pub(crate) fn fingerprint_of_live(&self, writers: &Writers) -> u64 {
        let live = self.logs.iter().filter(|(writer, _)| writers.is_live(**writer));
        let hashes = live.filter_map(|(writer, log)| {
            let rows = log.fingerprints.as_deref()?.iter().fold(0, |all, bucket| all ^ bucket);
            let id = writers.id(*writer).filter(|_| rows != 0)?;
            let name = xxhash_rust::xxh3::xxh3_64(id.name.as_str().as_bytes());
            let seed = name ^ id.generation.0;
            Some(xxhash_rust::xxh3::xxh3_64_with_seed(&rows.to_be_bytes(), seed))
        });
        hashes.fold(0, |all, hash| all ^ hash)
    }

    /// A hash of all dots held, which is equal on nodes that hold the same dots.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Drops a row without a trace, as only a bug would. For tests.
    #[cfg(test)]
    pub(crate) fn lose(&mut self, key: &S::Key, writer: Writer) {
        self.remove_row(key, writer);
    }

    fn row(&self, key: &S::Key, writer: Writer) -> Option<&Row<S::Value>> {
        self.cells.get(key)?.iter().find(|(w, _)| *w == writer).map(|(_, row)| row)
    }

    /// Whether rows of other writers that satisfy `counts` hold all dots in the row of `writer` under `key`, with values.
    fn is_held_by_others(
        &self,
        key: &S::Key,
        writer: Writer,
        counts: impl Fn(Writer) -> bool,
    ) -> bool {
        let cell = self.cells.get(key).map_or(&[][..], |cell| cell);
        let others = || cell.iter().filter(|(w, _)| *w != writer && counts(*w));
        let mut dots = cell.iter().filter(|(w, _)| *w == writer).flat_map(|(w, row)| row.dots(*w));
        dots.all(|(dot, _)| others().any(|(w, row)| row.writes(*w).any(|(has, _)| has == dot)))
    }

    /// Whether any row under `key` holds `dot`.
    fn holds(&self, key: &S::Key, dot: Dot) -> bool {
        self.cells.get(key).is_some_and(|cell| cell.iter().any(|(w, row)| row.has(*w, dot)))
    }
}

impl<S: Store> Table<S>
where
    S::Value: Merge,
{
    /// The value under `key`, which is all live values merged.
    #[must_use]
    pub fn merged(&self, key: &S::Key) -> Option<S::Value> {
        let mut values = self.values(key).map(|(_, value)| value);
        let mut merged = values.next()?.clone();
        for value in values {
            merged.merge(value);
        }
        Some(merged)
    }
}

/// Inserts and removes rows, and updates the indexes and sums of the table. No other code does.
impl<S: Store> Table<S> {
    fn log(&mut self, writer: Writer) -> &mut Log<S::Key> {
        self.logs.entry(writer).or_default()
    }

    fn remove_row(&mut self, key: &S::Key, writer: Writer) -> Option<Row<S::Value>> {
        let cell = self.cells.get_mut(key)?;
        let at = cell.iter().position(|(w, _)| *w == writer)?;
        let (_, row) = cell.swap_remove(at);
        for keys in [&mut self.changed_keys, &mut self.unsaved_keys].into_iter().flatten() {
            keys.insert(key.clone());
        }
        for (dot, hash) in row.dots(writer) {
            if !cell.iter().any(|(w, other)| other.has(*w, dot)) {
                self.fingerprint ^= fingerprint_of(dot.1, hash);
                self.dots -= 1;
            }
        }
        if cell.is_empty() {
            self.cells.remove(key);
        }
        let log = self.logs.entry(writer).or_default();
        log.by_version.remove(&row.version);
        if row.is_tombstone() {
            log.tombstones.remove(&row.version);
            self.tombstones -= 1;
        }
        if row.has_dots()
            && let Some(fingerprints) = &mut log.fingerprints
        {
            fingerprints[row.bucket()] ^= row.fingerprint();
        }
        self.bytes -= row.bytes as usize;
        for (_, value) in row.writes(writer) {
            if let Some(ends) = S::expires_ms(key, value) {
                self.expiries.remove(&(ends, writer, key.clone()));
            }
        }
        for carried in row.carried() {
            let of = carried.dot.0;
            if let Some(count) = self.carried.get_mut(&of) {
                *count -= 1;
                if *count == 0 {
                    self.carried.remove(&of);
                }
            }
        }
        if let Body::Opaque(content, _) = &row.body {
            self.quarantine.remove(&(key.clone(), writer));
            self.quarantine_bytes -= content.as_ref().map_or(0, Blob::len);
        }
        Some(row)
    }

    /// Inserts a row. The caller has removed the writer's older row under the key.
    fn insert_row(&mut self, key: S::Key, writer: Writer, row: Row<S::Value>) {
        for keys in [&mut self.changed_keys, &mut self.unsaved_keys].into_iter().flatten() {
            keys.insert(key.clone());
        }
        let log = self.logs.entry(writer).or_default();
        log.by_version.insert(row.version, key.clone());
        if row.is_tombstone() {
            log.tombstones.insert(row.version);
            self.tombstones += 1;
        }
        if row.has_dots() {
            let fingerprints = log.fingerprints.get_or_insert_with(|| Box::new([0; BUCKETS]));
            fingerprints[row.bucket()] ^= row.fingerprint();
        }
        self.bytes += row.bytes as usize;
        for (_, value) in row.writes(writer) {
            if let Some(ends) = S::expires_ms(&key, value) {
                self.expiries.insert((ends, writer, key.clone()));
            }
        }
        for carried in row.carried() {
            *self.carried.entry(carried.dot.0).or_default() += 1;
        }
        if let Body::Opaque(content, _) = &row.body {
            self.quarantine.insert((key.clone(), writer));
            self.quarantine_bytes += content.as_ref().map_or(0, Blob::len);
        }
        let cell = self.cells.entry(key).or_default();
        for (dot, hash) in row.dots(writer) {
            if !cell.iter().any(|(w, other)| other.has(*w, dot)) {
                self.fingerprint ^= fingerprint_of(dot.1, hash);
                self.dots += 1;
            }
        }
        cell.push((writer, row));
    }

    /// Removes the dots for which `is_dead` holds from all rows under `key`, but not from the row of `except`; returns
    /// whether there were any. A row that then has neither dots nor kills is dropped (R6).
    fn drop_dots(
        &mut self,
        key: &S::Key,
        except: Option<Writer>,
        is_dead: impl Fn(Dot) -> bool,
    ) -> bool {
        let cell = self.cells.get(key).into_iter().flatten();
        let hit =
            cell.filter(|(w, row)| Some(*w) != except && row.dots(*w).any(|(dot, _)| is_dead(dot)));
        let hit: SmallVec<[Writer; 2]> = hit.map(|(w, _)| *w).collect();
        for writer in &hit {
            let mut row = self.remove_row(key, *writer).expect("the row was just found");
            if is_dead((*writer, row.version)) {
                row.body = Body::Dead;
            }
            let mut is_empty = row.kills().is_empty();
            if let Some(extras) = &mut row.extras {
                extras.carried.retain(|carried| !is_dead(carried.dot));
                is_empty &= extras.carried.is_empty();
                if is_empty {
                    row.extras = None;
                }
            }
            if !(is_empty && matches!(row.body, Body::Dead)) {
                self.insert_row(key.clone(), *writer, row);
            }
        }
        !hit.is_empty()
    }
}
