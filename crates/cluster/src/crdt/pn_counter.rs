//! A counter that goes up and down: two counters that only grow, one of the increments and one of the decrements.

use serde::{Deserialize, Serialize};

use crate::crdt::Merge;
use crate::crdt::g_counter::GCounter;

/// A counter with increments and decrements.
///
/// ```
/// use smg_cluster::crdt::{Merge, pn_counter::PnCounter};
/// let (mut a, mut b) = (PnCounter::default(), PnCounter::default());
/// a.add("a", 5);
/// b.merge(&a);
/// a.merge(&b.subtract("b", 7));
/// assert_eq!(a.value(), -2);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(serialize = "A: Ord + Serialize", deserialize = "A: Ord + Deserialize<'de>"))]
pub struct PnCounter<A: Ord> {
    up: GCounter<A>,
    down: GCounter<A>,
}

impl<A: Ord> Default for PnCounter<A> {
    fn default() -> Self {
        Self { up: GCounter::default(), down: GCounter::default() }
    }
}

impl<A: Ord + Clone> PnCounter<A> {
    /// Adds `amount` as `actor`; returns the delta for other replicas.
    pub fn add(&mut self, actor: A, amount: u64) -> Self {
        Self { up: self.up.add(actor, amount), down: GCounter::default() }
    }

    /// Subtracts `amount` as `actor`; returns the delta for other replicas.
    pub fn subtract(&mut self, actor: A, amount: u64) -> Self {
        Self { up: GCounter::default(), down: self.down.add(actor, amount) }
    }

    /// Raises the sums of `actor` to `up` and `down`, as read from a row; returns whether one was less.
    pub fn raise(&mut self, actor: A, up: u64, down: u64) -> bool {
        self.up.raise(actor.clone(), up) | self.down.raise(actor, down)
    }

    /// The increments of all actors minus their decrements.
    #[must_use]
    pub fn value(&self) -> i128 {
        i128::from(self.up.value()) - i128::from(self.down.value())
    }
}

impl<A: Ord + Clone> Merge for PnCounter<A> {
    fn merge(&mut self, other: &Self) -> bool {
        self.up.merge(&other.up) | self.down.merge(&other.down)
    }
}

#[cfg(test)]
mod tests {
    use crdts::{CmRDT, CvRDT};
    use proptest::prelude::*;

    use super::*;
    use crate::crdt::laws::{Subject, laws};

    impl Subject for PnCounter<u8> {
        type Op = (bool, u64);
        type Oracle = crdts::PNCounter<u8>;
        type Value = String;

        fn ops() -> BoxedStrategy<(bool, u64)> {
            (any::<bool>(), 1..1_000u64).boxed()
        }

        fn write(&mut self, replica: u8, _: u64, op: &(bool, u64)) -> Self {
            if op.0 { self.add(replica, op.1) } else { self.subtract(replica, op.1) }
        }

        fn read(&self) -> String {
            self.value().to_string()
        }

        fn oracle_write(oracle: &mut Self::Oracle, replica: u8, _: u64, op: &(bool, u64)) {
            let done =
                if op.0 { oracle.inc_many(replica, op.1) } else { oracle.dec_many(replica, op.1) };
            oracle.apply(done);
        }

        fn oracle_merge(oracle: &mut Self::Oracle, other: &Self::Oracle) {
            oracle.merge(other.clone());
        }

        fn oracle_read(oracle: &Self::Oracle) -> String {
            oracle.read().to_string()
        }
    }

    laws!(PnCounter<u8>);
}
