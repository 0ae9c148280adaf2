//! Decides whether and when a request is retried. This is plain code without I/O.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use rand::{Rng, RngExt as _};
use smg_runtime::shortage::Kind;
use smg_types::now::Now;

use super::config::Config;
use crate::upstream::{Delivery, SendError};

/// The action after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Retry after this time.
    Again(Duration),
    /// Keep the answer.
    GiveUp,
}

/// The result of an attempt, as far as a retry depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The worker has read nothing of the request.
    NotStarted,
    /// The connection was lost with some of the request on it. The worker does not process it, because it is gone or
    /// cannot have read all of it. But the request itself may have caused the failure.
    Lost,
    /// The worker may be processing it, so sending it again could do the work twice.
    MayHaveStarted,
    /// The router lacks a resource that an attempt at any worker needs.
    OutOfResources,
    /// The worker answered with this status, and perhaps with the time after which to retry.
    Answered(StatusCode, Option<Duration>),
}

impl From<&SendError> for Attempt {
    fn from(error: &SendError) -> Self {
        if let SendError::Shortage { shortage, delivery: Delivery::Nothing } = error {
            return match shortage.kind {
                Kind::Descriptors | Kind::SystemDescriptors | Kind::Memory => Self::OutOfResources,
                // Another worker may have an address instead of a name, or an open connection.
                Kind::Ports | Kind::Threads | Kind::Resolver => Self::NotStarted,
            };
        }
        match error.delivery() {
            Delivery::Nothing => Self::NotStarted,
            Delivery::PerhapsAll if !error.is_gone() => Self::MayHaveStarted,
            Delivery::Part | Delivery::PerhapsAll => Self::Lost,
        }
    }
}

/// The most workers that get a request of which a connection was lost. One may have failed by chance; two may have
/// failed because of the request.
const MOST_AFTER_A_LOSS: u32 = 2;

/// The attempts of one request.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    made: u32,
    /// Whether a connection was lost with the request on it.
    lost: bool,
    /// The number of attempts in which a worker has read some of the request and has not pushed it back.
    seen: u32,
}

impl Attempts {
    /// The number of attempts so far.
    pub(super) fn made(&self) -> u32 {
        self.made
    }

    /// Counts an attempt and decides on the next. `others` is whether a worker is left that was not tried yet.
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
        match attempt {
            Attempt::NotStarted | Attempt::OutOfResources | Attempt::MayHaveStarted => {}
            Attempt::Answered(status, _) => self.seen += u32::from(!config.pushes_back(status)),
            Attempt::Lost => {
                self.lost = true;
                self.seen += 1;
            }
        }
        if self.made > config.max_retries || (self.lost && self.seen >= MOST_AFTER_A_LOSS) {
            return Next::GiveUp;
        }
        let wait = match attempt {
            Attempt::MayHaveStarted | Attempt::OutOfResources => return Next::GiveUp,
            // Another worker may well be available, so there is no reason to wait. Nor does it use the budget: no
            // worker has received the request, and when a worker dies, all requests in flight on it fail at once.
            Attempt::NotStarted | Attempt::Lost if others => return Next::Again(Duration::ZERO),
            Attempt::NotStarted | Attempt::Lost => self.backoff(config, rng),
            Attempt::Answered(status, _) if !config.is_retryable(status) => return Next::GiveUp,
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

    /// Exponential back-off, of which a share is random: by default all of it, which spreads retries best (Brooker,
    /// "Exponential Backoff And Jitter", 2015).
    fn backoff(&self, config: &Config, rng: &mut dyn Rng) -> Duration {
        let exponent = i32::try_from(self.made.saturating_sub(1)).unwrap_or(i32::MAX);
        let most = config.initial_backoff.as_secs_f64()
            * f64::from(config.backoff_multiplier).powi(exponent);
        let most = most.min(config.max_backoff.as_secs_f64());
        let jitter = f64::from(config.backoff_jitter);
        Duration::from_secs_f64(most * (1.0 - jitter * rng.random::<f64>()))
    }
}

/// Bounds retries to a share of recent requests, so that retries do not multiply the load on a failing fleet. Each
/// request adds a fraction of a token, and each retry takes a whole one; a floor is added over time, for periods with
/// few requests.
#[derive(Debug)]
pub(super) struct Budget {
    /// Thousandths of a retry. May be overdrawn by as many threads as withdraw at once.
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

    /// Ten seconds of the floor, at least ten retries, which the death of a worker may need at once.
    fn most(config: &Config) -> i64 {
        (f64::from(config.budget_floor) * 10.0).max(10.0) as i64 * TOKEN
    }

    /// Records a request.
    pub(super) fn deposit(&self, config: &Config) {
        if self.balance.load(Ordering::Relaxed) < Self::most(config) {
            self.balance.fetch_add(
                (f64::from(config.budget_ratio) * TOKEN as f64) as i64,
                Ordering::Relaxed,
            );
        }
    }

    /// Takes a token for a retry. Returns whether the retry may be made.
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
    use smg_routing::fleet::Outcome;
    use smg_runtime::shortage::Shortage;

    use super::*;

    const NOW: Now = Now::at(Duration::from_secs(100));

    /// The decision after `attempt` if it is the first one.
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
        for status in [408, 429, 500, 502, 503, 504, 508] {
            assert!(matches!(after(answered(status, None), true), Next::Again(_)), "{status}");
        }
        for status in [200, 206, 301, 400, 401, 404, 409, 413, 422, 501, 505] {
            assert_eq!(after(answered(status, None), true), Next::GiveUp, "{status}");
        }
    }

    /// Plays the attempts of one request, with other workers left each time. Returns whether another attempt follows
    /// the last.
    fn goes_on_after(attempts: &[Attempt]) -> bool {
        let config = Config { max_retries: 100, ..Config::default() };
        let budget = Budget::new(&config);
        let mut rng = SmallRng::seed_from_u64(3);
        let mut of_request = Attempts::default();
        let mut next = Next::GiveUp;
        for attempt in attempts {
            next = of_request.next(*attempt, true, &config, &budget, NOW, &mut rng);
        }
        next != Next::GiveUp
    }

    #[test]
    fn at_most_two_workers_see_a_request_whose_connection_was_lost() {
        use Attempt::{Lost, MayHaveStarted, NotStarted};
        let (failed, full) = (answered(500, None), answered(503, None));
        assert!(goes_on_after(&[Lost]));
        assert!(!goes_on_after(&[Lost, Lost]));
        assert!(!goes_on_after(&[Lost, failed]));
        assert!(!goes_on_after(&[failed, Lost]));
        assert!(!goes_on_after(&[Lost, MayHaveStarted]));
        // A worker that was not reached, or pushed the request back, has not processed it.
        assert!(goes_on_after(&[NotStarted, Lost, NotStarted, NotStarted]));
        assert!(goes_on_after(&[full, full, Lost, full]));
        assert!(!goes_on_after(&[full, Lost, full, NotStarted, Lost]));
        // As long as none was lost, the configuration decides.
        assert!(goes_on_after(&[failed; 9]));
    }

    #[test]
    fn what_may_be_read_decides() {
        let lost = |delivery, gone| Attempt::from(&SendError::Lost { delivery, gone });
        assert_eq!(lost(Delivery::Nothing, false), Attempt::NotStarted);
        assert_eq!(lost(Delivery::Nothing, true), Attempt::NotStarted);
        assert_eq!(lost(Delivery::Part, false), Attempt::Lost);
        assert_eq!(lost(Delivery::Part, true), Attempt::Lost);
        assert_eq!(lost(Delivery::PerhapsAll, true), Attempt::Lost);
        assert_eq!(lost(Delivery::PerhapsAll, false), Attempt::MayHaveStarted);
        assert_eq!(Attempt::from(&SendError::Removed), Attempt::MayHaveStarted);
        let timeout = SendError::HeadTimeout(Duration::from_secs(1));
        assert_eq!(Attempt::from(&timeout), Attempt::MayHaveStarted);
        let refused = SendError::Connect(std::io::ErrorKind::ConnectionRefused.into());
        assert_eq!(Attempt::from(&refused), Attempt::NotStarted);
    }

    #[test]
    fn what_the_router_lacks_itself_is_not_looked_for_at_every_worker() {
        let lacks = |kind, delivery| {
            let shortage = Shortage { kind, source: std::io::ErrorKind::Other.into() };
            Attempt::from(&SendError::Shortage { shortage, delivery })
        };
        for kind in [Kind::Descriptors, Kind::SystemDescriptors, Kind::Memory] {
            assert_eq!(lacks(kind, Delivery::Nothing), Attempt::OutOfResources);
        }
        // Ports run out per worker, and not every worker has a name.
        for kind in [Kind::Ports, Kind::Resolver, Kind::Threads] {
            assert_eq!(lacks(kind, Delivery::Nothing), Attempt::NotStarted);
        }
        assert_eq!(lacks(Kind::Memory, Delivery::PerhapsAll), Attempt::MayHaveStarted);
        assert!(!goes_on_after(&[Attempt::OutOfResources]));
    }

    #[test]
    fn push_back_is_no_failure_and_is_tried_elsewhere() {
        let config = Config::default();
        let status = |code| StatusCode::from_u16(code).unwrap();
        for (code, outcome) in [
            (200, Outcome::Success),
            (404, Outcome::Neutral),
            (429, Outcome::Neutral),
            (503, Outcome::Neutral),
            (500, Outcome::Failure),
            (502, Outcome::Failure),
            (529, Outcome::Failure),
        ] {
            assert_eq!(config.judge(status(code)), outcome, "{code}");
        }
        let config = Config { push_back_statuses: vec![status(529)], ..config };
        assert_eq!(config.judge(status(529)), Outcome::Neutral);
        assert!(config.is_retryable(status(529)));
        assert_eq!(config.judge(status(503)), Outcome::Failure);
        assert!(config.is_retryable(status(503)));
    }

    #[test]
    fn a_death_with_many_in_flight_is_not_rationed() {
        let config = Config::default();
        let budget = Budget::new(&config);
        let mut rng = SmallRng::seed_from_u64(4);
        for _ in 0..1000 {
            let next =
                Attempts::default().next(Attempt::Lost, true, &config, &budget, NOW, &mut rng);
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
    fn the_jitter_is_the_share_that_is_drawn() {
        let pauses = |jitter: f32| {
            let initial_backoff = Duration::from_millis(100);
            let config = Config { backoff_jitter: jitter, initial_backoff, ..Config::default() };
            let mut rng = SmallRng::seed_from_u64(7);
            let first = Attempts { made: 1, ..Attempts::default() };
            let pauses = (0..1000).map(|_| first.backoff(&config, &mut rng).as_millis());
            let pauses: Vec<_> = pauses.collect();
            (*pauses.iter().min().unwrap(), *pauses.iter().max().unwrap())
        };
        assert_eq!(pauses(0.0), (100, 100));
        let (least, most) = pauses(0.25);
        assert!((75..80).contains(&least) && (95..=100).contains(&most), "{least} to {most} ms");
        let (least, most) = pauses(1.0);
        assert!(least < 5 && most > 95, "{least} to {most} ms");
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
