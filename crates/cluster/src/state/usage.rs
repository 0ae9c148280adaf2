//! The usage store: per window of a limit, what each node has admitted.
//!
//! Everything that is counted is keyed by its window, so that a window ends by being forgotten and no counter is ever set
//! back. A subject is named by a hash: no client's key is kept. A subject that nobody mentions has no row anywhere.

use serde::{Deserialize, Serialize};

use crate::state::StoreId;
use crate::state::table::Store;

/// Longest window: a week.
pub(crate) const MAX_WINDOW_MS: u32 = 7 * 24 * 3600 * 1000;

/// A rule's subject in one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UsageKey {
    /// Hash of the rule's id.
    pub rule: u64,
    /// Hash of whom it counts.
    pub subject: u64,
    /// Start of the window, in milliseconds of wall time.
    pub start_ms: u64,
    /// Its length.
    pub length_ms: u32,
}

impl UsageKey {
    /// Rows live for one more window, for the sliding estimate.
    pub(crate) fn expires_ms(&self) -> u64 {
        self.start_ms.saturating_add(2 * u64::from(self.length_ms))
    }

    pub(crate) fn validate(&self) -> Result<(), String> {
        if self.length_ms == 0 || self.length_ms > MAX_WINDOW_MS {
            return Err(format!("window of {} ms, 1 ms to a week expected", self.length_ms));
        }
        Ok(())
    }
}

/// The usage store: one slot of a G-Counter per node.
#[derive(Debug)]
pub enum Usage {}

impl Store for Usage {
    const ID: StoreId = StoreId::Usage;
    type Key = UsageKey;
    type Value = UsageCount;

    fn validate(key: &UsageKey, _: &UsageCount) -> Result<(), String> {
        key.validate()
    }

    fn expires_ms(key: &UsageKey, _: &UsageCount) -> Option<u64> {
        Some(key.expires_ms())
    }
}

/// What a node has admitted in a window; each number only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UsageCount {
    /// Requests.
    pub requests: u64,
    /// Tokens, settled.
    pub tokens: u64,
    /// Recent demand per window, smoothed: what grants are steered by. Not a counter.
    pub demand: u32,
}
