//! From the cluster to this router: applies each change of the shared state to the fleet, the policies and the prefix index.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use smg_cluster::Node;
use smg_cluster::membership::MemberState;
use smg_cluster::state::State;
use smg_cluster::state::session::SessionWrite;
use smg_cluster::state::stores::ChangedKeys;
use smg_cluster::state::worker::{AdminState, OverrideState, WorkerEntry};
use smg_mesh::Follower;
use smg_routing::fleet::{DesiredWorker, Override, Reconciled};
use smg_types::ids::{NodeId, NodeName, WorkerId};
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;
use tracing::{debug, info, warn};

use super::{Bridge, health, settings};

/// Several routers report the same restart of a worker, each at its own next probe. Reports within this time count as one.
const SAME_RESTART_WINDOW: Duration = Duration::from_secs(15);

/// Keeps fleet and policies in step with the shared state.
#[derive(Debug)]
pub(super) struct RoutingFollower {
    bridge: Bridge,
    /// The names of the present routers, this one included, sorted.
    present: Vec<NodeName>,
    /// How often each other router has found a worker's cache cold.
    restarts: HashMap<WorkerId, BTreeMap<NodeId, u32>>,
    /// When this router last took a worker's cache for cold because others reported it, by `Clock::mono`.
    cold_at: HashMap<WorkerId, Duration>,
}

impl RoutingFollower {
    pub(super) fn new(bridge: &Bridge) -> Self {
        Self {
            bridge: bridge.clone(),
            present: Vec::new(),
            restarts: HashMap::new(),
            cold_at: HashMap::new(),
        }
    }

    /// Returns the workers that have left or were registered again: what was learnt of them before is void.
    fn apply_workers(
        &mut self,
        node: &mut Node,
        ids: &BTreeSet<WorkerId>,
        now: Now,
    ) -> Vec<WorkerId> {
        let gate = &self.bridge.gate;
        let mut desired = BTreeMap::new();
        let mut left = Vec::new();
        for id in ids {
            let entry = node.state().worker(*id);
            // A configured worker that this router has not announced yet is missing in the state, and was not removed.
            let is_mine = || self.bridge.configured.iter().any(|spec| spec.id() == *id);
            match entry.as_ref().and_then(|entry| desired_worker(entry, now)) {
                Some(worker) => {
                    desired.insert(*id, Some(worker));
                }
                None if entry.is_none() && !gate.has_announced() && is_mine() => {}
                None => {
                    desired.insert(*id, None);
                    left.push(*id);
                }
            }
        }
        let Reconciled { added, registered_again } = self.bridge.fleet.reconcile(desired, now);
        if !added.is_empty() {
            info!(workers = added.len(), "workers registered");
            self.bridge.wake.notify_one();
        }
        left.extend(registered_again);
        if !left.is_empty() {
            // At once, not at the next pick: what routers report from now on is of the worker's next registration.
            self.bridge.policies.follow(&self.bridge.fleet.snapshot());
        }
        for id in &left {
            node.forget_prefixes(now, *id);
            if let Err(error) = node.update(now, SessionWrite::EndOf { worker: *id }) {
                debug!(worker = %id, %error, "some sessions of a removed worker stay in the shared state");
            }
        }
        for id in added {
            self.apply_reports(node, id, now);
        }
        left
    }

    fn apply_reports(&mut self, node: &mut Node, id: WorkerId, now: Now) {
        if self.bridge.fleet.load().worker(id).is_none() {
            // What others reported of a removed worker must not be kept for ever.
            self.restarts.remove(&id);
            self.cold_at.remove(&id);
            return;
        }
        let me = node.replication().me().clone();
        let probers = self.bridge.config.health_probers;
        let elsewhere = health::is_probed_elsewhere(&me.name, &self.present, probers, id);
        let reports = health::combined_reports(node.state(), &me, id, elsewhere);
        self.bridge.fleet.set_remote_view(id, reports, now);
        let known = self.restarts.entry(id).or_default();
        let mut is_cold = false;
        for (router, seen) in node.state().observations(id).filter(|(r, _)| r.name != me.name) {
            match known.get_mut(router) {
                Some(count) if *count < seen.restarts => {
                    *count = seen.restarts;
                    is_cold = true;
                }
                Some(_) => {}
                None => {
                    known.retain(|other, _| other.name != router.name);
                    known.insert(router.clone(), seen.restarts);
                }
            }
        }
        if !is_cold {
            return;
        }
        let last = self.cold_at.insert(id, now.mono);
        if last.is_none_or(|at| now.mono.saturating_sub(at) > SAME_RESTART_WINDOW) {
            info!(worker = %id, "another router found its cache cold");
            self.bridge.fleet.apply_remote_cold(id);
            node.forget_prefixes(now, id);
        }
    }

    fn apply_policies(&self, state: &State, changed: &ChangedKeys) {
        let policies = &self.bridge.policies;
        let snapshot = self.bridge.fleet.snapshot();
        for model in &changed.policies {
            let setting = state.policy(model).and_then(|record| {
                settings::setting(&record, &policies.config())
                    .map_err(|error| warn!(%model, %error, "the policy that is set can't be used"))
                    .ok()
            });
            policies.set(model, setting, &snapshot);
        }
    }
}

impl Follower for RoutingFollower {
    fn apply(&mut self, node: &mut Node, changed: &ChangedKeys, members: bool, now: Now) {
        if members {
            self.present = present(node);
        }
        let left = match changed.workers.is_empty() {
            true => Vec::new(),
            false => self.apply_workers(node, &changed.workers, now),
        };
        if !changed.policies.is_empty() {
            self.apply_policies(node.state(), changed);
        }
        let memory = Arc::clone(self.bridge.policies.memory());
        for key in &changed.sessions {
            if let Some(session) = node.state().session(*key, now) {
                memory.apply_remote_session(key.0, session.worker(), now);
            }
        }
        for model in &changed.departures {
            let remember = node.state().departure(model, now);
            self.bridge.fleet.apply_remote_departure(model, remember, now);
        }
        self.bridge.limits.apply(node, changed, members, self.bridge.gate.is_open(), now);
        // The hints of these changes may be older than the removal of their worker.
        for run in changed.hints.iter().filter(|run| !left.contains(&run.worker.into())) {
            memory.index.insert_remote(run.parent, &run.blocks, run.worker.into(), now);
        }
        if members {
            // A change of the members changes whose reports count and which routers probe, for every worker.
            for worker in self.bridge.fleet.snapshot().workers() {
                self.apply_reports(node, worker.id, now);
            }
        } else {
            for id in changed.observations.union(&changed.load) {
                self.apply_reports(node, *id, now);
            }
        }
    }
}

/// The names of this router and of the others that are ALIVE or SUSPECTED, sorted.
fn present(node: &Node) -> Vec<NodeName> {
    let others = node.members().filter(|member| match member.state {
        MemberState::Alive | MemberState::Suspected => true,
        MemberState::Init | MemberState::Down | MemberState::Leaving => false,
    });
    let mut names: Vec<NodeName> = others.map(|member| member.node.name).collect();
    names.push(node.replication().me().name.clone());
    names.sort();
    names
}

/// The worker as the fleet should have it; `None`: it was dismissed, or this version can't read its record.
fn desired_worker(entry: &WorkerEntry, now: Now) -> Option<DesiredWorker> {
    let cordoned = match entry.admin_state() {
        AdminState::Serving => false,
        AdminState::Cordoned => true,
        AdminState::Dismissed => return None,
    };
    let spec = WorkerSpec::try_from(entry.record()?).ok()?;
    let health_override = entry.verdict().and_then(|verdict| {
        let wall_ms = u64::try_from(now.wall.as_millis()).unwrap_or(u64::MAX);
        let until = match verdict.until_ms {
            Some(until) if until <= wall_ms => return None,
            Some(until) => Some(now.mono + Duration::from_millis(until - wall_ms)),
            None => None,
        };
        let healthy = match verdict.state {
            OverrideState::Up => true,
            OverrideState::Down => false,
        };
        Some(Override { healthy, reason: verdict.reason.clone(), until })
    });
    let registration = entry.record()?.registration();
    Some(DesiredWorker { spec, health_override, cordoned, registration })
}
