//! How administrators write: into the cluster, if there is one, and with a receipt of which routers have applied it; else
//! into this router alone.
//!
//! A write is made here first, applied here at once, and pushed to all others. It is never undone because somebody did not
//! confirm in time: it goes on being sent until all that are there have it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use smg_cluster::Node;
use smg_cluster::state::observation::{SeenBreaker, SeenHealth};
use smg_cluster::state::worker::{self, OverrideState, Stance, WorkerRecord};
use smg_cluster::state::{Version, Write};
use smg_mesh as mesh;
use smg_routing::fleet::{Fleet, Override, RegisterError};
use smg_routing::policies::Policies;
use smg_runtime::clock::Clock;
use smg_types::ids::{ModelId, NodeName, WorkerId};
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;
use tokio::sync::Notify;

use super::settings::{self, PolicyDocument, PolicyError};

/// Between two looks at who has confirmed.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Whom a write waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wait {
    /// This router.
    #[default]
    Local,
    /// More than half of all that are listed, the dead among them: so two halves of a partition never both have it.
    Quorum,
    /// All that are there.
    All,
}

/// Which routers have applied a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// Those that have, by name; this one is among them.
    pub applied: Vec<NodeName>,
    /// Those that take part and have not confirmed yet.
    pub pending: Vec<NodeName>,
    /// As many have as were waited for.
    pub complete: bool,
}

/// Why a write was not made.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The mesh's thread does not answer.
    #[error("the mesh does not answer; try again")]
    Silent,
    /// Outside the bounds of what is shared.
    #[error("{0}")]
    Refused(String),
    /// Can't be registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The worker is not there any more.
    #[error("worker {0} is not registered")]
    NoSuchWorker(WorkerId),
    /// No policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// What one router sees of a worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerSeen {
    /// `healthy`, `unhealthy`, or `unknown` when it leaves the asking to others.
    pub health: &'static str,
    /// `closed`, `half_open` or `open`.
    pub breaker: &'static str,
    /// Whether a request went well lately.
    pub serving: bool,
    /// Requests in flight on it.
    pub in_flight: u32,
    /// Time to the head of responses, exponentially weighted; `null`: none measured.
    pub head_latency_seconds: Option<f64>,
}

/// What the routers see of a worker, by router.
pub type Observed = BTreeMap<NodeName, WorkerSeen>;

/// Where administrators write.
#[derive(Debug, Clone)]
pub struct Admin {
    fleet: Arc<Fleet>,
    policies: Arc<Policies>,
    mesh: Option<mesh::Handle>,
    clock: Clock,
    wake: Arc<Notify>,
}

/// A write of the API, before it is one of the cluster or of this router.
enum Change {
    Put(Box<WorkerSpec>),
    Remove(WorkerId),
    Cordon(WorkerId, bool),
    Override(WorkerId, Option<Override>),
    Policy(ModelId, Option<PolicyDocument>),
}

impl Admin {
    /// Writes into `mesh`, if there is one.
    #[must_use]
    pub fn new(
        fleet: Arc<Fleet>,
        policies: Arc<Policies>,
        mesh: Option<mesh::Handle>,
        clock: Clock,
        wake: Arc<Notify>,
    ) -> Self {
        Self { fleet, policies, mesh, clock, wake }
    }

    /// Registers a worker.
    ///
    /// # Errors
    /// If it is there already, or there is no room for it.
    pub async fn add(&self, spec: WorkerSpec) -> Result<Written<'_>, WriteError> {
        let id = spec.id();
        if let Some(there) = self.fleet.load().worker(id) {
            if there.spec.url != spec.url {
                let url = there.spec.url.to_string();
                return Err(RegisterError::SameId { id, url }.into());
            }
            // One that leaves the whole cluster may be told to stay; a router alone lets it finish first.
            if self.mesh.is_none() || there.leaves_by.is_none() {
                return Err(RegisterError::Exists(id).into());
            }
        }
        self.write(Change::Put(Box::new(spec))).await
    }

    /// Replaces what is told of a worker.
    ///
    /// # Errors
    /// If it is not there any more, or the spec is outside the bounds of what is shared.
    pub async fn change(&self, spec: WorkerSpec) -> Result<Written<'_>, WriteError> {
        self.check(spec.id())?;
        self.write(Change::Put(Box::new(spec))).await
    }

    /// Lets a worker go: no new requests, those in flight finish.
    ///
    /// # Errors
    /// If it is not there any more.
    pub async fn remove(&self, id: WorkerId) -> Result<Written<'_>, WriteError> {
        if self.fleet.load().worker(id).is_none() {
            return Err(WriteError::NoSuchWorker(id));
        }
        self.write(Change::Remove(id)).await
    }

    /// Stops, or with `false` resumes, new requests to a worker.
    ///
    /// # Errors
    /// If it is not there any more.
    pub async fn cordon(&self, id: WorkerId, cordoned: bool) -> Result<Written<'_>, WriteError> {
        self.check(id)?;
        self.write(Change::Cordon(id, cordoned)).await
    }

    /// Lays an operator's verdict down, or lifts it.
    ///
    /// # Errors
    /// If the worker is not there any more.
    pub async fn override_worker(
        &self,
        id: WorkerId,
        verdict: Option<Override>,
    ) -> Result<Written<'_>, WriteError> {
        self.check(id)?;
        self.write(Change::Override(id, verdict)).await
    }

    /// Sets the policy of a model, or lets it be what labels and default say.
    ///
    /// # Errors
    /// If the document names no policy, or a parameter that does not exist or is out of bounds.
    pub async fn set_policy(
        &self,
        model: ModelId,
        document: Option<PolicyDocument>,
    ) -> Result<Written<'_>, WriteError> {
        if let Some(document) = &document {
            settings::setting(&settings::record(document), self.policies.config())?;
        }
        self.write(Change::Policy(model, document)).await
    }

    /// What all routers that take part see of each worker.
    ///
    /// # Errors
    /// If the mesh does not answer.
    pub async fn observed(&self) -> Result<BTreeMap<WorkerId, Observed>, WriteError> {
        let Some(mesh) = &self.mesh else { return Ok(BTreeMap::new()) };
        mesh.visit(|node, _, _| observed(node)).await.ok_or(WriteError::Silent)
    }

    /// Whether a worker can be changed: one that was removed from a cluster and still finishes what is in flight can't, or
    /// the change would bring it back.
    fn check(&self, id: WorkerId) -> Result<(), WriteError> {
        let stays = |leaves: bool| self.mesh.is_none() || !leaves;
        let there = self.fleet.load().worker(id).map(|worker| worker.leaves_by.is_some());
        if there.is_some_and(stays) { Ok(()) } else { Err(WriteError::NoSuchWorker(id)) }
    }

    async fn write(&self, change: Change) -> Result<Written<'_>, WriteError> {
        let versions = match &self.mesh {
            None => {
                self.write_alone(change)?;
                Vec::new()
            }
            Some(mesh) => {
                let written = mesh.visit(move |node, _, now| write_shared(node, now, change));
                written.await.ok_or(WriteError::Silent)?.map_err(WriteError::Refused)?
            }
        };
        // Somebody new may want to be asked at once.
        self.wake.notify_one();
        Ok(Written { admin: self, versions })
    }

    fn write_alone(&self, change: Change) -> Result<(), WriteError> {
        let fleet = &self.fleet;
        match change {
            Change::Put(spec) if fleet.load().worker(spec.id()).is_some() => {
                fleet.respecify(*spec);
            }
            Change::Put(spec) => {
                fleet.register(*spec)?;
            }
            Change::Remove(id) => {
                fleet.remove(id, self.clock.now());
            }
            Change::Cordon(id, cordoned) => {
                fleet.drain(id, cordoned);
            }
            Change::Override(id, verdict) => {
                fleet.override_worker(id, verdict);
            }
            Change::Policy(model, document) => {
                let defaults = self.policies.config();
                let setting = document
                    .map(|document| settings::setting(&settings::record(&document), defaults))
                    .transpose()?;
                self.policies.set(&model, setting, &fleet.snapshot());
            }
        }
        Ok(())
    }
}

/// A write that was made.
#[derive(Debug)]
#[must_use]
pub struct Written<'a> {
    admin: &'a Admin,
    versions: Vec<Version>,
}

impl Written<'_> {
    /// Waits until as many have applied it as `wait` says, or `timeout` is over. `None` without a mesh.
    pub async fn receipt(self, wait: Wait, timeout: Duration) -> Option<Receipt> {
        let mesh = self.admin.mesh.as_ref()?;
        let deadline = self.admin.clock.mono() + timeout;
        loop {
            let versions = self.versions.clone();
            // Also the way to see one's own write: the follower has put it into the fleet before this is answered.
            let receipt = mesh.visit(move |node, _, _| receipt(node, &versions, wait)).await?;
            if receipt.complete || self.admin.clock.mono() >= deadline {
                return Some(receipt);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

fn write_shared(node: &mut Node, now: Now, change: Change) -> Result<Vec<Version>, String> {
    let wall_ms = u64::try_from(now.wall.as_millis()).unwrap_or(u64::MAX);
    let writes = match change {
        Change::Put(spec) => {
            let record = WorkerRecord::from(&*spec);
            let entry = node.state().worker(record.id);
            let known = entry.as_ref().and_then(|entry| entry.record()?.configuration());
            let dismissed = entry.is_some_and(|entry| entry.stance() == Stance::Dismissed);
            let id = record.id;
            let put = Write::PutWorker(record.with_configuration(known));
            let mut writes = vec![put];
            writes.extend(dismissed.then_some(Write::Stance(id, Stance::Serving)));
            writes
        }
        Change::Remove(id) => {
            let entry = node.state().worker(id);
            let named = entry.is_some_and(|entry| {
                entry.record().is_some_and(|record| record.configuration().is_some())
            });
            // A router whose configuration names it would bring it back at its next start.
            vec![if named { Write::Stance(id, Stance::Dismissed) } else { Write::RemoveWorker(id) }]
        }
        Change::Cordon(id, true) => vec![Write::Stance(id, Stance::Cordoned)],
        Change::Cordon(id, false) => vec![Write::Stance(id, Stance::Serving)],
        Change::Override(id, verdict) => {
            let verdict = verdict.map(|verdict| worker::Override {
                state: if verdict.healthy { OverrideState::Up } else { OverrideState::Down },
                reason: verdict.reason,
                until_ms: verdict.until.map(|until| {
                    let left = until.saturating_sub(now.mono).as_millis();
                    wall_ms.saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
                }),
            });
            vec![Write::OverrideWorker(id, verdict)]
        }
        Change::Policy(model, document) => {
            vec![Write::Policy(model, document.map(|document| settings::record(&document)))]
        }
    };
    let mut versions = Vec::new();
    for write in writes {
        versions.extend(node.update(now, write).map_err(|error| error.to_string())?);
    }
    Ok(versions)
}

fn receipt(node: &Node, versions: &[Version], wait: Wait) -> Receipt {
    let listed: BTreeMap<NodeName, bool> =
        node.replication().members().map(|(member, up)| (member.name.clone(), up)).collect();
    let all = listed.len() + 1;
    let present = listed.into_iter().filter(|(_, up)| *up).map(|(name, _)| name);
    let has_all = |name: &NodeName| {
        versions.iter().all(|version| {
            let mut confirmed = node.replication().receipt(*version);
            confirmed.any(|(member, applied)| member.name == *name && applied)
        })
    };
    let mut applied = vec![node.replication().me().name.clone()];
    let (confirmed, pending): (Vec<_>, Vec<_>) = present.partition(has_all);
    applied.extend(confirmed);
    applied.sort();
    let complete = match wait {
        Wait::Local => true,
        Wait::Quorum => applied.len() > all / 2,
        Wait::All => pending.is_empty(),
    };
    Receipt { applied, pending, complete }
}

fn observed(node: &Node) -> BTreeMap<WorkerId, Observed> {
    let state = node.state();
    let mut all = BTreeMap::new();
    for (id, _) in state.workers() {
        let loads: BTreeMap<&NodeName, u32> =
            state.loads(id).map(|(router, load)| (&router.name, load.requests)).collect();
        let seen = state.observations(id).map(|(router, seen)| {
            let (breaker, serving) = match seen.breaker {
                SeenBreaker::Closed => ("closed", false),
                SeenBreaker::Serving => ("closed", true),
                SeenBreaker::HalfOpen => ("half_open", false),
                SeenBreaker::Open => ("open", false),
            };
            let seen = WorkerSeen {
                health: match seen.health {
                    SeenHealth::Unknown => "unknown",
                    SeenHealth::Healthy => "healthy",
                    SeenHealth::Unhealthy => "unhealthy",
                },
                breaker,
                serving,
                in_flight: loads.get(&router.name).copied().unwrap_or(0),
                head_latency_seconds: (seen.latency_us > 0)
                    .then(|| f64::from(seen.latency_us) / 1_000_000.0),
            };
            (router.name.clone(), seen)
        });
        all.insert(id, seen.collect());
    }
    all
}
