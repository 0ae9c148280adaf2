//! What the bridge's task does: it announces the configured workers, then publishes what this router sees.

use std::convert::Infallible;
use std::time::Duration;

use smg_mesh as mesh;
use smg_routing::fleet::Heard;

use super::metrics::Metrics;
use super::parts::Bridge;
use super::{picture, publish, settle};

/// Between two comparisons of what is seen with what was said.
const TICK: Duration = Duration::from_millis(25);

/// The same once nothing was said for a while: an idle router is to cost nothing.
const QUIET_TICK: Duration = Duration::from_millis(100);

/// How long after something was said more of it is expected.
const BUSY: Duration = Duration::from_secs(5);

impl Bridge {
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
        self.policies.memory().journal.open();
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
