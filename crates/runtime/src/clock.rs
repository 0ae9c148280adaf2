//! The clock that drivers own: the only place that reads the machine's clocks.
//!
//! The monotonic half is tokio's clock, which equals std's unless a test has paused it. Under a paused clock, the
//! simulation decides the time, and timers and readings agree.

#![expect(clippy::disallowed_methods, reason = "this is where time enters")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use smg_types::now::Now;
use tokio::time::Instant;

/// Reads both clocks of this machine. Copies share one start, so their readings compare.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    /// The wall clock's reading at the start, if the wall clock is simulated.
    simulated: Option<Duration>,
    /// How long the machine had been suspended at the start.
    suspended_before: Duration,
}

impl Clock {
    /// A clock whose `mono` begins at zero.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now(), simulated: None, suspended_before: suspended_since_boot() }
    }

    /// A clock for tests under simulated time: its wall clock reads `wall` now and advances exactly as `mono` does.
    #[must_use]
    pub fn simulated(wall: Duration) -> Self {
        Self { start: Instant::now(), simulated: Some(wall), suspended_before: Duration::ZERO }
    }

    /// Reads both clocks.
    #[must_use]
    pub fn now(self) -> Now {
        let mono = self.mono();
        if let Some(wall) = self.simulated {
            return Now { mono, wall: wall + mono };
        }
        Now { mono, wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO) }
    }

    /// The time since the start. Does not read the wall clock.
    #[must_use]
    pub fn mono(self) -> Duration {
        self.start.elapsed()
    }

    /// How long the machine has been suspended since the start, which `mono` does not count. Zero on systems other than Linux.
    #[must_use]
    pub fn suspended(self) -> Duration {
        if self.simulated.is_some() {
            return Duration::ZERO;
        }
        suspended_since_boot().saturating_sub(self.suspended_before)
    }

    /// The time since the start, the time included in which the machine was suspended: `CLOCK_BOOTTIME`. Leases count by it.
    #[must_use]
    pub fn boot(self) -> Duration {
        self.mono() + self.suspended()
    }

    /// The instant at which `mono` was or will be read, as tokio's timers need it.
    #[must_use]
    pub fn instant_at(self, mono: Duration) -> Instant {
        self.start + mono
    }
}

/// By how much `CLOCK_BOOTTIME` is ahead of `CLOCK_MONOTONIC`, in whole milliseconds: the two are read one after the other. If
/// the thread stands still between the two, the clock is ahead for a moment, which is the safe side of a lease.
#[cfg(target_os = "linux")]
fn suspended_since_boot() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let read = |clock| {
        let time = clock_gettime(clock);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        Duration::from_secs(seconds)
            + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
    };
    let mono = read(ClockId::Monotonic);
    let ahead = read(ClockId::Boottime).saturating_sub(mono);
    Duration::from_millis(u64::try_from(ahead.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(not(target_os = "linux"))]
const fn suspended_since_boot() -> Duration {
    Duration::ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_clock_of_leases_goes_on_with_the_monotonic_one() {
        let clock = Clock::start();
        let before = clock.mono();
        let boot = clock.boot();
        assert!(before <= boot && boot <= clock.mono() + Duration::from_secs(5), "{boot:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_simulated_clock_advances_with_its_timers() {
        let clock = Clock::simulated(Duration::from_secs(1000));
        tokio::time::sleep_until(clock.instant_at(Duration::from_secs(3600))).await;
        assert_eq!(clock.mono().as_secs(), 3600);
        assert_eq!(clock.now().wall.as_secs(), 4600);
    }
}
