//! What dispatch shows to Prometheus. Handles are resolved once per model and policy.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};
use smg_routing::policy::Decision;
use smg_types::ids::ModelId;

/// The metric families of dispatch.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    first_byte: HistogramVec,
    decisions: IntCounterVec,
    retries: IntCounterVec,
    send_errors: IntCounterVec,
    pub(super) predicted: IntCounter,
    pub(super) actual: IntCounter,
}

/// How a dispatched request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The response was complete.
    Complete,
    /// The worker's final answer was a 5xx.
    WorkerError,
    /// The response broke off.
    Broken,
    /// The client left.
    ClientLeft,
    /// The last attempt got no answer. What was turned away before an attempt is counted by `smg_http_requests_total`.
    Failed,
}

impl Ending {
    const ALL: [Self; 5] =
        [Self::Complete, Self::WorkerError, Self::Broken, Self::ClientLeft, Self::Failed];

    const fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::WorkerError => "worker_error",
            Self::Broken => "broken",
            Self::ClientLeft => "client_left",
            Self::Failed => "failed",
        }
    }
}

/// The handles of one model.
#[derive(Debug, Clone)]
pub(super) struct ModelMetrics {
    endings: [IntCounter; 5],
    pub(super) duration: Histogram,
    pub(super) first_byte: Histogram,
}

/// Requests since the start, by how they ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Endings {
    /// Answered in full.
    pub complete: u64,
    /// A worker's or this router's failure.
    pub failed: u64,
    /// The client left.
    pub client_left: u64,
}

impl ModelMetrics {
    pub(super) fn endings(&self) -> Endings {
        let count = |ending: Ending| self.endings[ending as usize].get();
        Endings {
            complete: count(Ending::Complete),
            failed: count(Ending::WorkerError) + count(Ending::Broken) + count(Ending::Failed),
            client_left: count(Ending::ClientLeft),
        }
    }

    pub(super) fn count(&self, ending: Ending) {
        self.endings[ending as usize].inc();
    }
}

/// From a fast embedding to a long generation, in seconds.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];

impl Metrics {
    /// Registers the families.
    ///
    /// # Errors
    /// If a family of the same name is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let histogram = |name: &str, help: &str| {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()), &["model"])
        };
        let counter = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels)
        };
        let metrics = Self {
            requests: counter(
                "smg_router_requests_total",
                "Requests that were dispatched, by model and how they ended.",
                &["outcome", "model"],
            )?,
            duration: histogram(
                "smg_router_request_duration_seconds",
                "Time from dispatch to the response's last byte.",
            )?,
            first_byte: histogram(
                "smg_router_first_byte_seconds",
                "Time from dispatch to the first byte of the response's body: for streams, the time to the first token.",
            )?,
            decisions: counter(
                "smg_policy_decisions_total",
                "Picks by policy and why the worker was picked.",
                &["policy", "decision"],
            )?,
            retries: counter(
                "smg_router_retries_total",
                "Attempts after the first, by what went wrong before.",
                &["reason"],
            )?,
            send_errors: counter(
                "smg_router_send_errors_total",
                "Attempts that got no response head, by what went wrong.",
                &["reason"],
            )?,
            predicted: IntCounter::new(
                "smg_affinity_predicted_cached_tokens_total",
                "Tokens of prompts that cache_aware expected to be cached, where the answer says how many were.",
            )?,
            actual: IntCounter::new(
                "smg_affinity_actual_cached_tokens_total",
                "Tokens that were cached of the prompts of which cache_aware expected it, as the answers say.",
            )?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        registry.register(Box::new(metrics.first_byte.clone()))?;
        registry.register(Box::new(metrics.decisions.clone()))?;
        registry.register(Box::new(metrics.retries.clone()))?;
        registry.register(Box::new(metrics.send_errors.clone()))?;
        registry.register(Box::new(metrics.predicted.clone()))?;
        registry.register(Box::new(metrics.actual.clone()))?;
        Ok(metrics)
    }

    pub(super) fn model(&self, model: &str) -> ModelMetrics {
        ModelMetrics {
            endings: Ending::ALL
                .map(|ending| self.requests.with_label_values(&[ending.name(), model])),
            duration: self.duration.with_label_values(&[model]),
            first_byte: self.first_byte.with_label_values(&[model]),
        }
    }

    /// Takes the series of a model that nobody serves any more away.
    pub(super) fn forget(&self, model: &ModelId) {
        let model = model.as_str();
        // Errors mean that there was no such series.
        for ending in Ending::ALL {
            let _absent = self.requests.remove_label_values(&[ending.name(), model]);
        }
        let _absent = self.duration.remove_label_values(&[model]);
        let _absent = self.first_byte.remove_label_values(&[model]);
    }

    pub(super) fn decision(&self, policy: &str, decision: Decision) -> IntCounter {
        self.decisions.with_label_values(&[policy, decision.name()])
    }

    /// Both labels come from closed sets. Not on the path of a request that goes well.
    pub(super) fn count_retry(&self, reason: &str) {
        self.retries.with_label_values(&[reason]).inc();
    }

    pub(super) fn count_send_error(&self, reason: &str) {
        self.send_errors.with_label_values(&[reason]).inc();
    }
}
