//! Which policy picks for which model, kept in step with the fleet.
//!
//! Level-triggered: each pick compares the fleet's version with the one that the table was made for, one number against
//! another, and whoever finds them different brings the table up to date. A worker that left, or came back with a cold
//! cache, is forgotten by all policies there.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use prometheus::IntCounter;
use smg_routing::fleet::Snapshot;
use smg_routing::policy::{self, Decision, Kind, Memory, Policy};
use smg_routing::prefix;
use smg_types::ids::{ModelId, WorkerId};
use tracing::warn;

use super::metrics::{Endings, Metrics, ModelMetrics};

/// All policies in use.
#[derive(Debug)]
pub struct Policies {
    config: policy::Config,
    memory: Arc<Memory>,
    metrics: Metrics,
    table: ArcSwap<Table>,
    reconciling: Mutex<Settings>,
}

/// What administrators have set, by model.
pub type Settings = BTreeMap<ModelId, Setting>;

/// What an administrator has set for a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The policy.
    pub kind: Kind,
    /// Its parameters.
    pub config: policy::Config,
    /// Weights that take the place of those in the workers' specs.
    pub weights: BTreeMap<WorkerId, u32>,
}

/// The policies at one version of the fleet.
#[derive(Debug)]
pub(super) struct Table {
    version: u64,
    by_model: HashMap<ModelId, Arc<Entry>>,
    /// For requests without a model, and for models that no worker lists.
    other: Arc<Entry>,
    cache_epochs: HashMap<WorkerId, u32>,
}

/// A policy with the handles of what it is counted by.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) policy: Arc<dyn Policy>,
    pub(super) metrics: ModelMetrics,
    /// Weights that take the place of those in the workers' specs.
    pub(super) weights: BTreeMap<WorkerId, u32>,
    kind: Kind,
    config: policy::Config,
    /// What the chains of its prompts begin with; `None`: it serves several models.
    root: Option<u64>,
    decisions: [IntCounter; 7],
    predicted: IntCounter,
    actual: IntCounter,
}

impl Entry {
    /// What tells this model's sessions from others'; only computed where it is wanted.
    pub(super) fn session_root(&self, request: &super::Request<'_>) -> u64 {
        match self.root {
            Some(root) => root,
            None if request.session.is_some() => self.root(request.model),
            None => 0,
        }
    }

    /// What the chain of a prompt for `model` begins with.
    pub(super) fn root(&self, model: Option<&str>) -> u64 {
        self.root.unwrap_or_else(|| prefix::root(&ModelId::from(model.unwrap_or_default())))
    }

    /// Counts what was expected of a worker's cache, and what the answer says.
    pub(super) fn count_affinity(&self, expected: f32, usage: super::feedback::Usage) {
        self.predicted.inc_by((f64::from(expected) * usage.prompt as f64) as u64);
        self.actual.inc_by(usage.cached);
    }

    pub(super) fn count(&self, decision: Decision) {
        let at = match decision {
            Decision::Plain => 0,
            Decision::Hit(_) => 1,
            Decision::Balance => 2,
            Decision::Miss => 3,
            Decision::Sticky => 4,
            Decision::Spill => 5,
            Decision::NoKey => 6,
        };
        self.decisions[at].inc();
    }
}

impl Policies {
    /// The default policy for everything, until a worker's label or an administrator says otherwise.
    #[must_use]
    pub fn new(config: policy::Config, index: Arc<prefix::Index>, metrics: Metrics) -> Self {
        let memory = Arc::new(Memory::new(&config, index));
        let other = Arc::new(entry(None, &plain_setting(&config, config.kind), &memory, &metrics));
        let table =
            Table { version: 0, by_model: HashMap::new(), other, cache_epochs: HashMap::new() };
        Self {
            config,
            memory,
            metrics,
            table: ArcSwap::from_pointee(table),
            reconciling: Mutex::default(),
        }
    }

    /// What the policies remember.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The configuration that settings begin from.
    #[must_use]
    pub fn config(&self) -> &policy::Config {
        &self.config
    }

    /// What administrators have set.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.reconciling.lock().clone()
    }

    /// Requests of each model since the start, by how they ended. Models that nobody serves any more are not among them.
    #[must_use]
    pub fn endings(&self) -> Vec<(ModelId, Endings)> {
        let table = self.table.load();
        table.by_model.iter().map(|(id, entry)| (id.clone(), entry.metrics.endings())).collect()
    }

    /// Sets the policy of a model, or lets it be what labels and default say.
    pub fn set(&self, model: &ModelId, setting: Option<Setting>, snapshot: &Snapshot) {
        let mut settings = self.reconciling.lock();
        let changed = match setting {
            Some(setting) => settings.insert(model.clone(), setting.clone()) != Some(setting),
            None => settings.remove(model).is_some(),
        };
        if changed {
            self.rebuild(&settings, snapshot);
        }
    }

    /// The table that fits `snapshot`.
    pub(super) fn at(&self, snapshot: &Snapshot) -> Guard<Arc<Table>> {
        let table = self.table.load();
        if table.version >= snapshot.version {
            return table;
        }
        drop(table);
        self.reconcile(snapshot);
        self.table.load()
    }

    /// The policy of each model in `snapshot`, by name, and the one for everything else.
    #[must_use]
    pub fn in_use(&self, snapshot: &Snapshot) -> (Kind, BTreeMap<ModelId, Kind>) {
        let table = self.at(snapshot);
        let models = table.by_model.iter().map(|(id, entry)| (id.clone(), entry.kind));
        (table.other.kind, models.collect())
    }

    fn reconcile(&self, snapshot: &Snapshot) {
        let settings = self.reconciling.lock();
        if self.table.load().version < snapshot.version {
            self.rebuild(&settings, snapshot);
        }
    }

    /// Called by one at a time.
    fn rebuild(&self, settings: &Settings, snapshot: &Snapshot) {
        let old = self.table.load_full();
        let mut by_model = HashMap::new();
        for (id, model) in snapshot.models() {
            let wanted = match settings.get(id) {
                Some(set) => set.clone(),
                None => plain_setting(&self.config, self.kind_of(id, model.policy.as_deref())),
            };
            let entry = match old.by_model.get(id) {
                Some(there) if there.is(&wanted) => Arc::clone(there),
                Some(_) | None => Arc::new(entry(Some(id), &wanted, &self.memory, &self.metrics)),
            };
            by_model.insert(id.clone(), entry);
        }
        let cache_epochs: HashMap<_, _> =
            snapshot.workers().iter().map(|worker| (worker.id, worker.cache_epoch)).collect();
        for (worker, epoch) in &old.cache_epochs {
            if cache_epochs.get(worker) != Some(epoch) {
                for entry in by_model.values().chain([&old.other]) {
                    entry.policy.forget(*worker);
                }
            }
        }
        for id in old.by_model.keys().filter(|id| !by_model.contains_key(*id)) {
            self.metrics.forget(id);
        }
        let other = Arc::clone(&old.other);
        self.table.store(Arc::new(Table {
            version: snapshot.version.max(old.version),
            by_model,
            other,
            cache_epochs,
        }));
    }

    fn kind_of(&self, model: &ModelId, label: Option<&str>) -> Kind {
        let Some(name) = label else { return self.config.kind };
        name.parse().unwrap_or_else(|error| {
            warn!(%model, %error, "the workers' label policy names no policy, the default is used");
            self.config.kind
        })
    }
}

impl Table {
    pub(super) fn of(&self, model: Option<&str>) -> &Arc<Entry> {
        model.and_then(|model| self.by_model.get(model)).unwrap_or(&self.other)
    }
}

impl Entry {
    fn is(&self, wanted: &Setting) -> bool {
        self.kind == wanted.kind && self.config == wanted.config && self.weights == wanted.weights
    }
}

/// The policy `kind` with the parameters of `config` and the weights of the workers' specs.
fn plain_setting(config: &policy::Config, kind: Kind) -> Setting {
    Setting { kind, config: config.clone(), weights: BTreeMap::new() }
}

fn entry(
    model: Option<&ModelId>,
    wanted: &Setting,
    memory: &Arc<Memory>,
    metrics: &Metrics,
) -> Entry {
    let Setting { kind, config, weights } = wanted.clone();
    let policy = policy::build(kind, &config, Arc::clone(memory));
    let decisions = [
        Decision::Plain,
        Decision::Hit(0.0),
        Decision::Balance,
        Decision::Miss,
        Decision::Sticky,
        Decision::Spill,
        Decision::NoKey,
    ]
    .map(|decision| metrics.decision(policy.name(), decision));
    let root = model.map(prefix::root);
    Entry {
        policy,
        metrics: metrics.model(model.map_or("other", ModelId::as_str)),
        weights,
        kind,
        config,
        root,
        decisions,
        predicted: metrics.predicted.clone(),
        actual: metrics.actual.clone(),
    }
}
