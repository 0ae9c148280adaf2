//! Between the cluster and this router: what the cluster knows becomes what is routed by, and what this router sees
//! becomes what the cluster knows. The only place that knows both.
//!
//! A router alone is a cluster of one: every administrator's write goes through [`Admin`] into the cluster node, and comes
//! from there into routing, with other routers or without.
//!
//! Inward, `picture` follows the shared state on the mesh's thread and puts each change into the fleet and the policies
//! before any other router is told that it was applied: who waits for a receipt has waited for routing itself. Outward,
//! [`Bridge::run`] compares what the fleet sees with what was last said, forty times a second while there is anything to
//! say and ten times a second while there is not, and says what has changed. Where nobody can join, it says nothing.
//! Both are level-triggered: doing either twice does no harm.
//!
//! No request waits for any of it. When the cluster node fails, routing goes on by what was last known and by what this
//! router sees itself, and administrators' writes are refused.

mod admin;
mod health;
mod metrics;
mod picture;
mod publish;
mod settings;
mod settle;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

pub use admin::{Admin, Observed, Receipt, Wait, WorkerSeen, WriteError, Written};
pub use metrics::Metrics;
pub use settings::{PolicyDocument, PolicyError};

use smg_mesh as mesh;
use smg_proxy::dispatch;
use smg_routing::fleet::{Fleet, Heard};
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
    dispatch: Arc<dispatch::Shared>,
    clock: Clock,
    /// Workers that this router's configuration names.
    configured: Arc<[WorkerSpec]>,
    gate: Arc<Gate>,
    /// Wakes who asks workers how they are.
    wake: Arc<Notify>,
}

/// Whether this router knows what the others know.
#[derive(Debug)]
pub struct Gate {
    settled: AtomicBool,
    told: AtomicBool,
}

impl Gate {
    /// Open from the start where there is nobody to learn from.
    fn new(is_open: bool) -> Self {
        Self { settled: AtomicBool::new(is_open), told: AtomicBool::new(false) }
    }

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
    /// Connects the parts of a router.
    #[must_use]
    pub fn new(
        config: Config,
        fleet: Arc<Fleet>,
        dispatch: Arc<dispatch::Shared>,
        configured: &[WorkerSpec],
        clock: Clock,
        wake: Arc<Notify>,
    ) -> Self {
        let gate = Arc::new(Gate::new(!config.has_others));
        Self { config, fleet, dispatch, clock, configured: configured.into(), gate, wake }
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

    /// What the task does while the node runs.
    async fn share(&self, mesh: mesh::Handle, metrics: Metrics) -> Infallible {
        let mut settling = settle::Settling::new(self, mesh.clone());
        if !mesh.is_networked() {
            while !settling.look().await {
                tokio::time::sleep(TICK).await;
            }
            // Nobody reads what a router alone would publish.
            return std::future::pending().await;
        }
        self.dispatch.policies.memory().journal.open();
        let mut publisher = publish::Publisher::new(self, mesh, metrics);
        let mut busy_until = self.clock.mono() + BUSY;
        loop {
            let now = self.clock.mono();
            let has_settled = settling.look().await;
            if publisher.look().await {
                busy_until = now + BUSY;
            }
            for (worker, change) in self.fleet.weigh(self.clock.now()) {
                tracing::info!(%worker, ?change, "others say of this worker");
            }
            // The pace of the comparison, not a wait for something: nothing tells this task of changes.
            let is_busy = now < busy_until || !has_settled;
            tokio::time::sleep(if is_busy { TICK } else { QUIET_TICK }).await;
        }
    }

    /// The node has failed. What other routers said grows old, so this router asks its workers itself and decides by what
    /// it sees; and it waits for no router any more before it is ready.
    fn go_on_without_node(&self) {
        self.gate.open();
        for worker in self.fleet.snapshot().workers() {
            self.fleet.hear(worker.id, Heard::default());
        }
        self.wake.notify_one();
    }
}

/// Between two comparisons of what is seen with what was said.
const TICK: Duration = Duration::from_millis(25);

/// The same once nothing was said for a while: an idle router is to cost nothing.
const QUIET_TICK: Duration = Duration::from_millis(100);

/// How long after something was said more of it is expected.
const BUSY: Duration = Duration::from_secs(5);
