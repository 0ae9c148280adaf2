//! Writes rows of this node: its own writes, and those that it adopts from writers that have ended.

use crate::crdt::Merge;
use crate::state::row::{self, MAX_KEY_BYTES, MAX_KILLS};
use crate::state::store::Store;
use crate::state::store_id::StoreId;
use crate::state::table::cell::{
    Body, Carried, Kills, Row, encode_content, extras, has_value, join_kills, key_hash,
    saturating_u32,
};
use crate::state::table::{NodeParts, Table};
use crate::state::writers::{Writer, Writers};

/// A write of this node was refused; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedRow {
    /// The encoded key or content is too long.
    #[error("row of {store} is {bytes} bytes long, the limit is {limit}")]
    TooLarge {
        /// The store.
        store: StoreId,
        /// The length, in bytes.
        bytes: usize,
        /// The longest allowed, in bytes.
        limit: usize,
    },
    /// This node has as many rows in the store as it may have.
    #[error("{store} has {limit} rows of this node, which is the limit")]
    Full {
        /// The store.
        store: StoreId,
        /// The most rows of one writer.
        limit: usize,
    },
    /// A key or value is outside its bounds.
    #[error("row of {store} is not valid: {reason}")]
    Invalid {
        /// The store.
        store: StoreId,
        /// Which one, and its value.
        reason: String,
    },
}

impl<S: Store> Table<S> {
    /// Writes a row of this node in a store with a row per node; returns the version, which is the old one if the value is
    /// the same.
    pub(crate) fn put(
        &mut self,
        parts: &NodeParts<'_>,
        key: S::Key,
        value: S::Value,
    ) -> Result<u64, RefusedRow> {
        if self.value_of(&key, parts.me) == Some(&value) {
            return Ok(self.applied(parts.me));
        }
        self.write(parts, key, Some(value), Vec::new(), Kills::new())
    }

    /// Removes a row of this node in a store with a row per node; returns the version, `None` if there is no value.
    pub(crate) fn remove(&mut self, parts: &NodeParts<'_>, key: &S::Key) -> Option<u64> {
        self.row(key, parts.me)?.own()?;
        let written = self.write(parts, key.clone(), None, Vec::new(), Kills::new());
        Some(written.expect("a row without a value is within all bounds"))
    }

    /// Writes or removes a row of this node in a store with a row per node; `None` if there was nothing to remove.
    pub(crate) fn put_or_remove(
        &mut self,
        parts: &NodeParts<'_>,
        key: S::Key,
        value: Option<S::Value>,
    ) -> Result<Option<u64>, RefusedRow> {
        match value {
            Some(value) => self.put(parts, key, value).map(Some),
            None => Ok(self.remove(parts, &key)),
        }
    }

    /// Replaces this node's row under `key`; returns the new version.
    fn write(
        &mut self,
        parts: &NodeParts<'_>,
        key: S::Key,
        add: Option<S::Value>,
        carried: Vec<Carried<S::Value>>,
        kills: Kills,
    ) -> Result<u64, RefusedRow> {
        let store = S::ID;
        if let Some(value) = &add {
            S::validate(&key, value).map_err(|reason| RefusedRow::Invalid { store, reason })?;
        }
        let limit = S::MAX_ROWS;
        let adds = add.is_some() || !carried.is_empty();
        if adds && self.log(parts.me).living() >= limit && self.row(&key, parts.me).is_none() {
            return Err(RefusedRow::Full { store, limit });
        }
        let key_bytes = row::encode_key(&key);
        let limit = S::MAX_CONTENT_BYTES;
        let content = encode_content(parts.writers, add.as_ref(), &carried, &kills);
        let bytes = content.as_ref().map_or(usize::MAX, Vec::len);
        if bytes > limit || kills.len().max(carried.len()) > MAX_KILLS {
            return Err(RefusedRow::TooLarge { store, bytes, limit });
        }
        if key_bytes.len() > MAX_KEY_BYTES {
            let bytes = key_bytes.len();
            return Err(RefusedRow::TooLarge { store, bytes, limit: MAX_KEY_BYTES });
        }
        self.remove_row(&key, parts.me);
        let log = self.log(parts.me);
        let version = log.applied + 1;
        log.advance(version, version);
        let row = Row {
            version,
            key_hash: key_hash(parts.writers, parts.me, &key_bytes),
            bytes: saturating_u32(bytes + key_bytes.len()),
            body: add.map_or(Body::Dead, Body::Live),
            extras: extras(kills, carried),
        };
        self.insert_row(key, parts.me, row);
        self.bound_tombstones();
        Ok(version)
    }

    /// The kills of a row of this node that replaces all rows in `cell`: those of the node's old row (R3), and all dots of
    /// other writers.
    fn kills_of_seen(cell: &[(Writer, Row<S::Value>)], me: Writer) -> Kills {
        let mut kills = Kills::new();
        for (writer, row) in cell {
            if *writer == me {
                join_kills(&mut kills, row.kills().iter().copied());
            }
            let others = row.writes(*writer).map(|(dot, _)| dot).filter(|dot| dot.0 != me);
            join_kills(&mut kills, others);
        }
        kills
    }

    /// Writes a row that replaces everything that this node has seen under `key`. `is_alone`: all rows are this node's.
    fn replace(
        &mut self,
        parts: &NodeParts<'_>,
        key: &S::Key,
        add: Option<S::Value>,
        kills: Kills,
        is_alone: bool,
    ) -> Result<u64, RefusedRow> {
        let version = self.write(parts, key.clone(), add, Vec::new(), kills.clone())?;
        if !is_alone {
            self.supersede(key, (parts.me, version), |_| false);
        }
        for kill in kills {
            self.kill(key, kill);
        }
        Ok(version)
    }

    /// Removes all values under `key` that this node has seen; returns the version, `None` if there is no value.
    pub(crate) fn remove_shared(
        &mut self,
        parts: &NodeParts<'_>,
        key: &S::Key,
    ) -> Result<Option<u64>, RefusedRow> {
        match self.cells.get(key) {
            Some(cell) if has_value(cell) => {
                let kills = Self::kills_of_seen(cell, parts.me);
                self.replace(parts, key, None, kills, false).map(Some)
            }
            Some(_) | None => Ok(None),
        }
    }

    /// Carries up to `budget` writes of `of`, a writer that has ended, in rows of this node: those that no row of a writer
    /// that still writes holds. Returns how many. Several nodes may do this, at any time: a node ignores a carried write that
    /// it knows to be dead.
    pub(crate) fn adopt(&mut self, parts: &NodeParts<'_>, of: Writer, budget: usize) -> usize {
        let Some(log) = self.logs.get(&of) else { return 0 };
        let keys: Vec<S::Key> = log
            .by_version
            .values()
            .filter(|key| !self.row(key, of).is_some_and(Row::is_opaque))
            .filter(|key| {
                !self.is_held_by_others(key, of, |writer| parts.writers.still_writes(writer))
            })
            .take(budget)
            .cloned()
            .collect();
        let mut adopted = 0;
        for key in keys {
            let mut carried: Vec<Carried<S::Value>> = Vec::new();
            let key_bytes = row::encode_key(&key);
            let cell = self.cells.get(&key).into_iter().flatten();
            for (writer, row) in cell {
                // All live writes of a writer are in its own row. Writes of this node may be in rows of others alone, because
                // those have adopted them.
                let is_whole = [parts.me, of].contains(writer);
                for (dot, value) in
                    row.writes(*writer).filter(|(dot, _)| is_whole || dot.0 == parts.me)
                {
                    if !carried.iter().any(|known| known.dot == dot) {
                        let key_hash = key_hash(parts.writers, dot.0, &key_bytes);
                        carried.push(Carried { dot, key_hash, value: value.clone() });
                    }
                }
            }
            let own = self.row(&key, parts.me);
            let mut kills = own.map_or_else(Kills::new, |row| row.kills().into());
            if let Some(own) = own
                && !own.has_dots()
            {
                // The row that replaces the tombstone may be dropped (R6), so the kill must be explicit.
                join_kills(&mut kills, [(parts.me, own.version)]);
            }
            adopted += usize::from(self.write(parts, key, None, carried, kills).is_ok());
        }
        adopted
    }

    /// Whether rows of writers that still write hold all that `of` has written, and no rows of `of` are missing here.
    pub(crate) fn is_spent(&self, writers: &Writers, of: Writer) -> bool {
        let still_writes = |writer| writers.still_writes(writer);
        self.logs.get(&of).is_none_or(|log| {
            log.covered() == log.applied
                && log.target.max(log.floor) <= log.applied
                && log.tombstones.is_empty()
                && log.by_version.values().all(|key| self.is_held_by_others(key, of, still_writes))
        })
    }
}

impl<S: Store> Table<S>
where
    S::Value: Merge,
{
    /// Writes `change` merged with all values that this node has seen under `key`; the row replaces those.
    pub(crate) fn put_shared(
        &mut self,
        parts: &NodeParts<'_>,
        key: &S::Key,
        change: S::Value,
    ) -> Result<u64, RefusedRow> {
        // One look-up of the key, because a busy router does this most often.
        let (mut value, mut kills, mut is_alone) = (change, Kills::new(), true);
        if let Some(cell) = self.cells.get(key) {
            for (_, seen) in cell.iter().flat_map(|(writer, row)| row.writes(*writer)) {
                value.merge(seen);
            }
            kills = Self::kills_of_seen(cell, parts.me);
            is_alone = cell.iter().all(|(writer, _)| *writer == parts.me);
        }
        self.replace(parts, key, Some(value), kills, is_alone)
    }
}
