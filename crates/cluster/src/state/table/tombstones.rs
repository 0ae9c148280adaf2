//! Drops tombstones that are not needed any more, and keeps their number within its bound.

use crate::state::store::Store;
use crate::state::table::Table;
use crate::state::table::cell::{Kills, extras};
use crate::state::table::log::FREE_TOMBSTONES;
use crate::state::writers::Writer;

impl<S: Store> Table<S> {
    /// Drops tombstones of `writer` up to `version`, but none that this node does not cover; returns how many.
    pub(super) fn collect_tombstones(&mut self, writer: Writer, version: u64) -> usize {
        let Some(log) = self.logs.get_mut(&writer) else { return 0 };
        // Of what is not covered, only tombstones say what is dead. A row that was refused never arrives, so its hole does not
        // matter here.
        let version = version.min(log.covered);
        let old: Vec<u64> = log.tombstones.range(..=version).copied().collect();
        let Some(last) = old.last() else { return 0 };
        log.floor = log.floor.max(*last);
        for version in &old {
            let key = self.logs[&writer].by_version[version].clone();
            let mut row = self.remove_row(&key, writer).expect("each version in a log has a row");
            if row.has_dots() {
                let carried = row.extras.take().map_or_else(Vec::new, |extras| extras.carried);
                row.extras = extras(Kills::new(), carried);
                self.insert_row(key, writer, row);
            }
        }
        old.len()
    }

    /// Keeps tombstones within their bound by dropping the oldest quarter of the log that has most.
    pub(super) fn bound_tombstones(&mut self) {
        if self.tombstones <= FREE_TOMBSTONES.max(2 * self.dots) {
            return;
        }
        let longest = self.logs.iter().max_by_key(|(_, log)| log.tombstones.len());
        // Tombstones that are not covered must stay. Other logs do not lose theirs because of them.
        let longest =
            longest.filter(|(_, log)| log.tombstones.range(..=log.covered).next().is_some());
        let cut = longest.and_then(|(writer, log)| {
            let last = log.tombstones.iter().nth(log.tombstones.len() / 4)?;
            Some((*writer, *last))
        });
        if let Some((writer, version)) = cut {
            self.collect_tombstones(writer, version);
        }
    }
}
