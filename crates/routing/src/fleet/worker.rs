//! One worker: its spec, its models, and the state that changes with each request.
//!
//! A [`Worker`] is immutable and belongs to a snapshot. All snapshots of one worker share one [`LiveState`], which holds
//! counters, breaker and health.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;

use super::abort::AbortSignal;

use super::breaker::{Breaker, BreakerMode};
use super::config::{BreakerConfig, Config};
use super::failure::Failure;
use super::fitness::{Ejection, Fitness, Outage, Override};
use super::health::{Health, WorkerState};
use super::metrics::WorkerMetrics;
use super::model_objects::ModelObjects;
use super::prefill::Prefill;

/// The models that a worker serves, as far as the router knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Models {
    /// The spec names none, and the worker has not answered yet.
    Unknown,
    /// The worker lists no models: it gets requests for every model.
    Any,
    /// The worker serves exactly these models.
    Known(Vec<ModelId>),
}

/// A worker within one snapshot of the fleet.
#[derive(Debug, Clone)]
pub struct Worker {
    /// The id, derived from the URL.
    pub id: WorkerId,
    /// The settings from the configuration, the API or the cluster.
    pub spec: Arc<WorkerSpec>,
    /// The models that the spec names or the worker lists.
    pub models: Models,
    /// The operator's override of the worker's health, which may have ended: see [`Worker::active_override`].
    pub health_override: Option<Override>,
    /// The worker gets no new requests.
    pub draining: bool,
    /// The worker is being removed: once it has no requests in flight, at the latest at this time of `Now::mono`.
    pub drain_deadline: Option<Duration>,
    /// Changes whenever the worker has lost its cache, is removed, or is registered again. No two registrations of a worker
    /// share an epoch.
    pub cache_epoch: u32,
    /// The cache epoch with which this router registered the worker. It tells apart the registrations of a worker.
    pub registered_epoch: u32,
    /// The number of the worker's registration by an administrator; `None`: a configuration registered it.
    pub registration: Option<u16>,
    /// The worker's description of itself (its maximum number of tokens and the like) as JSON, shown by the API.
    pub info: Option<Arc<serde_json::Value>>,
    live: Arc<LiveState>,
}

/// The state of a worker that changes with each request or probe. Times are `Now::mono_nanos`.
#[derive(Debug)]
pub(super) struct LiveState {
    pub(super) in_flight: AtomicU32,
    state: AtomicU8,
    /// A request could not connect: the worker is ejected until this time or until a good probe; 0: it is not.
    unreachable_until: AtomicU64,
    /// The worker refused a request because it is overloaded: other workers are preferred until this time.
    pub(super) pushes_back_until: AtomicU64,
    pub(super) probe_requested: AtomicBool,
    /// The worker's engine says that it sleeps.
    pub(super) sleeping: AtomicBool,
    pub(super) breaker_mode: AtomicU8,
    /// Moving average of the time to the head of a response, in nanoseconds; 0: no response yet.
    pub(super) latency_nanos: AtomicU64,
    pub(super) breaker: Mutex<Breaker>,
    health: Mutex<Health>,
    pub(super) abort: AbortSignal,
    /// Failed attempts in a row to ask the worker what it serves.
    pub(super) failed_discoveries: AtomicU32,
    /// The cause of the last failed probe or discovery; `None`: the last one succeeded.
    failure: Mutex<Option<Failure>>,
    /// How the worker describes its models.
    pub(super) model_objects: Mutex<Arc<ModelObjects>>,
    /// Time of the last success of a request; 0: none has succeeded since the last failure.
    pub(super) last_success: AtomicU64,
    /// Time of the last failed connection; 0: the last failure had another cause.
    pub(super) last_unreachable: AtomicU64,
    /// The last probe by this router was not good.
    pub(super) own_probe_failed: AtomicBool,
    /// Number of times that this router found the worker's cache empty.
    pub(super) own_cold_count: AtomicU32,
    /// Requests that other routers have in flight on the worker.
    pub(super) remote_in_flight: AtomicU32,
    /// Other routers probe the worker, so this one need not.
    pub(super) probed_elsewhere: AtomicBool,
    /// Health by the probes of other routers: 0 no report, 1 bad, 2 good.
    pub(super) remote_health: AtomicU8,
    /// `RemoteView::breaker` as a number; 0: closed.
    pub(super) remote_breaker: AtomicU8,
    /// The prompt tokens that wait for their computation, and the worker's speed.
    pub(super) prefill: Prefill,
    pub(super) metrics: WorkerMetrics,
}

/// Time for which a connect error ejects a worker, unless a probe succeeds earlier.
const UNREACHABLE_FOR: Duration = Duration::from_secs(5);

/// After this many failed attempts in a row to ask a worker what it serves, requests for unknown models no longer wait for it.
const MAX_FAILED_DISCOVERIES: u32 = 5;

impl Worker {
    pub(super) fn new(
        spec: Arc<WorkerSpec>,
        cache_epoch: u32,
        config: &Config,
        metrics: WorkerMetrics,
    ) -> Self {
        let mut health = Health::default();
        if spec.health.disabled || config.health.disabled {
            health.assume_good();
        }
        let models = match spec.models.as_slice() {
            [] => Models::Unknown,
            models => Models::Known(models.to_vec()),
        };
        let live = LiveState {
            in_flight: AtomicU32::new(0),
            state: AtomicU8::new(health.state() as u8),
            unreachable_until: AtomicU64::new(0),
            pushes_back_until: AtomicU64::new(0),
            probe_requested: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            breaker_mode: AtomicU8::new(BreakerMode::Closed as u8),
            latency_nanos: AtomicU64::new(0),
            breaker: Mutex::default(),
            health: Mutex::new(health),
            abort: AbortSignal::default(),
            failed_discoveries: AtomicU32::new(0),
            failure: Mutex::default(),
            model_objects: Mutex::default(),
            last_success: AtomicU64::new(0),
            last_unreachable: AtomicU64::new(0),
            own_probe_failed: AtomicBool::new(false),
            own_cold_count: AtomicU32::new(0),
            remote_in_flight: AtomicU32::new(0),
            probed_elsewhere: AtomicBool::new(false),
            remote_health: AtomicU8::new(0),
            remote_breaker: AtomicU8::new(0),
            prefill: Prefill::default(),
            metrics,
        };
        Self {
            id: spec.id(),
            spec,
            models,
            health_override: None,
            draining: false,
            drain_deadline: None,
            cache_epoch,
            registered_epoch: cache_epoch,
            registration: None,
            info: None,
            live: Arc::new(live),
        }
    }

    pub(super) fn live(&self) -> &LiveState {
        &self.live
    }

    pub(super) fn live_arc(&self) -> Arc<LiveState> {
        Arc::clone(&self.live)
    }

    /// Requests that this router has in flight on the worker.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.live.in_flight.load(Ordering::Relaxed)
    }

    /// The state that probes, discovery and draining give the worker.
    #[must_use]
    pub fn state(&self) -> WorkerState {
        if self.draining {
            return WorkerState::Draining;
        }
        match self.live.probed_state() {
            WorkerState::Ready if self.models == Models::Unknown => WorkerState::Pending,
            WorkerState::Ready if self.live.sleeping.load(Ordering::Relaxed) => {
                WorkerState::Sleeping
            }
            state => state,
        }
    }

    /// Whether a worker with unknown models may list them soon: it is not draining or down and has not failed to too often.
    pub(super) fn may_report_models(&self) -> bool {
        !self.draining
            && matches!(self.live.probed_state(), WorkerState::Pending | WorkerState::Ready)
            && self.live.failed_discoveries.load(Ordering::Relaxed) < MAX_FAILED_DISCOVERIES
    }

    /// The mode of this router's breaker for the worker.
    #[must_use]
    pub fn breaker_mode(&self, now: Now, config: &BreakerConfig) -> BreakerMode {
        if self.live.breaker_mode.load(Ordering::Relaxed) == BreakerMode::Closed as u8 {
            return BreakerMode::Closed;
        }
        self.live.breaker.lock().mode(now.mono, config)
    }

    /// Moving average of the time to the head of a response (weight of a sample: 1/8); `None`: no response yet.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        let nanos = self.live.latency_nanos.load(Ordering::Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }

    /// The cause of this router's last failed probe or discovery; `None` after a success, or if other routers probe the worker.
    #[must_use]
    pub fn last_failure(&self) -> Option<Failure> {
        self.live.failure.lock().clone()
    }

    /// The operator's override of the worker's health, if it has not ended.
    #[must_use]
    pub fn active_override(&self, now: Now) -> Option<&Override> {
        self.health_override
            .as_ref()
            .filter(|given| given.until.is_none_or(|until| now.mono < until))
    }

    /// Whether the worker is a candidate, and if not, why.
    #[must_use]
    pub fn fitness(&self, now: Now, config: &BreakerConfig) -> Fitness {
        if self.draining {
            return Fitness::Out(Outage::Draining);
        }
        if self.models == Models::Unknown {
            return Fitness::Out(Outage::ModelsUnknown);
        }
        match self.active_override(now) {
            Some(given) if given.healthy => return self.fit_or_full(now),
            Some(_) => return Fitness::Out(Outage::Overridden),
            None => {}
        }
        if self.live.probed_state() != WorkerState::Ready {
            return Fitness::Out(Outage::Down);
        }
        if self.live.sleeping.load(Ordering::Relaxed) {
            return Fitness::Out(Outage::Sleeping);
        }
        let unreachable = self.live.unreachable_until.load(Ordering::Relaxed) > now.mono_nanos();
        let mode = self.live.breaker_mode.load(Ordering::Relaxed);
        if !unreachable && mode == BreakerMode::Closed as u8 {
            if !self.live.fails_remotely(now) {
                return self.fit_or_full(now);
            }
            return match self.fit_or_full(now) {
                Fitness::Fit | Fitness::PushesBack => {
                    Fitness::Ejected { since: now.mono, by: Ejection::OtherRouters }
                }
                fitness => fitness,
            };
        }
        let breaker = self.live.breaker.lock();
        if !unreachable && breaker.admits(now.mono, config) {
            return self.fit_or_full(now);
        }
        let (since, by) = if unreachable {
            let until = self.live.unreachable_until.load(Ordering::Relaxed);
            (Duration::from_nanos(until).saturating_sub(UNREACHABLE_FOR), Ejection::Unreachable)
        } else {
            (breaker.opened_at(), Ejection::Breaker)
        };
        match self.fit_or_full(now) {
            Fitness::Fit | Fitness::PushesBack => Fitness::Ejected { since, by },
            fitness => fitness,
        }
    }

    fn fit_or_full(&self, now: Now) -> Fitness {
        match self.spec.max_concurrent {
            Some(most) if self.load() >= most.get() => Fitness::Full,
            _ if self.live.pushes_back_until.load(Ordering::Relaxed) > now.mono_nanos() => {
                Fitness::PushesBack
            }
            _ => Fitness::Fit,
        }
    }

    /// Notes that a request could not connect: ejects the worker at once and requests a probe. `gone`: the connection was
    /// refused, so no process listens.
    pub fn mark_unreachable(&self, now: Now, gone: bool) {
        let until = (now + UNREACHABLE_FOR).mono_nanos();
        self.live.unreachable_until.store(until, Ordering::Relaxed);
        self.live.health.lock().mark_unreachable(gone);
        self.live.last_unreachable.store(now.mono_nanos(), Ordering::Relaxed);
        self.live.probe_requested.store(true, Ordering::Relaxed);
    }

    /// Notes that the overloaded worker refused a request: others are preferred for `time`, or until a request succeeds.
    pub fn push_back(&self, now: Now, time: Duration) {
        self.live.pushes_back_until.store((now + time).mono_nanos(), Ordering::Relaxed);
    }

    /// Requests a probe before its time, because something has changed on the worker.
    pub fn request_probe(&self) {
        self.live.probe_requested.store(true, Ordering::Relaxed);
    }

    /// Whether a probe was requested before its time. Clears the request.
    #[must_use]
    pub fn take_probe_request(&self) -> bool {
        self.live.probe_requested.load(Ordering::Relaxed)
            && self.live.probe_requested.swap(false, Ordering::Relaxed)
    }
}

impl LiveState {
    pub(super) fn probed_state(&self) -> WorkerState {
        match self.state.load(Ordering::Relaxed) {
            0 => WorkerState::Pending,
            1 => WorkerState::Ready,
            2 => WorkerState::NotReady,
            3 => WorkerState::Failed,
            _ => WorkerState::Draining,
        }
    }

    /// Runs `count` on the health under its lock and publishes the resulting state.
    pub(super) fn with_health<T>(&self, count: impl FnOnce(&mut Health) -> T) -> T {
        let mut health = self.health.lock();
        let counted = count(&mut health);
        self.state.store(health.state() as u8, Ordering::Relaxed);
        counted
    }

    /// Stores and counts a failure. Returns whether its cause differs from that of the last one. A failed probe is kept until
    /// a probe succeeds: that the models can't be read either says no more.
    pub(super) fn note_failure(&self, failure: Failure) -> bool {
        self.metrics.count_failed_probe(failure.cause);
        let mut last = self.failure.lock();
        if failure.is_discovery && last.as_ref().is_some_and(|last| !last.is_discovery) {
            return false;
        }
        let shown = |failure: &Failure| (failure.is_discovery, failure.cause, failure.status);
        let is_new = last.as_ref().map(shown) != Some(shown(&failure));
        *last = Some(failure);
        is_new
    }

    /// Clears the last failure. `probed_only`: not if it is that the models could not be read.
    pub(super) fn clear_failure(&self, probed_only: bool) {
        self.failure.lock().take_if(|failure| !(probed_only && failure.is_discovery));
    }

    /// Ends the ejection by a connect error.
    pub(super) fn mark_reachable(&self) {
        self.unreachable_until.store(0, Ordering::Relaxed);
    }

    /// The signal that aborts the requests in flight.
    pub(super) fn abort(&self) -> &AbortSignal {
        &self.abort
    }

    pub(super) fn show_breaker(&self, mode: BreakerMode) {
        self.breaker_mode.store(mode as u8, Ordering::Relaxed);
        self.metrics.show_breaker(mode);
    }
}
