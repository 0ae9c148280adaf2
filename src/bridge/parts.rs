//! The parts that the bridge connects, and its configuration.

use std::sync::Arc;
use std::time::Duration;

use smg_routing::fleet::Fleet;
use smg_routing::policies::Policies;
use smg_runtime::clock::Clock;
use smg_types::spec::WorkerSpec;
use tokio::sync::Notify;

use super::gate::Gate;
use super::limits::Limits;

/// How a router starts in a cluster, and how routers share the probing of workers.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// How many routers probe each worker, at least 1.
    pub health_probers: usize,
    /// The longest time for which a router with join addresses is not ready while it lacks the state of the others.
    pub join_timeout: Duration,
    /// Whether a router that reaches no majority of the configured routers refuses writes of administrators.
    pub rejects_minority_writes: bool,
    /// Whether join addresses are configured, so that there may be others to load the state from.
    pub has_others: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            health_probers: 2,
            join_timeout: Duration::from_secs(10),
            rejects_minority_writes: false,
            has_others: false,
        }
    }
}

/// The parts that both directions need.
#[derive(Debug, Clone)]
pub struct Bridge {
    pub(super) config: Config,
    pub(super) fleet: Arc<Fleet>,
    pub(super) policies: Arc<Policies>,
    pub(super) clock: Clock,
    /// The workers that this router's configuration names.
    pub(super) configured: Arc<[WorkerSpec]>,
    pub(super) gate: Arc<Gate>,
    /// Makes the prober run before its next probe is due.
    pub(super) wake: Arc<Notify>,
    pub(super) limits: Limits,
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
        limits: Limits,
    ) -> Self {
        let gate = Arc::new(Gate::new(!config.has_others));
        Self { config, fleet, policies, clock, configured: configured.into(), gate, wake, limits }
    }

    /// The limits of this router.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The progress of this router's start, for `/readiness`.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }
}
