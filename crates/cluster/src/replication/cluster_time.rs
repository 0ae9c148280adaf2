//! The time of the cluster: what its members take for the wall time, so that one wrong clock does little harm.
//!
//! Nodes read the wall clock to stamp writes and to let rows expire. If each read its own, an override that a node with a
//! slow clock writes for ten minutes would have expired everywhere else before it arrived, and a node with a fast clock
//! would win every concurrent write. So each node reads the median of the clocks of the peers that it reaches and of its
//! own, as their digests show them; of an even number, the lower of the two in the middle, so that nothing expires early
//! because of a fast clock. Two nodes therefore agree on the earlier of their clocks, and of three, one wrong clock is
//! outvoted. A clock that is within [`TOLERANCE_MS`] of the median is read as it is.
//!
//! Clocks are kept as the wall time at which the monotonic clock here was zero, so a step of the wall clock here does not
//! move the clocks of the peers. A step counts once a digest has shown it to a peer: until then, a node goes by the clock
//! that its peers know.
//!
//! Not guaranteed: a node without peers reads its own clock, whatever that is. A digest takes time to arrive, which makes
//! its sender's clock look late by as much.

use std::time::Duration;

use smg_types::now::Now;

use crate::crdt::stamp::millis;

/// A wall clock that differs from that of the cluster by at most this is not corrected, in milliseconds. NTP keeps clocks
/// within a fraction of it, and a digest that waited in a queue does not look like a wrong clock.
const TOLERANCE_MS: i64 = 5_000;

/// A wall clock, as the wall time in milliseconds at which the monotonic clock of this node was zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Epoch(i64);

impl Epoch {
    /// The clock that shows `wall_ms` (milliseconds since the Unix epoch) when the monotonic clock shows `mono`.
    pub(crate) fn new(wall_ms: u64, mono: Duration) -> Self {
        Self(signed(wall_ms).saturating_sub(signed(millis(mono))))
    }

    /// The time that this clock shows at `mono`.
    pub(super) fn at(self, mono: Duration) -> Duration {
        let ms = self.0.saturating_add(signed(millis(mono)));
        Duration::from_millis(u64::try_from(ms).unwrap_or(0))
    }

    /// How far this clock is ahead of `other`, in milliseconds.
    pub(super) fn ahead_of(self, other: Self) -> i64 {
        self.0.saturating_sub(other.0)
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

/// The wall clock of this node.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OwnClock {
    /// As it was read last; `None`: it was never read, and the times that this node is given are taken for its own.
    pub(super) clock: Option<Epoch>,
    /// As the last digest has shown it to a peer; `None`: none was sent.
    pub(super) shown: Option<Epoch>,
    /// How far the time of the cluster was ahead of it at the last reading, in milliseconds.
    pub(super) correction_ms: i64,
}

impl OwnClock {
    /// The wall time that this node's own clock shows at the cluster's time `now`, in milliseconds.
    pub(super) fn wall_ms(&self, now: Now) -> u64 {
        millis(self.clock.map_or(now.wall, |clock| clock.at(now.mono)))
    }
}

/// The clock that a node counts as its own while it has peers: the one that they know, until a digest has shown them a step.
/// Otherwise two nodes would go by different clocks from the step to the digest.
pub(super) fn known_to_peers(own: Epoch, shown: Option<Epoch>) -> Epoch {
    shown.filter(|shown| own.ahead_of(*shown).saturating_abs() > TOLERANCE_MS).unwrap_or(own)
}

/// The lower median of `own` and `peers`, or `own` if it is within the tolerance of that.
pub(super) fn agreed(own: Epoch, peers: impl Iterator<Item = Epoch>) -> Epoch {
    let mut clocks: Vec<Epoch> = peers.chain([own]).collect();
    clocks.sort_unstable();
    let median = clocks[(clocks.len() - 1) / 2];
    if own.ahead_of(median).saturating_abs() <= TOLERANCE_MS { own } else { median }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    /// The correction of the first of `clocks`, the others being those of its peers. All are in hours.
    fn correction(clocks: &[i64]) -> i64 {
        let clocks: Vec<Epoch> = clocks.iter().map(|hours| Epoch(hours * HOUR_MS)).collect();
        let agreed = agreed(clocks[0], clocks[1..].iter().copied());
        agreed.ahead_of(clocks[0]) / HOUR_MS
    }

    #[test]
    fn a_node_alone_reads_its_own_clock() {
        assert_eq!(correction(&[7]), 0);
    }

    #[test]
    fn two_nodes_agree_on_the_earlier_clock() {
        assert_eq!(correction(&[24, 0]), -24);
        assert_eq!(correction(&[0, 24]), 0);
        assert_eq!(correction(&[-24, 0]), 0);
    }

    #[test]
    fn one_wrong_clock_of_three_is_outvoted_and_two_of_five_are() {
        for wrong in [-24, -1, 1, 24] {
            assert_eq!(correction(&[wrong, 0, 0]), -wrong);
            assert_eq!(correction(&[0, wrong, 0]), 0);
        }
        for other in [-24, 24] {
            assert_eq!(correction(&[24, other, 0, 0, 0]), -24);
        }
    }

    #[test]
    fn clocks_that_differ_by_little_are_not_corrected() {
        let own = Epoch(0);
        assert_eq!(agreed(own, [Epoch(5_000), Epoch(5_000)].into_iter()), own);
        assert_eq!(agreed(own, [Epoch(5_001), Epoch(5_002)].into_iter()), Epoch(5_001));
    }

    #[test]
    fn a_clock_at_the_end_of_time_harms_nothing() {
        let now = Now::at(Duration::from_secs(1_000));
        for wall_ms in [0, u64::MAX] {
            let liar = Epoch::new(wall_ms, now.mono);
            let own = Epoch::new(1_700_000_000_000, now.mono);
            let agreed = agreed(own, [liar, own].into_iter());
            assert_eq!(agreed.at(now.mono), Duration::from_millis(1_700_000_000_000));
        }
    }
}
