//! The rules store: the limits. Of each rule the last write wins.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::crdt::lww_register::LwwRegister;
use crate::crdt::stamp::Stamp;
#[cfg(test)]
use crate::state::golden::Golden;
use crate::state::operations::{Draw, StoreOperations};
use crate::state::store::{Ownership, Retention, Store};
use crate::state::store_id::StoreId;
use crate::state::table::{NodeParts, RefusedRow, Table};
use crate::state::usage::MAX_WINDOW_MS;

/// The rules store.
#[derive(Debug)]
pub enum Rules {}

impl Store for Rules {
    const NAME: &'static str = "rules";
    const ID: StoreId = StoreId::Rules;
    const OWNERSHIP: Ownership = Ownership::Shared;
    const RETENTION: Retention = Retention::Never;
    const COALESCING: Duration = Duration::from_millis(5);
    const MAX_ROWS: usize = 2_048;
    const MAX_CONTENT_BYTES: usize = 8 * 1024;
    const IS_AWAITED: bool = true;
    const IS_IN_USE: bool = false;

    type Key = RuleId;
    type Value = LwwRegister<Rule>;

    fn validate(key: &RuleId, value: &Self::Value) -> Result<(), String> {
        if key.0.is_empty() || key.0.len() > RuleId::MAX_BYTES {
            return Err(format!("rule id of {} bytes, 1 to 128 expected", key.0.len()));
        }
        let Some(rule) = value.get() else { return Err("the rule is empty".to_owned()) };
        if rule.window_ms == 0 || rule.window_ms > MAX_WINDOW_MS {
            return Err(format!("window of {} ms, 1 ms to a week expected", rule.window_ms));
        }
        if rule.requests.is_none() && rule.tokens.is_none() {
            return Err("the rule limits neither requests nor tokens".to_owned());
        }
        Ok(())
    }

    fn stamp(value: &Self::Value) -> Option<Stamp> {
        value.stamp()
    }
}

impl StoreOperations for Rules {
    type Write = RuleWrite;

    fn write(
        table: &mut Table<Self>,
        parts: &mut NodeParts<'_>,
        RuleWrite { id, rule }: RuleWrite,
    ) -> Result<Option<u64>, RefusedRow> {
        let stamp = parts.clock.tick(parts.now);
        match rule {
            Some(rule) => table.put_shared(parts, &id, LwwRegister::of(stamp, rule)).map(Some),
            None => table.remove_shared(parts, &id),
        }
    }

    fn sample(draw: &mut Draw<'_>) -> Option<RuleWrite> {
        let rule = Rule {
            matches: RuleMatch::Global,
            requests: Some(u64::from(draw.number)),
            tokens: None,
            window_ms: 1000,
            burst: 0,
            mode: RuleMode::Soft,
        };
        let id = RuleId(format!("rule-{}", draw.number % 3));
        Some(RuleWrite { id, rule: draw.is_put.then_some(rule) })
    }

    #[cfg(test)]
    fn golden() -> Golden {
        let rule = Rule {
            matches: RuleMatch::Tenant(Some("t".to_owned())),
            requests: Some(1000),
            tokens: Some(70_000),
            window_ms: 60_000,
            burst: 5,
            mode: RuleMode::Bounded,
        };
        Golden {
            writes: vec![RuleWrite { id: RuleId("r".to_owned()), rule: Some(rule) }.into()],
            key: "0172",
            content: "010101fd0068e5cf8b01000000fdafdcd659883d46e70201017401fbe80301fc70110100fb60ea05010000",
        }
    }
}

/// A change of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleWrite {
    /// The rule's id.
    pub id: RuleId,
    /// The new rule; `None` removes it.
    pub rule: Option<Rule>,
}

/// The id of a rule; at most 128 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RuleId(pub String);

impl RuleId {
    /// Longest id, in bytes.
    pub const MAX_BYTES: usize = 128;
}

/// A limit of requests or tokens per window.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    /// The subjects that are counted.
    pub matches: RuleMatch,
    /// Most requests per window.
    pub requests: Option<u64>,
    /// Most tokens per window.
    pub tokens: Option<u64>,
    /// Length of the window, in milliseconds; at most a week.
    pub window_ms: u32,
    /// How many requests or tokens above the average rate may be used at once; 0: those of a whole window.
    pub burst: u64,
    /// How the nodes divide the limit.
    pub mode: RuleMode,
}

/// The subjects of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RuleMatch {
    /// All requests together.
    Global,
    /// Each API key by itself, or only this one.
    ApiKey(Option<String>),
    /// Each tenant by itself, or only this one.
    Tenant(Option<String>),
    /// Each model by itself, or only this one.
    Model(Option<String>),
}

/// How the nodes divide a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RuleMode {
    /// Each node spends only rights that it holds; the rights of a dead node are lost until the window ends.
    Strict,
    /// Each node spends only rights that it holds; a majority of the nodes may reclaim those of a dead node.
    Bounded,
    /// Nodes add up what all of them have admitted, and may exceed the limit by what has not reached them yet.
    Soft,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::table::tests::{SharedSample, check_histories};

    impl SharedSample for Rules {
        fn key(n: u8) -> RuleId {
            RuleId(format!("rule {n}"))
        }

        fn value(_: u8, number: u64, stamp: Stamp, _: Option<&Self::Value>) -> Self::Value {
            LwwRegister::of(
                stamp,
                Rule {
                    matches: RuleMatch::Global,
                    requests: Some(number),
                    tokens: None,
                    window_ms: 1000,
                    burst: 0,
                    mode: RuleMode::Strict,
                },
            )
        }

        fn number(value: &Self::Value) -> u64 {
            value.get().unwrap().requests.unwrap()
        }
    }

    #[test]
    fn rules_hold_what_an_add_wins_set_holds() {
        check_histories::<Rules>(2_500);
    }
}
