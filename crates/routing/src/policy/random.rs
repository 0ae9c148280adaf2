//! Picks at random, by weight. It keeps no state, so its shares are right from the first request on and with any number of
//! routers.

use rand::Rng;
use smg_types::now::Now;

use super::{Candidate, Decision, Hint, Kind, Pick, Policy, choose};

/// The policy `random`.
#[derive(Debug)]
pub(super) struct Random;

impl Policy for Random {
    fn name(&self) -> &'static str {
        Kind::Random.name()
    }

    fn pick(
        &self,
        candidates: &[Candidate],
        _hint: &Hint<'_>,
        _now: Now,
        rng: &mut dyn Rng,
    ) -> Option<Pick> {
        choose::weighted(candidates.iter(), rng).map(|index| Pick::new(index, Decision::Plain))
    }
}
