//! The rows that a simulated router holds, in the order in which they arrived, so that only what is new is sent to others.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};

use smg_limits::rows::{Row, WindowKey};

/// A router by its slot and generation.
pub(crate) type Writer = (usize, u64);

/// The key of a row. A row replaces an earlier one with the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// The roster has no writer: the latest one of all counts.
    Roster,
    Beat(Writer),
    Report(Writer, WindowKey),
    Life(Writer, u64),
    Grant(Writer, WindowKey, Writer),
}

impl Key {
    /// The router that writes rows of this key.
    pub(crate) fn writer(&self) -> Option<Writer> {
        match self {
            Self::Roster => None,
            Self::Beat(writer)
            | Self::Report(writer, _)
            | Self::Life(writer, _)
            | Self::Grant(writer, ..) => Some(*writer),
        }
    }
}

/// Orders the rows of one key: a count of the writer, or a time and the writer's slot.
pub(crate) type Version = (u64, usize);

#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) version: Version,
    pub(crate) row: Row,
    arrived: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Replica {
    rows: HashMap<Key, Held, BuildHasherDefault<DefaultHasher>>,
    /// The keys by the number of their arrival.
    arrivals: BTreeMap<u64, Key>,
    last: u64,
}

impl Replica {
    pub(crate) fn insert(&mut self, key: Key, version: Version, row: Row) {
        self.last += 1;
        self.arrivals.insert(self.last, key);
        let before = self.rows.insert(key, Held { version, row, arrived: self.last });
        if let Some(before) = before {
            self.arrivals.remove(&before.arrived);
        }
    }

    pub(crate) fn version(&self, key: &Key) -> Option<Version> {
        self.rows.get(key).map(|held| held.version)
    }

    /// The rows that arrived after arrival `seen`, each with the number of its arrival.
    pub(crate) fn since(&self, seen: u64) -> impl Iterator<Item = (u64, &Key, &Held)> {
        self.arrivals.range(seen + 1..).map(|(arrived, key)| (*arrived, key, &self.rows[key]))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &Held)> {
        self.rows.iter()
    }

    /// Drops the rows of which `keep` is false.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Row) -> bool) {
        self.rows.retain(|_, held| {
            let keeps = keep(&held.row);
            if !keeps {
                self.arrivals.remove(&held.arrived);
            }
            keeps
        });
    }
}
