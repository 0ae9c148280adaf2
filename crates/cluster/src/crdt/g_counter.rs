//! A counter that only grows. Each actor counts in a slot of its own; the value is the sum of the slots.
//!
//! A delta carries the whole count of a slot, so a lost or duplicated delta does no harm. Merging takes the maximum of a
//! slot. An actor that restarts from zero must therefore be a new actor (a new generation), or its counts would be below
//! the maximum and be ignored.

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
    /// Adds `amount` to the count of `actor`, saturating; returns the delta for other replicas.
    pub fn add(&mut self, actor: A, amount: u64) -> Self {
        let slot = self.slots.entry(actor.clone()).or_insert(0);
        *slot = slot.saturating_add(amount);
        Self { slots: BTreeMap::from([(actor, *slot)]) }
    }

    /// Raises the count of `actor` to `total`, as read from a row; returns whether it was less.
    pub fn raise(&mut self, actor: A, total: u64) -> bool {
        let slot = self.slots.entry(actor).or_insert(0);
        let is_raised = total > *slot;
        *slot = total.max(*slot);
        is_raised
    }

    /// The count of `actor`; 0 if it has none.
    #[must_use]
    pub fn of(&self, actor: &A) -> u64 {
        self.slots.get(actor).copied().unwrap_or(0)
    }

    /// The sum of all actors' counts, saturating.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.slots.values().fold(0, |sum, n| sum.saturating_add(*n))
    }
}

impl<A: Ord + Clone> Merge for GCounter<A> {
    fn merge(&mut self, other: &Self) -> bool {
        other.slots.iter().fold(false, |raised, (actor, n)| self.raise(actor.clone(), *n) | raised)
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
            // The oracle ignores an addition of zero, and would lack the empty slot that it makes here.
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
