//! A table as replication sees it: its logs, its snapshots by key ranges, its fingerprints, whatever its rows are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::Bound;

use smg_types::now::Now;

use crate::crdt::stamp::millis;
use crate::state::row::{self, Blob, RawRow};
use crate::state::store::{Ownership, Store};
use crate::state::table::{
    Applied, BUCKETS, Body, BrokenInvariant, Context, EXPIRY_GRACE_MS, FREE_TOMBSTONES, Kills,
    LogPosition, Row, Section, Table, bucket_of, encode_content, key_hash, more,
};
use crate::state::writers::{Writer, Writers};

/// How far a log is: applied up to `version`; up to `floor` rows may be gone that others would need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) writer: Writer,
    pub(crate) version: u64,
    pub(crate) floor: u64,
}

/// A part of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) rows: Vec<RawRow>,
    /// The version that the rows lead to.
    pub(crate) to: u64,
    /// How far the log is known to go: rows that have moved to between the two are not among these.
    pub(crate) upto: u64,
}

/// What replication asks of every table, whatever its rows are.
pub(crate) trait Replica: Debug {
    fn apply_row(&mut self, cx: &mut Context<'_>, writer: Writer, raw: &RawRow) -> Applied;
    /// Rows of `writer` up to `to` are applied, from a log that was at `upto`.
    fn advance_to(&mut self, writer: Writer, to: u64, upto: u64) -> bool;
    /// A snapshot has shown everything of `writer` up to `version`.
    fn claim(&mut self, writer: Writer, version: u64) -> bool;
    /// The last version of which the rows are applied.
    fn applied(&self, writer: Writer) -> u64;
    fn floor(&self, writer: Writer) -> u64;
    fn marks(&self) -> Vec<Mark>;
    /// Rows after version `from` within the budget.
    fn rows_after(&self, writers: &Writers, writer: Writer, from: u64, budget_bytes: usize) -> Cut;
    fn section(
        &self,
        writers: &Writers,
        after: Option<Blob>,
        budget_bytes: usize,
    ) -> Option<Section>;
    /// Joins a range of keys; `None` if its bounds are no keys. Says how many rows changed.
    fn join_section(&mut self, cx: &mut Context<'_>, section: &Section) -> Option<usize>;
    /// Drops tombstones of `writer` up to `version`, as far as nothing is missing before it; says how many.
    fn collect(&mut self, writer: Writer, version: u64) -> usize;
    /// Rows up to `floor`, which must be applied, may be gone where the log came from, so none may miss them here.
    fn raise_floor(&mut self, writer: Writer, floor: u64) -> usize;
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
    /// Takes up to `budget` rows of `of`, a writer that is over, over into rows of this node; says how many.
    fn adopt(&mut self, cx: &Context<'_>, of: Writer, budget: usize) -> usize;
    /// Whether nothing of `writer` is left but what rows of others hold too.
    fn is_spent(&self, writers: &Writers, writer: Writer) -> bool;
    /// Drops all rows of `writer`. What it covers stays covered; who is behind that needs a snapshot.
    fn retire(&mut self, writer: Writer);
    /// Whether dots of `writer` live in rows of others, which can't be handed on without its name.
    fn is_carried(&self, writer: Writer) -> bool;
    /// Drops the log of `writer`.
    fn forget(&mut self, writer: Writer);
    /// Living rows, bytes of all rows as encoded, tombstones, rows in quarantine.
    fn sizes(&self) -> Sizes;
    /// How many keys have a value.
    fn entries(&self) -> usize;
    /// Whether it holds rows that expire, or tombstones that will be collected.
    fn changes_with_time(&self) -> bool;
    fn print(&self) -> u64;
    /// A number that is equal on nodes which read the same.
    fn reading(&self, writers: &Writers) -> u64;
    /// Living rows of `writer` up to `version`: key and version.
    fn living(&self, writer: Writer, version: u64) -> Vec<(Vec<u8>, u64)>;
    fn writers(&self) -> Vec<Writer>;
    fn log_positions(&self) -> Vec<(Writer, LogPosition)>;
    /// Checks the invariants of all logs; `me` writes one of them.
    fn check_logs(&self, me: Writer) -> Result<(), (Writer, BrokenInvariant)>;
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
    pub(super) fn raw(&self, writers: &Writers, writer: Writer, key: &S::Key) -> Option<RawRow> {
        let row = self.row(key, writer)?;
        let content = match &row.body {
            Body::Opaque(content) => content.clone()?,
            Body::Live(_) | Body::Dead => {
                encode_content(writers, row.own(), row.carried(), row.kills())?.into()
            }
        };
        Some(RawRow { version: row.version, key: row::encode_key(key).into(), content })
    }

    fn drop_rows(&mut self, writer: Writer) -> usize {
        let Some(log) = self.logs.get(&writer) else { return 0 };
        let keys: Vec<S::Key> = log.by_version.values().cloned().collect();
        for key in &keys {
            self.take(key, writer);
        }
        keys.len()
    }

    /// Keeps tombstones within their bound by collecting the oldest of the longest log, once that has come as a whole.
    pub(super) fn bound_tombstones(&mut self) {
        if self.tombstones <= FREE_TOMBSTONES.max(2 * self.living) {
            return;
        }
        let longest = self.logs.iter().max_by_key(|(_, log)| log.tombstones.len());
        // One of which a part is still to come waits for that, and the others need not pay for it.
        let longest =
            longest.filter(|(_, log)| log.tombstones.range(..=log.covered).next().is_some());
        let cut = longest.and_then(|(writer, log)| {
            let middle = log.tombstones.iter().nth(log.tombstones.len() / 4)?;
            Some((*writer, *middle))
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

    fn advance_to(&mut self, writer: Writer, to: u64, upto: u64) -> bool {
        self.advance(writer, to, upto)
    }

    fn claim(&mut self, writer: Writer, version: u64) -> bool {
        Self::claim(self, writer, version)
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
            .map(|(w, log)| Mark { writer: *w, version: log.covered(), floor: log.floor })
            .collect()
    }

    fn rows_after(&self, writers: &Writers, writer: Writer, from: u64, budget_bytes: usize) -> Cut {
        let mut cut = Cut { rows: Vec::new(), to: from, upto: from };
        let Some(log) = self.logs.get(&writer) else { return cut };
        let to = log.before_hole(log.applied);
        if from >= to {
            return cut;
        }
        cut.upto = log.applied.max(log.target);
        let mut bytes = 0;
        for (version, key) in log.by_version.range((Bound::Excluded(from), Bound::Included(to))) {
            let Some(raw) = self.raw(writers, writer, key) else { continue };
            bytes += raw.wire_bytes();
            if bytes > budget_bytes && !cut.rows.is_empty() {
                cut.to = cut.rows.last().map_or(from, |row| row.version);
                return cut;
            }
            debug_assert_eq!(raw.version, *version, "the log and the row agree");
            cut.rows.push(raw);
        }
        cut.to = to;
        cut
    }

    fn section(
        &self,
        writers: &Writers,
        after: Option<Blob>,
        budget_bytes: usize,
    ) -> Option<Section> {
        self.cut(writers, after, budget_bytes)
    }

    fn join_section(&mut self, cx: &mut Context<'_>, section: &Section) -> Option<usize> {
        self.join(cx, section)
    }

    fn collect(&mut self, writer: Writer, version: u64) -> usize {
        let Some(log) = self.logs.get_mut(&writer) else { return 0 };
        // Beyond, only the tombstone says that what is not here is dead. What was refused here never comes: it is not waited for.
        let version = version.min(log.covered);
        let old: Vec<u64> = log.tombstones.range(..=version).copied().collect();
        let Some(last) = old.last() else { return 0 };
        log.floor = log.floor.max(*last);
        for version in &old {
            let key = self.logs[&writer].by_version[version].clone();
            let mut row = self.take(&key, writer).expect("the log names rows that are there");
            if row.lives() {
                let carried = row.more.take().map_or_else(Vec::new, |more| more.carried);
                row.more = more(Kills::new(), carried);
                self.place(key, writer, row);
            }
        }
        old.len()
    }

    fn raise_floor(&mut self, writer: Writer, floor: u64) -> usize {
        let collected = self.collect(writer, floor);
        let log = self.log(writer);
        log.floor = log.floor.max(floor);
        collected
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
                self.row(key, writer).is_some_and(|r| r.lives() && mask >> r.bucket() & 1 == 1)
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
                        .is_some_and(|r| r.lives() && mask >> r.bucket() & 1 == 1)
            })
            .map(|(_, key)| key.clone())
            .collect();
        let mut changed = wrong.len();
        for key in wrong {
            if let Some(row) = self.take(&key, writer) {
                // Others may carry its dots, so that its absence must not be taken for their end.
                let log = self.log(writer);
                log.floor = log.floor.max(row.version);
            }
        }
        for raw in rows {
            let in_mask =
                mask >> bucket_of(key_hash(cx.writers, writer, raw.key.as_slice())) & 1 == 1;
            if in_mask && self.apply_repair(cx, writer, raw) == Applied::Changed {
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
            let is_over = |value: &S::Value| S::expires_ms(&key, value).is_some_and(|e| e <= ends);
            let row = self.row(&key, writer).into_iter().flat_map(|row| row.writes(writer));
            let over: Vec<_> = row.filter(|(_, v)| is_over(v)).map(|(dot, _)| dot).collect();
            self.drop_dots(&key, None, |dot| over.contains(&dot));
            self.expiries.remove(&(ends, writer, key));
            expired += 1;
        }
        expired
    }

    fn release(&mut self, cx: &mut Context<'_>) -> usize {
        self.read_again(cx)
    }

    fn changes_with_time(&self) -> bool {
        self.tombstones > 0 || !self.expiries.is_empty()
    }

    fn end(&mut self, writer: Writer) -> usize {
        match self.logs.get_mut(&writer) {
            Some(log) => log.hole = Some(1),
            None => return 0,
        }
        self.drop_rows(writer)
    }

    fn adopt(&mut self, cx: &Context<'_>, of: Writer, budget: usize) -> usize {
        S::adopt(self, cx, of, budget)
    }

    fn is_spent(&self, writers: &Writers, writer: Writer) -> bool {
        S::is_spent(self, writers, writer)
    }

    fn retire(&mut self, writer: Writer) {
        self.drop_rows(writer);
        if let Some(log) = self.logs.get_mut(&writer) {
            log.floor = log.floor.max(log.applied);
            log.prints = None;
        }
    }

    fn is_carried(&self, writer: Writer) -> bool {
        self.carried.contains_key(&writer)
    }

    fn forget(&mut self, writer: Writer) {
        self.drop_rows(writer);
        self.logs.remove(&writer);
        self.pending.remove(&writer);
        self.settle_joined(writer, u64::MAX);
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

    fn entries(&self) -> usize {
        match S::OWNERSHIP {
            Ownership::Shared => self.keys().count(),
            Ownership::PerNode => self.living,
        }
    }

    fn print(&self) -> u64 {
        self.fingerprint()
    }

    fn reading(&self, writers: &Writers) -> u64 {
        S::reading(self, writers)
    }

    fn living(&self, writer: Writer, version: u64) -> Vec<(Vec<u8>, u64)> {
        let Some(log) = self.logs.get(&writer) else { return Vec::new() };
        log.by_version
            .range(..=version)
            .filter(|(_, key)| self.row(key, writer).is_some_and(Row::lives))
            .map(|(version, key)| (row::encode_key(key), *version))
            .collect()
    }

    fn writers(&self) -> Vec<Writer> {
        self.logs.keys().copied().collect()
    }

    fn log_positions(&self) -> Vec<(Writer, LogPosition)> {
        self.logs.iter().map(|(writer, log)| (*writer, log.position())).collect()
    }

    fn check_logs(&self, me: Writer) -> Result<(), (Writer, BrokenInvariant)> {
        let mut logs = self.logs.iter();
        logs.try_for_each(|(w, log)| log.check(*w == me).map_err(|broken| (*w, broken)))
    }
}
