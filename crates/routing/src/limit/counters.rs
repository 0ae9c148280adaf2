//! The counters of admission: requests that wait or are rejected. A request that gets a permit at once pays nothing.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, Opts};

use super::Priority;

/// Counters since the start of the process.
#[derive(Debug)]
pub(super) struct Counters {
    queued: IntCounterVec,
    queued_by_class: [IntCounter; 4],
    rejected: IntCounterVec,
    pub(super) queue_full: IntCounter,
    pub(super) timed_out: IntCounter,
    pub(super) abandoned: IntCounter,
}

impl Counters {
    pub(super) fn new() -> Self {
        let vec = |name, help, label| {
            IntCounterVec::new(Opts::new(name, help), &[label]).expect("a well-formed name")
        };
        let queued = vec(
            "smg_admission_queued_total",
            "Requests that had to wait in the queue, by priority.",
            "priority",
        );
        let rejected = vec(
            "smg_admission_rejected_total",
            "Requests that were rejected because the queue was full or the wait too long.",
            "reason",
        );
        Self {
            queued_by_class: Priority::ALL.map(|class| queued.with_label_values(&[class.name()])),
            queue_full: rejected.with_label_values(&["queue_full"]),
            timed_out: rejected.with_label_values(&["timeout"]),
            abandoned: IntCounter::new(
                "smg_admission_abandoned_total",
                "Requests whose client disconnected while they waited in the queue.",
            )
            .expect("a well-formed name"),
            queued,
            rejected,
        }
    }

    pub(super) fn queued(&self, priority: Priority) -> &IntCounter {
        // `Priority::ALL` has the order of the variants.
        &self.queued_by_class[priority as usize]
    }

    pub(super) fn desc(&self) -> impl Iterator<Item = &Desc> {
        let vecs = [&self.queued, &self.rejected].into_iter().flat_map(Collector::desc);
        vecs.chain(self.abandoned.desc())
    }

    pub(super) fn collect(&self) -> impl Iterator<Item = MetricFamily> {
        let vecs = [&self.queued, &self.rejected].into_iter().flat_map(Collector::collect);
        vecs.chain(self.abandoned.collect())
    }
}
