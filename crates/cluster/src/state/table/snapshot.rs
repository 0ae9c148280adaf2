//! Snapshots of a table by ranges of keys, and how a node merges them.
//!
//! A range contains all rows under its keys, and the versions that its donor covers. It can be merged by itself: a dot that
//! the donor covers and does not hold is dead, and so is a dot that this node covers and does not hold. The logs of this node
//! can't move on before the last range is merged, and then only to the lowest version of all donors. But the versions of
//! each donor hold for the keys of its ranges at once. This node keeps them with the range until the logs cover them too,
//! and sends them with snapshots of its own. Otherwise a delta of a node that knows less would bring back dots that the
//! range has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::state::row::{self, Blob, RawRow};
use crate::state::store::{Ownership, Store};
use crate::state::table::apply::Applied;
use crate::state::table::cell::Dot;
use crate::state::table::range::{Mark, MergedRange, SavedKey, SnapshotRange};
use crate::state::table::{NodeParts, Table};
use crate::state::writers::{Writer, Writers};

/// Most ranges kept, each with a version per writer. When there are more, the oldest is merged with the next.
const MAX_MERGED_RANGES: usize = 256;

impl<S: Store> Table<S> {
    /// The positions of all logs.
    pub(super) fn marks(&self) -> Vec<Mark> {
        let marks = self.logs.iter();
        marks
            .map(|(w, log)| Mark { writer: *w, version: log.covered(), floor: log.floor })
            .collect()
    }

    /// The range after the key `after`, with as many keys as fit into the budget; `None` if `after` is not a key.
    pub(super) fn snapshot_range(
        &self,
        writers: &Writers,
        after: Option<Blob>,
        budget_bytes: usize,
    ) -> Option<SnapshotRange> {
        let start = match &after {
            None => None,
            Some(key) => Some(row::decode_key::<S::Key>(key.as_slice()).ok()?),
        };
        let from = start.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let (limit, marks) = self.marks_after(start.as_ref());
        let upto = limit.map_or(Bound::Unbounded, Bound::Included);
        let (mut rows, mut bytes, mut end) = (Vec::new(), 0, None);
        for (key, cell) in self.cells.range((from, upto)) {
            if bytes > budget_bytes {
                // `end` is the last key that was included; this key is the first of the next range.
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
            end = limit;
        }
        let to = end.map_or(Bound::Unbounded, Bound::Included);
        let mut pending = Vec::new();
        for (writer, keys) in &self.pending {
            for (key, up_to) in keys.range((from, to)) {
                pending.push((*writer, row::encode_key(key).into(), *up_to));
            }
        }
        let end = end.map(|key| row::encode_key(key).into());
        Some(SnapshotRange { after, end, marks, rows, pending })
    }

    /// All that is known about `key`.
    pub(super) fn saved_key(&self, writers: &Writers, key: &S::Key) -> SavedKey {
        let rows = self.cells.get(key).into_iter().flatten();
        let rows = rows.filter_map(|(w, _)| Some((*w, self.raw(writers, *w, key)?))).collect();
        let pending = self.pending.iter();
        let pending = pending.filter_map(|(w, keys)| Some((*w, *keys.get(key)?))).collect();
        SavedKey { key: row::encode_key(key).into(), rows, pending }
    }

    /// The versions covered under the keys after `from`, and the last key under which exactly these are covered; `None`: the
    /// last of all.
    fn marks_after(&self, from: Option<&S::Key>) -> (Option<&S::Key>, Vec<Mark>) {
        let mut marks = self.marks();
        let mut limit: Option<&S::Key> = None;
        for merged in &self.merged_ranges {
            let continues = merged.continues_after(from);
            let edge = if continues { &merged.end } else { &merged.after };
            if let Some(edge) = edge
                && from.is_none_or(|from| edge > from)
                && limit.is_none_or(|limit| edge < limit)
            {
                limit = Some(edge);
            }
            for (writer, version) in merged.versions.iter().filter(|_| continues) {
                let version = self.before_hole(*writer, *version);
                match marks.iter_mut().find(|mark| mark.writer == *writer) {
                    Some(mark) => mark.version = mark.version.max(version),
                    None => marks.push(Mark { writer: *writer, version, floor: 0 }),
                }
            }
        }
        (limit, marks)
    }

    /// Merges a range; returns how many keys and rows have changed, `None` if its bounds are not keys or in the wrong order.
    pub(super) fn merge_snapshot_range(
        &mut self,
        parts: &mut NodeParts<'_>,
        range: &SnapshotRange,
    ) -> Option<usize> {
        let bound = |key: &Option<Blob>| match key {
            None => Some(None),
            Some(key) => row::decode_key::<S::Key>(key.as_slice()).ok().map(Some),
        };
        let (after, end) = (bound(&range.after)?, bound(&range.end)?);
        if after.is_some() && end.is_some() && after >= end {
            return None;
        }
        let inside = |key: &S::Key| {
            after.as_ref().is_none_or(|a| key > a) && end.as_ref().is_none_or(|e| key <= e)
        };
        let mut theirs: BTreeMap<S::Key, Vec<(Writer, &RawRow)>> = BTreeMap::new();
        for (writer, raw) in &range.rows {
            let key = row::decode_key::<S::Key>(raw.key.as_slice()).ok()?;
            if inside(&key) {
                theirs.entry(key).or_default().push((*writer, raw));
            }
        }
        let (mut changed, dropped) = self.drop_dead_dots(parts, range, (&after, &end), &theirs);
        // A row of the donor that is covered here is known: if it is not held, it is dead.
        for (writer, raw) in theirs.into_values().flatten() {
            let is_known = writer == parts.me || self.covered(writer) >= raw.version;
            if !is_known && self.apply(parts, writer, raw) == Applied::Changed {
                changed += 1;
            }
        }
        // A row that the donor has dropped is not needed here either if other rows hold its dots.
        for (key, writer) in dropped {
            if self.is_held_by_others(&key, writer, |_| true) {
                self.remove_row(&key, writer);
            }
        }
        for (writer, key, up_to) in &range.pending {
            if let Ok(key) = row::decode_key::<S::Key>(key.as_slice())
                && inside(&key)
                && self.kill(&key, (*writer, *up_to))
            {
                changed += 1;
            }
        }
        for mark in &range.marks {
            let log = self.log(mark.writer);
            log.floor = log.floor.max(mark.floor);
        }
        self.keep_range(range, after, end);
        Some(changed)
    }

    /// Drops dots that the donor covers and does not hold (R7). Returns under how many keys, and the rows here that the donor
    /// covers and does not have.
    fn drop_dead_dots(
        &mut self,
        parts: &mut NodeParts<'_>,
        range: &SnapshotRange,
        (after, end): (&Option<S::Key>, &Option<S::Key>),
        theirs: &BTreeMap<S::Key, Vec<(Writer, &RawRow)>>,
    ) -> (usize, Vec<(S::Key, Writer)>) {
        let donor: BTreeMap<Writer, u64> =
            range.marks.iter().map(|mark| (mark.writer, mark.version)).collect();
        let covers = |(writer, version): Dot| donor.get(&writer).is_some_and(|v| *v >= version);
        let bounds = (
            after.as_ref().map_or(Bound::Unbounded, Bound::Excluded),
            end.as_ref().map_or(Bound::Unbounded, Bound::Included),
        );
        let (mut dead, mut dropped) = (Vec::new(), Vec::new());
        for (key, cell) in self.cells.range(bounds) {
            let rows = theirs.get(key).map_or(&[][..], |rows| rows);
            let Some(held) = Self::dots_in(parts, rows) else { continue };
            let mut ended = BTreeSet::new();
            for (writer, row) in cell {
                if *writer == parts.me && S::OWNERSHIP == Ownership::PerNode {
                    continue;
                }
                let covers_row = covers((*writer, row.version));
                let dots = row.dots(*writer).map(|(dot, _)| dot);
                ended
                    .extend(dots.filter(|dot| (covers_row || covers(*dot)) && !held.contains(dot)));
                if covers_row && !rows.iter().any(|(w, _)| w == writer) {
                    dropped.push((key.clone(), *writer));
                }
            }
            if !ended.is_empty() {
                dead.push((key.clone(), ended));
            }
        }
        let changed = dead.len();
        for (key, dots) in dead {
            self.drop_dots(&key, None, |dot| dots.contains(&dot));
        }
        (changed, dropped)
    }

    /// All dots in rows under one key; `None` if a row can't be decoded.
    fn dots_in(parts: &mut NodeParts<'_>, rows: &[(Writer, &RawRow)]) -> Option<BTreeSet<Dot>> {
        let mut held = BTreeSet::new();
        for (writer, raw) in rows {
            let content = row::decode_content::<S::Value>(raw.content.as_slice()).ok()?;
            if content.add.is_some() {
                held.insert((*writer, raw.version));
            }
            for (id, version, _) in content.carried {
                held.insert((parts.writers.intern(&id)?, version));
            }
        }
        Some(held)
    }

    /// Keeps the versions that the donor of a range covers until the logs cover them too. The ranges of a snapshot may come
    /// from several donors, and each donor changes in the meantime, so the logs can claim less than the donor of one range
    /// covers. A donor may also have dropped a kill that other nodes need; only its versions show that the dot is dead.
    fn keep_range(&mut self, range: &SnapshotRange, after: Option<S::Key>, end: Option<S::Key>) {
        let marks = range.marks.iter().map(|mark| (mark.writer, mark.version));
        let exceeds_log = |(w, v): &(Writer, u64)| self.before_hole(*w, *v) > self.covered(*w);
        let versions = marks.filter(exceeds_log).collect();
        let new = MergedRange { after, end, versions };
        self.merged_ranges.retain(|old| {
            let exceeds_new = |(writer, version): (&Writer, &u64)| {
                new.versions.get(writer).is_none_or(|newer| newer < version)
            };
            !old.is_inside(&new) || old.versions.iter().any(exceeds_new)
        });
        if !new.is_settled() {
            self.merged_ranges.push(new);
        }
        if self.merged_ranges.len() > MAX_MERGED_RANGES {
            let oldest = self.merged_ranges.remove(0);
            let is_next = |merged: &&mut MergedRange<S::Key>| {
                oldest.end.is_some() && merged.after == oldest.end
            };
            if let Some(next) = self.merged_ranges.iter_mut().find(is_next) {
                next.prepend(oldest);
            }
        }
    }

    /// Drops from the ranges what the log of `writer` covers now, which is everything up to `covered`.
    pub(super) fn settle_merged_ranges(&mut self, writer: Writer, covered: u64) {
        if !self.merged_ranges.is_empty() {
            self.merged_ranges.iter_mut().for_each(|merged| merged.settle(writer, covered));
            self.merged_ranges.retain(|merged| !merged.is_settled());
        }
    }
}
