//! The health of one worker: what probes say of it.

use std::num::NonZeroU32;

/// Where a worker stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Registered, not yet found healthy, or its models are not known yet.
    Pending = 0,
    /// Serves.
    Ready = 1,
    /// Was ready and fails its probes now.
    NotReady = 2,
    /// Never became ready and fails its probes.
    Failed = 3,
    /// Takes no new requests; those in flight finish.
    Draining = 4,
}

impl State {
    /// All states, for metrics.
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Ready, Self::NotReady, Self::Failed, Self::Draining];

    /// A name from a closed set, for metrics and the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::NotReady => "not_ready",
            Self::Failed => "failed",
            Self::Draining => "draining",
        }
    }
}

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// The worker can serve.
    Good,
    /// It answered that it can't, or too late, or with nonsense.
    Bad,
    /// Nobody listens: whatever it had in its cache is gone when it comes back.
    Unreachable,
}

/// Counts probes in a row.
#[derive(Debug, Default)]
pub(super) struct Health {
    good: u32,
    bad: u32,
    was_ready: bool,
    healthy: bool,
    failed: bool,
    cold: bool,
}

/// What a probe changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It serves now. `cold`: it was unreachable meanwhile, so its cache is taken for empty.
    Up {
        /// Its cache is taken for empty.
        cold: bool,
    },
    /// It serves no longer.
    Down,
}

impl Health {
    /// Counts a probe. One good probe is enough for a worker that has never been ready; from then on the thresholds
    /// decide.
    pub(super) fn count(
        &mut self,
        probe: Probe,
        failures: NonZeroU32,
        successes: NonZeroU32,
    ) -> Option<Change> {
        match probe {
            Probe::Good => {
                self.bad = 0;
                self.good = self.good.saturating_add(1);
                if self.healthy {
                    return None;
                }
                if self.was_ready && self.good < successes.get() {
                    return None;
                }
                self.healthy = true;
                self.was_ready = true;
                self.failed = false;
                Some(Change::Up { cold: std::mem::take(&mut self.cold) })
            }
            Probe::Bad | Probe::Unreachable => {
                self.good = 0;
                self.bad = self.bad.saturating_add(1);
                self.cold |= probe == Probe::Unreachable && self.was_ready;
                if self.bad < failures.get() || self.failed {
                    return None;
                }
                self.failed = true;
                self.healthy = false;
                Some(Change::Down)
            }
        }
    }

    /// Takes it for healthy without asking: probes are disabled.
    pub(super) fn assume_good(&mut self) {
        *self = Self { healthy: true, was_ready: true, ..Self::default() };
    }

    /// Notes that a request found nobody listening.
    pub(super) fn mark_unreachable(&mut self) {
        self.cold |= self.was_ready;
    }

    /// Takes note of a good probe while it is healthy: returns whether it was unreachable since the last one, so that
    /// its cache is cold although no probe failed.
    pub(super) fn take_cold(&mut self) -> bool {
        self.healthy && std::mem::take(&mut self.cold)
    }

    /// Its state, as far as probes decide it.
    #[must_use]
    pub(super) fn state(&self) -> State {
        match (self.healthy, self.was_ready, self.failed) {
            (true, _, _) => State::Ready,
            (false, true, _) => State::NotReady,
            (false, false, true) => State::Failed,
            (false, false, false) => State::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays probes (`g`ood, `b`ad, `u`nreachable) with thresholds 3 and 2; returns the state and the last change.
    fn play(script: &str) -> (State, Option<Change>) {
        let mut health = Health::default();
        let mut last = None;
        for probe in script.chars() {
            let probe = match probe {
                'g' => Probe::Good,
                'b' => Probe::Bad,
                _ => Probe::Unreachable,
            };
            let change =
                health.count(probe, NonZeroU32::new(3).unwrap(), NonZeroU32::new(2).unwrap());
            last = change.or(last);
        }
        (health.state(), last)
    }

    #[test]
    fn assumed_good_starts_afresh() {
        let threshold = NonZeroU32::new(3).unwrap();
        let mut health = Health::default();
        for _ in 0..3 {
            health.count(Probe::Bad, threshold, threshold);
        }
        health.assume_good();
        assert_eq!(health.state(), State::Ready);
        let changes: Vec<_> =
            (0..3).map(|_| health.count(Probe::Bad, threshold, threshold)).collect();
        assert_eq!(changes, [None, None, Some(Change::Down)]);
    }

    #[test]
    fn a_life() {
        assert_eq!(play(""), (State::Pending, None));
        assert_eq!(play("bb"), (State::Pending, None));
        assert_eq!(play("bbb"), (State::Failed, Some(Change::Down)));
        assert_eq!(play("bbbbg"), (State::Ready, Some(Change::Up { cold: false })));
        assert_eq!(play("gbb"), (State::Ready, Some(Change::Up { cold: false })));
        assert_eq!(play("gbgbb"), (State::Ready, Some(Change::Up { cold: false })));
        assert_eq!(play("gbbb"), (State::NotReady, Some(Change::Down)));
        assert_eq!(play("gbbbg"), (State::NotReady, Some(Change::Down)));
        assert_eq!(play("gbbbgg"), (State::Ready, Some(Change::Up { cold: false })));
        assert_eq!(play("gbubgg"), (State::Ready, Some(Change::Up { cold: true })));
    }
}
