//! Picks by the length of the prompt, so that long prompts do not delay short ones on the same worker.
//!
//! Each worker owns a range of prompt lengths; the ranges lie side by side in the order of the workers' ids. They are derived
//! at each pick from a histogram of the bytes of recent prompts: a worker's range holds its share of the bytes, by weight. So
//! the ranges follow the traffic, and they move at once when a worker joins or leaves. A range may begin within a column of the
//! histogram; a prompt of that column goes to either side at random. If the owner is much busier than the least loaded worker,
//! the least loaded one is picked.

use parking_lot::Mutex;
use rand::Rng;
use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::{Candidate, Config, Decision, Hint, Kind, Pick, Policy, choose};

/// Columns of the histogram per doubling of the length.
const STEPS: u32 = 8;
/// Columns of the histogram: they cover lengths up to 2^40 bytes, and the last one also takes longer prompts.
const COLUMNS: usize = (40 * STEPS) as usize;
/// All columns are halved whenever this many prompts have been counted, so that old prompts lose weight.
const RECENT: u32 = 2048;

/// The policy `bucket`.
#[derive(Debug)]
pub(super) struct Bucket {
    config: Config,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes of recent prompts, by the column of their length.
    columns: [u64; COLUMNS],
    prompts: u32,
    ranges: Ranges,
}

impl Bucket {
    pub(super) fn new(config: &Config) -> Self {
        let state = State { columns: [0; COLUMNS], prompts: 0, ranges: Ranges::default() };
        Self { config: config.clone(), state: Mutex::new(state) }
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
            let mut state = self.state.lock();
            let State { columns, ranges, .. } = &mut *state;
            let column = column(hint.prompt_bytes);
            let total: u64 = columns.iter().sum();
            if total == 0 {
                return Some(Pick::new(least, Decision::Miss));
            }
            let shorter: u64 = columns[..column].iter().sum();
            let place = shorter + choose::below(rng, columns[column]);
            ranges.update(candidates);
            ranges.owner(place, total)
        };
        let owns = choose::within_balance(&candidates[owner], &candidates[least], &self.config);
        Some(if owns {
            Pick::new(owner, Decision::Sticky)
        } else {
            Pick::new(least, Decision::Balance)
        })
    }

    fn sent(&self, _worker: WorkerId, hint: &Hint<'_>, _now: Now) {
        let mut state = self.state.lock();
        // One byte is added, because an empty prompt is work too.
        state.columns[column(hint.prompt_bytes)] += hint.prompt_bytes.min(1 << 40) as u64 + 1;
        state.prompts += 1;
        if state.prompts >= RECENT {
            state.prompts /= 2;
            state.columns.iter_mut().for_each(|bytes| *bytes /= 2);
        }
    }
}

/// The workers' ranges of the histogram. They are sorted again only when the candidates differ from those of the last pick.
#[derive(Debug, Default)]
struct Ranges {
    candidates: Vec<(WorkerId, u64)>,
    /// Per candidate, in the order of ids: its index and the sum of the weights up to and including its own.
    ends: Vec<(usize, u64)>,
}

impl Ranges {
    fn update(&mut self, candidates: &[Candidate]) {
        let now = candidates.iter().map(|candidate| (candidate.id, choose::weight(candidate)));
        if self.candidates.iter().copied().eq(now.clone()) {
            return;
        }
        self.candidates.clear();
        self.candidates.extend(now);
        self.ends.clear();
        self.ends.extend((0..candidates.len()).map(|index| (index, 0)));
        self.ends.sort_unstable_by_key(|(index, _)| self.candidates[*index].0);
        let mut sum = 0;
        for (index, end) in &mut self.ends {
            sum += self.candidates[*index].1;
            *end = sum;
        }
    }

    /// The index of the candidate whose range contains byte `place` of `total`.
    fn owner(&self, place: u64, total: u64) -> usize {
        let weights = self.ends.last().map_or(0, |(_, end)| *end);
        let at = (u128::from(place) * u128::from(weights) / u128::from(total)) as u64;
        let next = self.ends.partition_point(|(_, end)| *end <= at);
        self.ends[next.min(self.ends.len() - 1)].0
    }
}

/// The column of a length: lengths below 8 have a column each, and each doubling above has eight.
fn column(bytes: usize) -> usize {
    let bytes = bytes as u64;
    let column = match bytes.checked_ilog2() {
        Some(power) if power >= 3 => {
            let step = (bytes >> (power - 3)) & 7;
            u64::from((power - 2) * STEPS) + step
        }
        Some(_) | None => bytes,
    };
    (column as usize).min(COLUMNS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_rise_with_the_length_and_are_an_eighth_wide() {
        let mut last = 0;
        for bytes in 0..100_000 {
            let column = column(bytes);
            assert!(column == last || column == last + 1, "{bytes} bytes: {last}, then {column}");
            last = column;
        }
        assert_ne!(column(1 << 20), column((1 << 20) + (1 << 17)));
        assert_eq!(column(usize::MAX), COLUMNS - 1);
    }
}
