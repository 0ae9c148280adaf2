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
use tracing::warn;

use super::metrics::{Metrics, ModelMetrics};
use crate::fleet::Snapshot;
use crate::ids::{ModelId, WorkerId};
use crate::policy::{self, Decision, Kind, Policy};
use crate::prefix;

/// All policies in use.
#[derive(Debug)]
pub struct Policies {
    config: policy::Config,
    index: Arc<prefix::Index>,
    metrics: Metrics,
    table: ArcSwap<Table>,
    reconciling: Mutex<()>,
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
    kind: Kind,
    /// What the chains of its prompts begin with; `None`: it serves several models.
    root: Option<u64>,
    decisions: [IntCounter; 7],
}

impl Entry {
    /// What the chain of a prompt for `model` begins with.
    pub(super) fn root(&self, model: Option<&str>) -> u64 {
        self.root.unwrap_or_else(|| prefix::root(&ModelId::from(model.unwrap_or_default())))
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
    /// The default policy for everything, until a worker's label says otherwise.
    #[must_use]
    pub fn new(config: policy::Config, index: Arc<prefix::Index>, metrics: Metrics) -> Self {
        let other = Arc::new(entry(config.kind, None, &config, &index, &metrics));
        let table =
            Table { version: 0, by_model: HashMap::new(), other, cache_epochs: HashMap::new() };
        Self {
            config,
            index,
            metrics,
            table: ArcSwap::from_pointee(table),
            reconciling: Mutex::new(()),
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
        let _one_at_a_time = self.reconciling.lock();
        let old = self.table.load_full();
        if old.version >= snapshot.version {
            return;
        }
        let mut by_model = HashMap::new();
        for (id, model) in snapshot.models() {
            let kind = self.kind_of(id, model.policy.as_deref());
            let entry = match old.by_model.get(id) {
                Some(there) if there.kind == kind => Arc::clone(there),
                Some(_) | None => {
                    Arc::new(entry(kind, Some(id), &self.config, &self.index, &self.metrics))
                }
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
            version: snapshot.version,
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

fn entry(
    kind: Kind,
    model: Option<&ModelId>,
    config: &policy::Config,
    index: &Arc<prefix::Index>,
    metrics: &Metrics,
) -> Entry {
    let policy = policy::build(kind, config, Arc::clone(index));
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
        kind,
        root,
        decisions,
    }
}
