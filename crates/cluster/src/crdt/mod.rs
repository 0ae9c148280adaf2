//! Replicated data types: each replica changes its own copy, and merging the copies in any order gives the same value.
//!
//! `laws.rs` checks the laws of each type with one macro over random histories, and compares each type with the same type
//! of the `crdts` crate. The cluster does not replicate these values as a whole: the stores in `state` hold rows, because
//! a router has up to a hundred thousand of them. The types here define what those rows mean, and the tests of the stores
//! compare with them.
//!
//! A delta may be merged in any order, any number of times, alone or after merging it with other deltas. A part of an
//! encoded state or delta is not a state or delta: nothing here may be cut.

pub mod bounded_counter;
pub mod g_counter;
pub mod lww_register;
pub mod or_set;
pub mod pn_counter;
pub mod stamp;
pub mod versions;

#[cfg(test)]
mod laws;

/// A join semilattice: `merge` is the least upper bound, so it commutes, associates and is idempotent. It never fails.
pub trait Merge {
    /// Adds all that `other` holds to `self`; returns whether `self` has changed.
    fn merge(&mut self, other: &Self) -> bool;
}
