//! A counter that never exceeds its limit, although its nodes spend without asking each other (escrow).
//!
//! The limit is divided into rights when the counter is made, and no right is created later. A node spends only rights
//! that it holds, and may grant some to another node. A lost message leaves rights unused; it never duplicates them. The
//! sum of what all nodes have spent is therefore at most the limit in any partition, crash or delay. After Balegas et
//! al., "Extending Eventually Consistent Cloud Databases for Enforcing Numeric Invariants" (2015).
//!
//! Not guaranteed: a node with demand may have no rights while another node holds unused ones. A node that lost its
//! memory must return as another actor, which holds no rights.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::crdt::Merge;

/// An actor holds fewer rights than it wanted to spend or grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} rights are needed, {held} are held")]
pub struct NoRightsError {
    /// The rights that the actor wanted to spend or grant.
    pub wanted: u64,
    /// The rights that the actor holds.
    pub held: u64,
}

/// The share of slot `slot`, from 0, when `limit` is divided among `slots`. Shares differ by at most 1, the lowest slots
/// have the larger ones, and all shares add up to exactly `limit`. A slot beyond the last has none.
#[must_use]
pub fn share(limit: u64, slot: u32, slots: u32) -> u64 {
    if slot >= slots {
        return 0;
    }
    limit / u64::from(slots) + u64::from(u64::from(slot) < limit % u64::from(slots))
}

/// A counter whose limit holds under any failure.
///
/// ```
/// use smg_cluster::crdt::{Merge, bounded_counter::BoundedCounter};
/// let mut a = BoundedCounter::new([("a", 6), ("b", 4)]);
/// let mut b = a.clone();
/// a.spend("a", 6)?;
/// assert!(a.spend("a", 1).is_err());
/// a.merge(&b.grant("b", "a", 2)?);
/// a.spend("a", 2)?;
/// assert_eq!((a.rights(&"a"), b.rights(&"b"), a.spent()), (0, 2, 8));
/// # Ok::<(), smg_cluster::crdt::bounded_counter::NoRightsError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(serialize = "A: Ord + Serialize", deserialize = "A: Ord + Deserialize<'de>"))]
pub struct BoundedCounter<A: Ord> {
    /// The rights that each actor held at the start; equal on all replicas.
    shares: BTreeMap<A, u64>,
    /// All rights that an actor (the first) has ever granted to another (the second). Only the first writes it.
    granted: BTreeMap<(A, A), u64>,
    /// All that an actor has spent. Only that actor writes it.
    spent: BTreeMap<A, u64>,
}

impl<A: Ord> Default for BoundedCounter<A> {
    fn default() -> Self {
        Self { shares: BTreeMap::new(), granted: BTreeMap::new(), spent: BTreeMap::new() }
    }
}

impl<A: Ord + Clone> BoundedCounter<A> {
    /// A counter whose limit is the sum of `shares`. All replicas must start with the same shares.
    #[must_use]
    pub fn new(shares: impl IntoIterator<Item = (A, u64)>) -> Self {
        Self { shares: shares.into_iter().collect(), ..Self::default() }
    }

    /// The rights that `actor` holds, as far as this replica knows. The actor's own replica may lack grants that have not
    /// arrived yet, so its number is never too high.
    #[must_use]
    pub fn rights(&self, actor: &A) -> u64 {
        let sum =
            |cells: &mut dyn Iterator<Item = u64>| cells.fold(0u128, |s, n| s + u128::from(n));
        let got = u128::from(self.shares.get(actor).copied().unwrap_or(0))
            + sum(&mut self.granted.iter().filter(|((_, to), _)| to == actor).map(|(_, n)| *n));
        let gone = u128::from(self.spent.get(actor).copied().unwrap_or(0))
            + sum(&mut self.granted.iter().filter(|((from, _), _)| from == actor).map(|(_, n)| *n));
        u64::try_from(got.saturating_sub(gone)).unwrap_or(u64::MAX)
    }

    /// Spends `amount` of the actor's rights; returns the delta for other replicas.
    ///
    /// # Errors
    /// The actor holds fewer rights.
    pub fn spend(&mut self, actor: A, amount: u64) -> Result<Self, NoRightsError> {
        self.require(&actor, amount)?;
        let spent = self.spent.entry(actor.clone()).or_insert(0);
        *spent += amount;
        Ok(Self { spent: BTreeMap::from([(actor, *spent)]), ..Self::default() })
    }

    /// Grants `amount` of the rights of `from` to `to`; returns the delta for other replicas. `from` loses the rights at
    /// once, `to` holds them when it merges the delta.
    ///
    /// # Errors
    /// `from` holds fewer rights.
    pub fn grant(&mut self, from: A, to: A, amount: u64) -> Result<Self, NoRightsError> {
        self.require(&from, amount)?;
        let cell = self.granted.entry((from.clone(), to.clone())).or_insert(0);
        *cell += amount;
        Ok(Self { granted: BTreeMap::from([((from, to), *cell)]), ..Self::default() })
    }

    /// Raises all that `from` has ever granted to `to` to `total`, as read from a row; returns whether it was less.
    pub fn raise_granted(&mut self, from: A, to: A, total: u64) -> bool {
        let cell = self.granted.entry((from, to)).or_insert(0);
        let is_raised = total > *cell;
        *cell = total.max(*cell);
        is_raised
    }

    /// Raises all that `actor` has spent to `total`, as read from a row; returns whether it was less.
    pub fn raise_spent(&mut self, actor: A, total: u64) -> bool {
        let cell = self.spent.entry(actor).or_insert(0);
        let is_raised = total > *cell;
        *cell = total.max(*cell);
        is_raised
    }

    /// The amount that all actors have spent together, as far as this replica knows; saturates.
    #[must_use]
    pub fn spent(&self) -> u64 {
        self.spent.values().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// The limit, which is the sum of the shares; saturates.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.shares.values().fold(0, |sum, n| sum.saturating_add(*n))
    }

    fn require(&self, actor: &A, wanted: u64) -> Result<(), NoRightsError> {
        let held = self.rights(actor);
        if held < wanted { Err(NoRightsError { wanted, held }) } else { Ok(()) }
    }
}

impl<A: Ord + Clone> Merge for BoundedCounter<A> {
    fn merge(&mut self, other: &Self) -> bool {
        fn raise<K: Ord + Clone>(into: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) -> bool {
            let mut is_raised = false;
            for (key, n) in from {
                if into.get(key).is_none_or(|have| have < n) {
                    into.insert(key.clone(), *n);
                    is_raised = true;
                }
            }
            is_raised
        }
        raise(&mut self.shares, &other.shares)
            | raise(&mut self.granted, &other.granted)
            | raise(&mut self.spent, &other.spent)
    }
}

#[cfg(test)]
mod tests {
    use crdts::{CmRDT, CvRDT};
    use proptest::prelude::*;

    use super::*;
    use crate::crdt::laws::{Event, Subject, history, laws};

    const SHARES: [(u8, u64); 4] = [(0, 40), (1, 10), (2, 0), (3, 50)];

    #[derive(Debug, Clone, Copy)]
    pub(crate) enum Op {
        Spend(u64),
        Grant(u8, u64),
    }

    fn with_shares() -> BoundedCounter<u8> {
        BoundedCounter::new(SHARES)
    }

    /// The counter starts empty: every replica merges the shares with its first write.
    impl Subject for BoundedCounter<u8> {
        type Op = Op;
        /// A replica's counter, which decides what may be spent, and the grow-only counter of the oracle's crate, which
        /// counts that.
        type Oracle = (Self, crdts::GCounter<u8>);
        type Value = String;

        fn ops() -> BoxedStrategy<Op> {
            prop_oneof![
                (0..60u64).prop_map(Op::Spend),
                (0..4u8, 0..60u64).prop_map(|(to, amount)| Op::Grant(to, amount)),
            ]
            .boxed()
        }

        fn write(&mut self, replica: u8, _: u64, op: &Op) -> Self {
            let mut delta = with_shares();
            self.merge(&delta);
            let done = match *op {
                Op::Spend(amount) => self.spend(replica, amount),
                Op::Grant(to, amount) => self.grant(replica, to, amount),
            };
            if let Ok(done) = done {
                delta.merge(&done);
            }
            delta
        }

        fn read(&self) -> String {
            self.spent().to_string()
        }

        fn oracle_write(oracle: &mut Self::Oracle, replica: u8, turn: u64, op: &Op) {
            let before = oracle.0.spent();
            oracle.0.write(replica, turn, op);
            let spent = oracle.0.spent() - before;
            let dot = oracle.1.inc_many(replica, spent);
            oracle.1.apply(dot);
        }

        fn oracle_merge(oracle: &mut Self::Oracle, other: &Self::Oracle) {
            oracle.0.merge(&other.0);
            oracle.1.merge(other.1.clone());
        }

        fn oracle_read(oracle: &Self::Oracle) -> String {
            oracle.1.read().to_string()
        }
    }

    laws!(BoundedCounter<u8>);

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn no_history_spends_more_than_the_limit(history in history::<BoundedCounter<u8>>()) {
            let mut replicas = vec![with_shares(); 4];
            for (turn, event) in history.iter().enumerate() {
                match event {
                    Event::Write(at, op) => {
                        replicas[usize::from(*at)].write(*at, turn as u64, op);
                    }
                    Event::Merge(from, to) => {
                        let from = replicas[usize::from(*from)].clone();
                        replicas[usize::from(*to)].merge(&from);
                    }
                }
                // Each actor's own replica knows exactly what the actor has spent and holds.
                let spent: u64 = (0..4u8)
                    .map(|a| replicas[usize::from(a)].spent.get(&a).copied().unwrap_or(0))
                    .sum();
                let held: u64 = (0..4u8).map(|a| replicas[usize::from(a)].rights(&a)).sum();
                prop_assert!(spent + held <= 100, "spent {spent}, held {held}");
            }
        }
    }

    #[test]
    fn shares_add_up_to_the_limit() {
        for slots in 1..12 {
            for limit in 0..40 {
                let sum: u64 = (0..slots).map(|slot| share(limit, slot, slots)).sum();
                assert_eq!(sum, limit, "{limit} over {slots}");
            }
        }
        assert_eq!(share(10, 3, 3), 0, "a slot beyond the last has no share");
    }
}
