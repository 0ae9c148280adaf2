//! How administrators write: into this router's cluster node, and with a receipt of which routers have applied it.
//!
//! A write is made here first, applied here at once, and pushed to all others. It is never undone because somebody did not
//! confirm in time: it goes on being sent until all that are there have it. When the node has failed, writes are refused:
//! this router would be the only one that knows of them, and would forget them at its restart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use smg_cluster::Node;
use smg_cluster::state::observation::{Observation, SeenBreaker, SeenHealth};
use smg_cluster::state::policy::PolicyWrite;
use smg_cluster::state::table::RefusedRow;
use smg_cluster::state::worker::{self, OverrideState, Stance, WorkerRecord, WorkerWrite};
use smg_cluster::state::{Version, Write};
use smg_mesh::{self as mesh, VisitError};
use smg_routing::fleet::{Override, RegisterError};
use smg_types::ids::{ModelId, NodeName, WorkerId};
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;

use super::settings::{self, PolicyDocument, PolicyError};
use super::{Bridge, publish};

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
    /// The node does not answer.
    #[error(transparent)]
    Node(#[from] VisitError),
    /// Outside the bounds of what is shared.
    #[error(transparent)]
    Refused(#[from] RefusedRow),
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

/// Where administrators write: into this router's cluster node.
#[derive(Debug, Clone)]
pub struct Admin {
    bridge: Bridge,
    mesh: mesh::Handle,
}

/// A write of the API, before it is one of the cluster.
enum Change {
    Add(Box<WorkerSpec>),
    Respecify(Box<WorkerSpec>),
    Remove(WorkerId),
    Cordon(WorkerId, bool),
    Override(WorkerId, Option<Override>),
    Policy(ModelId, Option<PolicyDocument>),
}

impl Change {
    /// The worker that it is about.
    fn worker(&self) -> Option<WorkerId> {
        match self {
            Self::Add(spec) | Self::Respecify(spec) => Some(spec.id()),
            Self::Remove(id) | Self::Cordon(id, _) | Self::Override(id, _) => Some(*id),
            Self::Policy(..) => None,
        }
    }
}

impl Admin {
    /// Writes into the node of `mesh`, whose changes `bridge` brings into routing.
    #[must_use]
    pub fn new(bridge: &Bridge, mesh: mesh::Handle) -> Self {
        Self { bridge: bridge.clone(), mesh }
    }

    /// Registers a worker. One that was removed and still finishes what is in flight stays.
    ///
    /// # Errors
    /// If it is there already, or there is no room for it.
    pub async fn add(&self, spec: WorkerSpec) -> Result<Written<'_>, WriteError> {
        self.bridge.fleet.check_room(&spec)?;
        self.write(Change::Add(Box::new(spec))).await
    }

    /// Replaces what is told of a worker.
    ///
    /// # Errors
    /// If it is not there any more, or the spec is outside the bounds of what is shared.
    pub async fn change(&self, spec: WorkerSpec) -> Result<Written<'_>, WriteError> {
        self.write(Change::Respecify(Box::new(spec))).await
    }

    /// Lets a worker go: no new requests, those in flight finish.
    ///
    /// # Errors
    /// If it is not there any more.
    pub async fn remove(&self, id: WorkerId) -> Result<Written<'_>, WriteError> {
        if self.bridge.fleet.load().worker(id).is_none() {
            return Err(WriteError::NoSuchWorker(id));
        }
        self.write(Change::Remove(id)).await
    }

    /// Stops, or with `false` resumes, new requests to a worker.
    ///
    /// # Errors
    /// If it is not there any more.
    pub async fn cordon(&self, id: WorkerId, cordoned: bool) -> Result<Written<'_>, WriteError> {
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
            let defaults = self.bridge.dispatch.policies.config();
            settings::setting(&settings::record(document), defaults)?;
        }
        self.write(Change::Policy(model, document)).await
    }

    /// What each router that takes part sees of each worker: this one as of now, the others as they last said. Once this
    /// router's node has failed, it is this router only.
    ///
    /// # Errors
    /// If the node does not answer in time.
    pub async fn observed(&self) -> Result<BTreeMap<WorkerId, Observed>, WriteError> {
        let mut observed = match self.mesh.visit(|node, _, _| observed_elsewhere(node)).await {
            Ok(observed) => observed,
            Err(VisitError::Ended) => BTreeMap::new(),
            Err(error @ VisitError::Timeout) => return Err(error.into()),
        };
        let (me, now) = (&self.mesh.view().me.node.name, self.bridge.clock.now());
        let breaker = &self.bridge.fleet.config().breaker;
        for worker in self.bridge.fleet.snapshot().workers() {
            let seen = worker.seen(now, breaker);
            let seen = WorkerSeen::new(&publish::observation(&seen, now), seen.in_flight);
            observed.entry(worker.id).or_default().insert(me.clone(), seen);
        }
        Ok(observed)
    }

    async fn write(&self, change: Change) -> Result<Written<'_>, WriteError> {
        let configured = Arc::clone(&self.bridge.configured);
        let gate = Arc::clone(&self.bridge.gate);
        let visit = self.mesh.visit(move |node, _, now| {
            let unannounced = if gate.has_told() { &[][..] } else { &configured };
            write(node, now, change, unannounced)
        });
        let versions = visit.await??;
        // Somebody new may want to be asked at once.
        self.bridge.wake.notify_one();
        Ok(Written { admin: self, versions })
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
    /// Waits until as many have applied it as `wait` says, or `timeout` is over.
    ///
    /// # Errors
    /// If the node does not answer any more.
    pub async fn receipt(self, wait: Wait, timeout: Duration) -> Result<Receipt, VisitError> {
        let Admin { bridge, mesh } = self.admin;
        let deadline = bridge.clock.mono() + timeout;
        loop {
            let versions = self.versions.clone();
            // Also the way to see one's own write: the follower has put it into the fleet before this is answered.
            let receipt = mesh.visit(move |node, _, _| receipt(node, &versions, wait)).await?;
            if receipt.complete || bridge.clock.mono() >= deadline {
                return Ok(receipt);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// Makes a change; the versions are what a receipt waits for. `unannounced`: workers that this router's configuration names
/// and that the cluster may not know yet.
fn write(
    node: &mut Node,
    now: Now,
    change: Change,
    unannounced: &[WorkerSpec],
) -> Result<Vec<Version>, WriteError> {
    let mut writes = Vec::new();
    if let Some(id) = change.worker()
        && node.state().worker(id).is_none()
        && let Some(spec) = unannounced.iter().find(|spec| spec.id() == id)
    {
        // The router serves by it already; now there is something to change.
        node.update(now, WorkerWrite::Put(WorkerRecord::configured(spec)))?;
    }
    writes.extend(writes_of(node, now, change)?);
    let mut versions = Vec::new();
    for write in writes {
        versions.extend(node.update(now, write)?);
    }
    Ok(versions)
}

/// What a change writes, if the worker that it is about is as the change needs it.
fn writes_of(node: &Node, now: Now, change: Change) -> Result<Vec<Write>, WriteError> {
    // One that was removed and still finishes what is in flight can't be changed: the change would bring it back.
    let entry = change.worker().and_then(|id| node.state().worker(id)).unwrap_or_default();
    let is_dismissed = entry.stance() == Stance::Dismissed;
    let takes_part = entry.record().is_some() && !is_dismissed;
    let known = entry.record().and_then(WorkerRecord::configuration);
    let writes = match change {
        Change::Add(spec) if takes_part => return Err(RegisterError::Exists(spec.id()).into()),
        Change::Add(spec) => {
            let record = WorkerRecord::from(&*spec).with_configuration(known);
            let mut writes = vec![WorkerWrite::Put(record).into()];
            writes.extend(
                is_dismissed.then_some(WorkerWrite::Stance(spec.id(), Stance::Serving).into()),
            );
            writes
        }
        // A router whose configuration names it would bring it back at its next start.
        Change::Remove(id) if known.is_some() => {
            vec![WorkerWrite::Stance(id, Stance::Dismissed).into()]
        }
        Change::Remove(id) => vec![WorkerWrite::Remove(id).into()],
        Change::Respecify(spec) if takes_part => {
            vec![WorkerWrite::Put(WorkerRecord::from(&*spec).with_configuration(known)).into()]
        }
        Change::Cordon(id, true) if takes_part => {
            vec![WorkerWrite::Stance(id, Stance::Cordoned).into()]
        }
        Change::Cordon(id, false) if takes_part => {
            vec![WorkerWrite::Stance(id, Stance::Serving).into()]
        }
        Change::Override(id, verdict) if takes_part => {
            let verdict = verdict.map(|verdict| override_record(verdict, now));
            vec![WorkerWrite::Override(id, verdict).into()]
        }
        Change::Respecify(spec) => return Err(WriteError::NoSuchWorker(spec.id())),
        Change::Cordon(id, _) | Change::Override(id, _) => {
            return Err(WriteError::NoSuchWorker(id));
        }
        Change::Policy(model, document) => {
            let policy = document.map(|document| settings::record(&document));
            vec![PolicyWrite { model, policy }.into()]
        }
    };
    Ok(writes)
}

fn override_record(verdict: Override, now: Now) -> worker::Override {
    let wall_ms = u64::try_from(now.wall.as_millis()).unwrap_or(u64::MAX);
    worker::Override {
        state: if verdict.healthy { OverrideState::Up } else { OverrideState::Down },
        reason: verdict.reason,
        until_ms: verdict.until.map(|until| {
            let left = until.saturating_sub(now.mono).as_millis();
            wall_ms.saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
        }),
    }
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

/// What the routers but this one said of each worker.
fn observed_elsewhere(node: &Node) -> BTreeMap<WorkerId, Observed> {
    let (state, me) = (node.state(), &node.replication().me().name);
    let mut all = BTreeMap::new();
    for (id, _) in state.workers() {
        let loads: BTreeMap<&NodeName, u32> =
            state.loads(id).map(|(router, load)| (&router.name, load.requests)).collect();
        let seen = state.observations(id).filter(|(router, _)| router.name != *me);
        let seen = seen.map(|(router, seen)| {
            let in_flight = loads.get(&router.name).copied().unwrap_or(0);
            (router.name.clone(), WorkerSeen::new(seen, in_flight))
        });
        all.insert(id, seen.collect());
    }
    all
}

impl WorkerSeen {
    fn new(seen: &Observation, in_flight: u32) -> Self {
        let (breaker, serving) = match seen.breaker {
            SeenBreaker::Closed => ("closed", false),
            SeenBreaker::Serving => ("closed", true),
            SeenBreaker::HalfOpen => ("half_open", false),
            SeenBreaker::Open => ("open", false),
        };
        let health = match seen.health {
            SeenHealth::Unknown => "unknown",
            SeenHealth::Healthy => "healthy",
            SeenHealth::Unhealthy => "unhealthy",
        };
        let head_latency_seconds =
            (seen.latency_us > 0).then(|| f64::from(seen.latency_us) / 1_000_000.0);
        Self { health, breaker, serving, in_flight, head_latency_seconds }
    }
}
