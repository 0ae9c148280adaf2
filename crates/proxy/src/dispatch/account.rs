//! The account of a dispatched request: its place on the worker and its permit, and the verdict on the worker at its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smg_routing::fleet::{BreakerMode, Fleet, InFlight, Outcome};
use smg_routing::limit::Permit;
use smg_routing::policies::{Asked, Ending, Entry, PromptTokens};
use smg_routing::policy::Memory;
use smg_routing::prefix::Evicted;
use smg_runtime::clock::Clock;
use smg_types::ids::WorkerId;
use tracing::{info, warn};

use super::feedback;

/// The state that is settled when the response ends, in whatever way.
#[derive(Debug)]
pub(super) struct Account {
    /// The request in flight; `None` if the worker was judged by its head already.
    pub(super) in_flight: Option<InFlight>,
    pub(super) permit: Option<Permit>,
    pub(super) fleet: Arc<Fleet>,
    pub(super) entry: Arc<Entry>,
    pub(super) clock: Clock,
    pub(super) started: Duration,
    pub(super) worker: WorkerId,
    /// The request's id for the log. A copy, because the client's own is a slice of all that it sent.
    pub(super) request_id: Box<[u8]>,
    /// The verdict on the worker after a complete body.
    pub(super) outcome: Outcome,
    /// Whether the worker's answer is a 5xx.
    pub(super) is_error: bool,
    pub(super) first_byte_seen: bool,
    /// Whether the first piece of the answer shows that the prompt was computed.
    pub(super) streams: bool,
    /// Whether the answer is a response that the worker may store: its id is read from the first piece.
    pub(super) stores: bool,
    /// The earlier response, or the conversation, that the request goes on from.
    pub(super) goes_on_from: Option<Box<str>>,
    pub(super) memory: Arc<Memory>,
    /// What was known of the prompt.
    pub(super) asked: Asked,
    /// The tokens of the prompt, once the answer has reported them.
    pub(super) reported: Option<PromptTokens>,
}

impl Account {
    /// Inspects a piece of the answer.
    pub(super) fn observe(&mut self, piece: &Bytes) {
        if !self.first_byte_seen {
            self.first_byte_seen = true;
            let now = self.clock.now();
            if self.stores {
                let ids =
                    feedback::response_id(piece).into_iter().chain(self.goes_on_from.as_deref());
                ids.for_each(|id| self.memory.hold(id, self.worker, now));
            }
            let elapsed = now.mono.saturating_sub(self.started);
            self.entry.metrics.first_byte.observe(elapsed.as_secs_f64());
            if self.streams
                && let Some(time) = self.in_flight.as_mut().and_then(|guard| guard.first_token(now))
            {
                self.entry.metrics.compare_first_token(time);
            }
        }
        // A stream may report at its beginning and again, with the final counts, at its end.
        if let Some(tokens) = feedback::prompt_tokens(piece) {
            self.reported = Some(tokens);
        }
    }

    fn learn(&self) {
        let Some(in_flight) = self.in_flight.as_ref().filter(|_| !self.is_error) else { return };
        let evicted = self.entry.learn(self.worker, self.asked, self.reported, in_flight);
        if evicted == Evicted::All {
            let snapshot = self.fleet.snapshot();
            let url = snapshot
                .worker(self.worker)
                .map(|worker| tracing::field::display(&worker.spec.url));
            warn!(
                worker = %self.worker, url,
                "the worker has lost its prefix cache: it reports that little of three prompts was in it; perhaps it was restarted"
            );
            self.fleet.mark_cold(self.worker);
        }
    }

    pub(super) fn settle(self, ending: Ending, outcome: Outcome) {
        self.learn();
        let now = self.clock.now();
        let breaker = &self.fleet.config().breaker;
        if let Some(mode) = self.in_flight.and_then(|guard| guard.end(outcome, now, breaker)) {
            log_breaker(&self.fleet, self.worker, mode);
        }
        drop(self.permit);
        self.entry.metrics.count(ending);
        self.entry.metrics.duration.observe(now.mono.saturating_sub(self.started).as_secs_f64());
    }
}

/// One line on a worker whose breaker has changed by the outcome of a request.
pub(super) fn log_breaker(fleet: &Fleet, id: WorkerId, mode: BreakerMode) {
    let snapshot = fleet.snapshot();
    let url = snapshot.worker(id).map(|worker| tracing::field::display(&worker.spec.url));
    let breaker = mode.name();
    match mode {
        BreakerMode::Open => {
            let pause_secs = fleet.config().breaker.timeout.as_secs_f64();
            let advice = "the lines about failed attempts before this one, and the worker's log, have the cause; \
                --cb-failure-threshold and --cb-window-duration-secs say how many failures are too many";
            warn!(
                worker = %id, url, breaker, pause_secs, advice,
                "the worker gets no requests for a while, because too many have failed"
            );
        }
        BreakerMode::HalfOpen | BreakerMode::Closed => {
            info!(worker = %id, url, breaker, "the worker gets requests again, because they succeed");
        }
    }
}
