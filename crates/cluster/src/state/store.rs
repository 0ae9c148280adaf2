//! A store's statements about itself: its name and number, which nodes change its rows, how soon rows are sent, how long
//! they are kept, and how large they may be.
//!
//! A store is a type without values that implements [`Store`], and [`StoreOperations`](crate::state::operations) for what
//! can be done with its table, in a file of its own. The list of all stores is in [`stores`](crate::state::stores);
//! whatever concerns every store walks that list, so that no other code names one.

use std::fmt::Debug;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::crdt::stamp::Stamp;
use crate::state::store_id::StoreId;

/// Which nodes may change a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// Every node. A write replaces all rows under its key that the node has seen, and a removal removes
    /// those; a write that a removal has not seen survives it.
    Shared,
    /// Only the node that wrote it. Each node has a row of its own under a key, and readers add them up.
    PerNode,
}

/// When a row ends without being removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// When the generation of the node that wrote it ends: the row is a measurement that is not renewed then.
    WithWriter,
    /// At the time that [`Store::expires_ms`] computes from it.
    TimeToLive,
    /// Never. Another node takes the row over when the generation that wrote it ends.
    Never,
}

/// A store: its constants, the types of its rows, and what can be done with them.
pub trait Store: Debug + Sized + 'static {
    /// The name in `/ha/status`, metrics and log lines: lower case, and no other store's.
    const NAME: &'static str;
    /// The store in code that walks all stores, and its number on the wire.
    const ID: StoreId;
    /// Which nodes may change a row.
    const OWNERSHIP: Ownership;
    /// When a row ends without being removed.
    const RETENTION: Retention;
    /// How fresh the peers' copies are: a write is sent at once if the last one was sent at least this long ago, else
    /// together with all others of this time. Up to 10 ms, its messages go before those of slower stores.
    const COALESCING: Duration;
    /// Most live rows of one writer.
    const MAX_ROWS: usize;
    /// Longest encoded content of a row, in bytes, at most [`row::MAX_CONTENT_BYTES`](crate::state::row). The rows of a
    /// shared store need room for the kills that they carry.
    const MAX_CONTENT_BYTES: usize;
    /// Whether a client waits until peers have confirmed a write, as administrators may. Peers then acknowledge at once, not
    /// within 100 ms.
    const IS_AWAITED: bool;
    /// Whether routers of this version write rows of this store. A store that is not in use is replicated all the same,
    /// for the sake of newer routers, but is not shown in `/ha/status`, `/ha/drift` and metrics.
    const IS_IN_USE: bool;
    /// Whether a router with a data folder keeps the rows on disk. What administrators set is worth it; what routers measure or
    /// agree on anew after a restart is not.
    const IS_DURABLE: bool;

    /// The key of a row; at most 1,024 bytes encoded.
    type Key: Clone + Ord + Debug + Serialize + DeserializeOwned;
    /// The value of a row.
    type Value: Clone + PartialEq + Debug + Serialize + DeserializeOwned;

    /// Checks that key and value are inside their bounds, of this node's rows and of others'.
    ///
    /// # Errors
    /// The message says which of them is not, and its value.
    fn validate(key: &Self::Key, value: &Self::Value) -> Result<(), String>;

    /// The latest stamp in a value, by which the clock of this node moves on.
    fn stamp(_value: &Self::Value) -> Option<Stamp> {
        None
    }

    /// When a row ends by itself, in milliseconds of wall time; `Some` in stores with [`Retention::TimeToLive`] only.
    fn expires_ms(_key: &Self::Key, _value: &Self::Value) -> Option<u64> {
        None
    }
}

/// The constants of a store as a value, for code that walks stores.
#[derive(Debug, Clone, Copy)]
pub(super) struct Properties {
    pub(super) name: &'static str,
    pub(super) id: StoreId,
    pub(super) ownership: Ownership,
    pub(super) retention: Retention,
    pub(super) coalescing: Duration,
    pub(super) max_content_bytes: usize,
    pub(super) is_awaited: bool,
    pub(super) is_in_use: bool,
    pub(super) is_durable: bool,
}

impl Properties {
    pub(super) const fn of<S: Store>() -> Self {
        Self {
            name: S::NAME,
            id: S::ID,
            ownership: S::OWNERSHIP,
            retention: S::RETENTION,
            coalescing: S::COALESCING,
            max_content_bytes: S::MAX_CONTENT_BYTES,
            is_awaited: S::IS_AWAITED,
            is_in_use: S::IS_IN_USE,
            is_durable: S::IS_DURABLE,
        }
    }
}
