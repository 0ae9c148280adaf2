//! What the nodes agree on: typed stores of rows.
//!
//! Every row is written by one writer (a life of a node) and travels in that writer's log; see `table`. A value is a
//! deterministic function of the living rows under its key, so nodes with the same rows read the same. In *shared* stores
//! (workers, rules, policies, sessions) whoever writes takes the place of what it has seen, and a removal removes what it
//! has seen, so a write that a removal has not seen survives it. In *own* stores each router has its row, and reading adds
//! them up. [`stores`] lists the stores; each is a field of [`State`], so a wrong merge rule can't be written.
//!
//! Memory: per row the encoded bytes plus about 250; per store, `Store::MAX_ROWS` × `Store::MAX_CONTENT_BYTES` per
//! writer bounds what a writer may send, [`State::sizes`] says what is held.

#[cfg(test)]
mod golden;
pub mod load;
pub mod observation;
pub mod policy;
pub mod prefixes;
pub mod rights;
pub mod row;
pub mod rule;
pub mod session;
pub mod store;
pub mod stores;
pub mod table;
pub mod tokens;
pub mod totals;
pub mod usage;
pub mod worker;
pub mod writers;

use std::time::Duration;

use smg_types::ids::NodeId;
use smg_types::now::Now;

use crate::crdt::stamp::{Author, HybridClock};
use crate::state::prefixes::Prefixes;
use crate::state::stores::{News, Tables};
pub use crate::state::stores::{STORES, StoreId, Write};
use crate::state::table::{Context, RefusedRow, Replica, Sizes};
use crate::state::writers::{Writer, Writers};

/// Which write of which store: what a receipt waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The store.
    pub store: StoreId,
    /// This node's version of it.
    pub version: u64,
}

/// Everything that this node holds of what the cluster agrees on.
#[derive(Debug)]
pub struct State {
    pub(crate) me: Writer,
    pub(crate) writers: Writers,
    pub(crate) clock: HybridClock,
    pub(crate) tables: Tables,
    pub(crate) prefixes: Prefixes,
}

impl State {
    /// The state of a node that knows nothing yet.
    #[must_use]
    pub fn new(me: &NodeId, max_ahead: Duration, prefixes: prefixes::Config) -> Self {
        let mut writers = Writers::default();
        let number = writers.intern(me).expect("the first writer finds room");
        writers.set_down(number, false);
        Self {
            me: number,
            writers,
            clock: HybridClock::new(Author::of(me), max_ahead),
            tables: Tables::default(),
            prefixes: Prefixes::new(prefixes),
        }
    }

    /// The node begins a later life: a new writer with a new clock. `None` when there are too many writers.
    pub(crate) fn begin_life(&mut self, me: &NodeId) -> Option<Writer> {
        let writer = self.writers.intern(me)?;
        self.writers.set_down(writer, false);
        self.clock.set_author(Author::of(me));
        Some(writer)
    }

    pub(crate) fn replica(&self, store: StoreId) -> &dyn Replica {
        self.tables.get(store)
    }

    /// The table of `store` and what its operations need.
    pub(crate) fn replica_mut(
        &mut self,
        store: StoreId,
        now: Now,
    ) -> (&mut dyn Replica, Context<'_>) {
        let (tables, cx) = self.parts(now);
        (tables.get_mut(store), cx)
    }

    /// The tables, and what their operations need.
    fn parts(&mut self, now: Now) -> (&mut Tables, Context<'_>) {
        let Self { me, writers, clock, tables, .. } = self;
        (tables, Context { writers, clock, me: *me, now })
    }

    /// Whether nothing of `writer`, which is over, is left that others' rows do not hold too. What ends with a writer does
    /// not count.
    pub(crate) fn is_spent(&self, writer: Writer) -> bool {
        let mut decided = StoreId::ALL.into_iter().filter(|store| !store.ends_with_writer());
        decided.all(|store| self.replica(store).is_spent(&self.writers, writer))
    }

    /// Forgets writers that were retired before `oldest`, if they are too many and nothing needs their names any more.
    pub(crate) fn forget_retired(&mut self, oldest: Duration, now: Now) {
        for writer in self.writers.retired_before(oldest) {
            if StoreId::ALL.iter().all(|store| !self.replica(*store).is_carried(writer)) {
                for store in StoreId::ALL {
                    self.replica_mut(store, now).0.forget(writer);
                }
                self.writers.forget(writer);
            }
        }
    }

    /// Writes a row of this node; `None` when there was nothing to remove.
    pub(crate) fn write(&mut self, now: Now, write: Write) -> Result<Option<Version>, RefusedRow> {
        let store = write.store();
        let (tables, mut cx) = self.parts(now);
        let version = tables.write(&mut cx, write)?;
        Ok(version.map(|version| Version { store, version }))
    }

    /// From now on news is kept until it is taken.
    pub(crate) fn follow(&mut self) {
        self.tables.follow();
        self.prefixes.follow();
    }

    /// What has changed since this was last asked.
    pub(crate) fn take_news(&mut self) -> News {
        self.tables.take_news(self.prefixes.take_news())
    }
}

/// Reading. Everything is O(rows asked for); what is read from one store is in its file.
impl State {
    fn of_live_writers<'a, V: 'a>(
        &'a self,
        values: impl Iterator<Item = (Writer, &'a V)>,
    ) -> impl Iterator<Item = (&'a NodeId, &'a V)> {
        values
            .filter(|(writer, _)| self.writers.is_live(*writer))
            .filter_map(|(writer, value)| Some((self.writers.id(writer)?, value)))
    }

    /// Which workers have served a prompt's blocks, as far as others have told.
    #[must_use]
    pub fn prefixes(&self) -> &Prefixes {
        &self.prefixes
    }

    /// Who writes rows.
    #[must_use]
    pub fn writers(&self) -> &Writers {
        &self.writers
    }

    /// How many keys of `store` have a value: of what several routers wrote at once, one. O(keys) in shared stores.
    #[must_use]
    pub fn entries(&self, store: StoreId) -> usize {
        self.replica(store).entries()
    }

    /// How much a store holds.
    #[must_use]
    pub fn sizes(&self, store: StoreId) -> Sizes {
        self.replica(store).sizes()
    }

    /// A number that is equal on nodes which hold the same living rows of `store`.
    #[must_use]
    pub fn fingerprint(&self, store: StoreId) -> u64 {
        self.replica(store).print()
    }

    /// A number that is equal on nodes which read the same from `store`. For checks.
    #[must_use]
    pub fn reading(&self, store: StoreId) -> u64 {
        self.replica(store).reading(&self.writers)
    }

    /// How far each writer's rows of `store` are applied here.
    pub fn versions(&self, store: StoreId) -> impl Iterator<Item = (&NodeId, u64)> {
        let replica = self.replica(store);
        self.writers.current().filter_map(move |(writer, id)| {
            let version = replica.applied(writer);
            (version > 0).then_some((id, version))
        })
    }

    /// Up to which version of each writer what is not held here is known to be gone, retired writers included: nodes that
    /// are equal in this hold the same rows. For checks.
    pub fn covered(&self, store: StoreId) -> impl Iterator<Item = (&NodeId, u64)> {
        let marks = self.replica(store).marks().into_iter();
        let covered = marks.filter(|mark| mark.version > 0);
        covered.filter_map(|mark| Some((self.writers.id(mark.writer)?, mark.version)))
    }

    /// Keys (encoded) and versions of the living rows of `writer` in `store`, up to `version`: for checks.
    #[must_use]
    pub fn living_rows(
        &self,
        store: StoreId,
        writer: &NodeId,
        version: u64,
    ) -> Vec<(Vec<u8>, u64)> {
        let number = self.writers.number(writer);
        number.map_or_else(Vec::new, |writer| self.replica(store).living(writer, version))
    }
}
