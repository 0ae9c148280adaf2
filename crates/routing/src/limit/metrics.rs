//! The metrics of admission. The gauges are read at each scrape.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, Registry};

use super::Admission;

/// Registers the metrics of an [`Admission`].
#[derive(Debug)]
pub struct Metrics {
    admission: Arc<Admission>,
    in_use: IntGauge,
    waiting: IntGauge,
    waiting_for_worker: IntGauge,
}

impl Metrics {
    /// Adds `smg_admission_in_use`, `_waiting`, `_waiting_for_worker`, `_queued_total{priority}`, `_rejected_total{reason}` (`queue_full`,
    /// `timeout`) and `_abandoned_total` to `registry`.
    ///
    /// # Errors
    /// If a metric of one of these names is registered already.
    pub fn register(registry: &Registry, admission: &Arc<Admission>) -> prometheus::Result<()> {
        registry.register(Box::new(Self {
            admission: Arc::clone(admission),
            in_use: IntGauge::new("smg_admission_in_use", "Requests that are admitted now.")?,
            waiting: IntGauge::new(
                "smg_admission_waiting",
                "Requests that wait in the queue now.",
            )?,
            waiting_for_worker: IntGauge::new(
                "smg_admission_waiting_for_worker",
                "Requests in the queue that wait because no worker of their model has room (max_concurrent of the workers, \
                 --max-expected-wait).",
            )?,
        }))
    }
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        let gauges = [&self.in_use, &self.waiting, &self.waiting_for_worker]
            .into_iter()
            .flat_map(Collector::desc);
        gauges.chain(self.admission.counters().desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.in_use.set(i64::from(self.admission.in_use()));
        self.waiting.set(i64::from(self.admission.waiting()));
        self.waiting_for_worker.set(i64::from(self.admission.waiting_for_worker()));
        let gauges = [&self.in_use, &self.waiting, &self.waiting_for_worker]
            .into_iter()
            .flat_map(Collector::collect);
        gauges.chain(self.admission.counters().collect()).collect()
    }
}
