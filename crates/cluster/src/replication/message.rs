//! What replicas say to each other. Plain values: the codec frames them, and bounds what it reads.
//!
//! Stores travel as numbers, so that a router of the next version may name one that this one doesn't have: what is said
//! about it is skipped and counted, the rest of the message counts.

use serde::{Deserialize, Serialize};
use smg_types::ids::NodeId;

use crate::codec::at_most;
use crate::state::StoreId;
use crate::state::prefixes::HintRun;
use crate::state::row::{Blob, RawRow};
use crate::state::table::BUCKETS;

/// Most rows in a message: more of the smallest than are ever sent, and few enough that a frame of them takes no more
/// memory than a few frames.
const MAX_ROWS: usize = 1 << 15;
/// Most writers and most streams that a message may speak of.
const MAX_CLAIMED_WRITERS: usize = 1 << 13;
const MAX_CLAIMS: usize = 1 << 16;
/// Most of anything else.
const MAX_ITEMS: usize = 1 << 13;

/// A store as it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoreNumber(pub u8);

impl StoreNumber {
    /// The store, if this router has it.
    #[must_use]
    pub fn store(self) -> Option<StoreId> {
        StoreId::from_index(usize::from(self.0))
    }
}

impl From<StoreId> for StoreNumber {
    fn from(store: StoreId) -> Self {
        Self(u8::try_from(store.index()).expect("there are fewer than 256 stores"))
    }
}

/// One replica to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// How far the sender is, in everything.
    Digest(Digest),
    /// Rows that came after a version.
    Delta(Delta),
    /// How far the sender is, where it moved on since it said so last.
    Ack(Claims),
    /// The sender wants what comes after these versions.
    Pull(Claims),
    /// The sender can't serve deltas from where the receiver stands: tombstones are gone.
    Offer(Offer),
    /// The sender wants a part of a snapshot.
    SnapshotRequest(SnapshotRequest),
    /// A part of a snapshot.
    Snapshot(SnapshotChunk),
    /// Fingerprints of a writer's rows.
    Audit(Audit),
    /// The sender's rows differ in some buckets and it wants the right ones.
    AuditPull(AuditPull),
    /// All rows of those buckets.
    AuditRows(AuditRows),
    /// These writers are history, or about to be.
    Retired(#[serde(deserialize_with = "at_most::<_, _, MAX_ITEMS>")] Vec<RetiredWriter>),
    /// Hints about prefixes, told once.
    Hints(#[serde(deserialize_with = "at_most::<_, _, MAX_ITEMS>")] Vec<HintRun>),
    /// The sender has just joined and wants the most recent hints.
    HotSetRequest,
}

impl Message {
    /// Its name, for counting.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Digest(_) => "digest",
            Self::Delta(_) => "delta",
            Self::Ack(_) => "ack",
            Self::Pull(_) => "pull",
            Self::Offer(_) => "offer",
            Self::SnapshotRequest(_) => "snapshot_request",
            Self::Snapshot(_) => "snapshot",
            Self::Audit(_) => "audit",
            Self::AuditPull(_) => "audit_pull",
            Self::AuditRows(_) => "audit_rows",
            Self::Retired(_) => "retired",
            Self::Hints(_) => "hints",
            Self::HotSetRequest => "hot_set_request",
        }
    }
}

/// A stream: which store and, as a place in the message's list, which writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Place in [`Claims::writers`].
    pub writer: u16,
    /// Which store.
    pub store: StoreNumber,
    /// Everything up to here is applied.
    pub version: u64,
    /// Tombstones up to here may be gone.
    pub floor: u64,
}

/// How far a replica is in some streams.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Claims {
    /// The writers that are spoken of.
    #[serde(deserialize_with = "at_most::<_, _, MAX_CLAIMED_WRITERS>")]
    pub writers: Vec<NodeId>,
    /// Per stream, how far.
    #[serde(deserialize_with = "at_most::<_, _, MAX_CLAIMS>")]
    pub claims: Vec<Claim>,
}

/// How far a replica is in everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// The sender's wall clock, in milliseconds.
    pub wall_ms: u64,
    /// The sender wants others' rows too, not only the receiver's own.
    pub relay: bool,
    /// What it has.
    pub claims: Claims,
}

/// All living rows and young tombstones that `writer` wrote after version `from` and up to `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Which store.
    pub store: StoreNumber,
    /// Who wrote them.
    pub writer: NodeId,
    /// Rows after this version.
    pub from: u64,
    /// Up to and with this one.
    pub to: u64,
    /// How far the log is known to go. Rows that have moved to between the two are not among these, so that only who has
    /// come this far knows that what it does not hold is gone.
    pub upto: u64,
    /// Tombstones up to here may be missing: who is behind it must not apply this.
    pub floor: u64,
    /// In the order of their versions.
    #[serde(deserialize_with = "at_most::<_, _, MAX_ROWS>")]
    pub rows: Vec<RawRow>,
}

impl Delta {
    /// Whether its versions fit each other: it leads forward, no further than the log goes, and its rows are in order and
    /// within what it covers, as far as can be seen without the log.
    pub(crate) fn is_in_order(&self) -> bool {
        let mut last = self.from;
        let is_in_order = self.rows.iter().all(|row| {
            let follows = row.version > last && row.version <= self.to;
            last = row.version;
            follows
        });
        is_in_order && self.to > self.from && self.upto >= self.to
    }
}

/// Deltas of this stream are no use to who is behind `floor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Which store.
    pub store: StoreNumber,
    /// Whose stream.
    pub writer: NodeId,
    /// Tombstones up to here are gone.
    pub floor: u64,
}

/// Asks for a range of keys with all that is known about them. The donor keeps nothing between requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// Which store.
    pub store: StoreNumber,
    /// The asker's number for this attempt.
    pub session: u64,
    /// From the first key, or after this one.
    pub after: Option<Blob>,
}

/// A range of keys, and how far the donor is at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotChunk {
    /// Which store.
    pub store: StoreNumber,
    /// The asker's number.
    pub session: u64,
    /// As asked.
    pub after: Option<Blob>,
    /// The last key; none: there are no more.
    pub end: Option<Blob>,
    /// How far the donor is in every stream of the store, and its floors.
    pub claims: Claims,
    /// Place in `claims.writers`, row.
    #[serde(deserialize_with = "at_most::<_, _, MAX_ROWS>")]
    pub rows: Vec<(u16, RawRow)>,
    /// Kills that wait at the donor: whose writes, under which key, up to which.
    #[serde(deserialize_with = "at_most::<_, _, MAX_CLAIMS>")]
    pub pending: Vec<(u16, Blob, u64)>,
}

/// Fingerprints of a writer's living rows by bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Which store.
    pub store: StoreNumber,
    /// Whose rows.
    pub writer: NodeId,
    /// At which version of the stream.
    pub version: u64,
    /// Hash of the whole store's version vector, where rows of one stream depend on others; else 0.
    pub vector: u64,
    /// One per bucket.
    #[serde(deserialize_with = "at_most::<_, _, BUCKETS>")]
    pub prints: Vec<u64>,
}

/// Asks for the rows of the buckets in `mask`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPull {
    /// Which store.
    pub store: StoreNumber,
    /// Whose rows.
    pub writer: NodeId,
    /// As audited.
    pub version: u64,
    /// One bit per bucket.
    pub mask: u64,
}

/// The right rows of the buckets in `mask`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRows {
    /// Which store.
    pub store: StoreNumber,
    /// Whose rows.
    pub writer: NodeId,
    /// At which version of the stream.
    pub version: u64,
    /// As in [`Audit`].
    pub vector: u64,
    /// One bit per bucket.
    pub mask: u64,
    /// All living rows in them.
    #[serde(deserialize_with = "at_most::<_, _, MAX_ROWS>")]
    pub rows: Vec<RawRow>,
}

/// A writer that is history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredWriter {
    /// Which life of which node.
    pub writer: NodeId,
    /// Nothing of it is left at the sender but what others' rows carry, and it is spoken of no more. Otherwise it is only
    /// over: it must begin another life.
    pub closed: bool,
    /// If it is closed, how far the sender was in each store's stream of it, in the order of the stores: who is behind that
    /// needs a snapshot.
    #[serde(deserialize_with = "at_most::<_, _, MAX_ITEMS>")]
    pub versions: Vec<u64>,
}

/// What the link should do with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Somebody waits for it: admin writes, grants, what keeps streams going.
    Now,
    /// Measurements.
    Soon,
    /// Repair and snapshots: after everything else.
    Bulk,
}

/// Collects claims, naming each writer once.
#[derive(Debug, Default)]
pub(crate) struct ClaimsBuilder {
    claims: Claims,
}

impl ClaimsBuilder {
    /// The place of `writer` in the list; `None` when the list is full.
    pub(crate) fn place(&mut self, writer: &NodeId) -> Option<u16> {
        let known = self.claims.writers.iter().rposition(|known| known == writer);
        let place = known.unwrap_or_else(|| {
            self.claims.writers.push(writer.clone());
            self.claims.writers.len() - 1
        });
        u16::try_from(place).ok()
    }

    pub(crate) fn push(&mut self, writer: &NodeId, store: StoreId, version: u64, floor: u64) {
        if let Some(writer) = self.place(writer) {
            self.claims.claims.push(Claim { writer, store: store.into(), version, floor });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.claims.claims.is_empty()
    }

    pub(crate) fn build(self) -> Claims {
        self.claims
    }
}
