//! One worker: its spec, its models, and the state that changes with each request.
//!
//! A [`Worker`] is immutable and belongs to a snapshot. All snapshots of one worker share one [`LiveState`], which holds
//! counters, breaker and health. [`InFlight`] is a guard that counts one request: its drop decrements the count, so the count
//! returns to zero on every path.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;

use super::abort::{AbortSignal, Registration};
use super::breaker::{Breaker, BreakerMode, Outcome, Ticket};
use super::config::{BreakerConfig, Config};
use super::failure::Failure;
use super::fitness::{Fitness, Override};
use super::health::{Health, WorkerState};
use super::metrics::WorkerMetrics;
use super::model_objects::ModelObjects;

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
    in_flight: AtomicU32,
    state: AtomicU8,
    /// A request could not connect: the worker is ejected until this time or until a good probe; 0: it is not.
    unreachable_until: AtomicU64,
    /// The worker refused a request because it is overloaded: other workers are preferred until this time.
    pushes_back_until: AtomicU64,
    pub(super) probe_requested: AtomicBool,
    /// The worker's engine says that it sleeps.
    pub(super) sleeping: AtomicBool,
    breaker_mode: AtomicU8,
    /// Moving average of the time to the head of a response, in nanoseconds; 0: no response yet.
    latency_nanos: AtomicU64,
    breaker: Mutex<Breaker>,
    health: Mutex<Health>,
    abort: AbortSignal,
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
    /// Prompts in a row of which the worker had far less in its cache than expected.
    pub(super) uncached_prompts: AtomicU8,
    /// Requests that other routers have in flight on the worker.
    pub(super) remote_in_flight: AtomicU32,
    /// Other routers probe the worker, so this one need not.
    pub(super) probed_elsewhere: AtomicBool,
    /// Health by the probes of other routers: 0 no report, 1 bad, 2 good.
    pub(super) remote_health: AtomicU8,
    /// `RemoteView::breaker` as a number; 0: closed.
    pub(super) remote_breaker: AtomicU8,
    metrics: WorkerMetrics,
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
            uncached_prompts: AtomicU8::new(0),
            remote_in_flight: AtomicU32::new(0),
            probed_elsewhere: AtomicBool::new(false),
            remote_health: AtomicU8::new(0),
            remote_breaker: AtomicU8::new(0),
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
        if self.draining || self.models == Models::Unknown {
            return Fitness::Out;
        }
        match self.active_override(now) {
            Some(given) if given.healthy => return self.fit_or_full(now),
            Some(_) => return Fitness::Out,
            None => {}
        }
        if self.live.probed_state() != WorkerState::Ready
            || self.live.sleeping.load(Ordering::Relaxed)
        {
            return Fitness::Out;
        }
        let unreachable = self.live.unreachable_until.load(Ordering::Relaxed) > now.mono_nanos();
        let mode = self.live.breaker_mode.load(Ordering::Relaxed);
        if !unreachable && mode == BreakerMode::Closed as u8 {
            if !self.live.fails_remotely(now) {
                return self.fit_or_full(now);
            }
            return match self.fit_or_full(now) {
                Fitness::Fit | Fitness::PushesBack => {
                    Fitness::Ejected { since: now.mono, unreachable: false }
                }
                fitness => fitness,
            };
        }
        let breaker = self.live.breaker.lock();
        if !unreachable && breaker.admits(now.mono, config) {
            return self.fit_or_full(now);
        }
        let since = if unreachable {
            let until = self.live.unreachable_until.load(Ordering::Relaxed);
            Duration::from_nanos(until).saturating_sub(UNREACHABLE_FOR)
        } else {
            breaker.opened_at()
        };
        match self.fit_or_full(now) {
            Fitness::Fit | Fitness::PushesBack => Fitness::Ejected { since, unreachable },
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

    /// Counts a request as in flight. `None`: since the pick the worker reached its `max_concurrent`, or its half-open breaker
    /// let another request through. With `anyway` the breaker is ignored.
    #[must_use]
    pub fn begin(&self, now: Now, config: &BreakerConfig, anyway: bool) -> Option<InFlight> {
        let most = self.spec.max_concurrent.map_or(u32::MAX, |most| {
            most.get().saturating_sub(self.live.remote_in_flight.load(Ordering::Relaxed))
        });
        let taken = self
            .live
            .in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| (n < most).then(|| n + 1));
        if taken.is_err() {
            return None;
        }
        self.live.metrics.in_flight.inc();
        // From here on the drop of the guard decrements the count.
        let mut guard = InFlight {
            live: Arc::clone(&self.live),
            ticket: None,
            registration: Registration::default(),
        };
        let closed = self.live.breaker_mode.load(Ordering::Relaxed) == BreakerMode::Closed as u8;
        let forced_healthy = self.active_override(now).is_some_and(|given| given.healthy);
        if !closed {
            let mut breaker = self.live.breaker.lock();
            let ticket = match breaker.begin(now.mono, config) {
                Some(ticket) => ticket,
                None if anyway || forced_healthy => breaker.begin_anyway(),
                None => return None,
            };
            guard.ticket = Some(ticket);
            let mode = breaker.mode(now.mono, config);
            self.live.show_breaker(mode);
        }
        Some(guard)
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

    /// Stores and counts a failure. Returns whether its cause differs from that of the last one.
    pub(super) fn note_failure(&self, failure: Failure) -> bool {
        self.metrics.count_failed_probe(failure.cause);
        let mut last = self.failure.lock();
        let known = last.as_ref().map(|last| (last.cause, last.status));
        let is_new = known != Some((failure.cause, failure.status));
        *last = Some(failure);
        is_new
    }

    /// Clears the last failure.
    pub(super) fn clear_failure(&self) {
        *self.failure.lock() = None;
    }

    /// Ends the ejection by a connect error.
    pub(super) fn mark_reachable(&self) {
        self.unreachable_until.store(0, Ordering::Relaxed);
    }

    /// The signal that aborts the requests in flight.
    pub(super) fn abort(&self) -> &AbortSignal {
        &self.abort
    }

    fn show_breaker(&self, mode: BreakerMode) {
        self.breaker_mode.store(mode as u8, Ordering::Relaxed);
        self.metrics.show_breaker(mode);
    }
}

/// A guard that counts one request on a worker from before it is sent until its response has ended. Dropping it ends the
/// count without an outcome; [`InFlight::end`] reports the outcome first.
#[derive(Debug)]
#[must_use]
pub struct InFlight {
    live: Arc<LiveState>,
    /// `None`: the request began while the breaker was closed, as most do.
    ticket: Option<Ticket>,
    registration: Registration,
}

impl InFlight {
    /// Ready once the worker was deleted at its drain deadline: the request must end.
    pub fn poll_abort(&mut self, cx: &Context<'_>) -> Poll<()> {
        self.live.abort.poll(&mut self.registration, cx)
    }

    /// Whether the worker was deleted at its drain deadline.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.live.abort.is_aborted()
    }

    /// Adds the time from sending the request to the head of the response to the moving average.
    pub fn record_head_latency(&self, elapsed: Duration) {
        let sample = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX).max(1);
        let old = self.live.latency_nanos.load(Ordering::Relaxed);
        // A weight of 1/8: a lost update between two threads costs one sample.
        let new = if old == 0 { sample } else { old - old / 8 + sample / 8 };
        self.live.latency_nanos.store(new.max(1), Ordering::Relaxed);
    }

    /// Reports the outcome of the request to the breaker and ends the count. Returns the breaker's new mode if it changed.
    pub fn end(
        mut self,
        outcome: Outcome,
        now: Now,
        config: &BreakerConfig,
    ) -> Option<BreakerMode> {
        self.live.metrics.count(outcome);
        match outcome {
            Outcome::Success => {
                self.live.last_success.store(now.mono_nanos(), Ordering::Relaxed);
                if self.live.pushes_back_until.load(Ordering::Relaxed) != 0 {
                    self.live.pushes_back_until.store(0, Ordering::Relaxed);
                }
            }
            Outcome::Failure => {
                self.live.last_success.store(0, Ordering::Relaxed);
                // A connect error has set the time to `now` just before: keep it. Another failure clears it.
                if self.live.last_unreachable.load(Ordering::Relaxed) != now.mono_nanos() {
                    self.live.last_unreachable.store(0, Ordering::Relaxed);
                }
            }
            Outcome::Neutral => {}
        }
        let ticket = match (self.ticket.take(), outcome) {
            (Some(ticket), _) => Some(ticket),
            (None, Outcome::Failure) => None,
            // The usual case takes no lock.
            (None, Outcome::Success | Outcome::Neutral) => return None,
        };
        let mut breaker = self.live.breaker.lock();
        let ticket = match ticket {
            Some(ticket) => ticket,
            None if self.live.breaker_mode.load(Ordering::Relaxed) == BreakerMode::Closed as u8 => {
                breaker.begin_anyway()
            }
            // The breaker has opened since the request began: an older failure adds nothing.
            None => return None,
        };
        let suspected = self.live.has_remote_failures();
        let changed = breaker.report(ticket, outcome, now.mono, config, suspected);
        if let Some(mode) = changed {
            self.live.show_breaker(mode);
        }
        changed
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.live.abort.deregister(&mut self.registration);
        if let Some(ticket) = self.ticket.take() {
            self.live.breaker.lock().release(ticket);
        }
        self.live.metrics.in_flight.dec();
        let before = self.live.in_flight.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "a request was counted down twice");
    }
}
