//! A table as replication uses it, whatever its store: logs, snapshots by ranges of keys, and fingerprints.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::Bound;

use smg_types::now::Now;

use crate::crdt::stamp::millis;
use crate::state::operations::StoreOperations;
use crate::state::row::{self, Blob, RawRow};
use crate::state::store::{Ownership, Store};
use crate::state::table::apply::Applied;
use crate::state::table::cell::{BUCKETS, Body, Row, bucket_of, encode_content, key_hash};
use crate::state::table::log::{BrokenInvariant, LogPosition};
use crate::state::table::not_applied::{MAX_NOT_APPLIED, NotAppliedReason};
use crate::state::table::range::{Mark, SavedKey, SnapshotRange};
use crate::state::table::{EXPIRY_GRACE_MS, NodeParts, Table};
use crate::state::writers::{Writer, Writers};

/// Consecutive rows of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogRange {
    pub(crate) rows: Vec<RawRow>,
    /// The log is applied up to here once the rows are.
    pub(crate) to: u64,
    /// The log is known to go up to here. Rows that have moved to a version between `to` and `upto` are not in `rows`.
    pub(crate) upto: u64,
}

/// The methods by which replication uses the table of every store.
pub(crate) trait Replica: Debug {
    /// Applies a row of `writer`.
    fn apply_row(&mut self, parts: &mut NodeParts<'_>, writer: Writer, raw: &RawRow) -> Applied;
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
    fn rows_after(
        &self,
        writers: &Writers,
        writer: Writer,
        from: u64,
        budget_bytes: usize,
    ) -> LogRange;
    /// The range of a snapshot that begins after the key `after`, `None`: at the first key. Returns `None` if `after` is not
    /// a key.
    fn range_after(
        &self,
        writers: &Writers,
        after: Option<Blob>,
        budget_bytes: usize,
    ) -> Option<SnapshotRange>;
    /// Merges a range of a snapshot; returns how many rows have changed, `None` if its bounds are not keys.
    fn merge_range(&mut self, parts: &mut NodeParts<'_>, range: &SnapshotRange) -> Option<usize>;
    /// From now on, keys that change are remembered until they are saved.
    fn track_unsaved(&mut self);
    /// The keys that have changed since this was last called, each with all that is known about it: what a snapshot would say.
    fn take_unsaved(&mut self, writers: &Writers) -> Vec<SavedKey>;
    /// Drops tombstones of `writer` up to `version`, but none that this node does not cover; returns how many.
    fn collect(&mut self, writer: Writer, version: u64) -> usize;
    /// Raises the floor of `writer` to that of the node that sends the log, and drops tombstones up to it; returns how many.
    /// The log must be applied up to `floor`.
    fn raise_floor(&mut self, writer: Writer, floor: u64) -> usize;
    /// Whether the log of `writer` has tombstones.
    fn has_tombstones(&self, writer: Writer) -> bool;
    /// The fingerprints of the rows of `writer`, one per bucket of keys.
    fn fingerprints(&self, writer: Writer) -> [u64; BUCKETS];
    /// The rows of `writer` with dots in the buckets of `mask`, which has one bit per bucket.
    fn bucket_rows(&self, writers: &Writers, writer: Writer, mask: u64) -> Vec<RawRow>;
    /// Makes the rows of `writer` in those buckets equal to `rows`; returns how many have changed.
    fn repair(
        &mut self,
        parts: &mut NodeParts<'_>,
        writer: Writer,
        mask: u64,
        rows: &[RawRow],
    ) -> usize;
    /// Drops rows that have expired; returns how many.
    fn expire(&mut self, now: Now) -> usize;
    /// Decodes the rows in quarantine again, because the clock may have come to a stamp that was too late; returns how many have
    /// left quarantine.
    fn release(&mut self, parts: &mut NodeParts<'_>) -> usize;
    /// Rows of `writer` that have no effect here, each with its version and the reason, at most [`MAX_NOT_APPLIED`]: those in
    /// quarantine, and the latest ones that were refused.
    fn not_applied(&self, writer: Writer) -> Vec<(u64, NotAppliedReason)>;
    /// Whether the log of `writer` has a row of this version, so that nothing has replaced it.
    fn has_row(&self, writer: Writer, version: u64) -> bool;
    /// Drops all rows of `writer`, which has ended, from a store whose rows end with their writer; returns how many. This
    /// node relays the log no longer, because other nodes may not know yet that the writer has ended.
    fn end(&mut self, writer: Writer) -> usize;
    /// Takes up to `budget` rows of `of`, a writer that has ended, over into rows of this node; returns how many.
    fn adopt(&mut self, parts: &NodeParts<'_>, of: Writer, budget: usize) -> usize;
    /// Whether rows of other writers hold all that `writer` has written.
    fn is_spent(&self, writers: &Writers, writer: Writer) -> bool;
    /// Drops all rows of `writer`, which is retired. They stay covered, and a node that has not applied them all needs a
    /// snapshot.
    fn retire(&mut self, writer: Writer);
    /// Whether rows of other writers carry dots of `writer`, which can't be encoded without its id.
    fn is_carried(&self, writer: Writer) -> bool;
    /// Whether nothing is known of the log of `writer`.
    fn is_without_log(&self, writer: Writer) -> bool;
    /// Whether kills of writes of `writer` wait for these writes.
    fn has_pending_kills(&self, writer: Writer) -> bool;
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
            Body::Opaque(content, _) => content.clone()?,
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
}

impl<S: StoreOperations> Replica for Table<S> {
    /// Applies a row of `writer`.
    fn apply_row(&mut self, parts: &mut NodeParts<'_>, writer: Writer, raw: &RawRow) -> Applied {
        self.apply(parts, writer, raw)
    }

    fn advance_to(&mut self, writer: Writer, to: u64, upto: u64) -> bool {
        self.advance(writer, to, upto)
    }

    fn claim(&mut self, writer: Writer, version: u64) -> bool {
        Self::claim(self, writer, version)
    }

    fn applied(&self, writer: Writer) -> u64 {
        Self::applied(self, writer)
    }

    fn floor(&self, writer: Writer) -> u64 {
        self.logs.get(&writer).map_or(0, |log| log.floor)
    }

    fn marks(&self) -> Vec<Mark> {
        Self::marks(self)
    }

    fn rows_after(
        &self,
        writers: &Writers,
        writer: Writer,
        from: u64,
        budget_bytes: usize,
    ) -> LogRange {
        let mut range = LogRange { rows: Vec::new(), to: from, upto: from };
        let Some(log) = self.logs.get(&writer) else { return range };
        let to = log.before_hole(log.applied);
        if from >= to {
            return range;
        }
        range.upto = log.applied.max(log.target);
        let mut bytes = 0;
        for (version, key) in log.by_version.range((Bound::Excluded(from), Bound::Included(to))) {
            let Some(raw) = self.raw(writers, writer, key) else { continue };
            bytes += raw.wire_bytes();
            if bytes > budget_bytes && !range.rows.is_empty() {
                range.to = range.rows.last().map_or(from, |row| row.version);
                return range;
            }
            debug_assert_eq!(raw.version, *version, "the log has the version of the row");
            range.rows.push(raw);
        }
        range.to = to;
        range
    }

    fn range_after(
        &self,
        writers: &Writers,
        after: Option<Blob>,
        budget_bytes: usize,
    ) -> Option<SnapshotRange> {
        self.snapshot_range(writers, after, budget_bytes)
    }

    fn merge_range(&mut self, parts: &mut NodeParts<'_>, range: &SnapshotRange) -> Option<usize> {
        self.merge_snapshot_range(parts, range)
    }

    fn track_unsaved(&mut self) {
        self.unsaved_keys.get_or_insert_default();
    }

    fn take_unsaved(&mut self, writers: &Writers) -> Vec<SavedKey> {
        let unsaved = self.unsaved_keys.as_mut().map(std::mem::take).unwrap_or_default();
        unsaved.iter().map(|key| self.saved_key(writers, key)).collect()
    }

    fn collect(&mut self, writer: Writer, version: u64) -> usize {
        self.collect_tombstones(writer, version)
    }

    fn raise_floor(&mut self, writer: Writer, floor: u64) -> usize {
        let collected = self.collect_tombstones(writer, floor);
        let log = self.log(writer);
        log.floor = log.floor.max(floor);
        collected
    }

    /// Whether the log of `writer` has tombstones.
    fn has_tombstones(&self, writer: Writer) -> bool {
        self.logs.get(&writer).is_some_and(|log| !log.tombstones.is_empty())
    }

    fn fingerprints(&self, writer: Writer) -> [u64; BUCKETS] {
        let fingerprints = self.logs.get(&writer).and_then(|log| log.fingerprints.as_deref());
        fingerprints.copied().unwrap_or([0; BUCKETS])
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
        parts: &mut NodeParts<'_>,
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
                mask >> bucket_of(key_hash(parts.writers, writer, raw.key.as_slice())) & 1 == 1;
            if in_mask && self.apply_repair(parts, writer, raw) == Applied::Changed {
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

    fn release(&mut self, parts: &mut NodeParts<'_>) -> usize {
        self.retry_quarantine(parts)
    }

    fn not_applied(&self, writer: Writer) -> Vec<(u64, NotAppliedReason)> {
        let quarantined = self.quarantine.iter().filter(|(_, w)| *w == writer);
        let quarantined = quarantined.filter_map(|(key, _)| {
            let row = self.row(key, writer)?;
            match row.body {
                Body::Opaque(_, reason) => Some((row.version, reason)),
                Body::Live(_) | Body::Dead => None,
            }
        });
        let refused =
            self.logs.get(&writer).into_iter().flat_map(|log| log.refused.iter().copied());
        refused.chain(quarantined).take(MAX_NOT_APPLIED).collect()
    }

    fn has_row(&self, writer: Writer, version: u64) -> bool {
        self.logs.get(&writer).is_some_and(|log| log.by_version.contains_key(&version))
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

    fn adopt(&mut self, parts: &NodeParts<'_>, of: Writer, budget: usize) -> usize {
        S::adopt(self, parts, of, budget)
    }

    fn is_spent(&self, writers: &Writers, writer: Writer) -> bool {
        S::is_spent(self, writers, writer)
    }

    fn retire(&mut self, writer: Writer) {
        self.drop_rows(writer);
        if let Some(log) = self.logs.get_mut(&writer) {
            log.floor = log.floor.max(log.applied);
            log.fingerprints = None;
        }
    }

    fn is_carried(&self, writer: Writer) -> bool {
        self.carried.contains_key(&writer)
    }

    fn is_without_log(&self, writer: Writer) -> bool {
        self.logs.get(&writer).is_none_or(|log| log.position() == LogPosition::default())
    }

    fn has_pending_kills(&self, writer: Writer) -> bool {
        self.pending.contains_key(&writer)
    }

    fn forget(&mut self, writer: Writer) {
        self.drop_rows(writer);
        self.logs.remove(&writer);
        self.pending.remove(&writer);
        self.settle_merged_ranges(writer, u64::MAX);
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
