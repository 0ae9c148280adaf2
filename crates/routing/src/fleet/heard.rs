//! What other routers see of a worker, beside what this one sees itself.
//!
//! Own fresh evidence comes first: a request that succeeded lately, a probe that failed. Where there is none, what is
//! heard decides. Nobody's word takes a worker away from a router that has just been served by it; it makes that router
//! ask, and lets one failure count for many.

use std::sync::atomic::Ordering;
use std::time::Duration;

use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::worker::Live;
use super::{Change, Fleet, Mode, State, Worker};

/// How long a request that succeeded speaks for a worker.
const FRESH: Duration = Duration::from_secs(10);

/// Prompts in a row of which far less was cached than should have been, that make a worker's cache cold.
const COLD_AFTER: u8 = 3;

/// What the other routers say of a worker, put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heard {
    /// Requests that they have in flight on it.
    pub in_flight: u32,
    /// What their probes say, if any of them says anything.
    pub health: Option<bool>,
    /// The most closed of their breakers that is not closed; `None`: all are closed.
    pub breaker: Option<Mode>,
    /// Others ask it how it is, so this router need not.
    pub asked_elsewhere: bool,
}

/// What this router sees of a worker itself, to tell the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What its own probes say; `None`: others ask.
    pub health: Option<bool>,
    /// What its traffic says of the worker. A breaker that opened because no connection came about is not told: that may
    /// be this router's own way there.
    pub breaker: Mode,
    /// Whether a request went well lately, and none has failed since.
    pub serving: bool,
    /// Time to the head of responses, exponentially weighted.
    pub latency: Option<Duration>,
    /// Times that its cache was found cold by this router.
    pub colds: u32,
    /// Requests in flight on it, sent by this router.
    pub in_flight: u32,
}

impl Fleet {
    /// Takes in what the others say of a worker. What it means for its health is decided by [`Fleet::weigh`].
    pub fn hear(&self, id: WorkerId, heard: Heard) {
        let snapshot = self.load();
        let Some(worker) = snapshot.worker(id) else { return };
        let live = worker.live();
        live.elsewhere.store(heard.in_flight, Ordering::Relaxed);
        live.asked_elsewhere.store(heard.asked_elsewhere, Ordering::Relaxed);
        live.heard_health
            .store(heard.health.map_or(0, |good| 1 + u8::from(good)), Ordering::Relaxed);
        live.heard_breaker.store(heard.breaker.map_or(0, |mode| mode as u8), Ordering::Relaxed);
    }

    /// An answer has said whether about as much of a long prompt was cached as should have been. Several in a row of which it
    /// was far less are taken for a restart; returns whether this one was the last of them.
    pub fn hear_cached(&self, id: WorkerId, about: bool) -> bool {
        let snapshot = self.load();
        let Some(worker) = snapshot.worker(id) else { return false };
        let uncached = &worker.live().uncached;
        if about {
            uncached.store(0, Ordering::Relaxed);
            return false;
        }
        if uncached.fetch_add(1, Ordering::Relaxed) + 1 < COLD_AFTER {
            return false;
        }
        uncached.store(0, Ordering::Relaxed);
        self.mark_cold(id);
        true
    }

    /// The cache of a worker was found cold by another router: what was learnt of it is void.
    pub fn hear_cold(&self, id: WorkerId) {
        self.update(id, |worker| worker.cache_epoch += 1);
    }

    /// Applies what others say of the health of workers that this router does not ask itself. Returns what that changed.
    pub fn weigh(&self, now: Now) -> Vec<(WorkerId, Change)> {
        let mut changes = Vec::new();
        let snapshot = self.snapshot();
        for worker in snapshot.workers() {
            let live = worker.live();
            if !live.asked_elsewhere.load(Ordering::Relaxed) {
                continue;
            }
            let good = match live.heard_health.load(Ordering::Relaxed) {
                0 => continue,
                heard => heard == 2,
            };
            let is_up = live.probed_state() == State::Ready;
            if is_up == good {
                continue;
            }
            if !good && live.served_lately(now) {
                live.probe_wanted.store(true, Ordering::Relaxed);
            } else if let Some(change) = live.with_health(|health| health.hear(good)) {
                changes.push((worker.id, change));
            }
        }
        if !changes.is_empty() {
            self.count_ready();
        }
        changes
    }
}

impl Worker {
    /// Requests in flight on it: this router's, and those that the others last spoke of.
    #[must_use]
    pub fn load(&self) -> u32 {
        self.in_flight().saturating_add(self.live().elsewhere.load(Ordering::Relaxed))
    }

    /// Whether this router should ask it how it is in turn: nobody else does, nobody knows yet, or its own last look was
    /// not good.
    #[must_use]
    pub fn is_asked_here(&self) -> bool {
        let live = self.live();
        !live.asked_elsewhere.load(Ordering::Relaxed)
            || (live.probed_state() == State::Pending
                && live.heard_health.load(Ordering::Relaxed) == 0)
            || live.own_bad.load(Ordering::Relaxed)
    }

    /// Whether requests are sent to it: nothing speaks against it but that it may have too much to do right now.
    #[must_use]
    pub fn is_routed(&self, now: Now, config: &super::BreakerConfig) -> bool {
        match self.fitness(now, config) {
            super::Fitness::Fit | super::Fitness::PushesBack | super::Fitness::Full => true,
            super::Fitness::Ejected { .. } | super::Fitness::Out => false,
        }
    }

    /// What this router sees of it.
    #[must_use]
    pub fn seen(&self, now: Now, config: &super::BreakerConfig) -> Seen {
        let live = self.live();
        let breaker = self.breaker_mode(now, config);
        let own_way = live.last_unreachable.load(Ordering::Relaxed) != 0;
        Seen {
            health: (self.is_asked_here() && live.probed_state() != State::Pending)
                .then(|| live.probed_state() == State::Ready),
            breaker: if own_way { Mode::Closed } else { breaker },
            serving: live.served_lately(now),
            latency: self.latency(),
            colds: live.own_colds.load(Ordering::Relaxed),
            in_flight: self.in_flight(),
        }
    }
}

impl Live {
    /// Whether a request that ended lately was served well, and none has failed since.
    pub(super) fn served_lately(&self, now: Now) -> bool {
        let at = self.last_success.load(Ordering::Relaxed);
        at != 0 && now.mono_nanos().saturating_sub(at) < FRESH.as_nanos() as u64
    }

    /// Whether another router's breaker is open and nothing that this router saw lately speaks against that.
    pub(super) fn is_said_to_fail(&self, now: Now) -> bool {
        self.heard_breaker.load(Ordering::Relaxed) == Mode::Open as u8 && !self.served_lately(now)
    }

    /// Whether another router's breaker is not closed: then one failure here says enough.
    pub(super) fn is_suspected(&self) -> bool {
        self.heard_breaker.load(Ordering::Relaxed) != 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fleet::{Config, Metrics, Outcome, Probe};
    use smg_types::spec::WorkerSpec;

    const NOW: Now = Now::at(Duration::from_secs(1000));

    fn fleet() -> (Fleet, WorkerId) {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let fleet = Fleet::new(Config::default(), metrics);
        let mut spec = WorkerSpec::new("http://a:1".parse().unwrap());
        spec.models = vec!["m".into()];
        let id = fleet.register(spec).unwrap();
        fleet.report_probe(id, Probe::Good);
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

    fn elsewhere(health: Option<bool>) -> Heard {
        Heard { health, asked_elsewhere: true, ..Heard::default() }
    }

    #[test]
    fn others_words_decide_where_this_router_does_not_ask() {
        let (fleet, id) = fleet();
        fleet.hear(id, elsewhere(Some(false)));
        assert_eq!(fleet.weigh(NOW), [(id, Change::Down)]);
        assert!(!routed(&fleet, id, NOW) && fleet.ready().0 == 0);
        fleet.hear(id, elsewhere(Some(true)));
        assert_eq!(fleet.weigh(NOW), [(id, Change::Up { cold: false })]);
        assert!(routed(&fleet, id, NOW) && fleet.ready().0 == 1);
        fleet.hear(id, Heard { health: Some(false), ..Heard::default() });
        assert_eq!(fleet.weigh(NOW), [], "it asks itself");
    }

    #[test]
    fn whoever_was_just_served_asks_before_it_believes() {
        let (fleet, id) = fleet();
        serve(&fleet, id, Outcome::Success, NOW);
        fleet.hear(id, elsewhere(Some(false)));
        assert_eq!(fleet.weigh(NOW), []);
        assert!(worker(&fleet, id).take_probe_wish());
        assert_eq!(fleet.weigh(NOW + FRESH), [(id, Change::Down)]);
    }

    #[test]
    fn a_failed_probe_of_ones_own_beats_others_praise() {
        let (fleet, id) = fleet();
        for _ in 0..3 {
            fleet.report_probe(id, Probe::Bad);
        }
        fleet.hear(id, elsewhere(Some(true)));
        assert_eq!(fleet.weigh(NOW), []);
        assert!(worker(&fleet, id).is_asked_here(), "until it is settled");
    }

    #[test]
    fn anothers_open_breaker_ejects_unless_this_router_knows_better() {
        let (fleet, id) = fleet();
        let open = Heard { breaker: Some(Mode::Open), ..Heard::default() };
        fleet.hear(id, open);
        assert!(!routed(&fleet, id, NOW));
        serve(&fleet, id, Outcome::Success, NOW);
        assert!(routed(&fleet, id, NOW) && !routed(&fleet, id, NOW + FRESH));
        // One failure is enough then.
        serve(&fleet, id, Outcome::Failure, NOW);
        assert_eq!(worker(&fleet, id).breaker_mode(NOW, &fleet.config().breaker), Mode::Open);
    }

    #[test]
    fn a_way_that_is_cut_is_not_told_as_the_workers_failure() {
        let (fleet, id) = fleet();
        let config = fleet.config().breaker.clone();
        for _ in 0..10 {
            worker(&fleet, id).mark_unreachable(NOW, false);
            serve(&fleet, id, Outcome::Failure, NOW);
        }
        assert_eq!(worker(&fleet, id).breaker_mode(NOW, &config), Mode::Open);
        assert_eq!(worker(&fleet, id).seen(NOW, &config).breaker, Mode::Closed);
        serve(&fleet, id, Outcome::Failure, NOW + Duration::from_secs(1));
        assert_eq!(worker(&fleet, id).seen(NOW, &config).breaker, Mode::Open);
    }

    #[test]
    fn others_requests_count_as_load_and_against_the_workers_own_limit() {
        let (fleet, id) = fleet();
        let mut spec = (*worker(&fleet, id).spec).clone();
        spec.max_concurrent = std::num::NonZeroU32::new(3);
        fleet.respecify(spec);
        fleet.hear(id, Heard { in_flight: 2, ..Heard::default() });
        let first = worker(&fleet, id).begin(NOW, &fleet.config().breaker, false);
        assert!(first.is_some());
        assert_eq!(worker(&fleet, id).load(), 3);
        assert!(worker(&fleet, id).begin(NOW, &fleet.config().breaker, false).is_none());
        drop(first);
        fleet.hear(id, Heard::default());
        assert_eq!(worker(&fleet, id).load(), 0);
    }

    #[test]
    fn prompts_of_which_little_was_cached_make_a_worker_cold() {
        let (fleet, id) = fleet();
        let told: Vec<bool> = [false, false, true, false, false, false]
            .map(|about| fleet.hear_cached(id, about))
            .into();
        assert_eq!(told, [false, false, false, false, false, true]);
        assert_eq!(worker(&fleet, id).cache_epoch, 1);
        assert_eq!(worker(&fleet, id).seen(NOW, &fleet.config().breaker).colds, 1);
    }
}
