//! The metrics of the limits, read at each scrape, so that requests pay nothing for them.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use smg_limits::explain::explain;

use super::limits::Limits;

/// The most rules with metrics of their own; those of the others have the rule `other`.
const MOST_RULES: usize = 256;

/// Registers the metrics of the limits.
#[derive(Debug)]
pub struct LimitMetrics {
    limits: Limits,
    admitted: IntCounterVec,
    rejected: IntCounterVec,
    bound: IntGaugeVec,
    subjects: IntGauge,
    exchanged: IntGauge,
    shares: IntGauge,
    settled: IntGauge,
}

impl LimitMetrics {
    /// Adds `smg_limit_*` to `registry`.
    ///
    /// # Errors
    /// If a metric of one of these names is registered already.
    pub fn register(registry: &Registry, limits: &Limits) -> prometheus::Result<()> {
        registry.register(Box::new(Self {
            limits: limits.clone(),
            admitted: IntCounterVec::new(
                Opts::new("smg_limit_admitted_total", "Requests that a rule concerned and let pass, on this router."),
                &["rule"],
            )?,
            rejected: IntCounterVec::new(
                Opts::new(
                    "smg_limit_rejected_total",
                    "Requests that a rule rejected, on this router; of a shadow rule, those that it would have rejected.",
                ),
                &["rule"],
            )?,
            bound: IntGaugeVec::new(
                Opts::new(
                    "smg_limit_overshoot_bound",
                    "Units that the cluster can admit beyond the limit in a window; -1: it depends on the demand (mode soft).",
                ),
                &["rule", "kind"],
            )?,
            subjects: IntGauge::new("smg_limit_subjects", "Subjects that this router counts, over all rules.")?,
            exchanged: IntGauge::new(
                "smg_limit_exchanged_subjects",
                "Subjects whose demand this router exchanges with others, because it has used half of its rights.",
            )?,
            shares: IntGauge::new("smg_limit_shares", "Shares that each limit is divided into; 0: not divided yet.")?,
            settled: IntGauge::new(
                "smg_limit_division_settled",
                "1 if all routers that have a share are known to go by the same division, else 0.",
            )?,
        }))
    }

    fn parts(&self) -> [&dyn Collector; 7] {
        [
            &self.admitted,
            &self.rejected,
            &self.bound,
            &self.subjects,
            &self.exchanged,
            &self.shares,
            &self.settled,
        ]
    }

    fn read(&self) {
        let limiter = self.limits.limiter();
        let size = self.limits.size();
        self.bound.reset();
        let raise = |counter: &IntCounterVec, rule: &str, total: u64| {
            let counter = counter.with_label_values(&[rule]);
            counter.inc_by(total.saturating_sub(counter.get()));
        };
        let mut others = (0, 0);
        for (nth, (rule, admitted, rejected)) in limiter.rules().into_iter().enumerate() {
            if nth >= MOST_RULES {
                others = (others.0 + admitted, others.1 + rejected);
                continue;
            }
            raise(&self.admitted, &rule.id, admitted);
            raise(&self.rejected, &rule.id, rejected);
            for promise in explain(&rule, size) {
                let bound = promise.bound.map_or(-1, |bound| {
                    i64::try_from(bound.saturating_sub(promise.limit)).unwrap_or(i64::MAX)
                });
                self.bound.with_label_values(&[rule.id.as_str(), promise.kind.as_str()]).set(bound);
            }
        }
        if others != (0, 0) {
            raise(&self.admitted, "other", others.0);
            raise(&self.rejected, "other", others.1);
        }
        self.subjects.set(i64::try_from(limiter.subjects()).unwrap_or(i64::MAX));
        self.exchanged.set(i64::try_from(self.limits.exchanged().0).unwrap_or(i64::MAX));
        let division = self.limits.division();
        self.shares.set(division.as_ref().map_or(0, |division| division.size.into()));
        self.settled.set(division.is_some_and(|division| division.is_settled).into());
    }
}

impl Collector for LimitMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().into_iter().flat_map(|part| part.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        self.parts().into_iter().flat_map(|part| part.collect()).collect()
    }
}
