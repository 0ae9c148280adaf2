//! Ranges of keys: a part of a snapshot on its way from a donor, and a part that was merged.

use std::collections::BTreeMap;

use crate::state::row::{Blob, RawRow};
use crate::state::writers::Writer;

/// A position in a log: everything up to `version` is covered, and tombstones up to `floor` may have been dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) writer: Writer,
    pub(crate) version: u64,
    pub(crate) floor: u64,
}

/// All that a donor knows about a range of keys.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotRange {
    /// The range begins after this key; `None`: at the first key.
    pub(crate) after: Option<Blob>,
    /// The range ends with this key; `None`: with the last key.
    pub(crate) end: Option<Blob>,
    /// The versions of each writer that the donor covers, and its floors.
    pub(crate) marks: Vec<Mark>,
    /// The rows, each with its writer.
    pub(crate) rows: Vec<(Writer, RawRow)>,
    /// Kills that wait at the donor (R8): the writer of the dots, the key, and the last version that is dead.
    pub(crate) pending: Vec<(Writer, Blob, u64)>,
}

/// All that is known about one key, as a snapshot would say it. It has neither rows nor kills if the key is gone.
#[derive(Debug, Clone)]
pub(crate) struct SavedKey {
    /// The encoded key.
    pub(crate) key: Blob,
    /// The rows, each with its writer.
    pub(crate) rows: Vec<(Writer, RawRow)>,
    /// Kills that wait (R8): the writer of the dots, and the last version that is dead.
    pub(crate) pending: Vec<(Writer, u64)>,
}

/// A range of a snapshot that was merged, and the versions that are covered under its keys although the logs do not cover
/// them.
#[derive(Debug)]
pub(super) struct MergedRange<K> {
    /// The range begins after this key; `None`: at the first key.
    pub(super) after: Option<K>,
    /// The range ends with this key; `None`: with the last key.
    pub(super) end: Option<K>,
    /// The versions that the donor covered and the logs here do not.
    pub(super) versions: BTreeMap<Writer, u64>,
}

impl<K: Ord> MergedRange<K> {
    /// Whether the range covers a dot under `key`.
    pub(super) fn covers(&self, key: &K, of: Writer, version: u64) -> bool {
        self.after.as_ref().is_none_or(|after| key > after)
            && self.end.as_ref().is_none_or(|end| key <= end)
            && self.versions.get(&of).is_some_and(|covered| *covered >= version)
    }

    /// Drops the version of `writer` if its log covers that now.
    pub(super) fn settle(&mut self, writer: Writer, covered: u64) {
        if self.versions.get(&writer).is_some_and(|version| *version <= covered) {
            self.versions.remove(&writer);
        }
    }

    /// Whether the logs cover all that the range does.
    pub(super) fn is_settled(&self) -> bool {
        self.versions.is_empty()
    }

    /// Extends the range by the one before it. The versions become those that both cover.
    pub(super) fn prepend(&mut self, before: Self) {
        self.after = before.after;
        self.versions.retain(|writer, version| match before.versions.get(writer) {
            Some(other) => {
                *version = (*version).min(*other);
                true
            }
            None => false,
        });
    }

    /// Whether the next key after `from` is in the range.
    pub(super) fn continues_after(&self, from: Option<&K>) -> bool {
        self.after.as_ref().is_none_or(|after| from.is_some_and(|from| from >= after))
            && self.end.as_ref().is_none_or(|end| from.is_none_or(|from| from < end))
    }

    /// Whether all keys of the range are in `other`.
    pub(super) fn is_inside(&self, other: &Self) -> bool {
        other.after.as_ref().is_none_or(|o| self.after.as_ref().is_some_and(|after| after >= o))
            && other.end.as_ref().is_none_or(|o| self.end.as_ref().is_some_and(|end| end <= o))
    }
}
