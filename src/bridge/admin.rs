//! Administrators' writes: they go into this router's cluster node, and return a receipt that names the routers which have
//! applied them.
//!
//! This router applies a write first and at once, then sends it to all others. A write is never undone because a router did
//! not acknowledge it in time: the node goes on sending it until all members have it. Once the node has failed, writes are
//! refused, for only this router would know of them, and it would forget them at its restart.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use smg_cluster::Node;
use smg_cluster::state::policy::PolicyWrite;
use smg_cluster::state::rule::{RuleId, RuleRecord, RuleWrite};
use smg_cluster::state::table::RefusedRow;
use smg_cluster::state::worker::{self, AdminState, OverrideState, WorkerRecord, WorkerWrite};
use smg_cluster::state::{Version, Write};
use smg_limits::rule::Rule;
use smg_mesh::{self as mesh, VisitError};
use smg_routing::fleet::{Override, RegisterError};
use smg_types::ids::{ModelId, NodeName, WorkerId};
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;

use super::Bridge;
use super::health::Measured;
use super::limits::{self, Limits};
use super::receipt::{Receipt, Wait};
use super::settings::{self, PolicyDocument, PolicyError};

/// Time between two checks of which routers have acknowledged a write.
const RECEIPT_POLL: Duration = Duration::from_millis(2);

/// How long a write waits for the state of the other routers.
const STATE_WAIT: Duration = Duration::from_secs(5);

/// How long a router that leaves waits until the others have what it hands over.
const HAND_OVER: Duration = Duration::from_millis(500);

/// Time between two checks of whether the state is here.
const STATE_POLL: Duration = Duration::from_millis(10);

/// Why a write was not made.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The node does not answer.
    #[error(transparent)]
    Node(#[from] VisitError),
    /// The write is outside the bounds of the shared state.
    #[error(transparent)]
    Refused(RefusedRow),
    /// This router has written as many rows of a store as one router may.
    #[error(
        "this router holds {limit} {store} of its own, the most that one router may: remove some that are no longer needed, \
         or, in a cluster, make the change on another router"
    )]
    Full {
        /// The name of the store.
        store: &'static str,
        /// The most rows of one router.
        limit: usize,
    },
    /// This router has joined a moment ago and lacks the state of the others.
    #[error(
        "this router does not have the state of the cluster yet: make the change on another router, or try again"
    )]
    StateIncomplete,
    /// This router reaches no majority, and is configured to refuse writes then.
    #[error(
        "this router reaches no majority of the configured routers, and --mesh-minority-writes is reject: make the change on a \
         router that does"
    )]
    NoQuorum,
    /// The worker can't be registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// There is no such worker any more.
    #[error("worker {0} is not registered")]
    NoSuchWorker(WorkerId),
    /// There is no such rule.
    #[error("there is no rule {0:?}")]
    NoSuchRule(String),
    /// The document is no policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

impl From<RefusedRow> for WriteError {
    fn from(refused: RefusedRow) -> Self {
        match refused {
            RefusedRow::Full { store, limit } => Self::Full { store: store.name(), limit },
            RefusedRow::TooLarge { .. } | RefusedRow::Invalid { .. } => Self::Refused(refused),
        }
    }
}

/// What one router observes of a worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerSeen {
    /// `healthy`, `unhealthy`, or `unknown`: the router has not probed the worker yet, or leaves that to other routers.
    pub health: &'static str,
    /// `closed`, `half_open` or `open`.
    pub breaker: &'static str,
    /// Whether the last request of the past ten seconds succeeded.
    pub serving: bool,
    /// Requests that the router has in flight on the worker.
    pub in_flight: u32,
    /// Time to the head of responses, exponentially weighted; `null`: none measured.
    pub head_latency_seconds: Option<f64>,
}

/// What each router observes of a worker, by the router's name.
pub type Observed = BTreeMap<NodeName, WorkerSeen>;

/// Writes into this router's cluster node for administrators.
#[derive(Debug, Clone)]
pub struct Admin {
    bridge: Bridge,
    mesh: mesh::Handle,
}

/// An administrator's write, before it becomes rows of the shared state.
enum Change {
    Add(Box<WorkerSpec>),
    Respecify(Box<WorkerSpec>),
    Remove(WorkerId),
    Cordon(WorkerId, bool),
    Override(WorkerId, Option<Override>),
    Policy(ModelId, Option<PolicyDocument>),
    /// The rule's id, and its document as text; `None` removes it.
    Rule(String, Option<String>),
}

impl Change {
    /// The worker that the change is about.
    fn worker(&self) -> Option<WorkerId> {
        match self {
            Self::Add(spec) | Self::Respecify(spec) => Some(spec.id()),
            Self::Remove(id) | Self::Cordon(id, _) | Self::Override(id, _) => Some(*id),
            Self::Policy(..) | Self::Rule(..) => None,
        }
    }
}

impl Admin {
    /// Writes into the node of `mesh`, whose changes `bridge` brings into routing.
    #[must_use]
    pub fn new(bridge: &Bridge, mesh: mesh::Handle) -> Self {
        Self { bridge: bridge.clone(), mesh }
    }

    /// Registers a worker. A worker that was removed and still finishes its requests in flight stays.
    ///
    /// # Errors
    /// If the worker is registered already, or the fleet is full.
    pub async fn add(&self, spec: WorkerSpec) -> Result<Written<'_>, WriteError> {
        self.bridge.fleet.check_room(&spec)?;
        self.write(Change::Add(Box::new(spec))).await
    }

    /// Replaces the spec of a worker.
    ///
    /// # Errors
    /// If the worker is not registered any more, or the spec is outside the bounds of the shared state.
    pub async fn change(&self, spec: WorkerSpec) -> Result<Written<'_>, WriteError> {
        self.write(Change::Respecify(Box::new(spec))).await
    }

    /// Removes a worker: it gets no new requests, and those in flight finish.
    ///
    /// # Errors
    /// If the worker is not registered any more.
    pub async fn remove(&self, id: WorkerId) -> Result<Written<'_>, WriteError> {
        if self.bridge.fleet.load().worker(id).is_none() {
            return Err(WriteError::NoSuchWorker(id));
        }
        self.write(Change::Remove(id)).await
    }

    /// Stops new requests to a worker, or resumes them with `false`.
    ///
    /// # Errors
    /// If the worker is not registered any more.
    pub async fn cordon(&self, id: WorkerId, cordoned: bool) -> Result<Written<'_>, WriteError> {
        self.write(Change::Cordon(id, cordoned)).await
    }

    /// Sets an operator's verdict on a worker, or lifts it with `None`.
    ///
    /// # Errors
    /// If the worker is not registered any more.
    pub async fn override_worker(
        &self,
        id: WorkerId,
        verdict: Option<Override>,
    ) -> Result<Written<'_>, WriteError> {
        self.write(Change::Override(id, verdict)).await
    }

    /// Sets the policy of a model; with `None` the workers' label and the default decide again.
    ///
    /// # Errors
    /// If the document names no policy, or a parameter that does not exist or is out of bounds.
    pub async fn set_policy(
        &self,
        model: ModelId,
        document: Option<PolicyDocument>,
    ) -> Result<Written<'_>, WriteError> {
        if let Some(document) = &document {
            let defaults = self.bridge.policies.config();
            settings::setting(&settings::record(document), &defaults)?;
        }
        self.write(Change::Policy(model, document)).await
    }

    /// Sets a rule of the limits.
    ///
    /// # Errors
    /// If the node does not answer, or lacks the state of the others.
    pub async fn set_rule(&self, rule: &Rule) -> Result<Written<'_>, WriteError> {
        self.write(Change::Rule(rule.id.clone(), Some(limits::text(rule.document())))).await
    }

    /// Removes a rule of the limits.
    ///
    /// # Errors
    /// If there is no such rule.
    pub async fn remove_rule(&self, id: &str) -> Result<Written<'_>, WriteError> {
        self.write(Change::Rule(id.to_owned(), None)).await
    }

    /// A write that changes nothing, and is therefore complete everywhere.
    pub fn unchanged(&self) -> Written<'_> {
        Written { admin: self, versions: Vec::new() }
    }

    /// Hands the rights of this router to the others, because it takes no more requests.
    pub async fn hand_over_rights(&self) {
        let limits = self.bridge.limits.clone();
        // If the node does not answer, the rights stay unused.
        let Ok(versions) = self.mesh.visit(move |node, _, now| limits.leave(node, now)).await
        else {
            return;
        };
        if !versions.is_empty() {
            let written = Written { admin: self, versions };
            // Rows that nobody has received yet would be lost with this process.
            let _received = written.receipt(Wait::All, HAND_OVER).await.is_ok();
        }
    }

    /// The limits of this router.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.bridge.limits
    }

    /// What each router observes of each worker: this one at this moment, the others as they last published it. Once this
    /// router's node has failed, only what this router observes.
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
            let seen = worker.local_view(now, breaker);
            let seen = WorkerSeen::new((&seen).into(), seen.load.requests, seen.latency);
            observed.entry(worker.id).or_default().insert(me.clone(), seen);
        }
        Ok(observed)
    }

    async fn write(&self, change: Change) -> Result<Written<'_>, WriteError> {
        let versions = self.write_with(move |node, now| write(node, now, change)).await??;
        Ok(Written { admin: self, versions })
    }

    /// Runs `write` on the node, if this router may write now, and waits until the disk has what it wrote.
    pub(super) async fn write_with<T: Send + 'static>(
        &self,
        write: impl FnOnce(&mut Node, Now) -> T + Send + 'static,
    ) -> Result<T, WriteError> {
        self.wait_for_state().await?;
        if self.bridge.config.rejects_minority_writes && !self.mesh.leadership().quorum {
            return Err(WriteError::NoQuorum);
        }
        let written = self.mesh.visit(move |node, _, now| write(node, now)).await?;
        // A new worker should be probed at once.
        self.bridge.wake.notify_one();
        self.mesh.synced().await;
        Ok(written)
    }

    /// Waits until this router has the state of the others and has announced the workers of its configuration. A change that
    /// was made earlier could be undone by what arrives, or by another router that announces the same workers.
    async fn wait_for_state(&self) -> Result<(), WriteError> {
        let clock = self.bridge.clock;
        let deadline = clock.mono() + STATE_WAIT;
        while !self.bridge.gate.has_announced() {
            // A node that has failed will never have the state.
            self.mesh.visit(|_, _, _| ()).await?;
            if clock.mono() >= deadline {
                return Err(WriteError::StateIncomplete);
            }
            tokio::time::sleep(STATE_POLL).await;
        }
        Ok(())
    }
}

/// A write that this router has made.
#[derive(Debug)]
#[must_use]
pub struct Written<'a> {
    admin: &'a Admin,
    versions: Vec<Version>,
}

impl Written<'_> {
    /// Waits until as many routers have applied the write as `wait` says, or `timeout` is over.
    ///
    /// # Errors
    /// If the node does not answer any more.
    pub async fn receipt(self, wait: Wait, timeout: Duration) -> Result<Receipt, VisitError> {
        let Admin { bridge, mesh } = self.admin;
        let deadline = bridge.clock.mono() + timeout;
        loop {
            let versions = self.versions.clone();
            // Needed for `Wait::Local` too: when this visit is answered, the follower has applied the write to the fleet.
            let receipt = mesh.visit(move |node, _, _| Receipt::of(node, &versions, wait)).await?;
            if receipt.is_final() || bridge.clock.mono() >= deadline {
                return Ok(receipt);
            }
            tokio::time::sleep(RECEIPT_POLL).await;
        }
    }
}

/// Writes a change into the node. Returns the versions that a receipt waits for.
fn write(node: &mut Node, now: Now, change: Change) -> Result<Vec<Version>, WriteError> {
    let mut versions = Vec::new();
    for write in writes_of(node, now, change)? {
        versions.extend(node.update(now, write)?);
    }
    Ok(versions)
}

/// The writes that make a change, if the state of its worker allows the change.
fn writes_of(node: &Node, now: Now, change: Change) -> Result<Vec<Write>, WriteError> {
    // A worker that was removed and still finishes its requests can't be changed: the change would bring it back.
    let entry = change.worker().and_then(|id| node.state().worker(id)).unwrap_or_default();
    let is_dismissed = entry.admin_state() == AdminState::Dismissed;
    let takes_part = entry.record().is_some() && !is_dismissed;
    let known = entry.record().and_then(WorkerRecord::configuration);
    let writes = match change {
        Change::Add(spec) if takes_part => return Err(RegisterError::Exists(spec.id()).into()),
        Change::Add(spec) => {
            let record = WorkerRecord::registered(&spec, entry.record(), now);
            let mut writes = vec![WorkerWrite::Put(record).into()];
            writes.extend(
                is_dismissed
                    .then_some(WorkerWrite::AdminState(spec.id(), AdminState::Serving).into()),
            );
            writes
        }
        // Without its record, a router whose configuration names the worker would register it again at its next start.
        Change::Remove(id) if known.is_some() => {
            vec![WorkerWrite::AdminState(id, AdminState::Dismissed).into()]
        }
        Change::Remove(id) => vec![WorkerWrite::Remove(id).into()],
        Change::Respecify(spec) if takes_part => {
            let record = WorkerRecord::from(&*spec);
            let record = match entry.record() {
                Some(before) => record.replacing(before),
                None => record,
            };
            vec![WorkerWrite::Put(record).into()]
        }
        Change::Cordon(id, true) if takes_part => {
            vec![WorkerWrite::AdminState(id, AdminState::Cordoned).into()]
        }
        Change::Cordon(id, false) if takes_part => {
            vec![WorkerWrite::AdminState(id, AdminState::Serving).into()]
        }
        Change::Override(id, verdict) if takes_part => {
            let verdict = verdict.map(|verdict| override_record(verdict, now));
            vec![WorkerWrite::Override(id, verdict).into()]
        }
        Change::Respecify(spec) => return Err(WriteError::NoSuchWorker(spec.id())),
        Change::Cordon(id, _) | Change::Override(id, _) => {
            return Err(WriteError::NoSuchWorker(id));
        }
        Change::Rule(id, document) => {
            let id = RuleId(id);
            let known = node.state().rule(&id);
            let configured = known.as_ref().and_then(|known| known.configured);
            let is_set = known.is_some_and(|known| known.document.is_some());
            let rule = match (document, configured) {
                (None, _) if !is_set => return Err(WriteError::NoSuchRule(id.0)),
                // Without the record, a router whose configuration names the rule would set it again at its next start.
                (None, None) => None,
                (document, configured) => Some(RuleRecord { document, configured }),
            };
            vec![RuleWrite { id, rule }.into()]
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

/// What the other routers have published of each worker.
fn observed_elsewhere(node: &Node) -> BTreeMap<WorkerId, Observed> {
    let (state, me) = (node.state(), &node.replication().me().name);
    let mut all = BTreeMap::new();
    for (id, _) in state.workers() {
        let loads: BTreeMap<&NodeName, u32> =
            state.loads(id).map(|(router, load)| (&router.name, load.requests)).collect();
        let seen = state.observations(id).filter(|(router, _)| router.name != *me);
        let seen = seen.map(|(router, seen)| {
            let in_flight = loads.get(&router.name).copied().unwrap_or(0);
            let latency =
                (seen.latency_us > 0).then(|| Duration::from_micros(seen.latency_us.into()));
            (router.name.clone(), WorkerSeen::new(seen.into(), in_flight, latency))
        });
        all.insert(id, seen.collect());
    }
    all
}

impl WorkerSeen {
    fn new(measured: Measured, in_flight: u32, head_latency: Option<Duration>) -> Self {
        let health = match measured.health {
            None => "unknown",
            Some(true) => "healthy",
            Some(false) => "unhealthy",
        };
        Self {
            health,
            breaker: measured.breaker.name(),
            serving: measured.serving,
            in_flight,
            head_latency_seconds: head_latency.map(|latency| latency.as_secs_f64()),
        }
    }
}
