//! Draws two candidates at random and picks the less loaded one.
//!
//! Routers that don't know each other's latest requests do not all pick the one worker that looks idle (M. Mitzenmacher, "The
//! power of two choices in randomized load balancing", 2001). The two are drawn by weight: drawn evenly, a heavy worker among
//! many light ones would be drawn too rarely to get its share.

use rand::Rng;
use smg_types::now::Now;

use super::{Candidate, Decision, Hint, Kind, Pick, Policy, choose};

/// The policy `power_of_two`.
#[derive(Debug)]
pub(super) struct PowerOfTwo;

impl Policy for PowerOfTwo {
    fn name(&self) -> &'static str {
        Kind::PowerOfTwo.name()
    }

    fn pick(
        &self,
        candidates: &[Candidate],
        _hint: &Hint<'_>,
        _now: Now,
        rng: &mut dyn Rng,
    ) -> Option<Pick> {
        let first = choose::weighted(candidates.iter(), rng)?;
        // All but the first: the candidates before it, then the candidates after it.
        let rest = candidates[..first].iter().chain(&candidates[first + 1..]);
        let index = match choose::weighted(rest, rng) {
            Some(at) => {
                let second = if at < first { at } else { at + 1 };
                let pair = [(first, &candidates[first]), (second, &candidates[second])];
                choose::least_loaded(pair.into_iter(), rng)?
            }
            None => first,
        };
        Some(Pick::new(index, Decision::Plain))
    }
}
