//! What replication tells: what a message has changed, and what has been counted.

use crate::cluster::state::{STORES, StoreId};

/// What a message has changed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    pub(super) stores: u16,
    /// Rows that are different now.
    pub rows: usize,
    /// Hints that were news.
    pub hints: usize,
    /// The others take this life of this node for history: it must begin another, see `Replication::begin_life`.
    pub fenced: bool,
    /// Somebody else has written as this life of this node.
    pub conflict: bool,
}

impl Changes {
    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether rows of `store` have.
    #[must_use]
    pub fn touches(&self, store: StoreId) -> bool {
        self.stores >> store.index() & 1 == 1
    }

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

/// What has been counted since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Bytes of rows sent, per store in the order of [`StoreId::ALL`].
    pub sent_bytes: [u64; STORES],
    /// Bytes of rows received, per store.
    pub received_bytes: [u64; STORES],
    /// Rows sent in deltas.
    pub rows_sent: u64,
    /// Rows received in deltas.
    pub rows_received: u64,
    /// Of those, rows that were known.
    pub rows_known: u64,
    /// Deltas that could not be applied because something before them was missing.
    pub gaps: u64,
    /// Pulls sent.
    pub pulls: u64,
    /// Streams that were sent again because no ack came.
    pub retries: u64,
    /// Snapshots begun here.
    pub snapshots_joined: u64,
    /// Parts of snapshots served.
    pub snapshot_chunks_served: u64,
    /// Rows that an audit put right.
    pub repaired: u64,
    /// Buckets that an audit could not put right because they are too large.
    pub unrepairable: u64,
    /// Foreign rows that were not kept: too long, too many, or under a key that can't be read.
    pub refused_rows: u64,
    /// Foreign rows that were kept without a value: a stamp from the future, a content that can't be read.
    pub quarantined_rows: u64,
    /// Rows that left quarantine.
    pub released_rows: u64,
    /// Messages that contradict themselves or come from a stranger.
    pub refused_messages: u64,
    /// Things said about stores that this router does not have.
    pub unknown_stores: u64,
    /// Small messages that were dropped because a peer's outbox was full.
    pub dropped_messages: u64,
    /// Tombstones collected.
    pub collected: u64,
    /// Rows of former lives and of the dead that this node took over.
    pub adopted: u64,
    /// Writers retired.
    pub retired: u64,
}
