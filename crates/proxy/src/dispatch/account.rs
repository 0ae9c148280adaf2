//! The account of a dispatched request: its place on the worker and its permit, and the verdict on the worker at its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smg_routing::fleet::{Fleet, InFlight, Outcome};
use smg_routing::limit::Permit;
use smg_routing::policies::{Asked, Ending, Entry, PromptTokens};
use smg_routing::prefix::Evicted;
use smg_runtime::clock::Clock;
use smg_types::ids::WorkerId;
use tracing::warn;

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
            let elapsed = now.mono.saturating_sub(self.started);
            self.entry.metrics.first_byte.observe(elapsed.as_secs_f64());
            if self.streams
                && let Some(time) = self.in_flight.as_mut().and_then(|guard| guard.first_token(now))
            {
                self.entry.metrics.compare_first_token(time);
            }
        }
        // Answers to the end of a stream may report again, with the final counts.
        if let Some(tokens) = feedback::prompt_tokens(piece) {
            self.reported = Some(tokens);
        }
    }

    fn learn(&self) {
        let Some(in_flight) = self.in_flight.as_ref().filter(|_| !self.is_error) else { return };
        let evicted = self.entry.learn(self.worker, self.asked, self.reported, in_flight);
        if evicted == Evicted::All {
            warn!(worker = %self.worker, "the worker has lost its prefix cache: what it was sent before is forgotten");
            self.fleet.mark_cold(self.worker);
        }
    }

    pub(super) fn settle(self, ending: Ending, outcome: Outcome) {
        self.learn();
        let now = self.clock.now();
        let breaker = &self.fleet.config().breaker;
        if let Some(mode) = self.in_flight.and_then(|guard| guard.end(outcome, now, breaker)) {
            warn!(worker = %self.worker, breaker = mode.name(), "breaker changed");
        }
        drop(self.permit);
        self.entry.metrics.count(ending);
        self.entry.metrics.duration.observe(now.mono.saturating_sub(self.started).as_secs_f64());
    }
}
