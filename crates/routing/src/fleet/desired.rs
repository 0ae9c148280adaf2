//! Reconciles the fleet with the workers that the cluster wants it to have.
//!
//! [`Fleet::reconcile`] takes the desired form of any number of workers and builds at most one new snapshot. Calling it twice
//! with the same workers changes nothing. A worker that is draining before its removal stays if the cluster wants it again.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use smg_types::ids::WorkerId;
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;

use super::worker::Worker;
use super::{Fleet, MAX_WORKERS, Models, Override, health};

/// A worker as the cluster wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredWorker {
    /// URL, models and settings.
    pub spec: WorkerSpec,
    /// The operator's override of the worker's health; `None`: probes and traffic decide.
    pub health_override: Option<Override>,
    /// The worker takes no new requests.
    pub cordoned: bool,
    /// The number of the worker's registration by an administrator; `None`: a configuration registered it. With another
    /// number the worker was removed and registered again, also if this router has not seen the removal.
    pub registration: Option<u16>,
}

/// What [`Fleet::reconcile`] has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// The workers that were added.
    pub added: Vec<WorkerId>,
    /// The workers that were removed and registered again before this router removed them. Their caches count as lost.
    pub registered_again: Vec<WorkerId>,
}

impl Fleet {
    /// Gives each named worker its desired form: adds it, changes it, or, for `None`, removes it as [`Fleet::remove`] does.
    /// Workers that are not named stay as they are.
    pub fn reconcile(
        &self,
        desired: BTreeMap<WorkerId, Option<DesiredWorker>>,
        now: Now,
    ) -> Reconciled {
        let mut reconciled = Reconciled::default();
        let differs = |(id, desired): (&WorkerId, &Option<DesiredWorker>)| {
            let snapshot = self.load();
            match (snapshot.worker(*id), desired) {
                (None, None) => false,
                (Some(there), None) => there.drain_deadline.is_none(),
                (None, Some(_)) => true,
                (Some(there), Some(desired)) => !desired.matches(there),
            }
        };
        if !desired.iter().any(differs) {
            return reconciled;
        }
        let changed = self.change(|workers| {
            // New workers are appended after `known`, and a map names no worker twice: so the search may stop there.
            let known = workers.len();
            for (id, desired) in desired {
                let at = workers[..known].binary_search_by_key(&id, |worker| worker.id).ok();
                let has_room = workers.len() < MAX_WORKERS;
                match (at.map(|at| &mut workers[at]), desired) {
                    (Some(there), Some(desired)) if !desired.matches(there) => {
                        let worker = Arc::make_mut(there);
                        if worker.registration != desired.registration {
                            worker.cache_epoch = self.next_epoch();
                            reconciled.registered_again.push(id);
                        }
                        desired.apply(worker);
                    }
                    (Some(there), None) if there.drain_deadline.is_none() => {
                        let worker = Arc::make_mut(there);
                        worker.draining = true;
                        worker.drain_deadline = Some(now.mono + self.config.drain_timeout);
                        worker.cache_epoch = self.next_epoch();
                    }
                    (None, Some(desired)) if has_room => {
                        let metrics = self.metrics.worker(id);
                        let spec = Arc::new(desired.spec.clone());
                        let epoch = self.next_epoch();
                        let mut worker = Worker::new(spec, epoch, &self.config, metrics);
                        desired.apply(&mut worker);
                        workers.push(Arc::new(worker));
                        reconciled.added.push(id);
                    }
                    // The worker already has its form, or the fleet is full: a worker that does not fit is not routed to.
                    (Some(_) | None, Some(_) | None) => {}
                }
            }
            Ok::<(), Infallible>(())
        });
        changed.unwrap_or_else(|never| match never {});
        self.sweep(now);
        reconciled
    }
}

impl DesiredWorker {
    fn matches(&self, worker: &Worker) -> bool {
        worker.drain_deadline.is_none()
            && worker.draining == self.cordoned
            && worker.registration == self.registration
            && *worker.spec == self.spec
            && is_same_override(worker.health_override.as_ref(), self.health_override.as_ref())
    }

    fn apply(&self, worker: &mut Worker) {
        worker.drain_deadline = None;
        worker.draining = self.cordoned;
        worker.registration = self.registration;
        worker.health_override.clone_from(&self.health_override);
        if *worker.spec != self.spec {
            worker.respecify(self.spec.clone());
        }
    }
}

/// Whether two overrides are equal. Their ends may differ by less than 500 ms, because each is computed from the wall clock.
fn is_same_override(one: Option<&Override>, other: Option<&Override>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => {
            let ends = match (one.until, other.until) {
                (None, None) => true,
                (Some(one), Some(other)) => one.abs_diff(other).as_millis() < 500,
                (Some(_), None) | (None, Some(_)) => false,
            };
            ends && one.healthy == other.healthy && one.reason == other.reason
        }
        (Some(_), None) | (None, Some(_)) => false,
    }
}

impl Worker {
    /// Replaces the spec by another one for the same URL.
    pub(super) fn respecify(&mut self, spec: WorkerSpec) {
        self.models = match spec.models.as_slice() {
            // The models come from the worker itself; the last answer, if there is one, stays valid.
            [] if self.spec.models.is_empty() => self.models.clone(),
            [] => Models::Unknown,
            models => Models::Known(models.to_vec()),
        };
        if spec.health.disabled {
            self.live().with_health(health::Health::assume_good);
        }
        self.spec = Arc::new(spec);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fleet::{Config, Metrics, ProbeResult, WorkerState};

    const NOW: Now = Now::at(Duration::from_secs(1000));

    fn fleet() -> Fleet {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        Fleet::new(Config::default(), metrics)
    }

    fn desired(name: &str) -> (WorkerId, DesiredWorker) {
        let mut spec = WorkerSpec::new(format!("http://{name}").parse().unwrap());
        spec.models = vec!["m".into()];
        let registration = Some(1);
        (spec.id(), DesiredWorker { spec, health_override: None, cordoned: false, registration })
    }

    fn reconcile(fleet: &Fleet, id: WorkerId, desired: Option<DesiredWorker>) -> Vec<WorkerId> {
        fleet.reconcile(BTreeMap::from([(id, desired)]), NOW).added
    }

    fn epoch(fleet: &Fleet, id: WorkerId) -> u32 {
        fleet.load().worker(id).unwrap().cache_epoch
    }

    #[test]
    fn each_registration_of_a_worker_has_a_cache_epoch_of_its_own() {
        let fleet = fleet();
        let (id, mut a) = desired("a");
        reconcile(&fleet, id, Some(a.clone()));
        let mut epochs = vec![epoch(&fleet, id)];
        // Removed and registered again, seen as two changes.
        reconcile(&fleet, id, None);
        reconcile(&fleet, id, Some(a.clone()));
        epochs.push(epoch(&fleet, id));
        // Seen as one change.
        a.registration = Some(2);
        let reconciled = fleet.reconcile(BTreeMap::from([(id, Some(a.clone()))]), NOW);
        assert_eq!(reconciled, Reconciled { added: vec![], registered_again: vec![id] });
        epochs.push(epoch(&fleet, id));
        // While it finished a request.
        let worker = Arc::clone(fleet.load().worker(id).unwrap());
        fleet.report_probe(id, ProbeResult::Good);
        let in_flight = worker.begin(NOW, &fleet.config().breaker, false);
        reconcile(&fleet, id, None);
        reconcile(&fleet, id, Some(a.clone()));
        drop(in_flight);
        epochs.push(epoch(&fleet, id));
        epochs.dedup();
        assert_eq!(epochs.len(), 4, "{epochs:?}");
        // A change of the spec is no registration.
        a.spec.priority = 3;
        reconcile(&fleet, id, Some(a));
        assert_eq!(epoch(&fleet, id), epochs[3]);
    }

    #[test]
    fn reconciling_twice_changes_nothing() {
        let fleet = fleet();
        let (id, a) = desired("a");
        assert_eq!(reconcile(&fleet, id, Some(a.clone())), [id]);
        let version = fleet.load().version;
        assert!(reconcile(&fleet, id, Some(a)).is_empty());
        assert_eq!(fleet.load().version, version);
    }

    #[test]
    fn health_survives_a_change_of_the_spec() {
        let fleet = fleet();
        let (id, mut a) = desired("a");
        reconcile(&fleet, id, Some(a.clone()));
        fleet.report_probe(id, ProbeResult::Good);
        a.cordoned = true;
        a.spec.priority = 7;
        reconcile(&fleet, id, Some(a.clone()));
        let worker = Arc::clone(fleet.load().worker(id).unwrap());
        assert_eq!((worker.state(), worker.spec.priority), (WorkerState::Draining, 7));
        a.cordoned = false;
        reconcile(&fleet, id, Some(a));
        assert_eq!(fleet.load().worker(id).unwrap().state(), WorkerState::Ready);
    }

    #[test]
    fn a_draining_worker_that_is_wanted_again_stays() {
        let fleet = fleet();
        let (id, a) = desired("a");
        reconcile(&fleet, id, Some(a.clone()));
        fleet.report_probe(id, ProbeResult::Good);
        let worker = Arc::clone(fleet.load().worker(id).unwrap());
        let in_flight = worker.begin(NOW, &fleet.config().breaker, false).unwrap();
        reconcile(&fleet, id, None);
        assert_eq!(fleet.load().worker(id).unwrap().state(), WorkerState::Draining);
        reconcile(&fleet, id, Some(a));
        assert_eq!(fleet.load().worker(id).unwrap().state(), WorkerState::Ready);
        reconcile(&fleet, id, None);
        drop(in_flight);
        fleet.sweep(NOW);
        assert!(fleet.load().worker(id).is_none());
    }
}
