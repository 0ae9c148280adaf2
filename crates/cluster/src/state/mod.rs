//! The state that the nodes of a cluster replicate: typed stores of rows.
//!
//! Every row has one writer, which is a generation of a node, and is replicated in the log of that writer (see `table`). A
//! value is a deterministic function of the live rows under its key, so nodes with the same rows read the same values. A
//! store says whether its rows are shared by all nodes or each node has its own, see [`store::Ownership`]. [`stores`] lists
//! all stores. Each store has a table of its own type, so that no row can be merged by the rule of another store.
//!
//! A row takes about 250 bytes of memory and its encoded bytes. `Store::MAX_ROWS` and `Store::MAX_CONTENT_BYTES` bound what
//! one writer may send to a store; [`State::sizes`] is what a store holds.

pub mod beat;
pub mod departure;
#[cfg(test)]
mod golden;
pub mod load;
pub mod observation;
pub mod operations;
pub mod policy;
pub mod prefixes;
mod reading;
pub mod rights;
pub mod roster;
pub mod row;
pub mod rule;
pub mod session;
pub mod store;
pub mod store_id;
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
pub use crate::state::store_id::{STORES, StoreId};
pub use crate::state::stores::Write;
use crate::state::stores::{ChangedKeys, Tables};
use crate::state::table::{
    BrokenInvariant, LogPosition, NodeParts, RefusedRow, Replica, SavedKey, Sizes,
};
use crate::state::writers::{Writer, Writers};

/// A write of this node: a receipt waits until peers have applied it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The store that was written to.
    pub store: StoreId,
    /// The version of the write in this node's log of the store.
    pub version: u64,
}

/// A log whose invariants do not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("log of {writer} in {store}: {broken}")]
pub struct BrokenLog {
    /// The store.
    pub store: StoreId,
    /// The writer of the log.
    pub writer: String,
    /// The invariant that does not hold.
    pub broken: BrokenInvariant,
}

/// All replicated state that this node holds.
#[derive(Debug)]
pub struct State {
    pub(crate) me: Writer,
    pub(crate) writers: Writers,
    pub(crate) clock: HybridClock,
    pub(crate) tables: Tables,
    pub(crate) prefixes: Prefixes,
}

impl State {
    /// The empty state of the node `me`.
    #[must_use]
    pub fn new(me: &NodeId, prefixes: prefixes::Config) -> Self {
        let mut writers = Writers::default();
        let number = writers.intern_member(me).expect("the first writer finds room");
        writers.note_member(number, false);
        Self {
            me: number,
            writers,
            clock: HybridClock::new(Author::of(me)),
            tables: Tables::default(),
            prefixes: Prefixes::new(prefixes),
        }
    }

    /// Begins a later generation of this node: a new writer, whose stamps are greater than all before. `None` if there are
    /// too many writers.
    pub(crate) fn begin_generation(&mut self, me: &NodeId) -> Option<Writer> {
        let writer = self.writers.intern_member(me)?;
        self.writers.note_member(writer, false);
        self.clock.set_author(Author::of(me));
        Some(writer)
    }

    pub(crate) fn replica(&self, store: StoreId) -> &dyn Replica {
        self.tables.get(store)
    }

    /// The table of `store`, and what its operations need.
    pub(crate) fn replica_mut(
        &mut self,
        store: StoreId,
        now: Now,
    ) -> (&mut dyn Replica, NodeParts<'_>) {
        let (tables, parts) = self.parts(now);
        (tables.get_mut(store), parts)
    }

    /// The tables, and what their operations need.
    fn parts(&mut self, now: Now) -> (&mut Tables, NodeParts<'_>) {
        let Self { me, writers, clock, tables, .. } = self;
        (tables, NodeParts { writers, clock, me: *me, now })
    }

    /// Whether rows of other writers hold all that `writer`, which has ended, has written. Rows that end with their writer
    /// do not count.
    pub(crate) fn is_spent(&self, writer: Writer) -> bool {
        let mut lasting = StoreId::ALL.into_iter().filter(|store| !store.ends_with_writer());
        lasting.all(|store| self.replica(store).is_spent(&self.writers, writer))
    }

    /// Forgets writers that were retired before `oldest` (monotonic time), if there are too many and no row carries writes
    /// of them.
    pub(crate) fn forget_retired(&mut self, oldest: Duration, now: Now) {
        for writer in self.writers.retired_before(oldest) {
            if StoreId::ALL.iter().all(|store| !self.replica(*store).is_carried(writer)) {
                self.forget_writer(writer, now);
            }
        }
    }

    /// Whether nothing here names `writer`: no log, no row of another writer, no kill that waits.
    pub(crate) fn is_unused(&self, writer: Writer) -> bool {
        StoreId::ALL.iter().all(|store| {
            let replica = self.replica(*store);
            replica.is_without_log(writer)
                && !replica.is_carried(writer)
                && !replica.has_pending_kills(writer)
        })
    }

    /// Forgets `writer`, of which nothing is needed any more.
    pub(crate) fn forget_writer(&mut self, writer: Writer, now: Now) {
        for store in StoreId::ALL {
            self.replica_mut(store, now).0.forget(writer);
        }
        self.writers.forget(writer);
    }

    /// From now on, keys that change in the stores on disk are remembered until they are saved.
    pub(crate) fn track_unsaved(&mut self) {
        for store in StoreId::durable() {
            self.tables.get_mut(store).track_unsaved();
        }
    }

    /// The keys of `store` that have changed since this was last called, each with all that is known about it.
    pub(crate) fn take_unsaved(&mut self, store: StoreId) -> Vec<SavedKey> {
        self.tables.get_mut(store).take_unsaved(&self.writers)
    }

    /// Writes a row of this node; `None` when there was nothing to remove.
    pub(crate) fn write(&mut self, now: Now, write: Write) -> Result<Option<Version>, RefusedRow> {
        let store = write.store();
        let (tables, mut parts) = self.parts(now);
        let version = tables.write(&mut parts, write)?;
        Ok(version.map(|version| Version { store, version }))
    }

    /// Keeps the keys that change from now on, until they are taken.
    pub(crate) fn track_changed_keys(&mut self) {
        self.tables.track_changed_keys();
        self.prefixes.keep_received();
    }

    /// Takes the keys that have changed since the last call, whichever node has changed them.
    pub(crate) fn take_changed_keys(&mut self) -> ChangedKeys {
        self.tables.take_changed_keys(self.prefixes.take_received())
    }
}

/// Reading. The values of the stores are in `reading`.
impl State {
    /// The prefix hints of all routers.
    #[must_use]
    pub fn prefixes(&self) -> &Prefixes {
        &self.prefixes
    }

    /// The writers of rows.
    #[must_use]
    pub fn writers(&self) -> &Writers {
        &self.writers
    }

    /// The number of keys of `store` that have a value; in stores with a row per node, the number of live rows. O(keys) in
    /// shared stores.
    #[must_use]
    pub fn entries(&self, store: StoreId) -> usize {
        self.replica(store).entries()
    }

    /// How much `store` holds.
    #[must_use]
    pub fn sizes(&self, store: StoreId) -> Sizes {
        self.replica(store).sizes()
    }

    /// A hash that is equal on nodes which hold the same live rows of `store`.
    #[must_use]
    pub fn fingerprint(&self, store: StoreId) -> u64 {
        self.replica(store).fingerprint()
    }

    /// A hash that is equal on nodes which read the same from `store`. For checks.
    #[must_use]
    pub fn reading(&self, store: StoreId) -> u64 {
        self.replica(store).reading(&self.writers)
    }

    /// The version up to which each writer's log of `store` is applied here, without retired writers.
    pub fn versions(&self, store: StoreId) -> impl Iterator<Item = (&NodeId, u64)> {
        let replica = self.replica(store);
        self.writers.current().filter_map(move |(writer, id)| {
            let version = replica.applied(writer);
            (version > 0).then_some((id, version))
        })
    }

    /// The version of each writer up to which a row of `store` that is not held here is known to be dead, including retired
    /// writers. Nodes with equal versions hold the same rows. For checks.
    pub fn covered(&self, store: StoreId) -> impl Iterator<Item = (&NodeId, u64)> {
        let marks = self.replica(store).marks().into_iter();
        let covered = marks.filter(|mark| mark.version > 0);
        covered.filter_map(|mark| Some((self.writers.id(mark.writer)?, mark.version)))
    }

    /// Where the log of each writer is, in each store. For checks.
    pub fn log_positions(&self) -> impl Iterator<Item = ((StoreId, Writer), LogPosition)> {
        StoreId::ALL.into_iter().flat_map(|store| {
            let logs = self.replica(store).log_positions().into_iter();
            logs.map(move |(writer, position)| ((store, writer), position))
        })
    }

    /// Checks the invariants of every log, in time proportional to logs and tombstones. For checks.
    ///
    /// # Errors
    ///
    /// The first log whose invariants do not hold.
    pub fn check_logs(&self) -> Result<(), BrokenLog> {
        StoreId::ALL.into_iter().try_for_each(|store| {
            self.replica(store).check_logs(self.me).map_err(|(writer, broken)| {
                let writer = self.writers.id(writer).map(ToString::to_string).unwrap_or_default();
                BrokenLog { store, writer, broken }
            })
        })
    }

    /// The encoded keys and versions of the live rows of `writer` in `store`, up to `version`. For checks.
    #[must_use]
    pub fn living_rows(
        &self,
        store: StoreId,
        writer: &NodeId,
        version: u64,
    ) -> Vec<(Vec<u8>, u64)> {
        let number = self.writers.number(writer);
        number.map_or_else(Vec::new, |writer| self.replica(store).live_rows(writer, version))
    }
}
