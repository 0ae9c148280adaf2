//! Counts tokens by tenant, model and kind. Tenants come from the configuration and models from workers, so the number of
//! series is bounded: a pair of tenant and model beyond [`MAX_PAIRS`] is counted under the tenant `other`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// A kind of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Tokens of prompts, those from a cache included.
    Input,
    /// The part of the input that the worker had in its cache.
    CachedInput,
    /// Generated tokens, those of the reasoning included.
    Output,
    /// The part of the output that is reasoning.
    Reasoning,
    /// Tokens of prompts that are estimated, because the answer ended before the worker's report.
    InputEstimated,
    /// Generated tokens that are estimated.
    OutputEstimated,
}

impl TokenKind {
    const ALL: [Self; 6] = [
        Self::Input,
        Self::CachedInput,
        Self::Output,
        Self::Reasoning,
        Self::InputEstimated,
        Self::OutputEstimated,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::CachedInput => "cached_input",
            Self::Output => "output",
            Self::Reasoning => "reasoning",
            Self::InputEstimated => "input_estimated",
            Self::OutputEstimated => "output_estimated",
        }
    }
}

/// Most pairs of a tenant and a model that have series of their own.
const MAX_PAIRS: usize = 1024;

/// The label of tenants that are counted together.
const OTHER: &str = "other";

/// The label of requests without a tenant.
const NONE: &str = "";

/// The counters of all models.
#[derive(Debug, Clone)]
pub(super) struct TokenMetrics {
    family: IntCounterVec,
    models: Arc<Mutex<HashMap<Box<str>, Arc<ModelTokens>>>>,
    /// The pairs that have series of their own.
    pairs: Arc<AtomicUsize>,
    pub(super) unreadable: IntCounter,
}

/// The counters of one model.
#[derive(Debug)]
pub(super) struct ModelTokens {
    family: IntCounterVec,
    model: Box<str>,
    pairs: Arc<AtomicUsize>,
    tenants: RwLock<Tenants>,
}

#[derive(Debug, Default)]
struct Tenants {
    counters: HashMap<Box<str>, [Option<IntCounter>; TokenKind::ALL.len()]>,
    /// The pairs of this model that have series of their own.
    own: usize,
    /// Whether no worker serves the model any more, so that no series is made again.
    is_gone: bool,
}

impl TokenMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = IntCounterVec::new(
            Opts::new(
                "smg_tokens_total",
                "Tokens of inference requests as workers report them, by tenant (empty without one), model and kind; \
                 cached_input is a part of input and reasoning a part of output. The kinds *_estimated are of answers \
                 that ended without a report.",
            ),
            &["tenant", "model", "kind"],
        )?;
        registry.register(Box::new(family.clone()))?;
        let unreadable = IntCounter::new(
            "smg_tokens_unreadable_total",
            "Usage objects in workers' answers that were ignored because their numbers are not counts of tokens.",
        )?;
        registry.register(Box::new(unreadable.clone()))?;
        Ok(Self { family, models: Arc::default(), pairs: Arc::default(), unreadable })
    }

    /// The counters of a model.
    pub(super) fn model(&self, model: &str) -> Arc<ModelTokens> {
        let mut models = self.models.lock();
        if let Some(present) = models.get(model) {
            return Arc::clone(present);
        }
        let tokens = Arc::new(ModelTokens {
            family: self.family.clone(),
            model: model.into(),
            pairs: Arc::clone(&self.pairs),
            tenants: RwLock::default(),
        });
        models.insert(model.into(), Arc::clone(&tokens));
        tokens
    }

    /// Removes the series of a model.
    pub(super) fn forget(&self, model: &str) {
        let Some(tokens) = self.models.lock().remove(model) else { return };
        let mut tenants = tokens.tenants.write();
        tenants.is_gone = true;
        self.pairs.fetch_sub(tenants.own, Ordering::Relaxed);
        for (tenant, _) in tenants.counters.drain() {
            for kind in TokenKind::ALL {
                // An error means that there was no such series.
                let labels = [&*tenant, model, kind.name()];
                let _absent = self.family.remove_label_values(&labels);
            }
        }
    }
}

impl ModelTokens {
    /// Counts tokens of a tenant's request; `None`: of a request without a tenant.
    pub(super) fn count(&self, tenant: Option<&str>, kind: TokenKind, tokens: u64) {
        let tenant = tenant.unwrap_or(NONE);
        let counter = |counters: &[Option<IntCounter>; TokenKind::ALL.len()]| {
            counters[kind as usize].as_ref().map(|counter| counter.inc_by(tokens))
        };
        if self.tenants.read().counters.get(tenant).and_then(counter).is_none() {
            self.count_first(tenant, kind, tokens);
        }
    }

    /// Counts tokens of a kind that this tenant may not have a counter for.
    fn count_first(&self, tenant: &str, kind: TokenKind, tokens: u64) {
        let mut tenants = self.tenants.write();
        if tenants.is_gone {
            return;
        }
        let is_new = !tenants.counters.contains_key(tenant);
        let label = if is_new && tenant != NONE && tenant != OTHER && !self.take_pair() {
            OTHER
        } else {
            tenants.own += usize::from(is_new && tenant != NONE && tenant != OTHER);
            tenant
        };
        let counters = tenants.counters.entry(label.into()).or_default();
        counters[kind as usize]
            .get_or_insert_with(|| {
                self.family.with_label_values(&[label, &self.model, kind.name()])
            })
            .inc_by(tokens);
    }

    /// Takes one of the pairs that may have series of their own.
    fn take_pair(&self) -> bool {
        let more = |pairs: usize| (pairs < MAX_PAIRS).then_some(pairs + 1);
        self.pairs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn seen(registry: &Registry) -> BTreeMap<(String, String, String), u64> {
        let families = registry.gather();
        let tokens = families.iter().filter(|family| family.name() == "smg_tokens_total");
        let metrics = tokens.flat_map(|family| family.get_metric());
        metrics
            .map(|metric| {
                let label = |name: &str| {
                    let label = metric.get_label().iter().find(|label| label.name() == name);
                    label.unwrap().value().to_owned()
                };
                let labels = (label("tenant"), label("model"), label("kind"));
                (labels, metric.get_counter().get_value() as u64)
            })
            .collect()
    }

    #[test]
    fn tokens_are_counted_by_tenant_model_and_kind() {
        let registry = Registry::new();
        let metrics = TokenMetrics::register(&registry).unwrap();
        let model = metrics.model("m");
        model.count(Some("a"), TokenKind::Input, 5);
        model.count(Some("a"), TokenKind::Input, 6);
        model.count(Some("a"), TokenKind::Output, 7);
        metrics.model("m").count(None, TokenKind::Input, 8);
        let wanted = [(("a", "input"), 11), (("a", "output"), 7), (("", "input"), 8)];
        let wanted = wanted.map(|((tenant, kind), tokens)| {
            ((tenant.to_owned(), "m".to_owned(), kind.to_owned()), tokens)
        });
        assert_eq!(seen(&registry), wanted.into());
    }

    #[test]
    fn further_tenants_are_counted_together() {
        let registry = Registry::new();
        let metrics = TokenMetrics::register(&registry).unwrap();
        let tenants: Vec<String> = (0..MAX_PAIRS).map(|n| format!("t{n}")).collect();
        for model in ["m", "n"] {
            for tenant in &tenants {
                metrics.model(model).count(Some(tenant), TokenKind::Input, 1);
                metrics.model(model).count(Some(tenant), TokenKind::Input, 1);
            }
        }
        let all = seen(&registry);
        assert_eq!(all.len(), MAX_PAIRS + 1);
        let other = ("other".to_owned(), "n".to_owned(), "input".to_owned());
        assert_eq!(all[&other], 2 * MAX_PAIRS as u64);
        assert_eq!(all.values().sum::<u64>(), 4 * MAX_PAIRS as u64, "none is lost");
        // A model that goes makes room.
        metrics.forget("m");
        metrics.model("n").count(Some("t0"), TokenKind::Input, 1);
        let own = ("t0".to_owned(), "n".to_owned(), "input".to_owned());
        assert_eq!(seen(&registry)[&own], 1);
    }

    #[test]
    fn a_model_that_has_gone_gets_no_series_again() {
        let registry = Registry::new();
        let metrics = TokenMetrics::register(&registry).unwrap();
        let model = metrics.model("m");
        model.count(Some("a"), TokenKind::Input, 5);
        metrics.forget("m");
        model.count(Some("a"), TokenKind::Input, 5);
        assert!(seen(&registry).is_empty());
        metrics.model("m").count(Some("a"), TokenKind::Input, 3);
        assert_eq!(seen(&registry).values().sum::<u64>(), 3, "if it comes back, it begins anew");
    }
}
