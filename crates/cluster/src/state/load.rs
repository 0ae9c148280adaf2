//! The load store: the requests that each router has in flight at each worker, and the tokens of their prompts that wait there.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_types::ids::WorkerId;

#[cfg(test)]
use crate::state::golden::Golden;
use crate::state::operations::{Draw, StoreOperations};
use crate::state::store::{Ownership, Retention, Store};
use crate::state::store_id::StoreId;
use crate::state::table::{NodeParts, RefusedRow, Table};

/// The load store.
#[derive(Debug)]
pub enum Loads {}

impl Store for Loads {
    const NAME: &'static str = "load";
    const ID: StoreId = StoreId::Load;
    const OWNERSHIP: Ownership = Ownership::PerNode;
    const RETENTION: Retention = Retention::WithWriter;
    const COALESCING: Duration = Duration::from_millis(100);
    const MAX_ROWS: usize = 32_768;
    const MAX_CONTENT_BYTES: usize = 512;
    const IS_AWAITED: bool = false;
    const IS_IN_USE: bool = true;
    const IS_DURABLE: bool = false;

    type Key = WorkerId;
    type Value = Load;

    fn validate(_: &WorkerId, _: &Load) -> Result<(), String> {
        Ok(())
    }
}

impl StoreOperations for Loads {
    type Write = LoadWrite;

    fn write(
        table: &mut Table<Self>,
        parts: &mut NodeParts<'_>,
        LoadWrite { worker, load }: LoadWrite,
    ) -> Result<Option<u64>, RefusedRow> {
        table.put_or_remove(parts, worker, load)
    }

    fn sample(draw: &mut Draw<'_>) -> Option<LoadWrite> {
        let load = Load { requests: draw.number, tokens: 0 };
        Some(LoadWrite { worker: draw.worker, load: draw.is_put.then_some(load) })
    }

    #[cfg(test)]
    fn golden() -> Golden {
        let load = Load { requests: 5, tokens: 4096 };
        let worker = WorkerId::from_u64(7);
        Golden {
            writes: vec![LoadWrite { worker, load: Some(load) }.into()],
            key: "12772d30303030303030303030303030303037",
            content: "010105fb00100000",
        }
    }
}

/// A change of this router's load at a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadWrite {
    /// The worker.
    pub worker: WorkerId,
    /// The load at the worker; `None`: nothing is in flight.
    pub load: Option<Load>,
}

/// The load of a router at a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Load {
    /// Requests in flight.
    pub requests: u32,
    /// Tokens of their prompts that wait for their computation.
    pub tokens: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::table::tests::own::{OwnSample, events, play};

    impl OwnSample for Loads {
        const REMOVES: bool = true;

        fn key(_: usize, n: u8) -> WorkerId {
            WorkerId::from_u64(u64::from(n))
        }

        fn value(number: u64) -> Load {
            Load { requests: u32::try_from(number).unwrap(), tokens: 0 }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn loads_are_everywhere_as_written_last(events in events()) {
            play::<Loads>(&events)?;
        }
    }
}
