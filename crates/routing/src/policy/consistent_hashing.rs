//! Sessions to workers, by hash: a session stays with its worker on all routers, with nothing to remember.
//!
//! Which worker that is, and where it spills to, see `rendezvous`. A request without a key goes to the least loaded.

use rand::Rng;
use smg_types::now::Now;
use xxhash_rust::xxh3::xxh3_64;

use super::{Candidate, Hint, Kind, Pick, Policy, rendezvous};

/// Picks the owner of the session's key.
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
