//! Requests in flight. [`InFlight`] is a guard that counts one request on a worker, and the tokens of its prompt until they are
//! computed: its drop ends both counts, so they return to zero on every path.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use smg_types::now::Now;

use super::abort::Registration;
use super::breaker::{BreakerMode, Outcome, Ticket};
use super::config::BreakerConfig;
use super::prefill::CachedTokens;
use super::worker::{LiveState, Worker};
use crate::speed::{FirstToken, Speed};

impl Worker {
    /// Counts a request as in flight. `None`: since the pick the worker reached its `max_concurrent`, or its half-open breaker
    /// let another request through. With `anyway` the breaker is ignored.
    #[must_use]
    pub fn begin(&self, now: Now, config: &BreakerConfig, anyway: bool) -> Option<InFlight> {
        let most = self.spec.max_concurrent.map_or(u32::MAX, |most| {
            most.get().saturating_sub(self.live().remote_in_flight.load(Ordering::Relaxed))
        });
        let taken = self
            .live()
            .in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| (n < most).then(|| n + 1));
        if taken.is_err() {
            return None;
        }
        self.live().metrics.in_flight.inc();
        // From here on the drop of the guard decrements the count.
        let mut guard = InFlight {
            live: self.live_arc(),
            ticket: None,
            registration: Registration::default(),
            prompt: None,
        };
        let closed = self.live().breaker_mode.load(Ordering::Relaxed) == BreakerMode::Closed as u8;
        let forced_healthy = self.active_override(now).is_some_and(|given| given.healthy);
        if !closed {
            let mut breaker = self.live().breaker.lock();
            let ticket = match breaker.begin(now.mono, config) {
                Some(ticket) => ticket,
                None if anyway || forced_healthy => breaker.begin_anyway(),
                None => return None,
            };
            guard.ticket = Some(ticket);
            let mode = breaker.mode(now.mono, config);
            self.live().show_breaker(mode);
        }
        Some(guard)
    }

    /// Prompt tokens that wait on the worker: this router's and those that the others last reported.
    #[must_use]
    pub fn waiting_tokens(&self, now: Now) -> u32 {
        self.live().prefill.waiting(now)
    }

    /// The worker's speed, if an answer has shown it.
    #[must_use]
    pub fn speed(&self) -> Option<Speed> {
        self.live().prefill.learnt_speed()
    }

    /// The expected time to the first token of a request with an empty prompt, in seconds: what waits on the worker, at its speed.
    /// `None`: no answer has shown the speed.
    #[must_use]
    pub fn expected_wait(&self, now: Now) -> Option<f32> {
        let waiting = self.waiting_tokens(now) as f32;
        self.speed().map(|speed| speed.expected(waiting, self.load()))
    }

    /// How many tokens of the prompts that this router has sent were in the worker's cache, by the worker's reports.
    #[must_use]
    pub fn cached_tokens(&self) -> CachedTokens {
        self.live().prefill.cached()
    }

    /// Tokens per byte of prompt.
    #[must_use]
    pub fn tokens_per_byte(&self) -> f32 {
        self.live().prefill.tokens_per_byte()
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
    /// The prompt; `None` until it is sent.
    prompt: Option<Prompt>,
}

/// A prompt that was sent to a worker.
#[derive(Debug, Clone, Copy)]
struct Prompt {
    /// Tokens that the worker was expected to have to compute.
    tokens: u32,
    /// Tokens that waited on the worker before them.
    ahead: u32,
    /// Requests in flight on the worker before this one.
    running: u32,
    sent_at: Now,
    /// The expected time to the first token, in seconds.
    expected: f32,
    /// Whether the beginning of the answer will show that the prompt was computed.
    streamed: bool,
    /// The time to the first token, once it has come.
    first_token: Option<Duration>,
}

/// The time to the first token of an answer, as it was expected and as it was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeToFirstToken {
    /// Seconds that were expected when the request was sent.
    pub expected: f64,
    /// Seconds that it took.
    pub actual: f64,
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

    /// Notes that the request is sent now, and counts the `tokens` of its prompt that the worker is expected to compute as waiting:
    /// until [`InFlight::first_token`] if the answer is `streamed`, else for as long as the worker should need.
    pub fn send_prompt(&mut self, tokens: u32, streamed: bool, now: Now) {
        let prefill = &self.live.prefill;
        let ahead = prefill.waiting(now);
        let remote = self.live.remote_in_flight.load(Ordering::Relaxed);
        let running = self.live.in_flight.load(Ordering::Relaxed).saturating_add(remote);
        let running = running.saturating_sub(1);
        let expected = prefill.speed().expected(ahead.saturating_add(tokens) as f32, running);
        if streamed {
            prefill.begin_streamed(tokens, now);
        } else {
            prefill.begin_whole(tokens, now);
        }
        self.prompt = Some(Prompt {
            tokens,
            ahead,
            running,
            sent_at: now,
            expected,
            streamed,
            first_token: None,
        });
    }

    /// Notes the first token of a streamed answer: the prompt waits no longer. Only the first call has an effect. Returns the time
    /// that it took.
    pub fn first_token(&mut self, now: Now) -> Option<TimeToFirstToken> {
        let prompt = self.prompt.as_mut().filter(|p| p.streamed && p.first_token.is_none())?;
        let elapsed = now.since(prompt.sent_at);
        prompt.first_token = Some(elapsed);
        self.live.prefill.first_token(prompt.tokens, now);
        let actual = elapsed.as_secs_f64();
        Some(TimeToFirstToken { expected: prompt.expected.into(), actual })
    }

    /// Learns the worker's speed from the answer, if its first token was seen. `computed`: the tokens of the prompt that the worker
    /// reports to have computed; `None`: it reports none, so what was expected counts.
    pub fn learn_speed(&self, computed: Option<u32>) {
        let Some(prompt) = self.prompt else { return };
        let Some(first_token) = prompt.first_token else { return };
        let tokens = computed.unwrap_or(prompt.tokens);
        self.live.prefill.learn(FirstToken {
            seconds: first_token.as_secs_f64(),
            tokens: f64::from(prompt.ahead) + f64::from(tokens),
            running: f64::from(prompt.running),
        });
    }

    /// Learns how many tokens a byte of prompt has.
    pub fn learn_tokens(&self, tokens: u64, bytes: usize) {
        self.live.prefill.learn_tokens(tokens, bytes);
    }

    /// Counts a prompt of `all` tokens of which the worker reports that `cached` were in its cache.
    pub fn count_cached(&self, all: u64, cached: u64) {
        self.live.prefill.count_cached(all, cached);
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
        if let Some(prompt) = self.prompt.filter(|p| p.streamed && p.first_token.is_none()) {
            self.live.prefill.end_streamed(prompt.tokens);
        }
        if let Some(ticket) = self.ticket.take() {
            self.live.breaker.lock().release(ticket);
        }
        self.live.metrics.in_flight.dec();
        let before = self.live.in_flight.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "a request was counted down twice");
        if before == 1 {
            self.live.prefill.clear_whole();
        }
    }
}
