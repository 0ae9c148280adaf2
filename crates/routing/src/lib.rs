//! Chooses the worker of a request. The crate is plain computation: it takes time and random numbers as arguments and opens no
//! socket.
//!
//! [`fleet`] holds the snapshot of all workers with their health and breakers, [`policy`] the rules that pick one candidate,
//! [`policies`] the policy of each model, [`prefix`] the index of the prompt prefixes that workers have served, [`speed`] what is
//! learnt of the workers' speed, and [`limit`] the admission of requests. The crate does not depend on the cluster: `src/bridge` connects the two.

pub mod fleet;
pub mod limit;
pub mod policies;
pub mod policy;
pub mod prefix;
pub mod speed;
