//! The operations of a store: how this node writes to its table, and how it takes over the rows of a writer that has ended.
//!
//! They are apart from [`Store`], because a table needs only what a store states about itself.

use std::fmt::Debug;

use rand::Rng;
use smg_types::ids::{NodeId, WorkerId};

#[cfg(test)]
use crate::state::golden::Golden;
use crate::state::store::{Ownership, Retention, Store};
use crate::state::table::{NodeParts, RefusedRow, Table};
use crate::state::writers::{Writer, Writers};

/// The operations on the table of a store.
pub trait StoreOperations: Store {
    /// A change that this node can make to the rows.
    type Write: Clone + PartialEq + Debug;

    /// Does what `write` asks for, and returns this node's new version; `None` when there was nothing to remove.
    ///
    /// # Errors
    /// The row is outside its bounds; nothing has changed.
    fn write(
        table: &mut Table<Self>,
        parts: &mut NodeParts<'_>,
        write: Self::Write,
    ) -> Result<Option<u64>, RefusedRow>;

    /// Takes up to `budget` rows of `of`, a writer that has ended, over into rows of this node; returns how many. Rows
    /// that end by themselves are left alone.
    fn adopt(table: &mut Table<Self>, parts: &NodeParts<'_>, of: Writer, budget: usize) -> usize {
        match Self::OWNERSHIP {
            Ownership::Shared => table.adopt(parts, of, budget),
            Ownership::PerNode => 0,
        }
    }

    /// Whether rows of others that still write hold all that `of`, a writer that has ended, has written.
    fn is_spent(table: &Table<Self>, writers: &Writers, of: Writer) -> bool {
        table.is_spent(writers, of)
    }

    /// A hash that is equal on nodes which read the same from the table. By default, they hold the same live rows; in a store
    /// that ends with its writers, the same live rows of writers that are believed to run, because no others are read.
    fn reading(table: &Table<Self>, writers: &Writers) -> u64 {
        match Self::RETENTION {
            Retention::WithWriter => table.fingerprint_of_live(writers),
            Retention::Never | Retention::TimeToLive => table.fingerprint(),
        }
    }

    /// A write that `draw` decides, for the simulator and the fuzz targets; `None` if it takes another node and there is
    /// none. Few different keys should come out, so that nodes write to the same ones.
    fn sample(draw: &mut Draw<'_>) -> Option<Self::Write>;

    /// A row with every field set, and its bytes.
    #[cfg(test)]
    fn golden() -> Golden;
}

/// The choices of which [`StoreOperations::sample`] makes a write.
pub struct Draw<'a> {
    /// A number below 1,000.
    pub number: u32,
    /// One of few workers.
    pub worker: WorkerId,
    /// Whether to write a row, where there is also a way to remove it.
    pub is_put: bool,
    /// Another node.
    pub other: Option<NodeId>,
    /// The time around which rows are dated, in milliseconds of wall time.
    pub wall_ms: u64,
    /// The source of any further choice.
    pub rng: &'a mut dyn Rng,
}

impl Debug for Draw<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { number, worker, is_put, .. } = self;
        write!(f, "{number}, worker {worker}, put {is_put}")
    }
}
