//! The keys and their values in memory, and changes of them.

use std::collections::BTreeMap;

/// Changes of keys that belong together: after a crash, all of them are there or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Batch {
    /// Gives `key` a value.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changes.insert(key, Some(value));
    }

    /// Removes `key`.
    pub fn remove(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
    }

    /// Adds the changes of a later batch.
    pub fn append(&mut self, later: Self) {
        self.changes.extend(later.changes);
    }

    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The number of keys that change.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    pub(crate) fn into_changes(self) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
        self.changes
    }
}

/// All keys, and how many bytes they and their values have.
#[derive(Debug, Default)]
pub(crate) struct Image {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    bytes: usize,
}

impl Image {
    /// Makes one change; returns whether there was anything to change.
    pub(crate) fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) -> bool {
        if self.values.get(&key) == value.as_ref() {
            return false;
        }
        let key_bytes = key.len();
        let added = value.as_ref().map_or(0, |value| key_bytes + value.len());
        let old = match value {
            Some(value) => self.values.insert(key, value),
            None => self.values.remove(&key),
        };
        self.bytes += added;
        self.bytes -= old.map_or(0, |old| key_bytes + old.len());
        true
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Vec<u8>> {
        self.values.get(key)
    }

    pub(crate) fn values(&self) -> &BTreeMap<Vec<u8>, Vec<u8>> {
        &self.values
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}
