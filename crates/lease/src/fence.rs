//! The check that refuses an act of a former holder.

use std::collections::BTreeMap;

use crate::name::{LeaseName, Term};

/// The newest term of each lease in which its receiver has seen an act or a holder. Whatever receives acts of holders has one.
///
/// A holder can be stopped between the look at its clock and its act, for as long as it may be (L10). A fence does not know of
/// terms in which nothing has reached it: what must be exact needs the fence at the resource itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Fence {
    newest: BTreeMap<LeaseName, Term>,
}

/// An act was refused because a later term is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("term {term} of the lease {lease} has ended: term {newest} is known")]
pub struct OutdatedTerm {
    /// The lease.
    pub lease: LeaseName,
    /// The term of the act.
    pub term: Term,
    /// The newest term that is known.
    pub newest: Term,
}

impl Fence {
    /// Lets an act in, unless a later term is known.
    ///
    /// # Errors
    ///
    /// A later term is known.
    pub fn admit(&mut self, lease: &LeaseName, term: Term) -> Result<(), OutdatedTerm> {
        let newest = self.newest.entry(lease.clone()).or_default();
        if term < *newest {
            return Err(OutdatedTerm { lease: lease.clone(), term, newest: *newest });
        }
        *newest = term;
        Ok(())
    }

    /// The newest term of a lease that is known.
    #[must_use]
    pub fn newest(&self, lease: &LeaseName) -> Option<Term> {
        self.newest.get(lease).copied()
    }
}
