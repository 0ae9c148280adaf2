//! The messages between replicas, as plain values: the codec frames them and bounds what it decodes.
//!
//! Stores travel as numbers, so that a router of a later version may name one that this version does not have. What a
//! message says about such a store is skipped and counted; the rest of the message is used.

use serde::{Deserialize, Serialize};
use smg_types::ids::NodeId;

use crate::codec::at_most;
use crate::state::StoreId;
use crate::state::prefixes::HintRun;
use crate::state::row::{Blob, RawRow};
use crate::state::table::BUCKETS;

/// Most rows of a message: more of the smallest rows than are ever sent, and so few that a decoded message takes no
/// more memory than a few frames.
const MAX_ROWS: usize = 1 << 15;
/// Most writers, and most streams, that a message may name.
const MAX_CLAIMED_WRITERS: usize = 1 << 13;
const MAX_CLAIMS: usize = 1 << 16;
/// Most items of any other list of a message.
const MAX_ITEMS: usize = 1 << 13;

/// The number of a store in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoreNumber(pub u8);

impl StoreNumber {
    /// The store with this number; `None` if this router does not have it.
    #[must_use]
    pub fn store(self) -> Option<StoreId> {
        StoreId::from_wire_id(self.0)
    }
}

impl From<StoreId> for StoreNumber {
    fn from(store: StoreId) -> Self {
        Self(store.wire_id())
    }
}

/// A message of one replica to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// The sender's versions of all streams.
    Digest(Digest),
    /// Rows of one stream after a version.
    Delta(Delta),
    /// The sender's versions of the streams that have moved since its last acknowledgement.
    Ack(Claims),
    /// The sender asks for the rows after its versions of these streams.
    Pull(Claims),
    /// The sender can't send deltas from the receiver's version on, because tombstones after it are collected.
    Offer(Offer),
    /// The sender asks for a part of a snapshot.
    SnapshotRequest(SnapshotRequest),
    /// A part of a snapshot.
    Snapshot(SnapshotChunk),
    /// Fingerprints of one writer's rows.
    Audit(Audit),
    /// The sender's rows differ in some buckets, and it asks for the right ones.
    AuditPull(AuditPull),
    /// All rows of those buckets.
    AuditRows(AuditRows),
    /// Writers that have ended, and those of them that the sender has retired.
    Retired(#[serde(deserialize_with = "at_most::<_, _, MAX_ITEMS>")] Vec<RetiredWriter>),
    /// Hints about prefixes. They are sent once and not acknowledged.
    Hints(#[serde(deserialize_with = "at_most::<_, _, MAX_ITEMS>")] Vec<HintRun>),
    /// The sender has just joined and asks for the most recent hints.
    HotSetRequest,
    /// All rows of the receiver that have no effect at the sender, although its claims cover them. It replaces the list
    /// that the sender has sent before.
    NotApplied(#[serde(deserialize_with = "at_most::<_, _, MAX_ITEMS>")] Vec<NotAppliedRow>),
}

impl Message {
    /// The name of the kind, for metrics.
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
            Self::NotApplied(_) => "not_applied",
        }
    }
}

/// The claim of a replica about one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Place of the writer in [`Claims::writers`].
    pub writer: u16,
    /// Which store.
    pub store: StoreNumber,
    /// Rows up to this version are applied.
    pub version: u64,
    /// Tombstones up to this version may be collected.
    pub floor: u64,
}

/// The claims of a replica about some streams.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Claims {
    /// The writers that are named in `claims`, each once.
    #[serde(deserialize_with = "at_most::<_, _, MAX_CLAIMED_WRITERS>")]
    pub writers: Vec<NodeId>,
    /// One claim per stream.
    #[serde(deserialize_with = "at_most::<_, _, MAX_CLAIMS>")]
    pub claims: Vec<Claim>,
}

/// The claims of a replica about all streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// The sender's wall clock, in milliseconds.
    pub wall_ms: u64,
    /// Whether the sender asks for the rows of all writers, not only for the receiver's own.
    pub relay: bool,
    /// The sender's versions.
    pub claims: Claims,
}

/// All living rows and tombstones of a writer after version `from`, up to and with `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Which store.
    pub store: StoreNumber,
    /// The writer of the rows.
    pub writer: NodeId,
    /// The rows follow this version.
    pub from: u64,
    /// The version to which the rows lead.
    pub to: u64,
    /// The log is known to go up to this version. Rows may have moved from before `to` to after it and are not in this
    /// delta, so only a node that has applied the log up to here may take what it does not hold for dead.
    pub upto: u64,
    /// Tombstones up to this version may be missing: a node that has applied less must not apply this delta.
    pub floor: u64,
    /// The rows, in the order of their versions.
    #[serde(deserialize_with = "at_most::<_, _, MAX_ROWS>")]
    pub rows: Vec<RawRow>,
}

impl Delta {
    /// Whether its versions fit each other: it leads forward and no further than the log goes, and its rows are in
    /// order and between `from` and `to` (R17).
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

/// Says that deltas of a stream can't help a node that has applied less than `floor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Which store.
    pub store: StoreNumber,
    /// The writer of the stream.
    pub writer: NodeId,
    /// Tombstones up to this version may be collected.
    pub floor: u64,
}

/// Asks for a range of keys with all that is known about them. The donor remembers nothing between two requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// Which store.
    pub store: StoreNumber,
    /// The receiver's number of this attempt to load a snapshot.
    pub session: u64,
    /// The range begins after this key; `None`: with the first key.
    pub after: Option<Blob>,
}

/// A range of keys with all that the donor knows about them, and the donor's versions at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotChunk {
    /// Which store.
    pub store: StoreNumber,
    /// The number of the attempt, from the request.
    pub session: u64,
    /// The range begins after this key; `None`: with the first key.
    pub after: Option<Blob>,
    /// The last key of the range; `None`: there are no more keys.
    pub end: Option<Blob>,
    /// The versions that the donor covers in each stream of the store, and its floors.
    pub claims: Claims,
    /// Each row, with the place of its writer in `claims.writers`.
    #[serde(deserialize_with = "at_most::<_, _, MAX_ROWS>")]
    pub rows: Vec<(u16, RawRow)>,
    /// Kills that wait at the donor: the place of the killed writer, the key, and up to which version its writes are
    /// dead.
    #[serde(deserialize_with = "at_most::<_, _, MAX_CLAIMS>")]
    pub pending: Vec<(u16, Blob, u64)>,
}

/// Fingerprints of a writer's living rows, by bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Which store.
    pub store: StoreNumber,
    /// The writer of the rows.
    pub writer: NodeId,
    /// The version of the stream at which the fingerprints were taken.
    pub version: u64,
    /// A hash of the version vector of a shared store, where rows of one stream depend on other streams; 0 for other
    /// stores.
    pub vector: u64,
    /// One fingerprint per bucket.
    #[serde(deserialize_with = "at_most::<_, _, BUCKETS>")]
    pub fingerprints: Vec<u64>,
}

/// Asks for the rows of the buckets in `mask`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPull {
    /// Which store.
    pub store: StoreNumber,
    /// The writer of the rows.
    pub writer: NodeId,
    /// The version of the stream, from the audit.
    pub version: u64,
    /// One bit per bucket.
    pub mask: u64,
}

/// All living rows of a writer in the buckets of `mask`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRows {
    /// Which store.
    pub store: StoreNumber,
    /// The writer of the rows.
    pub writer: NodeId,
    /// The version of the stream at which these are its rows.
    pub version: u64,
    /// The hash of the version vector, as in [`Audit::vector`].
    pub vector: u64,
    /// One bit per bucket.
    pub mask: u64,
    /// The rows, in the order of their versions.
    #[serde(deserialize_with = "at_most::<_, _, MAX_ROWS>")]
    pub rows: Vec<RawRow>,
}

/// A writer that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredWriter {
    /// The node and its generation.
    pub writer: NodeId,
    /// Whether the sender has retired it: all that is left of it is in rows of other writers, and digests don't name it
    /// any more. Otherwise it has only ended, and the node must go on as a later generation.
    pub closed: bool,
    /// If it is retired, the version of its stream at the sender in each store, in the order of the stores: a node that
    /// has applied less must load a snapshot.
    #[serde(deserialize_with = "at_most::<_, _, MAX_ITEMS>")]
    pub versions: Vec<u64>,
}

/// A row of the receiver's present generation that has no effect at the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotAppliedRow {
    /// Which store.
    pub store: StoreNumber,
    /// The version of the row.
    pub version: u64,
    /// The number of the reason, see `NotAppliedReason`. It is a number, so that a later release can add reasons.
    pub reason: u8,
}

/// How urgent a message is to the link that sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// An administrator, a grant or a stream waits for it.
    Now,
    /// Measurements.
    Soon,
    /// Relayed rows and snapshots: after everything else.
    Bulk,
}

/// Collects claims and names each writer once.
#[derive(Debug, Default)]
pub(crate) struct ClaimsBuilder {
    claims: Claims,
}

impl ClaimsBuilder {
    /// The place of `writer` in the list of writers; `None` when the list is full.
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
