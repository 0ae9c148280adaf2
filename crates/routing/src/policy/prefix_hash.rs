//! Maps prompts to workers by rendezvous hashing of their head. Prompts with the same head have the same worker on all routers,
//! and no router stores anything.
//!
//! The head is the first four blocks (1 KiB), so that a short preamble that all requests share does not send all of them to one
//! worker. The head of a prompt of two or three blocks is its first two, and that of a shorter one its first block. So a growing
//! conversation changes its head at most twice, while little of it is cached.

use rand::Rng;
use smg_types::now::Now;

use super::{Candidate, Hint, Kind, Pick, Policy, rendezvous};

/// The policy `prefix_hash`.
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

/// The chained hash of the prompt's head; `None` for an empty prompt.
fn head(blocks: &[u64]) -> Option<u64> {
    match *blocks {
        [] => None,
        [first] => Some(first),
        [_, second] | [_, second, _] => Some(second),
        [_, _, _, fourth, ..] => Some(fourth),
    }
}
