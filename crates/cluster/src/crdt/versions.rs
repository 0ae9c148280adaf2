//! Version vectors: up to which version a replica has applied the writes of each writer.
//!
//! A wrapper of `crdts::VClock`. The version of a write is its number among the writes of its writer, from 1. A vector with
//! `(w, v)` claims that the replica holds every write of `w` up to `v` that is still live. A vector must never claim more.

use std::cmp::Ordering;

use crdts::{CvRDT, VClock};
use serde::{Deserialize, Serialize};

use crate::crdt::Merge;

/// One version per writer; a writer that is not in the vector has version 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
#[serde(bound(serialize = "A: Ord + Serialize", deserialize = "A: Ord + Deserialize<'de>"))]
pub struct Versions<A: Ord>(VClock<A>);

impl<A: Ord> Default for Versions<A> {
    fn default() -> Self {
        Self(VClock { dots: std::collections::BTreeMap::new() })
    }
}

impl<A: Ord + Clone + std::fmt::Debug> Versions<A> {
    /// The version of `writer`, 0 if it is not in the vector.
    #[must_use]
    pub fn of(&self, writer: &A) -> u64 {
        self.0.get(writer)
    }

    /// Raises the version of `writer` to `version`; returns whether it was lower.
    pub fn raise(&mut self, writer: A, version: u64) -> bool {
        if version <= self.0.get(&writer) {
            return false;
        }
        self.0.dots.insert(writer, version);
        true
    }

    /// Removes `writer` from the vector. Only for a writer that is retired everywhere.
    pub fn remove(&mut self, writer: &A) {
        self.0.dots.remove(writer);
    }

    /// Whether the vector claims the write of `writer` with this version.
    #[must_use]
    pub fn covers(&self, writer: &A, version: u64) -> bool {
        self.0.get(writer) >= version
    }

    /// Whether this vector claims everything that `other` claims.
    #[must_use]
    pub fn dominates(&self, other: &Self) -> bool {
        matches!(self.0.partial_cmp(&other.0), Some(Ordering::Equal | Ordering::Greater))
    }

    /// All writers with their versions, in the order of the writers.
    pub fn iter(&self) -> impl Iterator<Item = (&A, u64)> {
        self.0.dots.iter().map(|(writer, version)| (writer, *version))
    }
}

impl<A: Ord> FromIterator<(A, u64)> for Versions<A> {
    fn from_iter<I: IntoIterator<Item = (A, u64)>>(versions: I) -> Self {
        Self(VClock { dots: versions.into_iter().filter(|(_, version)| *version > 0).collect() })
    }
}

impl<A: Ord + Clone + std::fmt::Debug> Merge for Versions<A> {
    fn merge(&mut self, other: &Self) -> bool {
        if self.dominates(other) {
            return false;
        }
        self.0.merge(other.0.clone());
        true
    }
}

#[cfg(test)]
mod tests {
    use crdts::CmRDT;
    use proptest::prelude::*;

    use super::*;
    use crate::crdt::laws::{Subject, laws};

    impl Subject for Versions<u8> {
        type Op = ();
        type Oracle = VClock<u8>;
        type Value = Vec<(u8, u64)>;

        fn ops() -> BoxedStrategy<()> {
            Just(()).boxed()
        }

        fn write(&mut self, replica: u8, _: u64, (): &()) -> Self {
            let next = self.of(&replica) + 1;
            self.raise(replica, next);
            [(replica, next)].into_iter().collect()
        }

        fn read(&self) -> Vec<(u8, u64)> {
            self.iter().map(|(writer, version)| (*writer, version)).collect()
        }

        fn oracle_write(oracle: &mut Self::Oracle, replica: u8, _: u64, (): &()) {
            let dot = oracle.inc(replica);
            oracle.apply(dot);
        }

        fn oracle_merge(oracle: &mut Self::Oracle, other: &Self::Oracle) {
            oracle.merge(other.clone());
        }

        fn oracle_read(oracle: &Self::Oracle) -> Vec<(u8, u64)> {
            oracle.iter().map(|dot| (*dot.actor, dot.counter)).collect()
        }
    }

    laws!(Versions<u8>);

    #[test]
    fn a_vector_covers_the_writes_that_it_claims_and_no_others() {
        let versions: Versions<u8> = [(1, 3), (2, 0)].into_iter().collect();
        assert!(versions.covers(&1, 3) && !versions.covers(&1, 4));
        assert!(!versions.covers(&2, 1));
        assert!(versions.dominates(&Versions::default()));
        assert!(!Versions::default().dominates(&versions));
    }
}
