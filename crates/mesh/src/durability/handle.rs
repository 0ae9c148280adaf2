//! The handle through which the driver and the keys reach the thread that writes, and what the thread reports.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use smg_cluster::replication::SavedEntry;
use smg_persist::{Batch, Fsync};
use tokio::sync::watch;
use tracing::warn;

use crate::seal::Ring;

/// How long a change that must be on disk is waited for. A disk that takes longer does not stop administrators.
const SYNC_TIMEOUT: Duration = Duration::from_secs(2);

/// The data folder, and when changes are synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataConfig {
    /// The folder. It is created if there is none.
    pub folder: PathBuf,
    /// When changes are written and synced.
    pub fsync: Fsync,
}

/// Whether the state of this router is on disk, in `/ha/health` and `/ha/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Durability {
    /// `memory` without a data folder, `ok`, or `degraded`: changes are kept in memory until the disk works again.
    pub state: &'static str,
    /// The data folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// The operation that failed, and the error of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

impl Durability {
    /// That of a router without a data folder.
    #[must_use]
    pub const fn memory() -> Self {
        Self { state: "memory", folder: None, cause: None }
    }

    /// A sentence for the reasons of `/ha/health`; `None` if nothing is wrong.
    pub(crate) fn reason(&self) -> Option<String> {
        let cause = self.cause.as_ref()?;
        Some(format!("changes are kept in memory only, the data folder does not work: {cause}"))
    }
}

/// What the thread has reported last.
#[derive(Debug, Clone, Default)]
pub(super) struct Report {
    /// How many of the pushes are on disk.
    pub(super) synced: u64,
    /// Why nothing reaches the disk, if so.
    pub(super) cause: Option<String>,
}

/// What waits for the thread.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) batch: Batch,
    pub(super) ring: Option<Ring>,
    pub(super) pushed: u64,
    pub(super) stop: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) folder: String,
    /// Whether administrators wait for the disk.
    pub(super) waits: bool,
    pub(super) queue: Mutex<Queue>,
    /// Wakes the thread.
    pub(super) pushed: Condvar,
    pub(super) report: watch::Sender<Report>,
}

/// Hands changes to the thread that writes them, and knows whether they are on disk.
#[derive(Debug, Clone)]
pub(crate) struct DiskHandle(pub(super) Arc<Shared>);

impl DiskHandle {
    /// Takes what has changed. Never blocks for longer than the thread takes to swap a map.
    pub(crate) fn push(&self, entries: Vec<SavedEntry>) {
        if entries.is_empty() {
            return;
        }
        let mut queue = self.0.queue.lock();
        for (key, value) in entries {
            match value {
                Some(value) => queue.batch.put(key, value),
                None => queue.batch.remove(key),
            }
        }
        queue.pushed += 1;
        self.0.pushed.notify_one();
    }

    /// Takes the ring of shared keys, which has changed.
    pub(crate) fn save_ring(&self, ring: Ring) {
        let mut queue = self.0.queue.lock();
        queue.ring = Some(ring);
        queue.pushed += 1;
        self.0.pushed.notify_one();
    }

    /// Waits until all that was taken so far is on disk, until it is known that the disk does not work, or for two seconds.
    pub(crate) async fn synced(&self) {
        let pushed = self.0.queue.lock().pushed;
        let mut report = self.0.report.subscribe();
        let synced = report.wait_for(|report| report.synced >= pushed || report.cause.is_some());
        if tokio::time::timeout(SYNC_TIMEOUT, synced).await.is_err() {
            warn!(folder = self.0.folder, "a change is not on disk yet: the disk is slow");
        }
    }

    /// Whether writes of administrators wait until they are on disk.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.0.waits
    }

    pub(crate) fn durability(&self) -> Durability {
        let cause = self.0.report.borrow().cause.clone();
        let state = if cause.is_some() { "degraded" } else { "ok" };
        Durability { state, folder: Some(self.0.folder.clone()), cause }
    }

    /// Makes the thread write what waits, and end.
    pub(crate) fn stop(&self) {
        self.0.queue.lock().stop = true;
        self.0.pushed.notify_one();
    }
}
