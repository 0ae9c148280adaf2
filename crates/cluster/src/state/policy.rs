//! The policies store: per model the policy that an administrator set, last write wins.
//!
//! Names and numbers travel as text and plain numbers; what they mean is the policies' own affair, so that a router hands
//! on what only a newer one understands.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use smg_types::bounds;
use smg_types::ids::{ModelId, WorkerId};

use crate::crdt::lww_register::LwwRegister;
use crate::crdt::stamp::Stamp;
use crate::state::StoreId;
use crate::state::table::Store;

/// The policies store.
#[derive(Debug)]
pub enum Policies {}

impl Store for Policies {
    const ID: StoreId = StoreId::Policies;
    type Key = ModelId;
    type Value = LwwRegister<PolicyRecord>;

    fn validate(key: &ModelId, value: &Self::Value) -> Result<(), String> {
        let Some(record) = value.get() else { return Err("nothing is set".to_owned()) };
        check_bytes("model name", key.as_str(), &bounds::MODEL_NAME_BYTES)?;
        check_bytes("policy name", &record.policy, &bounds::POLICY_NAME_BYTES)?;
        Ok(())
    }

    fn stamp(value: &Self::Value) -> Option<Stamp> {
        value.stamp()
    }
}

fn check_bytes(name: &str, text: &str, bounds: &RangeInclusive<usize>) -> Result<(), String> {
    if bounds.contains(&text.len()) {
        return Ok(());
    }
    let (low, high) = (bounds.start(), bounds.end());
    Err(format!("{name} of {} bytes, {low} to {high} expected", text.len()))
}

/// What was set for a model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// The policy's name.
    pub policy: String,
    /// Its parameters by name.
    pub parameters: BTreeMap<String, String>,
    /// Weights that differ from those of the workers' specs.
    pub weights: BTreeMap<WorkerId, u32>,
}
