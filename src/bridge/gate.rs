//! Whether this router may serve: whether it knows what the other routers know.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether this router knows what the others know.
#[derive(Debug)]
pub struct Gate {
    settled: AtomicBool,
    told: AtomicBool,
}

impl Gate {
    /// Open from the start where there is nobody to learn from.
    pub(super) fn new(is_open: bool) -> Self {
        Self { settled: AtomicBool::new(is_open), told: AtomicBool::new(false) }
    }

    /// It does, or there are no others, or it has waited long enough: from now on it is as good as any.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    pub(super) fn open(&self) {
        self.settled.store(true, Ordering::Release);
    }

    /// It has said which workers its configuration names: from now on those are there that the cluster has.
    pub(super) fn has_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    pub(super) fn tell(&self) {
        self.told.store(true, Ordering::Release);
    }
}
