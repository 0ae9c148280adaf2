//! The keys and values that a node keeps on disk: their form, and what has been saved. `saving` uses them.

use std::collections::BTreeMap;

use smg_types::ids::{Generation, NodeId, NodeName};

use crate::codec;
use crate::replication::message::{ClaimsBuilder, SnapshotChunk};
use crate::state::StoreId;
use crate::state::row::{Blob, RawRow};
use crate::state::writers::Writer;

/// A saved key begins with the kind of what it names, then the number of the store.
pub(super) const ROWS: u8 = 1;
pub(super) const POSITION: u8 = 2;

/// A key with its new value; `None`: it is removed.
pub type SavedEntry = (Vec<u8>, Option<Vec<u8>>);

/// The rows and waiting kills under a key, with their writers.
pub(super) type SavedRows = (Vec<(NodeId, RawRow)>, Vec<(NodeId, u64)>);

/// The version that a log covers, and its floor.
pub(super) type Position = (u64, u64);

/// What was loaded from disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// Rows that are different now.
    pub rows: usize,
    /// Keys that this version can't use. They are of a later version, or of a store that this version does not have.
    pub unusable: usize,
}

/// What has been saved.
#[derive(Debug, Default)]
pub(super) struct Saving {
    /// The saved position of each log; `None`: nothing is saved.
    pub(super) positions: Option<BTreeMap<(StoreId, Writer), (NodeId, Position)>>,
}

/// The saved state of one store.
#[derive(Default)]
pub(super) struct Part {
    claims: ClaimsBuilder,
    pub(super) rows: Vec<(u16, RawRow)>,
    pending: Vec<(u16, Blob, u64)>,
}

impl Part {
    /// Adds a saved key; `None` if this version can't use it.
    pub(super) fn add(&mut self, store: StoreId, kind: u8, key: &[u8], value: &[u8]) -> Option<()> {
        match kind {
            ROWS => {
                let (rows, pending): SavedRows = codec::decode(value).ok()?;
                for (id, row) in rows {
                    self.rows.push((self.claims.place(&id)?, row));
                }
                for (id, up_to) in pending {
                    self.pending.push((self.claims.place(&id)?, key.to_vec().into(), up_to));
                }
            }
            POSITION => {
                let id: NodeId = codec::decode(key).ok()?;
                let (version, floor): Position = codec::decode(value).ok()?;
                self.claims.push(&id, store, version, floor);
            }
            _ => return None,
        }
        Some(())
    }

    pub(super) fn into_chunk(self, store: StoreId) -> SnapshotChunk {
        let Self { claims, rows, pending } = self;
        let claims = claims.build();
        SnapshotChunk {
            store: store.into(),
            session: 0,
            after: None,
            end: None,
            claims,
            rows,
            pending,
        }
    }
}

/// The latest generation of the node `name` of which something is saved: the next one must be later, also if the clock was
/// set back.
pub fn saved_generation<'a>(
    keys: impl Iterator<Item = &'a [u8]>,
    name: &NodeName,
) -> Option<Generation> {
    let ids = keys.filter_map(|key| match key {
        [POSITION, _, id @ ..] => codec::decode::<NodeId>(id).ok(),
        _ => None,
    });
    ids.filter(|id| id.name == *name).map(|id| id.generation).max()
}

/// Whether a saved key is of a kind and a store that this version saves. Other keys must stay as they are.
#[must_use]
pub fn is_saved_key(key: &[u8]) -> bool {
    let [ROWS | POSITION, store, ..] = key else { return false };
    StoreId::durable().any(|durable| durable.wire_id() == *store)
}
