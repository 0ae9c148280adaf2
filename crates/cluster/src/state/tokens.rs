//! The tokens store: per window of a limit, which tokens each node has reserved and given back.

use serde::{Deserialize, Serialize};

use crate::state::StoreId;
use crate::state::table::Store;
use crate::state::usage::UsageKey;

/// The tokens store: one slot of a PN-Counter per node.
#[derive(Debug)]
pub enum Tokens {}

impl Store for Tokens {
    const ID: StoreId = StoreId::Tokens;
    type Key = UsageKey;
    type Value = TokenFlow;

    fn validate(key: &UsageKey, _: &TokenFlow) -> Result<(), String> {
        key.validate()
    }

    fn expires_ms(key: &UsageKey, _: &TokenFlow) -> Option<u64> {
        Some(key.expires_ms())
    }
}

/// Tokens that a node has reserved and given back in a window; both only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokenFlow {
    /// Reserved.
    pub taken: u64,
    /// Given back when a request used less.
    pub given_back: u64,
}
