//! The counts of one subject of a meter, shared by the data path and the engine.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};

use crate::meter::{Window, Windows};
use crate::rows::{SubjectId, WindowKey};
use crate::rule::Meter;
use crate::windows::start_of;

/// The counts of one subject of a meter.
pub struct Cell {
    /// What is counted.
    pub meter: Arc<Meter>,
    /// The name of the meter's rule.
    pub rule: Arc<str>,
    /// For whom.
    pub subject: SubjectId,
    /// For whom, for people. Not known until a request of the subject has come to this router.
    label: OnceLock<String>,
    /// Shared with the cell that replaces this one when the rule changes, because requests that hold this one still settle.
    windows: Arc<Mutex<Windows>>,
    /// Whether the engine exchanges this subject with other routers.
    is_hot: AtomicBool,
    /// Until when nobody waits for rights here because a wait was in vain, by the cluster's time in milliseconds.
    in_vain_until_ms: AtomicU64,
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cell")
            .field("rule", &self.rule)
            .field("label", &self.label())
            .finish_non_exhaustive()
    }
}

impl Cell {
    /// A number that differs between subjects, so that the remainders of small limits lie with different routers.
    pub(crate) fn salt(&self) -> u64 {
        self.subject.0 ^ self.meter.id.0
    }

    /// Names the subject for people: by the values that the rule tells apart, or by a hash while only other routers know them.
    #[must_use]
    pub fn label(&self) -> String {
        self.label.get().cloned().unwrap_or_else(|| format!("#{:016x}", self.subject.0))
    }

    /// Gives the subject its name, unless it has one.
    pub(crate) fn name(&self, label: impl FnOnce() -> String) {
        self.label.get_or_init(label);
    }

    /// The key of the window that contains `cluster_ms`.
    #[must_use]
    pub fn key(&self, cluster_ms: u64) -> WindowKey {
        let length_ms = self.meter.window_ms;
        let start_ms = start_of(cluster_ms, length_ms);
        WindowKey { meter: self.meter.id, subject: self.subject, start_ms, length_ms }
    }

    /// The counts of a window.
    #[must_use]
    pub fn window(&self, start_ms: u64) -> Option<Window> {
        self.windows.lock().get(start_ms).cloned()
    }

    /// Does something with the counts of a window; `None` if they have been dropped.
    pub(crate) fn with<T>(
        &self,
        start_ms: u64,
        act: impl FnOnce(&Meter, u64, &mut Window) -> T,
    ) -> Option<T> {
        let mut windows = self.windows.lock();
        windows.at(start_ms).map(|window| act(&self.meter, self.salt(), window))
    }
}

impl Cell {
    pub(crate) fn new(rule: &Arc<str>, meter: &Arc<Meter>, subject: SubjectId) -> Self {
        Self {
            meter: Arc::clone(meter),
            rule: Arc::clone(rule),
            subject,
            label: OnceLock::new(),
            windows: Arc::default(),
            is_hot: AtomicBool::new(false),
            in_vain_until_ms: AtomicU64::new(0),
        }
    }

    pub(crate) fn windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock()
    }

    /// States that the engine should exchange this subject. Returns whether that is news.
    pub(crate) fn heat(&self) -> bool {
        !self.is_hot.swap(true, Ordering::Relaxed)
    }

    /// Whether it makes sense to wait for rights of other routers.
    pub(crate) fn is_hopeful(&self, cluster_ms: u64) -> bool {
        self.in_vain_until_ms.load(Ordering::Relaxed) <= cluster_ms
    }

    /// Nobody waits for rights here until `until_ms`, by the cluster's time.
    pub(crate) fn waited_in_vain(&self, until_ms: u64) {
        self.in_vain_until_ms.store(until_ms, Ordering::Relaxed);
    }

    /// The engine no longer exchanges this subject.
    pub(crate) fn cool(&self) {
        self.is_hot.store(false, Ordering::Relaxed);
    }

    /// Rights may have come: those who wait may wait again.
    pub(crate) fn has_hope(&self) {
        self.in_vain_until_ms.store(0, Ordering::Relaxed);
    }
}

/// The cell under a changed rule. Windows of another length start empty.
pub(crate) fn renewed(cell: &Cell, rule: &Arc<str>, meter: &Arc<Meter>) -> Cell {
    let keeps = cell.meter.window_ms == meter.window_ms;
    let windows = if keeps { Arc::clone(&cell.windows) } else { Arc::default() };
    Cell {
        meter: Arc::clone(meter),
        rule: Arc::clone(rule),
        subject: cell.subject,
        label: cell.label.clone(),
        windows,
        is_hot: AtomicBool::new(false),
        in_vain_until_ms: AtomicU64::new(0),
    }
}
