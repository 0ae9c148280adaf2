//! Time as an argument.
//!
//! Everything below the I/O line is told what time it is. A [`Now`] carries two clocks that answer two questions: how
//! long has it been (`mono`, never steps back) and what does a calendar say (`wall`, may jump). Drivers make one from
//! `clock::Clock`; tests and the simulator write literals.

use std::time::Duration;

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// Time since an arbitrary start of this process; never runs backward.
    pub mono: Duration,
    /// Time since the Unix epoch; may jump in either direction.
    pub wall: Duration,
}

impl Now {
    /// The moment at which both clocks show `mono`: for tests, where the calendar does not matter.
    #[must_use]
    pub const fn at(mono: Duration) -> Self {
        Self { mono, wall: mono }
    }

    /// Time that has passed since `earlier`, zero if `earlier` lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.mono.saturating_sub(earlier.mono)
    }

    /// The monotonic clock in whole nanoseconds: what fits an atomic. Good for 584 years.
    #[must_use]
    pub fn mono_nanos(self) -> u64 {
        u64::try_from(self.mono.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl std::ops::Add<Duration> for Now {
    type Output = Self;

    /// Both clocks moved on by `by`.
    fn add(self, by: Duration) -> Self {
        Self { mono: self.mono + by, wall: self.wall + by }
    }
}
