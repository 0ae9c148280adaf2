//! What the cluster has served together, for Prometheus.

use prometheus::{IntCounterVec, Opts, Registry};

use crate::ids::ModelId;

/// The metric families of the bridge.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: IntCounterVec,
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
        registry.register(Box::new(requests.clone()))?;
        Ok(Self { requests })
    }

    /// Shows the totals of a model. A total that falls back, because a router died before its last count was heard, waits
    /// until it is overtaken.
    pub(super) fn show(&self, model: &ModelId, counts: &[(&'static str, u64)]) {
        for (outcome, count) in counts {
            let counter = self.requests.with_label_values(&[*outcome, model.as_str()]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }
}
