//! The memory of a voter: what it must remember across a restart, or abstain.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use smg_types::ids::NodeId;

use crate::name::{LeaseName, Term};

/// What a voter must remember of a lease. Times are not part of it, because clocks of two processes do not compare: a vote that
/// is remembered counts as given at the start.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StoredVote {
    /// The largest term that was promised.
    pub promised: Term,
    /// The router to which it was promised; `None` after that router has released it.
    pub promised_to: Option<NodeId>,
    /// The term and the router of the last vote, unless it was released.
    pub voted: Option<(Term, NodeId)>,
}

/// The memory of a voter at its start.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Remembered {
    /// Its votes. A lease that is not there was never voted on.
    pub votes: BTreeMap<LeaseName, StoredVote>,
    /// The process that stored them, if it is certain that it has ended. It holds nothing any more, so that nobody need wait
    /// until the votes for it end (L20).
    pub ended: Option<NodeId>,
}

/// A vote could not be stored, so the voter refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the vote can't be stored: {0}")]
pub struct NotStored(pub String);

/// Where a voter keeps its votes.
pub trait Votes: fmt::Debug + Send {
    /// The votes of the process before this one; called once, at the start. `None`: they are not known, so that the voter must
    /// abstain. An implementation that finds nothing where votes should be returns `None`, since what was there may be lost.
    fn load(&mut self) -> Option<Remembered>;

    /// Stores a vote. It must survive a crash once this returns, because the answer is sent then. It is called when a promise
    /// is made, when a vote is given to another router or term, and when one is released, but not for a renewal.
    ///
    /// # Errors
    ///
    /// The vote may or may not be stored. The voter acts by the one before, and stores that again before it acts by it.
    fn store(&mut self, lease: &LeaseName, vote: &StoredVote) -> Result<(), NotStored>;
}

/// No memory: the voter abstains after each start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Forgetful;

impl Votes for Forgetful {
    fn load(&mut self) -> Option<Remembered> {
        None
    }

    fn store(&mut self, _: &LeaseName, _: &StoredVote) -> Result<(), NotStored> {
        Ok(())
    }
}

impl Votes for Box<dyn Votes> {
    fn load(&mut self) -> Option<Remembered> {
        (**self).load()
    }

    fn store(&mut self, lease: &LeaseName, vote: &StoredVote) -> Result<(), NotStored> {
        (**self).store(lease, vote)
    }
}
