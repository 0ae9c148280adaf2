//! When to log that reports of other routers were refused: once a minute, with the counts of all reasons.

use std::time::Duration;

/// The time after which refused reports of other routers are logged again.
const REFUSED_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Reports that were refused since the start, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Refused {
    pub(super) absurd_claim: u64,
    pub(super) too_many_strangers: u64,
    pub(super) too_many_members: u64,
    pub(super) too_many_generations: u64,
    pub(super) absurd_version: u64,
    pub(super) too_many_writers: u64,
    pub(super) unconfirmed_version: u64,
}

/// What was logged last, and when.
#[derive(Debug, Default)]
pub(super) struct RefusedLog {
    logged: Refused,
    at: Option<Duration>,
}

impl RefusedLog {
    /// Whether more was refused than was logged last, and that was a minute ago.
    pub(super) fn must_log(&mut self, now: Duration, refused: Refused) -> bool {
        let is_time = self.at.is_none_or(|at| now >= at + REFUSED_LOG_INTERVAL);
        let must_log = is_time && refused != self.logged;
        if must_log {
            (self.logged, self.at) = (refused, Some(now));
        }
        must_log
    }
}
