//! What the fleet knows of the models that workers serve: what the workers list, and which models have lost their last worker.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;

use super::health::WorkerState;
use super::{Departure, Fleet, ModelObjects, Models, Round, Worker};

/// The answers of a worker to the questions what it serves and how it is configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Discovered {
    /// The models that the worker lists.
    pub models: Models,
    /// How the worker describes its models.
    pub objects: ModelObjects,
    /// The worker's description of itself as JSON; `None`: the worker has no endpoint for it, or was not asked.
    pub info: Option<serde_json::Value>,
}

impl Fleet {
    /// Stores what a worker says it serves. If its spec names models, they take precedence. Returns whether anything changed.
    pub fn report_discovered(&self, id: WorkerId, discovered: Discovered) -> bool {
        let Discovered { models, objects, info } = discovered;
        let info = info.map(Arc::new);
        if let Some(worker) = self.load().worker(id) {
            worker.note_model_objects(objects);
            worker.live().failed_discoveries.store(0, Ordering::Relaxed);
        }
        let differs = |worker: &Worker| {
            (worker.spec.models.is_empty() && worker.models != models)
                || info.as_ref().is_some_and(|info| worker.info.as_ref() != Some(info))
        };
        // Compared first without the lock, because most answers equal the last one.
        if !self.load().worker(id).is_some_and(|worker| differs(worker)) {
            return false;
        }
        self.update(id, |worker| {
            // The spec is read again under the lock, because it may have changed since the comparison above.
            if worker.spec.models.is_empty() {
                worker.models.clone_from(&models);
            }
            worker.info = info.clone().or_else(|| worker.info.take());
        })
    }

    /// Counts a failed attempt to ask a worker what it serves.
    pub fn report_failed_discovery(&self, id: WorkerId) {
        if let Some(worker) = self.load().worker(id) {
            worker.live().failed_discoveries.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Asks for the models of all workers to be read again, because a request named a model that none is known to serve.
    /// `None`: they were read too recently, or no worker can list other models than before.
    pub fn request_rediscovery(&self, now: Now) -> Option<Round> {
        let snapshot = self.load();
        if !snapshot.workers().iter().any(|worker| worker.may_list_others()) {
            return None;
        }
        self.rediscovery.request(now.mono)
    }

    /// Begins the round that was requested. Returns the workers to read; `None`: no round is wanted.
    pub fn begin_rediscovery(&self, now: Now) -> Option<Vec<WorkerId>> {
        if !self.rediscovery.begin(now.mono) {
            return None;
        }
        let snapshot = self.load();
        let asked = snapshot.workers().iter().filter(|worker| worker.may_list_others());
        Some(asked.map(|worker| worker.id).collect())
    }

    /// Ends the round that was begun.
    pub fn end_rediscovery(&self) {
        self.rediscovery.end();
    }

    /// Whether a round has ended.
    #[must_use]
    pub fn is_rediscovered(&self, round: Round) -> bool {
        self.rediscovery.has_ended(round)
    }

    /// Whether the last worker of the model was removed less than `Config::model_memory` ago, here or, as other routers
    /// report, elsewhere.
    #[must_use]
    pub fn has_departed(&self, model: &str, now: Now) -> bool {
        self.departed.has(model, now)
    }

    /// Takes what other routers have not been sent of the models that lost their last worker.
    pub fn take_departures(&self, now: Now) -> Vec<Departure> {
        self.departed.take_unpublished(now)
    }

    /// Notes what another router has noticed of a model that lost its last worker.
    pub fn apply_remote_departure(&self, model: &ModelId, remember: Option<Duration>, now: Now) {
        if !self.config.model_memory.is_zero() {
            self.departed.apply_remote(model, remember.map(|time| now.mono + time));
        }
    }
}

impl Worker {
    /// The objects by which the worker describes its models in its list of models.
    #[must_use]
    pub fn model_objects(&self) -> Arc<ModelObjects> {
        Arc::clone(&self.live().model_objects.lock())
    }

    /// Keeps how the worker describes its models.
    pub(super) fn note_model_objects(&self, objects: ModelObjects) {
        let mut kept = self.live().model_objects.lock();
        *kept = Arc::new(objects.replace(&kept));
    }

    /// Whether the worker may by now list other models than those that are known.
    fn may_list_others(&self) -> bool {
        self.spec.models.is_empty() && self.state() == WorkerState::Ready
    }
}
