//! The metrics of the fleet. The handles of a worker are looked up once, when it is registered.

use std::time::Duration;

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use smg_types::ids::WorkerId;

use super::breaker::{BreakerMode, Outcome};
use super::failure::Cause;
use super::health::WorkerState;

/// The metric families of the fleet.
#[derive(Debug, Clone)]
pub struct Metrics {
    in_flight: IntGaugeVec,
    requests: IntCounterVec,
    breaker: IntGaugeVec,
    state: IntGaugeVec,
    latency: GaugeVec,
    workers: IntGaugeVec,
    failed_probes: IntCounterVec,
}

/// The series of one worker.
#[derive(Debug)]
pub(super) struct WorkerMetrics {
    pub(super) in_flight: IntGauge,
    succeeded: IntCounter,
    failed: IntCounter,
    neutral: IntCounter,
    breaker: IntGauge,
    id: WorkerId,
    failed_probes: IntCounterVec,
}

impl Metrics {
    /// Registers the families `smg_worker_*` and `smg_workers`.
    ///
    /// # Errors
    /// If a family of the same name is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            IntGaugeVec::new(Opts::new(name, help), labels)
        };
        let metrics = Self {
            in_flight: gauge(
                "smg_worker_in_flight",
                "Requests in flight on a worker, sent by this router.",
                &["worker"],
            )?,
            requests: IntCounterVec::new(
                Opts::new(
                    "smg_worker_requests_total",
                    "Attempts that have ended, by worker and outcome.",
                ),
                &["worker", "outcome"],
            )?,
            breaker: gauge(
                "smg_worker_breaker_state",
                "Circuit breaker of a worker: 0 closed, 1 open, 2 half-open.",
                &["worker"],
            )?,
            state: gauge(
                "smg_worker_state",
                "1 for the current state of a worker, 0 for its other states.",
                &["worker", "state"],
            )?,
            latency: GaugeVec::new(
                Opts::new(
                    "smg_worker_head_latency_seconds",
                    "Time to the head of a worker's responses, exponentially weighted.",
                ),
                &["worker"],
            )?,
            workers: gauge("smg_workers", "Workers in the fleet, by state.", &["state"])?,
            failed_probes: IntCounterVec::new(
                Opts::new(
                    "smg_worker_failed_probes_total",
                    "Probes of a worker, and reads of its models, that failed, by cause.",
                ),
                &["worker", "cause"],
            )?,
        };
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.breaker.clone()))?;
        registry.register(Box::new(metrics.state.clone()))?;
        registry.register(Box::new(metrics.latency.clone()))?;
        registry.register(Box::new(metrics.workers.clone()))?;
        registry.register(Box::new(metrics.failed_probes.clone()))?;
        Ok(metrics)
    }

    pub(super) fn worker(&self, id: WorkerId) -> WorkerMetrics {
        let worker = id.to_string();
        let requests = |outcome: &str| self.requests.with_label_values(&[worker.as_str(), outcome]);
        WorkerMetrics {
            in_flight: self.in_flight.with_label_values(&[&worker]),
            succeeded: requests("success"),
            failed: requests("failure"),
            neutral: requests("neutral"),
            breaker: self.breaker.with_label_values(&[&worker]),
            id,
            failed_probes: self.failed_probes.clone(),
        }
    }

    /// Sets the gauges of each worker's state and of the time to the head of its responses. Called before each scrape.
    pub(super) fn show(
        &self,
        workers: impl Iterator<Item = (WorkerId, WorkerState, Option<Duration>)>,
    ) {
        let mut by_state = [0i64; WorkerState::ALL.len()];
        for (id, now, latency) in workers {
            let id = id.to_string();
            for (at, state) in WorkerState::ALL.into_iter().enumerate() {
                by_state[at] += i64::from(state == now);
                self.state
                    .with_label_values(&[id.as_str(), state.name()])
                    .set(i64::from(state == now));
            }
            let latency = latency.map_or(0.0, |latency| latency.as_secs_f64());
            self.latency.with_label_values(&[&id]).set(latency);
        }
        for (state, count) in WorkerState::ALL.into_iter().zip(by_state) {
            self.workers.with_label_values(&[state.name()]).set(count);
        }
    }

    /// Removes the series of a worker that was deleted.
    pub(super) fn forget(&self, id: WorkerId) {
        let worker = id.to_string();
        // An error means that there was no such series.

        let _absent = self.in_flight.remove_label_values(&[&worker]);
        let _absent = self.breaker.remove_label_values(&[&worker]);
        let _absent = self.latency.remove_label_values(&[&worker]);
        for outcome in ["success", "failure", "neutral"] {
            let _absent = self.requests.remove_label_values(&[worker.as_str(), outcome]);
        }
        for cause in Cause::ALL {
            let _absent = self.failed_probes.remove_label_values(&[worker.as_str(), cause.name()]);
        }
        for state in WorkerState::ALL {
            let _absent = self.state.remove_label_values(&[worker.as_str(), state.name()]);
        }
    }
}

impl WorkerMetrics {
    pub(super) fn count(&self, outcome: Outcome) {
        match outcome {
            Outcome::Success => self.succeeded.inc(),
            Outcome::Failure => self.failed.inc(),
            Outcome::Neutral => self.neutral.inc(),
        }
    }

    /// Counts a failed probe. Failures are rare enough to look their series up each time.
    pub(super) fn count_failed_probe(&self, cause: Cause) {
        self.failed_probes.with_label_values(&[&self.id.to_string(), cause.name()]).inc();
    }

    pub(super) fn show_breaker(&self, mode: BreakerMode) {
        self.breaker.set(mode as i64);
    }
}
