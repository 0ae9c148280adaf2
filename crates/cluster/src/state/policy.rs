//! The policies store: per model the policy that an administrator set, last write wins.
//!
//! Names and numbers travel as text and plain numbers; what they mean is the policies' own affair, so that a router hands
//! on what only a newer one understands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
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
        if key.as_str().is_empty() || key.as_str().len() > 512 {
            return Err(format!("model name of {} bytes, 1 to 512 expected", key.as_str().len()));
        }
        if record.policy.is_empty() || record.policy.len() > 64 {
            return Err(format!("policy name of {} bytes, 1 to 64 expected", record.policy.len()));
        }
        Ok(())
    }

    fn stamp(value: &Self::Value) -> Option<Stamp> {
        value.stamp()
    }
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
