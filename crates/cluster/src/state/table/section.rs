//! Snapshots of a table by ranges of keys, and how they are joined.
//!
//! A range with the donor's versions is a delta by itself: what the donor covers and does not hold is dead here, what is
//! covered here and not held is dead there. Until the last range has come the donor's versions can't be claimed, and then
//! only the least of all donors', yet what they say is true already for the keys that were gone through; that is
//! remembered until the logs say it too, and handed on, or a delta of somebody who knows less would bring back what the
//! range has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::state::row::{self, Blob, RawRow};
use crate::state::store::{Ownership, Store};
use crate::state::table::{Applied, Context, Dot, Mark, Replica, Table};
use crate::state::writers::{Writer, Writers};

/// A range of keys with all that the donor knows about them.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    /// Keys after this one; none: from the first.
    pub(crate) after: Option<Blob>,
    /// Keys up to and with this one; none: to the last.
    pub(crate) end: Option<Blob>,
    pub(crate) marks: Vec<Mark>,
    pub(crate) rows: Vec<(Writer, RawRow)>,
    /// Kills that wait: whose dots, under which key, up to which.
    pub(crate) pending: Vec<(Writer, Blob, u64)>,
}

/// Ranges remembered at once, each with a version per writer: of more, the oldest are made one.
const MAX_JOINED: usize = 256;

/// A range that was joined, and what is covered under its keys beyond the logs.
#[derive(Debug)]
pub(super) struct Joined<K> {
    /// Keys after this one; none: from the first.
    after: Option<K>,
    /// Keys up to and with this one; none: to the last.
    end: Option<K>,
    /// What its donor covered.
    versions: BTreeMap<Writer, u64>,
}

impl<K: Ord> Joined<K> {
    pub(super) fn covers(&self, key: &K, of: Writer, version: u64) -> bool {
        self.after.as_ref().is_none_or(|after| key > after)
            && self.end.as_ref().is_none_or(|end| key <= end)
            && self.versions.get(&of).is_some_and(|covered| *covered >= version)
    }

    /// Forgets what the log of `writer` says now.
    fn settle(&mut self, writer: Writer, covered: u64) {
        if self.versions.get(&writer).is_some_and(|version| *version <= covered) {
            self.versions.remove(&writer);
        }
    }

    fn is_settled(&self) -> bool {
        self.versions.is_empty()
    }

    /// Becomes one with the range before it, and says what is true of both.
    fn prepend(&mut self, before: Self) {
        self.after = before.after;
        self.versions.retain(|writer, version| match before.versions.get(writer) {
            Some(other) => {
                *version = (*version).min(*other);
                true
            }
            None => false,
        });
    }

    /// Whether the key that comes next after `from` is inside.
    fn goes_on_after(&self, from: Option<&K>) -> bool {
        self.after.as_ref().is_none_or(|after| from.is_some_and(|from| from >= after))
            && self.end.as_ref().is_none_or(|end| from.is_none_or(|from| from < end))
    }

    fn is_inside(&self, other: &Self) -> bool {
        other.after.as_ref().is_none_or(|o| self.after.as_ref().is_some_and(|after| after >= o))
            && other.end.as_ref().is_none_or(|o| self.end.as_ref().is_some_and(|end| end <= o))
    }
}

impl<S: Store> Table<S> {
    /// The keys after `after`, as many as fit; `None` if `after` is no key.
    pub(super) fn cut(
        &self,
        writers: &Writers,
        after: Option<Blob>,
        budget_bytes: usize,
    ) -> Option<Section> {
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
        Some(Section { after, end, marks, rows, pending })
    }

    /// What is covered under the keys after `from`, and the last of them of which just this is true; none: to the last.
    fn marks_after(&self, from: Option<&S::Key>) -> (Option<&S::Key>, Vec<Mark>) {
        let mut marks = self.marks();
        let mut limit: Option<&S::Key> = None;
        for joined in &self.joined {
            let goes_on = joined.goes_on_after(from);
            let edge = if goes_on { &joined.end } else { &joined.after };
            if let Some(edge) = edge
                && from.is_none_or(|from| edge > from)
                && limit.is_none_or(|limit| edge < limit)
            {
                limit = Some(edge);
            }
            for (writer, version) in joined.versions.iter().filter(|_| goes_on) {
                let version = self.before_hole(*writer, *version);
                match marks.iter_mut().find(|mark| mark.writer == *writer) {
                    Some(mark) => mark.version = mark.version.max(version),
                    None => marks.push(Mark { writer: *writer, version, floor: 0 }),
                }
            }
        }
        (limit, marks)
    }

    /// Joins a range; `None` if its bounds or keys are none. Says how many rows changed.
    pub(super) fn join(&mut self, cx: &mut Context<'_>, section: &Section) -> Option<usize> {
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
        let mut theirs: BTreeMap<S::Key, Vec<(Writer, &RawRow)>> = BTreeMap::new();
        for (writer, raw) in &section.rows {
            let key = row::decode_key::<S::Key>(raw.key.as_slice()).ok()?;
            if inside(&key) {
                theirs.entry(key).or_default().push((*writer, raw));
            }
        }
        let (mut changed, gone) = self.end_what_is_dead(cx, section, (&after, &end), &theirs);
        // What is there and not covered here is news; what is covered here and missing died here.
        for (writer, raw) in theirs.into_values().flatten() {
            let known = writer == cx.me || self.covered(writer) >= raw.version;
            if !known && self.apply(cx, writer, raw) == Applied::Changed {
                changed += 1;
            }
        }
        // Of rows that the donor no longer has only kills are left, which it has collected, or dots that its other rows hold.
        for (key, writer) in gone {
            if self.is_elsewhere(&key, writer, |_| true) {
                self.take(&key, writer);
            }
        }
        for (writer, key, up_to) in &section.pending {
            if let Ok(key) = row::decode_key::<S::Key>(key.as_slice())
                && inside(&key)
                && self.kill(&key, (*writer, *up_to))
            {
                changed += 1;
            }
        }
        for mark in &section.marks {
            let log = self.log(mark.writer);
            log.floor = log.floor.max(mark.floor);
        }
        self.note_joined(section, after, end);
        Some(changed)
    }

    /// Ends what is here, covered by the donor, and not there (R7). Says how much, and of which rows here the donor has
    /// nothing any more.
    fn end_what_is_dead(
        &mut self,
        cx: &mut Context<'_>,
        section: &Section,
        (after, end): (&Option<S::Key>, &Option<S::Key>),
        theirs: &BTreeMap<S::Key, Vec<(Writer, &RawRow)>>,
    ) -> (usize, Vec<(S::Key, Writer)>) {
        let donor: BTreeMap<Writer, u64> =
            section.marks.iter().map(|mark| (mark.writer, mark.version)).collect();
        let covers = |(writer, version): Dot| donor.get(&writer).is_some_and(|v| *v >= version);
        let range = (
            after.as_ref().map_or(Bound::Unbounded, Bound::Excluded),
            end.as_ref().map_or(Bound::Unbounded, Bound::Included),
        );
        let (mut dead, mut gone) = (Vec::new(), Vec::new());
        for (key, cell) in self.cells.range(range) {
            let rows = theirs.get(key).map_or(&[][..], |rows| rows);
            let Some(held) = Self::dots_in(cx, rows) else { continue };
            let mut ended = BTreeSet::new();
            for (writer, row) in cell {
                if *writer == cx.me && S::OWNERSHIP == Ownership::PerNode {
                    continue;
                }
                let covers_row = covers((*writer, row.version));
                let dots = row.dots(*writer).map(|(dot, _)| dot);
                ended
                    .extend(dots.filter(|dot| (covers_row || covers(*dot)) && !held.contains(dot)));
                if covers_row && !rows.iter().any(|(w, _)| w == writer) {
                    gone.push((key.clone(), *writer));
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
        (changed, gone)
    }

    /// All dots in rows of one key; `None` if one of them can't be read.
    fn dots_in(cx: &mut Context<'_>, rows: &[(Writer, &RawRow)]) -> Option<BTreeSet<Dot>> {
        let mut held = BTreeSet::new();
        for (writer, raw) in rows {
            let content = row::decode_content::<S::Value>(raw.content.as_slice()).ok()?;
            if content.add.is_some() {
                held.insert((*writer, raw.version));
            }
            for (id, version, _) in content.carried {
                held.insert((cx.writers.intern(&id)?, version));
            }
        }
        Some(held)
    }

    /// Remembers what the range covers until the logs cover it too. The donors of a snapshot differ, and each moves on
    /// meanwhile: what can be claimed of the whole is less than what was true of a range, and a kill that its donor had
    /// no need of any more is said by the rest alone.
    fn note_joined(&mut self, section: &Section, after: Option<S::Key>, end: Option<S::Key>) {
        let marks = section.marks.iter().map(|mark| (mark.writer, mark.version));
        let says_more = |(w, v): &(Writer, u64)| self.before_hole(*w, *v) > self.covered(*w);
        let versions = marks.filter(says_more).collect();
        let new = Joined { after, end, versions };
        self.joined.retain(|old| {
            let says_more = |(writer, version): (&Writer, &u64)| {
                new.versions.get(writer).is_none_or(|newer| newer < version)
            };
            !old.is_inside(&new) || old.versions.iter().any(says_more)
        });
        if !new.is_settled() {
            self.joined.push(new);
        }
        if self.joined.len() > MAX_JOINED {
            let oldest = self.joined.remove(0);
            let is_next =
                |joined: &&mut Joined<S::Key>| oldest.end.is_some() && joined.after == oldest.end;
            if let Some(next) = self.joined.iter_mut().find(is_next) {
                next.prepend(oldest);
            }
        }
    }

    /// The log of `writer` says all up to `covered` now.
    pub(super) fn settle_joined(&mut self, writer: Writer, covered: u64) {
        if !self.joined.is_empty() {
            self.joined.iter_mut().for_each(|joined| joined.settle(writer, covered));
            self.joined.retain(|joined| !joined.is_settled());
        }
    }
}
