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
}

impl Clock {
    /// A clock whose `mono` begins at zero.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now(), simulated: None }
    }

    /// A clock for tests under simulated time: its wall clock reads `wall` now and advances exactly as `mono` does.
    #[must_use]
    pub fn simulated(wall: Duration) -> Self {
        Self { start: Instant::now(), simulated: Some(wall) }
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

    /// The instant at which `mono` was or will be read, as tokio's timers need it.
    #[must_use]
    pub fn instant_at(self, mono: Duration) -> Instant {
        self.start + mono
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_simulated_clock_advances_with_its_timers() {
        let clock = Clock::simulated(Duration::from_secs(1000));
        tokio::time::sleep_until(clock.instant_at(Duration::from_secs(3600))).await;
        assert_eq!(clock.mono().as_secs(), 3600);
        assert_eq!(clock.now().wall.as_secs(), 4600);
    }
}
