//! Stamps of a hybrid logical clock: a total order of the writes of all nodes that follows causality and is close to wall
//! time.
//!
//! After Kulkarni et al., "Logical Physical Clocks" (2014). Stamps only order values: nothing expires by a stamp, and the
//! rows of one writer are ordered by their versions. A stamp is therefore accepted however far it is ahead of the wall
//! clock here, and the clock never goes back: each stamp that it makes is greater than all that it has made or seen, so
//! a write that has seen another one always replaces it. A node whose wall clock is wrong does not get ahead of the
//! others in the first place, because it reads the time of the cluster (see `replication::cluster_time`).
//!
//! One bound remains. A stamp near the largest number would leave no room for later ones, so stamps beyond the year
//! 10,000 are refused, unless the clock itself is there already.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_types::ids::NodeId;
use smg_types::now::Now;

/// The author of a stamp: a hash of its [`NodeId`], so that a stamp is small and `Copy`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Author(u64);

impl Author {
    /// The author `node`. The hash is XXH3-64, which its specification fixes, so routers of all versions agree.
    #[must_use]
    pub fn of(node: &NodeId) -> Self {
        let name = xxhash_rust::xxh3::xxh3_64(node.name.as_str().as_bytes());
        Self(xxhash_rust::xxh3::xxh3_64_with_seed(&node.generation.0.to_le_bytes(), name))
    }

    /// The hash as a number.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The author with this hash, for tests.
    #[must_use]
    pub const fn from_u64(author: u64) -> Self {
        Self(author)
    }
}

/// When and by which node a value was written. Ordered by wall time, then counter, then author; no two writes of correct
/// nodes have the same stamp.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Stamp {
    /// Wall time, in milliseconds since the Unix epoch.
    pub wall_ms: u64,
    /// A counter that orders writes of the same millisecond.
    pub logical: u32,
    /// The node that wrote, which orders writes with the same time and counter.
    pub author: Author,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.wall_ms, self.logical)
    }
}

/// A stamp is so late that it would leave no room for the stamps after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stamp of {wall_ms} ms since 1970 is after the latest that is accepted, {limit_ms} ms")]
pub struct StampTooLate {
    /// The wall time of the stamp, in milliseconds since the Unix epoch.
    pub wall_ms: u64,
    /// The latest wall time that is accepted, in the same unit.
    pub limit_ms: u64,
}

/// The first millisecond of the year 10,000.
const LATEST_WALL_MS: u64 = 253_402_300_800_000;

/// How far beyond its own last stamp a clock that has passed [`LATEST_WALL_MS`] accepts stamps, in milliseconds.
const ROOM_MS: u64 = 60_000;

/// The hybrid logical clock of a node.
#[derive(Debug, Clone)]
pub struct HybridClock {
    author: Author,
    /// Wall time and counter of the latest stamp made or seen.
    last: (u64, u32),
}

impl HybridClock {
    /// The clock of `author`, which has seen no stamp yet.
    #[must_use]
    pub fn new(author: Author) -> Self {
        Self { author, last: (0, 0) }
    }

    /// Makes the stamps of another author from now on. They are still greater than all stamps made or seen before.
    pub fn set_author(&mut self, author: Author) {
        self.author = author;
    }

    /// Makes a stamp that is greater than all stamps that this clock has made or seen, with the wall time of `now` if
    /// that is later than all of them.
    pub fn tick(&mut self, now: Now) -> Stamp {
        let wall = millis(now.wall);
        self.last = match self.last {
            (last, _) if wall > last => (wall, 0),
            (last, u32::MAX) => (last.saturating_add(1), 0),
            (last, logical) => (last, logical + 1),
        };
        Stamp { wall_ms: self.last.0, logical: self.last.1, author: self.author }
    }

    /// Moves the clock on to a stamp of another node, so that this node's next stamp is greater.
    ///
    /// # Errors
    /// The stamp is too late to be believed; the clock has not changed.
    pub fn observe(&mut self, stamp: Stamp) -> Result<(), StampTooLate> {
        let limit_ms = LATEST_WALL_MS.max(self.last.0).saturating_add(ROOM_MS);
        if stamp.wall_ms > limit_ms {
            return Err(StampTooLate { wall_ms: stamp.wall_ms, limit_ms });
        }
        self.last = self.last.max((stamp.wall_ms, stamp.logical));
        Ok(())
    }
}

/// `time` in whole milliseconds, saturating.
#[must_use]
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now::at(Duration::from_millis(ms))
    }

    fn clock(author: u64) -> HybridClock {
        HybridClock::new(Author::from_u64(author))
    }

    fn stamp(wall_ms: u64, logical: u32) -> Stamp {
        Stamp { wall_ms, logical, author: Author::from_u64(9) }
    }

    #[test]
    fn stamps_of_one_clock_grow_when_the_wall_clock_stands_still_or_steps_back() {
        let mut clock = clock(1);
        let mut last = clock.tick(at(10_000_000));
        for ms in [10_000_000, 10_000_000, 9_000, 10_000_001, 3, 10_000_001] {
            let next = clock.tick(at(ms));
            assert!(next > last, "{next} after {last} at {ms}");
            last = next;
        }
    }

    #[test]
    fn a_stamp_is_greater_than_all_stamps_seen_before_however_far_they_are_ahead() {
        let day = 24 * 3_600_000;
        for seen in [stamp(50_000, 0), stamp(day, 7), stamp(day, u32::MAX), stamp(365 * day, 1)] {
            let mut here = clock(1);
            here.observe(seen).unwrap();
            let next = here.tick(at(20_000));
            assert!(next > seen, "{next} after {seen}");
        }
    }

    #[test]
    fn a_stamp_that_leaves_no_room_for_later_ones_is_refused_and_does_not_move_the_clock() {
        let mut clock = clock(1);
        for wall_ms in [u64::MAX, u64::MAX - 1, LATEST_WALL_MS + ROOM_MS + 1] {
            let error = clock.observe(stamp(wall_ms, u32::MAX)).unwrap_err();
            assert_eq!(error.wall_ms, wall_ms);
        }
        assert_eq!(clock.tick(at(1_000)).wall_ms, 1_000);
    }

    #[test]
    fn clocks_that_have_seen_the_latest_stamp_accept_the_stamps_of_each_other() {
        let (mut one, mut other) = (clock(1), clock(2));
        for clock in [&mut one, &mut other] {
            clock.observe(stamp(LATEST_WALL_MS + ROOM_MS, u32::MAX)).unwrap();
        }
        for _ in 0..1_000 {
            let next = one.tick(at(0));
            other.observe(next).unwrap();
            assert!(other.tick(at(0)) > next);
        }
    }

    #[test]
    fn generations_of_one_node_are_different_authors() {
        let name: smg_types::ids::NodeName = "a".parse().unwrap();
        let one = NodeId { name: name.clone(), generation: smg_types::ids::Generation(1) };
        let two = NodeId { name, generation: smg_types::ids::Generation(2) };
        assert_ne!(Author::of(&one), Author::of(&two));
    }
}
