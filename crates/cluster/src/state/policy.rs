//! The policies store: the policy that an administrator has set for a model. The last write wins.
//!
//! Policies and parameters are replicated as text and are not interpreted here, so that a router replicates settings that
//! only newer routers understand.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_types::bounds;
use smg_types::ids::{ModelId, WorkerId};

use crate::crdt::lww_register::LwwRegister;
use crate::crdt::stamp::Stamp;
#[cfg(test)]
use crate::state::golden::Golden;
use crate::state::operations::{Draw, StoreOperations};
use crate::state::row;
use crate::state::store::{Ownership, Retention, Store};
use crate::state::store_id::StoreId;
use crate::state::table::{NodeParts, RefusedRow, Table};

/// The policies store.
#[derive(Debug)]
pub enum Policies {}

impl Store for Policies {
    const NAME: &'static str = "policies";
    const ID: StoreId = StoreId::Policies;
    const OWNERSHIP: Ownership = Ownership::Shared;
    const RETENTION: Retention = Retention::Never;
    const COALESCING: Duration = Duration::from_millis(5);
    const MAX_ROWS: usize = 2_048;
    const MAX_CONTENT_BYTES: usize = row::MAX_CONTENT_BYTES;
    const IS_AWAITED: bool = true;
    const IS_IN_USE: bool = true;
    const IS_DURABLE: bool = true;

    type Key = ModelId;
    type Value = LwwRegister<PolicyRecord>;

    fn validate(key: &ModelId, value: &Self::Value) -> Result<(), String> {
        let Some(record) = value.get() else { return Err("the policy is empty".to_owned()) };
        check_bytes("model name", key.as_str(), &bounds::MODEL_NAME_BYTES)?;
        check_bytes("policy name", &record.policy, &bounds::POLICY_NAME_BYTES)?;
        Ok(())
    }

    fn stamp(value: &Self::Value) -> Option<Stamp> {
        value.stamp()
    }
}

impl StoreOperations for Policies {
    type Write = PolicyWrite;

    fn write(
        table: &mut Table<Self>,
        parts: &mut NodeParts<'_>,
        PolicyWrite { model, policy }: PolicyWrite,
    ) -> Result<Option<u64>, RefusedRow> {
        let stamp = parts.clock.tick(parts.now);
        match policy {
            Some(policy) => {
                table.put_shared(parts, &model, LwwRegister::of(stamp, policy)).map(Some)
            }
            None => table.remove_shared(parts, &model),
        }
    }

    fn sample(draw: &mut Draw<'_>) -> Option<PolicyWrite> {
        let policy = PolicyRecord {
            policy: format!("policy-{}", draw.number),
            parameters: BTreeMap::new(),
            weights: BTreeMap::new(),
        };
        let model = ModelId::new(format!("m{}", draw.number % 3));
        Some(PolicyWrite { model, policy: draw.is_put.then_some(policy) })
    }

    #[cfg(test)]
    fn golden() -> Golden {
        let policy = PolicyRecord {
            policy: "cache_aware".to_owned(),
            parameters: BTreeMap::from([("threshold".to_owned(), "0.5".to_owned())]),
            weights: BTreeMap::from([(WorkerId::from_u64(7), 3)]),
        };
        Golden {
            writes: vec![PolicyWrite { model: "m".into(), policy: Some(policy) }.into()],
            key: "016d",
            content: "010101fd0068e5cf8b01000000fdafdcd659883d46e70b63616368655f617761726501097468726573686f6c6403302e350112772d30303030303030303030303030303037030000",
        }
    }
}

fn check_bytes(name: &str, text: &str, bounds: &RangeInclusive<usize>) -> Result<(), String> {
    if bounds.contains(&text.len()) {
        return Ok(());
    }
    let (low, high) = (bounds.start(), bounds.end());
    Err(format!("{name} of {} bytes, {low} to {high} expected", text.len()))
}

/// A change of a model's policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyWrite {
    /// The model.
    pub model: ModelId,
    /// The new policy; `None` restores the default.
    pub policy: Option<PolicyRecord>,
}

/// The policy of a model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// The policy's name.
    pub policy: String,
    /// Its parameters by name.
    pub parameters: BTreeMap<String, String>,
    /// Weights of workers that replace those of their specs.
    pub weights: BTreeMap<WorkerId, u32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::table::tests::{SharedSample, check_histories};

    impl SharedSample for Policies {
        fn key(n: u8) -> ModelId {
            ModelId::new(format!("m{n}"))
        }

        fn value(_: u8, number: u64, stamp: Stamp, _: Option<&Self::Value>) -> Self::Value {
            let policy = number.to_string();
            let (parameters, weights) = Default::default();
            LwwRegister::of(stamp, PolicyRecord { policy, parameters, weights })
        }

        fn number(value: &Self::Value) -> u64 {
            value.get().unwrap().policy.parse().unwrap()
        }
    }

    #[test]
    fn policies_hold_what_an_add_wins_set_holds() {
        check_histories::<Policies>(10_000);
    }
}
