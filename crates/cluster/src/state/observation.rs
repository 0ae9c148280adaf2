//! The observations store: the measurements that each router has made of each worker.
//!
//! The rows are measurements only; readers decide which routers' measurements count. The rows of a router are hidden while
//! it is down, and end with its generation.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_types::ids::WorkerId;

#[cfg(test)]
use crate::state::golden::Golden;
use crate::state::operations::{Draw, StoreOperations};
use crate::state::store::{Ownership, Retention, Store};
use crate::state::store_id::StoreId;
use crate::state::table::{NodeParts, RefusedRow, Table};

/// The observations store.
#[derive(Debug)]
pub enum Observations {}

impl Store for Observations {
    const NAME: &'static str = "observations";
    const ID: StoreId = StoreId::Observations;
    const OWNERSHIP: Ownership = Ownership::PerNode;
    const RETENTION: Retention = Retention::WithWriter;
    const COALESCING: Duration = Duration::from_millis(100);
    const MAX_ROWS: usize = 32_768;
    const MAX_CONTENT_BYTES: usize = 512;
    const IS_AWAITED: bool = false;
    const IS_IN_USE: bool = true;
    const IS_DURABLE: bool = false;

    type Key = WorkerId;
    type Value = Observation;

    fn validate(_: &WorkerId, _: &Observation) -> Result<(), String> {
        Ok(())
    }
}

impl StoreOperations for Observations {
    type Write = ObservationWrite;

    fn write(
        table: &mut Table<Self>,
        parts: &mut NodeParts<'_>,
        ObservationWrite { worker, seen }: ObservationWrite,
    ) -> Result<Option<u64>, RefusedRow> {
        table.put_or_remove(parts, worker, seen)
    }

    fn sample(draw: &mut Draw<'_>) -> Option<ObservationWrite> {
        let seen = Observation {
            health: SeenHealth::Healthy,
            breaker: SeenBreaker::Closed,
            latency_us: draw.number,
            restarts: 0,
            seen_ms: draw.wall_ms,
        };
        Some(ObservationWrite { worker: draw.worker, seen: draw.is_put.then_some(seen) })
    }

    #[cfg(test)]
    fn golden() -> Golden {
        let seen = Observation {
            health: SeenHealth::Unhealthy,
            breaker: SeenBreaker::Serving,
            latency_us: 12_345,
            restarts: 2,
            seen_ms: 1_700_000_000_000,
        };
        let worker = WorkerId::from_u64(7);
        Golden {
            writes: vec![ObservationWrite { worker, seen: Some(seen) }.into()],
            key: "12772d30303030303030303030303030303037",
            content: "01010203fb393002fd0068e5cf8b0100000000",
        }
    }
}

/// A change of this router's observation of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservationWrite {
    /// The worker.
    pub worker: WorkerId,
    /// The observation; `None`: this router does not use the worker any more.
    pub seen: Option<Observation>,
}

/// The measurements that one router has made of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// The result of the router's probes.
    pub health: SeenHealth,
    /// The state of the router's breaker.
    pub breaker: SeenBreaker,
    /// Smoothed time to the response head, in microseconds; 0: not measured.
    pub latency_us: u32,
    /// How often the router has found that the worker restarted with a cold cache.
    pub restarts: u32,
    /// When this was measured, in milliseconds of wall time.
    pub seen_ms: u64,
}

/// The result of a router's probes of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeenHealth {
    /// The router does not probe the worker.
    Unknown,
    /// Enough probes in a row succeeded.
    Healthy,
    /// Enough probes in a row failed.
    Unhealthy,
}

/// The state of a router's breaker for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeenBreaker {
    /// The breaker admits requests; none has succeeded recently.
    Closed,
    /// The breaker admits single requests, to try the worker.
    HalfOpen,
    /// The breaker admits no requests.
    Open,
    /// The breaker admits requests, and one has succeeded recently.
    Serving,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::table::tests::own::{OwnSample, events, play};

    impl OwnSample for Observations {
        const REMOVES: bool = true;

        fn key(_: usize, n: u8) -> WorkerId {
            WorkerId::from_u64(u64::from(n))
        }

        fn value(number: u64) -> Observation {
            Observation {
                health: SeenHealth::Healthy,
                breaker: SeenBreaker::Closed,
                latency_us: 0,
                restarts: 0,
                seen_ms: number,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn observations_are_everywhere_as_written_last(events in events()) {
            play::<Observations>(&events)?;
        }
    }
}
