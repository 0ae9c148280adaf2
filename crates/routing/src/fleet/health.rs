//! The health of one worker, judged by probes and by the reports of other routers.

use std::num::NonZeroU32;

/// The state of a worker. The API shows it, and metrics count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum WorkerState {
    /// No probe has succeeded yet, or the worker's models are unknown.
    Pending = 0,
    /// The worker gets requests.
    Ready = 1,
    /// The worker was ready and fails its probes.
    NotReady = 2,
    /// The worker fails its probes and never was ready, or it has failed ten times as many in a row as take a worker down.
    /// Probing goes on, and the worker returns to `Ready` as from `NotReady`.
    Failed = 3,
    /// The worker gets no new requests; those in flight finish.
    Draining = 4,
    /// The worker is healthy, and its engine sleeps: it gets no requests until it wakes up.
    Sleeping = 5,
}

impl WorkerState {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Ready, Self::NotReady, Self::Failed, Self::Draining, Self::Sleeping];

    /// The name in metrics and in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::NotReady => "not_ready",
            Self::Failed => "failed",
            Self::Draining => "draining",
            Self::Sleeping => "sleeping",
        }
    }
}

/// The result of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeResult {
    /// The worker can serve.
    Good,
    /// The worker answered with an error or with something that is not HTTP, or it did not answer in time.
    Bad,
    /// The connection timed out, or the name did not resolve. The network may have failed for a moment: the worker's cache
    /// counts as lost only if the worker goes down before the next good probe.
    Unreachable,
    /// The connection was refused: no process listens, so the worker's cache is lost.
    Gone,
}

/// A worker that was ready has failed after this many times `failure_threshold` failures in a row.
const FAILED_AFTER: u32 = 10;

/// Counts the probes of one worker and derives its state.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Good probes in a row.
    good: u32,
    /// Failed probes in a row.
    bad: u32,
    /// Some probe or report has made the worker healthy before.
    was_ready: bool,
    healthy: bool,
    /// The worker went down and has not come up since.
    down: bool,
    /// The worker is in state `Failed`.
    failed: bool,
    /// A probe or request could not connect since the last good probe.
    unreached: bool,
    /// The worker has lost its cache, and that has not been reported yet.
    cold: bool,
}

/// A change of a worker's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthChange {
    /// The worker is healthy again, or for the first time.
    Up {
        /// The worker has lost its cache since it was healthy.
        cold: bool,
    },
    /// The worker is down.
    Down,
    /// The worker is still down after ten times `failure_threshold` failures: an operator should look at it.
    Failed,
}

impl Health {
    /// Counts a probe. A worker that has never been ready needs one good probe; later `successes` in a row make it healthy and
    /// `failures` in a row take it down.
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

    /// Makes the worker healthy without a probe, because probes are disabled.
    pub(super) fn assume_good(&mut self) {
        *self = Self { healthy: true, was_ready: true, ..Self::default() };
    }

    /// Applies the health that the routers which probe the worker report. A good report is ignored after a failed probe of
    /// this router.
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

    /// Notes that a request could not connect. `gone`: the connection was refused.
    pub(super) fn mark_unreachable(&mut self, gone: bool) {
        self.cold |= gone && self.was_ready;
        self.unreached = true;
    }

    /// Whether a healthy worker has lost its cache although no probe failed, because a request found no process listening.
    /// Clears the note.
    pub(super) fn take_cold(&mut self) -> bool {
        self.healthy && std::mem::take(&mut self.cold)
    }

    /// The state that probes and reports give the worker.
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

    /// Counts a script of probes (`g`ood, `b`ad, `u`nreachable, `x` gone) with the thresholds 3 and 2. Returns the state and the
    /// last change.
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
    fn assuming_good_health_resets_the_counts() {
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
    fn probes_move_a_worker_between_its_states() {
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
    fn one_unreachable_probe_keeps_the_cache_warm_but_an_outage_does_not() {
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
    fn a_worker_that_was_ready_has_failed_after_ten_times_the_failures() {
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
