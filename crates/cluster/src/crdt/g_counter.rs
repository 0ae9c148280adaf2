//! A counter that only grows: one slot per actor, the value is their sum.
//!
//! The slots are absolute, so a lost or doubled delta does no harm. An actor that starts anew must be a new actor (a
//! new generation): merging takes the maximum, and counts of a reused slot would vanish below it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::crdt::Merge;

/// A grow-only counter.
///
/// ```
/// use smg_cluster::crdt::{Merge, g_counter::GCounter};
/// let (mut a, mut b) = (GCounter::default(), GCounter::default());
/// a.add("a", 2);
/// let delta = b.add("b", 3);
/// a.merge(&delta);
/// a.merge(&delta);
/// assert_eq!(a.value(), 5);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GCounter<A: Ord> {
    slots: BTreeMap<A, u64>,
}

impl<A: Ord> Default for GCounter<A> {
    fn default() -> Self {
        Self { slots: BTreeMap::new() }
    }
}

impl<A: Ord + Clone> GCounter<A> {
    /// Counts `amount` more for `actor` (saturating); the delta says so to others.
    pub fn add(&mut self, actor: A, amount: u64) -> Self {
        let slot = self.slots.entry(actor.clone()).or_insert(0);
        *slot = slot.saturating_add(amount);
        Self { slots: BTreeMap::from([(actor, *slot)]) }
    }

    /// Learns that `actor` has counted `total`: a row of the replicated form. Says whether that was new.
    pub fn raise(&mut self, actor: A, total: u64) -> bool {
        let slot = self.slots.entry(actor).or_insert(0);
        let news = total > *slot;
        *slot = total.max(*slot);
        news
    }

    /// What `actor` has counted.
    #[must_use]
    pub fn of(&self, actor: &A) -> u64 {
        self.slots.get(actor).copied().unwrap_or(0)
    }

    /// The sum over all actors, saturating.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.slots.values().fold(0, |sum, n| sum.saturating_add(*n))
    }
}

impl<A: Ord + Clone> Merge for GCounter<A> {
    fn merge(&mut self, other: &Self) -> bool {
        other.slots.iter().fold(false, |news, (actor, n)| self.raise(actor.clone(), *n) | news)
    }
}

#[cfg(test)]
mod tests {
    use crdts::{CmRDT, CvRDT};
    use proptest::prelude::*;

    use super::*;
    use crate::crdt::laws::{Subject, laws};

    impl Subject for GCounter<u8> {
        type Op = u64;
        type Oracle = crdts::GCounter<u8>;
        type Value = String;

        fn ops() -> BoxedStrategy<u64> {
            // Zero is no operation to the oracle, which would then lack an empty slot.
            (1..1_000u64).boxed()
        }

        fn write(&mut self, replica: u8, _: u64, op: &u64) -> Self {
            self.add(replica, *op)
        }

        fn read(&self) -> String {
            self.value().to_string()
        }

        fn oracle_write(oracle: &mut Self::Oracle, replica: u8, _: u64, op: &u64) {
            let dot = oracle.inc_many(replica, *op);
            oracle.apply(dot);
        }

        fn oracle_merge(oracle: &mut Self::Oracle, other: &Self::Oracle) {
            oracle.merge(other.clone());
        }

        fn oracle_read(oracle: &Self::Oracle) -> String {
            oracle.read().to_string()
        }
    }

    laws!(GCounter<u8>);
}
