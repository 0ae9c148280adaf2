//! Whether and when a request is tried again: plain decisions, no I/O.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use rand::{Rng, RngExt as _};
use smg_types::now::Now;

use super::config::Config;

/// What to do after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Try again after this time.
    Again(Duration),
    /// The answer is the answer.
    GiveUp,
}

/// How an attempt went, as far as another one depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The worker can't have started on it.
    NotStarted,
    /// The worker died with it: nothing is generating, but the request itself may be what killed it.
    Died,
    /// It may be generating: sending it again could do the work twice.
    MayHaveStarted,
    /// It answered with this status and perhaps said when to come back.
    Answered(StatusCode, Option<Duration>),
}

/// The attempts of one request.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    made: u32,
    /// A worker died with it.
    killed: bool,
}

impl Attempts {
    /// Attempts made so far.
    pub(super) fn made(&self) -> u32 {
        self.made
    }

    /// Counts an attempt and decides about the next. `others`: a worker is left that was not tried yet.
    pub(super) fn next(
        &mut self,
        attempt: Attempt,
        others: bool,
        config: &Config,
        budget: &Budget,
        now: Now,
        rng: &mut dyn Rng,
    ) -> Next {
        self.made += 1;
        if self.made > config.max_retries {
            return Next::GiveUp;
        }
        let wait = match attempt {
            Attempt::MayHaveStarted => return Next::GiveUp,
            // One worker may die of old age. Two that died with the same request may have died of it.
            Attempt::Died if std::mem::replace(&mut self.killed, true) => return Next::GiveUp,
            // Another worker may well be there: why wait? And no budget either: nothing was asked of anybody, and when a
            // worker dies all that was in flight on it comes at once.
            Attempt::NotStarted | Attempt::Died if others => return Next::Again(Duration::ZERO),
            Attempt::NotStarted | Attempt::Died => self.backoff(config, rng),
            Attempt::Answered(status, _) if !is_retryable(status) => return Next::GiveUp,
            Attempt::Answered(_, Some(after)) if !others => {
                if after > config.max_backoff {
                    return Next::GiveUp;
                }
                after.max(self.backoff(config, rng))
            }
            Attempt::Answered(..) => self.backoff(config, rng),
        };
        if budget.withdraw(config, now) { Next::Again(wait) } else { Next::GiveUp }
    }

    /// Exponential back-off with full jitter (Brooker, "Exponential Backoff And Jitter", 2015).
    fn backoff(&self, config: &Config, rng: &mut dyn Rng) -> Duration {
        let exponent = i32::try_from(self.made.saturating_sub(1)).unwrap_or(i32::MAX);
        let most = config.initial_backoff.as_secs_f64()
            * f64::from(config.backoff_multiplier).powi(exponent);
        let most = most.min(config.max_backoff.as_secs_f64());
        Duration::from_secs_f64(most * rng.random::<f64>())
    }
}

/// Whether a worker's answer may be replaced by another worker's.
pub(super) fn is_retryable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// Bounds retries to a share of recent requests, so that a fleet in trouble is not asked even more: each request pays a
/// fraction of a token in, each retry takes a whole one; time adds a floor for quiet hours.
#[derive(Debug)]
pub(super) struct Budget {
    /// Thousandths of a retry; may be overdrawn by as many threads as withdraw at once.
    balance: AtomicI64,
    /// `Now::mono_nanos` of the last refill.
    refilled: AtomicU64,
}

const TOKEN: i64 = 1000;

impl Budget {
    /// A full budget.
    pub(super) fn new(config: &Config) -> Self {
        Self { balance: AtomicI64::new(Self::most(config)), refilled: AtomicU64::new(0) }
    }

    /// Ten seconds of the floor, at least ten retries: what a worker's death may cost at once.
    fn most(config: &Config) -> i64 {
        (f64::from(config.budget_floor) * 10.0).max(10.0) as i64 * TOKEN
    }

    /// A request was made.
    pub(super) fn deposit(&self, config: &Config) {
        if self.balance.load(Ordering::Relaxed) < Self::most(config) {
            self.balance.fetch_add(
                (f64::from(config.budget_ratio) * TOKEN as f64) as i64,
                Ordering::Relaxed,
            );
        }
    }

    /// A retry is wanted. Whether it may be made.
    pub(super) fn withdraw(&self, config: &Config, now: Now) -> bool {
        let last = self.refilled.swap(now.mono_nanos(), Ordering::Relaxed);
        let elapsed = Duration::from_nanos(now.mono_nanos().saturating_sub(last))
            .min(Duration::from_secs(10));
        let earned = (elapsed.as_secs_f64() * f64::from(config.budget_floor) * TOKEN as f64) as i64;
        let balance = self.balance.fetch_add(earned, Ordering::Relaxed) + earned;
        let excess = (balance - Self::most(config)).max(0);
        self.balance.fetch_sub(excess, Ordering::Relaxed);
        if balance - excess < TOKEN {
            return false;
        }
        self.balance.fetch_sub(TOKEN, Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    const NOW: Now = Now::at(Duration::from_secs(100));

    /// What follows `attempt` when it is the first.
    fn after(attempt: Attempt, others: bool) -> Next {
        let config = Config::default();
        let mut rng = SmallRng::seed_from_u64(1);
        Attempts::default().next(attempt, others, &config, &Budget::new(&config), NOW, &mut rng)
    }

    fn answered(status: u16, retry_after: Option<u64>) -> Attempt {
        Attempt::Answered(
            StatusCode::from_u16(status).unwrap(),
            retry_after.map(Duration::from_secs),
        )
    }

    #[test]
    fn only_what_is_safe_is_tried_again() {
        assert_eq!(after(Attempt::NotStarted, true), Next::Again(Duration::ZERO));
        assert_eq!(after(Attempt::MayHaveStarted, true), Next::GiveUp);
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(matches!(after(answered(status, None), true), Next::Again(_)), "{status}");
        }
        for status in [200, 206, 301, 400, 401, 404, 409, 413, 422, 501, 505] {
            assert_eq!(after(answered(status, None), true), Next::GiveUp, "{status}");
        }
    }

    #[test]
    fn a_request_that_kills_workers_is_not_sent_for_ever() {
        let config = Config::default();
        let budget = Budget::new(&config);
        let mut rng = SmallRng::seed_from_u64(3);
        let mut attempts = Attempts::default();
        let mut next = |attempt| attempts.next(attempt, true, &config, &budget, NOW, &mut rng);
        assert_eq!(next(Attempt::Died), Next::Again(Duration::ZERO));
        assert_eq!(next(Attempt::Died), Next::GiveUp);
    }

    #[test]
    fn a_death_with_many_in_flight_is_not_rationed() {
        let config = Config::default();
        let budget = Budget::new(&config);
        let mut rng = SmallRng::seed_from_u64(4);
        for _ in 0..1000 {
            let next =
                Attempts::default().next(Attempt::Died, true, &config, &budget, NOW, &mut rng);
            assert_eq!(next, Next::Again(Duration::ZERO));
        }
    }

    #[test]
    fn a_worker_that_says_when_is_not_asked_before() {
        let Next::Again(wait) = after(answered(503, Some(3)), false) else { panic!("gave up") };
        assert!(wait >= Duration::from_secs(3));
        assert_eq!(
            after(answered(503, Some(60)), false),
            Next::GiveUp,
            "longer than the longest back-off"
        );
        let Next::Again(wait) = after(answered(503, Some(60)), true) else { panic!("gave up") };
        assert!(wait < Duration::from_secs(1), "another worker has no reason to wait");
    }

    #[test]
    fn there_is_an_end() {
        let config = Config { initial_backoff: Duration::from_secs(1), ..Config::default() };
        let budget = Budget::new(&config);
        let mut rng = SmallRng::seed_from_u64(2);
        let mut attempts = Attempts::default();
        let mut waits = Vec::new();
        while let Next::Again(wait) =
            attempts.next(answered(503, None), false, &config, &budget, NOW, &mut rng)
        {
            waits.push(wait);
        }
        assert_eq!(waits.len(), 3);
        for (wait, most) in waits.iter().zip([1, 2, 4]) {
            assert!(*wait <= Duration::from_secs(most), "{wait:?} is longer than {most} s");
        }
    }

    #[test]
    fn a_storm_is_bounded_by_the_requests() {
        let config = Config::default();
        let budget = Budget::new(&config);
        let mut now = NOW;
        let mut retries = 0;
        for _ in 0..10_000 {
            // 1,000 requests a second, every one wants to be tried again.
            now = now + Duration::from_millis(1);
            budget.deposit(&config);
            retries += u32::from(budget.withdraw(&config, now));
        }
        // 20 % of 10,000, the floor of 10/s for 10 s, and the 100 it began with.
        assert!((2_000..=2_250).contains(&retries), "{retries} retries");
    }

    #[test]
    fn a_quiet_hour_keeps_the_floor() {
        let config = Config::default();
        let budget = Budget::new(&config);
        while budget.withdraw(&config, NOW) {}
        assert!(!budget.withdraw(&config, NOW));
        assert!(budget.withdraw(&config, NOW + Duration::from_millis(101)));
        assert!(!budget.withdraw(&config, NOW + Duration::from_millis(102)));
    }
}
