//! The messages between routers about a lease.

use serde::{Deserialize, Serialize};
use smg_types::ids::{NodeId, NodeName};

use crate::name::{LeaseName, Term};

/// A message about one lease.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Message {
    /// The lease.
    pub lease: LeaseName,
    /// The term that it is about.
    pub term: Term,
    /// The request, answer or notice.
    pub content: Content,
}

/// A request, an answer or a notice about a term. A later version may add variants at the end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Content {
    /// A candidate asks for the promise to vote in no earlier term.
    Prepare {
        /// A holder that has released its terms up to this one. Its own message may arrive later than this one (L19).
        released: Option<(NodeId, Term)>,
    },
    /// The answer: the promise.
    Promised,
    /// A candidate asks for votes, or a holder for more time.
    Propose {
        /// The number of the request among those of its sender; the answer repeats it.
        request: u64,
        /// Whether the sender holds the lease already.
        is_held: bool,
    },
    /// The answer: the vote.
    Voted {
        /// The number of the request.
        request: u64,
    },
    /// The answer to a request for a promise or vote that is refused.
    Refused {
        /// The largest term that the voter has promised.
        highest: Term,
        /// The reason.
        reason: Refusal,
    },
    /// The sender holds no term up to this one, and will never again.
    Release {
        /// The router that is to become the next holder.
        to: Option<NodeName>,
    },
}

/// Why a voter refuses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// It does not remember for what it has voted before it restarted.
    Abstains {
        /// For how much longer, in milliseconds.
        for_ms: u64,
    },
    /// Its vote for another router has not ended.
    HasVoted {
        /// The other router.
        holder: NodeId,
        /// For how much longer, in milliseconds.
        for_ms: u64,
    },
    /// It has promised a later term, or this one to another router.
    Outdated,
    /// It could not store its vote, or has votes for too many leases.
    Unable,
}
