//! The windows of a meter, and the time by which they begin.

use std::time::Duration;

use smg_types::now::Now;

/// How far the clocks of two routers that are in contact may differ. The cluster's time follows the routers' own clocks within
/// five seconds; one more covers the exchange.
pub const CLOCK_MARGIN_MS: u64 = 6_000;

/// How far ahead a router grants rights at most. A router that restarts has no share in windows that begin within
/// this time, because its former life may have granted it.
pub const GRANT_HORIZON_MS: u64 = 8_000;

/// How long a place that may have belonged to another life or router is not used, in milliseconds: grants that it has made reach
/// so far ahead, and clocks may differ.
pub const UNUSED_MS: u64 = GRANT_HORIZON_MS + CLOCK_MARGIN_MS;

/// The time by which windows begin: the cluster's time when it was last learnt, continued by the monotonic clock, so that a
/// step of this machine's clock neither opens windows early nor opens old ones again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClusterTime {
    /// The cluster's time at `mono` zero, in milliseconds since the Unix epoch.
    zero_ms: i128,
}

impl ClusterTime {
    /// The cluster's time is `cluster_ms` now.
    #[must_use]
    pub fn new(now: Now, cluster_ms: u64) -> Self {
        Self { zero_ms: i128::from(cluster_ms) - millis(now.mono) }
    }

    /// The cluster's time, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn at(&self, now: Now) -> u64 {
        u64::try_from(self.zero_ms + millis(now.mono)).unwrap_or(0)
    }
}

fn millis(time: Duration) -> i128 {
    i128::try_from(time.as_millis()).unwrap_or(i128::MAX)
}

/// The start of the window that contains `at_ms`.
#[must_use]
pub const fn start_of(at_ms: u64, length_ms: u32) -> u64 {
    at_ms - at_ms % length_ms as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_the_wall_clock_changes_nothing() {
        let begin = Now { mono: Duration::from_secs(5), wall: Duration::from_secs(1_000) };
        let time = ClusterTime::new(begin, 1_000_000);
        let stepped = Now { mono: Duration::from_secs(7), wall: Duration::from_secs(9_000) };
        assert_eq!(time.at(stepped), 1_002_000);
        assert_eq!(start_of(1_002_001, 1_000), 1_002_000);
    }
}
