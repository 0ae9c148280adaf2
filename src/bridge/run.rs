//! The task of the bridge: it publishes the configured workers, then what this router observes.

use std::convert::Infallible;
use std::time::Duration;

use smg_mesh as mesh;
use smg_routing::fleet::RemoteView;

use super::metrics::Metrics;
use super::parts::Bridge;
use super::{follower, publish, startup};

/// The time between two comparisons of observations with what was published.
const TICK: Duration = Duration::from_millis(25);

/// The same time after nothing was published for a while, because an idle router must cost almost nothing.
const QUIET_TICK: Duration = Duration::from_millis(100);

/// How long after a publication the next one is expected soon.
const BUSY: Duration = Duration::from_secs(5);

impl Bridge {
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
            never = self.share(mesh.clone(), metrics) => match never {},
            never = self.limits.run(&mesh, &self.gate, self.clock) => match never {},
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
            // No other router receives what a router alone would publish.
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
            for (worker, change) in self.fleet.apply_remote_health(self.clock.now()) {
                tracing::info!(%worker, ?change, "reports of other routers changed the health of a worker");
            }
            // This is the pace of the comparison: nothing notifies this task of changes.
            let is_busy = now < busy_until || !has_announced;
            tokio::time::sleep(if is_busy { TICK } else { QUIET_TICK }).await;
        }
    }

    /// Continues after the node has failed. The reports of other routers become outdated, so this router drops them and
    /// probes all its workers itself. It no longer waits for other routers before it is ready.
    fn go_on_without_node(&self) {
        self.gate.open();
        let now = self.clock.now();
        for worker in self.fleet.snapshot().workers() {
            self.fleet.set_remote_view(worker.id, RemoteView::default(), now);
        }
        self.wake.notify_one();
    }
}
