//! The load store: what each router has in flight at each worker.

use serde::{Deserialize, Serialize};
use smg_types::ids::WorkerId;

use crate::state::StoreId;
use crate::state::table::Store;

/// The load store.
#[derive(Debug)]
pub enum Loads {}

impl Store for Loads {
    const ID: StoreId = StoreId::Load;
    type Key = WorkerId;
    type Value = Load;

    fn validate(_: &WorkerId, _: &Load) -> Result<(), String> {
        Ok(())
    }
}

/// What one router has in flight at one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Load {
    /// Requests.
    pub requests: u32,
    /// Tokens of their prompts and reserved answers.
    pub tokens: u64,
}
