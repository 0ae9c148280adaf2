//! All workers at one moment, indexed by the models that they serve.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use smg_types::ids::{ModelId, WorkerId};

use super::config::Place;
use super::health::WorkerState;
use super::preference::Rank;
use super::worker::{Models, Worker};

/// All workers at one moment, indexed by model.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Increases by 1 with each change of the fleet.
    pub version: u64,
    /// Sorted by id.
    workers: Vec<Arc<Worker>>,
    models: HashMap<ModelId, Model>,
    /// Workers with [`Models::Any`]: they get requests for every model.
    any: Vec<Member>,
    /// Workers whose models are known. They get the requests that name no model.
    with_known_models: Vec<Member>,
    /// Workers with [`Models::Unknown`].
    undiscovered: Vec<Arc<Worker>>,
    /// How many models the workers list. Aliases do not count.
    listed: Listed,
    /// Whether the workers' ranks differ.
    has_ranks: bool,
}

/// How many models the workers of a fleet list. Aliases do not count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Listed {
    /// No model: no worker's models are known, or all workers get requests for every model.
    #[default]
    None,
    /// Exactly this one.
    One(ModelId),
    /// More than one.
    Several,
}

/// A model and the workers that serve it.
#[derive(Debug, Default)]
pub struct Model {
    /// The workers that serve the model, sorted by id.
    pub members: Vec<Member>,
    /// The value of the label `policy` of the first worker (in the order of ids) that has one.
    pub policy: Option<String>,
}

/// A worker that serves one model.
#[derive(Debug, Clone)]
pub struct Member {
    /// The worker.
    pub worker: Arc<Worker>,
    /// The worker's place in the order of preference.
    pub rank: Rank,
    /// If clients name the model by an alias: the name of the model at the worker.
    pub renamed: Option<ModelId>,
}

/// The workers that serve a model, or the reason why there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServedBy<'a> {
    /// At least one worker serves the model.
    Members(&'a [Member]),
    /// No known worker serves the model, but the router does not know yet what some worker serves.
    NotYetKnown,
    /// No worker serves the model.
    UnknownModel,
}

impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        self.worker.id == other.worker.id && self.renamed == other.renamed
    }
}

impl Eq for Member {}

impl Snapshot {
    /// Builds the snapshot of `workers`, which are sorted by id. `aliases` are other names for models, whichever workers serve
    /// them. `place` is that of this router.
    pub(super) fn new(
        version: u64,
        workers: Vec<Arc<Worker>>,
        aliases: &BTreeMap<ModelId, ModelId>,
        place: &Place,
    ) -> Self {
        let mut snapshot = Self { version, ..Self::default() };
        let mut first_rank = None;
        for worker in &workers {
            let rank = Rank::of(&worker.spec, place);
            snapshot.has_ranks |= *first_rank.get_or_insert(rank) != rank;
            let member = || Member { worker: Arc::clone(worker), rank, renamed: None };
            match &worker.models {
                Models::Unknown => {
                    snapshot.undiscovered.push(Arc::clone(worker));
                    continue;
                }
                Models::Any => snapshot.any.push(member()),
                Models::Known(models) => {
                    for id in models {
                        snapshot.listed = match &snapshot.listed {
                            Listed::None => Listed::One(id.clone()),
                            Listed::One(known) if known == id => Listed::One(known.clone()),
                            Listed::One(_) | Listed::Several => Listed::Several,
                        };
                        add(&mut snapshot.models, id, member());
                    }
                }
            }
            for (alias, model) in &worker.spec.aliases {
                let member = Member { renamed: Some(model.clone()), ..member() };
                add(&mut snapshot.models, alias, member);
            }
            snapshot.with_known_models.push(member());
        }
        // A worker without a list of models also serves the models that others list.
        for any in &snapshot.any {
            for model in snapshot.models.values_mut() {
                if model.members.iter().all(|member| member.worker.id != any.worker.id) {
                    model.members.push(any.clone());
                }
            }
        }
        for (alias, model) in aliases {
            add_alias(&mut snapshot, alias, model);
        }
        for model in snapshot.models.values_mut() {
            model.members.sort_by_key(|member| member.worker.id);
        }
        snapshot.workers = workers;
        snapshot
    }

    /// All workers, sorted by id.
    #[must_use]
    pub fn workers(&self) -> &[Arc<Worker>] {
        &self.workers
    }

    /// The worker called `id`.
    #[must_use]
    pub fn worker(&self, id: WorkerId) -> Option<&Arc<Worker>> {
        self.workers.binary_search_by_key(&id, |worker| worker.id).ok().map(|at| &self.workers[at])
    }

    /// All models by name. An alias is listed as a model of its own.
    pub fn models(&self) -> impl Iterator<Item = (&ModelId, &Model)> {
        self.models.iter()
    }

    /// How many models the workers list. If it is one, a request that names no model means that one.
    #[must_use]
    pub fn listed(&self) -> &Listed {
        &self.listed
    }

    /// The model or alias called `name`.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models.get(name)
    }

    /// The workers that may serve a request for `model`. A request that names no model may go to every worker whose models
    /// are known.
    #[must_use]
    pub fn served_by(&self, model: Option<&str>) -> ServedBy<'_> {
        let members = match model {
            None => &self.with_known_models,
            Some(name) => self.models.get(name).map_or(&self.any, |model| &model.members),
        };
        // While no worker's models are known, no model is known not to exist. Later, a name is unknown unless some worker
        // may report its models soon.
        let too_early = self.with_known_models.is_empty() && !self.workers.is_empty();
        match members.as_slice() {
            [] if too_early => ServedBy::NotYetKnown,
            [] if self.undiscovered.iter().any(|worker| worker.may_report_models()) => {
                ServedBy::NotYetKnown
            }
            [] => ServedBy::UnknownModel,
            members => ServedBy::Members(members),
        }
    }

    /// Whether any two workers differ in rank. If not, no worker is preferred to another.
    #[must_use]
    pub fn has_ranks(&self) -> bool {
        self.has_ranks
    }

    /// Counts the workers in state `ready`.
    pub(super) fn count_ready(&self) -> usize {
        self.workers.iter().filter(|worker| worker.state() == WorkerState::Ready).count()
    }
}

/// Makes the workers that serve `model` serve `alias` too, unless a worker itself lists a model called `alias`.
fn add_alias(snapshot: &mut Snapshot, alias: &ModelId, model: &ModelId) {
    let known = snapshot.models.get(model);
    let members = known.map_or(&snapshot.any, |known| &known.members);
    if members.is_empty() || snapshot.models.contains_key(alias) {
        return;
    }
    let renamed = |member: &Member| Member {
        worker: Arc::clone(&member.worker),
        rank: member.rank,
        renamed: Some(member.renamed.clone().unwrap_or_else(|| model.clone())),
    };
    let members = members.iter().map(renamed).collect();
    let policy = known.and_then(|known| known.policy.clone());
    snapshot.models.insert(alias.clone(), Model { members, policy });
}

/// Adds `member` to the model `id`, unless the same worker was added to it just before.
fn add(models: &mut HashMap<ModelId, Model>, id: &ModelId, member: Member) {
    let model = models.entry(id.clone()).or_default();
    if model.policy.is_none() {
        model.policy = member.worker.spec.labels.get("policy").cloned();
    }
    if model.members.last().is_none_or(|last| last.worker.id != member.worker.id) {
        model.members.push(member);
    }
}
