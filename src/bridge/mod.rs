//! Between the cluster and this router: what the cluster knows becomes what is routed by, and what this router sees
//! becomes what the cluster knows. The only place that knows both.
//!
//! Inward, `picture` follows the shared state on the mesh's thread and puts each change into the fleet and the policies
//! before any other router is told that it was applied: who waits for a receipt has waited for routing itself. Outward,
//! [`Bridge::run`] compares what the fleet sees with what was last said, forty times a second while there is anything to
//! say and ten times a second while there is not, and says what has changed.
//! Both are level-triggered: doing either twice does no harm. [`Admin`] is how administrators write, with a mesh or without.
//!
//! No request waits for any of it: with the mesh dead, routing goes on by what was last known and by what it sees itself.

mod admin;
mod health;
mod metrics;
mod picture;
mod publish;
mod settings;
mod settle;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

pub use admin::{Admin, Observed, Receipt, Wait, WorkerSeen, WriteError, Written};
pub use metrics::Metrics;
pub use settings::{PolicyDocument, PolicyError};

use smg_mesh as mesh;
use smg_routing::fleet::Fleet;
use smg_routing::policies::Policies;
use smg_runtime::clock::Clock;
use smg_types::spec::WorkerSpec;

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

/// What both directions stand on.
#[derive(Debug, Clone)]
pub struct Bridge {
    config: Config,
    fleet: Arc<Fleet>,
    policies: Arc<Policies>,
    clock: Clock,
    /// Workers that this router's configuration names.
    configured: Arc<[WorkerSpec]>,
    gate: Arc<Gate>,
    /// Wakes who asks workers how they are.
    wake: Arc<Notify>,
}

/// Whether this router knows what the others know.
#[derive(Debug, Default)]
pub struct Gate {
    settled: AtomicBool,
    told: AtomicBool,
}

impl Gate {
    /// It does, or there are no others, or it has waited long enough: from now on it is as good as any.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    fn open(&self) {
        self.settled.store(true, Ordering::Release);
    }

    /// It has said which workers its configuration names: from now on those are there that the cluster has.
    fn has_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    fn tell(&self) {
        self.told.store(true, Ordering::Release);
    }
}

impl Bridge {
    /// Joins the parts of a router with a mesh.
    #[must_use]
    pub fn new(
        config: Config,
        fleet: Arc<Fleet>,
        policies: Arc<Policies>,
        configured: &[WorkerSpec],
        clock: Clock,
        wake: Arc<Notify>,
    ) -> Self {
        policies.memory().journal.open();
        let gate = Arc::new(Gate::default());
        Self { config, fleet, policies, clock, configured: configured.into(), gate, wake }
    }

    /// Whether this router knows what the others know.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// What follows the shared state, for the mesh to carry.
    #[must_use]
    pub fn follower(&self) -> Box<dyn mesh::Follower> {
        Box::new(picture::Picture::new(self))
    }

    /// Says what this router sees, until the task is dropped.
    ///
    /// # Errors
    /// Never; it has the form of a task that may fail.
    pub async fn run(self, mesh: mesh::Handle, metrics: Metrics) -> anyhow::Result<()> {
        let mut settling = settle::Settling::new(&self, mesh.clone());
        let mut publisher = publish::Publisher::new(&self, mesh, metrics);
        let mut busy_until = self.clock.mono() + BUSY;
        loop {
            let now = self.clock.mono();
            let is_busy = now < busy_until || !self.gate.has_told();
            // The pace of the comparison, not a wait for something: nothing tells this task of changes.
            tokio::time::sleep(if is_busy { TICK } else { QUIET_TICK }).await;
            settling.look().await;
            if publisher.look().await {
                busy_until = now + BUSY;
            }
            for (worker, change) in self.fleet.weigh(self.clock.now()) {
                tracing::info!(%worker, ?change, "others say of this worker");
            }
        }
    }
}

/// Between two comparisons of what is seen with what was said.
const TICK: Duration = Duration::from_millis(25);

/// The same once nothing was said for a while: an idle router is to cost nothing.
const QUIET_TICK: Duration = Duration::from_millis(100);

/// How long after something was said more of it is expected.
const BUSY: Duration = Duration::from_secs(5);
