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
    const IS_IN_USE: bool = true;
    const IS_DURABLE: bool = true;

    type Key = RuleId;
    type Value = LwwRegister<RuleRecord>;

    fn validate(key: &RuleId, value: &Self::Value) -> Result<(), String> {
        if key.0.is_empty() || key.0.len() > RuleId::MAX_BYTES {
            return Err(format!("rule id of {} bytes, 1 to 128 expected", key.0.len()));
        }
        if value.get().is_none() {
            return Err("the rule is empty".to_owned());
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
        let rule = RuleRecord { document: Some(format!("{{{}}}", draw.number)), configured: None };
        let id = RuleId(format!("rule-{}", draw.number % 3));
        Some(RuleWrite { id, rule: draw.is_put.then_some(rule) })
    }

    #[cfg(test)]
    fn golden() -> Golden {
        let rule = RuleRecord { document: Some("{}".to_owned()), configured: Some(7) };
        Golden {
            writes: vec![RuleWrite { id: RuleId("r".to_owned()), rule: Some(rule) }.into()],
            key: "0172",
            content: "010101fd0068e5cf8b01000000fdafdcd659883d46e701027b7d01070000",
        }
    }
}

/// A change of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleWrite {
    /// The rule's id.
    pub id: RuleId,
    /// The new rule; `None` removes it.
    pub rule: Option<RuleRecord>,
}

/// The id of a rule; at most 128 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RuleId(pub String);

impl RuleId {
    /// Longest id, in bytes.
    pub const MAX_BYTES: usize = 128;
}

/// A rule, as it is stored.
///
/// It is replicated as text and not interpreted here, so that a router replicates rules that only newer routers understand.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleRecord {
    /// The rule as a JSON document; `None`: an administrator has removed a rule that a configuration names.
    pub document: Option<String>,
    /// A hash of the document in the configuration that names the rule, by which a router that restarts knows whether its
    /// configuration has changed. `None`: no configuration names it.
    pub configured: Option<u64>,
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
            let record = RuleRecord { document: Some(number.to_string()), configured: None };
            LwwRegister::of(stamp, record)
        }

        fn number(value: &Self::Value) -> u64 {
            value.get().unwrap().document.as_ref().unwrap().parse().unwrap()
        }
    }

    #[test]
    fn rules_hold_what_an_add_wins_set_holds() {
        check_histories::<Rules>(2_500);
    }
}
