//! Sessions to workers, by hash: a session stays with its worker on all routers, with nothing to remember.
//!
//! Which worker that is, and where it spills to, see `rendezvous`. A request without a key goes to the least loaded.

use rand::Rng;
use smg_types::now::Now;
use xxhash_rust::xxh3::xxh3_64;

use super::{Candidate, Decision, Hint, Kind, Pick, Policy, choose, rendezvous};

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
        match hint.session {
            Some(session) => rendezvous::owner(candidates, xxh3_64(session)),
            None => choose::least_loaded(candidates.iter().enumerate(), rng)
                .map(|index| Pick::new(index, Decision::NoKey)),
        }
    }
}
