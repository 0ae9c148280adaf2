//! The observations store: what each router sees of each worker.
//!
//! Records without judgement: whose word counts is decided where they are read. A router's rows are hidden while it is
//! taken for dead and end with its life.

use serde::{Deserialize, Serialize};
use smg_types::ids::WorkerId;

use crate::state::StoreId;
use crate::state::table::Store;

/// The observations store.
#[derive(Debug)]
pub enum Observations {}

impl Store for Observations {
    const ID: StoreId = StoreId::Observations;
    type Key = WorkerId;
    type Value = Observation;

    fn validate(_: &WorkerId, _: &Observation) -> Result<(), String> {
        Ok(())
    }
}

/// What one router saw of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// What its probes say.
    pub health: SeenHealth,
    /// What its traffic says.
    pub breaker: SeenBreaker,
    /// Smoothed time to the response head, in microseconds; 0: none measured.
    pub latency_us: u32,
    /// Counts the times that the worker came back with a cold cache, as far as this router saw.
    pub restarts: u32,
    /// When this was seen, in milliseconds of wall time.
    pub seen_ms: u64,
}

/// What probes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeenHealth {
    /// Not probed by this router.
    Unknown,
    /// Good.
    Healthy,
    /// Bad.
    Unhealthy,
}

/// What traffic says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeenBreaker {
    /// Lets requests through; none went well lately, so that says nothing.
    Closed,
    /// Lets one through, to see.
    HalfOpen,
    /// Lets none through.
    Open,
    /// Lets requests through, and one went well lately.
    Serving,
}
