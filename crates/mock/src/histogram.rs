//! A histogram of times with bounded memory and an error of at most 1 %.
//!
//! Its buckets are log-linear as in Gil Tene's HdrHistogram: 128 per power of two, from 1 ns to 18 minutes. Longer
//! times count as 18 minutes. It takes 35 KB, and recording a time is two shifts and an addition.

use std::time::Duration;

/// The binary logarithm of the number of buckets per power of two.
const PRECISION_BITS: u32 = 7;
/// The binary logarithm of the longest time that is distinguished, in nanoseconds.
const RANGE_BITS: u32 = 40;
const BUCKETS: usize = ((RANGE_BITS - PRECISION_BITS + 1) as usize) << PRECISION_BITS;

/// The number of recorded times per bucket.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Box<[u64]>,
    count: u64,
    sum_nanos: u128,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKETS].into_boxed_slice(),
            count: 0,
            sum_nanos: 0,
            max: Duration::ZERO,
        }
    }
}

impl Histogram {
    /// Adds one time to its bucket.
    pub fn record(&mut self, time: Duration) {
        self.buckets[bucket(nanos(time))] += 1;
        self.count += 1;
        self.sum_nanos += time.as_nanos();
        self.max = self.max.max(time);
    }

    /// Adds all times of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum_nanos += other.sum_nanos;
        self.max = self.max.max(other.max);
    }

    /// The time that a share of `quantile` (0 to 1) of the recorded times does not exceed; zero if none is recorded.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "counts below 2^52, clamped to 1..=count"
        )]
        let rank = ((self.count as f64 * quantile).ceil() as u64).clamp(1, self.count.max(1));
        let mut counted = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            counted += count;
            if counted >= rank {
                return Duration::from_nanos(highest(index)).min(self.max);
            }
        }
        Duration::ZERO
    }

    /// How many were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean; zero when there are none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        let mean = self.sum_nanos / u128::from(self.count.max(1));
        Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX))
    }

    /// The longest recorded time, exactly.
    #[must_use]
    pub fn max(&self) -> Duration {
        self.max
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).min((1 << RANGE_BITS) - 1)
}

fn bucket(nanos: u64) -> usize {
    // Below 2^PRECISION_BITS a bucket is one nanosecond wide; above, the width doubles with each power of two.
    let shift = (u64::BITS - nanos.leading_zeros()).saturating_sub(PRECISION_BITS + 1);
    ((shift as usize) << PRECISION_BITS) + usize::try_from(nanos >> shift).expect("below 2^8")
}

/// The longest time in a bucket, in nanoseconds.
fn highest(index: usize) -> u64 {
    let shift = (index >> PRECISION_BITS).saturating_sub(1);
    let mantissa = (index - (shift << PRECISION_BITS)) as u64;
    ((mantissa + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_is_within_one_percent(nanos in 0_u64..(1 << RANGE_BITS)) {
            let index = bucket(nanos);
            prop_assert!(index < BUCKETS);
            let highest = highest(index);
            prop_assert!(highest >= nanos && highest - nanos <= nanos / 100, "{nanos} in ..={highest}");
        }

        #[test]
        fn quantiles_are_those_of_the_sorted_list(
            mut micros in prop::collection::vec(0_u64..10_000_000, 1..200),
            quantile in 0.0_f64..=1.0,
        ) {
            let mut histogram = Histogram::default();
            for time in &micros {
                histogram.record(Duration::from_micros(*time));
            }
            micros.sort_unstable();
            let rank = ((micros.len() as f64 * quantile).ceil() as usize).clamp(1, micros.len());
            let exact = Duration::from_micros(micros[rank - 1]);
            let found = histogram.quantile(quantile);
            prop_assert!(found >= exact && found <= exact + exact / 100 + Duration::from_nanos(1));
        }
    }

    #[test]
    fn an_empty_histogram_and_times_beyond_the_range() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        let hours = Duration::from_secs(7200);
        histogram.record(hours);
        assert_eq!(histogram.max(), hours);
        assert_eq!(histogram.quantile(1.0), Duration::from_nanos((1 << RANGE_BITS) - 1));
    }

    #[test]
    fn merging_equals_recording_both() {
        let (mut one, mut other) = (Histogram::default(), Histogram::default());
        one.record(Duration::from_micros(1));
        other.record(Duration::from_micros(3));
        one.merge(&other);
        assert_eq!((one.count(), one.mean()), (2, Duration::from_micros(2)));
    }
}
