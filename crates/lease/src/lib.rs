//! Leases: the right to do a job of which the cluster must do exactly one.
//!
//! A lease has a name, and at any instant at most one router holds it. It is held by the votes of a majority of the
//! configured routers, for a few seconds at a time, in a *term*: a number that grows with each new holder. The holder checks its
//! clock before each act ([`Leases::still_held`]), and whatever it does carries the term, so that the receiver can refuse an
//! act of an earlier term (`fence`). No request, registration or policy waits for a lease.
//!
//! The protocol is PaxosLease (Trenčík, Lakatos and others, "PaxosLease: Diskless Paxos for Leases", arXiv 1209.4187): a
//! candidate first asks for promises and then for votes, a vote ends by the clock of the voter, and a voter that has lost its
//! memory abstains until all that it may have voted for has ended. No clocks are compared with each other; only their rates
//! matter ([`Times`]). `docs/lease.md` in the repository has the numbered rules (L1 to L20), each with the history that goes
//! wrong without it. Comments here name the rules.
//!
//! Everything here is a state machine: messages, time and commands go in, messages and events come out. It is driven by the
//! cluster's driver, by the simulator in `tests/sim`, and by the model checker in `tests/model.rs`.

mod campaign;
mod claim;
mod fence;
mod leases;
mod message;
mod name;
mod quorum;
mod round;
mod standing;
mod tenure;
mod times;
mod voter;
mod votes;

pub use claim::{Event, EventKind};
pub use fence::{Fence, OutdatedTerm};
pub use leases::{Leases, Outgoing};
pub use message::{Content, Message, Refusal};
pub use name::{LeaseName, ParseLeaseNameError, Term};
pub use quorum::{Quorum, Voters};
pub use standing::{Member, Status, TransferError};
pub use times::Times;
pub use votes::{Forgetful, NotStored, Remembered, StoredVote, Votes};

#[cfg(test)]
mod tests;
