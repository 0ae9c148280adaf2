//! The health of one worker: what probes say of it.

use std::num::NonZeroU32;

/// Where a worker stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum WorkerState {
    /// Registered, not yet found healthy, or its models are not known yet.
    Pending = 0,
    /// Serves.
    Ready = 1,
    /// Was ready and fails its probes now.
    NotReady = 2,
    /// Fails its probes and never was ready, or has not been for ten times as many failures as take a worker out: not a
    /// hiccup any more. It is asked on, and comes back as from `NotReady`.
    Failed = 3,
    /// Takes no new requests; those in flight finish.
    Draining = 4,
}

impl WorkerState {
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
pub enum ProbeResult {
    /// The worker can serve.
    Good,
    /// It answered that it can't, or too late, or with nonsense.
    Bad,
    /// No connection came about in time, or its name was not found: the network may have a bad moment. Only if that
    /// lasts until the worker is taken out is its cache taken for cold when it comes back.
    Unreachable,
    /// Nobody listens: whatever it had in its cache is gone when it comes back.
    Gone,
}

/// So many times the failures that take a ready worker out make it a failed one.
const FAILED_AFTER: u32 = 10;

/// Counts probes in a row.
#[derive(Debug, Default)]
pub(super) struct Health {
    good: u32,
    bad: u32,
    was_ready: bool,
    healthy: bool,
    /// It fails its probes.
    down: bool,
    /// It has for long.
    failed: bool,
    /// Could not be reached since its last good probe.
    unreached: bool,
    cold: bool,
}

/// What a probe changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthChange {
    /// It serves now. `cold`: it was unreachable meanwhile, so its cache is taken for empty.
    Up {
        /// Its cache is taken for empty.
        cold: bool,
    },
    /// It serves no longer.
    Down,
    /// It was down and still is after so many more failures: somebody should look.
    Failed,
}

impl Health {
    /// Counts a probe. One good probe is enough for a worker that has never been ready; from then on the thresholds
    /// decide.
    pub(super) fn count_probe(
        &mut self,
        probe: ProbeResult,
        failures: NonZeroU32,
        successes: NonZeroU32,
    ) -> Option<HealthChange> {
        if probe == ProbeResult::Good {
            self.bad = 0;
            self.unreached = false;
            self.failed = false;
            self.good = self.good.saturating_add(1);
            if self.healthy || (self.was_ready && self.good < successes.get()) {
                return None;
            }
            self.healthy = true;
            self.was_ready = true;
            self.down = false;
            return Some(HealthChange::Up { cold: std::mem::take(&mut self.cold) });
        }
        self.good = 0;
        self.bad = self.bad.saturating_add(1);
        self.unreached |= probe == ProbeResult::Unreachable;
        self.cold |= probe == ProbeResult::Gone && self.was_ready;
        if !self.down && self.bad >= failures.get() {
            self.down = true;
            self.healthy = false;
            self.failed = !self.was_ready;
            self.cold |= self.unreached && self.was_ready;
            return Some(HealthChange::Down);
        }
        if self.down && !self.failed && self.bad >= failures.get().saturating_mul(FAILED_AFTER) {
            self.failed = true;
            return Some(HealthChange::Failed);
        }
        None
    }

    /// Takes it for healthy without asking: probes are disabled.
    pub(super) fn assume_good(&mut self) {
        *self = Self { healthy: true, was_ready: true, ..Self::default() };
    }

    /// Takes the word of routers that ask the worker. A failed probe of one's own is newer and nearer than others' praise.
    pub(super) fn apply_remote(&mut self, good: bool) -> Option<HealthChange> {
        if good == self.healthy || (good && self.bad > 0) {
            return None;
        }
        self.healthy = good;
        self.down = !good;
        self.failed = false;
        self.was_ready |= good;
        Some(if good { HealthChange::Up { cold: false } } else { HealthChange::Down })
    }

    /// Notes that a request found nobody listening (`gone`), or could not reach it.
    pub(super) fn mark_unreachable(&mut self, gone: bool) {
        self.cold |= gone && self.was_ready;
        self.unreached = true;
    }

    /// Takes note of a good probe while it is healthy: returns whether nobody listened since the last one, so that its
    /// cache is cold although no probe failed.
    pub(super) fn take_cold(&mut self) -> bool {
        self.healthy && std::mem::take(&mut self.cold)
    }

    /// Its state, as far as probes decide it.
    #[must_use]
    pub(super) fn state(&self) -> WorkerState {
        if self.healthy {
            WorkerState::Ready
        } else if self.failed {
            WorkerState::Failed
        } else if self.was_ready {
            WorkerState::NotReady
        } else {
            WorkerState::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays probes (`g`ood, `b`ad, `u`nreachable, `x` gone) with thresholds 3 and 2; returns the state and the last change.
    fn play(script: &str) -> (WorkerState, Option<HealthChange>) {
        let mut health = Health::default();
        let mut last = None;
        for probe in script.chars() {
            let probe = match probe {
                'g' => ProbeResult::Good,
                'b' => ProbeResult::Bad,
                'u' => ProbeResult::Unreachable,
                _ => ProbeResult::Gone,
            };
            let change =
                health.count_probe(probe, NonZeroU32::new(3).unwrap(), NonZeroU32::new(2).unwrap());
            last = change.or(last);
        }
        (health.state(), last)
    }

    #[test]
    fn assumed_good_starts_afresh() {
        let threshold = NonZeroU32::new(3).unwrap();
        let mut health = Health::default();
        for _ in 0..3 {
            health.count_probe(ProbeResult::Bad, threshold, threshold);
        }
        health.assume_good();
        assert_eq!(health.state(), WorkerState::Ready);
        let changes: Vec<_> =
            (0..3).map(|_| health.count_probe(ProbeResult::Bad, threshold, threshold)).collect();
        assert_eq!(changes, [None, None, Some(HealthChange::Down)]);
    }

    #[test]
    fn a_life() {
        assert_eq!(play(""), (WorkerState::Pending, None));
        assert_eq!(play("bb"), (WorkerState::Pending, None));
        assert_eq!(play("bbb"), (WorkerState::Failed, Some(HealthChange::Down)));
        assert_eq!(play("bbbbg"), (WorkerState::Ready, Some(HealthChange::Up { cold: false })));
        assert_eq!(play("gbb"), (WorkerState::Ready, Some(HealthChange::Up { cold: false })));
        assert_eq!(play("gbgbb"), (WorkerState::Ready, Some(HealthChange::Up { cold: false })));
        assert_eq!(play("gbbb"), (WorkerState::NotReady, Some(HealthChange::Down)));
        assert_eq!(play("gbbbg"), (WorkerState::NotReady, Some(HealthChange::Down)));
        assert_eq!(play("gbbbgg"), (WorkerState::Ready, Some(HealthChange::Up { cold: false })));
        assert_eq!(play("gbxbgg"), (WorkerState::Ready, Some(HealthChange::Up { cold: true })));
    }

    #[test]
    fn a_hiccup_of_the_network_leaves_the_cache_warm_but_an_outage_does_not() {
        assert_eq!(play("gbubgg"), (WorkerState::Ready, Some(HealthChange::Up { cold: true })));
        assert_eq!(play("gug").1, Some(HealthChange::Up { cold: false }));
        assert_eq!(play("gugbbbgg"), (WorkerState::Ready, Some(HealthChange::Up { cold: false })));
        let threshold = NonZeroU32::new(3).unwrap();
        for (gone, cold) in [(false, false), (true, true)] {
            let mut health = Health::default();
            health.count_probe(ProbeResult::Good, threshold, threshold);
            health.mark_unreachable(gone);
            health.count_probe(ProbeResult::Good, threshold, threshold);
            assert_eq!(health.take_cold(), cold);
        }
    }

    #[test]
    fn who_was_ready_has_failed_after_ten_times_the_failures() {
        let bad = |n: usize| format!("g{}", "b".repeat(n));
        assert_eq!(play(&bad(29)), (WorkerState::NotReady, Some(HealthChange::Down)));
        assert_eq!(play(&bad(30)), (WorkerState::Failed, Some(HealthChange::Failed)));
        assert_eq!(
            play(&format!("{}g", bad(40))),
            (WorkerState::NotReady, Some(HealthChange::Failed))
        );
        assert_eq!(play(&format!("{}gg", bad(40))).0, WorkerState::Ready);
    }
}
