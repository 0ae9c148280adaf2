//! A table: the rows of one store, and per writer the coalescing log in which they travel.
//!
//! Each row is written by one writer; a write takes the place of that writer's older row under the same key and goes to
//! the end of its log. So memory is living keys plus young tombstones, never the number of writes, and "what came after
//! version v" is a range of the log, its holes being overwritten writes.
//!
//! In shared stores a row is an add (a dot: writer and version) and removals of others' adds (kills). The rules, by the
//! names that the tests use: a kill names every add of that writer up to a version (R2), stays in the row when its writer
//! adds again (R3), and waits in `pending` for adds that have not come yet (R5); a row with neither add nor kills is
//! kept as a tombstone by relays too (R4); a killed row without kills of its own just vanishes (R6); a replica that is
//! behind `floor`, the tombstones already collected, joins a snapshot by key ranges (R7), pending kills included (R8).
//! One thing is ours: an add that took a dead writer's place names its *ancestors*, and its writer ends it when they are
//! removed or replaced by somebody who had not seen that they were adopted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::Bound;

use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::SmallVec;

use crate::cluster::state::StoreId;
use crate::cluster::state::row::{
    self, Blob, Content, ContentRef, MAX_KEY_BYTES, MAX_KILLS, RawRow,
};
use crate::cluster::state::writers::{Writer, Writers};
use crate::crdt::Merge;
use crate::crdt::stamp::{HybridClock, Stamp, millis};
use crate::now::Now;

/// Fingerprints per writer and store: one per bucket of keys.
pub const BUCKETS: usize = 64;
/// An expired row is invisible at once but stays this long, so that clocks may differ.
const EXPIRY_GRACE_MS: u64 = 60_000;
/// Tombstones that a table may always keep; beyond, at most two per living row.
const FREE_TOMBSTONES: usize = 2048;
/// Bytes of unreadable contents that a table keeps for others.
const QUARANTINE_BYTES: usize = 1 << 20;
/// Kills that may wait for their adds.
const MAX_PENDING: usize = 65_536;

/// What a store's rows are.
pub trait Store: Debug + 'static {
    /// Which store.
    const ID: StoreId;
    /// The key of a row; at most 1,024 bytes encoded.
    type Key: Clone + Ord + Debug + Serialize + DeserializeOwned;
    /// The value of an add.
    type Value: Clone + PartialEq + Debug + Serialize + DeserializeOwned;

    /// Whether key and value are inside their bounds.
    ///
    /// # Errors
    /// Says which is not.
    fn validate(key: &Self::Key, value: &Self::Value) -> Result<(), String>;

    /// The latest stamp in a value.
    fn stamp(_value: &Self::Value) -> Option<Stamp> {
        None
    }

    /// When a row ends by itself, in milliseconds of wall time.
    fn expires_ms(_key: &Self::Key, _value: &Self::Value) -> Option<u64> {
        None
    }
}

/// A row was refused to its author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedRow {
    /// It would not fit into a frame.
    #[error("row of {store} is {bytes} bytes long, the limit is {limit}")]
    TooLarge {
        /// Where to.
        store: StoreId,
        /// How long.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// This writer has as many rows there as it may have.
    #[error("{store} holds {limit} rows of this node, which is its limit")]
    Full {
        /// Where to.
        store: StoreId,
        /// How many it may have.
        limit: usize,
    },
    /// Outside its bounds.
    #[error("row of {store} is not valid: {reason}")]
    Invalid {
        /// Where to.
        store: StoreId,
        /// What is wrong with it.
        reason: String,
    },
}

/// What became of a row that came from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    /// Known, dead or ended already.
    Nothing,
    /// The table has changed.
    Changed,
    /// Kept and handed on, without a value here.
    Quarantined,
    /// Not kept.
    Refused,
}

/// What a table needs of its surroundings.
pub(crate) struct Context<'a> {
    pub(crate) writers: &'a mut Writers,
    pub(crate) clock: &'a mut HybridClock,
    pub(crate) me: Writer,
    pub(crate) now: Now,
}

/// A writer's version in a snapshot, and up to where its tombstones are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) writer: Writer,
    pub(crate) version: u64,
    pub(crate) floor: u64,
}

/// A range of keys with all that the donor knows about them.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    /// Keys after this one; none: from the first.
    pub(crate) after: Option<Blob>,
    /// Keys up to and with this one; none: to the last.
    pub(crate) end: Option<Blob>,
    pub(crate) marks: Vec<Mark>,
    pub(crate) rows: Vec<(Writer, RawRow)>,
    /// Kills that wait: whose adds, under which key, up to which version.
    pub(crate) pending: Vec<(Writer, Blob, u64)>,
}

#[derive(Debug, Clone)]
enum Body<V> {
    Live(V),
    /// Removed, or killed while its kills are still needed.
    Dead,
    /// In quarantine; `None` when there was no room to keep it.
    Opaque(Option<Blob>),
}

type Dots = Vec<(Writer, u64)>;

#[derive(Debug, Default, Clone)]
struct Causes {
    kills: Dots,
    ancestors: Dots,
}

#[derive(Debug, Clone)]
struct Row<V> {
    version: u64,
    /// Of the key's bytes, seeded by the author.
    key_hash: u64,
    bytes: u32,
    body: Body<V>,
    causes: Option<Box<Causes>>,
}

impl<V> Row<V> {
    fn kills(&self) -> &[(Writer, u64)] {
        self.causes.as_ref().map_or(&[], |c| &c.kills)
    }

    fn ancestors(&self) -> &[(Writer, u64)] {
        self.causes.as_ref().map_or(&[], |c| &c.ancestors)
    }

    fn value(&self) -> Option<&V> {
        match &self.body {
            Body::Live(value) => Some(value),
            Body::Dead | Body::Opaque(_) => None,
        }
    }

    fn is_tombstone(&self) -> bool {
        matches!(self.body, Body::Dead) || !self.kills().is_empty()
    }

    fn counts(&self) -> bool {
        !matches!(self.body, Body::Dead)
    }

    /// Says "this writer's row under this key has this version", in 64 bits. The content is not in it, so that a router
    /// which can't read a newer content still agrees.
    fn print(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64_with_seed(&self.version.to_le_bytes(), self.key_hash)
    }

    fn bucket(&self) -> usize {
        bucket_of(self.key_hash)
    }
}

fn bucket_of(key_hash: u64) -> usize {
    (key_hash % BUCKETS as u64) as usize
}

#[derive(Debug)]
struct Log<K> {
    by_version: BTreeMap<u64, K>,
    /// Versions of rows that are tombstones or carry kills.
    tombstones: BTreeSet<u64>,
    /// Everything up to here is applied. For this node's own log: the last version written.
    applied: u64,
    /// Tombstones up to here may be gone.
    floor: u64,
    /// The first row that was refused here: nothing from it on is served to others, nor believed to be dead because it
    /// is missing here.
    hole: Option<u64>,
    prints: Option<Box<[u64; BUCKETS]>>,
}

impl<K> Default for Log<K> {
    fn default() -> Self {
        Self {
            by_version: BTreeMap::new(),
            tombstones: BTreeSet::new(),
            applied: 0,
            floor: 0,
            hole: None,
            prints: None,
        }
    }
}

impl<K> Log<K> {
    /// Rows that are not tombstones and carry none.
    fn living(&self) -> usize {
        self.by_version.len() - self.tombstones.len()
    }

    /// Whether a foreign writer has sent more than it may: it would have been refused at home.
    fn is_full(&self, max_rows: usize) -> bool {
        self.living() >= max_rows || self.by_version.len() >= 4 * max_rows + 2 * FREE_TOMBSTONES
    }

    /// Up to where this node can vouch that nothing living is missing.
    fn vouched(&self) -> u64 {
        self.hole.map_or(self.applied, |hole| self.applied.min(hole - 1))
    }
}

type Cell<V> = SmallVec<[(Writer, Row<V>); 1]>;

/// The rows of one store.
#[derive(Debug)]
pub struct Table<S: Store> {
    cells: BTreeMap<S::Key, Cell<S::Value>>,
    logs: BTreeMap<Writer, Log<S::Key>>,
    /// Kills of adds that are not covered yet, by whose adds they are.
    pending: BTreeMap<Writer, BTreeMap<S::Key, u64>>,
    expiries: BTreeSet<(u64, Writer, S::Key)>,
    quarantine: BTreeSet<(S::Key, Writer)>,
    quarantine_bytes: usize,
    living: usize,
    bytes: usize,
    tombstones: usize,
    print: u64,
}

impl<S: Store> Default for Table<S> {
    fn default() -> Self {
        Self {
            cells: BTreeMap::new(),
            logs: BTreeMap::new(),
            pending: BTreeMap::new(),
            expiries: BTreeSet::new(),
            quarantine: BTreeSet::new(),
            quarantine_bytes: 0,
            living: 0,
            bytes: 0,
            tombstones: 0,
            print: 0,
        }
    }
}

/// Reading.
impl<S: Store> Table<S> {
    /// The living values under `key`, each with its writer, in no particular order.
    pub fn values<'a>(
        &'a self,
        key: &S::Key,
    ) -> impl Iterator<Item = (Writer, &'a S::Value)> + use<'a, S> {
        self.cells.get(key).into_iter().flatten().filter_map(|(w, row)| Some((*w, row.value()?)))
    }

    /// All keys that have a living value, in order.
    pub fn keys(&self) -> impl Iterator<Item = &S::Key> {
        self.cells
            .iter()
            .filter(|(_, cell)| cell.iter().any(|(_, row)| row.value().is_some()))
            .map(|(key, _)| key)
    }

    /// All keys that have a living value, in order, from `first` on.
    pub(crate) fn keys_from<'a>(
        &'a self,
        first: &S::Key,
    ) -> impl Iterator<Item = &'a S::Key> + use<'a, S> {
        self.cells
            .range(first.clone()..)
            .filter(|(_, cell)| cell.iter().any(|(_, row)| row.value().is_some()))
            .map(|(key, _)| key)
    }

    /// Keys under which `writer` has a living value.
    pub(crate) fn keys_of(&self, writer: Writer) -> Vec<S::Key> {
        let keys = self.logs.get(&writer).into_iter().flat_map(|log| log.by_version.values());
        keys.filter(|key| self.value_of(key, writer).is_some()).cloned().collect()
    }

    /// Drops a row silently: for rows that everybody knows to be void without being told.
    pub(crate) fn drop_row(&mut self, key: &S::Key, writer: Writer) {
        self.drop_add(key, writer);
    }

    /// The value that `writer` wrote under `key`.
    #[must_use]
    pub fn value_of(&self, key: &S::Key, writer: Writer) -> Option<&S::Value> {
        self.row(key, writer).and_then(Row::value)
    }

    /// Values that were adopted, and whose ancestors are remembered: for checks.
    #[cfg(test)]
    pub(crate) fn adopted_values(&self, key: &S::Key) -> impl Iterator<Item = &S::Value> {
        let rows = self.cells.get(key).into_iter().flatten();
        rows.filter(|(_, row)| !row.ancestors().is_empty()).filter_map(|(_, row)| row.value())
    }

    fn row(&self, key: &S::Key, writer: Writer) -> Option<&Row<S::Value>> {
        self.cells.get(key)?.iter().find(|(w, _)| *w == writer).map(|(_, row)| row)
    }
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
        if cell.is_empty() {
            self.cells.remove(key);
        }
        let tombstone = row.is_tombstone();
        let log = self.log(writer);
        log.by_version.remove(&row.version);
        if tombstone {
            log.tombstones.remove(&row.version);
            self.tombstones -= 1;
        }
        self.bytes -= row.bytes as usize;
        if row.counts() {
            self.toggle_print(writer, &row);
            self.living -= 1;
        }
        match &row.body {
            Body::Live(value) => {
                if let Some(ends) = S::expires_ms(key, value) {
                    self.expiries.remove(&(ends, writer, key.clone()));
                }
            }
            Body::Opaque(content) => {
                self.quarantine.remove(&(key.clone(), writer));
                self.quarantine_bytes -= content.as_ref().map_or(0, Blob::len);
            }
            Body::Dead => {}
        }
        Some(row)
    }

    /// The place must be free.
    fn place(&mut self, key: S::Key, writer: Writer, row: Row<S::Value>) {
        let tombstone = row.is_tombstone();
        let log = self.log(writer);
        log.by_version.insert(row.version, key.clone());
        if tombstone {
            log.tombstones.insert(row.version);
            self.tombstones += 1;
        }
        self.bytes += row.bytes as usize;
        if row.counts() {
            self.toggle_print(writer, &row);
            self.living += 1;
        }
        match &row.body {
            Body::Live(value) => {
                if let Some(ends) = S::expires_ms(&key, value) {
                    self.expiries.insert((ends, writer, key.clone()));
                }
            }
            Body::Opaque(content) => {
                self.quarantine.insert((key.clone(), writer));
                self.quarantine_bytes += content.as_ref().map_or(0, Blob::len);
            }
            Body::Dead => {}
        }
        self.cells.entry(key).or_default().push((writer, row));
    }

    fn toggle_print(&mut self, writer: Writer, row: &Row<S::Value>) {
        let (print, bucket) = (row.print(), row.bucket());
        self.print ^= print;
        let log = self.log(writer);
        log.prints.get_or_insert_with(|| Box::new([0; BUCKETS]))[bucket] ^= print;
    }

    /// Takes the add out of a row that was killed: what has no kills of its own vanishes.
    fn drop_add(&mut self, key: &S::Key, writer: Writer) {
        if let Some(mut row) = self.take(key, writer)
            && !row.kills().is_empty()
        {
            // The ancestors stay: they tell its kills that took a place from those that removed.
            row.body = Body::Dead;
            self.place(key.clone(), writer, row);
        }
    }
}

fn key_hash(writers: &Writers, writer: Writer, key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(key, writers.author(writer).as_u64())
}

fn small(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn causes(kills: Dots, ancestors: Dots) -> Option<Box<Causes>> {
    (!kills.is_empty() || !ancestors.is_empty()).then(|| Box::new(Causes { kills, ancestors }))
}

/// Adds `dots` to `kills`, one per writer, the highest version.
fn join_dots(kills: &mut Dots, dots: impl IntoIterator<Item = (Writer, u64)>) {
    for (writer, version) in dots {
        match kills.iter_mut().find(|(w, _)| *w == writer) {
            Some((_, have)) => *have = version.max(*have),
            None => kills.push((writer, version)),
        }
    }
}

/// Writing at home.
impl<S: Store> Table<S> {
    /// Writes this node's own row; its new version, or the present one if nothing would change.
    pub(crate) fn put(
        &mut self,
        cx: &mut Context<'_>,
        key: S::Key,
        value: S::Value,
    ) -> Result<u64, RefusedRow> {
        if self.value_of(&key, cx.me) == Some(&value) {
            return Ok(self.applied(cx.me));
        }
        self.write(cx, key, Some(value), Dots::new(), Dots::new())
    }

    /// Removes this node's own row; `None` if there is none.
    pub(crate) fn remove(&mut self, cx: &mut Context<'_>, key: &S::Key) -> Option<u64> {
        self.row(key, cx.me)?.value()?;
        Some(self.write(cx, key.clone(), None, Dots::new(), Dots::new()).expect("it only shrinks"))
    }

    fn write(
        &mut self,
        cx: &mut Context<'_>,
        key: S::Key,
        add: Option<S::Value>,
        kills: Dots,
        ancestors: Dots,
    ) -> Result<u64, RefusedRow> {
        let store = S::ID;
        if let Some(value) = &add {
            S::validate(&key, value).map_err(|reason| RefusedRow::Invalid { store, reason })?;
        }
        let is_new = self.row(&key, cx.me).is_none();
        let limit = store.max_rows();
        if add.is_some() && is_new && self.log(cx.me).living() >= limit {
            return Err(RefusedRow::Full { store, limit });
        }
        let key_bytes = row::encode_key(&key);
        let limit = store.max_content_bytes();
        let content = encode_content(cx.writers, add.as_ref(), &ancestors, &kills);
        let bytes = content.as_ref().map_or(usize::MAX, Vec::len);
        if bytes > limit || kills.len() > MAX_KILLS {
            return Err(RefusedRow::TooLarge { store, bytes, limit });
        }
        if key_bytes.len() > MAX_KEY_BYTES {
            let bytes = key_bytes.len();
            return Err(RefusedRow::TooLarge { store, bytes, limit: MAX_KEY_BYTES });
        }
        self.take(&key, cx.me);
        let log = self.log(cx.me);
        log.applied += 1;
        let version = log.applied;
        let row = Row {
            version,
            key_hash: key_hash(cx.writers, cx.me, &key_bytes),
            bytes: small(bytes + key_bytes.len()),
            body: add.map_or(Body::Dead, Body::Live),
            causes: causes(kills, ancestors),
        };
        self.place(key, cx.me, row);
        self.bound_tombstones();
        Ok(version)
    }

    /// This node's own kills under `key`, and the living adds of others there.
    fn seen(&self, key: &S::Key, me: Writer) -> (Dots, Dots) {
        let kills = self.row(key, me).map_or_else(Dots::new, |row| row.kills().to_vec());
        let others = self.cells.get(key).into_iter().flatten();
        let others = others.filter(|(w, row)| *w != me && row.value().is_some());
        (kills, others.map(|(w, row)| (*w, row.version)).collect())
    }

    /// Takes everything under `key` out of the table as far as it has been seen here; `None` if there is nothing.
    pub(crate) fn remove_shared(
        &mut self,
        cx: &mut Context<'_>,
        key: &S::Key,
    ) -> Result<Option<u64>, RefusedRow> {
        let (mut kills, others) = self.seen(key, cx.me);
        if others.is_empty() && self.value_of(key, cx.me).is_none() {
            return Ok(None);
        }
        join_dots(&mut kills, others.iter().copied());
        let version = self.write(cx, key.clone(), None, kills, Dots::new())?;
        for (writer, version) in others {
            self.kill(cx, key, writer, version);
        }
        Ok(Some(version))
    }
}

impl<S: Store> Table<S>
where
    S::Value: Merge,
{
    /// Writes `change` merged with all that is seen under `key`, whose place it takes.
    pub(crate) fn put_shared(
        &mut self,
        cx: &mut Context<'_>,
        key: &S::Key,
        change: S::Value,
    ) -> Result<u64, RefusedRow> {
        let (mut kills, others) = self.seen(key, cx.me);
        join_dots(&mut kills, others.iter().copied());
        let mut value = change;
        for (_, seen) in self.values(key) {
            value.merge(seen);
        }
        let version = self.write(cx, key.clone(), Some(value), kills, Dots::new())?;
        for (writer, version) in others {
            self.kill(cx, key, writer, version);
        }
        Ok(version)
    }

    /// Takes the place of up to `budget` rows of `of`, a writer that is over; says how many. Where others still apply the
    /// rows of `of` themselves it is enough to take over its adds; where they no longer do (`closing`), what its rows
    /// remove must be said again as well.
    pub(crate) fn adopt(
        &mut self,
        cx: &mut Context<'_>,
        of: Writer,
        closing: bool,
        budget: usize,
    ) -> usize {
        let Some(log) = self.logs.get(&of) else { return 0 };
        let keys: Vec<(u64, S::Key)> = log
            .by_version
            .iter()
            .filter(|(_, key)| closing || self.value_of(key, of).is_some())
            .take(budget)
            .map(|(version, key)| (*version, key.clone()))
            .collect();
        let mut adopted = 0;
        for (version, key) in keys {
            let Some(row) = self.row(&key, of) else { continue };
            let value = row.value().cloned();
            let mut said = if closing { row.kills().to_vec() } else { Dots::new() };
            said.retain(|(writer, _)| *writer != cx.me);
            if value.is_none() && said.is_empty() {
                self.take(&key, of);
                continue;
            }
            let (mut kills, _) = self.seen(&key, cx.me);
            join_dots(&mut kills, said);
            let own = self.row(&key, cx.me).filter(|own| own.value().is_some());
            // What this node had added itself is the same add under a new version: who removed it removed this.
            let mut ancestors = match own {
                Some(own) if own.ancestors().is_empty() => vec![(cx.me, own.version)],
                Some(own) => own.ancestors().to_vec(),
                None => Dots::new(),
            };
            let mut add = own.and_then(Row::value).cloned();
            if let Some(value) = value {
                join_dots(&mut kills, [(of, version)]);
                let news = match &mut add {
                    Some(own) => own.merge(&value),
                    None => {
                        add = Some(value);
                        true
                    }
                };
                if news {
                    join_dots(&mut ancestors, [(of, version)]);
                }
            }
            if self.write(cx, key.clone(), add, kills, ancestors).is_ok() {
                adopted += 1;
                if closing {
                    self.take(&key, of);
                } else {
                    self.kill_quietly(cx, &key, of, version);
                }
            }
        }
        adopted
    }
}

fn encode_content<V: Serialize>(
    writers: &Writers,
    add: Option<&V>,
    ancestors: &[(Writer, u64)],
    kills: &[(Writer, u64)],
) -> Option<Vec<u8>> {
    let named = |dots: &[(Writer, u64)]| {
        dots.iter().filter_map(|(w, v)| Some((writers.id(*w)?, *v))).collect::<Vec<_>>()
    };
    ContentRef { add, ancestors: &named(ancestors), kills: &named(kills) }.encode()
}

/// Applying what others wrote.
impl<S: Store> Table<S> {
    fn covers(&self, writers: &Writers, writer: Writer, version: u64) -> bool {
        writers.retired(writer).is_some()
            || self.logs.get(&writer).is_some_and(|log| log.applied >= version)
    }

    /// Kills the adds of `of` under `key` up to `version`, now or when they come; also what descends from them.
    fn kill(&mut self, cx: &mut Context<'_>, key: &S::Key, of: Writer, version: u64) -> bool {
        let changed = self.kill_quietly(cx, key, of, version);
        self.kill_descendant(cx, key, (of, version)) | changed
    }

    /// Ends this node's own row under `key` if it took the place of adds of `of` up to `version`, which were removed, or
    /// replaced by their own writer. Only the adopter judges that, and says so by a tombstone: whoever knows less, or
    /// has forgotten more, would judge otherwise.
    fn kill_descendant(
        &mut self,
        cx: &mut Context<'_>,
        key: &S::Key,
        (of, version): (Writer, u64),
    ) -> bool {
        let own = self.cells.get_mut(key).into_iter().flatten().find(|(w, _)| *w == cx.me);
        let Some((_, Row { causes: Some(causes), body: Body::Live(_), .. })) = own else {
            return false;
        };
        let before = causes.ancestors.len();
        causes.ancestors.retain(|(w, v)| !(*w == of && *v <= version));
        if causes.ancestors.len() == before || !causes.ancestors.is_empty() {
            return false;
        }
        let (kills, _) = self.seen(key, cx.me);
        self.write(cx, key.clone(), None, kills, Dots::new()).expect("it only shrinks");
        true
    }

    /// The same, but what descends from the killed adds lives on: they were adopted, not removed.
    fn kill_quietly(&mut self, cx: &Context<'_>, key: &S::Key, of: Writer, version: u64) -> bool {
        let hit = self.row(key, of).is_some_and(|row| row.version <= version && row.counts());
        if hit {
            self.drop_add(key, of);
        }
        if !self.covers(cx.writers, of, version) {
            let waiting: usize = self.pending.values().map(BTreeMap::len).sum();
            if waiting < MAX_PENDING {
                let up_to = self.pending.entry(of).or_default().entry(key.clone()).or_insert(0);
                *up_to = version.max(*up_to);
            }
        }
        hit
    }

    fn is_killed(&self, key: &S::Key, dot: (Writer, u64)) -> bool {
        let kills = |dots: &[(Writer, u64)]| dots.iter().any(|(w, v)| *w == dot.0 && *v >= dot.1);
        self.pending.get(&dot.0).and_then(|keys| keys.get(key)).is_some_and(|v| *v >= dot.1)
            || self
                .cells
                .get(key)
                .is_some_and(|cell| cell.iter().any(|(_, row)| kills(row.kills())))
    }

    /// Takes in a row of `writer`, whose order within the log the caller has checked.
    pub(crate) fn apply(&mut self, cx: &mut Context<'_>, writer: Writer, raw: &RawRow) -> Applied {
        let applied = self.apply_or_refuse(cx, writer, raw);
        if applied == Applied::Refused && raw.version > 0 {
            let log = self.log(writer);
            log.hole = Some(log.hole.map_or(raw.version, |hole| hole.min(raw.version)));
        }
        applied
    }

    fn apply_or_refuse(&mut self, cx: &mut Context<'_>, writer: Writer, raw: &RawRow) -> Applied {
        if raw.version == 0
            || raw.key.len() > MAX_KEY_BYTES
            || raw.content.len() > S::ID.max_content_bytes()
        {
            return Applied::Refused;
        }
        let Ok(key) = row::decode_key::<S::Key>(raw.key.as_slice()) else {
            return Applied::Refused;
        };
        let present = self.row(&key, writer);
        if present.is_some_and(|row| row.version >= raw.version) {
            return Applied::Nothing;
        }
        if present.is_none() && self.log(writer).is_full(S::ID.max_rows()) {
            return Applied::Refused;
        }
        let hash = key_hash(cx.writers, writer, raw.key.as_slice());
        self.insert(cx, writer, key, raw, hash)
    }

    fn insert(
        &mut self,
        cx: &mut Context<'_>,
        writer: Writer,
        key: S::Key,
        raw: &RawRow,
        key_hash: u64,
    ) -> Applied {
        let had = self.take(&key, writer).is_some_and(|row| row.counts());
        let version = raw.version;
        let bytes = small(raw.key.len() + raw.content.len());
        let Some(content) = Self::read(cx, &key, raw) else {
            if S::ID.ends_with_writer() && cx.writers.is_over(writer) {
                return if had { Applied::Changed } else { Applied::Nothing };
            }
            let room = self.quarantine_bytes + raw.content.len() <= QUARANTINE_BYTES;
            let body = Body::Opaque(room.then(|| raw.content.clone()));
            self.place(key, writer, Row { version, key_hash, bytes, body, causes: None });
            return Applied::Quarantined;
        };
        let number = |writers: &mut Writers, dots: Vec<(crate::ids::NodeId, u64)>| {
            let dots = dots.into_iter();
            dots.filter_map(|(id, v)| Some((writers.intern(&id)?, v))).collect::<Dots>()
        };
        let kills = number(cx.writers, content.kills);
        let ancestors = number(cx.writers, content.ancestors);
        let ended = S::ID.ends_with_writer() && cx.writers.is_over(writer);
        if ended {
            self.log(writer).hole = Some(1);
        }
        let expired = content
            .add
            .as_ref()
            .and_then(|value| S::expires_ms(&key, value))
            .is_some_and(|ends| ends.saturating_add(EXPIRY_GRACE_MS) <= millis(cx.now.wall));
        let killed = self.is_killed(&key, (writer, version));
        let add = content.add.filter(|_| !(ended || expired || killed));
        let gone = (ended || expired || killed) && kills.is_empty();
        let has = add.is_some();
        if !gone {
            let body = add.map_or(Body::Dead, Body::Live);
            let causes = causes(kills.clone(), ancestors.clone());
            self.place(key.clone(), writer, Row { version, key_hash, bytes, body, causes });
        }
        let mut changed = had || has;
        // Its writer has replaced what others may have adopted from it.
        changed |= writer != cx.me && self.kill_descendant(cx, &key, (writer, version - 1));
        for (of, up_to) in kills {
            // An add that took a dead writer's place does not kill itself with what it adopted, but what others adopted
            // from before that.
            let adopted = ancestors.iter().find(|(w, v)| *w == of && *v <= up_to).copied();
            changed |= match adopted {
                Some((_, version)) => {
                    self.kill_quietly(cx, &key, of, up_to)
                        | self.kill_descendant(cx, &key, (of, version - 1))
                }
                None => self.kill(cx, &key, of, up_to),
            };
        }
        self.bound_tombstones();
        if changed { Applied::Changed } else { Applied::Nothing }
    }

    /// The content, if it can be read and believed.
    fn read(cx: &mut Context<'_>, key: &S::Key, raw: &RawRow) -> Option<Content<S::Value>> {
        let content = row::decode_content::<S::Value>(raw.content.as_slice()).ok()?;
        if let Some(value) = &content.add {
            S::validate(key, value).ok()?;
            if let Some(stamp) = S::stamp(value) {
                cx.clock.observe(stamp, cx.now).ok()?;
            }
        }
        Some(content)
    }

    /// Says that all of `writer` up to `version` is applied now.
    pub(crate) fn advance(&mut self, writer: Writer, version: u64) -> bool {
        let log = self.log(writer);
        if version <= log.applied {
            return false;
        }
        log.applied = version;
        if let Some(waiting) = self.pending.get_mut(&writer) {
            waiting.retain(|_, up_to| *up_to > version);
            if waiting.is_empty() {
                self.pending.remove(&writer);
            }
        }
        true
    }
}

/// What replication asks of every table, whatever its rows are.
pub(crate) trait Replica: Debug {
    fn apply_row(&mut self, cx: &mut Context<'_>, writer: Writer, raw: &RawRow) -> Applied;
    fn advance_to(&mut self, writer: Writer, version: u64) -> bool;
    /// The last version of which everything before is applied too.
    fn applied(&self, writer: Writer) -> u64;
    fn floor(&self, writer: Writer) -> u64;
    fn marks(&self) -> Vec<Mark>;
    /// Rows after version `from` within the budget, and the version they lead to.
    fn rows_after(
        &self,
        writers: &Writers,
        writer: Writer,
        from: u64,
        budget_bytes: usize,
    ) -> (Vec<RawRow>, u64);
    fn section(
        &self,
        writers: &Writers,
        after: Option<Blob>,
        budget_bytes: usize,
    ) -> Option<Section>;
    /// Joins a range of keys; `None` if its bounds are no keys. Says how many rows changed.
    fn join_section(&mut self, cx: &mut Context<'_>, section: &Section) -> Option<usize>;
    /// Drops tombstones of `writer` up to `version`, which must be applied; says how many.
    fn collect(&mut self, writer: Writer, version: u64) -> usize;
    fn has_tombstones(&self, writer: Writer) -> bool;
    fn prints(&self, writer: Writer) -> [u64; BUCKETS];
    /// All that counts of `writer` in the buckets of `mask`.
    fn bucket_rows(&self, writers: &Writers, writer: Writer, mask: u64) -> Vec<RawRow>;
    /// Makes those buckets equal to `rows`; says how many rows had to change.
    fn repair(&mut self, cx: &mut Context<'_>, writer: Writer, mask: u64, rows: &[RawRow])
    -> usize;
    fn expire(&mut self, now: Now) -> usize;
    /// Reads again what is in quarantine: a stamp may have become believable.
    fn release(&mut self, cx: &mut Context<'_>) -> usize;
    /// Drops every row of `writer`, whose measurements mean nothing any more. This node no longer vouches for them: it may
    /// be the only one that takes the writer for dead.
    fn end(&mut self, writer: Writer) -> usize;
    /// Drops the rows of `writer` up to `version`, silently.
    fn drop_rows_up_to(&mut self, writer: Writer, version: u64) -> usize;
    /// Drops the log of `writer` with all that is left in it.
    fn retire(&mut self, writer: Writer);
    fn is_empty_of(&self, writer: Writer) -> bool;
    /// Living rows, bytes of all rows as encoded, tombstones, rows in quarantine.
    fn sizes(&self) -> Sizes;
    fn print(&self) -> u64;
    /// Living rows of `writer` up to `version`: key and version.
    fn living(&self, writer: Writer, version: u64) -> Vec<(Vec<u8>, u64)>;
    fn writers(&self) -> Vec<Writer>;
}

/// How much a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Rows with a value, those in quarantine included.
    pub entries: usize,
    /// All rows as encoded. Memory is about this plus 250 bytes per row.
    pub bytes: usize,
    /// Rows that only say what is gone, or also do.
    pub tombstones: usize,
    /// Rows that can't be read or believed here.
    pub quarantined: usize,
    /// Kills that wait for their adds.
    pub pending: usize,
}

impl<S: Store> Table<S> {
    fn raw(&self, writers: &Writers, writer: Writer, key: &S::Key) -> Option<RawRow> {
        let row = self.row(key, writer)?;
        let content = match &row.body {
            Body::Opaque(content) => content.clone()?,
            Body::Live(_) | Body::Dead => {
                encode_content(writers, row.value(), row.ancestors(), row.kills())?.into()
            }
        };
        Some(RawRow { version: row.version, key: row::encode_key(key).into(), content })
    }

    /// Keeps tombstones within their bound by collecting the oldest of the longest log.
    fn bound_tombstones(&mut self) {
        if self.tombstones <= FREE_TOMBSTONES.max(2 * self.living) {
            return;
        }
        let longest = self.logs.iter().max_by_key(|(_, log)| log.tombstones.len());
        let cut = longest.and_then(|(writer, log)| {
            let middle = log.tombstones.iter().nth(log.tombstones.len() / 4)?;
            Some((*writer, (*middle).min(log.applied)))
        });
        if let Some((writer, version)) = cut {
            self.collect(writer, version);
        }
    }
}

impl<S: Store> Replica for Table<S> {
    fn apply_row(&mut self, cx: &mut Context<'_>, writer: Writer, raw: &RawRow) -> Applied {
        self.apply(cx, writer, raw)
    }

    fn advance_to(&mut self, writer: Writer, version: u64) -> bool {
        self.advance(writer, version)
    }

    fn applied(&self, writer: Writer) -> u64 {
        self.logs.get(&writer).map_or(0, |log| log.applied)
    }

    fn floor(&self, writer: Writer) -> u64 {
        self.logs.get(&writer).map_or(0, |log| log.floor)
    }

    fn marks(&self) -> Vec<Mark> {
        let marks = self.logs.iter();
        marks
            .map(|(w, log)| Mark { writer: *w, version: log.vouched(), floor: log.floor })
            .collect()
    }

    fn rows_after(
        &self,
        writers: &Writers,
        writer: Writer,
        from: u64,
        budget_bytes: usize,
    ) -> (Vec<RawRow>, u64) {
        let Some(log) = self.logs.get(&writer) else { return (Vec::new(), from) };
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let to = log.vouched();
        if from >= to {
            return (rows, from);
        }
        for (version, key) in log.by_version.range((Bound::Excluded(from), Bound::Included(to))) {
            let Some(raw) = self.raw(writers, writer, key) else { continue };
            bytes += raw.wire_bytes();
            if bytes > budget_bytes && !rows.is_empty() {
                let last = rows.last().map_or(from, |row: &RawRow| row.version);
                return (rows, last);
            }
            debug_assert_eq!(raw.version, *version, "the log and the row agree");
            rows.push(raw);
        }
        (rows, to)
    }

    fn section(
        &self,
        writers: &Writers,
        after: Option<Blob>,
        budget_bytes: usize,
    ) -> Option<Section> {
        let from = match &after {
            None => Bound::Unbounded,
            Some(key) => Bound::Excluded(row::decode_key::<S::Key>(key.as_slice()).ok()?),
        };
        let (mut rows, mut bytes, mut end) = (Vec::new(), 0, None);
        for (key, cell) in self.cells.range((from.clone(), Bound::Unbounded)) {
            if bytes > budget_bytes {
                // `end` is the last key taken in; this one comes with the next section.
                break;
            }
            for (writer, _) in cell {
                if let Some(raw) = self.raw(writers, *writer, key) {
                    bytes += raw.wire_bytes();
                    rows.push((*writer, raw));
                }
            }
            end = Some(key);
        }
        if bytes <= budget_bytes {
            end = None;
        }
        let to = end.map_or(Bound::Unbounded, |key| Bound::Included(key.clone()));
        let mut pending = Vec::new();
        for (writer, keys) in &self.pending {
            for (key, version) in keys.range((from.clone(), to.clone())) {
                pending.push((*writer, row::encode_key(key).into(), *version));
            }
        }
        let end = end.map(|key| row::encode_key(key).into());
        Some(Section { after, end, marks: self.marks(), rows, pending })
    }

    fn join_section(&mut self, cx: &mut Context<'_>, section: &Section) -> Option<usize> {
        let bound = |key: &Option<Blob>| match key {
            None => Some(None),
            Some(key) => row::decode_key::<S::Key>(key.as_slice()).ok().map(Some),
        };
        let (after, end) = (bound(&section.after)?, bound(&section.end)?);
        if after.is_some() && end.is_some() && after >= end {
            return None;
        }
        let inside = |key: &S::Key| {
            after.as_ref().is_none_or(|a| key > a) && end.as_ref().is_none_or(|e| key <= e)
        };
        let mut theirs: BTreeMap<(S::Key, Writer), &RawRow> = BTreeMap::new();
        for (writer, raw) in &section.rows {
            let key = row::decode_key::<S::Key>(raw.key.as_slice()).ok()?;
            if inside(&key) {
                theirs.insert((key, *writer), raw);
            }
        }
        let donor: BTreeMap<Writer, &Mark> = section.marks.iter().map(|m| (m.writer, m)).collect();
        let mut changed = 0;
        let range = (
            after.clone().map_or(Bound::Unbounded, Bound::Excluded),
            end.clone().map_or(Bound::Unbounded, Bound::Included),
        );
        // What is here, covered by the donor and not there, is dead (R7).
        let mut dead: Vec<(S::Key, Writer, bool)> = Vec::new();
        for (key, cell) in self.cells.range(range) {
            for (writer, row) in cell {
                if *writer == cx.me && !S::ID.is_shared() {
                    continue;
                }
                let covered = donor.get(writer).is_some_and(|mark| mark.version >= row.version);
                match theirs.get(&(key.clone(), *writer)) {
                    None if covered => dead.push((key.clone(), *writer, true)),
                    Some(raw) if raw.version == row.version && row.counts() => {
                        let content = row::decode_content::<S::Value>(raw.content.as_slice());
                        if content.is_ok_and(|content| content.add.is_none()) {
                            dead.push((key.clone(), *writer, false));
                        }
                    }
                    None | Some(_) => {}
                }
            }
        }
        for (key, writer, whole) in dead {
            changed += 1;
            if whole {
                self.take(&key, writer);
            } else {
                self.drop_add(&key, writer);
            }
        }
        // What is there and not covered here is news; what is covered here and missing died here.
        for ((_, writer), raw) in theirs {
            let known = writer == cx.me || self.applied(writer) >= raw.version;
            if !known
                && cx.writers.retired(writer).is_none()
                && self.apply(cx, writer, raw) == Applied::Changed
            {
                changed += 1;
            }
        }
        for (writer, key, version) in &section.pending {
            if let Ok(key) = row::decode_key::<S::Key>(key.as_slice())
                && inside(&key)
                && self.kill(cx, &key, *writer, *version)
            {
                changed += 1;
            }
        }
        for mark in &section.marks {
            if cx.writers.retired(mark.writer).is_none() {
                let log = self.log(mark.writer);
                log.floor = log.floor.max(mark.floor);
            }
        }
        Some(changed)
    }

    fn collect(&mut self, writer: Writer, version: u64) -> usize {
        let Some(log) = self.logs.get_mut(&writer) else { return 0 };
        let version = version.min(log.applied);
        let old: Vec<u64> = log.tombstones.range(..=version).copied().collect();
        let Some(last) = old.last() else { return 0 };
        log.floor = log.floor.max(*last);
        for version in &old {
            let key = self.logs[&writer].by_version[version].clone();
            let mut row = self.take(&key, writer).expect("the log names rows that are there");
            if row.counts() {
                row.causes = None;
                self.place(key, writer, row);
            }
        }
        old.len()
    }

    fn has_tombstones(&self, writer: Writer) -> bool {
        self.logs.get(&writer).is_some_and(|log| !log.tombstones.is_empty())
    }

    fn prints(&self, writer: Writer) -> [u64; BUCKETS] {
        let prints = self.logs.get(&writer).and_then(|log| log.prints.as_deref());
        prints.copied().unwrap_or([0; BUCKETS])
    }

    fn bucket_rows(&self, writers: &Writers, writer: Writer, mask: u64) -> Vec<RawRow> {
        let Some(log) = self.logs.get(&writer) else { return Vec::new() };
        log.by_version
            .range(..=log.applied)
            .filter(|(_, key)| {
                self.row(key, writer).is_some_and(|r| r.counts() && mask >> r.bucket() & 1 == 1)
            })
            .filter_map(|(_, key)| self.raw(writers, writer, key))
            .collect()
    }

    fn repair(
        &mut self,
        cx: &mut Context<'_>,
        writer: Writer,
        mask: u64,
        rows: &[RawRow],
    ) -> usize {
        let Some(log) = self.logs.get(&writer) else { return 0 };
        let right: BTreeSet<u64> = rows.iter().map(|row| row.version).collect();
        let wrong: Vec<S::Key> = log
            .by_version
            .iter()
            .filter(|(version, key)| {
                !right.contains(version)
                    && self
                        .row(key, writer)
                        .is_some_and(|r| r.counts() && mask >> r.bucket() & 1 == 1)
            })
            .map(|(_, key)| key.clone())
            .collect();
        let mut changed = wrong.len();
        for key in wrong {
            self.drop_add(&key, writer);
        }
        for raw in rows {
            let in_mask =
                mask >> bucket_of(key_hash(cx.writers, writer, raw.key.as_slice())) & 1 == 1;
            if in_mask && self.apply(cx, writer, raw) == Applied::Changed {
                changed += 1;
            }
        }
        changed
    }

    fn expire(&mut self, now: Now) -> usize {
        let wall = millis(now.wall);
        let mut expired = 0;
        while let Some((ends, writer, key)) = self.expiries.first().cloned()
            && ends.saturating_add(EXPIRY_GRACE_MS) <= wall
        {
            self.drop_add(&key, writer);
            self.expiries.remove(&(ends, writer, key));
            expired += 1;
        }
        expired
    }

    fn release(&mut self, cx: &mut Context<'_>) -> usize {
        let mut released = 0;
        for (key, writer) in self.quarantine.clone() {
            let Some(raw) = self.raw(cx.writers, writer, &key) else { continue };
            if Self::read(cx, &key, &raw).is_some() {
                let hash = key_hash(cx.writers, writer, raw.key.as_slice());
                self.insert(cx, writer, key, &raw, hash);
                released += 1;
            }
        }
        released
    }

    fn end(&mut self, writer: Writer) -> usize {
        match self.logs.get_mut(&writer) {
            Some(log) => log.hole = Some(1),
            None => return 0,
        }
        self.drop_rows_up_to(writer, u64::MAX)
    }

    fn drop_rows_up_to(&mut self, writer: Writer, version: u64) -> usize {
        let Some(log) = self.logs.get(&writer) else { return 0 };
        let keys: Vec<S::Key> =
            log.by_version.range(..=version).map(|(_, key)| key.clone()).collect();
        for key in &keys {
            self.take(key, writer);
        }
        keys.len()
    }

    fn retire(&mut self, writer: Writer) {
        self.drop_rows_up_to(writer, u64::MAX);
        self.logs.remove(&writer);
        self.pending.remove(&writer);
    }

    fn is_empty_of(&self, writer: Writer) -> bool {
        self.logs.get(&writer).is_none_or(|log| log.by_version.is_empty())
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            entries: self.living,
            bytes: self.bytes,
            tombstones: self.tombstones,
            quarantined: self.quarantine.len(),
            pending: self.pending.values().map(BTreeMap::len).sum(),
        }
    }

    fn print(&self) -> u64 {
        self.print
    }

    fn living(&self, writer: Writer, version: u64) -> Vec<(Vec<u8>, u64)> {
        let Some(log) = self.logs.get(&writer) else { return Vec::new() };
        log.by_version
            .range(..=version)
            .filter(|(_, key)| self.row(key, writer).is_some_and(Row::counts))
            .map(|(version, key)| (row::encode_key(key), *version))
            .collect()
    }

    fn writers(&self) -> Vec<Writer> {
        self.logs.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests;
