//! Estimates of what a request will use, corrected by what the answers of its model have used.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use prometheus::{Histogram, HistogramOpts, Registry};
use smg_limits::rule::TokenCount;
use smg_types::ids::ModelId;

/// Bytes of a prompt in one token, until answers show better.
const BYTES_PER_TOKEN: f64 = 4.0;

/// Tokens of an answer whose request names no most, until answers show better.
const OUTPUT: f64 = 1_024.0;

/// How much the newest answer counts.
const WEIGHT: f64 = 0.05;

/// How many deviations above the mean a request without a most reserves for its answer.
const DEVIATIONS: f64 = 2.0;

/// The most models of which estimates are kept.
const MOST_MODELS: usize = 256;

/// What the answers of a model have used.
#[derive(Debug, Clone, Copy)]
struct Learnt {
    bytes_per_token: f64,
    output: f64,
    deviation: f64,
}

impl Default for Learnt {
    fn default() -> Self {
        Self { bytes_per_token: BYTES_PER_TOKEN, output: OUTPUT, deviation: 0.0 }
    }
}

/// The estimates of all models.
#[derive(Debug)]
pub struct Estimates {
    models: RwLock<HashMap<ModelId, Arc<Mutex<Learnt>>>>,
    ratio: Histogram,
}

impl Estimates {
    /// Registers `smg_limit_estimate_ratio`.
    ///
    /// # Errors
    /// If a metric of this name is registered already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let help = "Tokens that a request used, as a part of those that were reserved for it.";
        let buckets = vec![0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0];
        let opts = HistogramOpts::new("smg_limit_estimate_ratio", help).buckets(buckets);
        let ratio = Histogram::with_opts(opts)?;
        registry.register(Box::new(ratio.clone()))?;
        Ok(Self { models: RwLock::default(), ratio })
    }

    fn learnt(&self, model: &ModelId) -> Option<Arc<Mutex<Learnt>>> {
        if let Some(known) = self.models.read().get(model) {
            return Some(Arc::clone(known));
        }
        let mut models = self.models.write();
        let is_full = models.len() >= MOST_MODELS;
        (!is_full).then(|| Arc::clone(models.entry(model.clone()).or_default()))
    }

    /// The tokens that a request may use. `most_output`: what it allows its answer, 0 for one that generates nothing.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "estimates of sizes far below the bounds, not negative"
    )]
    pub fn of(
        &self,
        model: Option<&ModelId>,
        prompt_bytes: usize,
        most_output: Option<u64>,
    ) -> TokenCount {
        let known = model.and_then(|model| self.learnt(model));
        let learnt = known.map_or_else(Learnt::default, |learnt| *learnt.lock());
        let input = (prompt_bytes as f64 / learnt.bytes_per_token).ceil() as u64;
        let output = (learnt.output + DEVIATIONS * learnt.deviation).ceil() as u64;
        TokenCount { input, cached_input: 0, output: most_output.unwrap_or(output) }
    }

    /// Learns from what an answer has used.
    #[expect(clippy::cast_precision_loss, reason = "estimates")]
    pub fn learn(
        &self,
        model: Option<&ModelId>,
        prompt_bytes: usize,
        reserved: u64,
        used: &TokenCount,
    ) {
        let sum = used.input + used.output;
        if reserved > 0 {
            self.ratio.observe(sum as f64 / reserved as f64);
        }
        let Some(learnt) = model.and_then(|model| self.learnt(model)) else { return };
        let mut learnt = learnt.lock();
        if used.input > 0 && prompt_bytes > 0 {
            let ratio = (prompt_bytes as f64 / used.input as f64).clamp(0.25, 16.0);
            learnt.bytes_per_token += (ratio - learnt.bytes_per_token) * WEIGHT;
        }
        let difference = used.output as f64 - learnt.output;
        learnt.output += difference * WEIGHT;
        learnt.deviation += (difference.abs() - learnt.deviation) * WEIGHT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_correct_the_estimates_of_their_model() {
        let estimates = Estimates::register(&Registry::new()).unwrap();
        let model = ModelId::new("m");
        assert_eq!(estimates.of(Some(&model), 400, Some(10)).input, 100);
        for _ in 0..200 {
            let used = TokenCount { input: 200, cached_input: 0, output: 50 };
            estimates.learn(Some(&model), 400, 300, &used);
        }
        let after = estimates.of(Some(&model), 400, None);
        assert!((195..=205).contains(&after.input), "{after:?}");
        assert!((45..=120).contains(&after.output), "{after:?}");
        assert_eq!(estimates.of(Some(&ModelId::new("other")), 400, Some(0)).input, 100);
    }
}
