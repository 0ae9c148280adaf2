//! The departures store: the models whose last worker was removed, and until when they are remembered.
//!
//! Each router notices by itself that the last worker of a model has gone. The rows are for routers that were not there: a
//! router that joins later answers for such a model as the others do. The last write wins, and the row is removed when a
//! worker serves the model again.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_types::bounds;
use smg_types::ids::ModelId;

use crate::crdt::lww_register::LwwRegister;
use crate::crdt::stamp::{Stamp, millis};
#[cfg(test)]
use crate::state::golden::Golden;
use crate::state::operations::{Draw, StoreOperations};
use crate::state::store::{Ownership, Retention, Store};
use crate::state::store_id::StoreId;
use crate::state::table::{NodeParts, RefusedRow, Table};

/// The departures store.
#[derive(Debug)]
pub enum Departures {}

/// The longest time for which a model is remembered, 30 days.
pub const MAX_MEMORY: Duration = Duration::from_secs(30 * 24 * 3600);

impl Store for Departures {
    const NAME: &'static str = "departures";
    const ID: StoreId = StoreId::Departures;
    const OWNERSHIP: Ownership = Ownership::Shared;
    const RETENTION: Retention = Retention::TimeToLive;
    const COALESCING: Duration = Duration::from_millis(100);
    const MAX_ROWS: usize = 2_048;
    const MAX_CONTENT_BYTES: usize = 4 * 1024;
    const IS_AWAITED: bool = false;
    const IS_IN_USE: bool = true;
    const IS_DURABLE: bool = true;

    type Key = ModelId;
    type Value = LwwRegister<Departure>;

    fn validate(key: &ModelId, value: &Self::Value) -> Result<(), String> {
        let (bytes, bounds) = (key.as_str().len(), bounds::MODEL_NAME_BYTES);
        if !bounds.contains(&bytes) {
            return Err(format!("model name of {bytes} bytes, the limit is {}", bounds.end()));
        }
        let (Some(departure), Some(stamp)) = (value.get(), value.stamp()) else {
            return Err("the departure is empty".to_owned());
        };
        let memory_ms = departure.until_ms.saturating_sub(stamp.wall_ms);
        if memory_ms > millis(MAX_MEMORY) {
            return Err(format!("a model is remembered for {memory_ms} ms, the limit is 30 days"));
        }
        Ok(())
    }

    fn stamp(value: &Self::Value) -> Option<Stamp> {
        value.stamp()
    }

    fn expires_ms(_: &ModelId, value: &Self::Value) -> Option<u64> {
        Some(value.get().map_or(0, |departure| departure.until_ms))
    }
}

impl StoreOperations for Departures {
    type Write = DepartureWrite;

    fn write(
        table: &mut Table<Self>,
        parts: &mut NodeParts<'_>,
        DepartureWrite { model, remember }: DepartureWrite,
    ) -> Result<Option<u64>, RefusedRow> {
        let stamp = parts.clock.tick(parts.now);
        let Some(time) = remember else { return table.remove_shared(parts, &model) };
        let departure = Departure { until_ms: millis(parts.now.wall + time) };
        table.put_shared(parts, &model, LwwRegister::of(stamp, departure)).map(Some)
    }

    fn sample(draw: &mut Draw<'_>) -> Option<DepartureWrite> {
        let model = ModelId::new(format!("m{}", draw.number % 3));
        let remember = draw.is_put.then_some(Duration::from_secs(3600));
        Some(DepartureWrite { model, remember })
    }

    #[cfg(test)]
    fn golden() -> Golden {
        let write = DepartureWrite { model: "m".into(), remember: Some(Duration::from_secs(3600)) };
        Golden {
            writes: vec![write.into()],
            key: "016d",
            content: "010101fd0068e5cf8b01000000fdafdcd659883d46e7fd80561cd08b0100000000",
        }
    }
}

/// A change of what is remembered of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DepartureWrite {
    /// The model.
    pub model: ModelId,
    /// How long it is remembered, at most [`MAX_MEMORY`]; `None`: it is not, because a worker serves it.
    pub remember: Option<Duration>,
}

/// The departure of a model's last worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Departure {
    /// When the model is forgotten, in milliseconds of wall time.
    pub(super) until_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::table::tests::{SharedSample, check_histories};

    const BASE_MS: u64 = 2_000_000;

    impl SharedSample for Departures {
        fn key(n: u8) -> ModelId {
            ModelId::new(format!("m{n}"))
        }

        fn value(_: u8, number: u64, stamp: Stamp, _: Option<&Self::Value>) -> Self::Value {
            LwwRegister::of(stamp, Departure { until_ms: BASE_MS + number })
        }

        fn number(value: &Self::Value) -> u64 {
            value.get().unwrap().until_ms - BASE_MS
        }
    }

    #[test]
    fn departures_hold_what_an_add_wins_set_holds() {
        check_histories::<Departures>(2_500);
    }

    #[test]
    fn a_model_is_not_remembered_for_longer_than_30_days() {
        let stamp = Stamp { wall_ms: 1_000, ..Stamp::default() };
        let validate = |until_ms| {
            Departures::validate(&"m".into(), &LwwRegister::of(stamp, Departure { until_ms }))
        };
        assert_eq!(validate(1_000 + millis(MAX_MEMORY)), Ok(()));
        assert!(validate(1_001 + millis(MAX_MEMORY)).is_err());
    }
}
