//! Combines what other routers report of a worker with what this router has measured.
//!
//! This router's own fresh evidence takes precedence: a request that succeeded less than 10 s ago, or a probe that failed.
//! Without such evidence the reports decide. A report never takes a worker down, and never ejects one, that has answered this
//! router within the last 10 s. A bad health report then triggers a probe, and while another router's breaker is not closed,
//! one failure opens this router's breaker.

use std::sync::atomic::Ordering;
use std::time::Duration;

use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::worker::LiveState;
use super::{BreakerMode, Fleet, HealthChange, Worker, WorkerState};

/// A success of a request overrides bad reports for this time.
const FRESH: Duration = Duration::from_secs(10);

/// The reports of all other routers on one worker, combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemoteView {
    /// The load of the other routers on the worker.
    pub load: Load,
    /// Whether at least half of the routers that probe the worker find it healthy; `None`: no report.
    pub health: Option<bool>,
    /// Open if more routers have an open breaker than have had a success within the last 10 s; else half-open if any breaker
    /// is not closed; `None`: all are closed.
    pub breaker: Option<BreakerMode>,
    /// Other routers probe the worker, so this one need not.
    pub probed_elsewhere: bool,
}

/// The load of one router on a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Requests in flight.
    pub requests: u32,
    /// Prompt tokens that wait for their computation.
    pub waiting_tokens: u32,
}

impl Load {
    /// A load that has changed less than it takes to be published at once is published after this time.
    const SETTLED: Duration = Duration::from_millis(100);
    /// A change of the waiting tokens by less than this is small: some hundredths of a second of a fast worker.
    const FEW_TOKENS: u32 = 256;

    /// Whether this load should be published if the last one was `published` that long ago: at once if the requests have changed
    /// by more than one, or the tokens by more than a few, and by more than a tenth.
    #[must_use]
    pub fn is_news(self, published: Self, elapsed: Duration) -> bool {
        let is_large = |now: u32, before: u32, few: u32| {
            let change = u64::from(now.abs_diff(before));
            change > u64::from(few) && change * 10 > u64::from(before)
        };
        self != published
            && (is_large(self.requests, published.requests, 1)
                || is_large(self.waiting_tokens, published.waiting_tokens, Self::FEW_TOKENS)
                || elapsed >= Self::SETTLED)
    }
}

/// What this router has measured of one worker, to publish to the other routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalView {
    /// Whether this router's probes find the worker healthy; `None`: this router does not probe it.
    pub health: Option<bool>,
    /// The mode of this router's breaker. It is published as closed if the last failure was a failed connection, because the
    /// fault may be in this router's network path.
    pub breaker: BreakerMode,
    /// A request succeeded within the last 10 s, and none has failed since.
    pub serving: bool,
    /// Moving average of the time to the head of a response.
    pub latency: Option<Duration>,
    /// Number of times that this router found the worker's cache empty.
    pub cold_count: u32,
    /// This router's load on the worker.
    pub load: Load,
}

impl Fleet {
    /// Stores the reports of the other routers on a worker. [`Fleet::apply_remote_health`] derives the worker's health from
    /// them.
    pub fn set_remote_view(&self, id: WorkerId, remote: RemoteView, now: Now) {
        let snapshot = self.load();
        let Some(worker) = snapshot.worker(id) else { return };
        let live = worker.live();
        live.remote_in_flight.store(remote.load.requests, Ordering::Relaxed);
        live.prefill.set_remote(remote.load.waiting_tokens, now);
        live.probed_elsewhere.store(remote.probed_elsewhere, Ordering::Relaxed);
        live.remote_health
            .store(remote.health.map_or(0, |good| 1 + u8::from(good)), Ordering::Relaxed);
        live.remote_breaker.store(remote.breaker.map_or(0, |mode| mode as u8), Ordering::Relaxed);
    }

    /// Notes that another router has found the worker's cache empty: policies forget what they have learnt about the worker.
    pub fn apply_remote_cold(&self, id: WorkerId) {
        self.update(id, |worker| worker.cache_epoch = self.next_epoch());
    }

    /// Applies the reported health to the workers that other routers probe. Returns what changed. A worker that has answered
    /// this router recently and is reported bad is probed instead.
    pub fn apply_remote_health(&self, now: Now) -> Vec<(WorkerId, HealthChange)> {
        let mut changes = Vec::new();
        let snapshot = self.snapshot();
        for worker in snapshot.workers() {
            let live = worker.live();
            if !live.probed_elsewhere.load(Ordering::Relaxed) {
                continue;
            }
            let good = match live.remote_health.load(Ordering::Relaxed) {
                0 => continue,
                remote => remote == 2,
            };
            let is_up = live.probed_state() == WorkerState::Ready;
            if is_up == good {
                continue;
            }
            if !good && live.served_recently(now) {
                live.probe_requested.store(true, Ordering::Relaxed);
            } else if let Some(change) = live.with_health(|health| health.apply_remote(good)) {
                changes.push((worker.id, change));
            }
        }
        if !changes.is_empty() {
            self.update_ready();
        }
        changes
    }
}

impl Worker {
    /// Requests in flight on the worker: this router's, and those that the other routers last reported.
    #[must_use]
    pub fn load(&self) -> u32 {
        self.in_flight().saturating_add(self.live().remote_in_flight.load(Ordering::Relaxed))
    }

    /// Whether this router should probe the worker: no other router does, none has reported its health yet, this router's last
    /// probe failed, or it found the worker asleep.
    #[must_use]
    pub fn is_probed_here(&self) -> bool {
        let live = self.live();
        !live.probed_elsewhere.load(Ordering::Relaxed)
            || (live.probed_state() == WorkerState::Pending
                && live.remote_health.load(Ordering::Relaxed) == 0)
            || live.own_probe_failed.load(Ordering::Relaxed)
            || live.sleeping.load(Ordering::Relaxed)
    }

    /// Whether the worker gets requests, or would get them if it were not overloaded or at its own limit.
    #[must_use]
    pub fn is_routed(&self, now: Now, config: &super::BreakerConfig) -> bool {
        match self.fitness(now, config) {
            super::Fitness::Fit | super::Fitness::PushesBack | super::Fitness::Full => true,
            super::Fitness::Ejected { .. } | super::Fitness::Out(_) => false,
        }
    }

    /// What this router has measured of the worker.
    #[must_use]
    pub fn local_view(&self, now: Now, config: &super::BreakerConfig) -> LocalView {
        let live = self.live();
        let breaker = self.breaker_mode(now, config);
        let own_path = live.last_unreachable.load(Ordering::Relaxed) != 0;
        LocalView {
            health: (self.is_probed_here() && live.probed_state() != WorkerState::Pending)
                .then(|| live.probed_state() == WorkerState::Ready)
                .map(|healthy| healthy && !live.sleeping.load(Ordering::Relaxed)),
            breaker: if own_path { BreakerMode::Closed } else { breaker },
            serving: live.served_recently(now),
            latency: self.latency(),
            cold_count: live.own_cold_count.load(Ordering::Relaxed),
            load: Load { requests: self.in_flight(), waiting_tokens: live.prefill.own(now) },
        }
    }
}

impl LiveState {
    /// Whether a request succeeded within the last 10 s, and none has failed since.
    pub(super) fn served_recently(&self, now: Now) -> bool {
        let at = self.last_success.load(Ordering::Relaxed);
        at != 0 && now.mono_nanos().saturating_sub(at) < FRESH.as_nanos() as u64
    }

    /// Whether the other routers' combined breaker is open and this router has had no success within the last 10 s.
    pub(super) fn fails_remotely(&self, now: Now) -> bool {
        self.remote_breaker.load(Ordering::Relaxed) == BreakerMode::Open as u8
            && !self.served_recently(now)
    }

    /// Whether the other routers' combined breaker is not closed. Then one failure opens this router's breaker.
    pub(super) fn has_remote_failures(&self) -> bool {
        self.remote_breaker.load(Ordering::Relaxed) != 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fleet::{Config, Metrics, Outcome, ProbeResult};
    use smg_types::spec::WorkerSpec;

    const NOW: Now = Now::at(Duration::from_secs(1000));

    fn fleet() -> (Fleet, WorkerId) {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let fleet = Fleet::new(Config::default(), metrics);
        let mut spec = WorkerSpec::new("http://a:1".parse().unwrap());
        spec.models = vec!["m".into()];
        let id = fleet.register(spec).unwrap();
        fleet.report_probe(id, ProbeResult::Good);
        (fleet, id)
    }

    fn worker(fleet: &Fleet, id: WorkerId) -> Arc<Worker> {
        Arc::clone(fleet.load().worker(id).unwrap())
    }

    fn serve(fleet: &Fleet, id: WorkerId, outcome: Outcome, now: Now) {
        let guard = worker(fleet, id).begin(now, &fleet.config().breaker, true).unwrap();
        let _mode = guard.end(outcome, now, &fleet.config().breaker);
    }

    fn routed(fleet: &Fleet, id: WorkerId, now: Now) -> bool {
        worker(fleet, id).is_routed(now, &fleet.config().breaker)
    }

    fn probed_by_others(health: Option<bool>) -> RemoteView {
        RemoteView { health, probed_elsewhere: true, ..RemoteView::default() }
    }

    #[test]
    fn reported_health_decides_for_a_worker_that_others_probe() {
        let (fleet, id) = fleet();
        fleet.set_remote_view(id, probed_by_others(Some(false)), NOW);
        assert_eq!(fleet.apply_remote_health(NOW), [(id, HealthChange::Down)]);
        assert!(!routed(&fleet, id, NOW) && fleet.ready_and_total().0 == 0);
        fleet.set_remote_view(id, probed_by_others(Some(true)), NOW);
        assert_eq!(fleet.apply_remote_health(NOW), [(id, HealthChange::Up { cold: false })]);
        assert!(routed(&fleet, id, NOW) && fleet.ready_and_total().0 == 1);
        fleet.set_remote_view(id, RemoteView { health: Some(false), ..RemoteView::default() }, NOW);
        assert_eq!(fleet.apply_remote_health(NOW), [], "this router probes the worker itself");
    }

    #[test]
    fn a_bad_report_on_a_worker_that_just_answered_triggers_a_probe() {
        let (fleet, id) = fleet();
        serve(&fleet, id, Outcome::Success, NOW);
        fleet.set_remote_view(id, probed_by_others(Some(false)), NOW);
        assert_eq!(fleet.apply_remote_health(NOW), []);
        assert!(worker(&fleet, id).take_probe_request());
        assert_eq!(fleet.apply_remote_health(NOW + FRESH), [(id, HealthChange::Down)]);
    }

    #[test]
    fn an_own_failed_probe_outweighs_good_reports() {
        let (fleet, id) = fleet();
        for _ in 0..3 {
            fleet.report_probe(id, ProbeResult::Bad);
        }
        fleet.set_remote_view(id, probed_by_others(Some(true)), NOW);
        assert_eq!(fleet.apply_remote_health(NOW), []);
        assert!(
            worker(&fleet, id).is_probed_here(),
            "this router probes on until a probe succeeds"
        );
    }

    #[test]
    fn a_reported_open_breaker_ejects_unless_a_request_just_succeeded() {
        let (fleet, id) = fleet();
        let open = RemoteView { breaker: Some(BreakerMode::Open), ..RemoteView::default() };
        fleet.set_remote_view(id, open, NOW);
        assert!(!routed(&fleet, id, NOW));
        serve(&fleet, id, Outcome::Success, NOW);
        assert!(routed(&fleet, id, NOW) && !routed(&fleet, id, NOW + FRESH));
        // While the reported breaker is open, one failure opens the own breaker.
        serve(&fleet, id, Outcome::Failure, NOW);
        assert_eq!(
            worker(&fleet, id).breaker_mode(NOW, &fleet.config().breaker),
            BreakerMode::Open
        );
    }

    #[test]
    fn a_failed_connection_is_not_published_as_an_open_breaker() {
        let (fleet, id) = fleet();
        let config = fleet.config().breaker.clone();
        for _ in 0..10 {
            worker(&fleet, id).mark_unreachable(NOW, false);
            serve(&fleet, id, Outcome::Failure, NOW);
        }
        assert_eq!(worker(&fleet, id).breaker_mode(NOW, &config), BreakerMode::Open);
        assert_eq!(worker(&fleet, id).local_view(NOW, &config).breaker, BreakerMode::Closed);
        serve(&fleet, id, Outcome::Failure, NOW + Duration::from_secs(1));
        assert_eq!(worker(&fleet, id).local_view(NOW, &config).breaker, BreakerMode::Open);
    }

    #[test]
    fn others_requests_count_as_load_and_against_the_workers_own_limit() {
        let (fleet, id) = fleet();
        let mut spec = (*worker(&fleet, id).spec).clone();
        spec.max_concurrent = std::num::NonZeroU32::new(3);
        fleet.respecify(spec);
        fleet.set_remote_view(
            id,
            RemoteView { load: Load { requests: 2, waiting_tokens: 0 }, ..RemoteView::default() },
            NOW,
        );
        let first = worker(&fleet, id).begin(NOW, &fleet.config().breaker, false);
        assert!(first.is_some());
        assert_eq!(worker(&fleet, id).load(), 3);
        assert!(worker(&fleet, id).begin(NOW, &fleet.config().breaker, false).is_none());
        drop(first);
        fleet.set_remote_view(id, RemoteView::default(), NOW);
        assert_eq!(worker(&fleet, id).load(), 0);
    }

    #[test]
    fn a_burst_is_published_at_once_and_a_small_change_ten_times_a_second() {
        let load = |requests, waiting_tokens| Load { requests, waiting_tokens };
        let soon = Duration::from_millis(25);
        let is_news = |now: Load, elapsed| now.is_news(load(10, 10_000), elapsed);
        assert!(!is_news(load(10, 10_000), Load::SETTLED));
        assert!(!is_news(load(11, 10_000), soon) && is_news(load(11, 10_000), Load::SETTLED));
        assert!(is_news(load(12, 10_000), soon) && load(2, 0).is_news(Load::default(), soon));
        assert!(!is_news(load(10, 10_900), soon) && is_news(load(10, 12_000), soon));
        assert!(!load(0, 200).is_news(Load::default(), soon));
    }
}
