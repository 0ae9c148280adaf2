//! Writing at home: rows of this node, and those that it adopts from writers that are over.

use crate::cluster::state::row::{self, MAX_KEY_BYTES, MAX_KILLS};
use crate::cluster::state::table::{
    Body, Context, Dots, Kill, RefusedRow, Replica, Row, Store, Table, causes, encode_content,
    join_dots, key_hash, small,
};
use crate::cluster::state::writers::Writer;
use crate::crdt::Merge;

impl<S: Store> Table<S> {
    /// Writes this node's own row; its new version, or the present one if nothing would change.
    pub(crate) fn put(
        &mut self,
        cx: &mut Context<'_>,
        key: S::Key,
        value: S::Value,
    ) -> Result<u64, RefusedRow> {
        if self.value_of(&key, cx.me) == Some(&value) {
            return Ok(self.applied(cx.me));
        }
        self.write(cx, key, Some(value), Dots::new(), Dots::new())
    }

    /// Removes this node's own row; `None` if there is none.
    pub(crate) fn remove(&mut self, cx: &mut Context<'_>, key: &S::Key) -> Option<u64> {
        self.row(key, cx.me)?.value()?;
        Some(self.write(cx, key.clone(), None, Dots::new(), Dots::new()).expect("it only shrinks"))
    }

    pub(super) fn write(
        &mut self,
        cx: &mut Context<'_>,
        key: S::Key,
        add: Option<S::Value>,
        kills: Dots,
        ancestors: Dots,
    ) -> Result<u64, RefusedRow> {
        let store = S::ID;
        if let Some(value) = &add {
            S::validate(&key, value).map_err(|reason| RefusedRow::Invalid { store, reason })?;
        }
        let is_new = self.row(&key, cx.me).is_none();
        let limit = store.max_rows();
        if add.is_some() && is_new && self.log(cx.me).living() >= limit {
            return Err(RefusedRow::Full { store, limit });
        }
        let key_bytes = row::encode_key(&key);
        let limit = store.max_content_bytes();
        let content = encode_content(cx.writers, add.as_ref(), &ancestors, &kills);
        let bytes = content.as_ref().map_or(usize::MAX, Vec::len);
        if bytes > limit || kills.len() > MAX_KILLS {
            return Err(RefusedRow::TooLarge { store, bytes, limit });
        }
        if key_bytes.len() > MAX_KEY_BYTES {
            let bytes = key_bytes.len();
            return Err(RefusedRow::TooLarge { store, bytes, limit: MAX_KEY_BYTES });
        }
        self.take(&key, cx.me);
        let log = self.log(cx.me);
        log.applied += 1;
        let version = log.applied;
        let row = Row {
            version,
            key_hash: key_hash(cx.writers, cx.me, &key_bytes),
            bytes: small(bytes + key_bytes.len()),
            body: add.map_or(Body::Dead, Body::Live),
            causes: causes(kills, ancestors),
        };
        self.place(key, cx.me, row);
        self.bound_tombstones();
        Ok(version)
    }

    /// This node's own kills under `key`, and the living adds of others there.
    pub(super) fn seen(&self, key: &S::Key, me: Writer) -> (Dots, Dots) {
        let kills = self.row(key, me).map_or_else(Dots::new, |row| row.kills().to_vec());
        let others = self.cells.get(key).into_iter().flatten();
        let others = others.filter(|(w, row)| *w != me && row.value().is_some());
        (kills, others.map(|(w, row)| (*w, row.version)).collect())
    }

    /// Takes everything under `key` out of the table as far as it has been seen here; `None` if there is nothing.
    pub(crate) fn remove_shared(
        &mut self,
        cx: &mut Context<'_>,
        key: &S::Key,
    ) -> Result<Option<u64>, RefusedRow> {
        let (mut kills, others) = self.seen(key, cx.me);
        if others.is_empty() && self.value_of(key, cx.me).is_none() {
            return Ok(None);
        }
        join_dots(&mut kills, others.iter().copied());
        let version = self.write(cx, key.clone(), None, kills, Dots::new())?;
        for (writer, version) in others {
            self.kill(cx, key, writer, Kill::of_removed(version));
        }
        Ok(Some(version))
    }
}

impl<S: Store> Table<S>
where
    S::Value: Merge,
{
    /// Writes `change` merged with all that is seen under `key`, whose place it takes.
    pub(crate) fn put_shared(
        &mut self,
        cx: &mut Context<'_>,
        key: &S::Key,
        change: S::Value,
    ) -> Result<u64, RefusedRow> {
        let (mut kills, others) = self.seen(key, cx.me);
        join_dots(&mut kills, others.iter().copied());
        let mut value = change;
        for (_, seen) in self.values(key) {
            value.merge(seen);
        }
        let version = self.write(cx, key.clone(), Some(value), kills, Dots::new())?;
        for (writer, version) in others {
            self.kill(cx, key, writer, Kill::of_removed(version));
        }
        Ok(version)
    }

    /// Takes the place of up to `budget` rows of `of`, a writer that is over; says how many. Where others still apply the
    /// rows of `of` themselves it is enough to take over its adds; where they no longer do (`closing`), what its rows
    /// remove must be said again as well.
    pub(crate) fn adopt(
        &mut self,
        cx: &mut Context<'_>,
        of: Writer,
        closing: bool,
        budget: usize,
    ) -> usize {
        let Some(log) = self.logs.get(&of) else { return 0 };
        let keys: Vec<(u64, S::Key)> = log
            .by_version
            .iter()
            .filter(|(_, key)| closing || self.value_of(key, of).is_some())
            .take(budget)
            .map(|(version, key)| (*version, key.clone()))
            .collect();
        let mut adopted = 0;
        for (version, key) in keys {
            let Some(row) = self.row(&key, of) else { continue };
            let value = row.value().cloned();
            let mut said = if closing { row.kills().to_vec() } else { Dots::new() };
            said.retain(|(writer, _)| *writer != cx.me);
            if value.is_none() && said.is_empty() {
                self.take(&key, of);
                continue;
            }
            let (mut kills, _) = self.seen(&key, cx.me);
            join_dots(&mut kills, said);
            let own = self.row(&key, cx.me).filter(|own| own.value().is_some());
            // What this node had added itself is the same add under a new version: who removed it removed this.
            let mut ancestors = match own {
                Some(own) if own.ancestors().is_empty() => vec![(cx.me, own.version)],
                Some(own) => own.ancestors().to_vec(),
                None => Dots::new(),
            };
            let mut add = own.and_then(Row::value).cloned();
            if let Some(value) = value {
                join_dots(&mut kills, [(of, version)]);
                let news = match &mut add {
                    Some(own) => own.merge(&value),
                    None => {
                        add = Some(value);
                        true
                    }
                };
                if news {
                    join_dots(&mut ancestors, [(of, version)]);
                }
            }
            if self.write(cx, key.clone(), add, kills, ancestors).is_ok() {
                adopted += 1;
                if closing {
                    self.take(&key, of);
                } else {
                    let removed = version.saturating_sub(1);
                    self.kill_quietly(cx, &key, of, Kill { up_to: version, removed });
                }
            }
        }
        adopted
    }
}
