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
//! removed or replaced by somebody who had not seen that they were adopted. So a kill that waits says which of the two it
//! is: the adoption's own kills, come back by a snapshot, must not end what was adopted.

mod replica;
#[cfg(test)]
mod tests;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::cluster::state::StoreId;
use crate::cluster::state::row::{self, Blob, Content, ContentRef, MAX_KEY_BYTES, RawRow};
use crate::cluster::state::writers::{Writer, Writers};
use crate::crdt::Merge;
use crate::crdt::stamp::{HybridClock, Stamp, millis};
use crate::now::Now;

pub(crate) use replica::Replica;
pub use replica::Sizes;

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
    /// Kills that wait: whose adds, under which key.
    pub(crate) pending: Vec<(Writer, Blob, Kill)>,
}

#[derive(Debug, Clone)]
enum Body<V> {
    Live(V),
    /// Removed, or killed while its kills are still needed.
    Dead,
    /// In quarantine; `None` when there was no room to keep it.
    Opaque(Option<Blob>),
}

/// Which adds of a writer under a key are dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Kill {
    /// Adds up to here.
    pub up_to: u64,
    /// Adds up to here were removed or replaced, so that what was adopted from them ends too; those above were only
    /// adopted, and live on in that.
    pub removed: u64,
}

impl Kill {
    /// Adds up to `version` were removed or replaced.
    fn of_removed(version: u64) -> Self {
        Self { up_to: version, removed: version }
    }

    fn join(&mut self, other: Self) {
        self.up_to = self.up_to.max(other.up_to);
        self.removed = self.removed.max(other.removed);
    }
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
    pending: BTreeMap<Writer, BTreeMap<S::Key, Kill>>,
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

    /// Kills adds of `of` under `key`, now or when they come; also what descends from those that were removed.
    fn kill(&mut self, cx: &mut Context<'_>, key: &S::Key, of: Writer, kill: Kill) -> bool {
        let changed = self.kill_quietly(cx, key, of, kill);
        self.kill_descendant(cx, key, (of, kill.removed)) | changed
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

    /// The same, but what descends from the killed adds is not looked at.
    fn kill_quietly(&mut self, cx: &Context<'_>, key: &S::Key, of: Writer, kill: Kill) -> bool {
        let hit = self.row(key, of).is_some_and(|row| row.version <= kill.up_to && row.counts());
        if hit {
            self.drop_add(key, of);
        }
        if !self.covers(cx.writers, of, kill.up_to) {
            let waiting: usize = self.pending.values().map(BTreeMap::len).sum();
            if waiting < MAX_PENDING {
                self.pending.entry(of).or_default().entry(key.clone()).or_default().join(kill);
            }
        }
        hit
    }

    fn is_killed(&self, key: &S::Key, dot: (Writer, u64)) -> bool {
        let kills = |dots: &[(Writer, u64)]| dots.iter().any(|(w, v)| *w == dot.0 && *v >= dot.1);
        self.pending
            .get(&dot.0)
            .and_then(|keys| keys.get(key))
            .is_some_and(|kill| kill.up_to >= dot.1)
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
            let adopted = ancestors.iter().find(|(w, v)| *w == of && *v <= up_to);
            let removed = adopted.map_or(up_to, |(_, version)| version.saturating_sub(1));
            changed |= self.kill(cx, &key, of, Kill { up_to, removed });
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
            waiting.retain(|_, kill| kill.up_to > version);
            if waiting.is_empty() {
                self.pending.remove(&writer);
            }
        }
        true
    }
}
