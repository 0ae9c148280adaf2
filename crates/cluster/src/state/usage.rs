//! The usage store: the requests that each node has admitted, per window of a limit.
//!
//! The key of each count contains its window. When a window is past, its rows expire; no counter is ever reset. The
//! subject of a rule is stored as a hash, so that no key of a client is stored. A subject without requests has no row.

use std::time::Duration;

use serde::{Deserialize, Serialize};

#[cfg(test)]
use crate::state::golden::{self, Golden};
use crate::state::operations::{Draw, StoreOperations};
use crate::state::store::{Ownership, Retention, Store};
use crate::state::store_id::StoreId;
use crate::state::table::{NodeParts, RefusedRow, Table};

/// Longest window, in milliseconds: a week.
pub(crate) const MAX_WINDOW_MS: u32 = 7 * 24 * 3600 * 1000;

/// A window of a rule, for one subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UsageKey {
    /// A hash of the rule's id.
    pub rule: u64,
    /// A hash of the subject.
    pub subject: u64,
    /// Start of the window, in milliseconds of wall time.
    pub start_ms: u64,
    /// Length of the window, in milliseconds; at most a week.
    pub length_ms: u32,
}

impl UsageKey {
    /// When rows of the window expire, in milliseconds of wall time: one window later, because a sliding estimate needs
    /// the counts of the previous window.
    pub(crate) fn expires_ms(&self) -> u64 {
        self.start_ms.saturating_add(2 * u64::from(self.length_ms))
    }

    /// One of three windows, each an hour long.
    pub(crate) fn sample(draw: &Draw<'_>) -> Self {
        let subject = u64::from(draw.number % 3);
        Self { rule: 1, subject, start_ms: draw.wall_ms, length_ms: 3_600_000 }
    }

    /// The window of the subject `n`, a minute long.
    #[cfg(test)]
    pub(crate) fn numbered(n: u8) -> Self {
        Self { rule: 1, subject: u64::from(n), start_ms: 1_000_000, length_ms: 60_000 }
    }

    pub(crate) fn validate(&self) -> Result<(), String> {
        if self.length_ms == 0 || self.length_ms > MAX_WINDOW_MS {
            return Err(format!("window of {} ms, 1 ms to a week expected", self.length_ms));
        }
        Ok(())
    }
}

/// The usage store. The rows of a window are the slots of a `GCounter`.
#[derive(Debug)]
pub enum Usage {}

impl Store for Usage {
    const NAME: &'static str = "usage";
    const ID: StoreId = StoreId::Usage;
    const OWNERSHIP: Ownership = Ownership::PerNode;
    const RETENTION: Retention = Retention::TimeToLive;
    const COALESCING: Duration = Duration::from_millis(5);
    const MAX_ROWS: usize = 262_144;
    const MAX_CONTENT_BYTES: usize = 512;
    const IS_AWAITED: bool = false;
    const IS_IN_USE: bool = true;
    const IS_DURABLE: bool = false;

    type Key = UsageKey;
    type Value = UsageCount;

    fn validate(key: &UsageKey, _: &UsageCount) -> Result<(), String> {
        key.validate()
    }

    fn expires_ms(key: &UsageKey, _: &UsageCount) -> Option<u64> {
        Some(key.expires_ms())
    }
}

impl StoreOperations for Usage {
    type Write = UsageWrite;

    fn write(
        table: &mut Table<Self>,
        parts: &mut NodeParts<'_>,
        UsageWrite { key, count }: UsageWrite,
    ) -> Result<Option<u64>, RefusedRow> {
        table.put(parts, key, count).map(Some)
    }

    fn sample(draw: &mut Draw<'_>) -> Option<UsageWrite> {
        let count = UsageCount { requests: u64::from(draw.number), ..UsageCount::default() };
        Some(UsageWrite { key: UsageKey::sample(draw), count })
    }

    #[cfg(test)]
    fn golden() -> Golden {
        let count = UsageCount { requests: 300, wanted: 70_000 };
        Golden {
            writes: vec![UsageWrite { key: golden::window(), count }.into()],
            key: golden::WINDOW_HEX,
            content: "0101fb2c01fc701101000000",
        }
    }
}

/// All that this node has admitted in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsageWrite {
    /// The window.
    pub key: UsageKey,
    /// The counts since the window began.
    pub count: UsageCount,
}

/// The requests that a node has admitted in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UsageCount {
    /// Requests; only grows.
    pub requests: u64,
    /// Requests for which the node expects demand beyond its rights, by which other nodes decide how many to grant.
    pub wanted: u64,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crdts::{CmRDT, GCounter};
    use proptest::prelude::*;

    use super::*;
    use crate::state::table::tests::KEYS;
    use crate::state::table::tests::own::{OwnSample, counts, events, play};

    impl OwnSample for Usage {
        fn key(_: usize, n: u8) -> UsageKey {
            UsageKey::numbered(n)
        }

        fn value(number: u64) -> UsageCount {
            UsageCount { requests: number, ..UsageCount::default() }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn usage_reads_as_a_g_counter(events in events()) {
            let rows = play::<Usage>(&events)?;
            for n in 0..KEYS {
                let mut oracle = GCounter::new();
                let mut before: BTreeMap<usize, u64> = BTreeMap::new();
                for (at, total) in counts(&events, n) {
                    let last = before.insert(at, total).unwrap_or_default();
                    oracle.apply(oracle.inc_many(at, total - last));
                }
                let here: u64 = rows
                    .iter()
                    .filter(|((_, key), _)| *key == UsageKey::numbered(n))
                    .map(|(_, count)| count.requests)
                    .sum();
                prop_assert_eq!(oracle.read().to_string(), here.to_string());
            }
        }
    }
}
