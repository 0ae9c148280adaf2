//! The progress of this router's start: whether it may be ready, and whether it has published its workers.

use std::sync::atomic::{AtomicBool, Ordering};

/// The progress of this router's start.
#[derive(Debug)]
pub struct Gate {
    is_open: AtomicBool,
    announced: AtomicBool,
}

impl Gate {
    /// `is_open`: there are no others to learn from.
    pub(super) fn new(is_open: bool) -> Self {
        Self { is_open: AtomicBool::new(is_open), announced: AtomicBool::new(false) }
    }

    /// Whether this router may be ready: it has the state of the others, there are none, or it has waited long enough.
    #[must_use]
    pub fn is_open(&self) -> bool {
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
