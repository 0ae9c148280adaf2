//! The limits: rules, and per window what each node has used, which tokens it holds and which rights it passed on.
//!
//! Everything that is counted is keyed by its window, so that a window ends by being forgotten and no counter is ever set
//! back. A subject is named by a hash: no client's key is kept. A subject that nobody mentions has no row anywhere.

use serde::{Deserialize, Serialize};
use smg_types::ids::{Generation, NodeId, NodeName};

use crate::crdt::lww_register::LwwRegister;
use crate::crdt::stamp::Stamp;
use crate::state::StoreId;
use crate::state::table::{Store, Table};

/// Longest window: a week.
const MAX_WINDOW_MS: u32 = 7 * 24 * 3600 * 1000;

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

/// A rule's subject in one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UsageKey {
    /// Hash of the rule's id.
    pub rule: u64,
    /// Hash of whom it counts.
    pub subject: u64,
    /// Start of the window, in milliseconds of wall time.
    pub start_ms: u64,
    /// Its length.
    pub length_ms: u32,
}

impl UsageKey {
    /// Rows live for one more window, for the sliding estimate.
    fn expires_ms(&self) -> u64 {
        self.start_ms.saturating_add(2 * u64::from(self.length_ms))
    }

    fn validate(&self) -> Result<(), String> {
        if self.length_ms == 0 || self.length_ms > MAX_WINDOW_MS {
            return Err(format!("window of {} ms, 1 ms to a week expected", self.length_ms));
        }
        Ok(())
    }
}

/// The usage store: one slot of a G-Counter per node.
#[derive(Debug)]
pub enum Usage {}

impl Store for Usage {
    const ID: StoreId = StoreId::Usage;
    type Key = UsageKey;
    type Value = UsageCount;

    fn validate(key: &UsageKey, _: &UsageCount) -> Result<(), String> {
        key.validate()
    }

    fn expires_ms(key: &UsageKey, _: &UsageCount) -> Option<u64> {
        Some(key.expires_ms())
    }
}

/// What a node has admitted in a window; each number only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UsageCount {
    /// Requests.
    pub requests: u64,
    /// Tokens, settled.
    pub tokens: u64,
    /// Recent demand per window, smoothed: what grants are steered by. Not a counter.
    pub demand: u32,
}

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

/// The rights store: one cell of the escrow matrix per giver and taker.
#[derive(Debug)]
pub enum RightsStore {}

impl Store for RightsStore {
    const ID: StoreId = StoreId::Rights;
    type Key = GrantKey;
    type Value = Granted;

    fn validate(key: &GrantKey, value: &Granted) -> Result<(), String> {
        key.window.validate()?;
        if value.expires_ms > key.window.expires_ms() {
            return Err("a grant outlives its window".to_owned());
        }
        Ok(())
    }

    fn expires_ms(key: &GrantKey, _: &Granted) -> Option<u64> {
        // The row outlives its grant: an expired grant must be seen to have expired, not to be missing.
        Some(key.window.expires_ms())
    }
}

/// Rights of a window passed on to a node; the giver is the row's writer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GrantKey {
    /// Of what.
    pub window: UsageKey,
    /// To whom: to one life of it, for a restarted node must not spend what its former life was given.
    pub to: NodeId,
}

/// How much was passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// All that was ever passed on under this key; only grows.
    pub amount: u64,
    /// When the taker may no longer use it, in milliseconds of wall time. The giver never takes it back.
    pub expires_ms: u64,
}

impl Table<RightsStore> {
    /// The keys of all grants of a window.
    pub(crate) fn keys_of_window<'a>(
        &'a self,
        window: &'a UsageKey,
    ) -> impl Iterator<Item = &'a GrantKey> + use<'a> {
        let to = NodeId { name: NodeName::least(), generation: Generation(0) };
        let first = GrantKey { window: *window, to };
        self.keys_from(&first).take_while(|key| key.window == *window)
    }
}
