//! The fleet: all workers that this node knows, as one snapshot.
//!
//! Readers on the request path load one immutable [`Snapshot`] and see a consistent whole. Writers (the bridge to the
//! cluster and the prober) take one lock, build the next snapshot and swap it in. What changes with every request lives in
//! the workers' shared counters and needs no new snapshot. Nothing here reads a clock or opens a socket.

mod breaker;
mod config;
mod cut;
mod failure;
mod health;
mod heard;
mod metrics;
mod snapshot;
mod told;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use smg_types::ids::WorkerId;
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;

pub use breaker::{Mode, Outcome};
pub use config::{BreakerConfig, Config, HealthConfig};
pub use failure::{Cause, Failure};
pub use health::{Change, Probe, State};
pub use heard::{Heard, Seen};
pub use metrics::Metrics;
pub use snapshot::{Listed, Member, Model, ServedBy, Snapshot};
pub use told::Told;
pub use worker::{Fitness, InFlight, Models, Override, Worker};

/// Workers at most: far above any real fleet, so that a runaway script can't fill the memory.
const MAX_WORKERS: usize = 16_384;

/// All workers that this node knows. One per process, shared by reference.
#[derive(Debug)]
pub struct Fleet {
    config: Config,
    metrics: Metrics,
    snapshot: ArcSwap<Snapshot>,
    /// Workers that serve; counted again whenever one may have begun or ceased to. Written under `writing`.
    ready: AtomicUsize,
    /// Taken by writers, so that two changes can't lose one another.
    writing: Mutex<()>,
}

/// Why a worker could not be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// A worker with that URL is there already.
    #[error("worker {0} is registered already")]
    Exists(WorkerId),
    /// Two URLs have the same id: about once in 2^32 fleets of 65,536 workers.
    #[error("worker {id} is registered with another url, {url}: the two hash to the same id")]
    SameId {
        /// The id of both.
        id: WorkerId,
        /// The one that was there first.
        url: String,
    },
    /// The fleet has its 16,384 workers.
    #[error("the fleet has its {MAX_WORKERS} workers")]
    Full,
}

/// What one learns by asking a worker what it serves.
#[derive(Debug, Clone, PartialEq)]
pub struct Discovered {
    /// Its models.
    pub models: Models,
    /// Its own words about itself.
    pub info: Option<serde_json::Value>,
}

impl Fleet {
    /// A fleet without workers.
    #[must_use]
    pub fn new(config: Config, metrics: Metrics) -> Self {
        Self {
            config,
            metrics,
            snapshot: ArcSwap::default(),
            ready: AtomicUsize::new(0),
            writing: Mutex::new(()),
        }
    }

    /// What workers are judged by.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// All workers at this moment: cheap, without a lock. Not to be held across an await; clone the `Arc` for that.
    pub fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// All workers at this moment, to keep.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Workers that serve, and all of them, without looking at each.
    #[must_use]
    pub fn ready(&self) -> (usize, usize) {
        let all = self.load().workers().len();
        (self.ready.load(Ordering::Relaxed).min(all), all)
    }

    /// Whether a worker with this spec may be in the fleet, as one that is there already or as another one.
    ///
    /// # Errors
    /// If another URL has the same id, or the worker is not there and the fleet is full.
    pub fn check_room(&self, spec: &WorkerSpec) -> Result<(), RegisterError> {
        let snapshot = self.load();
        match snapshot.worker(spec.id()) {
            Some(there) if there.spec.url != spec.url => {
                let url = there.spec.url.to_string();
                Err(RegisterError::SameId { id: spec.id(), url })
            }
            None if snapshot.workers().len() >= MAX_WORKERS => Err(RegisterError::Full),
            Some(_) | None => Ok(()),
        }
    }

    /// Adds a worker.
    ///
    /// # Errors
    /// If it is there already (also while it drains), or the fleet is full.
    pub fn register(&self, spec: WorkerSpec) -> Result<WorkerId, RegisterError> {
        let id = spec.id();
        self.change(|workers| {
            if let Some(there) = workers.iter().find(|worker| worker.id == id) {
                return Err(if there.spec.url == spec.url {
                    RegisterError::Exists(id)
                } else {
                    RegisterError::SameId { id, url: there.spec.url.to_string() }
                });
            }
            if workers.len() >= MAX_WORKERS {
                return Err(RegisterError::Full);
            }
            let metrics = self.metrics.worker(id);
            workers.push(Arc::new(Worker::new(Arc::new(spec), &self.config, metrics)));
            Ok(id)
        })
    }

    /// Replaces what a worker is told to be; its counters, health and breaker stay. The URL can't change, for it is the
    /// worker's identity. Returns whether it is there.
    pub fn respecify(&self, spec: WorkerSpec) -> bool {
        let id = spec.id();
        self.update(id, |worker| worker.respecify(spec))
    }

    /// Stops (or, with `false`, resumes) sending new requests to a worker. Returns whether it is there.
    pub fn drain(&self, id: WorkerId, draining: bool) -> bool {
        self.update(id, |worker| worker.draining = draining || worker.leaves_by.is_some())
    }

    /// Sets or lifts an operator's verdict. Returns whether the worker is there.
    pub fn override_worker(&self, id: WorkerId, verdict: Option<Override>) -> bool {
        self.update(id, |worker| worker.verdict = verdict)
    }

    /// Lets a worker go: no new requests, those in flight finish, bounded by the drain timeout. Returns whether it is
    /// there. [`Fleet::sweep`] takes it away.
    pub fn remove(&self, id: WorkerId, now: Now) -> bool {
        let leaves_by = now.mono + self.config.drain_timeout;
        let there = self.update(id, |worker| {
            worker.draining = true;
            worker.leaves_by.get_or_insert(leaves_by);
        });
        self.sweep(now);
        there
    }

    /// Takes workers away that were let go and have nothing in flight any more, or whose time is over: what is still in
    /// flight there ends then.
    pub fn sweep(&self, now: Now) {
        let gone = |worker: &Worker| {
            worker
                .leaves_by
                .is_some_and(|leaves_by| worker.in_flight() == 0 || leaves_by <= now.mono)
        };
        if !self.load().workers().iter().any(|worker| gone(worker)) {
            return;
        }
        self.change(|workers| {
            workers.retain(|worker| {
                let gone = gone(worker);
                if gone {
                    worker.live().cut().end();
                    self.metrics.forget(worker.id);
                }
                !gone
            });
            Ok::<(), std::convert::Infallible>(())
        })
        .unwrap_or_else(|never| match never {});
    }

    /// A probe of a worker came back. Returns what it changed, for the log.
    pub fn report_probe(&self, id: WorkerId, probe: Probe) -> Option<Change> {
        let snapshot = self.snapshot();
        let worker = snapshot.worker(id)?;
        let spec = &worker.spec.health;
        let failures = spec.failure_threshold.unwrap_or(self.config.health.failure_threshold);
        let successes = spec.success_threshold.unwrap_or(self.config.health.success_threshold);
        if probe == Probe::Good {
            worker.live().mark_reachable();
        }
        worker.live().own_bad.store(probe != Probe::Good, Ordering::Relaxed);
        let (change, cold) = worker.live().with_health(|health| {
            let change = health.count(probe, failures, successes);
            (change, probe == Probe::Good && health.take_cold())
        });
        if cold || change == Some(Change::Up { cold: true }) {
            self.mark_cold(id);
        } else if change.is_some() {
            self.count_ready();
        }
        change
    }

    /// Some worker began or ceased to serve.
    fn count_ready(&self) {
        let _one_at_a_time = self.writing.lock();
        self.ready.store(self.load().ready(), Ordering::Relaxed);
    }

    /// Something was learnt about what a worker serves. Models that its spec names stay as they are told. Returns
    /// whether that changed anything.
    pub fn discovered(&self, id: WorkerId, discovered: Discovered) -> bool {
        let Discovered { models, info } = discovered;
        let info = info.map(Arc::new);
        let brings_news = |worker: &Worker| {
            (worker.spec.models.is_empty() && worker.models != models)
                || info.as_ref().is_some_and(|info| worker.info.as_ref() != Some(info))
        };
        // Looked at first without the lock: most looks find what is known already.
        if !self.load().worker(id).is_some_and(|worker| brings_news(worker)) {
            return false;
        }
        self.update(id, |worker| {
            // What its spec names is not overruled, and that is decided under the lock: it may have changed.
            if worker.spec.models.is_empty() {
                worker.models.clone_from(&models);
            }
            worker.info = info.clone().or_else(|| worker.info.take());
        })
    }

    /// Remembers why a worker could not be asked. Returns whether the cause is another one than the last.
    pub fn note_failure(&self, id: WorkerId, failure: Failure) -> bool {
        let snapshot = self.load();
        let Some(worker) = snapshot.worker(id) else { return false };
        worker.live().note_failure(failure)
    }

    /// Forgets why a worker could not be asked: it answers well.
    pub fn clear_failure(&self, id: WorkerId) {
        if let Some(worker) = self.load().worker(id) {
            worker.live().clear_failure();
        }
    }

    /// What a worker serves could not be read.
    pub fn could_not_read(&self, id: WorkerId) {
        if let Some(worker) = self.load().worker(id) {
            worker.live().count_failed_look();
        }
    }

    /// A worker's cache was emptied: what was learnt of it is void.
    pub fn mark_cold(&self, id: WorkerId) {
        self.update(id, |worker| {
            worker.live().own_colds.fetch_add(1, Ordering::Relaxed);
            worker.cache_epoch += 1;
        });
    }

    /// Brings the gauges that are computed, not counted, up to date; called before a scrape.
    pub fn show_metrics(&self) {
        let snapshot = self.load();
        let shown = |worker: &Arc<Worker>| (worker.id, worker.state(), worker.latency());
        self.metrics.show(snapshot.workers().iter().map(shown));
    }

    fn update(&self, id: WorkerId, change: impl FnOnce(&mut Worker)) -> bool {
        self.change(|workers| {
            let Some(worker) = workers.iter_mut().find(|worker| worker.id == id) else {
                return Ok(false);
            };
            change(Arc::make_mut(worker));
            Ok::<bool, std::convert::Infallible>(true)
        })
        .unwrap_or_else(|never| match never {})
    }

    /// Runs `change` on a copy of the list and, unless it fails, swaps the snapshot that follows from it in.
    fn change<T, E>(
        &self,
        change: impl FnOnce(&mut Vec<Arc<Worker>>) -> Result<T, E>,
    ) -> Result<T, E> {
        let _one_at_a_time = self.writing.lock();
        let old = self.snapshot.load_full();
        let mut workers = old.workers().to_vec();
        let changed = change(&mut workers)?;
        workers.sort_by_key(|worker| worker.id);
        let snapshot = Snapshot::new(old.version + 1, workers, &self.config.aliases);
        self.ready.store(snapshot.ready(), Ordering::Relaxed);
        self.snapshot.store(Arc::new(snapshot));
        Ok(changed)
    }
}

#[cfg(test)]
mod tests;
