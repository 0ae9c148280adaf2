//! The list of all stores, and what walks it.
//!
//! A new store is one more line at the end of the list, and one more number in `store_id`. From the list come the tables of a
//! [`State`](crate::state::State), the enum of all [`Write`]s, the keys that have changed, and every walk over the tables.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::state::operations::{Draw, StoreOperations};
use crate::state::prefixes::HintRun;
use crate::state::row::MAX_CONTENT_BYTES;
use crate::state::store::{Ownership, Properties, Retention, Store};
use crate::state::store_id::{STORES, StoreId};
use crate::state::table::{NodeParts, RefusedRow, Replica, Table};

macro_rules! stores {
    ($($(#[$doc:meta])* $id:ident: $field:ident = $store:ty,)*) => {
        static PROPERTIES: [Properties; STORES] = [$(Properties::of::<$store>()),*];

        /// A write of this node, to any store.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Write {
            $($(#[$doc])* $id(<$store as StoreOperations>::Write),)*
        }

        $(impl From<<$store as StoreOperations>::Write> for Write {
            fn from(write: <$store as StoreOperations>::Write) -> Self {
                Self::$id(write)
            }
        })*

        impl Write {
            /// The store that is written to.
            #[must_use]
            pub const fn store(&self) -> StoreId {
                match self {
                    $(Self::$id(_) => StoreId::$id,)*
                }
            }

            /// A write to `store` that `draw` decides: see [`StoreOperations::sample`].
            #[must_use]
            pub fn sample(store: StoreId, draw: &mut Draw<'_>) -> Option<Self> {
                match store {
                    $(StoreId::$id => <$store>::sample(draw).map(Self::$id),)*
                }
            }
        }

        /// The rows of all stores.
        #[derive(Debug, Default)]
        pub(crate) struct Tables {
            $(pub(crate) $field: Table<$store>,)*
        }

        impl Tables {
            pub(super) fn get(&self, store: StoreId) -> &dyn Replica {
                match store {
                    $(StoreId::$id => &self.$field,)*
                }
            }

            pub(super) fn get_mut(&mut self, store: StoreId) -> &mut dyn Replica {
                match store {
                    $(StoreId::$id => &mut self.$field,)*
                }
            }

            pub(super) fn write(
                &mut self,
                parts: &mut NodeParts<'_>,
                write: Write,
            ) -> Result<Option<u64>, RefusedRow> {
                match write {
                    $(Write::$id(write) => <$store>::write(&mut self.$field, parts, write),)*
                }
            }

            pub(super) fn track_changed_keys(&mut self) {
                $(self.$field.track_changed_keys();)*
            }

            pub(super) fn take_changed_keys(&mut self, hints: Vec<HintRun>) -> ChangedKeys {
                ChangedKeys { $($field: self.$field.take_changed_keys(),)* hints }
            }
        }

        /// The keys of each store under which something has changed, for code that keeps a copy of the state without
        /// reading all of it.
        ///
        /// The code reads the values when it gets the keys. A thousand changes of one key are therefore one key, and a
        /// key that comes twice does no harm.
        #[derive(Debug, Default)]
        pub struct ChangedKeys {
            $($(#[$doc])* pub $field: BTreeSet<<$store as Store>::Key>,)*
            /// The prefix hints that were received, in the order in which they came.
            pub hints: Vec<HintRun>,
        }

        impl ChangedKeys {
            /// Whether nothing has changed.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                $(self.$field.is_empty() &&)* self.hints.is_empty()
            }
        }

        /// Visits every store's type.
        #[cfg(test)]
        pub(super) fn visit_stores(visitor: &mut impl StoreVisitor) {
            $(visitor.visit::<$store>();)*
        }
    };
}

stores! {
    /// The workers of the fleet, with their specs, overrides and administrative states.
    Workers: workers = crate::state::worker::Workers,
    /// The policy of each model.
    Policies: policies = crate::state::policy::Policies,
    /// The limits.
    Rules: rules = crate::state::rule::Rules,
    /// The rights that nodes have granted to each other.
    Rights: rights = crate::state::rights::Rights,
    /// The requests that each node has admitted.
    Usage: usage = crate::state::usage::Usage,
    /// The tokens that each node has reserved and returned.
    Tokens: tokens = crate::state::tokens::Tokens,
    /// The worker to which each session is bound.
    Sessions: sessions = crate::state::session::Sessions,
    /// The measurements that each router has made of each worker.
    Observations: observations = crate::state::observation::Observations,
    /// The requests and tokens that each router has in flight at each worker.
    Load: load = crate::state::load::Loads,
    /// The requests ever served, per model and outcome.
    Totals: totals = crate::state::totals::Totals,
    /// The models whose last worker was removed.
    Departures: departures = crate::state::departure::Departures,
    /// The routers among which the limits are divided.
    Rosters: rosters = crate::state::roster::Rosters,
    /// Each node's regular message about the limits.
    Beats: beats = crate::state::beat::Beats,
}

/// An action that is done with every store's type.
#[cfg(test)]
pub(super) trait StoreVisitor {
    fn visit<S: StoreOperations>(&mut self);
}

const _: () = {
    let mut place = 0;
    while place < STORES {
        assert!(
            PROPERTIES[place].id.index() == place,
            "the list has the order of the stores' numbers"
        );
        assert!(PROPERTIES[place].max_content_bytes <= MAX_CONTENT_BYTES, "rows fit a frame");
        place += 1;
    }
};

impl StoreId {
    const fn properties(self) -> &'static Properties {
        &PROPERTIES[self as usize]
    }

    /// The stores to which routers of this version write, and which are therefore shown to people.
    pub fn in_use() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|store| store.properties().is_in_use)
    }

    /// The stores that a router with a data folder keeps on disk.
    pub fn durable() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|store| store.properties().is_durable)
    }

    /// The name in `/ha/status`, metrics and log lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.properties().name
    }

    /// How long a write may wait for later ones.
    #[must_use]
    pub const fn coalescing(self) -> Duration {
        self.properties().coalescing
    }

    /// Whether a client may wait until peers have confirmed a write.
    #[must_use]
    pub const fn is_awaited(self) -> bool {
        self.properties().is_awaited
    }

    /// Whether every node may change a row. Otherwise each router has a row of its own.
    #[must_use]
    pub const fn is_shared(self) -> bool {
        matches!(self.properties().ownership, Ownership::Shared)
    }

    /// When a row ends without being removed.
    #[must_use]
    pub const fn retention(self) -> Retention {
        self.properties().retention
    }

    /// Whether a row means nothing once the generation that wrote it has ended.
    #[must_use]
    pub const fn ends_with_writer(self) -> bool {
        matches!(self.retention(), Retention::WithWriter)
    }

    /// Whether a node that adopts a row adds it to a row of its own. That changes the value of its own row, so the node
    /// must know all generations of the writer's name first.
    #[must_use]
    pub const fn is_summed_up(self) -> bool {
        matches!(self.retention(), Retention::Never) && !self.is_shared()
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
