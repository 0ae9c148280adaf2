//! The policy of each model, kept in step with the fleet.
//!
//! [`Policies`] holds a table of one [`Entry`] per model, made for one version of the fleet's snapshot. Each pick
//! compares the two versions, which are one number each, and brings the table up to date when they differ. When a worker
//! has left the fleet or has lost its cache, all policies forget what they have learnt about it.

mod answer;
mod metrics;
mod preference;
mod tokens;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;
use tracing::warn;

pub use answer::{Asked, PromptTokens};
pub use metrics::{Ending, Endings, Metrics, ModelMetrics};
pub use preference::least_preferred_rank;
pub use tokens::TokenKind;

use crate::fleet::{Rank, Snapshot, Worker};
use crate::policy::{self, Candidate, Decision, Kind, Memory, Policy};
use crate::prefix;

/// All policies in use.
#[derive(Debug)]
pub struct Policies {
    config: ArcSwap<policy::Config>,
    memory: Arc<Memory>,
    metrics: Metrics,
    table: ArcSwap<Table>,
    /// Held while the table is rebuilt.
    settings: Mutex<Settings>,
}

/// The settings of the admin API, by model.
pub type Settings = BTreeMap<ModelId, Setting>;

/// The setting of the admin API for one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The policy.
    pub kind: Kind,
    /// The parameters of the policy.
    pub config: policy::Config,
    /// Weights that replace those in the workers' specs.
    pub weights: BTreeMap<WorkerId, u32>,
}

/// The policies at one version of the fleet.
#[derive(Debug)]
pub struct Table {
    version: u64,
    by_model: HashMap<ModelId, Arc<Entry>>,
    /// For requests without a model, and for models that no worker lists.
    other: Arc<Entry>,
    cache_epochs: HashMap<WorkerId, u32>,
}

/// A model's policy with its metric handles.
#[derive(Debug)]
pub struct Entry {
    /// The policy.
    pub policy: Arc<dyn Policy>,
    /// The metric handles of the model.
    pub metrics: ModelMetrics,
    /// Whether its requests are counted under the name of the model.
    has_series: bool,
    /// Weights that replace those in the workers' specs.
    pub weights: BTreeMap<WorkerId, u32>,
    memory: Arc<Memory>,
    kind: Kind,
    config: policy::Config,
    /// The hash that the block chains of this model's prompts start from; `None`: the entry serves several models.
    root: Option<u64>,
    policy_metrics: metrics::PolicyMetrics,
}

/// Models whose requests are counted under their own names; those of further models are counted together. A model has some
/// 40 series, and workers decide how many models they list.
const MAX_SERIES: usize = 256;

/// The label of requests that are counted together.
const OTHER: &str = "other";

impl Policies {
    /// Uses the default policy for every model, until a worker's label or the admin API names another.
    #[must_use]
    pub fn new(config: policy::Config, index: Arc<prefix::Index>, metrics: Metrics) -> Self {
        let memory = Arc::new(Memory::new(&config, index));
        let other = Arc::new(Entry::new(None, default_setting(&config), &memory, &metrics));
        let table =
            Table { version: 0, by_model: HashMap::new(), other, cache_epochs: HashMap::new() };
        Self {
            config: ArcSwap::from_pointee(config),
            memory,
            metrics,
            table: ArcSwap::from_pointee(table),
            settings: Mutex::default(),
        }
    }

    /// The memory that all policies share.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The configuration that settings begin from.
    #[must_use]
    pub fn config(&self) -> Arc<policy::Config> {
        self.config.load_full()
    }

    /// Replaces the default policy and its parameters. The sessions and their bounds stay, because the memory was made for
    /// them; so does the text that is ignored, by which the prompts in it were hashed; and so does each policy that the admin API has set. Returns whether anything differs from before.
    pub fn set_default(&self, config: &policy::Config, snapshot: &Snapshot) -> bool {
        let settings = self.settings.lock();
        let known = self.config.load_full();
        let wanted = policy::Config {
            session_ttl: known.session_ttl,
            max_sessions: known.max_sessions,
            agree_across_routers: known.agree_across_routers,
            ignored: known.ignored.clone(),
            ..config.clone()
        };
        if *known == wanted {
            return false;
        }
        self.config.store(Arc::new(wanted));
        self.rebuild(&settings, snapshot);
        true
    }

    /// All settings of the admin API.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings.lock().clone()
    }

    /// The requests of each model since the start, by how they ended, without models that no worker serves any more and
    /// models whose requests are counted together.
    #[must_use]
    pub fn endings(&self) -> Vec<(ModelId, Endings)> {
        let table = self.table.load();
        let counted = table.by_model.iter().filter(|(_, entry)| entry.has_series);
        counted.map(|(id, entry)| (id.clone(), entry.metrics.endings())).collect()
    }

    /// Sets the policy of a model. With `None` the workers' labels and the default decide again.
    pub fn set(&self, model: &ModelId, setting: Option<Setting>, snapshot: &Snapshot) {
        let mut settings = self.settings.lock();
        let changed = match setting {
            Some(setting) => settings.insert(model.clone(), setting.clone()) != Some(setting),
            None => settings.remove(model).is_some(),
        };
        if changed {
            self.rebuild(&settings, snapshot);
        }
    }

    /// Brings the table up to date with `snapshot` now, and not at the next pick: so the policies forget the workers that have
    /// left or lost their cache before this returns.
    pub fn follow(&self, snapshot: &Snapshot) {
        drop(self.table(snapshot));
    }

    /// The table for `snapshot`, or a newer one. Don't hold the guard across an await.
    pub fn table(&self, snapshot: &Snapshot) -> Guard<Arc<Table>> {
        let table = self.table.load();
        if table.version >= snapshot.version {
            return table;
        }
        drop(table);
        let settings = self.settings.lock();
        // Another thread may have rebuilt it while this one waited for the lock.
        if self.table.load().version < snapshot.version {
            self.rebuild(&settings, snapshot);
        }
        drop(settings);
        self.table.load()
    }

    /// The policy of requests without an entry of their own, and the policy of each model in `snapshot`.
    #[must_use]
    pub fn in_use(&self, snapshot: &Snapshot) -> (Kind, BTreeMap<ModelId, Kind>) {
        let table = self.table(snapshot);
        let models = table.by_model.iter().map(|(id, entry)| (id.clone(), entry.kind));
        (table.other.kind, models.collect())
    }

    /// Builds the table for `snapshot`. The caller holds the lock on `settings`.
    fn rebuild(&self, settings: &Settings, snapshot: &Snapshot) {
        let old = self.table.load_full();
        let default = default_setting(&self.config.load());
        let mut by_model = HashMap::new();
        let is_kept = |id: &ModelId| snapshot.model(id.as_str()).is_some();
        let mut series =
            old.by_model.iter().filter(|(id, entry)| entry.has_series && is_kept(id)).count();
        for (id, model) in snapshot.models() {
            let wanted = match settings.get(id) {
                Some(setting) => setting.clone(),
                None => {
                    let kind = self.kind_of(id, model.policy.as_deref());
                    Setting { kind, ..default.clone() }
                }
            };
            let present = old.by_model.get(id);
            let entry = match present {
                Some(present) if present.follows(&wanted) => Arc::clone(present),
                Some(_) | None => {
                    let had_series = present.is_some_and(|entry| entry.has_series);
                    let has_series = had_series || (series < MAX_SERIES && id.as_str() != OTHER);
                    series += usize::from(has_series && !had_series);
                    let model = Some((id, has_series));
                    Arc::new(Entry::new(model, wanted, &self.memory, &self.metrics))
                }
            };
            by_model.insert(id.clone(), entry);
        }
        let cache_epochs: HashMap<_, _> =
            snapshot.workers().iter().map(|worker| (worker.id, worker.cache_epoch)).collect();
        for (worker, epoch) in &old.cache_epochs {
            if cache_epochs.get(worker) != Some(epoch) {
                // Also if no policy in use reads the memory, because one may be set later.
                self.memory.forget(*worker);
                for entry in by_model.values().chain([&old.other]) {
                    entry.policy.forget(*worker);
                }
            }
        }
        for (id, entry) in &old.by_model {
            if entry.has_series && !by_model.contains_key(id) {
                self.metrics.forget(id);
            }
        }
        let other = match old.other.follows(&default) {
            true => Arc::clone(&old.other),
            false => Arc::new(Entry::new(None, default, &self.memory, &self.metrics)),
        };
        self.table.store(Arc::new(Table {
            version: snapshot.version.max(old.version),
            by_model,
            other,
            cache_epochs,
        }));
    }

    fn kind_of(&self, model: &ModelId, label: Option<&str>) -> Kind {
        let default = self.config.load().kind;
        let Some(name) = label else { return default };
        name.parse().unwrap_or_else(|error| {
            warn!(%model, %error, "the workers' label policy names no policy, the default is used");
            default
        })
    }
}

/// The present state of `worker` for a policy, which is to give it traffic by `weight`.
#[must_use]
pub fn candidate(worker: &Worker, weight: u32, now: Now) -> Candidate {
    Candidate {
        id: worker.id,
        load: worker.load(),
        weight,
        waiting: worker.waiting_tokens(now),
        speed: worker.speed(),
        tokens_per_byte: worker.tokens_per_byte(),
    }
}

/// The setting of a model without a label and without a setting of the admin API.
fn default_setting(config: &policy::Config) -> Setting {
    Setting { kind: config.kind, config: config.clone(), weights: BTreeMap::new() }
}

impl Table {
    /// The entry for requests that name `model`.
    #[must_use]
    pub fn entry(&self, model: Option<&str>) -> &Arc<Entry> {
        model.and_then(|model| self.by_model.get(model)).unwrap_or(&self.other)
    }
}

impl Entry {
    /// `model`: the model, and whether its requests are counted under its name; `None` for the entry that serves all models
    /// without one of their own.
    fn new(
        model: Option<(&ModelId, bool)>,
        setting: Setting,
        memory: &Arc<Memory>,
        metrics: &Metrics,
    ) -> Self {
        let Setting { kind, config, weights } = setting;
        let label =
            model.filter(|(_, has_series)| *has_series).map_or(OTHER, |(id, _)| id.as_str());
        let policy = policy::build(kind, &config, Arc::clone(memory));
        Self {
            metrics: metrics.model(label),
            has_series: label != OTHER,
            policy_metrics: metrics.policy(policy.name()),
            policy,
            memory: Arc::clone(memory),
            weights,
            kind,
            config,
            root: model.map(|(id, _)| prefix::root(id)),
        }
    }

    /// The kind of the policy.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The parameters of the policy.
    #[must_use]
    pub fn config(&self) -> &policy::Config {
        &self.config
    }

    /// Whether the entry was made for this setting.
    fn follows(&self, setting: &Setting) -> bool {
        self.kind == setting.kind
            && self.config == setting.config
            && self.weights == setting.weights
    }

    /// The hash that the block chain of a prompt for `model` starts from.
    #[must_use]
    pub fn root(&self, model: Option<&str>) -> u64 {
        self.root.unwrap_or_else(|| prefix::root(&ModelId::from(model.unwrap_or_default())))
    }

    /// The hash that keeps the sessions of `model` apart from those of other models. Without a session nothing is hashed.
    #[must_use]
    pub fn session_root(&self, session: Option<&[u8]>, model: Option<&str>) -> u64 {
        match self.root {
            Some(root) => root,
            None if session.is_some() => self.root(model),
            None => 0,
        }
    }

    /// The rank from which on candidates are preferred: see [`least_preferred_rank`].
    #[must_use]
    pub fn least_preferred_rank(&self, candidates: &[Candidate], ranks: &[Rank]) -> Rank {
        least_preferred_rank(candidates, ranks, &self.config)
    }

    /// Counts a pick.
    pub fn count_decision(&self, decision: Decision) {
        self.policy_metrics.count(decision);
    }

    /// Counts the tokens of a prompt that were expected in a worker's cache, and those that were in it.
    pub fn count_cached(&self, predicted: u64, actual: u64) {
        self.policy_metrics.count_cached(predicted, actual);
    }
}

#[cfg(test)]
mod tests;
