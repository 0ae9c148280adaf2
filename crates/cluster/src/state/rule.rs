//! The rules store: the limits, each last write wins.

use serde::{Deserialize, Serialize};

use crate::crdt::lww_register::LwwRegister;
use crate::crdt::stamp::Stamp;
use crate::state::StoreId;
use crate::state::table::Store;
use crate::state::usage::MAX_WINDOW_MS;

/// The rules store.
#[derive(Debug)]
pub enum Rules {}

impl Store for Rules {
    const ID: StoreId = StoreId::Rules;
    type Key = RuleId;
    type Value = LwwRegister<Rule>;

    fn validate(key: &RuleId, value: &Self::Value) -> Result<(), String> {
        if key.0.is_empty() || key.0.len() > RuleId::MAX_BYTES {
            return Err(format!("rule id of {} bytes, 1 to 128 expected", key.0.len()));
        }
        let Some(rule) = value.get() else { return Err("nothing is set".to_owned()) };
        if rule.window_ms == 0 || rule.window_ms > MAX_WINDOW_MS {
            return Err(format!("window of {} ms, 1 ms to a week expected", rule.window_ms));
        }
        if rule.requests.is_none() && rule.tokens.is_none() {
            return Err("a rule limits requests or tokens".to_owned());
        }
        Ok(())
    }

    fn stamp(value: &Self::Value) -> Option<Stamp> {
        value.stamp()
    }
}

/// Names a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RuleId(pub String);

impl RuleId {
    /// Longest id.
    pub const MAX_BYTES: usize = 128;
}

/// A limit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    /// Whom it counts.
    pub matches: RuleMatch,
    /// Requests per window.
    pub requests: Option<u64>,
    /// Tokens per window.
    pub tokens: Option<u64>,
    /// Length of the window.
    pub window_ms: u32,
    /// What may be used at once beyond the even rate; 0: a whole window's worth.
    pub burst: u64,
    /// How the cluster keeps it.
    pub mode: RuleMode,
}

/// Whom a rule counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RuleMatch {
    /// Everyone together.
    Global,
    /// Each API key, or the one named.
    ApiKey(Option<String>),
    /// Each tenant, or the one named.
    Tenant(Option<String>),
    /// Each model, or the one named.
    Model(Option<String>),
}

/// How the cluster keeps a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RuleMode {
    /// Conserved rights only.
    Strict,
    /// Conserved rights, and a majority may take over a dead node's.
    Bounded,
    /// A grow-only counter with its published overshoot.
    Soft,
}
