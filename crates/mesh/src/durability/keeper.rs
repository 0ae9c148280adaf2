//! The thread that writes to the data folder.

use std::sync::Arc;
use std::time::Duration;

use smg_persist::{Folder, FolderFiles, Journal, State};
use smg_runtime::clock::Clock;
use tracing::{error, info, warn};

use crate::durability::handle::{DiskHandle, Queue, Report};
use crate::durability::metrics::Metrics;
use crate::durability::vault::Vault;
use crate::seal::Ring;

/// The longest time between two looks at the folder.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Writes what is handed over, until it is stopped.
#[derive(Debug)]
pub(crate) struct Keeper {
    handle: DiskHandle,
    journal: Journal<FolderFiles>,
    vault: Vault,
    ring: Ring,
    is_ring_saved: bool,
    /// The number of pushes that the journal and the vault have.
    taken: u64,
    /// When the oldest change that is not on disk was taken.
    unsynced_since: Option<Duration>,
    clock: Clock,
    metrics: Option<Metrics>,
    /// Keeps the lock.
    _folder: Arc<Folder>,
}

impl Keeper {
    pub(super) fn new(
        handle: DiskHandle,
        journal: Journal<FolderFiles>,
        (vault, ring): (Vault, Ring),
        folder: Arc<Folder>,
        clock: Clock,
        metrics: Option<Metrics>,
    ) -> Self {
        Self {
            handle,
            journal,
            vault,
            ring,
            // The vault may have been written with other keys, or not at all.
            is_ring_saved: false,
            taken: 0,
            unsynced_since: None,
            clock,
            metrics,
            _folder: folder,
        }
    }

    /// Runs until [`DiskHandle::stop`].
    pub(crate) fn run(mut self) {
        let _ended = Ended(self.handle.clone());
        loop {
            let Queue { batch, ring, pushed, stop } = self.wait();
            let now = self.clock.mono();
            if pushed > self.taken {
                self.taken = pushed;
                self.unsynced_since.get_or_insert(now);
            }
            if !batch.is_empty() {
                self.journal.push(batch, now);
            }
            if let Some(ring) = ring {
                (self.ring, self.is_ring_saved) = (ring, false);
            }
            self.turn(stop);
            if stop {
                return;
            }
        }
    }

    /// Waits for changes or the next deadline, and takes what is there.
    fn wait(&self) -> Queue {
        let shared = &self.handle.0;
        let now = self.clock.mono();
        let due = self.journal.next_deadline().min(now + LONGEST_WAIT);
        // While a group of changes gathers, further ones do not wake this thread.
        let gathers = self.journal.has_unwritten() && !self.is_degraded();
        let mut queue = shared.queue.lock();
        loop {
            let is_idle = queue.batch.is_empty() || gathers;
            let left = due.saturating_sub(self.clock.mono());
            if queue.stop || queue.ring.is_some() || !is_idle || left.is_zero() {
                break;
            }
            shared.pushed.wait_for(&mut queue, left);
        }
        Queue {
            batch: std::mem::take(&mut queue.batch),
            ring: queue.ring.take(),
            pushed: queue.pushed,
            stop: queue.stop,
        }
    }

    fn is_degraded(&self) -> bool {
        matches!(self.journal.state(), State::Degraded { .. })
    }

    fn turn(&mut self, stop: bool) {
        let folder = self.handle.0.folder.clone();
        // Before the journal, whose files nobody could read without the key in the vault.
        if !self.is_degraded() {
            self.save_ring();
        }
        let began = self.clock.mono();
        let turn = if stop { self.journal.flush(began) } else { self.journal.turn(began) };
        let took = self.clock.mono().saturating_sub(began);
        if turn.degraded
            && let State::Degraded { cause, .. } = self.journal.state()
        {
            error!(
                folder,
                cause,
                "the data folder does not work: changes are kept in memory only, and would be lost if all routers stopped"
            );
        }
        if turn.recovered {
            info!(folder, "the data folder works again: all of the state is on disk");
        }
        if turn.recovered {
            // The folder may be a new one.
            self.is_ring_saved = false;
            self.save_ring();
        }
        self.report();
        if let Some(metrics) = &self.metrics {
            let now = self.clock.now();
            let unsynced = self.unsynced_since.map(|since| now.mono.saturating_sub(since));
            metrics.note(&self.journal, turn, took, unsynced.unwrap_or_default(), now.wall);
        }
    }

    fn save_ring(&mut self) {
        if self.is_ring_saved {
            return;
        }
        match self.vault.save(&self.ring) {
            Ok(()) => self.is_ring_saved = true,
            Err(error) => {
                let folder = &self.handle.0.folder;
                warn!(folder, %error, "the shared keys can't be saved yet");
            }
        }
    }

    fn report(&mut self) {
        let cause = match self.journal.state() {
            State::Durable => None,
            State::Degraded { cause, .. } => Some(cause),
        };
        let is_synced = cause.is_none() && !self.journal.has_unwritten() && self.is_ring_saved;
        if is_synced {
            self.unsynced_since = None;
        }
        let taken = self.taken;
        self.handle.0.report.send_if_modified(|report| {
            let synced = if is_synced { taken } else { report.synced };
            let changed = report.synced != synced || report.cause != cause;
            *report = Report { synced, cause };
            changed
        });
    }
}

/// Reports the end of the thread, also if it panics.
struct Ended(DiskHandle);

impl Drop for Ended {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let cause = Some("the thread that writes has ended: restart this router".to_owned());
            self.0.0.report.send_modify(|report| report.cause = cause);
        }
    }
}
