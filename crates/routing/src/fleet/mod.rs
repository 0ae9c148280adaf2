//! The fleet: all workers that this router knows, as one immutable snapshot.
//!
//! The request path loads one [`Snapshot`] without a lock and sees a consistent list of workers. Writers (the bridge to the
//! cluster and the prober) take one lock, build the next snapshot and publish it. State that changes with each
//! request is in atomics and small locks that all snapshots of a worker share, so a request needs no new snapshot. The module
//! reads no clock and opens no socket: each call that depends on time takes it as an argument.

mod abort;
mod breaker;
mod config;
mod departed;
mod desired;
mod failure;
mod fitness;
mod health;
mod in_flight;
mod metrics;
mod model_objects;
mod models;
mod preference;
mod prefill;
mod rediscovery;
mod remote;
mod snapshot;
mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;

use departed::Departed;
use rediscovery::Rediscovery;

pub use breaker::{BreakerMode, Outcome};
pub use config::{BreakerConfig, Config, HealthConfig, Place};
pub use departed::Departure;
pub use desired::{DesiredWorker, Reconciled};
pub use failure::{Cause, Failure};
pub use fitness::{Ejection, Fitness, Outage, Override};
pub use health::{HealthChange, ProbeResult, WorkerState};
pub use in_flight::{InFlight, TimeToFirstToken};
pub use metrics::Metrics;
pub use model_objects::{MAX_OBJECT_BYTES, MAX_OBJECTS_BYTES, ModelObjects};
pub use models::Discovered;
pub use preference::{Proximity, Rank};
pub use prefill::CachedTokens;
pub use rediscovery::{MIN_INTERVAL, Round};
pub use remote::{Load, LocalView, RemoteView};
pub use snapshot::{Listed, Member, Model, ServedBy, Snapshot};
pub use worker::{Models, Worker};

/// Most workers in a fleet. It is far above any real fleet and bounds the memory that a runaway script can fill.
const MAX_WORKERS: usize = 16_384;

/// Owns the current [`Snapshot`]. A process has one fleet and shares it by reference.
#[derive(Debug)]
pub struct Fleet {
    config: Config,
    metrics: Metrics,
    snapshot: ArcSwap<Snapshot>,
    /// Other names for models, first those of `config`.
    aliases: Mutex<BTreeMap<ModelId, ModelId>>,
    /// Number of workers in state `ready`, updated whenever a state may have changed. Written under `write_lock`.
    ready: AtomicUsize,
    departed: Departed,
    rediscovery: Rediscovery,
    /// Serialises writers, so that no change overwrites another.
    write_lock: Mutex<()>,
    /// The last cache epoch that a worker was given.
    last_epoch: AtomicU32,
}

/// The reason why a worker was not registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// A worker with this URL is registered already.
    #[error("worker {0} is registered already")]
    Exists(WorkerId),
    /// The URL hashes to the id of another worker. In a fleet of 16,384 workers the chance of that is about 2^-37.
    #[error("worker {id} is registered with another url, {url}: the two hash to the same id")]
    SameId {
        /// The id of both workers.
        id: WorkerId,
        /// The URL of the worker that is registered.
        url: String,
    },
    /// The fleet has 16,384 workers.
    #[error("the fleet is full: it has {MAX_WORKERS} workers")]
    Full,
}

impl Fleet {
    /// A fleet without workers.
    #[must_use]
    pub fn new(config: Config, metrics: Metrics) -> Self {
        Self {
            aliases: Mutex::new(config.aliases.clone()),
            config,
            metrics,
            snapshot: ArcSwap::default(),
            ready: AtomicUsize::new(0),
            departed: Departed::default(),
            rediscovery: Rediscovery::default(),
            write_lock: Mutex::new(()),
            last_epoch: AtomicU32::new(0),
        }
    }

    /// The configuration that was passed to [`Fleet::new`].
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The current snapshot, without a lock. Don't hold the guard across an await: use [`Fleet::snapshot`] there.
    pub fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// The current snapshot, to keep for as long as the caller likes.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The number of workers in state `ready` and the number of all workers. Costs no pass over the workers.
    #[must_use]
    pub fn ready_and_total(&self) -> (usize, usize) {
        let all = self.load().workers().len();
        (self.ready.load(Ordering::Relaxed).min(all), all)
    }

    /// Checks whether the fleet has, or has room for, a worker with this spec.
    ///
    /// # Errors
    /// If a worker with another URL has the same id, or the worker is not registered and the fleet is full.
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
    /// If a worker with this URL or id is registered (a draining one counts), or the fleet is full.
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
            let epoch = self.next_epoch();
            workers.push(Arc::new(Worker::new(Arc::new(spec), epoch, &self.config, metrics)));
            Ok(id)
        })
    }

    /// Replaces the spec of the worker with the same URL; counters, health and breaker stay. Returns whether the fleet has
    /// that worker.
    pub fn respecify(&self, spec: WorkerSpec) -> bool {
        let id = spec.id();
        self.update(id, |worker| worker.respecify(spec))
    }

    /// Stops sending new requests to a worker, or, if `draining` is false, sends them again. A worker that is being removed
    /// keeps draining. Returns whether the fleet has the worker.
    pub fn drain(&self, id: WorkerId, draining: bool) -> bool {
        self.update(id, |worker| worker.draining = draining || worker.drain_deadline.is_some())
    }

    /// Sets the operator's override of a worker's health, or lifts it with `None`. Returns whether the fleet has the worker.
    pub fn override_worker(&self, id: WorkerId, health_override: Option<Override>) -> bool {
        self.update(id, |worker| worker.health_override = health_override)
    }

    /// Removes a worker once it has no requests in flight, at the latest after the drain timeout. Until then it drains: it gets
    /// no new requests. Returns whether the fleet has the worker.
    pub fn remove(&self, id: WorkerId, now: Now) -> bool {
        let drain_deadline = now.mono + self.config.drain_timeout;
        let there = self.update(id, |worker| {
            worker.draining = true;
            worker.drain_deadline.get_or_insert(drain_deadline);
            worker.cache_epoch = self.next_epoch();
        });
        self.sweep(now);
        there
    }

    /// Deletes the workers that were removed and have no requests in flight, or whose drain timeout is over. Aborts the
    /// requests that are still in flight on them.
    pub fn sweep(&self, now: Now) {
        let gone = |worker: &Worker| {
            worker
                .drain_deadline
                .is_some_and(|drain_deadline| worker.in_flight() == 0 || drain_deadline <= now.mono)
        };
        let before = self.snapshot();
        if !before.workers().iter().any(|worker| gone(worker)) {
            return;
        }
        self.change(|workers| {
            workers.retain(|worker| {
                let gone = gone(worker);
                if gone {
                    worker.live().abort().abort_all();
                    self.metrics.forget(worker.id);
                }
                !gone
            });
            Ok::<(), std::convert::Infallible>(())
        })
        .unwrap_or_else(|never| match never {});
        if !self.config.model_memory.is_zero() {
            let until = now.mono + self.config.model_memory;
            self.departed.remember_left(&before, &self.load(), until);
        }
    }

    /// Counts the result of a probe. Returns the change of the worker's health, if there was one.
    pub fn report_probe(&self, id: WorkerId, probe: ProbeResult) -> Option<HealthChange> {
        let snapshot = self.snapshot();
        let worker = snapshot.worker(id)?;
        let spec = &worker.spec.health;
        let failures = spec.failure_threshold.unwrap_or(self.config.health.failure_threshold);
        let successes = spec.success_threshold.unwrap_or(self.config.health.success_threshold);
        if probe == ProbeResult::Good {
            worker.live().mark_reachable();
        }
        worker.live().own_probe_failed.store(probe != ProbeResult::Good, Ordering::Relaxed);
        let (change, cold) = worker.live().with_health(|health| {
            let change = health.count_probe(probe, failures, successes);
            (change, probe == ProbeResult::Good && health.take_cold())
        });
        if cold || change == Some(HealthChange::Up { cold: true }) {
            self.mark_cold(id);
        } else if change.is_some() {
            self.update_ready();
        }
        change
    }

    /// Counts the ready workers again, after a change that built no snapshot.
    fn update_ready(&self) {
        let _guard = self.write_lock.lock();
        self.ready.store(self.load().count_ready(), Ordering::Relaxed);
    }

    /// Stores whether a worker's engine sleeps. An engine that has woken up has lost its cache. Returns whether this differs
    /// from before.
    pub fn report_sleeping(&self, id: WorkerId, sleeping: bool) -> bool {
        let snapshot = self.snapshot();
        let Some(worker) = snapshot.worker(id) else { return false };
        if worker.live().sleeping.swap(sleeping, Ordering::Relaxed) == sleeping {
            return false;
        }
        if sleeping {
            self.update_ready();
        } else {
            self.mark_cold(id);
        }
        true
    }

    /// Stores and counts the cause of a failed probe or discovery. Returns whether the cause differs from the last one.
    pub fn note_failure(&self, id: WorkerId, failure: Failure) -> bool {
        let snapshot = self.load();
        let Some(worker) = snapshot.worker(id) else { return false };
        worker.live().note_failure(failure)
    }

    /// Clears the cause of the last failed probe or discovery, because both succeed again. `probed_only`: the probe does,
    /// and the models were not read.
    pub fn clear_failure(&self, id: WorkerId, probed_only: bool) {
        if let Some(worker) = self.load().worker(id) {
            worker.live().clear_failure(probed_only);
        }
    }

    /// Replaces the other names for models. Requests that arrive from now on use them. Returns whether they differ from before.
    pub fn set_aliases(&self, aliases: BTreeMap<ModelId, ModelId>) -> bool {
        {
            let mut known = self.aliases.lock();
            if *known == aliases {
                return false;
            }
            *known = aliases;
        }
        self.change(|_| Ok::<(), std::convert::Infallible>(()))
            .unwrap_or_else(|never| match never {});
        true
    }

    /// Notes that a worker has lost its cache: policies forget what they have learnt about the worker.
    pub fn mark_cold(&self, id: WorkerId) {
        self.update(id, |worker| {
            worker.live().own_cold_count.fetch_add(1, Ordering::Relaxed);
            worker.cache_epoch = self.next_epoch();
        });
    }

    /// A cache epoch that no worker has had before. So a worker that is removed and registered again has another one than
    /// before.
    fn next_epoch(&self) -> u32 {
        self.last_epoch.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// Sets the gauges of state and latency. Called before each scrape.
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

    /// Runs `change` on a copy of the list of workers and publishes the snapshot that results, unless `change` fails.
    fn change<T, E>(
        &self,
        change: impl FnOnce(&mut Vec<Arc<Worker>>) -> Result<T, E>,
    ) -> Result<T, E> {
        let _guard = self.write_lock.lock();
        let old = self.snapshot.load_full();
        let mut workers = old.workers().to_vec();
        let changed = change(&mut workers)?;
        workers.sort_by_key(|worker| worker.id);
        let snapshot =
            Snapshot::new(old.version + 1, workers, &self.aliases.lock(), &self.config.place);
        self.departed.forget_returned(&old, &snapshot);
        self.ready.store(snapshot.count_ready(), Ordering::Relaxed);
        self.snapshot.store(Arc::new(snapshot));
        Ok(changed)
    }
}

#[cfg(test)]
mod tests;
