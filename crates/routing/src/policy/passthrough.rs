//! Whatever comes first: for a fleet of one, where choosing is a waste of time.

use rand::Rng;
use smg_types::now::Now;

use super::{Candidate, Decision, Hint, Kind, Pick, Policy};

/// Picks the first candidate.
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
