//! A table as replication uses it, whatever its store: logs, snapshots by ranges of keys, and fingerprints.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::Bound;

use smg_types::now::Now;

use crate::crdt::stamp::millis;
use crate::state::row::{self, Blob, RawRow};
use crate::state::store::{Ownership, Store};
use crate::state::table::{
    Applied, BUCKETS, Body, BrokenInvariant, Context, EXPIRY_GRACE_MS, FREE_TOMBSTONES, Kills,
    LogPosition, Row, Section, Table, bucket_of, encode_content, extras, key_hash,
};
use crate::state::writers::{Writer, Writers};

/// A position in a log: everything up to `version` is covered, and tombstones up to `floor` may have been dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) writer: Writer,
    pub(crate) version: u64,
    pub(crate) floor: u64,
}

/// Consecutive rows of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) rows: Vec<RawRow>,
    /// The log is applied up to here once the rows are.
    pub(crate) to: u64,
    /// The log is known to go up to here. Rows that have moved to a version between `to` and `upto` are not in `rows`.
    pub(crate) upto: u64,
}

/// What replication needs of the table of every store.
pub(crate) trait Replica: Debug {
    /// Applies a row of `writer`.
    fn apply_row(&mut self, cx: &mut Context<'_>, writer: Writer, raw: &RawRow) -> Applied;
    /// Records that the rows of `writer` up to `to` are applied, and that its log goes up to `upto`; returns whether the log
    /// has moved on.
    fn advance_to(&mut self, writer: Writer, to: u64, upto: u64) -> bool;
    /// Records that a snapshot has brought all rows of `writer` up to `version`; returns whether the log has moved on.
    fn claim(&mut self, writer: Writer, version: u64) -> bool;
    /// The version up to which the log of `writer` is applied.
    fn applied(&self, writer: Writer) -> u64;
    /// The version of `writer` up to which rows may have been dropped that a node behind it would need.
    fn floor(&self, writer: Writer) -> u64;
    /// The positions of all logs.
    fn marks(&self) -> Vec<Mark>;
    /// Rows of `writer` after version `from`, as many as fit into the budget, at least one.
    fn rows_after(&self, writers: &Writers, writer: Writer, from: u64, budget_bytes: usize) -> Cut;
    /// The range of a snapshot that begins after the key `after`, `None`: at the first key. Returns `None` if `after` is not
    /// a key.
    fn section(
        &self,
        writers: &Writers,
        after: Option<Blob>,
        budget_bytes: usize,
    ) -> Option<Section>;
    /// Merges a range of a snapshot; returns how many rows have changed, `None` if its bounds are not keys.
    fn join_section(&mut self, cx: &mut Context<'_>, section: &Section) -> Option<usize>;
    /// Drops tombstones of `writer` up to `version`, but none that this node does not cover; returns how many.
    fn collect(&mut self, writer: Writer, version: u64) -> usize;
    /// Raises the floor of `writer` to that of the node that sends the log, and drops tombstones up to it; returns how many.
    /// The log must be applied up to `floor`.
    fn raise_floor(&mut self, writer: Writer, floor: u64) -> usize;
    /// Whether the log of `writer` has tombstones.
    fn has_tombstones(&self, writer: Writer) -> bool;
    /// The fingerprints of the rows of `writer`, one per bucket of keys.
    fn prints(&self, writer: Writer) -> [u64; BUCKETS];
    /// The rows of `writer` with dots in the buckets of `mask`, which has one bit per bucket.
    fn bucket_rows(&self, writers: &Writers, writer: Writer, mask: u64) -> Vec<RawRow>;
    /// Makes the rows of `writer` in those buckets equal to `rows`; returns how many have changed.
    fn repair(&mut self, cx: &mut Context<'_>, writer: Writer, mask: u64, rows: &[RawRow])
    -> usize;
    /// Drops rows that have expired; returns how many.
    fn expire(&mut self, now: Now) -> usize;
    /// Decodes the rows in quarantine again, because a stamp may no longer be too far in the future; returns how many have
    /// left quarantine.
    fn release(&mut self, cx: &mut Context<'_>) -> usize;
    /// Drops all rows of `writer`, which has ended, from a store whose rows end with their writer; returns how many. This
    /// node relays the log no longer, because other nodes may not know yet that the writer has ended.
    fn end(&mut self, writer: Writer) -> usize;
    /// Takes up to `budget` rows of `of`, a writer that has ended, over into rows of this node; returns how many.
    fn adopt(&mut self, cx: &Context<'_>, of: Writer, budget: usize) -> usize;
    /// Whether rows of other writers hold all that `writer` has written.
    fn is_spent(&self, writers: &Writers, writer: Writer) -> bool;
    /// Drops all rows of `writer`, which is retired. They stay covered, and a node that has not applied them all needs a
    /// snapshot.
    fn retire(&mut self, writer: Writer);
    /// Whether rows of other writers carry dots of `writer`, which can't be encoded without its id.
    fn is_carried(&self, writer: Writer) -> bool;
    /// Drops all rows and the log of `writer`.
    fn forget(&mut self, writer: Writer);
    /// How much the table holds.
    fn sizes(&self) -> Sizes;
    /// The number of keys with a value; in stores with a row per node, the number of live rows.
    fn entries(&self) -> usize;
    /// Whether the table holds rows that expire, or tombstones that can be dropped later.
    fn changes_with_time(&self) -> bool;
    /// A hash that is equal on nodes which hold the same dots.
    fn fingerprint(&self) -> u64;
    /// A hash that is equal on nodes which read the same.
    fn reading(&self, writers: &Writers) -> u64;
    /// The encoded keys and versions of the rows of `writer` with dots, up to `version`.
    fn live_rows(&self, writer: Writer, version: u64) -> Vec<(Vec<u8>, u64)>;
    /// The writers that have a log here.
    fn writers(&self) -> Vec<Writer>;
    fn log_positions(&self) -> Vec<(Writer, LogPosition)>;
    /// Checks the invariants of all logs; `me` writes one of them.
    fn check_logs(&self, me: Writer) -> Result<(), (Writer, BrokenInvariant)>;
}

/// How much a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Live writes, including rows in quarantine. A write that several rows carry counts once.
    pub entries: usize,
    /// Encoded bytes of all rows. Memory is about 250 bytes per row more.
    pub bytes: usize,
    /// Rows without live writes, and rows with kills.
    pub tombstones: usize,
    /// Rows in quarantine.
    pub quarantined: usize,
    /// Kills that wait for their dots.
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
            self.remove_row(key, writer);
        }
        keys.len()
    }

    /// Keeps tombstones within their bound by dropping the oldest quarter of the log that has most.
    pub(super) fn bound_tombstones(&mut self) {
        if self.tombstones <= FREE_TOMBSTONES.max(2 * self.dots) {
            return;
        }
        let longest = self.logs.iter().max_by_key(|(_, log)| log.tombstones.len());
        // Tombstones that are not covered must stay. Other logs do not lose theirs because of them.
        let longest =
            longest.filter(|(_, log)| log.tombstones.range(..=log.covered).next().is_some());
        let cut = longest.and_then(|(writer, log)| {
            let last = log.tombstones.iter().nth(log.tombstones.len() / 4)?;
            Some((*writer, *last))
        });
        if let Some((writer, version)) = cut {
            self.collect(writer, version);
        }
    }
}

impl<S: Store> Replica for Table<S> {
    /// Applies a row of `writer`.
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
            debug_assert_eq!(raw.version, *version, "the log has the version of the row");
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
        // Of what is not covered, only tombstones say what is dead. A row that was refused never arrives, so its hole does not
        // matter here.
        let version = version.min(log.covered);
        let old: Vec<u64> = log.tombstones.range(..=version).copied().collect();
        let Some(last) = old.last() else { return 0 };
        log.floor = log.floor.max(*last);
        for version in &old {
            let key = self.logs[&writer].by_version[version].clone();
            let mut row = self.remove_row(&key, writer).expect("each version in a log has a row");
            if row.has_dots() {
                let carried = row.extras.take().map_or_else(Vec::new, |extras| extras.carried);
                row.extras = extras(Kills::new(), carried);
                self.insert_row(key, writer, row);
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

    /// Whether the log of `writer` has tombstones.
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
                self.row(key, writer).is_some_and(|r| r.has_dots() && mask >> r.bucket() & 1 == 1)
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
        let expected: BTreeSet<u64> = rows.iter().map(|row| row.version).collect();
        let surplus: Vec<S::Key> = log
            .by_version
            .iter()
            .filter(|(version, key)| {
                !expected.contains(version)
                    && self
                        .row(key, writer)
                        .is_some_and(|r| r.has_dots() && mask >> r.bucket() & 1 == 1)
            })
            .map(|(_, key)| key.clone())
            .collect();
        let mut changed = surplus.len();
        for key in surplus {
            if let Some(row) = self.remove_row(&key, writer) {
                // Other rows may carry the dots of this one, so that a peer must not conclude that they are dead.
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
            let has_expired =
                |value: &S::Value| S::expires_ms(&key, value).is_some_and(|e| e <= ends);
            let row = self.row(&key, writer).into_iter().flat_map(|row| row.writes(writer));
            let expired_dots: Vec<_> =
                row.filter(|(_, v)| has_expired(v)).map(|(dot, _)| dot).collect();
            self.drop_dots(&key, None, |dot| expired_dots.contains(&dot));
            self.expiries.remove(&(ends, writer, key));
            expired += 1;
        }
        expired
    }

    fn release(&mut self, cx: &mut Context<'_>) -> usize {
        self.retry_quarantine(cx)
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
            entries: self.dots,
            bytes: self.bytes,
            tombstones: self.tombstones,
            quarantined: self.quarantine.len(),
            pending: self.pending.values().map(BTreeMap::len).sum(),
        }
    }

    fn entries(&self) -> usize {
        match S::OWNERSHIP {
            Ownership::Shared => self.keys().count(),
            Ownership::PerNode => self.dots,
        }
    }

    fn fingerprint(&self) -> u64 {
        Self::fingerprint(self)
    }

    fn reading(&self, writers: &Writers) -> u64 {
        S::reading(self, writers)
    }

    fn live_rows(&self, writer: Writer, version: u64) -> Vec<(Vec<u8>, u64)> {
        let Some(log) = self.logs.get(&writer) else { return Vec::new() };
        log.by_version
            .range(..=version)
            .filter(|(_, key)| self.row(key, writer).is_some_and(Row::has_dots))
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
