//! What a node keeps on disk, as keys and values that mean nothing to others. See `replication::saving`.

use smg_types::now::Now;

use crate::node::Node;
use crate::replication::{Restored, SavedEntry};

impl Node {
    /// Remembers from now on what changes in the stores that are kept on disk.
    pub fn track_unsaved(&mut self) {
        self.replication.track_unsaved();
    }

    /// What has changed since this was last called: see [`Replication::take_unsaved`](crate::replication::Replication).
    pub fn take_unsaved(&mut self, with_positions: bool) -> Vec<SavedEntry> {
        self.replication.take_unsaved(with_positions)
    }

    /// Loads what an earlier generation of this node has saved. Call it before anything else, and only once.
    pub fn restore_saved<'a>(
        &mut self,
        now: Now,
        entries: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Restored {
        self.now = now;
        self.replication.restore_saved(now, entries)
    }
}
