//! The changes that an input has made to the state, as a value for the caller.

use crate::state::{STORES, StoreId};

const _: () = assert!(STORES <= u16::BITS as usize, "`Changes` has a bit per store");

/// The changes that a message or the passing of time has made here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// One bit per store, in the order of [`StoreId::ALL`].
    stores: u16,
    /// How many rows are different now.
    pub rows: usize,
    /// How many hints were new.
    pub hints: usize,
    /// The peers have retired this generation of this node: it must begin another, see
    /// [`Replication::begin_generation`](crate::replication::Replication::begin_generation).
    pub fenced: bool,
    /// Another process has written as this generation of this node: this one must go on as a later one.
    pub conflict: bool,
}

impl Changes {
    /// Only that `hints` hints were new.
    pub(super) fn of_hints(hints: usize) -> Self {
        Self { hints, ..Self::default() }
    }

    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether rows of `store` have changed.
    #[must_use]
    pub fn touches(&self, store: StoreId) -> bool {
        self.stores >> store.index() & 1 == 1
    }

    /// `rows` rows of `store` have changed.
    pub(super) fn touch(&mut self, store: StoreId, rows: usize) {
        if rows > 0 {
            self.stores |= 1 << store.index();
            self.rows += rows;
        }
    }

    /// Both changes together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            stores: self.stores | other.stores,
            rows: self.rows + other.rows,
            hints: self.hints + other.hints,
            fenced: self.fenced | other.fenced,
            conflict: self.conflict | other.conflict,
        }
    }
}
