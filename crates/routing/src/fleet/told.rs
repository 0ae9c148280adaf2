//! What a cluster tells the fleet to be: which workers there are, and what operators say of them.
//!
//! Told worker by worker, as often as one likes: what is there already is left alone, and a whole batch makes one
//! snapshot. A worker that is told of again while it leaves stays.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use smg_types::ids::WorkerId;
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;

use super::worker::Worker;
use super::{Fleet, MAX_WORKERS, Models, Override, health};

/// A worker as the cluster has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// What it is.
    pub spec: WorkerSpec,
    /// An operator's verdict.
    pub verdict: Option<Override>,
    /// It takes no new requests.
    pub cordoned: bool,
}

impl Fleet {
    /// Makes the workers named what they are told to be; `None`: the worker leaves, as with [`Fleet::remove`]. Returns the
    /// workers that are new.
    pub fn tell(&self, told: BTreeMap<WorkerId, Option<Told>>, now: Now) -> Vec<WorkerId> {
        let mut new = Vec::new();
        let is_news = |(id, told): (&WorkerId, &Option<Told>)| {
            let snapshot = self.load();
            match (snapshot.worker(*id), told) {
                (None, None) => false,
                (Some(there), None) => there.leaves_by.is_none(),
                (None, Some(_)) => true,
                (Some(there), Some(told)) => !told.describes(there),
            }
        };
        if !told.iter().any(is_news) {
            return new;
        }
        let changed = self.change(|workers| {
            // New ones are pushed behind these, and none comes twice.
            let known = workers.len();
            for (id, told) in told {
                let at = workers[..known].binary_search_by_key(&id, |worker| worker.id).ok();
                let has_room = workers.len() < MAX_WORKERS;
                match (at.map(|at| &mut workers[at]), told) {
                    (Some(there), Some(told)) if !told.describes(there) => {
                        told.apply(Arc::make_mut(there));
                    }
                    (Some(there), None) if there.leaves_by.is_none() => {
                        let worker = Arc::make_mut(there);
                        worker.draining = true;
                        worker.leaves_by = Some(now.mono + self.config.drain_timeout);
                    }
                    (None, Some(told)) if has_room => {
                        let metrics = self.metrics.worker(id);
                        let spec = Arc::new(told.spec.clone());
                        let mut worker = Worker::new(spec, &self.config, metrics);
                        told.apply(&mut worker);
                        workers.push(Arc::new(worker));
                        new.push(id);
                    }
                    // Nothing new, or more than the fleet has room for: the cluster refuses such a worker before.
                    (Some(_) | None, Some(_) | None) => {}
                }
            }
            Ok::<(), Infallible>(())
        });
        changed.unwrap_or_else(|never| match never {});
        self.sweep(now);
        new
    }
}

impl Told {
    fn describes(&self, worker: &Worker) -> bool {
        worker.leaves_by.is_none()
            && worker.draining == self.cordoned
            && *worker.spec == self.spec
            && is_same(worker.verdict.as_ref(), self.verdict.as_ref())
    }

    fn apply(&self, worker: &mut Worker) {
        worker.leaves_by = None;
        worker.draining = self.cordoned;
        worker.verdict.clone_from(&self.verdict);
        if *worker.spec != self.spec {
            worker.respecify(self.spec.clone());
        }
    }
}

/// Whether two verdicts say the same. When one ends is computed from a calendar, which moves a little.
fn is_same(one: Option<&Override>, other: Option<&Override>) -> bool {
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
    /// Another spec for the same URL.
    pub(super) fn respecify(&mut self, spec: WorkerSpec) {
        self.models = match spec.models.as_slice() {
            // Still to be read, or read before and still true.
            [] if self.spec.models.is_empty() => self.models.clone(),
            [] => Models::Unknown,
            told => Models::Known(told.to_vec()),
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
    use crate::fleet::{Config, Metrics, Probe, State};

    const NOW: Now = Now::at(Duration::from_secs(1000));

    fn fleet() -> Fleet {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        Fleet::new(Config::default(), metrics)
    }

    fn told(name: &str) -> (WorkerId, Told) {
        let mut spec = WorkerSpec::new(format!("http://{name}").parse().unwrap());
        spec.models = vec!["m".into()];
        (spec.id(), Told { spec, verdict: None, cordoned: false })
    }

    fn tell(fleet: &Fleet, id: WorkerId, told: Option<Told>) -> Vec<WorkerId> {
        fleet.tell(BTreeMap::from([(id, told)]), NOW)
    }

    #[test]
    fn telling_twice_changes_nothing() {
        let fleet = fleet();
        let (id, a) = told("a");
        assert_eq!(tell(&fleet, id, Some(a.clone())), [id]);
        let version = fleet.load().version;
        assert!(tell(&fleet, id, Some(a)).is_empty());
        assert_eq!(fleet.load().version, version);
    }

    #[test]
    fn what_was_learnt_of_a_worker_survives_a_change_of_its_spec() {
        let fleet = fleet();
        let (id, mut a) = told("a");
        tell(&fleet, id, Some(a.clone()));
        fleet.report_probe(id, Probe::Good);
        a.cordoned = true;
        a.spec.priority = 7;
        tell(&fleet, id, Some(a.clone()));
        let worker = Arc::clone(fleet.load().worker(id).unwrap());
        assert_eq!((worker.state(), worker.spec.priority), (State::Draining, 7));
        a.cordoned = false;
        tell(&fleet, id, Some(a));
        assert_eq!(fleet.load().worker(id).unwrap().state(), State::Ready);
    }

    #[test]
    fn who_is_told_of_again_while_it_leaves_stays() {
        let fleet = fleet();
        let (id, a) = told("a");
        tell(&fleet, id, Some(a.clone()));
        fleet.report_probe(id, Probe::Good);
        let worker = Arc::clone(fleet.load().worker(id).unwrap());
        let in_flight = worker.begin(NOW, &fleet.config().breaker, false).unwrap();
        tell(&fleet, id, None);
        assert_eq!(fleet.load().worker(id).unwrap().state(), State::Draining);
        tell(&fleet, id, Some(a));
        assert_eq!(fleet.load().worker(id).unwrap().state(), State::Ready);
        tell(&fleet, id, None);
        drop(in_flight);
        fleet.sweep(NOW);
        assert!(fleet.load().worker(id).is_none());
    }
}
