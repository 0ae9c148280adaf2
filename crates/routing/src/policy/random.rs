//! Weighted chance: needs no memory, so it is right from the first request on and with any number of routers.

use rand::Rng;
use smg_types::now::Now;

use super::{Candidate, Decision, Hint, Kind, Pick, Policy, choose};

/// Picks each candidate as often as its weight says, looking at nothing else.
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
