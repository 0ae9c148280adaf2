//! Picks the first candidate, for a fleet of one worker.

use rand::Rng;
use smg_types::now::Now;

use super::{Candidate, Decision, Hint, Kind, Pick, Policy};

/// The policy `passthrough`.
#[derive(Debug)]
pub(super) struct Passthrough;

impl Policy for Passthrough {
    fn name(&self) -> &'static str {
        Kind::Passthrough.name()
    }

    fn pick(
        &self,
        candidates: &[Candidate],
        _hint: &Hint<'_>,
        _now: Now,
        _rng: &mut dyn Rng,
    ) -> Option<Pick> {
        (!candidates.is_empty()).then_some(Pick::new(0, Decision::Plain))
    }
}
