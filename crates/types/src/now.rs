//! Time as an argument.
//!
//! Code without I/O takes the time as an argument and never reads a clock. A [`Now`] holds one reading of two clocks: `mono`
//! measures elapsed time and never runs backward; `wall` is the calendar time and may jump. Drivers read it from
//! `smg_runtime::clock::Clock`; tests and the simulator write literals.

use std::time::Duration;

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// Time since an arbitrary moment of this process; never runs backward.
    pub mono: Duration,
    /// Time since the Unix epoch; may jump in either direction.
    pub wall: Duration,
}

impl Now {
    /// A reading at which both clocks show `mono`, for tests in which the calendar does not matter.
    #[must_use]
    pub const fn at(mono: Duration) -> Self {
        Self { mono, wall: mono }
    }

    /// Time that has passed since `earlier`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.mono.saturating_sub(earlier.mono)
    }

    /// The monotonic clock in nanoseconds, in a form that fits an atomic. It overflows after 584 years.
    #[must_use]
    pub fn mono_nanos(self) -> u64 {
        u64::try_from(self.mono.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl std::ops::Add<Duration> for Now {
    type Output = Self;

    /// Advances both clocks by `by`.
    fn add(self, by: Duration) -> Self {
        Self { mono: self.mono + by, wall: self.wall + by }
    }
}
