//! The writers of rows: each life of each node, under a small number that is this node's own.
//!
//! A writer is *over* once a later life of its name is known or its node was forgotten: it will write no more, so what ends
//! with a router's life ends, and somebody carries the rest on. It is *retired* once nothing of it is left but what others
//! carry and everybody has seen all that it wrote. Then it is no longer spoken of; how far its logs were stays known, so
//! that what comes late finds itself covered. Who turns out to know more of it opens it again. Retired writers are forgotten
//! only for want of room: who was away for weeks may still bring rows of theirs.
//!
//! That a writer is not over here proves nothing: who came late has never heard the goodbye. So a row counts as one that
//! stays only if its writer is, or was, a member here and is not over.

use std::collections::BTreeMap;

use smg_types::ids::{Generation, NodeId, NodeName};
use smg_types::now::Now;

use crate::crdt::stamp::Author;
use crate::state::STORES;

/// A writer's number on this node; never reused while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer(u32);

/// Versions of one writer, per store, in the order of `StoreId`.
pub type StoreVersions = [u64; STORES];

#[derive(Debug)]
struct Entry {
    id: NodeId,
    author: Author,
    /// It is this node or was listed as a member here.
    member: bool,
    down: bool,
    over: bool,
    retired: Option<Now>,
}

/// All writers that this node knows of.
#[derive(Debug, Default)]
pub struct Writers {
    entries: BTreeMap<Writer, Entry>,
    by_id: BTreeMap<NodeId, Writer>,
    next: u32,
}

impl Writers {
    /// Writers that are remembered at most; a stranger's flood of names ends here.
    pub const MAX: usize = 4096;
    /// Retired writers that are remembered however long ago that was, at about a kilobyte each: a cluster of ten that is
    /// rolled out daily has as many in seven weeks.
    pub const KEPT: usize = 512;

    /// The number of `id`, given now if it has none; `None` when there are too many writers.
    pub fn intern(&mut self, id: &NodeId) -> Option<Writer> {
        if let Some(writer) = self.by_id.get(id) {
            return Some(*writer);
        }
        if self.entries.len() >= Self::MAX {
            return None;
        }
        let writer = Writer(self.next);
        self.next += 1;
        let mut over = false;
        for (other, number) in self.lives(&id.name) {
            if other.generation > id.generation {
                over = true;
            } else if let Some(entry) = self.entries.get_mut(&number) {
                entry.over = true;
            }
        }
        let author = Author::of(id);
        self.by_id.insert(id.clone(), writer);
        self.entries.insert(
            writer,
            Entry { id: id.clone(), author, member: false, down: false, over, retired: None },
        );
        Some(writer)
    }

    fn lives(&self, name: &NodeName) -> Vec<(NodeId, Writer)> {
        let first = NodeId { name: name.clone(), generation: Generation(0) };
        let last = NodeId { name: name.clone(), generation: Generation(u64::MAX) };
        self.by_id.range(first..=last).map(|(id, writer)| (id.clone(), *writer)).collect()
    }

    /// The number of `id`, if it has one.
    #[must_use]
    pub fn number(&self, id: &NodeId) -> Option<Writer> {
        self.by_id.get(id).copied()
    }

    /// Whose number this is.
    #[must_use]
    pub fn id(&self, writer: Writer) -> Option<&NodeId> {
        self.entries.get(&writer).map(|entry| &entry.id)
    }

    pub(crate) fn author(&self, writer: Writer) -> Author {
        self.entries.get(&writer).map_or_else(Author::default, |entry| entry.author)
    }

    /// Whether the writer's process is believed to run: what it measures may be shown.
    #[must_use]
    pub fn is_live(&self, writer: Writer) -> bool {
        self.entries.get(&writer).is_some_and(|e| !e.down && !e.over && e.retired.is_none())
    }

    /// Whether the writer will write no more.
    #[must_use]
    pub fn is_over(&self, writer: Writer) -> bool {
        self.entries.get(&writer).is_some_and(|entry| entry.over)
    }

    /// Whether the writer's rows stay as long as it wants: a member, reachable or not, that is not over.
    pub(crate) fn still_writes(&self, writer: Writer) -> bool {
        self.entries.get(&writer).is_some_and(|entry| entry.member && !entry.over)
    }

    pub(crate) fn is_retired(&self, writer: Writer) -> bool {
        self.entries.get(&writer).is_some_and(|entry| entry.retired.is_some())
    }

    /// The membership lists this writer, as one that can be reached or not.
    pub(crate) fn set_down(&mut self, writer: Writer, down: bool) -> bool {
        self.entries.get_mut(&writer).is_some_and(|entry| {
            entry.member = true;
            let changed = entry.down != down;
            entry.down = down;
            changed
        })
    }

    pub(crate) fn end(&mut self, writer: Writer) {
        if let Some(entry) = self.entries.get_mut(&writer) {
            entry.over = true;
        }
    }

    pub(crate) fn retire(&mut self, writer: Writer, now: Now) {
        if let Some(entry) = self.entries.get_mut(&writer) {
            entry.over = true;
            entry.retired = Some(now);
        }
    }

    /// A retired writer has written more than was known.
    pub(crate) fn reopen(&mut self, writer: Writer) {
        if let Some(entry) = self.entries.get_mut(&writer) {
            entry.retired = None;
        }
    }

    /// Writers that were retired before `oldest`, by the monotonic clock, the longest ago first, and are too many to keep.
    pub(crate) fn retired_before(&self, oldest: std::time::Duration) -> Vec<Writer> {
        let retired =
            self.entries.iter().filter_map(|(writer, e)| Some((e.retired?.mono, *writer)));
        let mut retired: Vec<_> = retired.collect();
        let excess = retired.len().saturating_sub(Self::KEPT);
        if excess == 0 {
            return Vec::new();
        }
        retired.sort_unstable();
        let excess = retired.into_iter().take(excess).filter(|(at, _)| *at < oldest);
        excess.map(|(_, writer)| writer).collect()
    }

    pub(crate) fn forget(&mut self, writer: Writer) {
        if let Some(entry) = self.entries.remove(&writer) {
            self.by_id.remove(&entry.id);
        }
    }

    /// All writers, the retired ones among them.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Writer, &NodeId)> {
        self.entries.iter().map(|(writer, entry)| (*writer, &entry.id))
    }

    /// Writers that are not retired, in the order of their numbers.
    pub(crate) fn current(&self) -> impl Iterator<Item = (Writer, &NodeId)> {
        self.entries.iter().filter(|(_, e)| e.retired.is_none()).map(|(w, e)| (*w, &e.id))
    }

    /// How many writers are remembered, the retired ones among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn retired_writers_are_forgotten_only_for_want_of_room_and_the_oldest_first() {
        let mut writers = Writers::default();
        let at = |n: usize| Now::at(Duration::from_secs(n as u64));
        for n in 0..Writers::KEPT + 2 {
            let name = format!("n{n}").parse().unwrap();
            let writer = writers.intern(&NodeId { name, generation: Generation(1) }).unwrap();
            writers.retire(writer, at(n));
        }
        let old = writers.retired_before(Duration::MAX);
        assert_eq!(old, [Writer(0), Writer(1)]);
        assert_eq!(
            writers.retired_before(Duration::from_secs(1)),
            [Writer(0)],
            "and not before its time"
        );
        writers.forget(Writer(0));
        writers.forget(Writer(1));
        assert_eq!(writers.retired_before(Duration::MAX), []);
    }
}
