//! The Prometheus metrics of attempts. `routing::policies` counts per model and policy.

use prometheus::{IntCounterVec, Opts, Registry};

/// The metric families of dispatch.
#[derive(Debug, Clone)]
pub struct Metrics {
    retries: IntCounterVec,
    send_errors: IntCounterVec,
}

impl Metrics {
    /// Registers the families.
    ///
    /// # Errors
    /// If a family of the same name is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let by_reason =
            |name: &str, help: &str| IntCounterVec::new(Opts::new(name, help), &["reason"]);
        let metrics = Self {
            retries: by_reason(
                "smg_router_retries_total",
                "Attempts after the first one, by the failure of the previous attempt.",
            )?,
            send_errors: by_reason(
                "smg_router_send_errors_total",
                "Attempts that got no response head, by the failure.",
            )?,
        };
        registry.register(Box::new(metrics.retries.clone()))?;
        registry.register(Box::new(metrics.send_errors.clone()))?;
        Ok(metrics)
    }

    /// Counts a retry. `reason` is from a closed set. A request that goes well does not come here.
    pub(super) fn count_retry(&self, reason: &str) {
        self.retries.with_label_values(&[reason]).inc();
    }

    /// Counts an attempt without a response head. `reason` is from a closed set.
    pub(super) fn count_send_error(&self, reason: &str) {
        self.send_errors.with_label_values(&[reason]).inc();
    }
}
