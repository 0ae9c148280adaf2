//! When the periodic work of replication is due.

use std::time::Duration;

use rand::Rng;

use crate::timers::next_beat;

/// Time between two rounds of work that is not urgent.
const ROUND: Duration = Duration::from_millis(250);

/// When the next round, digest and audit are due. Digests and audits pause while no peer can be reached.
#[derive(Debug)]
pub(super) struct Schedule {
    round_at: Duration,
    digest_at: Option<Duration>,
    audit_at: Option<Duration>,
}

impl Schedule {
    pub(super) fn new(now: Duration) -> Self {
        Self { round_at: now, digest_at: None, audit_at: None }
    }

    /// Rounds per second.
    pub(super) const ROUNDS_PER_SECOND: usize = 4;

    /// Makes a round due at once.
    pub(super) fn hurry(&mut self, now: Duration) {
        self.round_at = now;
    }

    /// Whether a round is due; the next one is planned.
    pub(super) fn is_round_due(&mut self, now: Duration) -> bool {
        let is_due = now >= self.round_at;
        if is_due {
            self.round_at = now + ROUND;
        }
        is_due
    }

    /// Plans no more digests and audits until a peer can be reached again.
    pub(super) fn pause_exchanges(&mut self) {
        self.digest_at = None;
        self.audit_at = None;
    }

    /// Whether a digest is due. The first one comes within `interval` by chance, so that nodes do not keep step.
    pub(super) fn is_digest_due(
        &mut self,
        now: Duration,
        interval: Duration,
        rng: &mut dyn Rng,
    ) -> bool {
        let due_at = self.digest_at.get_or_insert_with(|| now + below(rng, interval));
        let is_due = now >= *due_at;
        if is_due {
            *due_at = now + interval;
        }
        is_due
    }

    /// Whether an audit is due. Each waits for `interval` and by chance for up to as long again.
    pub(super) fn is_audit_due(
        &mut self,
        now: Duration,
        interval: Duration,
        rng: &mut dyn Rng,
    ) -> bool {
        let due_at = self.audit_at.get_or_insert_with(|| now + interval + below(rng, interval));
        let is_due = now >= *due_at;
        if is_due {
            *due_at = now + interval + below(rng, interval);
        }
        is_due
    }

    /// Moves the next round to when it would be due if rounds had gone on.
    pub(super) fn skip_missed_rounds(&mut self, now: Duration) {
        self.round_at = next_beat(self.round_at, ROUND, now);
    }

    /// When something is due next; rounds count only `with_rounds`.
    pub(super) fn next_deadline(&self, with_rounds: bool) -> Option<Duration> {
        let round_at = with_rounds.then_some(self.round_at);
        [self.digest_at, self.audit_at, round_at].into_iter().flatten().min()
    }
}

/// A random time below `limit`.
fn below(rng: &mut dyn Rng, limit: Duration) -> Duration {
    let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1);
    Duration::from_nanos(rng.next_u64() % nanos)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The seconds, of the first 300, at which `is_due` holds.
    fn due(mut is_due: impl FnMut(Duration) -> bool) -> Vec<u32> {
        (0..300).filter(|n| is_due(SECOND * *n)).collect()
    }

    #[test]
    fn digests_come_once_per_interval_and_audits_every_one_to_two() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut schedule = Schedule::new(Duration::ZERO);
        let digests = due(|now| schedule.is_digest_due(now, 5 * SECOND, &mut rng));
        assert!(digests[0] <= 5 && digests.windows(2).all(|pair| pair[1] - pair[0] == 5));
        let audits = due(|now| schedule.is_audit_due(now, 30 * SECOND, &mut rng));
        assert!(audits.windows(2).all(|pair| (30..=60).contains(&(pair[1] - pair[0]))));
        assert!((4..=9).contains(&audits.len()), "{audits:?}");
    }

    #[test]
    fn a_pause_leaves_only_the_rounds() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut schedule = Schedule::new(Duration::ZERO);
        schedule.is_digest_due(Duration::ZERO, SECOND / 100, &mut rng);
        assert!(schedule.is_round_due(SECOND));
        assert!(!schedule.is_round_due(SECOND + ROUND / 2));
        schedule.pause_exchanges();
        assert_eq!(schedule.next_deadline(true), Some(SECOND + ROUND));
        assert_eq!(schedule.next_deadline(false), None);
    }
}
