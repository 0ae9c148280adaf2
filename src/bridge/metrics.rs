//! The Prometheus metrics of what the cluster has served together.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use smg_types::ids::ModelId;

/// The metric families of the bridge.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    hints: IntGauge,
    unpublished: IntCounter,
}

impl Metrics {
    /// Registers the families.
    ///
    /// # Errors
    /// If a family of the same name is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let requests = IntCounterVec::new(
            Opts::new(
                "smg_cluster_requests_total",
                "Requests that all routers have dispatched together, those that died meanwhile included, by model and how they \
                 ended. Every router shows the same: take the maximum, not the sum.",
            ),
            &["outcome", "model"],
        )?;
        let hints = IntGauge::new(
            "smg_cluster_hints",
            "Hints (which worker has served which prompt block) that this router keeps for routers that join.",
        )?;
        let unpublished = IntCounter::new(
            "smg_cluster_hints_untold_total",
            "Prompt blocks and sessions that were not published to the other routers, because there were too \
             many at once.",
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(hints.clone()))?;
        registry.register(Box::new(unpublished.clone()))?;
        Ok(Self { requests, hints, unpublished })
    }

    /// Sets the number of hints that are held, and counts those that were not published.
    pub(super) fn show_hints(&self, held: usize, unpublished: u64) {
        self.hints.set(i64::try_from(held).unwrap_or(i64::MAX));
        self.unpublished.inc_by(unpublished.saturating_sub(self.unpublished.get()));
    }

    /// Sets the totals of a model. A total can decrease, if a router dies before its last count was received. Then the
    /// metric keeps its value until the total exceeds it again.
    pub(super) fn show(&self, model: &ModelId, counts: &[(&'static str, u64)]) {
        for (outcome, count) in counts {
            let counter = self.requests.with_label_values(&[*outcome, model.as_str()]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }
}
