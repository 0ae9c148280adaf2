//! What this replica knows of another: how far it is, what is on its way to it, what it asked for.
//!
//! Nothing is queued for a peer but numbers and a few small messages: a delta is cut from the state in the moment in which
//! it can be sent, so a slow peer costs no memory and gets the newest rows when it wakes up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use smg_types::ids::NodeId;

use crate::replication::message::{Message, SnapshotRequest};
use crate::state::StoreId;
use crate::state::writers::Writer;

/// A stream: the rows of one writer in one store.
pub(crate) type Stream = (StoreId, Writer);

/// How often the time to wait for an ack is doubled, and the window cut to an eighth, for who does not answer: up to 4 s and
/// 16 KiB at the defaults, since whatever was lost in a partition must be made up for within seconds of its end.
const MAX_PATIENCE: u32 = 2;

/// Small messages that wait for the link; beyond, the oldest is dropped and counted.
const MAX_OUTBOX: usize = 64;

/// A stream on its way to a peer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cursor {
    /// Sent up to here.
    pub(crate) sent: u64,
    /// To be sent up to here.
    pub(crate) target: u64,
    /// Bytes sent and not yet acknowledged.
    pub(crate) in_flight: usize,
    pub(crate) sent_at: Duration,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: NodeId,
    pub(crate) writer: Writer,
    pub(crate) up: bool,
    /// It has said how far it is since it came up: before that, what it lacks is unknown.
    pub(crate) greeted: bool,
    /// How far it is, as it said.
    pub(crate) known: BTreeMap<Stream, u64>,
    /// Writers that it has retired.
    pub(crate) retired: BTreeSet<Writer>,
    pub(crate) cursors: BTreeMap<Stream, Cursor>,
    /// Streams of which something is to be sent.
    pub(crate) due: BTreeSet<Stream>,
    pub(crate) in_flight: usize,
    /// Rounds of sending again since it last showed that it reads what is sent to it.
    pub(crate) patience: u32,
    pub(crate) outbox: VecDeque<Message>,
    pub(crate) ack_due: BTreeSet<Stream>,
    pub(crate) ack_at: Option<Duration>,
    /// Bytes received since the last ack.
    pub(crate) unacked_bytes: usize,
    /// What it wants of a snapshot, at most one part per store.
    pub(crate) requests: BTreeMap<StoreId, SnapshotRequest>,
    /// Bytes of repair that may be sent now.
    pub(crate) credit: usize,
    pub(crate) wall_ahead_ms: i64,
    pub(crate) hot_set_at: Option<Duration>,
    /// When it is audited out of turn, and how long after that again.
    pub(crate) audit: Option<(Duration, Duration)>,
}

impl Peer {
    pub(crate) fn new(id: NodeId, writer: Writer) -> Self {
        Self {
            id,
            writer,
            up: false,
            greeted: false,
            known: BTreeMap::new(),
            retired: BTreeSet::new(),
            cursors: BTreeMap::new(),
            due: BTreeSet::new(),
            in_flight: 0,
            patience: 0,
            outbox: VecDeque::new(),
            ack_due: BTreeSet::new(),
            ack_at: None,
            unacked_bytes: 0,
            requests: BTreeMap::new(),
            credit: 0,
            wall_ahead_ms: 0,
            hot_set_at: None,
            audit: None,
        }
    }

    /// Forgets what was on its way: the link is gone.
    pub(crate) fn cut(&mut self) {
        self.up = false;
        self.greeted = false;
        self.cursors.clear();
        self.due.clear();
        self.in_flight = 0;
        self.patience = 0;
        self.outbox.clear();
        self.ack_due.clear();
        self.ack_at = None;
        self.unacked_bytes = 0;
        self.requests.clear();
        self.audit = None;
    }

    /// How long an ack is waited for: longer the longer there was none, for what a peer does not read piles up on its link.
    pub(crate) fn retry_after(&self, retry: Duration) -> Duration {
        retry * (1 << self.patience)
    }

    /// How much may be on its way to it.
    pub(crate) fn window(&self, bytes: usize) -> usize {
        (bytes >> (3 * self.patience)).max(1)
    }

    /// Nothing came back in time.
    pub(crate) fn lose_patience(&mut self) {
        self.patience = (self.patience + 1).min(MAX_PATIENCE);
    }

    /// It reads what is sent to it.
    pub(crate) fn reads(&mut self) {
        self.patience = 0;
    }

    /// Queues a small message; says how many had to be dropped for it.
    pub(crate) fn say(&mut self, message: Message) -> u64 {
        let mut dropped = 0;
        while self.outbox.len() >= MAX_OUTBOX {
            self.outbox.pop_front();
            dropped += 1;
        }
        self.outbox.push_back(message);
        dropped
    }

    pub(crate) fn known(&self, stream: Stream) -> u64 {
        self.known.get(&stream).copied().unwrap_or(0)
    }

    /// It has said, or shown by sending it, that it has `version`.
    pub(crate) fn learn(&mut self, stream: Stream, version: u64) {
        let known = self.known.entry(stream).or_default();
        *known = version.max(*known);
        let known = *known;
        if let Some(cursor) = self.cursors.get_mut(&stream)
            && known >= cursor.sent
        {
            self.in_flight -= cursor.in_flight;
            cursor.in_flight = 0;
            cursor.sent = known;
            if known >= cursor.target {
                self.cursors.remove(&stream);
                self.due.remove(&stream);
            }
        }
    }

    /// Wants the stream sent from `from` up to `target`.
    pub(crate) fn serve(&mut self, stream: Stream, from: u64, target: u64) {
        if target <= from {
            return;
        }
        let cursor = self
            .cursors
            .entry(stream)
            .or_insert_with(|| Cursor { sent: from, ..Cursor::default() });
        cursor.target = target.max(cursor.target);
        if cursor.sent < cursor.target {
            self.due.insert(stream);
        }
    }

    /// Starts the stream again from what the peer is known to have.
    pub(crate) fn rewind(&mut self, stream: Stream, to: u64) {
        if let Some(cursor) = self.cursors.get_mut(&stream) {
            self.in_flight -= cursor.in_flight;
            cursor.in_flight = 0;
            cursor.sent = to;
            if cursor.sent < cursor.target {
                self.due.insert(stream);
            }
        }
    }

    /// Bytes of `stream` went out, up to version `to`.
    pub(crate) fn sent(&mut self, stream: Stream, to: u64, bytes: usize, at: Duration) {
        if let Some(cursor) = self.cursors.get_mut(&stream) {
            cursor.sent = to;
            cursor.in_flight += bytes;
            cursor.sent_at = at;
            self.in_flight += bytes;
            if to >= cursor.target {
                self.due.remove(&stream);
            }
        }
    }

    /// Drops a stream that can't or need not be served.
    pub(crate) fn stop(&mut self, stream: Stream) {
        if let Some(cursor) = self.cursors.remove(&stream) {
            self.in_flight -= cursor.in_flight;
        }
        self.due.remove(&stream);
    }
}
