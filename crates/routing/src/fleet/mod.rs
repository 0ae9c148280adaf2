//! The fleet: all workers that this router knows, as one immutable snapshot.
//!
//! The request path loads one [`Snapshot`] without a lock and sees a consistent list of workers. Writers (the admin API, the
//! prober, the bridge to the cluster) take one lock, build the next snapshot and publish it. State that changes with each
//! request is in atomics and small locks that all snapshots of a worker share, so a request needs no new snapshot. The module
//! reads no clock and opens no socket: each call that depends on time takes it as an argument.

mod abort;
mod breaker;
mod desired;
mod failure;
mod health;
mod metrics;
mod remote;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

pub use breaker::{BreakerMode, Outcome};
pub use desired::DesiredWorker;
pub use failure::{Cause, Failure};
pub use health::{HealthChange, ProbeResult, WorkerState};
pub use metrics::Metrics;
pub use remote::{LocalView, RemoteView};
pub use worker::{Fitness, InFlight, Models, Override, Worker};

use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;

/// Thresholds and timeouts by which the fleet decides whether a worker gets requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Probe settings for workers whose spec does not set their own.
    pub health: HealthConfig,
    /// Settings of the circuit breaker of each worker.
    pub breaker: BreakerConfig,
    /// Share of a model's workers, 0..=100 %, that breakers and connect errors may eject when no other worker is left. The
    /// workers beyond it stay eligible: reachable ones first, then those that were ejected first.
    pub max_ejection_percent: u8,
    /// Time that the requests in flight on a removed worker have to finish before they are aborted.
    pub drain_timeout: Duration,
    /// Other names for models, whichever workers serve them: a request for the key is sent as a request for the value.
    pub aliases: BTreeMap<ModelId, ModelId>,
}

/// Probe settings of a worker whose [`HealthSpec`](smg_types::spec::HealthSpec) does not set its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// The path that the prober requests. A worker that can serve answers it with 2xx.
    pub endpoint: String,
    /// Time from the end of a probe to the next one; the prober varies it by ±10 %.
    pub interval: Duration,
    /// A probe without an answer after this time has failed.
    pub timeout: Duration,
    /// A worker is down after this many failed probes in a row.
    pub failure_threshold: NonZeroU32,
    /// A worker that was down is up after this many good probes in a row.
    pub success_threshold: NonZeroU32,
    /// The router sends no probes and assumes every worker to be healthy.
    pub disabled: bool,
}

/// Settings of a circuit breaker: when the outcomes of requests eject a worker, and when the worker returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerConfig {
    /// The breaker opens after this many failures within `window`.
    pub failure_threshold: NonZeroU32,
    /// A half-open breaker closes after this many successes.
    pub success_threshold: NonZeroU32,
    /// An open breaker becomes half-open after this time.
    pub timeout: Duration,
    /// Failures that are older than this do not count.
    pub window: Duration,
    /// The breaker never opens.
    pub disabled: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            health: HealthConfig::default(),
            breaker: BreakerConfig::default(),
            max_ejection_percent: 50,
            drain_timeout: Duration::from_secs(300),
            aliases: BTreeMap::new(),
        }
    }
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            endpoint: "/health".to_owned(),
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            failure_threshold: NonZeroU32::new(3).expect("3 is not 0"),
            success_threshold: NonZeroU32::new(1).expect("1 is not 0"),
            disabled: false,
        }
    }
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failure_threshold: NonZeroU32::new(10).expect("10 is not 0"),
            success_threshold: NonZeroU32::new(3).expect("3 is not 0"),
            timeout: Duration::from_secs(60),
            window: Duration::from_secs(120),
            disabled: false,
        }
    }
}

/// Most workers in a fleet. It is far above any real fleet and bounds the memory that a runaway script can fill.
const MAX_WORKERS: usize = 16_384;

/// All workers at one moment, indexed by model.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Increases by 1 with each change of the fleet.
    pub version: u64,
    /// Sorted by id.
    workers: Vec<Arc<Worker>>,
    models: HashMap<ModelId, Model>,
    /// Workers with [`Models::Any`]: they get requests for every model.
    any: Vec<Member>,
    /// Workers whose models are known. They get the requests that name no model.
    with_known_models: Vec<Member>,
    /// Workers with [`Models::Unknown`].
    undiscovered: Vec<Arc<Worker>>,
    /// How many models the workers list. Aliases do not count.
    listed: Listed,
}

/// How many models the workers of a fleet list. Aliases do not count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Listed {
    /// No model: no worker's models are known, or all workers get requests for every model.
    #[default]
    None,
    /// Exactly this one.
    One(ModelId),
    /// More than one.
    Several,
}

/// A model and the workers that serve it.
#[derive(Debug, Default)]
pub struct Model {
    /// The workers that serve the model, sorted by id.
    pub members: Vec<Member>,
    /// The value of the label `policy` of the first worker (in the order of ids) that has one.
    pub policy: Option<String>,
}

/// A worker that serves one model.
#[derive(Debug, Clone)]
pub struct Member {
    /// The worker.
    pub worker: Arc<Worker>,
    /// If clients name the model by an alias: the name of the model at the worker.
    pub renamed: Option<ModelId>,
}

/// The workers that serve a model, or the reason why there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServedBy<'a> {
    /// At least one worker serves the model.
    Members(&'a [Member]),
    /// No known worker serves the model, but the router does not know yet what some worker serves.
    NotYetKnown,
    /// No worker serves the model.
    UnknownModel,
}

impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        self.worker.id == other.worker.id && self.renamed == other.renamed
    }
}

impl Eq for Member {}

impl Snapshot {
    /// All workers, sorted by id.
    #[must_use]
    pub fn workers(&self) -> &[Arc<Worker>] {
        &self.workers
    }

    /// The worker called `id`.
    #[must_use]
    pub fn worker(&self, id: WorkerId) -> Option<&Arc<Worker>> {
        self.workers.binary_search_by_key(&id, |worker| worker.id).ok().map(|at| &self.workers[at])
    }

    /// All models by name. An alias is listed as a model of its own.
    pub fn models(&self) -> impl Iterator<Item = (&ModelId, &Model)> {
        self.models.iter()
    }

    /// How many models the workers list. If it is one, a request that names no model means that one.
    #[must_use]
    pub fn listed(&self) -> &Listed {
        &self.listed
    }

    /// The model or alias called `name`.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models.get(name)
    }

    /// The workers that may serve a request for `model`. A request that names no model may go to every worker whose models
    /// are known.
    #[must_use]
    pub fn served_by(&self, model: Option<&str>) -> ServedBy<'_> {
        let members = match model {
            None => &self.with_known_models,
            Some(name) => self.models.get(name).map_or(&self.any, |model| &model.members),
        };
        // While no worker's models are known, no model is known not to exist. Later, a name is unknown unless some worker
        // may report its models soon.
        let too_early = self.with_known_models.is_empty() && !self.workers.is_empty();
        match members.as_slice() {
            [] if too_early => ServedBy::NotYetKnown,
            [] if self.undiscovered.iter().any(|worker| worker.may_report_models()) => {
                ServedBy::NotYetKnown
            }
            [] => ServedBy::UnknownModel,
            members => ServedBy::Members(members),
        }
    }

    /// Counts the workers in state `ready`.
    fn count_ready(&self) -> usize {
        self.workers.iter().filter(|worker| worker.state() == WorkerState::Ready).count()
    }
}

/// Owns the current [`Snapshot`]. A process has one fleet and shares it by reference.
#[derive(Debug)]
pub struct Fleet {
    config: Config,
    metrics: Metrics,
    snapshot: ArcSwap<Snapshot>,
    /// Number of workers in state `ready`, updated whenever a state may have changed. Written under `write_lock`.
    ready: AtomicUsize,
    /// Serialises writers, so that no change overwrites another.
    write_lock: Mutex<()>,
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

/// The answers of a worker to the questions what it serves and how it is configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Discovered {
    /// The models that the worker lists.
    pub models: Models,
    /// The worker's description of itself as JSON; `None`: the worker has no endpoint for it.
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
            write_lock: Mutex::new(()),
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
        let all = self.load().workers.len();
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
            workers.push(Arc::new(Worker::new(Arc::new(spec), &self.config, metrics)));
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
        if !self.load().workers.iter().any(|worker| gone(worker)) {
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

    /// Stores what a worker says it serves. If its spec names models, they take precedence. Returns whether anything changed.
    pub fn report_discovered(&self, id: WorkerId, discovered: Discovered) -> bool {
        let Discovered { models, info } = discovered;
        let info = info.map(Arc::new);
        let differs = |worker: &Worker| {
            (worker.spec.models.is_empty() && worker.models != models)
                || info.as_ref().is_some_and(|info| worker.info.as_ref() != Some(info))
        };
        // Compared first without the lock, because most answers equal the last one.
        if !self.load().worker(id).is_some_and(|worker| differs(worker)) {
            return false;
        }
        self.update(id, |worker| {
            // The spec is read again under the lock, because it may have changed since the comparison above.
            if worker.spec.models.is_empty() {
                worker.models.clone_from(&models);
            }
            worker.info = info.clone().or_else(|| worker.info.take());
        })
    }

    /// Stores and counts the cause of a failed probe or discovery. Returns whether the cause differs from the last one.
    pub fn note_failure(&self, id: WorkerId, failure: Failure) -> bool {
        let snapshot = self.load();
        let Some(worker) = snapshot.worker(id) else { return false };
        worker.live().note_failure(failure)
    }

    /// Clears the cause of the last failed probe or discovery, because both succeed again.
    pub fn clear_failure(&self, id: WorkerId) {
        if let Some(worker) = self.load().worker(id) {
            worker.live().clear_failure();
        }
    }

    /// Counts a failed attempt to ask a worker what it serves.
    pub fn report_failed_discovery(&self, id: WorkerId) {
        if let Some(worker) = self.load().worker(id) {
            worker.live().count_failed_discovery();
        }
    }

    /// Notes that a worker has lost its cache: policies forget what they have learnt about the worker.
    pub fn mark_cold(&self, id: WorkerId) {
        self.update(id, |worker| {
            worker.live().own_cold_count.fetch_add(1, Ordering::Relaxed);
            worker.cache_epoch += 1;
        });
    }

    /// Sets the gauges of state and latency. Called before each scrape.
    pub fn show_metrics(&self) {
        self.metrics.show(&self.load().workers);
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
        let mut workers = old.workers.clone();
        let changed = change(&mut workers)?;
        workers.sort_by_key(|worker| worker.id);
        let snapshot = build(old.version + 1, workers, &self.config.aliases);
        self.ready.store(snapshot.count_ready(), Ordering::Relaxed);
        self.snapshot.store(Arc::new(snapshot));
        Ok(changed)
    }
}

/// Builds the snapshot of `workers`, which are sorted by id.
fn build(
    version: u64,
    workers: Vec<Arc<Worker>>,
    aliases: &BTreeMap<ModelId, ModelId>,
) -> Snapshot {
    let mut snapshot = Snapshot { version, ..Snapshot::default() };
    for worker in &workers {
        let member = || Member { worker: Arc::clone(worker), renamed: None };
        match &worker.models {
            Models::Unknown => {
                snapshot.undiscovered.push(Arc::clone(worker));
                continue;
            }
            Models::Any => snapshot.any.push(member()),
            Models::Known(models) => {
                for id in models {
                    snapshot.listed = match &snapshot.listed {
                        Listed::None => Listed::One(id.clone()),
                        Listed::One(known) if known == id => Listed::One(known.clone()),
                        Listed::One(_) | Listed::Several => Listed::Several,
                    };
                    add(&mut snapshot.models, id, member());
                }
            }
        }
        for (alias, model) in &worker.spec.aliases {
            add(&mut snapshot.models, alias, Member { renamed: Some(model.clone()), ..member() });
        }
        snapshot.with_known_models.push(member());
    }
    // A worker that serves any model also serves the models that others list.
    for any in &snapshot.any {
        for model in snapshot.models.values_mut() {
            if model.members.iter().all(|member| member.worker.id != any.worker.id) {
                model.members.push(any.clone());
            }
        }
    }
    for (alias, model) in aliases {
        add_alias(&mut snapshot, alias, model);
    }
    for model in snapshot.models.values_mut() {
        model.members.sort_by_key(|member| member.worker.id);
    }
    snapshot.workers = workers;
    snapshot
}

/// Makes the workers that serve `model` serve `alias` too, unless a worker itself lists a model called `alias`.
fn add_alias(snapshot: &mut Snapshot, alias: &ModelId, model: &ModelId) {
    let known = snapshot.models.get(model);
    let members = known.map_or(&snapshot.any, |known| &known.members);
    if members.is_empty() || snapshot.models.contains_key(alias) {
        return;
    }
    let renamed = |member: &Member| Member {
        worker: Arc::clone(&member.worker),
        renamed: Some(member.renamed.clone().unwrap_or_else(|| model.clone())),
    };
    let members = members.iter().map(renamed).collect();
    let policy = known.and_then(|known| known.policy.clone());
    snapshot.models.insert(alias.clone(), Model { members, policy });
}

/// Adds `member` to the model `id`, unless the same worker was added to it just before.
fn add(models: &mut HashMap<ModelId, Model>, id: &ModelId, member: Member) {
    let model = models.entry(id.clone()).or_default();
    if model.policy.is_none() {
        model.policy = member.worker.spec.labels.get("policy").cloned();
    }
    if model.members.last().is_none_or(|last| last.worker.id != member.worker.id) {
        model.members.push(member);
    }
}

#[cfg(test)]
mod tests;
