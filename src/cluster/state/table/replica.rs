//! A table as replication sees it: its logs, its snapshots by key ranges, its fingerprints, whatever its rows are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::Bound;

use crate::cluster::state::row::{self, Blob, RawRow};
use crate::cluster::state::table::{
    Applied, BUCKETS, Body, Context, Dots, EXPIRY_GRACE_MS, FREE_TOMBSTONES, Mark, Row, Section,
    Store, Table, bucket_of, causes, encode_content, key_hash,
};
use crate::cluster::state::writers::{Writer, Writers};
use crate::crdt::stamp::millis;
use crate::now::Now;

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
    pub(super) fn bound_tombstones(&mut self) {
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
            for (key, kill) in keys.range((from.clone(), to.clone())) {
                pending.push((*writer, row::encode_key(key).into(), *kill));
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
        for (writer, key, kill) in &section.pending {
            if let Ok(key) = row::decode_key::<S::Key>(key.as_slice())
                && inside(&key)
                && self.kill(cx, &key, *writer, *kill)
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
                // The ancestors stay: a removal of theirs may still come from somebody who was away for long.
                row.causes = causes(Dots::new(), row.ancestors().to_vec());
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
