//! Values that replicas change apart and merge in any order to the same result.
//!
//! Each type here states an abstract type with its laws; `laws.rs` proves them with one macro over random histories and
//! compares them with the same type of the `crdts` crate. Where the cluster keeps a hundred thousand of something, it
//! holds rows instead of these types (`cluster::state`) and its tests use these as the meaning of the rows.
//!
//! What makes a delta legal: a delta of these types may be merged in any order, any number of times, alone or merged
//! with others first. Nothing here may be *cut*: a part of an encoded state is not a state.

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
    /// Takes in all that `other` knows; says whether anything was new.
    fn merge(&mut self, other: &Self) -> bool;
}
