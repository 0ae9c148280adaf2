//! A set in which an addition survives a removal that has not seen it.
//!
//! Each addition is a dot (actor, number), and a removal names the dots that it has seen. The state is the live dots and a
//! causal context, which is the set of all dots ever seen. A dot in the context that is not live was removed, so there are
//! no tombstones. After Almeida, Shoker and Baquero, "Delta State Replicated Data Types" (2016): the context is a version
//! vector plus a cloud of single dots, so that a delta does not claim the dots before its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use serde::{Deserialize, Serialize};

use crate::crdt::Merge;
use crate::crdt::versions::Versions;

/// An addition: its actor, and the number of the actor's additions up to and with it.
type Dot<A> = (A, u64);

/// An add-wins observed-remove set.
///
/// ```
/// use smg_cluster::crdt::{Merge, or_set::OrSet};
/// let (mut a, mut b) = (OrSet::default(), OrSet::default());
/// b.merge(&a.add("a", "w1"));
/// let removed = b.remove(&"w1");
/// let again = a.add("a", "w1");
/// a.merge(&removed);
/// b.merge(&again);
/// assert!(a.contains(&"w1") && a == b, "the removal has not seen the addition");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "A: Ord + Serialize, T: Ord + Serialize",
    deserialize = "A: Ord + Deserialize<'de>, T: Ord + Deserialize<'de>"
))]
pub struct OrSet<A: Ord, T: Ord> {
    /// The live dots of each item.
    live: BTreeMap<T, BTreeSet<Dot<A>>>,
    seen: Versions<A>,
    /// Dots seen that are above `seen`, because dots before them are missing.
    cloud: BTreeSet<Dot<A>>,
}

impl<A: Ord, T: Ord> Default for OrSet<A, T> {
    fn default() -> Self {
        Self { live: BTreeMap::new(), seen: Versions::default(), cloud: BTreeSet::new() }
    }
}

impl<A: Ord + Clone + Debug, T: Ord + Clone> OrSet<A, T> {
    /// Adds `item` as `actor`; returns the delta for other replicas. An actor writes on its own replica only.
    pub fn add(&mut self, actor: A, item: T) -> Self {
        let highest_stray = self
            .cloud
            .range((actor.clone(), 0)..=(actor.clone(), u64::MAX))
            .next_back()
            .map_or(0, |(_, number)| *number);
        let next = self.seen.of(&actor).max(highest_stray) + 1;
        let dot = (actor, next);
        let mut delta = Self::default();
        delta.cloud.extend(self.live.get(&item).into_iter().flatten().cloned());
        delta.cloud.insert(dot.clone());
        delta.live.insert(item, BTreeSet::from([dot]));
        delta.compact();
        self.merge(&delta);
        delta
    }

    /// Removes all additions of `item` that this replica has seen; returns the delta for other replicas.
    pub fn remove(&mut self, item: &T) -> Self {
        let mut delta = Self::default();
        delta.cloud.extend(self.live.get(item).into_iter().flatten().cloned());
        delta.compact();
        self.merge(&delta);
        delta
    }

    /// Whether `item` is in the set.
    #[must_use]
    pub fn contains(&self, item: &T) -> bool {
        self.live.contains_key(item)
    }

    /// All items, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.live.keys()
    }

    fn has_seen(&self, dot: &Dot<A>) -> bool {
        self.seen.covers(&dot.0, dot.1) || self.cloud.contains(dot)
    }

    /// Moves the dots of the cloud that follow the vector without a gap into the vector.
    fn compact(&mut self) {
        let seen = &mut self.seen;
        self.cloud.retain(|(actor, number)| {
            if seen.of(actor) + 1 == *number {
                seen.raise(actor.clone(), *number);
            }
            !seen.covers(actor, *number)
        });
    }
}

impl<A: Ord + Clone + Debug, T: Ord + Clone> Merge for OrSet<A, T> {
    fn merge(&mut self, other: &Self) -> bool {
        let mut has_changed =
            !self.seen.dominates(&other.seen) || other.cloud.iter().any(|dot| !self.has_seen(dot));
        // A dot is live if it is live in both, or live in one and not seen by the other.
        self.live.retain(|item, dots| {
            let (theirs, before) = (other.live.get(item), dots.len());
            dots.retain(|dot| theirs.is_some_and(|t| t.contains(dot)) || !other.has_seen(dot));
            has_changed |= dots.len() != before;
            !dots.is_empty()
        });
        for (item, dots) in &other.live {
            let new: Vec<_> = dots.iter().filter(|dot| !self.has_seen(dot)).cloned().collect();
            if !new.is_empty() {
                self.live.entry(item.clone()).or_default().extend(new);
            }
        }
        self.seen.merge(&other.seen);
        self.cloud.extend(other.cloud.iter().cloned());
        self.compact();
        has_changed
    }
}

#[cfg(test)]
mod tests {
    use crdts::{CmRDT, CvRDT, Orswot};
    use proptest::prelude::*;

    use super::*;
    use crate::crdt::laws::{Subject, laws};

    impl Subject for OrSet<u8, u8> {
        type Op = (bool, u8);
        type Oracle = Orswot<u8, u8>;
        type Value = Vec<u8>;

        fn ops() -> BoxedStrategy<(bool, u8)> {
            (prop::bool::weighted(0.6), 0..4u8).boxed()
        }

        fn write(&mut self, replica: u8, _: u64, op: &(bool, u8)) -> Self {
            if op.0 { self.add(replica, op.1) } else { self.remove(&op.1) }
        }

        fn read(&self) -> Vec<u8> {
            self.iter().copied().collect()
        }

        fn oracle_write(oracle: &mut Self::Oracle, replica: u8, _: u64, op: &(bool, u8)) {
            let read = oracle.read_ctx();
            let done = if op.0 {
                oracle.add(op.1, read.derive_add_ctx(replica))
            } else {
                oracle.rm(op.1, oracle.contains(&op.1).derive_rm_ctx())
            };
            oracle.apply(done);
        }

        fn oracle_merge(oracle: &mut Self::Oracle, other: &Self::Oracle) {
            oracle.merge(other.clone());
        }

        fn oracle_read(oracle: &Self::Oracle) -> Vec<u8> {
            let mut members: Vec<u8> = oracle.read().val.into_iter().collect();
            members.sort_unstable();
            members
        }
    }

    laws!(OrSet<u8, u8>);
}
