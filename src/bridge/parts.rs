//! What the bridge connects, and how it is configured.

use std::sync::Arc;
use std::time::Duration;

use smg_routing::fleet::Fleet;
use smg_routing::policies::Policies;
use smg_runtime::clock::Clock;
use smg_types::spec::WorkerSpec;
use tokio::sync::Notify;

use super::gate::Gate;

/// What joins cluster and router.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// How many routers ask each worker how it is, 1 at least.
    pub health_probers: usize,
    /// How long a router that was told of others is not ready while it has not yet learnt what they know.
    pub join_timeout: Duration,
    /// Whether others were named: somebody to wait for.
    pub has_others: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { health_probers: 2, join_timeout: Duration::from_secs(10), has_others: false }
    }
}

/// The parts of a router that both directions use.
#[derive(Debug, Clone)]
pub struct Bridge {
    pub(super) config: Config,
    pub(super) fleet: Arc<Fleet>,
    pub(super) policies: Arc<Policies>,
    pub(super) clock: Clock,
    /// Workers that this router's configuration names.
    pub(super) configured: Arc<[WorkerSpec]>,
    pub(super) gate: Arc<Gate>,
    /// Wakes the prober.
    pub(super) wake: Arc<Notify>,
}

impl Bridge {
    /// Connects the parts of a router.
    #[must_use]
    pub fn new(
        config: Config,
        fleet: Arc<Fleet>,
        policies: Arc<Policies>,
        configured: &[WorkerSpec],
        clock: Clock,
        wake: Arc<Notify>,
    ) -> Self {
        let gate = Arc::new(Gate::new(!config.has_others));
        Self { config, fleet, policies, clock, configured: configured.into(), gate, wake }
    }

    /// Whether this router knows what the others know.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }
}
