//! A histogram of the lengths of recent prompts, and the kinds of prompts in it.

use std::ops::Range;

/// Columns of the histogram per doubling of the length.
const STEPS: u32 = 8;
/// Columns of the histogram: they cover lengths up to 2^40 bytes, and the last one also takes longer prompts.
const COLUMNS: usize = (40 * STEPS) as usize;
/// All columns are halved whenever this many prompts have been counted, so that old prompts lose weight.
const RECENT: u32 = 2048;
/// Two kinds of prompts have no lengths between them for this many columns: the longer ones are four times as long.
const GAP: usize = 2 * STEPS as usize;

/// The lengths of recent prompts.
#[derive(Debug)]
pub(super) struct Lengths {
    /// Bytes of recent prompts, by the column of their length.
    bytes: [u64; COLUMNS],
    /// Numbers of recent prompts, by the column of their length.
    prompts: [u32; COLUMNS],
    counted: u32,
    /// Changes with each change of the histogram by more than a few per cent.
    version: u32,
    /// Prompts that were counted when the version last changed.
    counted_then: u32,
}

/// Prompts of similar lengths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PromptKind {
    /// The columns of their lengths.
    pub(super) columns: Range<usize>,
    /// Their bytes, at least 1.
    pub(super) bytes: u64,
    prompts: u64,
}

impl Default for Lengths {
    fn default() -> Self {
        Self { bytes: [0; COLUMNS], prompts: [0; COLUMNS], counted: 0, version: 0, counted_then: 0 }
    }
}

impl Lengths {
    /// Counts a prompt.
    pub(super) fn count(&mut self, prompt_bytes: usize) {
        let column = column(prompt_bytes);
        // One byte is added, because an empty prompt is work too.
        self.bytes[column] += prompt_bytes.min(1 << 40) as u64 + 1;
        self.prompts[column] += 1;
        self.counted += 1;
        if self.counted >= RECENT {
            self.bytes.iter_mut().for_each(|bytes| *bytes /= 2);
            self.prompts.iter_mut().for_each(|prompts| *prompts /= 2);
            self.counted /= 2;
            self.counted_then = 0;
        }
        if self.counted - self.counted_then > self.counted / 32 {
            self.version = self.version.wrapping_add(1);
            self.counted_then = self.counted;
        }
    }

    pub(super) fn version(&self) -> u32 {
        self.version
    }

    /// The bytes of the prompts in these columns.
    pub(super) fn bytes(&self, columns: Range<usize>) -> u64 {
        self.bytes[columns].iter().sum()
    }

    /// The kinds of prompts, shortest first, at most `most` of them. A kind that has less than half a worker's share of both the
    /// prompts and the bytes is no kind of its own, if there are `most` workers. There are none before the first prompt.
    pub(super) fn kinds(&self, most: usize) -> Vec<PromptKind> {
        let mut kinds: Vec<PromptKind> = Vec::new();
        for column in (0..COLUMNS).filter(|column| self.bytes[*column] > 0) {
            let bytes = self.bytes[column];
            let prompts = u64::from(self.prompts[column]);
            match kinds.last_mut().filter(|last| column - last.columns.end < GAP) {
                Some(last) => {
                    last.columns.end = column + 1;
                    last.bytes += bytes;
                    last.prompts += prompts;
                }
                None => kinds.push(PromptKind { columns: column..column + 1, bytes, prompts }),
            }
        }
        let total = |count: fn(&PromptKind) -> u64| kinds.iter().map(count).sum::<u64>().max(1);
        let (bytes, prompts) = (total(|kind| kind.bytes), total(|kind| kind.prompts));
        let share = |kind: &PromptKind| {
            let of = |part: u64, all: u64| part as f64 / all as f64;
            of(kind.bytes, bytes).max(of(kind.prompts, prompts))
        };
        let enough = 0.5 / most.max(1) as f64;
        while let Some(least) =
            (0..kinds.len()).min_by(|a, b| share(&kinds[*a]).total_cmp(&share(&kinds[*b])))
        {
            if kinds.len() <= most.max(1) && share(&kinds[least]) >= enough {
                break;
            }
            merge_with_neighbour(&mut kinds, least);
        }
        kinds
    }
}

/// Merges the kind at `at` with the one whose lengths are nearest. There are at least two kinds.
fn merge_with_neighbour(kinds: &mut Vec<PromptKind>, at: usize) {
    let gap = |lower: usize| kinds[lower + 1].columns.start - kinds[lower].columns.end;
    let joins_shorter = at + 1 == kinds.len() || (at > 0 && gap(at - 1) <= gap(at));
    let lower = if joins_shorter { at - 1 } else { at };
    let longer = kinds.remove(lower + 1);
    let shorter = &mut kinds[lower];
    shorter.columns.end = longer.columns.end;
    shorter.bytes += longer.bytes;
    shorter.prompts += longer.prompts;
}

/// The column of a length: lengths below 8 have a column each, and each doubling above has eight.
pub(super) fn column(bytes: usize) -> usize {
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

    /// The numbers of prompts of each kind, for `most` workers, after `counted` prompts of each of these lengths.
    fn kinds(most: usize, counted: &[(usize, usize)]) -> Vec<u64> {
        let mut lengths = Lengths::default();
        for (bytes, prompts) in counted {
            (0..*prompts).for_each(|_| lengths.count(*bytes));
        }
        lengths.kinds(most).iter().map(|kind| kind.prompts).collect()
    }

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

    #[test]
    fn lengths_that_lie_far_apart_are_kinds_of_their_own() {
        assert_eq!(kinds(2, &[]), [0; 0]);
        assert_eq!(kinds(2, &[(60, 1), (6000, 1)]), [1, 1]);
        assert_eq!(kinds(2, &[(60, 10), (100, 20), (6000, 30), (7000, 40)]), [30, 70]);
        assert_eq!(kinds(2, &[(1000, 10), (2000, 10), (4000, 10)]), [30]);
        // With a single worker nothing is divided.
        assert_eq!(kinds(1, &[(60, 10), (6000, 10)]), [20]);
    }

    #[test]
    fn a_kind_needs_half_a_workers_share_of_the_prompts_or_of_the_bytes() {
        assert_eq!(kinds(2, &[(60, 1), (6000, 99)]), [100], "a few short prompts get no worker");
        assert_eq!(kinds(2, &[(60, 50), (6000, 50)]), [50, 50]);
        assert_eq!(kinds(2, &[(1000, 99), (100_000, 1)]), [99, 1], "half of the bytes");
        assert_eq!(kinds(2, &[(1000, 99), (8000, 1)]), [100]);
        assert_eq!(kinds(10, &[(1000, 99), (8000, 1)]), [99, 1], "of ten workers it gets one");
        let three = [(60, 400), (6000, 10), (100_000, 40)];
        assert_eq!(kinds(2, &three), [400, 50], "the least one joins the nearest");
    }
}
