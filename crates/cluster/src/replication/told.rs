//! What replication tells: what a message has changed, what has been counted, how long peers took to confirm.

use std::collections::VecDeque;
use std::time::Duration;

use crate::state::{STORES, StoreId};

/// Writes of a store that wait for confirmations, at most; beyond, the oldest is not measured.
const MAX_WRITTEN: usize = 64;

/// Times that are kept until somebody asks for them, at most.
const MAX_TIMES: usize = 4096;

/// When this node wrote what its peers confirm, and how long they took.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    /// Per store: a version of what is sent together, and when it was written; oldest first.
    written: [VecDeque<(u64, Duration)>; STORES],
    times: Vec<Duration>,
}

impl Confirmations {
    pub(super) fn wrote(&mut self, store: StoreId, version: u64, at: Duration) {
        let written = &mut self.written[store.index()];
        if written.len() == MAX_WRITTEN {
            written.pop_front();
        }
        written.push_back((version, at));
    }

    /// A peer that was at `before` is at `version` now, and all that are there at `all` at least.
    pub(super) fn confirmed(
        &mut self,
        store: StoreId,
        (before, version, all): (u64, u64, u64),
        now: Duration,
    ) {
        let written = &mut self.written[store.index()];
        let new = written.iter().filter(|(at, _)| (before + 1..=version).contains(at));
        let room = MAX_TIMES - self.times.len();
        self.times.extend(new.map(|(_, at)| now.saturating_sub(*at)).take(room));
        self.settle(store, all);
    }

    /// Nobody will be heard of any more who is not at `all` already.
    pub(super) fn settle(&mut self, store: StoreId, all: u64) {
        let written = &mut self.written[store.index()];
        while written.front().is_some_and(|(version, _)| *version <= all) {
            written.pop_front();
        }
    }

    /// Another life writes other versions.
    pub(super) fn begin_life(&mut self) {
        self.written = Default::default();
    }

    pub(super) fn take(&mut self) -> Vec<Duration> {
        std::mem::take(&mut self.times)
    }
}

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
