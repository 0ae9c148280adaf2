//! The beats store: each node's regular message about the limits, by which nodes know who is there and who inherits whose share.
//! `smg_limits::votes` says what the messages mean.

use std::time::Duration;

use smg_limits::rows::Beat;

#[cfg(test)]
use crate::state::golden::Golden;
use crate::state::operations::{Draw, StoreOperations};
use crate::state::store::{Ownership, Retention, Store};
use crate::state::store_id::StoreId;
use crate::state::table::{NodeParts, RefusedRow, Table};

/// The key of a store that has one row per node, or one row in all.
pub(crate) const SOLE: u8 = 0;

/// The most routers that a beat names.
const MAX_NAMES: usize = 1_024;

/// The beats store.
#[derive(Debug)]
pub enum Beats {}

impl Store for Beats {
    const NAME: &'static str = "beats";
    const ID: StoreId = StoreId::Beats;
    const OWNERSHIP: Ownership = Ownership::PerNode;
    const RETENTION: Retention = Retention::WithWriter;
    const COALESCING: Duration = Duration::ZERO;
    const MAX_ROWS: usize = 1;
    const MAX_CONTENT_BYTES: usize = crate::state::row::MAX_CONTENT_BYTES;
    const IS_AWAITED: bool = false;
    const IS_IN_USE: bool = true;
    const IS_DURABLE: bool = false;

    type Key = u8;
    type Value = Beat;

    fn validate(key: &u8, value: &Beat) -> Result<(), String> {
        if *key != SOLE {
            return Err(format!("key {key}, {SOLE} expected"));
        }
        let most = value.heard.len().max(value.claims.len()).max(value.promises.len());
        if most > MAX_NAMES {
            return Err(format!("{most} routers, the limit is {MAX_NAMES}"));
        }
        Ok(())
    }
}

impl StoreOperations for Beats {
    type Write = BeatWrite;

    fn write(
        table: &mut Table<Self>,
        parts: &mut NodeParts<'_>,
        BeatWrite(beat): BeatWrite,
    ) -> Result<Option<u64>, RefusedRow> {
        table.put(parts, SOLE, beat).map(Some)
    }

    fn sample(draw: &mut Draw<'_>) -> Option<BeatWrite> {
        Some(BeatWrite(Beat { at_ms: u64::from(draw.number), ..Beat::default() }))
    }

    #[cfg(test)]
    fn golden() -> Golden {
        let beat = Beat { at_ms: 300, expected: Some(3), ..Beat::default() };
        Golden {
            writes: vec![BeatWrite(beat).into()],
            key: "00",
            content: "0101fb2c01010300000000000000",
        }
    }
}

/// The beat of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeatWrite(pub Beat);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_with_too_many_names_is_refused() {
        let name: smg_types::ids::NodeName = "a".parse().unwrap();
        let beat = Beat { claims: vec![name; MAX_NAMES + 1], ..Beat::default() };
        assert!(Beats::validate(&SOLE, &beat).is_err());
        assert!(Beats::validate(&1, &Beat::default()).is_err());
        assert!(Beats::validate(&SOLE, &Beat::default()).is_ok());
    }
}
