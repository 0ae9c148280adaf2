//! The metrics of admission. The gauges are read at each scrape. Counters change only when a request waits or is rejected, so
//! a request that gets a permit at once pays nothing.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{Admission, Priority};

/// Registers the metrics of an [`Admission`].
#[derive(Debug)]
pub struct Metrics {
    admission: Arc<Admission>,
    in_use: IntGauge,
    waiting: IntGauge,
}

impl Metrics {
    /// Adds `smg_admission_in_use`, `_waiting`, `_queued_total{priority}`, `_rejected_total{reason}` (`queue_full`,
    /// `timeout`) and `_abandoned_total` to `registry`.
    ///
    /// # Errors
    /// If a metric of one of these names is registered already.
    pub fn register(registry: &Registry, admission: &Arc<Admission>) -> prometheus::Result<()> {
        registry.register(Box::new(Self {
            admission: Arc::clone(admission),
            in_use: IntGauge::new("smg_admission_in_use", "Requests that hold a place.")?,
            waiting: IntGauge::new("smg_admission_waiting", "Requests that wait for a place.")?,
        }))
    }
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        let gauges = [&self.in_use, &self.waiting].into_iter().flat_map(Collector::desc);
        gauges.chain(self.admission.counters().desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.in_use.set(i64::from(self.admission.in_use()));
        self.waiting.set(i64::from(self.admission.waiting()));
        let gauges = [&self.in_use, &self.waiting].into_iter().flat_map(Collector::collect);
        gauges.chain(self.admission.counters().collect()).collect()
    }
}

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
            "Requests that had to wait for a place, by priority.",
            "priority",
        );
        let rejected = vec(
            "smg_admission_rejected_total",
            "Requests that got no place: the queue was full, or the wait too long.",
            "reason",
        );
        Self {
            queued_by_class: Priority::ALL.map(|class| queued.with_label_values(&[class.name()])),
            queue_full: rejected.with_label_values(&["queue_full"]),
            timed_out: rejected.with_label_values(&["timeout"]),
            abandoned: IntCounter::new(
                "smg_admission_abandoned_total",
                "Requests whose client left while they waited for a place.",
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

    fn desc(&self) -> impl Iterator<Item = &Desc> {
        let vecs = [&self.queued, &self.rejected].into_iter().flat_map(Collector::desc);
        vecs.chain(self.abandoned.desc())
    }

    fn collect(&self) -> impl Iterator<Item = MetricFamily> {
        let vecs = [&self.queued, &self.rejected].into_iter().flat_map(Collector::collect);
        vecs.chain(self.abandoned.collect())
    }
}
