//! The list of all stores, and what walks it.
//!
//! A new store is one more line at the end of the list. From the list come [`StoreId`], the tables of a
//! [`State`](crate::state::State), the enum of all [`Write`]s, the keys that have changed, and every walk over the tables.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::state::prefixes::HintRun;
use crate::state::row::MAX_CONTENT_BYTES;
use crate::state::store::{Draw, Listed, Ownership, Properties, Retention, Store};
use crate::state::table::{Context, RefusedRow, Replica, Table};

macro_rules! stores {
    ($($(#[$doc:meta])* $id:ident: $field:ident = $store:ty,)*) => {
        /// Names a store. The order is that of the wire, and the one in which a node that joins asks for snapshots.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum StoreId {
            $($(#[$doc])* $id,)*
        }

        /// How many stores there are.
        pub const STORES: usize = [$(StoreId::$id),*].len();

        static PROPERTIES: [Properties; STORES] = [$(Properties::of::<$store>()),*];

        impl StoreId {
            /// All stores.
            pub const ALL: [Self; STORES] = [$(Self::$id),*];
        }

        $(impl Listed for $store {
            const ID: StoreId = StoreId::$id;
        })*

        /// A write of this node, to any store.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Write {
            $($(#[$doc])* $id(<$store as Store>::Write),)*
        }

        $(impl From<<$store as Store>::Write> for Write {
            fn from(write: <$store as Store>::Write) -> Self {
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

            /// A write to `store` that `draw` decides: see [`Store::sample`].
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
                cx: &mut Context<'_>,
                write: Write,
            ) -> Result<Option<u64>, RefusedRow> {
                match write {
                    $(Write::$id(write) => <$store>::write(&mut self.$field, cx, write),)*
                }
            }

            pub(super) fn follow(&mut self) {
                $(self.$field.follow();)*
            }

            pub(super) fn take_news(&mut self, hints: Vec<HintRun>) -> News {
                News { $($field: self.$field.take_news(),)* hints }
            }
        }

        /// What has changed since somebody last looked, by store: for who keeps a picture of the state in step without
        /// reading all of it.
        ///
        /// Keys, not values: whoever is told looks at the state as it is by then, so a thousand changes of one key are
        /// one piece of news, and telling it twice does no harm.
        #[derive(Debug, Default)]
        pub struct News {
            $($(#[$doc])* pub $field: BTreeSet<<$store as Store>::Key>,)*
            /// Hints that others have told, in the order in which they came.
            pub hints: Vec<HintRun>,
        }

        impl News {
            /// Whether there is none.
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
    /// The workers of the fleet, with their specs and overrides.
    Workers: workers = crate::state::worker::Workers,
    /// The policy of each model.
    Policies: policies = crate::state::policy::Policies,
    /// The limits.
    Rules: rules = crate::state::rule::Rules,
    /// Rights passed on between nodes.
    Rights: rights = crate::state::rights::Rights,
    /// What each node has admitted.
    Usage: usage = crate::state::usage::Usage,
    /// Tokens that each node has reserved and given back.
    Tokens: tokens = crate::state::tokens::Tokens,
    /// Which worker a session sticks to.
    Sessions: sessions = crate::state::session::Sessions,
    /// What each router saw of each worker.
    Observations: observations = crate::state::observation::Observations,
    /// What each router has in flight at each worker.
    Load: load = crate::state::load::Loads,
    /// Requests served, for ever.
    Totals: totals = crate::state::totals::Totals,
}

/// What is done with every store's type.
#[cfg(test)]
pub(super) trait StoreVisitor {
    fn visit<S: Store>(&mut self);
}

// A message names stores by number, and one that goes through all of them goes in this order.
const _: () = {
    let mut place = 0;
    while place < STORES {
        assert!(PROPERTIES[place].wire_id as usize == place, "a store's WIRE_ID is its place");
        assert!(PROPERTIES[place].max_content_bytes <= MAX_CONTENT_BYTES, "rows fit a frame");
        place += 1;
    }
    assert!(STORES <= u16::BITS as usize, "`Changes` has a bit for each store");
};

impl StoreId {
    const fn properties(self) -> &'static Properties {
        &PROPERTIES[self as usize]
    }

    /// The stores to which routers of this version write, and which are therefore shown to people.
    pub fn in_use() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|store| store.properties().is_in_use)
    }

    /// The name that people see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.properties().name
    }

    /// Its place in [`StoreId::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Its number on the wire.
    #[must_use]
    pub const fn wire_id(self) -> u8 {
        self.properties().wire_id
    }

    /// The store with this number on the wire, if this router has it.
    #[must_use]
    pub fn from_wire_id(id: u8) -> Option<Self> {
        Self::ALL.get(usize::from(id)).copied()
    }

    /// How long a write may wait for later ones.
    #[must_use]
    pub const fn coalescing(self) -> Duration {
        self.properties().coalescing
    }

    /// Whether somebody waits for a write to be confirmed.
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

    /// Whether whoever takes over a row adds it to a row of its own. That changes the value of its own row, so it must
    /// know all generations of the writer's name first.
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
