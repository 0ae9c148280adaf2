//! Prompts to workers, by the hash of their head: prompts that begin alike meet in one cache, on all routers, with
//! nothing to remember.
//!
//! The head is the first four blocks (1 KiB): deep enough that a short preamble that all requests share does not send
//! all of them to one worker. A prompt of two or three blocks goes by its first two, a shorter one by its first, so a
//! growing conversation changes its head twice at most, while there is little to lose.

use rand::Rng;
use smg_types::now::Now;

use super::{Candidate, Hint, Kind, Pick, Policy, rendezvous};

/// Picks the owner of the prompt's head.
#[derive(Debug)]
pub(super) struct PrefixHash;

impl Policy for PrefixHash {
    fn name(&self) -> &'static str {
        Kind::PrefixHash.name()
    }

    fn pick(
        &self,
        candidates: &[Candidate],
        hint: &Hint<'_>,
        _now: Now,
        rng: &mut dyn Rng,
    ) -> Option<Pick> {
        rendezvous::owner_or_least_loaded(candidates, head(hint.blocks), rng)
    }

    fn wants_blocks(&self) -> bool {
        true
    }
}

/// The number of the prompt's head.
fn head(blocks: &[u64]) -> Option<u64> {
    match *blocks {
        [] => None,
        [first] => Some(first),
        [_, second] | [_, second, _] => Some(second),
        [_, _, _, fourth, ..] => Some(fourth),
    }
}
