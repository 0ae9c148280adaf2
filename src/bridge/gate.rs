//! The progress of this router's start: whether it may be ready, and whether it has published its workers.

use std::sync::atomic::{AtomicBool, Ordering};

/// The progress of this router's start.
#[derive(Debug)]
pub struct Gate {
    is_open: AtomicBool,
    /// It has the state of an earlier process, and has waited a moment for the others.
    has_own_state: AtomicBool,
    announced: AtomicBool,
}

impl Gate {
    /// `is_open`: there are no others to learn from.
    pub(super) fn new(is_open: bool) -> Self {
        Self {
            is_open: AtomicBool::new(is_open),
            has_own_state: AtomicBool::new(false),
            announced: AtomicBool::new(false),
        }
    }

    /// Whether this router may be ready: it is open, or it has the state that an earlier process of it has saved.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_open() || self.has_own_state.load(Ordering::Acquire)
    }

    pub(super) fn mark_own_state(&self) {
        self.has_own_state.store(true, Ordering::Release);
    }

    /// Whether this router may publish what it was configured with: it has the state of the others, there are none, or it has
    /// waited long enough.
    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    pub(super) fn open(&self) {
        self.is_open.store(true, Ordering::Release);
    }

    /// Whether this router has published its configured workers. From then on, a worker that the state lacks was
    /// removed.
    pub(super) fn has_announced(&self) -> bool {
        self.announced.load(Ordering::Acquire)
    }

    pub(super) fn mark_announced(&self) {
        self.announced.store(true, Ordering::Release);
    }
}
