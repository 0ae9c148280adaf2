//! From the cluster to this router: each change of the shared state, put into the fleet and the policies.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use smg_cluster::Node;
use smg_cluster::membership::MemberState;
use smg_cluster::state::State;
use smg_cluster::state::stores::News;
use smg_cluster::state::worker::{OverrideState, Stance, WorkerEntry};
use smg_mesh::Follower;
use smg_routing::fleet::{Override, Told};
use smg_types::ids::{NodeId, NodeName, WorkerId};
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;
use tracing::{info, warn};

use super::{Bridge, health, settings};

/// Several routers find the same restart, each when it asks next: only the first word counts for so long.
const SAME_RESTART: Duration = Duration::from_secs(15);

/// What keeps fleet and policies in step.
#[derive(Debug)]
pub(super) struct Picture {
    bridge: Bridge,
    /// The routers that are there, this one included, by name.
    present: Vec<NodeName>,
    /// How often each router has found a worker's cache cold.
    restarts: HashMap<WorkerId, BTreeMap<NodeId, u32>>,
    /// When a worker's cache was last taken for cold on others' word.
    colds: HashMap<WorkerId, Duration>,
}

impl Picture {
    pub(super) fn new(bridge: &Bridge) -> Self {
        Self {
            bridge: bridge.clone(),
            present: Vec::new(),
            restarts: HashMap::new(),
            colds: HashMap::new(),
        }
    }

    fn tell_workers(&mut self, node: &mut Node, ids: &BTreeSet<WorkerId>, now: Now) {
        let gate = &self.bridge.gate;
        let mut told = BTreeMap::new();
        let mut left = Vec::new();
        for id in ids {
            let entry = node.state().worker(*id);
            // Before this router has said which workers it was given, their absence says nothing.
            let is_mine = || self.bridge.configured.iter().any(|spec| spec.id() == *id);
            match entry.as_ref().and_then(|entry| as_told(entry, now)) {
                Some(worker) => {
                    told.insert(*id, Some(worker));
                }
                None if entry.is_none() && !gate.has_told() && is_mine() => {}
                None => {
                    told.insert(*id, None);
                    left.push(*id);
                }
            }
        }
        let new = self.bridge.fleet.tell(told, now);
        if !new.is_empty() {
            info!(workers = new.len(), "workers heard of");
            self.bridge.wake.notify_one();
        }
        for id in left {
            node.forget_prefixes(id);
        }
        for id in new {
            self.hear(node, id, now);
        }
    }

    fn hear(&mut self, node: &mut Node, id: WorkerId, now: Now) {
        if self.bridge.fleet.load().worker(id).is_none() {
            // The others' last word on one that is gone must not be kept for ever.
            self.restarts.remove(&id);
            self.colds.remove(&id);
            return;
        }
        let me = node.replication().me().clone();
        let probers = self.bridge.config.health_probers;
        let elsewhere = health::is_asked_elsewhere(&me.name, &self.present, probers, id);
        self.bridge.fleet.hear(id, health::heard(node.state(), &me, id, elsewhere));
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
        let last = self.colds.insert(id, now.mono);
        if last.is_none_or(|at| now.mono.saturating_sub(at) > SAME_RESTART) {
            info!(worker = %id, "another router found its cache cold");
            self.bridge.fleet.hear_cold(id);
            node.forget_prefixes(id);
        }
    }

    fn set_policies(&self, state: &State, news: &News) {
        let policies = &self.bridge.dispatch.policies;
        let snapshot = self.bridge.fleet.snapshot();
        for model in &news.policies {
            let setting = state.policy(model).and_then(|record| {
                settings::setting(&record, policies.config())
                    .map_err(|error| warn!(%model, %error, "the policy that is set can't be used"))
                    .ok()
            });
            policies.set(model, setting, &snapshot);
        }
    }
}

impl Follower for Picture {
    fn follow(&mut self, node: &mut Node, news: &News, members: bool, now: Now) {
        if members {
            self.present = present(node);
        }
        if !news.workers.is_empty() {
            self.tell_workers(node, &news.workers, now);
        }
        if !news.policies.is_empty() {
            self.set_policies(node.state(), news);
        }
        let memory = Arc::clone(self.bridge.dispatch.policies.memory());
        for key in &news.sessions {
            if let Some(session) = node.state().session(*key, now) {
                memory.hear_session(key.0, session.worker(), now);
            }
        }
        for run in &news.hints {
            memory.index.learn(run.parent, &run.blocks, run.worker.into(), now);
        }
        if members {
            // Who came or went changes whose word counts and who asks, for every worker.
            for worker in self.bridge.fleet.snapshot().workers() {
                self.hear(node, worker.id, now);
            }
        } else {
            for id in news.observations.union(&news.load) {
                self.hear(node, *id, now);
            }
        }
    }
}

/// This router and those that take part, by name.
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

/// A worker as the fleet is told of it; `None`: it takes no part.
fn as_told(entry: &WorkerEntry, now: Now) -> Option<Told> {
    let cordoned = match entry.stance() {
        Stance::Serving => false,
        Stance::Cordoned => true,
        Stance::Dismissed => return None,
    };
    let spec = WorkerSpec::try_from(entry.record()?).ok()?;
    let verdict = entry.verdict().and_then(|verdict| {
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
    Some(Told { spec, verdict, cordoned })
}
