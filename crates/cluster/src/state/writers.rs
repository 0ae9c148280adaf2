//! The writers of rows: each generation of each node, under a small number that only this node uses.
//!
//! A writer has *ended* when a later generation of its name is known, or when its node was forgotten. It writes no more
//! rows. Its measurements are dropped, and other nodes adopt the rest of its rows. A writer is *retired* when rows of other
//! writers hold all that it wrote, and every member has applied all of its log. Digests do not mention a retired writer any
//! more. This node keeps the length of its logs, so that a row of it that arrives late is known to be covered. A peer that
//! has newer versions of a retired writer reopens it. Retired writers are forgotten only when there are too many, because a
//! node that returns after weeks may still have rows of them.
//!
//! A writer that has not ended here may have ended elsewhere: a node that joined later has missed that. Other rows may
//! therefore be dropped in favour of a row only if that row's writer is or was a member here and has not ended.
//!
//! Any message can name writers that never were. So names that are not those of members get only a part of the places, and a
//! generation beyond the clock ends no other one unless it is that of a member that can be reached.

use std::collections::BTreeMap;

use smg_types::ids::{Generation, NodeId, NodeName};
use smg_types::now::Now;

use crate::crdt::stamp::Author;
use crate::state::store_id::STORES;

/// The number of a writer on this node. It is not reused while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer(u32);

/// The versions of one writer in each store, in the order of `StoreId`.
pub type StoreVersions = [u64; STORES];

#[derive(Debug)]
struct Entry {
    id: NodeId,
    author: Author,
    /// It is this node, or this node's membership has listed it.
    member: bool,
    down: bool,
    ended: bool,
    /// Since when it is retired.
    retired: Option<Now>,
}

/// All writers of which this node has a row or a version, and all members.
#[derive(Debug, Default)]
pub struct Writers {
    entries: BTreeMap<Writer, Entry>,
    by_id: BTreeMap<NodeId, Writer>,
    next: u32,
    /// The latest generation that is believed of a writer that is not a member; `None`: any.
    latest: Option<Generation>,
}

impl Writers {
    /// Most writers. Names of more are refused, so that hostile messages can't fill the memory.
    pub const MAX: usize = 4096;
    /// Places that only members get: this node and those that membership lists.
    pub const FOR_MEMBERS: usize = 512;
    /// The number of retired writers that are never forgotten, at about 1 KB each. A cluster of ten routers that are all
    /// restarted once a day has as many after seven weeks.
    pub const KEPT: usize = 512;

    /// The number of `id`, which a message names. It is added if it is new; `None` if there are too many writers.
    pub fn intern(&mut self, id: &NodeId) -> Option<Writer> {
        self.intern_up_to(Self::MAX - Self::FOR_MEMBERS, id, false)
    }

    /// The number of `id`, which is this node or a member. It is added if it is new; `None` if there are too many writers.
    pub(crate) fn intern_member(&mut self, id: &NodeId) -> Option<Writer> {
        self.intern_up_to(Self::MAX, id, true)
    }

    /// From now on, generations after `latest` are not believed of writers that are not members.
    pub(crate) fn set_latest(&mut self, latest: Generation) {
        self.latest = Some(latest);
    }

    fn intern_up_to(&mut self, max: usize, id: &NodeId, is_member: bool) -> Option<Writer> {
        let is_beyond_clock = self.is_beyond_clock(id);
        if let Some(writer) = self.by_id.get(id).copied() {
            if is_member && is_beyond_clock {
                self.end_before(id);
            }
            return Some(writer);
        }
        if self.entries.len() >= max {
            return None;
        }
        let writer = Writer(self.next);
        self.next += 1;
        let ended = self.generations(&id.name).iter().any(|(other, number)| {
            let entry = self.entries.get(number);
            let is_reached = entry.is_some_and(|e| e.member && !e.down && !e.ended);
            other.generation > id.generation && (is_reached || !self.is_beyond_clock(other))
        });
        if is_member || !is_beyond_clock {
            self.end_before(id);
        }
        let author = Author::of(id);
        self.by_id.insert(id.clone(), writer);
        self.entries.insert(
            writer,
            Entry { id: id.clone(), author, member: false, down: false, ended, retired: None },
        );
        Some(writer)
    }

    /// The latest generation of the name of `id`, if it is later than `id` and ends it.
    pub(crate) fn later_generation(&self, id: &NodeId) -> Option<Generation> {
        let last = self.generations(&id.name).into_iter().map(|(id, _)| id);
        let last = last.filter(|other| !self.is_beyond_clock(other)).max()?;
        (last.generation > id.generation).then_some(last.generation)
    }

    fn is_beyond_clock(&self, id: &NodeId) -> bool {
        self.latest.is_some_and(|latest| id.generation > latest)
    }

    /// Ends all earlier generations of the name.
    fn end_before(&mut self, id: &NodeId) {
        for (other, number) in self.generations(&id.name) {
            if other.generation < id.generation
                && let Some(entry) = self.entries.get_mut(&number)
            {
                entry.ended = true;
            }
        }
    }

    fn generations(&self, name: &NodeName) -> Vec<(NodeId, Writer)> {
        let first = NodeId { name: name.clone(), generation: Generation(0) };
        let last = NodeId { name: name.clone(), generation: Generation(u64::MAX) };
        self.by_id.range(first..=last).map(|(id, writer)| (id.clone(), *writer)).collect()
    }

    /// The number of `id`, if it is known.
    #[must_use]
    pub fn number(&self, id: &NodeId) -> Option<Writer> {
        self.by_id.get(id).copied()
    }

    /// The id of `writer`; `None` if it was forgotten.
    #[must_use]
    pub fn id(&self, writer: Writer) -> Option<&NodeId> {
        self.entries.get(&writer).map(|entry| &entry.id)
    }

    /// Whether `earlier` is `writer`, or an earlier generation of the same node.
    pub(crate) fn is_same_node(&self, earlier: Writer, writer: Writer) -> bool {
        let ids = self.id(earlier).zip(self.id(writer));
        earlier == writer
            || ids.is_some_and(|(a, b)| a.name == b.name && a.generation < b.generation)
    }

    pub(crate) fn author(&self, writer: Writer) -> Author {
        self.entries.get(&writer).map_or_else(Author::default, |entry| entry.author)
    }

    /// Whether the writer's process is believed to run, so that its measurements count: membership lists it, and not as down.
    #[must_use]
    pub fn is_live(&self, writer: Writer) -> bool {
        let entry = self.entries.get(&writer);
        entry.is_some_and(|e| e.member && !e.down && !e.ended && e.retired.is_none())
    }

    /// Whether the writer has ended and writes no more rows.
    #[must_use]
    pub fn has_ended(&self, writer: Writer) -> bool {
        self.entries.get(&writer).is_some_and(|entry| entry.ended)
    }

    /// Whether the writer is or was a member here, reachable or not, and has not ended. Its rows stay until it changes them.
    pub(crate) fn still_writes(&self, writer: Writer) -> bool {
        self.entries.get(&writer).is_some_and(|entry| entry.member && !entry.ended)
    }

    pub(crate) fn is_retired(&self, writer: Writer) -> bool {
        self.entries.get(&writer).is_some_and(|entry| entry.retired.is_some())
    }

    /// Records that membership lists the writer, and whether it is down; returns whether that has changed.
    pub(crate) fn note_member(&mut self, writer: Writer, down: bool) -> bool {
        self.entries.get_mut(&writer).is_some_and(|entry| {
            entry.member = true;
            let changed = entry.down != down;
            entry.down = down;
            changed
        })
    }

    pub(crate) fn end(&mut self, writer: Writer) {
        if let Some(entry) = self.entries.get_mut(&writer) {
            entry.ended = true;
        }
    }

    pub(crate) fn retire(&mut self, writer: Writer, now: Now) {
        if let Some(entry) = self.entries.get_mut(&writer) {
            entry.ended = true;
            entry.retired = Some(now);
        }
    }

    /// Makes a retired writer one that digests mention again, because a peer has newer versions of it.
    pub(crate) fn reopen(&mut self, writer: Writer) {
        if let Some(entry) = self.entries.get_mut(&writer) {
            entry.retired = None;
        }
    }

    /// The writers that exceed [`Self::KEPT`] and were retired before `oldest` (monotonic time), in the order in which they
    /// were retired.
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

    /// All writers, including the retired ones.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Writer, &NodeId)> {
        self.entries.iter().map(|(writer, entry)| (*writer, &entry.id))
    }

    /// Writers that are not retired, in the order of their numbers.
    pub(crate) fn current(&self) -> impl Iterator<Item = (Writer, &NodeId)> {
        self.entries.iter().filter(|(_, e)| e.retired.is_none()).map(|(w, e)| (*w, &e.id))
    }

    /// The number of writers, including the retired ones.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no writers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn id(name: &str, generation: u64) -> NodeId {
        NodeId { name: name.parse().unwrap(), generation: Generation(generation) }
    }

    #[test]
    fn a_generation_beyond_the_clock_ends_another_one_only_while_it_is_a_member() {
        let mut writers = Writers::default();
        writers.set_latest(Generation(100));
        let five = writers.intern_member(&id("a", 5)).unwrap();
        writers.note_member(five, false);
        let made_up = writers.intern(&id("a", 1 << 62)).unwrap();
        assert!(!writers.has_ended(five), "any message can name a writer");
        let six = writers.intern_member(&id("a", 6)).unwrap();
        assert!(writers.has_ended(five) && !writers.has_ended(six));
        // A process whose clock is wrong by years joins, and crashes.
        writers.intern_member(&id("a", 1 << 62)).unwrap();
        writers.note_member(made_up, false);
        assert!(writers.has_ended(six));
        writers.note_member(made_up, true);
        let seven = writers.intern_member(&id("a", 7)).unwrap();
        assert!(
            !writers.has_ended(seven),
            "the next process, whose clock is right, is not shut out"
        );
    }

    #[test]
    fn names_in_messages_leave_room_for_members() {
        let mut writers = Writers::default();
        for n in 0..Writers::MAX as u64 {
            writers.intern(&id(&format!("n{n}"), 1));
        }
        assert_eq!(writers.len(), Writers::MAX - Writers::FOR_MEMBERS);
        assert_eq!(writers.intern(&id("one-more", 1)), None);
        assert!(writers.intern_member(&id("one-more", 1)).is_some());
    }

    #[test]
    fn only_surplus_retired_writers_may_be_forgotten_the_earliest_first() {
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
            "only those retired before the given time"
        );
        writers.forget(Writer(0));
        writers.forget(Writer(1));
        assert_eq!(writers.retired_before(Duration::MAX), []);
    }
}
