//! The circuit breaker of one worker: what traffic says of it.
//!
//! Closed → open when enough failures fall into a window; open → half-open after a time; in half-open one request at a
//! time is let through, enough successes close it and one failure opens it again. The outcome of a request that began
//! before the last change says nothing about the worker now and is ignored, which is what [`Ticket`] is for.

use std::collections::VecDeque;
use std::time::Duration;

use super::config::BreakerConfig;

/// What the breaker does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Lets everything through.
    Closed = 0,
    /// Lets nothing through until its time is over.
    Open = 1,
    /// Lets one request at a time through.
    HalfOpen = 2,
}

impl Mode {
    /// A name from a closed set, for metrics and the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// How a request that was let through ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The worker did its work.
    Success,
    /// The worker failed.
    Failure,
    /// Nothing can be said: the client left, the worker refused for good reason (4xx) or because it has too much to do,
    /// or the router lacked something of its own.
    Neutral,
}

/// The right to send one request; given back with its outcome.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) struct Ticket {
    /// Changes of the breaker until this ticket was given.
    epoch: u32,
    probe: bool,
}

/// The breaker's memory. Times are `Now::mono`.
#[derive(Debug)]
pub(super) struct Breaker {
    mode: Mode,
    /// Grows with every change of mode.
    epoch: u32,
    /// Times of the last failures while closed, at most `failure_threshold`.
    failures: VecDeque<Duration>,
    opened_at: Duration,
    successes: u32,
    probing: bool,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            mode: Mode::Closed,
            epoch: 0,
            failures: VecDeque::new(),
            opened_at: Duration::ZERO,
            successes: 0,
            probing: false,
        }
    }
}

impl Breaker {
    /// What it does with requests right now.
    #[must_use]
    pub(super) fn mode(&self, now: Duration, config: &BreakerConfig) -> Mode {
        match self.mode {
            Mode::Open if now.saturating_sub(self.opened_at) >= config.timeout => Mode::HalfOpen,
            mode => mode,
        }
    }

    /// Whether [`Breaker::begin`] would give a ticket.
    #[must_use]
    pub(super) fn admits(&self, now: Duration, config: &BreakerConfig) -> bool {
        match self.mode(now, config) {
            Mode::Closed => true,
            Mode::Open => false,
            Mode::HalfOpen => !self.probing,
        }
    }

    /// Asks to send a request; `None`: not now.
    pub(super) fn begin(&mut self, now: Duration, config: &BreakerConfig) -> Option<Ticket> {
        if !self.admits(now, config) {
            return None;
        }
        if self.mode == Mode::Open {
            self.change(Mode::HalfOpen);
        }
        let probe = self.mode == Mode::HalfOpen;
        self.probing |= probe;
        Some(Ticket { epoch: self.epoch, probe })
    }

    /// A ticket in spite of the breaker: when everyone else is out and the least bad is better than nothing. Its
    /// outcome counts only if it is good.
    pub(super) fn begin_anyway(&mut self) -> Ticket {
        Ticket { epoch: self.epoch, probe: false }
    }

    /// Takes a ticket back. Returns the new mode if it changed. `suspected`: others have seen the worker fail, so one
    /// failure is enough.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is good for one report")]
    pub(super) fn report(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        now: Duration,
        config: &BreakerConfig,
        suspected: bool,
    ) -> Option<Mode> {
        if ticket.epoch != self.epoch {
            return None;
        }
        if ticket.probe {
            self.probing = false;
        }
        match (self.mode, outcome) {
            (_, Outcome::Neutral)
            | (Mode::Closed, Outcome::Success)
            | (Mode::Open, Outcome::Failure) => None,
            (Mode::Closed, Outcome::Failure) => {
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
            // Sent in spite of the breaker, and it worked: worth a regular probe without waiting any longer.
            (Mode::Open, Outcome::Success) => Some(self.change(Mode::HalfOpen)),
            (Mode::HalfOpen, Outcome::Success) => {
                self.successes += 1;
                (self.successes >= config.success_threshold.get())
                    .then(|| self.change(Mode::Closed))
            }
            (Mode::HalfOpen, Outcome::Failure) => Some(self.open(now)),
        }
    }

    /// Gives a ticket back without a word about the worker.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is good for one report")]
    pub(super) fn release(&mut self, ticket: Ticket) {
        if ticket.probe && ticket.epoch == self.epoch {
            self.probing = false;
        }
    }

    /// When it opened last; meaningful while it is not closed. The least bad of several is the one that opened first.
    #[must_use]
    pub(super) fn opened_at(&self) -> Duration {
        self.opened_at
    }

    fn open(&mut self, now: Duration) -> Mode {
        self.opened_at = now;
        self.change(Mode::Open)
    }

    fn change(&mut self, mode: Mode) -> Mode {
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

    /// Plays `<second><event>` words: `f` fails, `s` succeeds, `n` is neutral, `-` expects to be refused, `b`/`e` begin
    /// and end a request that stays open meanwhile. Returns the mode after the last.
    fn play(script: &str, config: &BreakerConfig) -> Mode {
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
        assert_eq!(play("0f 1f", &config()), Mode::Closed);
        assert_eq!(play("0f 1f 2f", &config()), Mode::Open);
        assert_eq!(play("0f 1s 2f 3s 4f", &config()), Mode::Open);
        assert_eq!(play("0f 1f 12f", &config()), Mode::Closed);
        assert_eq!(play("0f 1n 2n 3n 4n", &config()), Mode::Closed);
    }

    #[test]
    fn half_open_lets_one_through_at_a_time() {
        assert_eq!(play("0f 0f 0f 59-", &config()), Mode::Open);
        assert_eq!(play("0f 0f 0f 60b 60- 61-", &config()), Mode::HalfOpen);
        assert_eq!(play("0f 0f 0f 60b 60- 61e 61-", &config()), Mode::Open);
        assert_eq!(play("0f 0f 0f 60s", &config()), Mode::HalfOpen);
        assert_eq!(play("0f 0f 0f 60s 60s", &config()), Mode::Closed);
        assert_eq!(play("0f 0f 0f 60s 60f 61-", &config()), Mode::Open);
    }

    #[test]
    fn a_neutral_probe_makes_room_for_the_next() {
        assert_eq!(play("0f 0f 0f 60n 60n 60s 60s", &config()), Mode::Closed);
    }

    #[test]
    fn what_began_before_the_change_is_ignored() {
        // Three requests begin, the breaker opens and closes again, then the three fail.
        assert_eq!(play("0b 0b 0b 0f 0f 0f 60s 60s 61e 61e 61e", &config()), Mode::Closed);
    }

    #[test]
    fn a_dropped_probe_is_released() {
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
    fn disabled_never_opens() {
        let config = BreakerConfig { disabled: true, ..config() };
        assert_eq!(play("0f 0f 0f 0f 0f", &config), Mode::Closed);
    }

    #[test]
    fn the_least_bad_earns_a_probe_by_working() {
        let config = config();
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            let ticket = breaker.begin(Duration::ZERO, &config).unwrap();
            breaker.report(ticket, Outcome::Failure, Duration::ZERO, &config, false);
        }
        let ticket = breaker.begin_anyway();
        assert_eq!(
            breaker.report(ticket, Outcome::Success, Duration::ZERO, &config, false),
            Some(Mode::HalfOpen)
        );
    }
}
