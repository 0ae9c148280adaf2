//! A counter that never exceeds its limit, without asking anyone: escrow.
//!
//! The limit is cut into rights when the counter is made; nothing ever creates another. A node spends only rights that it
//! holds and may pass some on; a message that is lost leaves rights unused, never doubled. So the sum of what all nodes
//! spent stays at or below the limit in any partition, crash or delay. After Balegas et al., "Extending Eventually
//! Consistent Cloud Databases for Enforcing Numeric Invariants" (2015).
//!
//! What is not guaranteed: that a node with demand has rights while another sits on them; and a node that lost its memory
//! must come back as another actor, which holds nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::crdt::Merge;

/// A node lacks the rights for what it wanted to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} wanted, but only {held} rights are held here")]
pub struct NoRightsError {
    /// What was asked for.
    pub wanted: u64,
    /// What this actor holds.
    pub held: u64,
}

/// The share of slot `slot` when `limit` is cut into `slots` parts: floors, the remainder to the lowest slots, so that the
/// shares add up to the limit exactly.
#[must_use]
pub fn share(limit: u64, slot: u32, slots: u32) -> u64 {
    if slot >= slots {
        return 0;
    }
    limit / u64::from(slots) + u64::from(u64::from(slot) < limit % u64::from(slots))
}

/// A counter with a limit that holds under any failure.
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
    /// Genesis: who was given what; equal on all replicas.
    shares: BTreeMap<A, u64>,
    /// (giver, taker) → all that the giver ever passed on; written by the giver only.
    granted: BTreeMap<(A, A), u64>,
    /// What each actor has spent; written by that actor only.
    spent: BTreeMap<A, u64>,
}

impl<A: Ord> Default for BoundedCounter<A> {
    fn default() -> Self {
        Self { shares: BTreeMap::new(), granted: BTreeMap::new(), spent: BTreeMap::new() }
    }
}

impl<A: Ord + Clone> BoundedCounter<A> {
    /// A counter whose limit is the sum of `shares`, which all replicas must be given alike.
    #[must_use]
    pub fn new(shares: impl IntoIterator<Item = (A, u64)>) -> Self {
        Self { shares: shares.into_iter().collect(), ..Self::default() }
    }

    /// Rights that `actor` holds, as far as this replica knows. Exact for the actor's own replica except for grants that
    /// are still under way to it, so never too high there.
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

    /// Spends `amount` of the actor's rights; the delta says so to others.
    ///
    /// # Errors
    /// The actor holds fewer rights.
    pub fn spend(&mut self, actor: A, amount: u64) -> Result<Self, NoRightsError> {
        self.require(&actor, amount)?;
        let spent = self.spent.entry(actor.clone()).or_insert(0);
        *spent += amount;
        Ok(Self { spent: BTreeMap::from([(actor, *spent)]), ..Self::default() })
    }

    /// Passes `amount` of the actor's rights on; the delta says so to others. Given first, received later, never both.
    ///
    /// # Errors
    /// The actor holds fewer rights.
    pub fn grant(&mut self, from: A, to: A, amount: u64) -> Result<Self, NoRightsError> {
        self.require(&from, amount)?;
        let cell = self.granted.entry((from.clone(), to.clone())).or_insert(0);
        *cell += amount;
        Ok(Self { granted: BTreeMap::from([((from, to), *cell)]), ..Self::default() })
    }

    /// Learns all that `from` ever passed on to `to`: a row of the replicated form. Says whether that was new.
    pub fn raise_granted(&mut self, from: A, to: A, total: u64) -> bool {
        let cell = self.granted.entry((from, to)).or_insert(0);
        let news = total > *cell;
        *cell = total.max(*cell);
        news
    }

    /// Learns all that `actor` has spent: a row of the replicated form. Says whether that was new.
    pub fn raise_spent(&mut self, actor: A, total: u64) -> bool {
        let cell = self.spent.entry(actor).or_insert(0);
        let news = total > *cell;
        *cell = total.max(*cell);
        news
    }

    /// What all actors together have spent, as far as this replica knows.
    #[must_use]
    pub fn spent(&self) -> u64 {
        self.spent.values().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// The limit: the sum of the shares.
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
            let mut news = false;
            for (key, n) in from {
                if into.get(key).is_none_or(|have| have < n) {
                    into.insert(key.clone(), *n);
                    news = true;
                }
            }
            news
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

    fn genesis() -> BoundedCounter<u8> {
        BoundedCounter::new(SHARES)
    }

    /// The counter from an empty start: every replica is told the shares with its first write.
    impl Subject for BoundedCounter<u8> {
        type Op = Op;
        /// What was spent, as the grow-only counter of the oracle's crate; the replica's counter decides what may be.
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
            let mut delta = genesis();
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
        fn the_limit_holds_in_every_history(history in history::<BoundedCounter<u8>>()) {
            let mut replicas = vec![genesis(); 4];
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
                // Each actor's own replica knows exactly what it spent and what it holds.
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
        assert_eq!(share(10, 3, 3), 0, "a slot beyond the configured ones holds nothing");
    }
}
