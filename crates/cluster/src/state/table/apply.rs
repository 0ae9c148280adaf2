//! Applies rows that other nodes have written.

use std::collections::BTreeMap;

use crate::crdt::stamp::millis;
use crate::state::row::{self, Content, MAX_KEY_BYTES, RawRow};
use crate::state::store::{Retention, Store};
use crate::state::table::cell::{Body, Carried, Dot, Kills, Row, extras, key_hash, saturating_u32};
use crate::state::table::log::Log;
use crate::state::table::not_applied::NotAppliedReason;
use crate::state::table::{EXPIRY_GRACE_MS, MAX_PENDING, NodeParts, QUARANTINE_BYTES, Table};
use crate::state::writers::Writer;

/// The result of applying a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    /// Nothing has changed: the row is known, or what it contains is dead or has ended.
    Nothing,
    /// The values under the row's key may have changed.
    Changed,
    /// The row is in quarantine: it is kept for other nodes and has no value here.
    Quarantined,
    /// The row is not kept.
    Refused(NotAppliedReason),
}

/// Where a row came from, which decides whether it may contain dead dots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// A node that may know less than this one. Dots that this node covers and does not hold are dead.
    AnyNode,
    /// The authority for the writer, in an audit. The writer's own dots in the row are live.
    Authority,
}

/// A decoded content, with the numbers of the writers instead of their ids.
struct Decoded<V> {
    add: Option<V>,
    carried: Vec<Carried<V>>,
    kills: Kills,
}

impl<S: Store> Table<S> {
    /// The version up to which the log of `writer` is applied.
    pub(super) fn applied(&self, writer: Writer) -> u64 {
        self.logs.get(&writer).map_or(0, |log| log.applied)
    }

    /// The version of `writer` up to which a dot that is not held here is dead.
    pub(super) fn covered(&self, writer: Writer) -> u64 {
        self.logs.get(&writer).map_or(0, Log::covered)
    }

    /// `version`, or the last version of `writer` before a row that was refused, if that is lower.
    pub(super) fn before_hole(&self, writer: Writer, version: u64) -> u64 {
        self.logs.get(&writer).map_or(version, |log| log.before_hole(version))
    }

    /// Whether this node covers the dot: it holds the dot, or the dot is dead.
    pub(super) fn covers(&self, key: &S::Key, (of, version): Dot) -> bool {
        self.covered(of) >= version || self.is_covered_by_range(key, (of, version))
    }

    /// Whether a range of a snapshot covers the dot that the logs do not cover yet.
    fn is_covered_by_range(&self, key: &S::Key, (of, version): Dot) -> bool {
        self.before_hole(of, version) == version
            && self.merged_ranges.iter().any(|merged| merged.covers(key, of, version))
    }

    fn is_dead(&self, key: &S::Key, dot: Dot) -> bool {
        let (of, version) = dot;
        let waiting = self.pending.get(&of).and_then(|keys| keys.get(key));
        let names = |kills: &[Dot]| kills.iter().any(|(w, up_to)| *w == of && *up_to >= version);
        // A snapshot may have brought a later row of the writer before the writer's log.
        let replaced = |row: &Row<S::Value>| row.version > version && !row.has(of, dot);
        waiting.is_some_and(|up_to| *up_to >= version)
            || self.row(key, of).is_some_and(|row| !row.is_opaque() && replaced(row))
            || self.cells.get(key).into_iter().flatten().any(|(_, row)| names(row.kills()))
            || (self.covers(key, dot) && !self.holds(key, dot))
    }

    /// Kills the dots of a writer under `key` up to a version, those held now and those that arrive later (R2, R5);
    /// returns whether any were held.
    pub(super) fn kill(&mut self, key: &S::Key, (of, up_to): Dot) -> bool {
        let hit = self.drop_dots(key, None, |(w, version)| w == of && version <= up_to);
        if self.covered(of) < up_to {
            let waiting: usize = self.pending.values().map(BTreeMap::len).sum();
            if waiting < MAX_PENDING {
                let kill = self.pending.entry(of).or_default().entry(key.clone()).or_default();
                if up_to > *kill {
                    *kill = up_to;
                    if let Some(unsaved) = &mut self.unsaved_keys {
                        unsaved.insert(key.clone());
                    }
                }
            }
        }
        hit
    }

    /// Removes the dots of `writer` under `key` before `version` from all rows of other writers, except those that `kept`
    /// names: the writer's row of this version has replaced them.
    pub(super) fn supersede(
        &mut self,
        key: &S::Key,
        (writer, version): Dot,
        kept: impl Fn(Dot) -> bool,
    ) -> bool {
        let is_old = |dot: Dot| dot.0 == writer && dot.1 < version && !kept(dot);
        self.drop_dots(key, Some(writer), is_old)
    }

    /// Applies a row of `writer`. The caller has checked that it follows what is applied of the log.
    pub(crate) fn apply(
        &mut self,
        parts: &mut NodeParts<'_>,
        writer: Writer,
        raw: &RawRow,
    ) -> Applied {
        self.apply_from(parts, writer, raw, Source::AnyNode)
    }

    /// Applies a row of `writer` from the authority for it.
    pub(super) fn apply_repair(
        &mut self,
        parts: &mut NodeParts<'_>,
        writer: Writer,
        raw: &RawRow,
    ) -> Applied {
        self.apply_from(parts, writer, raw, Source::Authority)
    }

    fn apply_from(
        &mut self,
        parts: &mut NodeParts<'_>,
        writer: Writer,
        raw: &RawRow,
        source: Source,
    ) -> Applied {
        let applied = self.check_and_apply(parts, writer, raw, source);
        // A row that a snapshot has brought before its log may have been at an earlier version of the log.
        let log = self.log(writer);
        log.target = log.target.max(raw.version);
        if let Applied::Refused(reason) = applied
            && raw.version > 0
        {
            log.refuse(raw.version, reason);
        }
        applied
    }

    fn check_and_apply(
        &mut self,
        parts: &mut NodeParts<'_>,
        writer: Writer,
        raw: &RawRow,
        source: Source,
    ) -> Applied {
        if raw.version == 0
            || raw.key.len() > MAX_KEY_BYTES
            || raw.content.len() > S::MAX_CONTENT_BYTES
        {
            return Applied::Refused(NotAppliedReason::TooLong);
        }
        let Ok(key) = row::decode_key::<S::Key>(raw.key.as_slice()) else {
            return Applied::Refused(NotAppliedReason::UndecodableKey);
        };
        let present = self.row(&key, writer);
        if present.is_some_and(|row| row.version >= raw.version) {
            return Applied::Nothing;
        }
        if present.is_none() && self.log(writer).is_full(S::MAX_ROWS) {
            return Applied::Refused(NotAppliedReason::TooManyRows);
        }
        self.apply_at(parts, writer, key, raw, source)
    }

    fn apply_at(
        &mut self,
        parts: &mut NodeParts<'_>,
        writer: Writer,
        key: S::Key,
        raw: &RawRow,
        source: Source,
    ) -> Applied {
        let version = raw.version;
        let ended = S::RETENTION == Retention::WithWriter && parts.writers.has_ended(writer);
        if ended {
            self.log(writer).hole = Some(1);
        }
        let decoded = Self::decode(parts, &key, raw);
        let is_alive = |table: &Self, dot: Dot, value: &S::Value| {
            let ends = S::expires_ms(&key, value);
            let expired = ends
                .is_some_and(|ends| ends.saturating_add(EXPIRY_GRACE_MS) <= millis(parts.now.wall));
            // The authority knows best whether the dots of the writer and of its earlier generations are live. But a donor of
            // a snapshot may know of kills that the authority has not received.
            let is_vouched_for = source == Source::Authority
                && parts.writers.is_same_node(dot.0, writer)
                && !table.is_covered_by_range(&key, dot);
            !ended && !expired && (is_vouched_for || !table.is_dead(&key, dot))
        };
        // A dot that only the old row holds must be found before that row is removed.
        let decoded = decoded.map(|mut decoded| {
            let named: Vec<Dot> = decoded.carried.iter().map(|carried| carried.dot).collect();
            let was_empty = decoded.add.is_none() && decoded.carried.is_empty();
            decoded.add = decoded.add.filter(|value| is_alive(self, (writer, version), value));
            decoded.carried.retain(|carried| is_alive(self, carried.dot, &carried.value));
            (decoded, named, was_empty)
        });
        let had = self.remove_row(&key, writer).is_some_and(|row| row.has_dots());
        let key_hash = key_hash(parts.writers, writer, raw.key.as_slice());
        let bytes = saturating_u32(raw.key.len() + raw.content.len());
        let (decoded, named, was_empty) = match decoded {
            Ok(decoded) => decoded,
            Err(_) if ended => return if had { Applied::Changed } else { Applied::Nothing },
            Err(reason) => {
                let room = self.quarantine_bytes + raw.content.len() <= QUARANTINE_BYTES;
                let body = Body::Opaque(room.then(|| raw.content.clone()), reason);
                self.insert_row(key, writer, Row { version, key_hash, bytes, body, extras: None });
                return Applied::Quarantined;
            }
        };
        let Decoded { add, carried, kills } = decoded;
        let has = add.is_some() || !carried.is_empty();
        if has || was_empty || !kills.is_empty() {
            let body = add.map_or(Body::Dead, Body::Live);
            let extras = extras(kills.clone(), carried);
            self.insert_row(key.clone(), writer, Row { version, key_hash, bytes, body, extras });
        }
        let mut changed = had || has;
        changed |= self.supersede(&key, (writer, version), |dot| named.contains(&dot));
        for kill in kills {
            changed |= self.kill(&key, kill);
        }
        self.bound_tombstones();
        if changed { Applied::Changed } else { Applied::Nothing }
    }

    /// The content of a row, or why it has no effect here.
    fn decode(
        parts: &mut NodeParts<'_>,
        key: &S::Key,
        raw: &RawRow,
    ) -> Result<Decoded<S::Value>, NotAppliedReason> {
        let content = row::decode_content::<S::Value>(raw.content.as_slice());
        let content = content.map_err(|_| NotAppliedReason::Undecodable)?;
        let Content { add, carried, kills } = content;
        for value in add.iter().chain(carried.iter().map(|(_, _, value)| value)) {
            S::validate(key, value).map_err(|_| NotAppliedReason::OutOfBounds)?;
            if let Some(stamp) = S::stamp(value) {
                parts.clock.observe(stamp).map_err(|_| NotAppliedReason::StampTooLate)?;
            }
        }
        let mut numbered = Vec::with_capacity(carried.len());
        for (id, version, value) in carried {
            let writer = parts.writers.intern(&id).ok_or(NotAppliedReason::TooManyWriters)?;
            let key_hash = key_hash(parts.writers, writer, raw.key.as_slice());
            numbered.push(Carried { dot: (writer, version), key_hash, value });
        }
        let kills = kills.into_iter().map(|(id, up_to)| Some((parts.writers.intern(&id)?, up_to)));
        let kills: Option<Kills> = kills.collect();
        let kills = kills.ok_or(NotAppliedReason::TooManyWriters)?;
        Ok(Decoded { add, carried: numbered, kills })
    }

    /// Decodes the rows in quarantine again, because the clock may have come to a stamp that was too late; returns how many have
    /// left quarantine.
    pub(super) fn retry_quarantine(&mut self, parts: &mut NodeParts<'_>) -> usize {
        let mut released = 0;
        for (key, writer) in self.quarantine.clone() {
            let Some(raw) = self.raw(parts.writers, writer, &key) else { continue };
            if Self::decode(parts, &key, &raw).is_ok() {
                self.apply_at(parts, writer, key, &raw, Source::Authority);
                released += 1;
            }
        }
        released
    }

    /// Records that the rows of `writer` up to `to` are applied, and that its log goes up to `upto`; returns whether the log
    /// has moved on.
    pub(crate) fn advance(&mut self, writer: Writer, to: u64, upto: u64) -> bool {
        self.move_on(writer, |log| log.advance(to, upto))
    }

    /// Records that a snapshot has brought all rows of `writer` up to `version`; returns whether the log has moved on.
    pub(crate) fn claim(&mut self, writer: Writer, version: u64) -> bool {
        self.move_on(writer, |log| log.claim(version))
    }

    fn move_on(&mut self, writer: Writer, change: impl FnOnce(&mut Log<S::Key>)) -> bool {
        let log = self.log(writer);
        let before = (log.applied, log.covered);
        change(log);
        if (log.applied, log.covered) == before {
            return false;
        }
        let covered = log.covered();
        // Nothing after a row that was refused will ever be covered.
        let is_complete = log.hole.is_some_and(|hole| covered + 1 >= hole);
        self.settle_merged_ranges(writer, if is_complete { u64::MAX } else { covered });
        if let Some(kills) = self.pending.get_mut(&writer) {
            kills.retain(|_, up_to| *up_to > covered);
            if kills.is_empty() {
                self.pending.remove(&writer);
            }
        }
        true
    }
}
