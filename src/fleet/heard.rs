//! What other routers see of a worker, beside what this one sees itself.
//!
//! Own fresh evidence comes first: a request that succeeded lately, a probe that failed. Where there is none, what is
//! heard decides. Nobody's word takes a worker away from a router that has just been served by it; it makes that router
//! ask, and lets one failure count for many.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::worker::Live;
use super::{Change, Fleet, Mode, State, Worker};
use crate::ids::WorkerId;
use crate::now::Now;

/// How long a request that succeeded speaks for a worker.
const FRESH: Duration = Duration::from_secs(10);

/// Prompts in a row of which nothing was cached, though most should have been, that make a worker's cache cold.
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

    /// An answer has said whether any of a long prompt was cached that should have been, to most of it. Several in a row of
    /// which nothing was are taken for a restart; returns whether this one was the last of them.
    pub fn hear_cached(&self, id: WorkerId, any: bool) -> bool {
        let snapshot = self.load();
        let Some(worker) = snapshot.worker(id) else { return false };
        let uncached = &worker.live().uncached;
        if any {
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

    /// Whether requests are sent to it: nothing speaks against it but that it may be full right now.
    #[must_use]
    pub fn is_routed(&self, now: Now, config: &super::BreakerConfig) -> bool {
        match self.fitness(now, config) {
            super::Fitness::Fit | super::Fitness::Full => true,
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
