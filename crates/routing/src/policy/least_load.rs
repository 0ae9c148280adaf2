//! The least loaded of all. Right for one router; several that do not share loads quickly run in herds, for which
//! power_of_two is the remedy.

use rand::Rng;
use smg_types::now::Now;

use super::{Candidate, Decision, Hint, Kind, Pick, Policy, choose};

/// Picks the lowest (load + 1) / weight.
#[derive(Debug)]
pub(super) struct LeastLoad;

impl Policy for LeastLoad {
    fn name(&self) -> &'static str {
        Kind::LeastLoad.name()
    }

    fn pick(
        &self,
        candidates: &[Candidate],
        _hint: &Hint<'_>,
        _now: Now,
        rng: &mut dyn Rng,
    ) -> Option<Pick> {
        choose::least_loaded(candidates.iter().enumerate(), rng)
            .map(|index| Pick::new(index, Decision::Plain))
    }
}
