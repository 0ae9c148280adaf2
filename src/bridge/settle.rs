//! The first moments of a router: it listens before it speaks.
//!
//! Until it has learnt what the others know, or has waited long enough, it is not ready for load balancers, and does not
//! say which workers its configuration names. Then it says only what is news. A worker that the cluster has already stays
//! as administrators have made it, unless the configuration itself has changed since; one that they have removed stays
//! removed. So eight routers with the same list make one entry per worker, and a restart takes nothing back.

use std::sync::Arc;
use std::time::Duration;

use smg_cluster::Node;
use smg_cluster::state::worker::{Stance, WorkerRecord, WorkerWrite};
use smg_mesh as mesh;
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;
use tracing::{info, warn};

use super::Bridge;

/// After everything that is decided is known, hints about prefixes are waited for so long at most.
const FOR_HINTS: Duration = Duration::from_millis(300);

/// Routers that begin at the same time say what they were given one after the other, by name: what the first has said is no
/// news from the next.
const TURN: Duration = Duration::from_millis(100);

/// The first moments.
#[derive(Debug)]
pub(super) struct Settling {
    bridge: Bridge,
    mesh: mesh::Handle,
    began: Duration,
    warm_since: Option<Duration>,
    /// When it is this router's turn to say which workers it was given.
    turn_at: Option<Duration>,
}

impl Settling {
    pub(super) fn new(bridge: &Bridge, mesh: mesh::Handle) -> Self {
        let began = bridge.clock.mono();
        Self { bridge: bridge.clone(), mesh, began, warm_since: None, turn_at: None }
    }

    /// Opens the gate once it is time, and then says what was given; whether that is done.
    pub(super) async fn look(&mut self) -> bool {
        if self.bridge.gate.has_told() {
            return true;
        }
        let now = self.bridge.clock.mono();
        if !self.bridge.gate.is_open() && !self.open_gate(now) {
            return false;
        }
        let view = self.mesh.view();
        let turn_at = *self.turn_at.get_or_insert_with(|| {
            let before = view.present().filter(|member| member.node.name < view.me.node.name);
            now + TURN * u32::try_from(before.count()).unwrap_or(u32::MAX).min(50)
        });
        if now < turn_at {
            return false;
        }
        let configured = Arc::clone(&self.bridge.configured);
        let gate = Arc::clone(&self.bridge.gate);
        let visit = self.mesh.visit(move |node, _, now| {
            let told = tell(node, &configured, now);
            // In the same turn, so that no administrator's write comes between the two.
            gate.tell();
            told
        });
        if let Ok(told) = visit.await {
            info!(workers = told, "told which workers this router was given");
        }
        self.bridge.gate.has_told()
    }

    fn open_gate(&mut self, now: Duration) -> bool {
        let view = self.mesh.view();
        if view.warm {
            self.warm_since.get_or_insert(now);
        }
        let is_warm = self.warm_since.is_some_and(|since| now.saturating_sub(since) >= FOR_HINTS);
        let waited = now.saturating_sub(self.began) >= self.bridge.config.join_timeout;
        if is_warm {
            info!("this router knows what the cluster knows");
        } else if waited {
            let waited = self.bridge.config.join_timeout;
            warn!(?waited, "no other router could be learnt from in time: going on alone");
        } else {
            return false;
        }
        self.bridge.gate.open();
        true
    }
}

/// Says which workers the configuration names, as far as that is news; how many.
fn tell(node: &mut Node, configured: &[WorkerSpec], now: Now) -> usize {
    let mut told = 0;
    for spec in configured {
        let mine = WorkerRecord::configured(spec);
        let known = node.state().worker(mine.id);
        let write = match known.as_ref().and_then(|entry| Some((entry.record()?, entry.stance()))) {
            None => mine,
            Some((_, Stance::Dismissed)) => continue,
            Some((known, _)) if known.configuration() == mine.configuration() => continue,
            // Somebody registered it before a configuration named it: it stays as they said.
            Some((known, _)) if known.configuration().is_none() => {
                known.clone().with_configuration(mine.configuration())
            }
            Some(_) => mine,
        };
        match node.update(now, WorkerWrite::Put(write)) {
            Ok(_) => told += 1,
            Err(error) => {
                warn!(worker = %spec.url, %error, "the cluster does not take this worker");
            }
        }
    }
    told
}
