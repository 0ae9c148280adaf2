//! A register whose last write wins, in the order of stamps.
//!
//! No two writes of correct nodes have the same stamp. If two do, the greater value wins, because replicas that each kept
//! their own value would never agree.

use serde::{Deserialize, Serialize};

use crate::crdt::Merge;
use crate::crdt::stamp::Stamp;

/// A last-write-wins register; empty until the first write.
///
/// ```
/// use smg_cluster::crdt::{Merge, lww_register::LwwRegister, stamp::Stamp};
/// let early = LwwRegister::of(Stamp { wall_ms: 1, ..Stamp::default() }, "early");
/// let mut late = LwwRegister::of(Stamp { wall_ms: 2, ..Stamp::default() }, "late");
/// assert!(!late.merge(&early));
/// assert_eq!(late.get(), Some(&"late"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LwwRegister<V> {
    written: Option<(Stamp, V)>,
}

impl<V> Default for LwwRegister<V> {
    fn default() -> Self {
        Self { written: None }
    }
}

impl<V> LwwRegister<V> {
    /// A register that was written once, which is also the delta of that write.
    #[must_use]
    pub fn of(stamp: Stamp, value: V) -> Self {
        Self { written: Some((stamp, value)) }
    }

    /// The value, if it was ever written.
    #[must_use]
    pub fn get(&self) -> Option<&V> {
        self.written.as_ref().map(|(_, value)| value)
    }

    /// The stamp of the write that won.
    #[must_use]
    pub fn stamp(&self) -> Option<Stamp> {
        self.written.as_ref().map(|(stamp, _)| *stamp)
    }
}

impl<V: Clone + Ord> Merge for LwwRegister<V> {
    fn merge(&mut self, other: &Self) -> bool {
        let is_later = other.written > self.written;
        if is_later {
            self.written.clone_from(&other.written);
        }
        is_later
    }
}

#[cfg(test)]
mod tests {
    use crdts::{CvRDT, LWWReg};
    use proptest::prelude::*;

    use super::*;
    use crate::crdt::laws::{Subject, laws};
    use crate::crdt::stamp::Author;

    /// A stamp as a clock makes it whose wall time is wrong: any time, but no stamp twice.
    fn stamp(replica: u8, turn: u64, wall_ms: u64) -> Stamp {
        let logical = u32::try_from(turn).expect("a short history");
        Stamp { wall_ms, logical, author: Author::from_u64(u64::from(replica)) }
    }

    impl Subject for LwwRegister<u32> {
        type Op = (u64, u32);
        type Oracle = LWWReg<Option<u32>, Stamp>;
        type Value = Option<u32>;

        fn ops() -> BoxedStrategy<(u64, u32)> {
            (0..4u64, 0..50u32).boxed()
        }

        fn write(&mut self, replica: u8, turn: u64, op: &(u64, u32)) -> Self {
            let delta = Self::of(stamp(replica, turn, op.0), op.1);
            self.merge(&delta);
            delta
        }

        fn read(&self) -> Option<u32> {
            self.get().copied()
        }

        fn oracle_write(oracle: &mut Self::Oracle, replica: u8, turn: u64, op: &(u64, u32)) {
            oracle.update(Some(op.1), stamp(replica, turn, op.0));
        }

        fn oracle_merge(oracle: &mut Self::Oracle, other: &Self::Oracle) {
            oracle.merge(other.clone());
        }

        fn oracle_read(oracle: &Self::Oracle) -> Option<u32> {
            oracle.val
        }
    }

    laws!(LwwRegister<u32>);

    #[test]
    fn replicas_agree_when_two_writes_have_the_same_stamp() {
        let one = LwwRegister::of(Stamp::default(), 1);
        let two = LwwRegister::of(Stamp::default(), 2);
        let (mut here, mut there) = (one.clone(), two.clone());
        here.merge(&two);
        there.merge(&one);
        assert_eq!(here, there);
    }
}
