//! Reading the workers' models again because a request named a model that no worker is known to serve.
//!
//! Engines load adapters while they run. All requests that miss share one round of reads, and rounds begin at least
//! [`MIN_INTERVAL`] apart, so that wrong names cost the workers little. The prober makes the reads.

use std::time::Duration;

use parking_lot::Mutex;

/// Least time between the beginnings of two rounds.
pub const MIN_INTERVAL: Duration = Duration::from_secs(2);

/// A round of reads that a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Round(u64);

/// Which round is wanted, and how far it is. Times are `Now::mono`.
#[derive(Debug, Default)]
pub(super) struct Rediscovery(Mutex<Progress>);

#[derive(Debug, Default)]
struct Progress {
    /// Rounds that have ended.
    ended: u64,
    phase: Phase,
    last_began: Option<Duration>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    Wanted,
    Running,
}

impl Rediscovery {
    /// Asks for a round, or joins the one that is wanted or running. `None`: the last one began too recently.
    pub(super) fn request(&self, now: Duration) -> Option<Round> {
        let mut progress = self.0.lock();
        if progress.phase == Phase::Idle {
            let began = progress.last_began;
            if began.is_some_and(|began| now.saturating_sub(began) < MIN_INTERVAL) {
                return None;
            }
            progress.phase = Phase::Wanted;
        }
        Some(Round(progress.ended + 1))
    }

    /// Begins the round that is wanted. Returns whether there is one.
    pub(super) fn begin(&self, now: Duration) -> bool {
        let mut progress = self.0.lock();
        let is_wanted = progress.phase == Phase::Wanted;
        if is_wanted {
            progress.phase = Phase::Running;
            progress.last_began = Some(now);
        }
        is_wanted
    }

    /// Ends the round that is running.
    pub(super) fn end(&self) {
        let mut progress = self.0.lock();
        if progress.phase == Phase::Running {
            progress.phase = Phase::Idle;
            progress.ended += 1;
        }
    }

    /// Whether a round has ended.
    pub(super) fn has_ended(&self, round: Round) -> bool {
        self.0.lock().ended >= round.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_share_a_round_and_rounds_are_apart() {
        let rounds = Rediscovery::default();
        let at = Duration::from_secs;
        assert!(!rounds.begin(at(1)), "no round is wanted");
        let first = rounds.request(at(1)).unwrap();
        assert_eq!(rounds.request(at(1)), Some(first));
        assert!(rounds.begin(at(2)) && !rounds.begin(at(2)));
        assert_eq!(rounds.request(at(3)), Some(first), "the one that runs");
        assert!(!rounds.has_ended(first));
        rounds.end();
        assert!(rounds.has_ended(first));
        assert_eq!(rounds.request(at(3)), None, "a second after the last");
        let second = rounds.request(at(2) + MIN_INTERVAL).unwrap();
        assert!(second > first && !rounds.has_ended(second));
    }
}
