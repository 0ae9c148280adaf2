//! The rights store: the rights that each node has granted to others, per window of a limit.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_types::ids::{Generation, NodeId, NodeName};

#[cfg(test)]
use crate::state::golden::{self, Golden};
use crate::state::operations::{Draw, StoreOperations};
use crate::state::store::{Ownership, Retention, Store};
use crate::state::store_id::StoreId;
use crate::state::table::{NodeParts, RefusedRow, Table};
use crate::state::usage::UsageKey;

/// The rights store. A row is what one node has granted to another, as in a `BoundedCounter`.
#[derive(Debug)]
pub enum Rights {}

impl Store for Rights {
    const NAME: &'static str = "rights";
    const ID: StoreId = StoreId::Rights;
    const OWNERSHIP: Ownership = Ownership::PerNode;
    const RETENTION: Retention = Retention::TimeToLive;
    const COALESCING: Duration = Duration::ZERO;
    const MAX_ROWS: usize = 65_536;
    const MAX_CONTENT_BYTES: usize = 512;
    const IS_AWAITED: bool = false;
    const IS_IN_USE: bool = true;
    const IS_DURABLE: bool = false;

    type Key = GrantKey;
    type Value = Granted;

    fn validate(key: &GrantKey, value: &Granted) -> Result<(), String> {
        key.window.validate()?;
        if value.expires_ms > key.window.expires_ms() {
            return Err("a grant expires after its window".to_owned());
        }
        Ok(())
    }

    fn expires_ms(key: &GrantKey, _: &Granted) -> Option<u64> {
        // The row outlives its grant, so that an expired grant can be distinguished from a missing one.
        Some(key.window.expires_ms())
    }
}

impl StoreOperations for Rights {
    type Write = GrantWrite;

    fn write(
        table: &mut Table<Self>,
        parts: &mut NodeParts<'_>,
        GrantWrite { key, granted }: GrantWrite,
    ) -> Result<Option<u64>, RefusedRow> {
        table.put(parts, key, granted).map(Some)
    }

    fn sample(draw: &mut Draw<'_>) -> Option<GrantWrite> {
        let key = GrantKey { window: UsageKey::sample(draw), to: draw.other.clone()? };
        let granted = Granted { amount: u64::from(draw.number), expires_ms: draw.wall_ms + 60_000 };
        Some(GrantWrite { key, granted })
    }

    #[cfg(test)]
    fn golden() -> Golden {
        let key = GrantKey { window: golden::window(), to: golden::node("node2", 4) };
        let granted = Granted { amount: 300, expires_ms: 1_700_000_001_000 };
        Golden {
            writes: vec![GrantWrite { key, granted }.into()],
            key: "0b0cfd0068e5cf8b010000fb60ea056e6f64653204",
            content: "0101fb2c01fde86be5cf8b0100000000",
        }
    }
}

/// All rights that this node has granted to another in a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantWrite {
    /// The window, and the node that gets the rights.
    pub key: GrantKey,
    /// How many, and when they expire.
    pub granted: Granted,
}

/// A window and a node that gets rights; the writer of the row grants them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GrantKey {
    /// The window.
    pub window: UsageKey,
    /// The generation of the node that gets the rights: a restarted node must not spend what its former generation got.
    pub to: NodeId,
}

/// Rights that were granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// All rights ever granted under this key; only grows.
    pub amount: u64,
    /// When the rights expire, in milliseconds of wall time. They do not return to the node that granted them.
    pub expires_ms: u64,
}

impl Table<Rights> {
    /// The keys of all grants of a window.
    pub(crate) fn keys_of_window<'a>(
        &'a self,
        window: &'a UsageKey,
    ) -> impl Iterator<Item = &'a GrantKey> + use<'a> {
        let to = NodeId { name: NodeName::least(), generation: Generation(0) };
        let first = GrantKey { window: *window, to };
        self.keys_from(&first).take_while(|key| key.window == *window)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::table::tests::own::{OwnSample, events, play};
    use crate::state::table::tests::{REPLICAS, writer};

    impl OwnSample for Rights {
        fn key(at: usize, n: u8) -> GrantKey {
            GrantKey { window: UsageKey::numbered(n), to: writer((at + 1) % REPLICAS) }
        }

        fn value(number: u64) -> Granted {
            Granted { amount: number, expires_ms: 1_030_000 }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn rights_are_everywhere_as_written_last(events in events()) {
            play::<Rights>(&events)?;
        }
    }
}
