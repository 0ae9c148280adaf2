//! The metrics of models and policies. Handles are looked up once per model and policy.

use std::sync::Arc;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};
use smg_types::ids::ModelId;

use super::tokens::{ModelTokens, TokenKind, TokenMetrics};
use crate::fleet::TimeToFirstToken;
use crate::policy::Decision;

/// The metric families of models and policies.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    first_byte: HistogramVec,
    expectation: HistogramVec,
    reports: IntCounterVec,
    decisions: IntCounterVec,
    predicted: IntCounter,
    actual: IntCounter,
    tokens: TokenMetrics,
}

/// The end of a dispatched request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The response was complete.
    Complete,
    /// The worker's final answer was a 5xx.
    WorkerError,
    /// The response broke off.
    Broken,
    /// The client disconnected before the end.
    ClientLeft,
    /// The last attempt got no answer. A request that was refused before its first attempt is counted by
    /// `smg_http_requests_total` only.
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

/// Requests since the start, by how they ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Endings {
    /// Requests with a complete response.
    pub complete: u64,
    /// Requests that a worker or this router failed.
    pub failed: u64,
    /// Requests whose client left.
    pub client_left: u64,
}

/// The handles of one model.
#[derive(Debug, Clone)]
pub struct ModelMetrics {
    endings: [IntCounter; Ending::ALL.len()],
    /// Time from dispatch to the last byte of the response, in seconds.
    pub duration: Histogram,
    /// Time from dispatch to the first byte of the response's body, in seconds.
    pub first_byte: Histogram,
    expectation: Histogram,
    reports: [IntCounter; REPORTS.len()],
    tokens: Arc<ModelTokens>,
    unreadable_usage: IntCounter,
}

impl ModelMetrics {
    /// Counts a request that ended.
    pub fn count(&self, ending: Ending) {
        self.endings[ending as usize].inc();
    }

    /// Compares the expected time to the first token of an answer with the actual one.
    pub fn compare_first_token(&self, time: TimeToFirstToken) {
        self.expectation.observe(time.expected / time.actual.max(1e-6));
    }

    /// Counts an answer by what it reports of its prompt.
    pub(super) fn count_report(&self, reported: Reported) {
        self.reports[reported as usize].inc();
    }

    /// Counts tokens of a request. `tenant`: the tenant whose key the request had.
    pub fn count_tokens(&self, tenant: Option<&str>, kind: TokenKind, tokens: u64) {
        self.tokens.count(tenant, kind, tokens);
    }

    /// Counts usage objects of workers that could not be read.
    pub fn count_unreadable_usage(&self, objects: u64) {
        self.unreadable_usage.inc_by(objects);
    }

    /// The requests that were counted.
    pub(super) fn endings(&self) -> Endings {
        let count = |ending: Ending| self.endings[ending as usize].get();
        Endings {
            complete: count(Ending::Complete),
            failed: count(Ending::WorkerError) + count(Ending::Broken) + count(Ending::Failed),
            client_left: count(Ending::ClientLeft),
        }
    }
}

/// The handles of one policy.
#[derive(Debug, Clone)]
pub(super) struct PolicyMetrics {
    decisions: [IntCounter; DECISIONS.len()],
    predicted: IntCounter,
    actual: IntCounter,
}

/// One decision of each kind, in the order of the handles.
const DECISIONS: [Decision; 7] = [
    Decision::Plain,
    Decision::Hit(0.0),
    Decision::Balance,
    Decision::Miss,
    Decision::Sticky,
    Decision::Spill,
    Decision::NoKey,
];

impl PolicyMetrics {
    /// Counts a pick.
    pub(super) fn count(&self, decision: Decision) {
        let at = match decision {
            Decision::Plain => 0,
            Decision::Hit(_) => 1,
            Decision::Balance => 2,
            Decision::Miss => 3,
            Decision::Sticky => 4,
            Decision::Spill => 5,
            Decision::NoKey => 6,
        };
        self.decisions[at].inc();
    }

    /// Counts the tokens of a prompt that were expected in a worker's cache, and those that were in it.
    pub(super) fn count_cached(&self, predicted: u64, actual: u64) {
        self.predicted.inc_by(predicted);
        self.actual.inc_by(actual);
    }
}

/// What an answer reports of its prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reported {
    /// Its tokens, and those that were cached.
    Cached,
    /// Its tokens.
    Prompt,
    /// Nothing.
    Nothing,
}

/// The values of the label `reported`, in the order of [`Reported`].
const REPORTS: [&str; 3] = ["cached", "prompt", "none"];

/// Buckets for the ratio of an expected time to the actual one.
const RATIOS: [f64; 8] = [0.1, 0.25, 0.5, 0.8, 1.25, 2.0, 4.0, 10.0];

/// Buckets from a fast embedding to a long generation, in seconds.
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
                "Requests that were dispatched, by model and outcome.",
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
            expectation: HistogramVec::new(
                HistogramOpts::new(
                    "smg_router_first_token_expected_ratio",
                    "The time to first token that was expected when a request was sent, divided by the time that it took: \
                     of streamed answers. Below 1 the answer came later than expected.",
                )
                .buckets(RATIOS.to_vec()),
                &["model"],
            )?,
            reports: counter(
                "smg_router_prompt_reports_total",
                "Answers by what they report of their prompt: cached (its tokens and those that were cached), prompt (its \
                 tokens), none. Without reports cache_aware counts bytes and does not learn what workers have evicted.",
                &["model", "reported"],
            )?,
            decisions: counter(
                "smg_policy_decisions_total",
                "Picks by policy and why the worker was picked.",
                &["policy", "decision"],
            )?,
            predicted: IntCounter::new(
                "smg_affinity_predicted_cached_tokens_total",
                "Prompt tokens that cache_aware expected to be cached, of answers that report the number of \
                 cached tokens.",
            )?,
            actual: IntCounter::new(
                "smg_affinity_actual_cached_tokens_total",
                "Prompt tokens that were cached according to the answers, of prompts of which cache_aware \
                 expected some to be cached.",
            )?,
            tokens: TokenMetrics::register(registry)?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        registry.register(Box::new(metrics.first_byte.clone()))?;
        registry.register(Box::new(metrics.expectation.clone()))?;
        registry.register(Box::new(metrics.reports.clone()))?;
        registry.register(Box::new(metrics.decisions.clone()))?;
        registry.register(Box::new(metrics.predicted.clone()))?;
        registry.register(Box::new(metrics.actual.clone()))?;
        Ok(metrics)
    }

    /// The handles of a model.
    pub(super) fn model(&self, model: &str) -> ModelMetrics {
        ModelMetrics {
            endings: Ending::ALL
                .map(|ending| self.requests.with_label_values(&[ending.name(), model])),
            duration: self.duration.with_label_values(&[model]),
            first_byte: self.first_byte.with_label_values(&[model]),
            expectation: self.expectation.with_label_values(&[model]),
            reports: REPORTS.map(|reported| self.reports.with_label_values(&[model, reported])),
            tokens: self.tokens.model(model),
            unreadable_usage: self.tokens.unreadable.clone(),
        }
    }

    /// Removes the series of a model that no worker serves any more.
    pub(super) fn forget(&self, model: &ModelId) {
        let model = model.as_str();
        // An error means that there was no such series.
        for ending in Ending::ALL {
            let _absent = self.requests.remove_label_values(&[ending.name(), model]);
        }
        let _absent = self.duration.remove_label_values(&[model]);
        let _absent = self.first_byte.remove_label_values(&[model]);
        let _absent = self.expectation.remove_label_values(&[model]);
        for reported in REPORTS {
            let _absent = self.reports.remove_label_values(&[model, reported]);
        }
        self.tokens.forget(model);
    }

    /// The handles of a policy.
    pub(super) fn policy(&self, policy: &str) -> PolicyMetrics {
        PolicyMetrics {
            decisions: DECISIONS
                .map(|decision| self.decisions.with_label_values(&[policy, decision.name()])),
            predicted: self.predicted.clone(),
            actual: self.actual.clone(),
        }
    }
}
