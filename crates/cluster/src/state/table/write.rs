//! Writing at home: rows of this node, and what it carries on for writers that are over.

use crate::crdt::Merge;
use crate::state::StoreId;
use crate::state::row::{self, MAX_KEY_BYTES, MAX_KILLS};
use crate::state::store::Store;
use crate::state::table::{
    Body, Carried, Context, Kills, Replica, Row, Table, encode_content, has_value, join_kills,
    key_hash, more, small,
};
use crate::state::writers::{Writer, Writers};

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

impl<S: Store> Table<S> {
    /// Writes this node's own row; its new version, or the present one if nothing would change.
    pub(crate) fn put(
        &mut self,
        cx: &Context<'_>,
        key: S::Key,
        value: S::Value,
    ) -> Result<u64, RefusedRow> {
        if self.value_of(&key, cx.me) == Some(&value) {
            return Ok(self.applied(cx.me));
        }
        self.write(cx, key, Some(value), Vec::new(), Kills::new())
    }

    /// Removes this node's own row; `None` if there is none.
    pub(crate) fn remove(&mut self, cx: &Context<'_>, key: &S::Key) -> Option<u64> {
        self.row(key, cx.me)?.own()?;
        let written = self.write(cx, key.clone(), None, Vec::new(), Kills::new());
        Some(written.expect("it only shrinks"))
    }

    /// Writes this node's own row, or removes it when there is no value; `None` if there was nothing to remove.
    pub(crate) fn put_or_remove(
        &mut self,
        cx: &Context<'_>,
        key: S::Key,
        value: Option<S::Value>,
    ) -> Result<Option<u64>, RefusedRow> {
        match value {
            Some(value) => self.put(cx, key, value).map(Some),
            None => Ok(self.remove(cx, &key)),
        }
    }

    fn write(
        &mut self,
        cx: &Context<'_>,
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
        if adds && self.log(cx.me).living() >= limit && self.row(&key, cx.me).is_none() {
            return Err(RefusedRow::Full { store, limit });
        }
        let key_bytes = row::encode_key(&key);
        let limit = S::MAX_CONTENT_BYTES;
        let content = encode_content(cx.writers, add.as_ref(), &carried, &kills);
        let bytes = content.as_ref().map_or(usize::MAX, Vec::len);
        if bytes > limit || kills.len().max(carried.len()) > MAX_KILLS {
            return Err(RefusedRow::TooLarge { store, bytes, limit });
        }
        if key_bytes.len() > MAX_KEY_BYTES {
            let bytes = key_bytes.len();
            return Err(RefusedRow::TooLarge { store, bytes, limit: MAX_KEY_BYTES });
        }
        self.take(&key, cx.me);
        let log = self.log(cx.me);
        let version = log.applied + 1;
        log.advance(version, version);
        let row = Row {
            version,
            key_hash: key_hash(cx.writers, cx.me, &key_bytes),
            bytes: small(bytes + key_bytes.len()),
            body: add.map_or(Body::Dead, Body::Live),
            more: more(kills, carried),
        };
        self.place(key, cx.me, row);
        self.bound_tombstones();
        Ok(version)
    }

    /// What is to be killed by who takes the place of all that `cell` holds: its own kills, with all dots of others.
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

    /// Writes a row that ends everything that was seen under `key`.
    fn replace(
        &mut self,
        cx: &Context<'_>,
        key: &S::Key,
        add: Option<S::Value>,
        kills: Kills,
        is_alone: bool,
    ) -> Result<u64, RefusedRow> {
        let version = self.write(cx, key.clone(), add, Vec::new(), kills.clone())?;
        if !is_alone {
            self.supersede(key, (cx.me, version), |_| false);
        }
        for kill in kills {
            self.kill(key, kill);
        }
        Ok(version)
    }

    /// Takes everything under `key` out of the table as far as it has been seen here; `None` if there is nothing.
    pub(crate) fn remove_shared(
        &mut self,
        cx: &Context<'_>,
        key: &S::Key,
    ) -> Result<Option<u64>, RefusedRow> {
        match self.cells.get(key) {
            Some(cell) if has_value(cell) => {
                let kills = Self::kills_of_seen(cell, cx.me);
                self.replace(cx, key, None, kills, false).map(Some)
            }
            Some(_) | None => Ok(None),
        }
    }

    /// Carries on up to `budget` rows of `of`, a writer that is over: its writes that no row of a writer which still writes
    /// holds. Says how many; who is told of a write that it knows to be dead ignores it, so this may be done at any time
    /// and by several.
    pub(crate) fn adopt(&mut self, cx: &Context<'_>, of: Writer, budget: usize) -> usize {
        let Some(log) = self.logs.get(&of) else { return 0 };
        let left: Vec<S::Key> = log
            .by_version
            .values()
            .filter(|key| !self.row(key, of).is_some_and(Row::is_opaque))
            .filter(|key| !self.is_elsewhere(key, of, |writer| cx.writers.still_writes(writer)))
            .take(budget)
            .cloned()
            .collect();
        let mut adopted = 0;
        for key in left {
            let mut carried: Vec<Carried<S::Value>> = Vec::new();
            let key_bytes = row::encode_key(&key);
            let cell = self.cells.get(&key).into_iter().flatten();
            for (writer, row) in cell {
                // A row names all of its writer's writes that live; one that others carry may be in their rows alone.
                let is_whole = [cx.me, of].contains(writer);
                for (dot, value) in
                    row.writes(*writer).filter(|(dot, _)| is_whole || dot.0 == cx.me)
                {
                    if !carried.iter().any(|known| known.dot == dot) {
                        let key_hash = key_hash(cx.writers, dot.0, &key_bytes);
                        carried.push(Carried { dot, key_hash, value: value.clone() });
                    }
                }
            }
            let own = self.row(&key, cx.me);
            let mut kills = own.map_or_else(Kills::new, |row| row.kills().into());
            if let Some(own) = own
                && !own.lives()
            {
                // The tombstone's place is taken by a row that may vanish: what it said is said in so many words.
                join_kills(&mut kills, [(cx.me, own.version)]);
            }
            adopted += usize::from(self.write(cx, key, None, carried, kills).is_ok());
        }
        adopted
    }

    /// Whether nothing of `of` is left that is not in others' rows too, and nothing more of it is known to come.
    pub(crate) fn is_spent(&self, writers: &Writers, of: Writer) -> bool {
        let still_writes = |writer| writers.still_writes(writer);
        self.logs.get(&of).is_none_or(|log| {
            log.covered() == log.applied
                && log.target.max(log.floor) <= log.applied
                && log.tombstones.is_empty()
                && log.by_version.values().all(|key| self.is_elsewhere(key, of, still_writes))
        })
    }
}

impl<S: Store> Table<S>
where
    S::Value: Merge,
{
    /// Writes `change` merged with all that is seen under `key`, whose place it takes.
    pub(crate) fn put_shared(
        &mut self,
        cx: &Context<'_>,
        key: &S::Key,
        change: S::Value,
    ) -> Result<u64, RefusedRow> {
        // Found once: this is what a busy router does most.
        let (mut value, mut kills, mut is_alone) = (change, Kills::new(), true);
        if let Some(cell) = self.cells.get(key) {
            for (_, seen) in cell.iter().flat_map(|(writer, row)| row.writes(*writer)) {
                value.merge(seen);
            }
            kills = Self::kills_of_seen(cell, cx.me);
            is_alone = cell.iter().all(|(writer, _)| *writer == cx.me);
        }
        self.replace(cx, key, Some(value), kills, is_alone)
    }
}
