//! The counts of replication, for metrics and tests.

use crate::state::STORES;

/// Counts since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Bytes of rows sent, per store in the order of [`StoreId::ALL`](crate::state::StoreId::ALL).
    pub sent_bytes: [u64; STORES],
    /// Bytes of rows received, per store in the same order.
    pub received_bytes: [u64; STORES],
    /// Rows sent in deltas.
    pub rows_sent: u64,
    /// Rows received in deltas.
    pub rows_received: u64,
    /// Rows received in deltas that had been applied before.
    pub rows_known: u64,
    /// Deltas that could not be applied because something before them was missing.
    pub gaps: u64,
    /// Pulls sent.
    pub pulls: u64,
    /// Streams that were sent again because no acknowledgement came.
    pub retries: u64,
    /// Snapshots that this node began to load.
    pub snapshots_joined: u64,
    /// Parts of snapshots sent.
    pub snapshot_chunks_served: u64,
    /// Rows that an audit corrected here.
    pub repaired: u64,
    /// Buckets that an audit could not correct because their rows do not fit into a message.
    pub unrepairable: u64,
    /// Rows of others that were not kept: too long, too many, or under a key that can't be decoded.
    pub refused_rows: u64,
    /// Rows of others that were kept without a value: their stamp is too far in the future or their content can't be
    /// decoded.
    pub quarantined_rows: u64,
    /// Rows that left quarantine.
    pub released_rows: u64,
    /// Messages that contradict themselves or come from a node that is not a reachable peer.
    pub refused_messages: u64,
    /// Claims, deltas and other messages with a version that their writer can't have reached by now.
    pub absurd_versions: u64,
    /// Names of writers in messages that were refused because too many are remembered.
    pub refused_writers: u64,
    /// Versions that a peer had claimed and that its later digests did not confirm.
    pub withdrawn_claims: u64,
    /// Logs of ended writers that were given up from a version on that no member has.
    pub abandoned_logs: u64,
    /// Parts of messages about stores that this router does not have.
    pub unknown_stores: u64,
    /// Small messages that were dropped because a peer's outbox was full.
    pub dropped_messages: u64,
    /// Tombstones collected.
    pub collected: u64,
    /// Rows of retired generations and of forgotten nodes that this node adopted.
    pub adopted: u64,
    /// Writers retired.
    pub retired: u64,
}
