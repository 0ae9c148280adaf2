//! The clock that drivers own: the only place that asks the machine what time it is.
//!
//! The monotonic half is tokio's, which is std's except where tests have paused it: there, time is what the simulation
//! says, and timers and readings agree.

#![expect(clippy::disallowed_methods, reason = "this is where time enters")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use smg_types::now::Now;
use tokio::time::Instant;

/// Reads both clocks of this machine. Copies share one start, so their readings compare.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    /// What the calendar showed at the start, if the calendar is simulated.
    simulated: Option<Duration>,
}

impl Clock {
    /// A clock whose `mono` begins at zero.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now(), simulated: None }
    }

    /// A clock for tests under simulated time: its calendar shows `wall` now and advances exactly as `mono` does.
    #[must_use]
    pub fn simulated(wall: Duration) -> Self {
        Self { start: Instant::now(), simulated: Some(wall) }
    }

    /// What time it is.
    #[must_use]
    pub fn now(self) -> Now {
        let mono = self.mono();
        if let Some(wall) = self.simulated {
            return Now { mono, wall: wall + mono };
        }
        Now { mono, wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO) }
    }

    /// Time since the start, without asking for the calendar.
    #[must_use]
    pub fn mono(self) -> Duration {
        self.start.elapsed()
    }

    /// The instant at which `mono` was or will be shown: what tokio's timers want.
    #[must_use]
    pub fn instant_at(self, mono: Duration) -> Instant {
        self.start + mono
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_simulated_clock_goes_as_its_timers_do() {
        let clock = Clock::simulated(Duration::from_secs(1000));
        tokio::time::sleep_until(clock.instant_at(Duration::from_secs(3600))).await;
        assert_eq!(clock.mono().as_secs(), 3600);
        assert_eq!(clock.now().wall.as_secs(), 4600);
    }
}
