//! The rights store: per window of a limit, the rights that each node has passed on.

use serde::{Deserialize, Serialize};
use smg_types::ids::{Generation, NodeId, NodeName};

use crate::state::StoreId;
use crate::state::table::{Store, Table};
use crate::state::usage::UsageKey;

/// The rights store: one cell of the escrow matrix per giver and taker.
#[derive(Debug)]
pub enum Rights {}

impl Store for Rights {
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

impl Table<Rights> {
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
