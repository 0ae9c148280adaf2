//! What a journal reports about itself.

use std::time::Duration;

/// Whether changes reach the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// They do.
    Durable,
    /// They are kept in memory only, until the disk works again.
    Degraded {
        /// The operation that failed, and the error of the system.
        cause: String,
        /// The time at which it failed.
        since: Duration,
    },
}

/// Counts since the journal was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Bytes that were written, of all files.
    pub written_bytes: u64,
    /// Batches that were written and synced.
    pub batches: u64,
    /// Snapshots that were finished.
    pub snapshots: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Bytes of the present log.
    pub log_bytes: u64,
    /// Bytes of the present snapshot.
    pub snapshot_bytes: u64,
}

/// What one call of [`Journal::turn`](crate::Journal::turn) did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Turn {
    /// It synced a batch.
    pub synced: bool,
    /// It finished a snapshot.
    pub snapshot: bool,
    /// It found that the disk does not work.
    pub degraded: bool,
    /// It found that the disk works again.
    pub recovered: bool,
}
