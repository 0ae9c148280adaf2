//! The metrics of the index. The gauges are read at each scrape, so the request path pays only for its own counters.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, Registry};

use super::Index;

/// Registers the metrics of an [`Index`].
#[derive(Debug)]
pub struct Metrics {
    index: Arc<Index>,
    entries: IntGauge,
    bytes: IntGauge,
}

impl Metrics {
    /// Adds `smg_prefix_entries`, `_bytes`, `_hits_total`, `_misses_total` and `_evictions_total` to `registry`.
    ///
    /// # Errors
    /// If a metric of one of these names is registered already.
    pub fn register(registry: &Registry, index: &Arc<Index>) -> prometheus::Result<()> {
        registry.register(Box::new(Self {
            index: Arc::clone(index),
            entries: IntGauge::new(
                "smg_prefix_entries",
                "Prompt blocks in the radix routing tree, over all models.",
            )?,
            bytes: IntGauge::new(
                "smg_prefix_bytes",
                "Memory of the radix routing tree, in bytes.",
            )?,
        }))
    }
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        let counters = self.index.counters();
        let gauges = [&self.entries, &self.bytes].into_iter().flat_map(Collector::desc);
        gauges.chain(counters.all().into_iter().flat_map(Collector::desc)).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.entries.set(i64::try_from(self.index.entries()).unwrap_or(i64::MAX));
        self.bytes.set(i64::try_from(self.index.bytes()).unwrap_or(i64::MAX));
        let counters = self.index.counters();
        let gauges = [&self.entries, &self.bytes].into_iter().flat_map(Collector::collect);
        gauges.chain(counters.all().into_iter().flat_map(Collector::collect)).collect()
    }
}
