//! Connects the cluster node with routing: the only module that knows both.
//!
//! A router alone is a cluster of one. Every administrator's write goes through [`Admin`] into the cluster node, and from
//! there into routing, with other routers or without.
//!
//! Inward, `follower` runs on the mesh's thread and applies each change of the shared state to the fleet and the policies
//! before the node acknowledges the change to any other router. So a receipt means that the named routers route by the write.
//! Outward, [`Bridge::run`] compares what the fleet sees with what it last published, and publishes the difference: every
//! 25 ms while anything changes, every 100 ms while nothing does. A router that nobody can join publishes nothing.
//! Both directions are level-triggered: doing either twice does no harm.
//!
//! No request waits for any of it. When the cluster node fails, the router routes by the last state and by what it sees
//! itself, and refuses administrators' writes.

mod admin;
mod follower;
mod health;
mod metrics;
mod publish;
mod settings;
mod startup;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

pub use admin::{Admin, Observed, Receipt, Wait, WorkerSeen, WriteError, Written};
pub use metrics::Metrics;
pub use settings::{PolicyDocument, PolicyError};

use smg_mesh as mesh;
use smg_routing::fleet::{Fleet, Heard};
use smg_routing::policies::Policies;
use smg_runtime::clock::Clock;
use smg_types::spec::WorkerSpec;

/// How a router starts in a cluster, and how routers share the probing of workers.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// How many routers probe each worker, at least 1.
    pub health_probers: usize,
    /// The longest time for which a router with join addresses is not ready while it lacks the state of the others.
    pub join_timeout: Duration,
    /// Whether join addresses are configured: there may be others to learn from.
    pub has_others: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { health_probers: 2, join_timeout: Duration::from_secs(10), has_others: false }
    }
}

/// What both directions need.
#[derive(Debug, Clone)]
pub struct Bridge {
    config: Config,
    fleet: Arc<Fleet>,
    policies: Arc<Policies>,
    clock: Clock,
    /// The workers that this router's configuration names.
    configured: Arc<[WorkerSpec]>,
    gate: Arc<Gate>,
    /// Wakes the prober before its next probe is due.
    wake: Arc<Notify>,
}

/// How far the start of this router is.
#[derive(Debug)]
pub struct Gate {
    is_open: AtomicBool,
    announced: AtomicBool,
}

impl Gate {
    /// `is_open`: there are no others to learn from.
    fn new(is_open: bool) -> Self {
        Self { is_open: AtomicBool::new(is_open), announced: AtomicBool::new(false) }
    }

    /// Whether this router may be ready: it has the state of the others, there are none, or it has waited long enough.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    fn open(&self) {
        self.is_open.store(true, Ordering::Release);
    }

    /// Whether this router has announced its configured workers: from then on, a worker that the state lacks was removed.
    fn has_announced(&self) -> bool {
        self.announced.load(Ordering::Acquire)
    }

    fn mark_announced(&self) {
        self.announced.store(true, Ordering::Release);
    }
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

    /// How far the start of this router is, for `/readiness`.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The follower that applies the shared state to routing, for the mesh to call.
    #[must_use]
    pub fn follower(&self) -> Box<dyn mesh::Follower> {
        Box::new(follower::RoutingFollower::new(self))
    }

    /// Announces the workers that the configuration names, and publishes what this router sees, until the task is dropped.
    ///
    /// # Errors
    /// Never; it has the form of a task that may fail.
    pub async fn run(self, mesh: mesh::Handle, metrics: Metrics) -> anyhow::Result<()> {
        let failed = mesh.clone();
        tokio::select! {
            never = self.share(mesh, metrics) => match never {},
            () = failed.failed() => self.go_on_without_node(),
        }
        std::future::pending().await
    }

    /// Announces the configured workers and publishes, while the node runs.
    async fn share(&self, mesh: mesh::Handle, metrics: Metrics) -> Infallible {
        let mut startup = startup::Startup::new(self, mesh.clone());
        if !mesh.is_networked() {
            while !startup.advance().await {
                tokio::time::sleep(TICK).await;
            }
            // Nobody reads what a router alone would publish.
            return std::future::pending().await;
        }
        self.policies.memory().journal.open();
        let mut publisher = publish::Publisher::new(self, mesh, metrics);
        let mut busy_until = self.clock.mono() + BUSY;
        loop {
            let now = self.clock.mono();
            let has_announced = startup.advance().await;
            if publisher.publish_changes().await {
                busy_until = now + BUSY;
            }
            for (worker, change) in self.fleet.weigh(self.clock.now()) {
                tracing::info!(%worker, ?change, "reports of other routers changed the health of a worker");
            }
            // This is the pace of the comparison: nothing notifies this task of changes.
            let is_busy = now < busy_until || !has_announced;
            tokio::time::sleep(if is_busy { TICK } else { QUIET_TICK }).await;
        }
    }

    /// Goes on after the node has failed. The reports of other routers grow old, so this router drops them and probes all
    /// its workers itself. It no longer waits for other routers before it is ready.
    fn go_on_without_node(&self) {
        self.gate.open();
        for worker in self.fleet.snapshot().workers() {
            self.fleet.hear(worker.id, Heard::default());
        }
        self.wake.notify_one();
    }
}

/// Time between two comparisons of what is seen with what was published.
const TICK: Duration = Duration::from_millis(25);

/// The same once nothing was published for a while: an idle router must cost almost nothing.
const QUIET_TICK: Duration = Duration::from_millis(100);

/// How long after a publication the next one is expected soon.
const BUSY: Duration = Duration::from_secs(5);
