//! What a node keeps on disk, and how a later generation of it loads that.
//!
//! What is saved are keys and values, whose changes together make the saved state that of one moment: for each key of a
//! store all rows and waiting kills under it, and for each log the position that a snapshot would claim. A node that
//! restarts takes them for a snapshot from its earlier self (`restore`), so every rule about snapshots holds: what the saved
//! state covers and does not hold is dead, and what happened after the moment is learned from the peers as by any node that
//! was away. The node is another generation, so it never uses a version again that it has forgotten.
//!
//! Not saved: ranges of snapshots that were loaded in part, and which writers are retired. The node loads the range again,
//! and learns that a writer is retired as a node does that joins.

use std::collections::BTreeMap;

use smg_types::ids::NodeId;
use smg_types::now::Now;

use crate::codec;
use crate::replication::Replication;
use crate::replication::changes::Changes;
use crate::replication::saved::{POSITION, Part, ROWS, Restored, SavedEntry, SavedRows};
use crate::state::StoreId;
use crate::state::table::SavedKey;

impl Replication {
    /// Remembers from now on what changes in the stores that are kept on disk.
    pub fn track_unsaved(&mut self) {
        self.state.track_unsaved();
        self.saving.positions.get_or_insert_default();
    }

    /// What has changed since this was last called, to be saved all at once: if a part of it is saved, the saved state is that
    /// of no moment. The positions of logs are included in stores of which a key has changed, and of all stores
    /// `with_positions`, which takes time proportional to the number of writers.
    pub fn take_unsaved(&mut self, with_positions: bool) -> Vec<SavedEntry> {
        let mut entries = Vec::new();
        if self.saving.positions.is_none() {
            return entries;
        }
        for store in StoreId::durable() {
            let keys = self.state.take_unsaved(store);
            if !keys.is_empty() || with_positions {
                entries.extend(keys.into_iter().map(|saved| self.saved_rows(store, saved)));
                self.add_positions(store, &mut entries);
            }
        }
        entries
    }

    fn saved_rows(&self, store: StoreId, saved: SavedKey) -> SavedEntry {
        let SavedKey { key, rows, pending } = saved;
        let id = |writer| self.state.writers.id(writer).cloned();
        let rows = rows.into_iter().filter_map(|(writer, row)| Some((id(writer)?, row)));
        let rows: Vec<_> = rows.collect();
        let pending = pending.into_iter().filter_map(|(writer, up_to)| Some((id(writer)?, up_to)));
        let pending: Vec<_> = pending.collect();
        let name = [&[ROWS, store.wire_id()], key.as_slice()].concat();
        let is_gone = rows.is_empty() && pending.is_empty();
        (name, (!is_gone).then(|| codec::encode::<SavedRows>(&(rows, pending))))
    }

    /// Adds the positions of the logs of `store` that have changed.
    fn add_positions(&mut self, store: StoreId, entries: &mut Vec<SavedEntry>) {
        let Some(saved) = &mut self.saving.positions else { return };
        let name = |id: &NodeId| [&[POSITION, store.wire_id()], &codec::encode(id)[..]].concat();
        let mut present = BTreeMap::new();
        for mark in self.state.replica(store).marks() {
            if mark.version > 0 || mark.floor > 0 {
                present.insert(mark.writer, (mark.version, mark.floor));
            }
        }
        saved.retain(|(of, writer), (id, _)| {
            let is_kept = *of != store || present.contains_key(writer);
            if !is_kept {
                entries.push((name(id), None));
            }
            is_kept
        });
        for (writer, position) in present {
            let Some(id) = self.state.writers.id(writer) else { continue };
            if saved.get(&(store, writer)).is_none_or(|(_, before)| *before != position) {
                entries.push((name(id), Some(codec::encode(&position))));
                saved.insert((store, writer), (id.clone(), position));
            }
        }
    }

    /// Loads what an earlier generation of this node has saved, as a snapshot from a peer.
    pub fn restore_saved<'a>(
        &mut self,
        now: Now,
        entries: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Restored {
        let mut restored = Restored::default();
        let mut parts: BTreeMap<StoreId, Part> = BTreeMap::new();
        for (key, value) in entries {
            let usable = key.split_first_chunk::<2>().and_then(|([kind, store], rest)| {
                let store = StoreId::from_wire_id(*store)?;
                parts.entry(store).or_default().add(store, *kind, rest, value)
            });
            restored.unusable += usize::from(usable.is_none());
        }
        for (store, part) in parts {
            let rows = part.rows.len();
            let before = self.counters.refused_messages;
            let _changes: Changes = self.restore(now, store, vec![part.into_chunk(store)]);
            if self.counters.refused_messages == before {
                restored.rows += rows;
            } else {
                restored.unusable += rows;
            }
        }
        restored
    }
}
