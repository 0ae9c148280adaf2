//! The account of a dispatched request: its place on the worker and its permit, and the verdict on the worker at its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smg_routing::fleet::{Fleet, InFlight, Outcome};
use smg_routing::limit::Permit;
use smg_routing::policies::{Ending, Entry};
use smg_runtime::clock::Clock;
use smg_types::ids::WorkerId;
use tracing::warn;

use super::feedback::Usage;

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
    /// The part of the prompt that the worker's cache was expected to hold, 0..=1; taken when the answer has reported
    /// it.
    pub(super) expected: Option<f32>,
}

/// The number of tokens from which a prompt is long enough that engines, which cache in blocks, should have some of it.
/// Their report on a shorter prompt proves nothing.
const LONG_PROMPT: u64 = 64;

impl Account {
    /// Inspects a piece of the answer.
    pub(super) fn observe(&mut self, piece: &Bytes) {
        let Some(usage) = self.expected.and_then(|_| Usage::in_piece(piece)) else { return };
        let Some(expected) = self.expected.take() else { return };
        let predicted = (f64::from(expected) * usage.prompt as f64) as u64;
        self.entry.count_cached(predicted, usage.cached);
        if expected >= 0.5
            && usage.prompt >= LONG_PROMPT
            && self.fleet.report_cached_prompt(self.worker, usage.is_about(expected))
        {
            warn!(worker = %self.worker, "little of several prompts was in its cache: taken for cold");
        }
    }

    pub(super) fn settle(self, ending: Ending, outcome: Outcome) {
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
