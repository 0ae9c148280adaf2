//! A table: the rows of one store, and per writer the coalescing log in which they travel.
//!
//! Each row is written by one writer; a write takes the place of that writer's older row under the same key and goes to
//! the end of its log. So memory is living keys plus young tombstones, never the number of writes, and "what came after
//! version v" is a range of the log, its holes being overwritten writes.
//!
//! What a row says is a set of *dots* (a write, named by who made it and with which version) with their values, and
//! *kills*: dots that are dead. Most rows hold the one dot that they are named by. A row may carry dots of others too, so
//! that a writer which is over can be forgotten while what it wrote lives on: a dot keeps its name in whichever row it
//! travels, and who removes it removes it everywhere. One rule decides everything: **what a node covers and does not hold
//! is dead**. A node covers a dot when it has all of the log of the dot's first writer up to it.
//!
//! The rules by the names that the tests use: a kill names every dot of that writer up to a version (R2), stays in the
//! row when its writer writes again (R3), and waits in `pending` for dots that are not covered yet (R5); a row with
//! neither dots nor kills is kept as a tombstone by relays too (R4); a row whose dots are dead just vanishes (R6); a
//! replica that is behind `floor`, what a log no longer holds, joins a snapshot by key ranges (R7), pending kills
//! included (R8).

mod apply;
mod log;
mod replica;
mod section;
#[cfg(test)]
pub(crate) mod tests;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use smallvec::SmallVec;
use smg_types::now::Now;

use crate::crdt::Merge;
use crate::crdt::stamp::HybridClock;
use crate::state::row::{Blob, ContentRef};
use crate::state::store::Store;
use crate::state::writers::{Writer, Writers};

pub(crate) use apply::Applied;
use log::Log;
pub use log::{BrokenInvariant, LogPosition};
pub use replica::Sizes;
pub(crate) use replica::{Cut, Mark, Replica};
pub(crate) use section::Section;
pub use write::RefusedRow;

/// Fingerprints per writer and store: one per bucket of keys.
pub const BUCKETS: usize = 64;
/// An expired row is invisible at once but stays this long, so that clocks may differ.
const EXPIRY_GRACE_MS: u64 = 60_000;
/// Tombstones that a table may always keep; beyond, at most two per living row.
const FREE_TOMBSTONES: usize = 2048;
/// Bytes of unreadable contents that a table keeps for others.
const QUARANTINE_BYTES: usize = 1 << 20;
/// Kills that may wait for their dots.
const MAX_PENDING: usize = 65_536;

/// What a table needs of its surroundings.
#[derive(Debug)]
pub struct Context<'a> {
    pub(crate) writers: &'a mut Writers,
    pub(crate) clock: &'a mut HybridClock,
    pub(crate) me: Writer,
    pub(crate) now: Now,
}

/// A write: by whom, and which of its versions. It keeps this name in whichever row it travels.
type Dot = (Writer, u64);
/// One per writer: all its dots up to a version.
type Kills = SmallVec<[Dot; 2]>;

#[derive(Debug, Clone)]
enum Body<V> {
    /// The writer's own write; its dot is the row's writer and version.
    Live(V),
    /// None, no more, or none that lives.
    Dead,
    /// In quarantine; `None` when there was no room to keep it.
    Opaque(Option<Blob>),
}

/// A write in another row than that of its dot.
#[derive(Debug, Clone)]
struct Carried<V> {
    dot: Dot,
    /// Of the key's bytes, seeded by the dot's author.
    key_hash: u64,
    value: V,
}

/// What few rows have.
#[derive(Debug, Clone)]
struct More<V> {
    kills: Kills,
    carried: Vec<Carried<V>>,
}

#[derive(Debug, Clone)]
struct Row<V> {
    version: u64,
    /// Of the key's bytes, seeded by the author.
    key_hash: u64,
    bytes: u32,
    body: Body<V>,
    more: Option<Box<More<V>>>,
}

impl<V> Row<V> {
    fn kills(&self) -> &[Dot] {
        self.more.as_ref().map_or(&[], |more| &more.kills)
    }

    fn carried(&self) -> &[Carried<V>] {
        self.more.as_ref().map_or(&[], |more| &more.carried)
    }

    /// The writer's own write.
    fn own(&self) -> Option<&V> {
        match &self.body {
            Body::Live(value) => Some(value),
            Body::Dead | Body::Opaque(_) => None,
        }
    }

    /// All writes in it, each with its dot; `writer` is the row's.
    fn writes(&self, writer: Writer) -> impl Iterator<Item = (Dot, &V)> {
        let own = self.own().map(|value| ((writer, self.version), value));
        own.into_iter().chain(self.carried().iter().map(|c| (c.dot, &c.value)))
    }

    /// Its dots with the hashes that stand for them. What can't be read stands for the dot that it is named by.
    fn dots(&self, writer: Writer) -> impl Iterator<Item = (Dot, u64)> {
        let own = !matches!(self.body, Body::Dead);
        let own = own.then_some(((writer, self.version), self.key_hash));
        own.into_iter().chain(self.carried().iter().map(|c| (c.dot, c.key_hash)))
    }

    fn has(&self, writer: Writer, dot: Dot) -> bool {
        self.dots(writer).any(|(has, _)| has == dot)
    }

    fn is_opaque(&self) -> bool {
        matches!(self.body, Body::Opaque(_))
    }

    /// Whether anything in it lives, as far as can be read.
    fn lives(&self) -> bool {
        !matches!(self.body, Body::Dead) || !self.carried().is_empty()
    }

    fn is_tombstone(&self) -> bool {
        !self.lives() || !self.kills().is_empty()
    }

    /// Says "this writer's row under this key has this version", in 64 bits. The content is not in it, so that a router
    /// which can't read a newer content still agrees.
    fn print(&self) -> u64 {
        print_of(self.version, self.key_hash)
    }

    fn bucket(&self) -> usize {
        bucket_of(self.key_hash)
    }
}

fn print_of(version: u64, key_hash: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(&version.to_le_bytes(), key_hash)
}

fn bucket_of(key_hash: u64) -> usize {
    (key_hash % BUCKETS as u64) as usize
}

fn key_hash(writers: &Writers, writer: Writer, key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(key, writers.author(writer).as_u64())
}

fn more<V>(kills: Kills, carried: Vec<Carried<V>>) -> Option<Box<More<V>>> {
    (!kills.is_empty() || !carried.is_empty()).then(|| Box::new(More { kills, carried }))
}

/// Adds `dots` to `kills`, one per writer, the highest version.
fn join_kills(kills: &mut Kills, dots: impl IntoIterator<Item = Dot>) {
    for (writer, version) in dots {
        match kills.iter_mut().find(|(w, _)| *w == writer) {
            Some((_, have)) => *have = version.max(*have),
            None => kills.push((writer, version)),
        }
    }
}

fn encode_content<V: Serialize>(
    writers: &Writers,
    add: Option<&V>,
    carried: &[Carried<V>],
    kills: &[Dot],
) -> Option<Vec<u8>> {
    let kills = kills.iter().filter_map(|(w, v)| Some((writers.id(*w)?, *v)));
    let kills: SmallVec<[_; 2]> = kills.collect();
    let carried = carried.iter().filter_map(|c| Some((writers.id(c.dot.0)?, c.dot.1, &c.value)));
    let carried: SmallVec<[_; 2]> = carried.collect();
    ContentRef { add, carried: &carried, kills: &kills }.encode()
}

type Cell<V> = SmallVec<[(Writer, Row<V>); 1]>;

/// The rows of one store.
#[derive(Debug)]
pub struct Table<S: Store> {
    cells: BTreeMap<S::Key, Cell<S::Value>>,
    logs: BTreeMap<Writer, Log<S::Key>>,
    /// Kills of dots that are not covered yet, by whose dots they are.
    pending: BTreeMap<Writer, BTreeMap<S::Key, u64>>,
    /// What is covered beyond the logs, of ranges that came by snapshots.
    joined: Vec<section::Joined<S::Key>>,
    expiries: BTreeSet<(u64, Writer, S::Key)>,
    quarantine: BTreeSet<(S::Key, Writer)>,
    quarantine_bytes: usize,
    /// How many rows carry dots of a writer.
    carried: BTreeMap<Writer, usize>,
    /// Dots that live.
    living: usize,
    bytes: usize,
    tombstones: usize,
    /// Of all dots that live, in whichever rows they are.
    print: u64,
    /// Keys under which something has changed since they were last asked for; `None`: nobody asks.
    news: Option<BTreeSet<S::Key>>,
}

impl<S: Store> Default for Table<S> {
    fn default() -> Self {
        Self {
            cells: BTreeMap::new(),
            logs: BTreeMap::new(),
            pending: BTreeMap::new(),
            joined: Vec::new(),
            expiries: BTreeSet::new(),
            quarantine: BTreeSet::new(),
            quarantine_bytes: 0,
            carried: BTreeMap::new(),
            living: 0,
            bytes: 0,
            tombstones: 0,
            print: 0,
            news: None,
        }
    }
}

/// Reading.
impl<S: Store> Table<S> {
    /// The living values under `key`, each with who wrote it, in no particular order. What several rows carry comes as
    /// often.
    pub fn values<'a>(
        &'a self,
        key: &S::Key,
    ) -> impl Iterator<Item = (Writer, &'a S::Value)> + use<'a, S> {
        let rows = self.cells.get(key).into_iter().flatten();
        rows.flat_map(|(w, row)| row.writes(*w)).map(|((writer, _), value)| (writer, value))
    }

    /// All keys that have a living value, in order.
    pub fn keys(&self) -> impl Iterator<Item = &S::Key> {
        self.cells.iter().filter(|(_, cell)| has_value(cell)).map(|(key, _)| key)
    }

    /// All keys that have a living value, in order, from `first` on.
    pub(crate) fn keys_from<'a>(
        &'a self,
        first: &S::Key,
    ) -> impl Iterator<Item = &'a S::Key> + use<'a, S> {
        self.cells.range(first.clone()..).filter(|(_, cell)| has_value(cell)).map(|(key, _)| key)
    }

    /// Keys under which `writer` has a living value.
    pub(crate) fn keys_of(&self, writer: Writer) -> Vec<S::Key> {
        let keys = self.logs.get(&writer).into_iter().flat_map(|log| log.by_version.values());
        keys.filter(|key| self.value_of(key, writer).is_some()).cloned().collect()
    }

    /// The value that `writer` wrote itself under `key`, in its own row.
    #[must_use]
    pub fn value_of(&self, key: &S::Key, writer: Writer) -> Option<&S::Value> {
        self.row(key, writer).and_then(Row::own)
    }

    /// From now on keys are noted under which something changes.
    pub(crate) fn follow(&mut self) {
        self.news.get_or_insert_default();
    }

    /// The keys under which something has changed since this was last asked, at most as many as there are keys.
    pub(crate) fn take_news(&mut self) -> BTreeSet<S::Key> {
        self.news.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Of all dots that live, in whichever rows they are: equal on nodes that hold the same.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.print
    }

    /// Loses a row, as only a bug would: for tests.
    #[cfg(test)]
    pub(crate) fn lose(&mut self, key: &S::Key, writer: Writer) {
        self.take(key, writer);
    }

    fn row(&self, key: &S::Key, writer: Writer) -> Option<&Row<S::Value>> {
        self.cells.get(key)?.iter().find(|(w, _)| *w == writer).map(|(_, row)| row)
    }

    /// Whether each dot in the row of `writer` under `key` is with its value in a row of somebody else who `counts`.
    fn is_elsewhere(&self, key: &S::Key, writer: Writer, counts: impl Fn(Writer) -> bool) -> bool {
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

fn has_value<V>(cell: &Cell<V>) -> bool {
    cell.iter().any(|(w, row)| row.writes(*w).next().is_some())
}

impl<S: Store> Table<S>
where
    S::Value: Merge,
{
    /// The value under `key`: all living values merged.
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

/// Places and takes rows, and keeps every index and sum beside them right: the only code that does.
impl<S: Store> Table<S> {
    fn log(&mut self, writer: Writer) -> &mut Log<S::Key> {
        self.logs.entry(writer).or_default()
    }

    fn take(&mut self, key: &S::Key, writer: Writer) -> Option<Row<S::Value>> {
        let cell = self.cells.get_mut(key)?;
        let at = cell.iter().position(|(w, _)| *w == writer)?;
        let (_, row) = cell.swap_remove(at);
        if let Some(news) = &mut self.news {
            news.insert(key.clone());
        }
        for (dot, hash) in row.dots(writer) {
            if !cell.iter().any(|(w, other)| other.has(*w, dot)) {
                self.print ^= print_of(dot.1, hash);
                self.living -= 1;
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
        if row.lives()
            && let Some(prints) = &mut log.prints
        {
            prints[row.bucket()] ^= row.print();
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
        if let Body::Opaque(content) = &row.body {
            self.quarantine.remove(&(key.clone(), writer));
            self.quarantine_bytes -= content.as_ref().map_or(0, Blob::len);
        }
        Some(row)
    }

    /// The place must be free.
    fn place(&mut self, key: S::Key, writer: Writer, row: Row<S::Value>) {
        if let Some(news) = &mut self.news {
            news.insert(key.clone());
        }
        let log = self.logs.entry(writer).or_default();
        log.by_version.insert(row.version, key.clone());
        if row.is_tombstone() {
            log.tombstones.insert(row.version);
            self.tombstones += 1;
        }
        if row.lives() {
            let prints = log.prints.get_or_insert_with(|| Box::new([0; BUCKETS]));
            prints[row.bucket()] ^= row.print();
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
        if let Body::Opaque(content) = &row.body {
            self.quarantine.insert((key.clone(), writer));
            self.quarantine_bytes += content.as_ref().map_or(0, Blob::len);
        }
        let cell = self.cells.entry(key).or_default();
        for (dot, hash) in row.dots(writer) {
            if !cell.iter().any(|(w, other)| other.has(*w, dot)) {
                self.print ^= print_of(dot.1, hash);
                self.living += 1;
            }
        }
        cell.push((writer, row));
    }

    /// Takes the dots for which `is_dead` holds out of all rows under `key` but `except`'s; says whether there were any.
    /// A row without anything left vanishes.
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
            let mut row = self.take(key, *writer).expect("it was just seen");
            if is_dead((*writer, row.version)) {
                row.body = Body::Dead;
            }
            let mut is_empty = row.kills().is_empty();
            if let Some(more) = &mut row.more {
                more.carried.retain(|carried| !is_dead(carried.dot));
                is_empty &= more.carried.is_empty();
                if is_empty {
                    row.more = None;
                }
            }
            if !(is_empty && matches!(row.body, Body::Dead)) {
                self.place(key.clone(), *writer, row);
            }
        }
        !hit.is_empty()
    }
}

fn small(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
