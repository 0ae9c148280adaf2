//! Picks by the length of the prompt, so that long prompts do not delay short ones on the same worker.
//!
//! Each worker owns a range of prompt lengths; the ranges lie side by side in the order of the workers' ids. They follow from a
//! histogram of recent prompts ([`lengths`]), in two steps. Prompts whose lengths lie far apart are different kinds of prompts, and
//! each kind has workers of its own, as many as its share of the bytes asks for ([`ranges`]). The workers of one kind share its bytes
//! by weight; a range may begin within a column of the histogram, and a prompt of that column goes to either side at random.
//!
//! So the ranges follow the traffic from the first prompts on, and they move at once when a worker joins or leaves. If the owner is
//! much busier than the least loaded worker, the least loaded one is picked.

mod lengths;
mod ranges;

use parking_lot::Mutex;
use rand::Rng;
use smg_types::ids::WorkerId;
use smg_types::now::Now;

use self::lengths::Lengths;
use self::ranges::Ranges;
use super::{Candidate, Config, Decision, Hint, Kind, Pick, Policy, choose};

/// The policy `bucket`.
#[derive(Debug)]
pub(super) struct Bucket {
    config: Config,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    lengths: Lengths,
    ranges: Ranges,
}

impl Bucket {
    pub(super) fn new(config: &Config) -> Self {
        Self { config: config.clone(), state: Mutex::default() }
    }
}

impl Policy for Bucket {
    fn name(&self) -> &'static str {
        Kind::Bucket.name()
    }

    fn pick(
        &self,
        candidates: &[Candidate],
        hint: &Hint<'_>,
        _now: Now,
        rng: &mut dyn Rng,
    ) -> Option<Pick> {
        let least = choose::least_loaded(candidates.iter().enumerate(), rng)?;
        let owner = {
            let State { lengths, ranges } = &mut *self.state.lock();
            ranges.follow(candidates, lengths);
            ranges.owner(lengths, hint.prompt_bytes, rng)
        };
        let Some(owner) = owner else { return Some(Pick::new(least, Decision::Miss)) };
        let owns = choose::within_balance(&candidates[owner], &candidates[least], &self.config);
        Some(if owns {
            Pick::new(owner, Decision::Sticky)
        } else {
            Pick::new(least, Decision::Balance)
        })
    }

    fn sent(&self, _worker: WorkerId, hint: &Hint<'_>, _now: Now) {
        self.state.lock().lengths.count(hint.prompt_bytes);
    }
}
