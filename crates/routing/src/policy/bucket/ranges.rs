//! The workers' ranges of prompt lengths.

use std::ops::Range;

use rand::Rng;
use smg_types::ids::WorkerId;

use super::lengths::{Lengths, PromptKind, column};
use crate::policy::{Candidate, choose};

/// The workers' ranges. They are made again only when the candidates differ from those of the last pick, or the lengths have changed.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    candidates: Vec<(WorkerId, u64)>,
    version: u32,
    /// Per candidate, in the order of ids: its index and the sum of the weights up to and including its own.
    ends: Vec<(usize, u64)>,
    /// The kinds of prompts, shortest first, and the workers of each, as positions in `ends`.
    kinds: Vec<(PromptKind, Range<usize>)>,
}

impl Ranges {
    /// Makes the ranges for these candidates and lengths.
    pub(super) fn follow(&mut self, candidates: &[Candidate], lengths: &Lengths) {
        let now = candidates.iter().map(|candidate| (candidate.id, choose::weight(candidate)));
        let is_same = self.candidates.iter().copied().eq(now.clone());
        if is_same && self.version == lengths.version() {
            return;
        }
        if !is_same {
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
        self.version = lengths.version();
        let kinds = lengths.kinds(self.ends.len());
        let workers = self.divide(&kinds);
        self.kinds = kinds.into_iter().zip(workers).collect();
    }

    /// Divides the workers between kinds of prompts, about in proportion to their bytes. Each gets at least one.
    fn divide(&self, kinds: &[PromptKind]) -> Vec<Range<usize>> {
        let total: u64 = kinds.iter().map(|kind| kind.bytes).sum();
        let weights = self.weight_before(self.ends.len());
        let mut before = 0;
        let mut start = 0;
        let divide = |(at, kind): (usize, &PromptKind)| {
            before += kind.bytes;
            let target = weights as f64 * before as f64 / total as f64;
            let left = kinds.len() - 1 - at;
            let most = self.ends.len() - left;
            let off = |end: &usize| (self.weight_before(*end) as f64 - target).abs();
            let nearest = (start + 1..=most).min_by(|a, b| off(a).total_cmp(&off(b)));
            let end = if left == 0 { self.ends.len() } else { nearest.unwrap_or(most) };
            let workers = start..end;
            start = end;
            workers
        };
        kinds.iter().enumerate().map(divide).collect()
    }

    /// The weights of the first `count` workers.
    fn weight_before(&self, count: usize) -> u64 {
        count.checked_sub(1).map_or(0, |last| self.ends[last].1)
    }

    /// The index of the candidate that owns a prompt of this length; `None` before the first prompt.
    pub(super) fn owner(
        &self,
        lengths: &Lengths,
        prompt_bytes: usize,
        rng: &mut dyn Rng,
    ) -> Option<usize> {
        let column = column(prompt_bytes);
        // A length between two kinds belongs to the shorter ones as long as it is nearer to them.
        let distance = |kind: &PromptKind| {
            let above = (column + 1).saturating_sub(kind.columns.end);
            above.max(kind.columns.start.saturating_sub(column))
        };
        let (kind, workers) = self.kinds.iter().min_by_key(|(kind, _)| distance(kind))?;
        let column = column.clamp(kind.columns.start, kind.columns.end - 1);
        // The histogram may have grown since the ranges were made.
        let total = lengths.bytes(kind.columns.clone()).max(1);
        let shorter = lengths.bytes(kind.columns.start..column);
        let place = shorter + choose::below(rng, lengths.bytes(column..column + 1));
        let before = self.weight_before(workers.start);
        let weights = self.weight_before(workers.end) - before;
        let at = before + (u128::from(place) * u128::from(weights) / u128::from(total)) as u64;
        let next = self.ends[workers.clone()].partition_point(|(_, end)| *end <= at);
        Some(self.ends[(workers.start + next).min(workers.end - 1)].0)
    }
}
