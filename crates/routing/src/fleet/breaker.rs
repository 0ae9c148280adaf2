//! The circuit breaker of one worker. It judges the worker by the outcomes of requests.
//!
//! A closed breaker opens when `failure_threshold` failures fall into one window. An open breaker becomes half-open after its
//! timeout. A half-open breaker lets one request at a time through: `success_threshold` successes close it, one failure opens
//! it again. A [`Ticket`] remembers the breaker's epoch, so that the outcome of a request that began before the last change of
//! mode is ignored.

use std::collections::VecDeque;
use std::time::Duration;

use super::config::BreakerConfig;

/// The three modes of a circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum BreakerMode {
    /// All requests pass.
    Closed = 0,
    /// No request passes until the timeout is over.
    Open = 1,
    /// One request at a time passes.
    HalfOpen = 2,
}

impl BreakerMode {
    /// The name in the API and in logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// The outcome of a request, as far as it concerns the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The worker answered.
    Success,
    /// The worker failed.
    Failure,
    /// The outcome does not judge the worker: the client left, the worker rejected the request (4xx) or was overloaded, or the
    /// router itself ran short of a resource.
    Neutral,
}

/// The right to send one request. The caller returns it with [`Breaker::report`] or [`Breaker::release`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) struct Ticket {
    /// The breaker's epoch when it issued the ticket.
    epoch: u32,
    /// The ticket is for the one request that a half-open breaker lets through.
    probe: bool,
}

/// The state of a breaker. Times are `Now::mono`.
#[derive(Debug)]
pub(super) struct Breaker {
    mode: BreakerMode,
    /// Increases by 1 with each change of mode.
    epoch: u32,
    /// Times of the last failures while closed, at most `failure_threshold` of them.
    failures: VecDeque<Duration>,
    /// Time of the last change to open.
    opened_at: Duration,
    /// Successes since the breaker became half-open.
    successes: u32,
    /// The one request that a half-open breaker lets through is in flight.
    probing: bool,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            mode: BreakerMode::Closed,
            epoch: 0,
            failures: VecDeque::new(),
            opened_at: Duration::ZERO,
            successes: 0,
            probing: false,
        }
    }
}

impl Breaker {
    /// The mode at `now`. An open breaker whose timeout is over counts as half-open.
    #[must_use]
    pub(super) fn mode(&self, now: Duration, config: &BreakerConfig) -> BreakerMode {
        match self.mode {
            BreakerMode::Open if now.saturating_sub(self.opened_at) >= config.timeout => {
                BreakerMode::HalfOpen
            }
            mode => mode,
        }
    }

    /// Whether [`Breaker::begin`] would issue a ticket.
    #[must_use]
    pub(super) fn admits(&self, now: Duration, config: &BreakerConfig) -> bool {
        match self.mode(now, config) {
            BreakerMode::Closed => true,
            BreakerMode::Open => false,
            BreakerMode::HalfOpen => !self.probing,
        }
    }

    /// Issues a ticket for a request; `None` if the breaker lets no request through now.
    pub(super) fn begin(&mut self, now: Duration, config: &BreakerConfig) -> Option<Ticket> {
        if !self.admits(now, config) {
            return None;
        }
        if self.mode == BreakerMode::Open {
            self.change(BreakerMode::HalfOpen);
        }
        let probe = self.mode == BreakerMode::HalfOpen;
        self.probing |= probe;
        Some(Ticket { epoch: self.epoch, probe })
    }

    /// Issues a ticket whatever the mode is, for a request that has no better worker. In an open breaker only a success of such
    /// a request counts.
    pub(super) fn begin_anyway(&mut self) -> Ticket {
        Ticket { epoch: self.epoch, probe: false }
    }

    /// Counts the outcome of the ticket's request. Returns the new mode if it changed. `suspected`: another router's breaker
    /// for the worker is not closed, so one failure opens this one.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is good for one report")]
    pub(super) fn report(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        now: Duration,
        config: &BreakerConfig,
        suspected: bool,
    ) -> Option<BreakerMode> {
        if ticket.epoch != self.epoch {
            return None;
        }
        if ticket.probe {
            self.probing = false;
        }
        match (self.mode, outcome) {
            (_, Outcome::Neutral)
            | (BreakerMode::Closed, Outcome::Success)
            | (BreakerMode::Open, Outcome::Failure) => None,
            (BreakerMode::Closed, Outcome::Failure) => {
                let threshold = config.failure_threshold.get() as usize;
                self.failures.push_back(now);
                while self.failures.len() > threshold {
                    self.failures.pop_front();
                }
                let oldest = *self.failures.front().expect("one was just pushed");
                let tripped = suspected
                    || (self.failures.len() == threshold
                        && now.saturating_sub(oldest) <= config.window);
                (tripped && !config.disabled).then(|| self.open(now))
            }
            // A request that passed the open breaker succeeded: go half-open before the timeout is over.
            (BreakerMode::Open, Outcome::Success) => Some(self.change(BreakerMode::HalfOpen)),
            (BreakerMode::HalfOpen, Outcome::Success) => {
                self.successes += 1;
                (self.successes >= config.success_threshold.get())
                    .then(|| self.change(BreakerMode::Closed))
            }
            (BreakerMode::HalfOpen, Outcome::Failure) => Some(self.open(now)),
        }
    }

    /// Returns a ticket whose request has no outcome.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is good for one report")]
    pub(super) fn release(&mut self, ticket: Ticket) {
        if ticket.probe && ticket.epoch == self.epoch {
            self.probing = false;
        }
    }

    /// Time of the last change to open; meaningless in a closed breaker.
    #[must_use]
    pub(super) fn opened_at(&self) -> Duration {
        self.opened_at
    }

    fn open(&mut self, now: Duration) -> BreakerMode {
        self.opened_at = now;
        self.change(BreakerMode::Open)
    }

    fn change(&mut self, mode: BreakerMode) -> BreakerMode {
        self.mode = mode;
        self.epoch = self.epoch.wrapping_add(1);
        self.failures.clear();
        self.successes = 0;
        self.probing = false;
        mode
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn config() -> BreakerConfig {
        BreakerConfig {
            failure_threshold: NonZeroU32::new(3).unwrap(),
            success_threshold: NonZeroU32::new(2).unwrap(),
            timeout: Duration::from_secs(60),
            window: Duration::from_secs(10),
            disabled: false,
        }
    }

    /// Runs a script of `<second><event>` words and returns the mode at its end. Events: `f` fails, `s` succeeds, `n` is
    /// neutral, `-` expects a refusal, `b` begins a request, and `e` fails the request begun last.
    fn play(script: &str, config: &BreakerConfig) -> BreakerMode {
        let mut breaker = Breaker::default();
        let mut open = Vec::new();
        let mut now = Duration::ZERO;
        for word in script.split_whitespace() {
            let (second, event) = word.split_at(word.len() - 1);
            now = Duration::from_secs(second.parse().unwrap());
            let outcome = match event {
                "f" => Outcome::Failure,
                "s" => Outcome::Success,
                "n" => Outcome::Neutral,
                "-" => {
                    assert_eq!(
                        breaker.begin(now, config),
                        None,
                        "{word} of {script} was let through"
                    );
                    continue;
                }
                "b" => {
                    open.push(breaker.begin(now, config).unwrap());
                    continue;
                }
                "e" => {
                    breaker.report(open.pop().unwrap(), Outcome::Failure, now, config, false);
                    continue;
                }
                other => unreachable!("{other}"),
            };
            let ticket = breaker
                .begin(now, config)
                .unwrap_or_else(|| panic!("{word} of {script} was refused"));
            breaker.report(ticket, outcome, now, config, false);
        }
        breaker.mode(now, config)
    }

    #[test]
    fn failures_within_the_window_open_it() {
        assert_eq!(play("0f 1f", &config()), BreakerMode::Closed);
        assert_eq!(play("0f 1f 2f", &config()), BreakerMode::Open);
        assert_eq!(play("0f 1s 2f 3s 4f", &config()), BreakerMode::Open);
        assert_eq!(play("0f 1f 12f", &config()), BreakerMode::Closed);
        assert_eq!(play("0f 1n 2n 3n 4n", &config()), BreakerMode::Closed);
    }

    #[test]
    fn half_open_lets_one_through_at_a_time() {
        assert_eq!(play("0f 0f 0f 59-", &config()), BreakerMode::Open);
        assert_eq!(play("0f 0f 0f 60b 60- 61-", &config()), BreakerMode::HalfOpen);
        assert_eq!(play("0f 0f 0f 60b 60- 61e 61-", &config()), BreakerMode::Open);
        assert_eq!(play("0f 0f 0f 60s", &config()), BreakerMode::HalfOpen);
        assert_eq!(play("0f 0f 0f 60s 60s", &config()), BreakerMode::Closed);
        assert_eq!(play("0f 0f 0f 60s 60f 61-", &config()), BreakerMode::Open);
    }

    #[test]
    fn a_neutral_outcome_lets_the_next_request_through() {
        assert_eq!(play("0f 0f 0f 60n 60n 60s 60s", &config()), BreakerMode::Closed);
    }

    #[test]
    fn the_outcome_of_a_request_that_began_before_a_change_is_ignored() {
        // Three requests begin, the breaker opens and closes again, then the three fail.
        assert_eq!(play("0b 0b 0b 0f 0f 0f 60s 60s 61e 61e 61e", &config()), BreakerMode::Closed);
    }

    #[test]
    fn a_released_ticket_lets_the_next_request_through() {
        let config = config();
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            let ticket = breaker.begin(Duration::ZERO, &config).unwrap();
            breaker.report(ticket, Outcome::Failure, Duration::ZERO, &config, false);
        }
        let later = Duration::from_secs(60);
        let probe = breaker.begin(later, &config).unwrap();
        assert!(!breaker.admits(later, &config));
        breaker.release(probe);
        assert!(breaker.admits(later, &config));
    }

    #[test]
    fn a_disabled_breaker_never_opens() {
        let config = BreakerConfig { disabled: true, ..config() };
        assert_eq!(play("0f 0f 0f 0f 0f", &config), BreakerMode::Closed);
    }

    #[test]
    fn a_success_in_spite_of_an_open_breaker_makes_it_half_open() {
        let config = config();
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            let ticket = breaker.begin(Duration::ZERO, &config).unwrap();
            breaker.report(ticket, Outcome::Failure, Duration::ZERO, &config, false);
        }
        let ticket = breaker.begin_anyway();
        assert_eq!(
            breaker.report(ticket, Outcome::Success, Duration::ZERO, &config, false),
            Some(BreakerMode::HalfOpen)
        );
    }
}
