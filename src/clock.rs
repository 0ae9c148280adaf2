//! The clock that drivers own: the only place that asks the machine what time it is.

#![expect(clippy::disallowed_methods, reason = "this is where time enters")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::now::Now;

/// Reads both clocks of this machine. Copies share one start, so their readings compare.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock whose `mono` begins at zero.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// What time it is.
    #[must_use]
    pub fn now(self) -> Now {
        Now {
            mono: self.mono(),
            wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO),
        }
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
