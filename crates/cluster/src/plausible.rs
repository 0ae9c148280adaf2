//! The generations and versions that an honest node can have at a given time.
//!
//! A fixed bound does not help against a member that lies: it claims the bound itself, and the honest node can never
//! exceed that. These bounds follow the clock instead, so they pass whatever a liar has claimed. They are wide, because
//! the clock of an honest node may be wrong by days. A number beyond them is refused and counted if another node reports
//! it, and never remembered once its node can't be reached. A node whose clock is wrong by years is not locked out: its own
//! numbers count once it has answered a probe.

use std::time::Duration;

use smg_types::ids::Generation;
use smg_types::now::Now;

/// The largest error of another node's clock at which its numbers are accepted from third nodes.
pub(crate) const CLOCK_ERROR: Duration = Duration::from_secs(7 * 24 * 3600);

/// A generation is the time of its process's start, in milliseconds since 1970, above this many random bits.
pub(crate) const RANDOM_BITS: u32 = 20;

/// More writes per millisecond than a node can make in one store.
const WRITES_PER_MS: u64 = 1_000;

/// The latest generation that a process can have now, if its clock is ahead by [`CLOCK_ERROR`] at most.
pub(crate) fn latest_generation(now: Now) -> Generation {
    let latest_ms = millis(now.wall.saturating_add(CLOCK_ERROR));
    Generation(latest_ms.min(u64::MAX >> RANDOM_BITS) << RANDOM_BITS | ((1 << RANDOM_BITS) - 1))
}

/// The difference between the generations of two processes that were started `time` apart.
pub(crate) fn claims_of(time: Duration) -> u64 {
    millis(time).saturating_mul(1 << RANDOM_BITS)
}

/// The last version that `writer` can have written by now, even if its clock or this one is wrong by [`CLOCK_ERROR`].
pub(crate) fn latest_version(writer: Generation, now: Now) -> u64 {
    let began_ms = writer.0 >> RANDOM_BITS;
    let age_ms = millis(now.wall).saturating_sub(began_ms);
    age_ms.saturating_add(millis(CLOCK_ERROR)).saturating_mul(WRITES_PER_MS)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::generation_at;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const TODAY: Duration = Duration::from_secs(1_800_000_000);

    #[test]
    fn a_process_whose_clock_is_ahead_by_days_is_plausible_and_one_ahead_by_weeks_is_not() {
        let latest = latest_generation(Now::at(TODAY));
        assert!(generation_at(TODAY + 6 * DAY, u32::MAX) < latest);
        assert!(generation_at(TODAY + 8 * DAY, 0) > latest);
        assert!(latest_generation(Now::at(Duration::MAX)).0 > latest.0, "it does not overflow");
    }

    #[test]
    fn a_busy_writer_is_plausible_and_the_largest_number_is_not() {
        let writer = generation_at(TODAY, 0);
        let (day_ms, per_ms) = (86_400_000, 100);
        for clock in [TODAY - DAY, TODAY, TODAY + DAY] {
            assert!(latest_version(writer, Now::at(clock)) > day_ms * per_ms);
        }
        assert!(latest_version(writer, Now::at(TODAY + 365 * DAY)) < u64::MAX / 1_000);
        assert_eq!(latest_version(Generation(0), Now::at(Duration::MAX)), u64::MAX);
    }
}
