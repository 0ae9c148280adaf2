//! All workers at one moment, and which of them serve which model.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use smg_types::ids::{ModelId, WorkerId};

use super::health::WorkerState;
use super::worker::{Models, Worker};

/// All workers at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Grows with every change.
    pub version: u64,
    workers: Vec<Arc<Worker>>,
    models: HashMap<ModelId, Model>,
    /// Workers that have no list of models and take whatever is sent.
    any: Vec<Member>,
    /// All workers whose models are known, for requests that name no model.
    everyone: Vec<Member>,
    /// Workers whose models are not known yet.
    unread: Vec<Arc<Worker>>,
    /// Which models the workers list, aliases apart.
    listed: Listed,
}

/// Which models the workers of a fleet list, aliases apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Listed {
    /// None: no worker's models are known, or the workers take whatever is sent.
    #[default]
    None,
    /// Exactly one.
    One(ModelId),
    /// More than one.
    Several,
}

/// A model and the workers that serve it.
#[derive(Debug, Default)]
pub struct Model {
    /// The workers that serve it, sorted by id.
    pub members: Vec<Member>,
    /// The policy that a worker's label asks for.
    pub policy: Option<String>,
}

/// A worker as a server of one model.
#[derive(Debug, Clone)]
pub struct Member {
    /// The worker.
    pub worker: Arc<Worker>,
    /// The model's name at the worker when clients call it by an alias.
    pub renamed: Option<ModelId>,
}

/// Which workers may serve a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServedBy<'a> {
    /// These workers.
    Members(&'a [Member]),
    /// No worker yet; the models of some worker are still being read.
    NotYetKnown,
    /// No worker: the model does not exist here.
    UnknownModel,
}

impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        self.worker.id == other.worker.id && self.renamed == other.renamed
    }
}

impl Eq for Member {}

impl Snapshot {
    /// Derives which workers serve which model from the list of workers, sorted by id. `aliases`: other names for models,
    /// whichever workers serve them.
    pub(super) fn new(
        version: u64,
        workers: Vec<Arc<Worker>>,
        aliases: &BTreeMap<ModelId, ModelId>,
    ) -> Self {
        let mut snapshot = Self { version, ..Self::default() };
        for worker in &workers {
            let member = || Member { worker: Arc::clone(worker), renamed: None };
            match &worker.models {
                Models::Unknown => {
                    snapshot.unread.push(Arc::clone(worker));
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
            snapshot.everyone.push(member());
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

    /// The models by name, aliases among them.
    pub fn models(&self) -> impl Iterator<Item = (&ModelId, &Model)> {
        self.models.iter()
    }

    /// Which models the workers list. If it is one, a request that names no model means that one.
    #[must_use]
    pub fn listed(&self) -> &Listed {
        &self.listed
    }

    /// The model called `name`.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models.get(name)
    }

    /// Which workers may serve a request for `model`. A request that names no model may go to every worker.
    #[must_use]
    pub fn served_by(&self, model: Option<&str>) -> ServedBy<'_> {
        let members = match model {
            None => &self.everyone,
            Some(name) => self.models.get(name).map_or(&self.any, |model| &model.members),
        };
        // While no worker's models are known, no model can be said not to exist. Afterwards an unknown name is a mistake of
        // the client, unless the models of some worker are still being read.
        let too_early = self.everyone.is_empty() && !self.workers.is_empty();
        match members.as_slice() {
            [] if too_early => ServedBy::NotYetKnown,
            [] if self.unread.iter().any(|worker| worker.may_report_models()) => {
                ServedBy::NotYetKnown
            }
            [] => ServedBy::UnknownModel,
            members => ServedBy::Members(members),
        }
    }

    /// Counts the workers that serve right now.
    pub(super) fn count_ready(&self) -> usize {
        self.workers.iter().filter(|worker| worker.state() == WorkerState::Ready).count()
    }
}

/// Lets the workers that serve `model` serve `alias` too. A worker's own model called `alias` is not hidden by it.
fn add_alias(snapshot: &mut Snapshot, alias: &ModelId, model: &ModelId) {
    let known = snapshot.models.get(model);
    let members = known.map_or(&snapshot.any, |known| &known.members);
    if members.is_empty() || snapshot.models.contains_key(alias) {
        return;
    }
    let renamed = |member: &Member| Member {
        worker: Arc::clone(&member.worker),
        renamed: Some(member.renamed.clone().unwrap_or_else(|| model.clone())),
    };
    let members = members.iter().map(renamed).collect();
    let policy = known.and_then(|known| known.policy.clone());
    snapshot.models.insert(alias.clone(), Model { members, policy });
}

fn add(models: &mut HashMap<ModelId, Model>, id: &ModelId, member: Member) {
    let model = models.entry(id.clone()).or_default();
    if model.policy.is_none() {
        model.policy = member.worker.spec.labels.get("policy").cloned();
    }
    if model.members.last().is_none_or(|last| last.worker.id != member.worker.id) {
        model.members.push(member);
    }
}
