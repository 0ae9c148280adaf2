//! The models that were served until their last worker was removed.
//!
//! A request for such a model is answered as one for a model that has no worker at present, not as one for an unknown
//! name. A name is forgotten after `Config::model_memory`, and as soon as a worker serves it again: a model that a worker
//! of the fleet then stops listing was unloaded, and the worker itself says that it is unknown. In a cluster the routers
//! share these names, because a router that joins later has never seen the worker.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use smg_types::ids::ModelId;
use smg_types::now::Now;

use super::snapshot::Snapshot;

/// Most names that are remembered. Beyond it the one that would end first is forgotten.
const MAX_DEPARTED: usize = 2_048;

/// A change of the names that this router has noticed, for the other routers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure {
    /// The model.
    pub model: ModelId,
    /// How long the name is remembered; `None`: a worker serves the model again.
    pub remember: Option<Duration>,
}

/// The names that are remembered.
#[derive(Debug, Default)]
pub(super) struct Departed(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    /// When each name is forgotten, as `Now::mono`.
    until: BTreeMap<ModelId, Duration>,
    /// Changes that no other router has been sent.
    unpublished: BTreeMap<ModelId, Option<Duration>>,
}

impl Departed {
    /// Forgets the names that some worker serves in `after` and none in `before`, the snapshot that it replaces.
    pub(super) fn forget_returned(&self, before: &Snapshot, after: &Snapshot) {
        let mut names = self.0.lock();
        let is_back = |name: &ModelId| {
            before.model(name.as_str()).is_none() && after.model(name.as_str()).is_some()
        };
        let returned: Vec<_> = names.until.keys().filter(|name| is_back(name)).cloned().collect();
        for model in returned {
            names.until.remove(&model);
            names.publish(model, None);
        }
    }

    /// Remembers the names that workers served in `before` and that none serves in `after`, from which workers were removed.
    pub(super) fn remember_left(&self, before: &Snapshot, after: &Snapshot, until: Duration) {
        let mut names = self.0.lock();
        let left = before.models().filter(|(name, _)| after.model(name.as_str()).is_none());
        for (model, _) in left {
            names.remember(model, until);
            names.publish(model.clone(), Some(until));
        }
    }

    /// Notes what another router has noticed. `until` is `Now::mono`.
    pub(super) fn apply_remote(&self, model: &ModelId, until: Option<Duration>) {
        let mut names = self.0.lock();
        match until {
            Some(until) => names.remember(model, until),
            None => drop(names.until.remove(model)),
        }
    }

    /// Whether the name is remembered.
    pub(super) fn has(&self, model: &str, now: Now) -> bool {
        self.0.lock().until.get(model).is_some_and(|until| *until > now.mono)
    }

    /// Takes the changes that no other router has been sent.
    pub(super) fn take_unpublished(&self, now: Now) -> Vec<Departure> {
        let unpublished = std::mem::take(&mut self.0.lock().unpublished);
        let departure = |(model, until): (ModelId, Option<Duration>)| Departure {
            model,
            remember: until.map(|until| until.saturating_sub(now.mono)),
        };
        unpublished.into_iter().map(departure).collect()
    }
}

impl Names {
    fn remember(&mut self, model: &ModelId, until: Duration) {
        let known = self.until.entry(model.clone()).or_default();
        *known = until.max(*known);
        if self.until.len() > MAX_DEPARTED {
            let first = self.until.iter().min_by_key(|(_, until)| **until);
            if let Some(model) = first.map(|(model, _)| model.clone()) {
                self.until.remove(&model);
            }
        }
    }

    fn publish(&mut self, model: ModelId, until: Option<Duration>) {
        if self.unpublished.len() < MAX_DEPARTED || self.unpublished.contains_key(&model) {
            self.unpublished.insert(model, until);
        }
    }
}
