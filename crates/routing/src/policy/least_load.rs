//! Picks the least loaded candidate.
//!
//! This suits a single router. Several routers that exchange their loads slowly all pick the same idle worker at once;
//! `power_of_two` avoids that.

use rand::Rng;
use smg_types::now::Now;

use super::{Candidate, Decision, Hint, Kind, Pick, Policy, choose};

/// The policy `least_load`.
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
