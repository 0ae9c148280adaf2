//! The start of a router: it learns from the others before it announces anything.
//!
//! Until a router has the state of the others, or has waited for `--mesh-join-timeout`, it is not ready for load balancers
//! and does not announce the workers that its configuration names. Then it announces only what the cluster lacks. A worker
//! that the cluster has stays as administrators have made it, unless the configuration itself has changed since; a worker
//! that they have removed stays removed. So eight routers with the same list make one entry per worker, and a restart undoes
//! no administrator's write. A router with nobody to learn from announces its workers at once.

use std::sync::Arc;
use std::time::Duration;

use smg_cluster::Node;
use smg_cluster::state::worker::{AdminState, WorkerRecord, WorkerWrite};
use smg_mesh as mesh;
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;
use tracing::{info, warn};

use super::Bridge;

/// How long a router waits for hints about prefixes once it has everything else.
const HINT_WAIT: Duration = Duration::from_millis(300);

/// Routers that start at the same time announce their workers one after the other, in the order of their names and this far
/// apart: the next one finds there what the first has announced.
const ANNOUNCE_STAGGER: Duration = Duration::from_millis(100);

/// How long a router that has loaded its state from disk waits for the state of the others before it is ready: where all have
/// stopped, none comes.
const OWN_STATE_WAIT: Duration = Duration::from_secs(1);

/// The steps of a start.
#[derive(Debug)]
pub(super) struct Startup {
    bridge: Bridge,
    mesh: mesh::Handle,
    began: Duration,
    warm_since: Option<Duration>,
    /// When it is this router's turn to announce its workers, by `Clock::mono`.
    announce_at: Option<Duration>,
}

impl Startup {
    pub(super) fn new(bridge: &Bridge, mesh: mesh::Handle) -> Self {
        let began = bridge.clock.mono();
        Self { bridge: bridge.clone(), mesh, began, warm_since: None, announce_at: None }
    }

    /// Opens the gate once it is time, and then announces the configured workers. Returns whether it has announced them.
    pub(super) async fn advance(&mut self) -> bool {
        if self.bridge.gate.has_announced() {
            return true;
        }
        let now = self.bridge.clock.mono();
        if !self.bridge.gate.is_open() && !self.open_gate(now) {
            return false;
        }
        let view = self.mesh.view();
        let announce_at = *self.announce_at.get_or_insert_with(|| {
            let before = view.present().filter(|member| member.node.name < view.me.node.name);
            now + ANNOUNCE_STAGGER * u32::try_from(before.count()).unwrap_or(u32::MAX).min(50)
        });
        if now < announce_at {
            return false;
        }
        let configured = Arc::clone(&self.bridge.configured);
        let gate = Arc::clone(&self.bridge.gate);
        let limits = self.bridge.limits.clone();
        let visit = self.mesh.visit(move |node, _, now| {
            let announced = announce(node, &configured, now);
            limits.announce(node, now);
            // In the same visit, so that no administrator's write comes between the two.
            gate.mark_announced();
            announced
        });
        if let Ok(announced) = visit.await {
            info!(workers = announced, "wrote the configured workers into the shared state");
        }
        self.bridge.gate.has_announced()
    }

    fn open_gate(&mut self, now: Duration) -> bool {
        let view = self.mesh.view();
        if view.warm {
            self.warm_since.get_or_insert(now);
        }
        let is_warm = self.warm_since.is_some_and(|since| now.saturating_sub(since) >= HINT_WAIT);
        let waited = now.saturating_sub(self.began) >= self.bridge.config.join_timeout;
        if is_warm {
            info!("this router has the state of the cluster");
        } else if waited {
            let waited = self.bridge.config.join_timeout;
            warn!(
                ?waited,
                "no other router has sent its state in time: this router goes on without it"
            );
        } else {
            let has_waited = now.saturating_sub(self.began) >= OWN_STATE_WAIT;
            if has_waited && self.mesh.is_restored() && !self.bridge.gate.is_ready() {
                info!(
                    "this router is ready with the state that it has saved; no other router has sent its own yet"
                );
                self.bridge.gate.mark_own_state();
            }
            return false;
        }
        self.bridge.gate.open();
        true
    }
}

/// The record to write for a worker that the configuration names; `None`: the cluster has it as this configuration wants it,
/// or an administrator has changed or removed it since.
pub(super) fn configured_record(node: &Node, spec: &WorkerSpec) -> Option<WorkerRecord> {
    let mine = WorkerRecord::configured(spec);
    let known = node.state().worker(mine.id);
    let known = known.as_ref().and_then(|entry| Some((entry.record()?, entry.admin_state())));
    let Some((known, admin_state)) = known else { return Some(mine) };
    if admin_state == AdminState::Dismissed || known.configuration() == mine.configuration() {
        return None;
    }
    let configured = mine.configuration();
    // An administrator registered it before a configuration named it: it stays as it was registered.
    let record = match known.configuration() {
        None => known.clone(),
        Some(_) => mine.replacing(known),
    };
    Some(record.with_configuration(configured))
}

/// Writes the workers that the configuration names, as far as the cluster lacks them. Returns how many it wrote.
fn announce(node: &mut Node, configured: &[WorkerSpec], now: Now) -> usize {
    let mut announced = 0;
    for spec in configured {
        let Some(record) = configured_record(node, spec) else { continue };
        match node.update(now, WorkerWrite::Put(record)) {
            Ok(_) => announced += 1,
            Err(error) => {
                warn!(worker = %spec.url, %error, "the cluster refuses this configured worker");
            }
        }
    }
    announced
}
