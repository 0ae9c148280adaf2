//! Maps sessions to workers by rendezvous hashing. A session has the same worker on all routers, and no router stores anything.
//!
//! `rendezvous` defines the owner of a key and the worker that a busy owner spills to. A request without a session goes to the
//! least loaded candidate.

use rand::Rng;
use smg_types::now::Now;
use xxhash_rust::xxh3::xxh3_64;

use super::{Candidate, Hint, Kind, Pick, Policy, rendezvous};

/// The policy `consistent_hashing`.
#[derive(Debug)]
pub(super) struct ConsistentHashing;

impl Policy for ConsistentHashing {
    fn name(&self) -> &'static str {
        Kind::ConsistentHashing.name()
    }

    fn pick(
        &self,
        candidates: &[Candidate],
        hint: &Hint<'_>,
        _now: Now,
        rng: &mut dyn Rng,
    ) -> Option<Pick> {
        rendezvous::owner_or_least_loaded(candidates, hint.session.map(xxh3_64), rng)
    }
}
