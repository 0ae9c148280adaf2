//! The log of one writer in one store: which of its rows are here, and how much of the log that is.
//!
//! A log is described by five versions of its writer, see [`LogPosition`]. What must hold between them, and from one moment
//! to the next, is stated once, in [`Log::check`] and [`LogPosition::check_after`]. The simulator and the property tests
//! call both after each step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::state::table::cell::BUCKETS;
use crate::state::table::not_applied::{MAX_NOT_APPLIED, NotAppliedReason};

/// A table keeps this many tombstones, or two per live row if that is more.
pub(super) const FREE_TOMBSTONES: usize = 2048;

#[derive(Debug)]
pub(super) struct Log<K> {
    /// The key of each row, by the version of the row.
    pub(super) by_version: BTreeMap<u64, K>,
    /// Versions of rows that are tombstones or carry kills.
    pub(super) tombstones: BTreeSet<u64>,
    /// See [`LogPosition::applied`]. Of this node's own log: the last version written.
    pub(super) applied: u64,
    /// See [`LogPosition::covered`], without regard to the hole. A delta that was cut lacks the rows that had moved to
    /// beyond the cut, so `applied` alone does not show which rows are dead (R10).
    pub(super) covered: u64,
    /// See [`LogPosition::target`]: where the senders of such deltas were, and rows that came before their log.
    pub(super) target: u64,
    /// See [`LogPosition::floor`].
    pub(super) floor: u64,
    /// See [`LogPosition::hole`]. Nothing from it on is sent to others, nor believed to be dead because it is missing
    /// here (R13).
    pub(super) hole: Option<u64>,
    /// The latest rows that this node refused to keep, oldest first, at most [`MAX_NOT_APPLIED`].
    pub(super) refused: VecDeque<(u64, NotAppliedReason)>,
    /// A fingerprint of the live rows in each bucket of keys; `None` if there was never a row.
    pub(super) fingerprints: Option<Box<[u64; BUCKETS]>>,
}

impl<K> Default for Log<K> {
    fn default() -> Self {
        Self {
            by_version: BTreeMap::new(),
            tombstones: BTreeSet::new(),
            applied: 0,
            covered: 0,
            target: 0,
            floor: 0,
            hole: None,
            refused: VecDeque::new(),
            fingerprints: None,
        }
    }
}

impl<K> Log<K> {
    /// How many rows are no tombstones and carry no kills.
    pub(super) fn living(&self) -> usize {
        self.by_version.len() - self.tombstones.len()
    }

    /// Whether a foreign writer has as many rows as it may: it should have refused to write more.
    pub(super) fn is_full(&self, max_rows: usize) -> bool {
        self.living() >= max_rows || self.by_version.len() >= 4 * max_rows + 2 * FREE_TOMBSTONES
    }

    /// `version`, or the last version before the hole if that is lower.
    pub(super) fn before_hole(&self, version: u64) -> u64 {
        self.hole.map_or(version, |hole| version.min(hole - 1))
    }

    /// The version up to which a row that is not held is dead.
    pub(super) fn covered(&self) -> u64 {
        self.before_hole(self.covered)
    }

    /// The row of this version is not kept: nothing from it on is covered (R13).
    pub(super) fn refuse(&mut self, version: u64, reason: NotAppliedReason) {
        self.hole = Some(self.hole.map_or(version, |hole| hole.min(version)));
        if self.refused.len() == MAX_NOT_APPLIED {
            self.refused.pop_front();
        }
        self.refused.push_back((version, reason));
    }

    /// Rows up to `to` were applied, from a log that was at `upto`.
    pub(super) fn advance(&mut self, to: u64, upto: u64) {
        self.target = self.target.max(upto);
        self.applied = self.applied.max(to);
        if self.applied >= self.target {
            self.covered = self.applied;
        }
    }

    /// A snapshot has shown that everything up to `version` is here or dead.
    pub(super) fn claim(&mut self, version: u64) {
        self.covered = self.covered.max(version);
        self.advance(version, version);
    }

    pub(super) fn position(&self) -> LogPosition {
        LogPosition {
            applied: self.applied,
            covered: self.covered,
            target: self.target,
            floor: self.floor,
            hole: self.hole,
        }
    }

    /// Checks all that must hold of a log at any moment. `is_own`: this node writes the log itself.
    ///
    /// # Errors
    ///
    /// The first invariant that is broken, with its numbers.
    pub(super) fn check(&self, is_own: bool) -> Result<(), BrokenInvariant> {
        let position = self.position();
        position.check(is_own)?;
        let target = position.target;
        for version in [self.by_version.first_key_value(), self.by_version.last_key_value()] {
            if let Some((&version, _)) = version
                && (version == 0 || version > target)
            {
                return Err(BrokenInvariant::RowOutsideLog { version, target });
            }
        }
        let stray = self.tombstones.iter().find(|version| !self.by_version.contains_key(version));
        if let Some(&version) = stray {
            return Err(BrokenInvariant::TombstoneWithoutRow { version });
        }
        Ok(())
    }
}

/// How far this node is in the log of one writer. All versions are the writer's own; 0 is before its first write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogPosition {
    /// Every row up to here has been applied, unless it has moved to a later version since.
    pub applied: u64,
    /// Nothing was missing at this version: a row up to here that is not held is dead.
    pub covered: u64,
    /// The log is known to go at least this far.
    pub target: u64,
    /// Rows up to here may have been dropped although a node that is behind would need them.
    pub floor: u64,
    /// The first row that this node refused to keep; `None`: it kept all.
    pub hole: Option<u64>,
}

impl LogPosition {
    /// Checks what must hold of the five versions at any moment. `is_own`: this node writes the log itself.
    ///
    /// # Errors
    ///
    /// The first invariant that is broken, with its numbers.
    pub fn check(&self, is_own: bool) -> Result<(), BrokenInvariant> {
        let Self { applied, covered, target, floor, hole } = *self;
        if covered > applied {
            return Err(BrokenInvariant::CoveredAboveApplied { covered, applied });
        }
        if applied > target {
            return Err(BrokenInvariant::AppliedAboveTarget { applied, target });
        }
        if applied == target && covered < applied {
            return Err(BrokenInvariant::WholeButNotCovered { covered, applied });
        }
        if hole == Some(0) {
            return Err(BrokenInvariant::HoleBeforeFirstRow);
        }
        if is_own && (covered < target || floor > applied || hole.is_some()) {
            return Err(BrokenInvariant::OwnLogIncomplete { position: *self });
        }
        Ok(())
    }

    /// Checks that the log has only moved forward since it was at `before`: the versions never fall, and a row that was
    /// refused is never taken later.
    ///
    /// # Errors
    ///
    /// An error names the version that has moved back, with its values before and after.
    pub fn check_after(&self, before: &Self) -> Result<(), BrokenInvariant> {
        for (version, before, after) in [
            ("applied", before.applied, self.applied),
            ("covered", before.covered, self.covered),
            ("target", before.target, self.target),
            ("floor", before.floor, self.floor),
        ] {
            if after < before {
                let (before, after) = (Some(before), Some(after));
                return Err(BrokenInvariant::MovedBack { version, before, after });
            }
        }
        // The hole moves the other way: towards the first row.
        let (before, after) = (before.hole, self.hole);
        if before.is_some_and(|before| after.is_none_or(|after| after > before)) {
            return Err(BrokenInvariant::MovedBack { version: "hole", before, after });
        }
        Ok(())
    }
}

/// An invariant of a log that does not hold: a bug in replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokenInvariant {
    /// A row that is not applied can't be known to be dead.
    #[error("covered up to {covered}, but applied only up to {applied}")]
    CoveredAboveApplied {
        /// Up to where rows that are not held are taken for dead.
        covered: u64,
        /// Up to where rows are applied.
        applied: u64,
    },
    /// A log goes at least as far as what was applied of it.
    #[error("applied up to {applied}, beyond the target {target}")]
    AppliedAboveTarget {
        /// Up to where rows are applied.
        applied: u64,
        /// How far the log is known to go.
        target: u64,
    },
    /// Once all that is known of a log is applied, nothing of it is missing.
    #[error("applied up to its target {applied}, but covered only up to {covered}")]
    WholeButNotCovered {
        /// Up to where rows that are not held are taken for dead.
        covered: u64,
        /// Up to where rows are applied, which is the target too.
        applied: u64,
    },
    /// Versions begin with 1.
    #[error("the hole is at version 0, before the first row")]
    HoleBeforeFirstRow,
    /// The target is raised before a row is taken in.
    #[error("row of version {version} is outside of 1..={target}")]
    RowOutsideLog {
        /// The row's version.
        version: u64,
        /// How far the log is known to go.
        target: u64,
    },
    /// The tombstones are an index of the rows.
    #[error("tombstone of version {version} has no row")]
    TombstoneWithoutRow {
        /// The version that names no row.
        version: u64,
    },
    /// A node has all of its own log: nothing is missing, refused, or collected before it was written.
    #[error("the node's own log is incomplete: {position:?}")]
    OwnLogIncomplete {
        /// Where the own log is.
        position: LogPosition,
    },
    /// A log only moves forward.
    #[error("{version} moved back, from {before:?} to {after:?}")]
    MovedBack {
        /// Name of the version that did.
        version: &'static str,
        /// Its value before.
        before: Option<u64>,
        /// Its value now.
        after: Option<u64>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A foreign log of ten versions, of which this node has applied eight and covers five.
    fn sound() -> Log<()> {
        let mut log = Log::default();
        log.advance(5, 5);
        log.advance(8, 10);
        for version in [2, 4, 9] {
            log.by_version.insert(version, ());
        }
        log.tombstones.insert(4);
        log.floor = 1;
        log
    }

    fn broken(change: impl FnOnce(&mut Log<()>)) -> String {
        let mut log = sound();
        change(&mut log);
        log.check(false).expect_err("the change breaks an invariant").to_string()
    }

    #[test]
    fn a_log_that_a_delta_or_a_snapshot_has_moved_is_sound() {
        let mut log = sound();
        assert_eq!(log.check(false), Ok(()));
        log.claim(7);
        assert_eq!((log.covered, log.check(false)), (7, Ok(())));
        log.advance(10, 10);
        assert_eq!((log.covered, log.check(false)), (10, Ok(())));
    }

    #[test]
    fn covered_above_applied_is_found() {
        let found = broken(|log| log.covered = 9);
        assert_eq!(found, "covered up to 9, but applied only up to 8");
    }

    #[test]
    fn applied_above_the_target_is_found() {
        let found = broken(|log| log.target = 7);
        assert_eq!(found, "applied up to 8, beyond the target 7");
    }

    #[test]
    fn a_whole_log_that_is_not_covered_is_found() {
        let found = broken(|log| log.applied = 10);
        assert_eq!(found, "applied up to its target 10, but covered only up to 5");
    }

    #[test]
    fn a_hole_before_the_first_row_is_found() {
        let found = broken(|log| log.hole = Some(0));
        assert_eq!(found, "the hole is at version 0, before the first row");
    }

    #[test]
    fn a_row_outside_of_the_log_is_found() {
        let found = broken(|log| {
            log.by_version.insert(11, ());
        });
        assert_eq!(found, "row of version 11 is outside of 1..=10");
        let found = broken(|log| {
            log.by_version.insert(0, ());
        });
        assert_eq!(found, "row of version 0 is outside of 1..=10");
    }

    #[test]
    fn a_tombstone_without_a_row_is_found() {
        let found = broken(|log| {
            log.by_version.remove(&4);
        });
        assert_eq!(found, "tombstone of version 4 has no row");
    }

    #[test]
    fn an_own_log_that_is_incomplete_is_found() {
        let own = LogPosition { applied: 5, covered: 5, target: 5, floor: 5, hole: None };
        assert_eq!(own.check(true), Ok(()));
        for incomplete in [
            LogPosition { target: 6, ..own },
            LogPosition { floor: 6, ..own },
            LogPosition { hole: Some(3), ..own },
        ] {
            assert_eq!(incomplete.check(false), Ok(()), "in order where the log is foreign");
            let found = BrokenInvariant::OwnLogIncomplete { position: incomplete };
            assert_eq!(incomplete.check(true), Err(found));
        }
    }

    #[test]
    fn a_log_that_moves_back_is_found() {
        let before = LogPosition { applied: 5, covered: 4, target: 6, floor: 3, hole: Some(5) };
        assert_eq!(before.check_after(&before), Ok(()));
        let forward = LogPosition { applied: 6, covered: 6, target: 7, floor: 5, hole: Some(1) };
        assert_eq!(forward.check_after(&before), Ok(()));
        for (after, what) in [
            (LogPosition { applied: 4, ..before }, "applied moved back, from Some(5) to Some(4)"),
            (LogPosition { covered: 3, ..before }, "covered moved back, from Some(4) to Some(3)"),
            (LogPosition { target: 5, ..before }, "target moved back, from Some(6) to Some(5)"),
            (LogPosition { floor: 2, ..before }, "floor moved back, from Some(3) to Some(2)"),
            (LogPosition { hole: Some(6), ..before }, "hole moved back, from Some(5) to Some(6)"),
            (LogPosition { hole: None, ..before }, "hole moved back, from Some(5) to None"),
        ] {
            let found = after.check_after(&before).map_err(|broken| broken.to_string());
            assert_eq!(found, Err(what.to_owned()));
        }
    }
}
