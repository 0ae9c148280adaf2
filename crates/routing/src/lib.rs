//! Chooses the worker of a request. The crate is plain computation: it takes time and random numbers as arguments and opens no
//! socket.
//!
//! [`policy`] holds the rules that pick one candidate, [`policies`] says which of them picks for which model, [`prefix`] is
//! the index of prompt prefixes that workers have served, [`fleet`] the immutable snapshot of all workers with their health
//! and breakers, and [`limit`] the admission of requests.
//! The crate knows nothing of the cluster: `src/bridge` connects both.

pub mod fleet;
pub mod limit;
pub mod policies;
pub mod policy;
pub mod prefix;
