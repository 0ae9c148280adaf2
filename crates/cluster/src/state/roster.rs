//! The rosters store: the routers among which the limits are divided, one row in all, under the key 0. The last write wins; a router that
//! changes the roster has seen the one before. `smg_limits::roster` says when a roster counts.

use std::time::Duration;

use smg_limits::roster::Roster;

use crate::crdt::lww_register::LwwRegister;
use crate::crdt::stamp::Stamp;
use crate::state::beat::SOLE;
#[cfg(test)]
use crate::state::golden::Golden;
use crate::state::operations::{Draw, StoreOperations};
use crate::state::store::{Ownership, Retention, Store};
use crate::state::store_id::StoreId;
use crate::state::table::{NodeParts, RefusedRow, Table};

/// The rosters store.
#[derive(Debug)]
pub enum Rosters {}

impl Store for Rosters {
    const NAME: &'static str = "rosters";
    const ID: StoreId = StoreId::Rosters;
    const OWNERSHIP: Ownership = Ownership::Shared;
    const RETENTION: Retention = Retention::Never;
    const COALESCING: Duration = Duration::from_millis(5);
    const MAX_ROWS: usize = 16;
    const MAX_CONTENT_BYTES: usize = crate::state::row::MAX_CONTENT_BYTES;
    const IS_AWAITED: bool = false;
    const IS_IN_USE: bool = true;
    const IS_DURABLE: bool = false;

    type Key = u8;
    type Value = LwwRegister<Roster>;

    fn validate(_: &u8, value: &Self::Value) -> Result<(), String> {
        match value.get() {
            Some(roster) if roster.is_valid() => Ok(()),
            Some(roster) => Err(format!(
                "a roster of {} places and {} routers: each router once, and no more than places, expected",
                roster.size,
                roster.places.len()
            )),
            None => Err("the roster is empty".to_owned()),
        }
    }

    fn stamp(value: &Self::Value) -> Option<Stamp> {
        value.stamp()
    }
}

impl StoreOperations for Rosters {
    type Write = RosterWrite;

    fn write(
        table: &mut Table<Self>,
        parts: &mut NodeParts<'_>,
        RosterWrite(roster): RosterWrite,
    ) -> Result<Option<u64>, RefusedRow> {
        let stamp = parts.clock.tick(parts.now);
        table.put_shared(parts, &SOLE, LwwRegister::of(stamp, roster)).map(Some)
    }

    fn sample(draw: &mut Draw<'_>) -> Option<RosterWrite> {
        let places = draw.other.clone().into_iter().collect();
        Some(RosterWrite(Roster {
            version: draw.number.into(),
            size: 3,
            places,
            untouched_from: 3,
            most_taken: 1,
            previous: None,
        }))
    }

    #[cfg(test)]
    fn golden() -> Golden {
        let roster = Roster {
            version: 1,
            size: 3,
            places: vec![crate::state::golden::node("node2", 4)],
            untouched_from: 3,
            most_taken: 1,
            previous: None,
        };
        Golden {
            writes: vec![RosterWrite(roster).into()],
            key: "00",
            content: "010101fd0068e5cf8b01000000fdafdcd659883d46e7010301056e6f646532040301000000",
        }
    }
}

/// A new roster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RosterWrite(pub Roster);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::table::tests::{SharedSample, check_histories};

    impl SharedSample for Rosters {
        fn key(n: u8) -> u8 {
            n
        }

        fn value(_: u8, number: u64, stamp: Stamp, _: Option<&Self::Value>) -> Self::Value {
            let places = Vec::new();
            let roster = Roster {
                version: number,
                size: 1,
                places,
                untouched_from: 0,
                most_taken: 0,
                previous: None,
            };
            LwwRegister::of(stamp, roster)
        }

        fn number(value: &Self::Value) -> u64 {
            value.get().unwrap().version
        }
    }

    #[test]
    fn rosters_hold_what_an_add_wins_set_holds() {
        check_histories::<Rosters>(10_000);
    }
}
