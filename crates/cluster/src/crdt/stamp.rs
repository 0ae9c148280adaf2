//! Stamps of a hybrid logical clock: a total order of the writes of all nodes that follows causality and is close to wall
//! time.
//!
//! After Kulkarni et al., "Logical Physical Clocks" (2014). A node whose wall clock is ahead does not move the clocks of
//! the others: a stamp too far in the future is refused. A hybrid clock that is too far ahead of its own wall clock,
//! because that was set back, restarts from the wall clock. Stamps order values; the rows of one writer are ordered by
//! their versions, never by stamps.

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

/// A stamp is further ahead of this node's wall clock than clocks may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stamp is {ahead_ms} ms ahead of this node's clock, the limit is {limit_ms} ms")]
pub struct AheadError {
    /// How far the stamp is ahead, in milliseconds.
    pub ahead_ms: u64,
    /// How far a stamp may be ahead, in milliseconds.
    pub limit_ms: u64,
}

/// The hybrid logical clock of a node.
#[derive(Debug, Clone)]
pub struct HybridClock {
    author: Author,
    max_ahead_ms: u64,
    /// Wall time and counter of the latest stamp made or seen.
    last: (u64, u32),
    steps_back: u64,
}

impl HybridClock {
    /// How far a stamp may be ahead of the wall clock by default.
    pub const MAX_AHEAD: Duration = Duration::from_secs(60);

    /// The clock of `author`, which refuses stamps more than `max_ahead` ahead of the wall clock.
    #[must_use]
    pub fn new(author: Author, max_ahead: Duration) -> Self {
        Self { author, max_ahead_ms: millis(max_ahead), last: (0, 0), steps_back: 0 }
    }

    /// Makes the stamps of another author from now on. They are still greater than all stamps made or seen before.
    pub fn set_author(&mut self, author: Author) {
        self.author = author;
    }

    /// Makes a stamp greater than all stamps that this clock has made or seen. Exception: if the wall clock was set back by
    /// more than the bound, the clock restarts from it, because other nodes would refuse stamps that are too far ahead.
    pub fn tick(&mut self, now: Now) -> Stamp {
        let wall = millis(now.wall);
        if self.last.0 > wall.saturating_add(self.max_ahead_ms) {
            self.steps_back += 1;
            self.last = (wall, 0);
        } else if wall > self.last.0 {
            self.last = (wall, 0);
        } else if self.last.1 == u32::MAX {
            self.last = (self.last.0 + 1, 0);
        } else {
            self.last.1 += 1;
        }
        Stamp { wall_ms: self.last.0, logical: self.last.1, author: self.author }
    }

    /// Moves the clock on to a stamp of another node, so that this node's next stamp is greater.
    ///
    /// # Errors
    /// The stamp is too far ahead; the clock has not changed.
    pub fn observe(&mut self, stamp: Stamp, now: Now) -> Result<(), AheadError> {
        self.check(stamp, now)?;
        self.last = self.last.max((stamp.wall_ms, stamp.logical));
        Ok(())
    }

    /// Checks that `stamp` is not too far ahead of the wall clock.
    ///
    /// # Errors
    /// It is too far ahead.
    pub fn check(&self, stamp: Stamp, now: Now) -> Result<(), AheadError> {
        let ahead_ms = stamp.wall_ms.saturating_sub(millis(now.wall));
        if ahead_ms > self.max_ahead_ms {
            return Err(AheadError { ahead_ms, limit_ms: self.max_ahead_ms });
        }
        Ok(())
    }

    /// How often the clock has restarted because the wall clock was set back by more than the bound.
    #[must_use]
    pub fn steps_back(&self) -> u64 {
        self.steps_back
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
        HybridClock::new(Author::from_u64(author), HybridClock::MAX_AHEAD)
    }

    #[test]
    fn stamps_of_one_clock_grow_when_the_wall_clock_stands_still_or_steps_back() {
        let mut clock = clock(1);
        let mut last = clock.tick(at(10_000));
        for ms in [10_000, 10_000, 9_000, 10_001, 3, 10_001] {
            let next = clock.tick(at(ms));
            assert!(next > last, "{next} after {last} at {ms}");
            last = next;
        }
        assert_eq!(clock.steps_back(), 0);
    }

    #[test]
    fn a_stamp_is_greater_than_all_stamps_seen_before() {
        let mut here = clock(1);
        let mut there = clock(2);
        let seen = there.tick(at(50_000));
        here.observe(seen, at(20_000)).unwrap();
        assert!(here.tick(at(20_000)) > seen);
    }

    #[test]
    fn a_stamp_too_far_ahead_is_refused_and_does_not_move_the_clock() {
        let mut clock = clock(1);
        let poison = Stamp { wall_ms: u64::MAX, logical: u32::MAX, author: Author::from_u64(9) };
        let error = clock.observe(poison, at(1_000)).unwrap_err();
        assert_eq!(error.limit_ms, 60_000);
        assert_eq!(clock.tick(at(1_000)).wall_ms, 1_000);
        let edge = Stamp { wall_ms: 61_000, ..poison };
        assert!(clock.observe(edge, at(1_000)).is_ok());
        let beyond = Stamp { wall_ms: 61_001, ..poison };
        assert!(clock.observe(beyond, at(1_000)).is_err());
        // A counter at its maximum carries into the milliseconds.
        assert_eq!(clock.tick(at(1_000)).wall_ms, 61_001);
    }

    #[test]
    fn a_clock_restarts_from_a_wall_clock_that_was_set_back_by_an_hour() {
        let mut clock = clock(1);
        clock.tick(at(3_600_000));
        assert_eq!(clock.tick(at(1_000)).wall_ms, 1_000);
        assert_eq!(clock.steps_back(), 1);
    }

    #[test]
    fn generations_of_one_node_are_different_authors() {
        let name: smg_types::ids::NodeName = "a".parse().unwrap();
        let one = NodeId { name: name.clone(), generation: smg_types::ids::Generation(1) };
        let two = NodeId { name, generation: smg_types::ids::Generation(2) };
        assert_ne!(Author::of(&one), Author::of(&two));
    }
}
