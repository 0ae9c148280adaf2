//! Applying what others wrote.

use std::collections::BTreeMap;

use crate::crdt::stamp::millis;
use crate::state::row::{self, Content, MAX_KEY_BYTES, RawRow};
use crate::state::store::{Retention, Store};
use crate::state::table::{
    Body, Carried, Context, Dot, EXPIRY_GRACE_MS, Kills, Log, MAX_PENDING, QUARANTINE_BYTES, Row,
    Table, key_hash, more,
};
use crate::state::writers::Writer;

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

/// Whose word a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Somebody's who may know less than this node: what is covered here and not held is dead.
    Any,
    /// That of somebody who knows best: what is in it lives.
    Authority,
}

/// The content of a row with its writers numbered.
struct Read<V> {
    add: Option<V>,
    carried: Vec<Carried<V>>,
    kills: Kills,
}

impl<S: Store> Table<S> {
    /// Up to which version of `writer` what is not here is dead.
    pub(super) fn covered(&self, writer: Writer) -> u64 {
        self.logs.get(&writer).map_or(0, Log::covered)
    }

    /// `version` as far as nothing of `writer` was refused before it.
    pub(super) fn before_hole(&self, writer: Writer, version: u64) -> u64 {
        self.logs.get(&writer).map_or(version, |log| log.before_hole(version))
    }

    /// Whether everything about `dot` that this node needs to know has come: it holds it, or it is dead.
    pub(super) fn covers(&self, key: &S::Key, (of, version): Dot) -> bool {
        self.covered(of) >= version || self.is_joined(key, (of, version))
    }

    /// Whether a range that was joined, and that the logs have not caught up with, says so.
    fn is_joined(&self, key: &S::Key, (of, version): Dot) -> bool {
        self.before_hole(of, version) == version
            && self.joined.iter().any(|joined| joined.covers(key, of, version))
    }

    fn is_dead(&self, key: &S::Key, dot: Dot) -> bool {
        let (of, version) = dot;
        let waits = self.pending.get(&of).and_then(|keys| keys.get(key));
        let names = |kills: &[Dot]| kills.iter().any(|(w, up_to)| *w == of && *up_to >= version);
        // Its author's row may have come before its log, by a snapshot.
        let replaced = |row: &Row<S::Value>| row.version > version && !row.has(of, dot);
        waits.is_some_and(|up_to| *up_to >= version)
            || self.row(key, of).is_some_and(|row| !row.is_opaque() && replaced(row))
            || self.cells.get(key).into_iter().flatten().any(|(_, row)| names(row.kills()))
            || (self.covers(key, dot) && !self.holds(key, dot))
    }

    /// Kills dots of `of` under `key` up to a version, now and when they come.
    pub(super) fn kill(&mut self, key: &S::Key, (of, up_to): Dot) -> bool {
        let hit = self.drop_dots(key, None, |(w, version)| w == of && version <= up_to);
        if self.covered(of) < up_to {
            let waiting: usize = self.pending.values().map(BTreeMap::len).sum();
            if waiting < MAX_PENDING {
                let waits = self.pending.entry(of).or_default().entry(key.clone()).or_default();
                *waits = up_to.max(*waits);
            }
        }
        hit
    }

    /// Ends what `writer` wrote under `key` before `version` and that row no longer holds, in whichever rows it is.
    pub(super) fn supersede(
        &mut self,
        key: &S::Key,
        (writer, version): Dot,
        kept: impl Fn(Dot) -> bool,
    ) -> bool {
        let is_old = |dot: Dot| dot.0 == writer && dot.1 < version && !kept(dot);
        self.drop_dots(key, Some(writer), is_old)
    }

    /// Takes in a row of `writer`, whose order within the log the caller has checked.
    pub(crate) fn apply(&mut self, cx: &mut Context<'_>, writer: Writer, raw: &RawRow) -> Applied {
        self.apply_from(cx, writer, raw, Source::Any)
    }

    /// Takes in a row of `writer` that lives where it is known best.
    pub(super) fn apply_repair(
        &mut self,
        cx: &mut Context<'_>,
        writer: Writer,
        raw: &RawRow,
    ) -> Applied {
        self.apply_from(cx, writer, raw, Source::Authority)
    }

    fn apply_from(
        &mut self,
        cx: &mut Context<'_>,
        writer: Writer,
        raw: &RawRow,
        source: Source,
    ) -> Applied {
        let applied = self.apply_or_refuse(cx, writer, raw, source);
        // What a snapshot brings before its log may have moved there from where the log is now.
        let log = self.log(writer);
        log.target = log.target.max(raw.version);
        if applied == Applied::Refused && raw.version > 0 {
            let log = self.log(writer);
            log.hole = Some(log.hole.map_or(raw.version, |hole| hole.min(raw.version)));
        }
        applied
    }

    fn apply_or_refuse(
        &mut self,
        cx: &mut Context<'_>,
        writer: Writer,
        raw: &RawRow,
        source: Source,
    ) -> Applied {
        if raw.version == 0
            || raw.key.len() > MAX_KEY_BYTES
            || raw.content.len() > S::MAX_CONTENT_BYTES
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
        if present.is_none() && self.log(writer).is_full(S::MAX_ROWS) {
            return Applied::Refused;
        }
        self.insert(cx, writer, key, raw, source)
    }

    fn insert(
        &mut self,
        cx: &mut Context<'_>,
        writer: Writer,
        key: S::Key,
        raw: &RawRow,
        source: Source,
    ) -> Applied {
        let version = raw.version;
        let ended = S::RETENTION == Retention::WithWriter && cx.writers.is_over(writer);
        if ended {
            self.log(writer).hole = Some(1);
        }
        let read = Self::read(cx, &key, raw);
        let is_alive = |table: &Self, dot: Dot, value: &S::Value| {
            let ends = S::expires_ms(&key, value);
            let expired = ends
                .is_some_and(|ends| ends.saturating_add(EXPIRY_GRACE_MS) <= millis(cx.now.wall));
            // Its author's log says of its own dots that they are covered as soon as it names them. Of a range that was joined
            // others have said more than its author may have heard.
            let told =
                source == Source::Authority && dot.0 == writer && !table.is_joined(&key, dot);
            !ended && !expired && (told || !table.is_dead(&key, dot))
        };
        // What is held is looked at before the row that holds it is taken.
        let read = read.map(|mut read| {
            let named: Vec<Dot> = read.carried.iter().map(|carried| carried.dot).collect();
            let was_empty = read.add.is_none() && read.carried.is_empty();
            read.add = read.add.filter(|value| is_alive(self, (writer, version), value));
            read.carried.retain(|carried| is_alive(self, carried.dot, &carried.value));
            (read, named, was_empty)
        });
        let had = self.take(&key, writer).is_some_and(|row| row.lives());
        let key_hash = key_hash(cx.writers, writer, raw.key.as_slice());
        let bytes = super::small(raw.key.len() + raw.content.len());
        let Some((read, named, was_empty)) = read else {
            if ended {
                return if had { Applied::Changed } else { Applied::Nothing };
            }
            let room = self.quarantine_bytes + raw.content.len() <= QUARANTINE_BYTES;
            let body = Body::Opaque(room.then(|| raw.content.clone()));
            self.place(key, writer, Row { version, key_hash, bytes, body, more: None });
            return Applied::Quarantined;
        };
        let Read { add, carried, kills } = read;
        let has = add.is_some() || !carried.is_empty();
        if has || was_empty || !kills.is_empty() {
            let body = add.map_or(Body::Dead, Body::Live);
            let more = more(kills.clone(), carried);
            self.place(key.clone(), writer, Row { version, key_hash, bytes, body, more });
        }
        let mut changed = had || has;
        changed |= self.supersede(&key, (writer, version), |dot| named.contains(&dot));
        for kill in kills {
            changed |= self.kill(&key, kill);
        }
        self.bound_tombstones();
        if changed { Applied::Changed } else { Applied::Nothing }
    }

    /// The content, if it can be read and believed.
    fn read(cx: &mut Context<'_>, key: &S::Key, raw: &RawRow) -> Option<Read<S::Value>> {
        let content = row::decode_content::<S::Value>(raw.content.as_slice()).ok()?;
        let Content { add, carried, kills } = content;
        for value in add.iter().chain(carried.iter().map(|(_, _, value)| value)) {
            S::validate(key, value).ok()?;
            if let Some(stamp) = S::stamp(value) {
                cx.clock.observe(stamp, cx.now).ok()?;
            }
        }
        let mut numbered = Vec::with_capacity(carried.len());
        for (id, version, value) in carried {
            let writer = cx.writers.intern(&id)?;
            let key_hash = key_hash(cx.writers, writer, raw.key.as_slice());
            numbered.push(Carried { dot: (writer, version), key_hash, value });
        }
        let kills = kills.into_iter().map(|(id, up_to)| Some((cx.writers.intern(&id)?, up_to)));
        Some(Read { add, carried: numbered, kills: kills.collect::<Option<Kills>>()? })
    }

    /// Reads again what is in quarantine: a stamp may have become believable.
    pub(super) fn read_again(&mut self, cx: &mut Context<'_>) -> usize {
        let mut released = 0;
        for (key, writer) in self.quarantine.clone() {
            let Some(raw) = self.raw(cx.writers, writer, &key) else { continue };
            if Self::read(cx, &key, &raw).is_some() {
                self.insert(cx, writer, key, &raw, Source::Authority);
                released += 1;
            }
        }
        released
    }

    /// Says that rows of `writer` up to `to` are applied now, from a log that was at `upto`; says whether that is news.
    pub(crate) fn advance(&mut self, writer: Writer, to: u64, upto: u64) -> bool {
        self.move_on(writer, |log| log.advance(to, upto))
    }

    /// Says that a snapshot has shown everything of `writer` up to `version`; says whether that is news.
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
        // Beyond what was refused nothing will ever be covered.
        let is_all = log.hole.is_some_and(|hole| covered + 1 >= hole);
        self.settle_joined(writer, if is_all { u64::MAX } else { covered });
        if let Some(waiting) = self.pending.get_mut(&writer) {
            waiting.retain(|_, up_to| *up_to > covered);
            if waiting.is_empty() {
                self.pending.remove(&writer);
            }
        }
        true
    }
}
