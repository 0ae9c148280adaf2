//! Opens the data folder, and loads what an earlier process has left there.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use smg_cluster::Node;
use smg_cluster::replication::{is_saved_key, saved_generation};
use smg_persist::{
    Batch, Config as JournalConfig, Folder, FolderError, FolderFiles, Fsync, Journal,
};
use smg_runtime::clock::Clock;
use smg_types::ids::{Generation, NodeId, NodeName};
use smg_types::now::Now;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::durability::handle::{DataConfig, DiskHandle, Report, Shared};
use crate::durability::keeper::Keeper;
use crate::durability::metrics::Metrics as DiskMetrics;
use crate::durability::vault::Vault;
use crate::durability::votes::{SavedBallots, VoteSlot};
use crate::seal::Ring;

/// The opened data folder of a router that does not run yet.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) handle: DiskHandle,
    /// `None`: the configured keys do not open the folder.
    contents: Option<(Journal<FolderFiles>, Vault)>,
    /// The shared keys to use: the configured ones, or those of an earlier process that `/ha/keys` has changed since.
    pub(crate) ring: Ring,
    /// Keeps the lock.
    folder: Arc<Folder>,
}

impl Data {
    /// Opens the folder and reads what is there. A disk that does not work is reported and is no error.
    ///
    /// # Errors
    /// Another process uses the folder, or the path is not that of a folder.
    pub(crate) fn open(
        config: &DataConfig,
        name: &NodeName,
        configured: &Ring,
        now: Now,
    ) -> Result<Self, FolderError> {
        let holder = format!("{name} (pid {})", std::process::id());
        let (folder, usable) = Folder::open(&config.folder, &holder)?;
        let shown = config.folder.display().to_string();
        let cause = usable.err().map(|error| {
            error!(
                folder = shown, %error,
                "the data folder can't be used: changes are kept in memory only until it can"
            );
            error.to_string()
        });
        if let Some(system) = folder.network_file_system() {
            warn!(
                folder = shown,
                system,
                "the data folder is on a network file system: two routers may both get its lock, and a server that hangs \
                 stops all syncs; use a local disk"
            );
        }
        let (contents, ring, cause) = match Vault::open(folder.files(), configured) {
            Ok((vault, ring)) => {
                let journal = read(&folder, config.fsync, &vault, now);
                (Some((journal, vault)), ring, cause)
            }
            Err(locked) => {
                error!(folder = shown, %locked, "the data folder can't be read: changes are kept in memory only");
                (None, configured.clone(), Some(locked.to_string()))
            }
        };
        let (report, _) = watch::channel(Report { synced: 0, cause });
        let shared = Shared {
            folder: shown,
            waits: config.fsync == Fsync::Always,
            queue: Mutex::default(),
            pushed: Condvar::new(),
            report,
        };
        let handle = DiskHandle(Arc::new(shared));
        Ok(Self { handle, contents, ring, folder })
    }

    /// The latest generation of the node `name` of which something is on disk.
    pub(crate) fn generation(&self, name: &NodeName) -> Option<Generation> {
        let (journal, _) = self.contents.as_ref()?;
        saved_generation(journal.entries().map(|(key, _)| key), name)
    }

    /// Loads what is on disk into `node`, which has not begun to run.
    pub(crate) fn restore(&mut self, node: &mut Node, now: Now) {
        node.track_unsaved();
        let Some((journal, _)) = &mut self.contents else { return };
        let restored = node.restore_saved(now, journal.entries());
        let kept = node.take_unsaved(true);
        // Rows that did not survive the loading must not be loaded again next time.
        let mut batch = Batch::default();
        let stale = journal.entries().map(|(key, _)| key).filter(|key| is_saved_key(key));
        stale.for_each(|key| batch.remove(key.to_vec()));
        for (key, value) in kept {
            if let Some(value) = value {
                batch.put(key, value);
            }
        }
        journal.push(batch, now.mono);
        let folder = &self.handle.0.folder;
        if restored.unusable > 0 {
            let keys = restored.unusable;
            warn!(folder, keys, "a part of the data folder is of another version of smg");
        }
        if restored.rows > 0 {
            let rows = restored.rows;
            info!(folder, rows, "loaded the state that an earlier process has saved");
        }
    }

    /// The votes of the node `me` on leases.
    pub(crate) fn votes(&self, me: NodeId) -> SavedBallots {
        let seal = self.contents.as_ref().map(|(_, vault)| vault.file_seal());
        SavedBallots::new(me, seal.map(|seal| VoteSlot::new(&self.folder, seal)))
    }

    /// Whether an earlier process has left a state.
    pub(crate) fn has_state(&self) -> bool {
        self.contents.as_ref().is_some_and(|(journal, _)| journal.entries().next().is_some())
    }

    /// The thread's part; `None` if there is nothing that it may do.
    pub(crate) fn into_keeper(self, clock: Clock, metrics: Option<DiskMetrics>) -> Option<Keeper> {
        let Self { handle, contents, ring, folder } = self;
        if let Some(metrics) = &metrics {
            metrics.note_state(contents.is_none());
        }
        let (journal, vault) = contents?;
        Some(Keeper::new(handle, journal, (vault, ring), folder, clock, metrics))
    }
}

/// Reads the journal of the folder, and logs what of it could not be used.
fn read(folder: &Arc<Folder>, fsync: Fsync, vault: &Vault, now: Now) -> Journal<FolderFiles> {
    let config = JournalConfig { fsync, ..JournalConfig::default() };
    let (journal, found) = Journal::open(folder.files(), vault.file_seal(), config, now.mono);
    let shown = folder.path().display();
    for loss in &found.losses {
        warn!(folder = %shown, %loss, "a part of the data folder could not be used");
    }
    info!(folder = %shown, keys = found.keys, batches = found.batches, "read the data folder");
    journal
}
