//! The bytes of one row of each store, as every router since the first has written them.
//!
//! Routers of different versions share a cluster during an upgrade, so these bytes must not change. A new field needs a
//! new version of the content (see `row`), never a new meaning of these bytes.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use smg_types::ids::{Generation, NodeId, WorkerId};
use smg_types::now::Now;

use crate::replication::message::StoreNumber;
use crate::state::operations::{Draw, StoreOperations};
use crate::state::row::{self, RawRow};
use crate::state::store::Retention;
use crate::state::stores::{StoreVisitor, visit_stores};
use crate::state::usage::UsageKey;
use crate::state::{STORES, State, StoreId, Write, prefixes};

/// Writes of a store, of which the last makes a row with every field set.
#[derive(Debug)]
pub struct Golden {
    pub(crate) writes: Vec<Write>,
    /// The encoded key of that row, in hex.
    pub(crate) key: &'static str,
    /// The encoded content of that row, in hex.
    pub(crate) content: &'static str,
}

/// When, and by whom, the rows are written.
const NOW: Now =
    Now { mono: Duration::from_millis(5), wall: Duration::from_millis(1_700_000_000_000) };

pub(crate) fn node(name: &str, generation: u64) -> NodeId {
    NodeId { name: name.parse().unwrap(), generation: Generation(generation) }
}

pub(crate) fn window() -> UsageKey {
    UsageKey { rule: 11, subject: 12, start_ms: 1_700_000_000_000, length_ms: 60_000 }
}

/// The encoded [`window`].
pub(crate) const WINDOW_HEX: &str = "0b0cfd0068e5cf8b010000fb60ea";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write<S: StoreOperations>(golden: &Golden) -> RawRow {
    let mut state = State::new(&node("node1", 3), prefixes::Config::default());
    for write in &golden.writes {
        let written = state.write(NOW, write.clone()).unwrap();
        assert_eq!(written.map(|version| version.store), Some(S::ID));
    }
    let cut = state.replica(S::ID).rows_after(&state.writers, state.me, 0, 1 << 20);
    cut.rows.last().unwrap().clone()
}

#[test]
fn rows_of_every_store_keep_their_bytes() {
    struct Bytes;
    impl StoreVisitor for Bytes {
        fn visit<S: StoreOperations>(&mut self) {
            let golden = S::golden();
            let row = write::<S>(&golden);
            assert_eq!(hex(row.key.as_slice()), golden.key, "key of {}", S::NAME);
            assert_eq!(hex(row.content.as_slice()), golden.content, "content of {}", S::NAME);
        }
    }
    visit_stores(&mut Bytes);
}

#[test]
fn rows_of_stores_with_a_time_to_live_say_when_they_end_and_no_others() {
    struct Ends;
    impl StoreVisitor for Ends {
        fn visit<S: StoreOperations>(&mut self) {
            let row = write::<S>(&S::golden());
            let key = row::decode_key::<S::Key>(row.key.as_slice()).unwrap();
            let content = row::decode_content::<S::Value>(row.content.as_slice()).unwrap();
            let ends = S::expires_ms(&key, &content.add.unwrap());
            assert_eq!(ends.is_some(), S::RETENTION == Retention::TimeToLive, "{}", S::NAME);
        }
    }
    visit_stores(&mut Ends);
}

#[test]
fn a_sample_is_a_write_that_its_store_takes() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut state = State::new(&node("node1", 3), prefixes::Config::default());
    for number in 0..200 {
        for store in StoreId::ALL {
            let mut draw = Draw {
                number,
                worker: WorkerId::from_u64(u64::from(number % 4)),
                is_put: number % 3 > 0,
                other: Some(node("node2", 1)),
                wall_ms: 1_700_000_000_000,
                rng: &mut rng,
            };
            let write = Write::sample(store, &mut draw).unwrap();
            assert_eq!(write.store(), store);
            state.write(NOW, write).unwrap();
        }
    }
    for store in StoreId::ALL {
        assert!((1..=20).contains(&state.entries(store)), "{store}: {}", state.entries(store));
    }
}

#[test]
fn stores_keep_their_numbers_and_names() {
    let stores = StoreId::ALL.map(|store| (StoreNumber::from(store).0, store.name()));
    let expected = [
        (0, "workers"),
        (1, "policies"),
        (2, "rules"),
        (3, "rights"),
        (4, "usage"),
        (5, "tokens"),
        (6, "sessions"),
        (7, "observations"),
        (8, "load"),
        (9, "totals"),
        (10, "departures"),
    ];
    // A store that is added comes after these.
    assert_eq!(stores[..expected.len()], expected);
    let names: BTreeSet<&str> = StoreId::ALL.map(StoreId::name).into();
    assert_eq!(names.len(), STORES, "no two stores share a name");
    for store in StoreId::ALL {
        assert_eq!(StoreNumber::from(store).store(), Some(store));
    }
    assert_eq!(StoreNumber(255).store(), None);
}
