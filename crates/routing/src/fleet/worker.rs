//! One worker: what it is told to be, what it turned out to be, and what is going on with it.
//!
//! A [`Worker`] is immutable and part of a snapshot; what changes with every request is in [`Live`], which all versions
//! of the same worker share. In-flight counts are given back by a guard, so that they return to zero on every path.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;

use super::breaker::{Breaker, Mode, Outcome, Ticket};
use super::config::{BreakerConfig, Config};
use super::cut::{Cut, Place};
use super::failure::Failure;
use super::health::{Health, State};
use super::metrics::WorkerMetrics;

/// The models that a worker serves, as far as known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Models {
    /// Not told and not yet read from the worker.
    Unknown,
    /// The worker has no list: it takes whatever is sent.
    Any,
    /// Exactly these.
    Known(Vec<ModelId>),
}

/// What an operator says of a worker, above all evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// Serve from it or not, whatever probes and breaker say.
    pub healthy: bool,
    /// Why, for people.
    pub reason: String,
    /// Until when (`Now::mono`); `None`: until it is lifted.
    pub until: Option<Duration>,
}

/// A worker within one snapshot of the fleet.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Its id, derived from its URL.
    pub id: WorkerId,
    /// What it is told to be.
    pub spec: Arc<WorkerSpec>,
    /// What it serves.
    pub models: Models,
    /// An operator's verdict.
    pub verdict: Option<Override>,
    /// Takes no new requests.
    pub draining: bool,
    /// Leaves as soon as nothing is in flight, at the latest then (`Now::mono`).
    pub leaves_by: Option<Duration>,
    /// Grows whenever its cache is taken for cold.
    pub cache_epoch: u32,
    /// Worker's own words about its maximum number of tokens and the like, as read; shown by the API.
    pub info: Option<Arc<serde_json::Value>>,
    live: Arc<Live>,
}

/// The part of a worker that changes with every request.
#[derive(Debug)]
pub(super) struct Live {
    in_flight: AtomicU32,
    state: AtomicU8,
    /// A request found nobody listening: out until this time (`Now::mono_nanos`), or until a good probe.
    unreachable_until: AtomicU64,
    /// It has said that it has too much to do: others come first until this time (`Now::mono_nanos`).
    pushes_back_until: AtomicU64,
    pub(super) probe_wanted: AtomicBool,
    breaker_mode: AtomicU8,
    /// Time to the head of a response, exponentially weighted, in nanoseconds; 0: nothing known.
    latency_nanos: AtomicU64,
    breaker: Mutex<Breaker>,
    health: Mutex<Health>,
    cut: Cut,
    /// Looks at what it serves that failed, in a row.
    failed_looks: AtomicU32,
    /// Why the last probe or read of its models failed; `None`: it went well.
    failure: Mutex<Option<Failure>>,
    /// When a request was last served well (`Now::mono_nanos`); 0: none has, or one has failed since.
    pub(super) last_success: AtomicU64,
    /// When a connection last did not come about (`Now::mono_nanos`); 0: the last failure was another.
    pub(super) last_unreachable: AtomicU64,
    /// This router's own last probe was not good.
    pub(super) own_bad: AtomicBool,
    /// Times that this router found its cache cold.
    pub(super) own_colds: AtomicU32,
    /// Prompts in a row of which far less was cached than should have been.
    pub(super) uncached: AtomicU8,
    /// Requests that other routers have in flight on it.
    pub(super) elsewhere: AtomicU32,
    /// Other routers ask it how it is, and this one need not.
    pub(super) asked_elsewhere: AtomicBool,
    /// What they say: 0 nothing, 1 bad, 2 good.
    pub(super) heard_health: AtomicU8,
    /// A `Mode` of some other router's breaker; 0: all are closed.
    pub(super) heard_breaker: AtomicU8,
    metrics: WorkerMetrics,
}

/// How long a connect error keeps a worker out when no probe says otherwise.
const UNREACHABLE_FOR: Duration = Duration::from_secs(5);

/// A worker that could not be read so many times does not make others wait for what it may have.
const MOST_LOOKS: u32 = 5;

impl Worker {
    pub(super) fn new(spec: Arc<WorkerSpec>, config: &Config, metrics: WorkerMetrics) -> Self {
        let mut health = Health::default();
        if spec.health.disabled || config.health.disabled {
            health.assume_good();
        }
        let models = match spec.models.as_slice() {
            [] => Models::Unknown,
            told => Models::Known(told.to_vec()),
        };
        let live = Live {
            in_flight: AtomicU32::new(0),
            state: AtomicU8::new(health.state() as u8),
            unreachable_until: AtomicU64::new(0),
            pushes_back_until: AtomicU64::new(0),
            probe_wanted: AtomicBool::new(false),
            breaker_mode: AtomicU8::new(Mode::Closed as u8),
            latency_nanos: AtomicU64::new(0),
            breaker: Mutex::default(),
            health: Mutex::new(health),
            cut: Cut::default(),
            failed_looks: AtomicU32::new(0),
            failure: Mutex::default(),
            last_success: AtomicU64::new(0),
            last_unreachable: AtomicU64::new(0),
            own_bad: AtomicBool::new(false),
            own_colds: AtomicU32::new(0),
            uncached: AtomicU8::new(0),
            elsewhere: AtomicU32::new(0),
            asked_elsewhere: AtomicBool::new(false),
            heard_health: AtomicU8::new(0),
            heard_breaker: AtomicU8::new(0),
            metrics,
        };
        Self {
            id: spec.id(),
            spec,
            models,
            verdict: None,
            draining: false,
            leaves_by: None,
            cache_epoch: 0,
            info: None,
            live: Arc::new(live),
        }
    }

    pub(super) fn live(&self) -> &Live {
        &self.live
    }

    /// Requests in flight on it, sent by this router.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.live.in_flight.load(Ordering::Relaxed)
    }

    /// Where it stands in its life.
    #[must_use]
    pub fn state(&self) -> State {
        if self.draining {
            return State::Draining;
        }
        match self.live.probed_state() {
            State::Ready if self.models == Models::Unknown => State::Pending,
            state => state,
        }
    }

    /// Whether what it serves, which is not known, may be known any moment: it is not out for any reason, and has not
    /// refused to tell again and again.
    pub(super) fn may_tell(&self) -> bool {
        !self.draining
            && matches!(self.live.probed_state(), State::Pending | State::Ready)
            && self.live.failed_looks.load(Ordering::Relaxed) < MOST_LOOKS
    }

    /// What its breaker does with requests.
    #[must_use]
    pub fn breaker_mode(&self, now: Now, config: &BreakerConfig) -> Mode {
        if self.live.breaker_mode.load(Ordering::Relaxed) == Mode::Closed as u8 {
            return Mode::Closed;
        }
        self.live.breaker.lock().mode(now.mono, config)
    }

    /// Time to the head of its responses, exponentially weighted.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        let nanos = self.live.latency_nanos.load(Ordering::Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }

    /// Why this router's last probe of it, or the last read of its models, failed; `None`: it went well, or another
    /// router asks it.
    #[must_use]
    pub fn last_failure(&self) -> Option<Failure> {
        self.live.failure.lock().clone()
    }

    /// An operator's verdict, while it holds.
    #[must_use]
    pub fn verdict_at(&self, now: Now) -> Option<&Override> {
        self.verdict.as_ref().filter(|verdict| verdict.until.is_none_or(|until| now.mono < until))
    }

    /// Whether it may be picked, and if not, whether that is only what traffic says of it.
    #[must_use]
    pub fn fitness(&self, now: Now, config: &BreakerConfig) -> Fitness {
        if self.draining || self.models == Models::Unknown {
            return Fitness::Out;
        }
        match self.verdict_at(now) {
            Some(verdict) if verdict.healthy => return self.room(now),
            Some(_) => return Fitness::Out,
            None => {}
        }
        if self.live.probed_state() != State::Ready {
            return Fitness::Out;
        }
        let unreachable = self.live.unreachable_until.load(Ordering::Relaxed) > now.mono_nanos();
        let mode = self.live.breaker_mode.load(Ordering::Relaxed);
        if !unreachable && mode == Mode::Closed as u8 {
            if !self.live.is_said_to_fail(now) {
                return self.room(now);
            }
            return match self.room(now) {
                Fitness::Fit | Fitness::PushesBack => {
                    Fitness::Ejected { since: now.mono, unreachable: false }
                }
                fitness => fitness,
            };
        }
        let breaker = self.live.breaker.lock();
        if !unreachable && breaker.admits(now.mono, config) {
            return self.room(now);
        }
        let since = if unreachable {
            let until = self.live.unreachable_until.load(Ordering::Relaxed);
            Duration::from_nanos(until).saturating_sub(UNREACHABLE_FOR)
        } else {
            breaker.opened_at()
        };
        match self.room(now) {
            Fitness::Fit | Fitness::PushesBack => Fitness::Ejected { since, unreachable },
            fitness => fitness,
        }
    }

    fn room(&self, now: Now) -> Fitness {
        match self.spec.max_concurrent {
            Some(most) if self.load() >= most.get() => Fitness::Full,
            _ if self.live.pushes_back_until.load(Ordering::Relaxed) > now.mono_nanos() => {
                Fitness::PushesBack
            }
            _ => Fitness::Fit,
        }
    }

    /// Takes a place on the worker; `None`: it filled up, or its breaker's one probe is under way, since it was picked.
    /// `anyway`: in spite of its breaker.
    #[must_use]
    pub fn begin(&self, now: Now, config: &BreakerConfig, anyway: bool) -> Option<InFlight> {
        let most = self.spec.max_concurrent.map_or(u32::MAX, |most| {
            most.get().saturating_sub(self.live.elsewhere.load(Ordering::Relaxed))
        });
        let taken = self
            .live
            .in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| (n < most).then(|| n + 1));
        if taken.is_err() {
            return None;
        }
        self.live.metrics.in_flight.inc();
        // From here on the guard gives the place back.
        let mut guard =
            InFlight { live: Arc::clone(&self.live), ticket: None, place: Place::default() };
        let closed = self.live.breaker_mode.load(Ordering::Relaxed) == Mode::Closed as u8;
        let overridden = self.verdict_at(now).is_some_and(|verdict| verdict.healthy);
        if !closed {
            let mut breaker = self.live.breaker.lock();
            let ticket = match breaker.begin(now.mono, config) {
                Some(ticket) => ticket,
                None if anyway || overridden => breaker.begin_anyway(),
                None => return None,
            };
            guard.ticket = Some(ticket);
            let mode = breaker.mode(now.mono, config);
            self.live.show_breaker(mode);
        }
        Some(guard)
    }

    /// Notes that nobody listened (`gone`), or that no connection came about: it is out at once, and a probe is wanted.
    pub fn mark_unreachable(&self, now: Now, gone: bool) {
        let until = (now + UNREACHABLE_FOR).mono_nanos();
        self.live.unreachable_until.store(until, Ordering::Relaxed);
        self.live.health.lock().mark_unreachable(gone);
        self.live.last_unreachable.store(now.mono_nanos(), Ordering::Relaxed);
        self.live.probe_wanted.store(true, Ordering::Relaxed);
    }

    /// Notes that the worker has refused a request because it has too much to do: for `time`, others come first.
    pub fn push_back(&self, now: Now, time: Duration) {
        self.live.pushes_back_until.store((now + time).mono_nanos(), Ordering::Relaxed);
    }

    /// Whether somebody wants a probe before its time; asking clears the wish.
    #[must_use]
    pub fn take_probe_wish(&self) -> bool {
        self.live.probe_wanted.load(Ordering::Relaxed)
            && self.live.probe_wanted.swap(false, Ordering::Relaxed)
    }

    /// Counts a request by how it ended, for metrics.
    pub fn count(&self, outcome: Outcome) {
        self.live.metrics.count(outcome);
    }
}

/// Whether a worker may be picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fitness {
    /// It may.
    Fit,
    /// It may, but it has too much to do: others come first.
    PushesBack,
    /// It is at its own limit.
    Full,
    /// Only traffic speaks against it: its breaker, or a connect error.
    Ejected {
        /// Since when (`Now::mono`).
        since: Duration,
        /// Nobody listened at the last attempt.
        unreachable: bool,
    },
    /// Probes, an operator or its own end speak against it.
    Out,
}

impl Live {
    pub(super) fn probed_state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            0 => State::Pending,
            1 => State::Ready,
            2 => State::NotReady,
            3 => State::Failed,
            _ => State::Draining,
        }
    }

    /// Runs `count` on its health and shows the state that follows.
    pub(super) fn with_health<T>(&self, count: impl FnOnce(&mut Health) -> T) -> T {
        let mut health = self.health.lock();
        let counted = count(&mut health);
        self.state.store(health.state() as u8, Ordering::Relaxed);
        counted
    }

    /// Remembers a failure; whether its cause is another one than that of the last.
    pub(super) fn note_failure(&self, failure: Failure) -> bool {
        self.metrics.count_failed_probe(failure.cause);
        let mut last = self.failure.lock();
        let known = last.as_ref().map(|last| (last.cause, last.status));
        let is_new = known != Some((failure.cause, failure.status));
        *last = Some(failure);
        is_new
    }

    pub(super) fn clear_failure(&self) {
        *self.failure.lock() = None;
    }

    /// What it serves could not be read.
    pub(super) fn count_failed_look(&self) {
        self.failed_looks.fetch_add(1, Ordering::Relaxed);
    }

    /// A probe found it listening.
    pub(super) fn mark_reachable(&self) {
        self.unreachable_until.store(0, Ordering::Relaxed);
    }

    /// Ends what is in flight.
    pub(super) fn cut(&self) -> &Cut {
        &self.cut
    }

    fn show_breaker(&self, mode: Mode) {
        self.breaker_mode.store(mode as u8, Ordering::Relaxed);
        self.metrics.show_breaker(mode);
    }
}

/// A place on a worker: counts one request from before it is sent until its response has ended. Dropping it gives the
/// place back and says nothing of the worker; [`InFlight::end`] says how it went.
#[derive(Debug)]
#[must_use]
pub struct InFlight {
    live: Arc<Live>,
    /// `None`: begun while the breaker was closed, which is what most are.
    ticket: Option<Ticket>,
    place: Place,
}

impl InFlight {
    /// Ready once the worker was taken away with the request still in flight on it: then it must end.
    pub fn poll_cut(&mut self, cx: &Context<'_>) -> Poll<()> {
        self.live.cut.poll(&mut self.place, cx)
    }

    /// Whether the worker was taken away.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.live.cut.is_over()
    }

    /// The head of the response arrived after `elapsed`.
    pub fn head_after(&self, elapsed: Duration) {
        let sample = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX).max(1);
        let old = self.live.latency_nanos.load(Ordering::Relaxed);
        // A weight of 1/8: a lost update between two threads costs one sample.
        let new = if old == 0 { sample } else { old - old / 8 + sample / 8 };
        self.live.latency_nanos.store(new.max(1), Ordering::Relaxed);
    }

    /// The request ended. Returns the breaker's new mode if that changed it.
    pub fn end(mut self, outcome: Outcome, now: Now, config: &BreakerConfig) -> Option<Mode> {
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
                // Whoever found it unreachable has just said so, at this very time.
                if self.live.last_unreachable.load(Ordering::Relaxed) != now.mono_nanos() {
                    self.live.last_unreachable.store(0, Ordering::Relaxed);
                }
            }
            Outcome::Neutral => {}
        }
        let ticket = match (self.ticket.take(), outcome) {
            (Some(ticket), _) => Some(ticket),
            (None, Outcome::Failure) => None,
            // The usual case costs no lock.
            (None, Outcome::Success | Outcome::Neutral) => return None,
        };
        let mut breaker = self.live.breaker.lock();
        let ticket = match ticket {
            Some(ticket) => ticket,
            None if self.live.breaker_mode.load(Ordering::Relaxed) == Mode::Closed as u8 => {
                breaker.begin_anyway()
            }
            // It opened meanwhile: a failure of before says nothing new.
            None => return None,
        };
        let suspected = self.live.is_suspected();
        let changed = breaker.report(ticket, outcome, now.mono, config, suspected);
        if let Some(mode) = changed {
            self.live.show_breaker(mode);
        }
        changed
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.live.cut.leave(&mut self.place);
        if let Some(ticket) = self.ticket.take() {
            self.live.breaker.lock().release(ticket);
        }
        self.live.metrics.in_flight.dec();
        let before = self.live.in_flight.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "a place was given back twice");
    }
}
