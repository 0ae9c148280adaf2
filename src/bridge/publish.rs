//! From this router to the cluster: publishes what it observes of each worker, how many requests it has in flight there,
//! what its policies have learnt, and how many requests it has served, each when it has changed enough to matter.

use std::collections::HashMap;
use std::time::Duration;

use smg_cluster::Node;
use smg_cluster::state::Write;
use smg_cluster::state::departure::{self, DepartureWrite};
use smg_cluster::state::load::{Load, LoadWrite};
use smg_cluster::state::observation::{Observation, ObservationWrite};
use smg_cluster::state::session::{self, SessionKey, SessionWrite};
use smg_cluster::state::totals::{Outcome, TotalWrite};
use smg_mesh as mesh;
use smg_routing::fleet::{self, Snapshot};
use smg_routing::policies::Endings;
use smg_routing::policy::journal::JournalBatch;
use smg_types::ids::{ModelId, NodeId, WorkerId};
use smg_types::now::Now;

use super::{Bridge, Metrics, health};

/// Time between two publications of the counts of requests. A latency is published at most every five of these.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// What this router last published of a worker.
#[derive(Debug, Default)]
struct Published {
    seen: Option<Observation>,
    seen_at: Duration,
    load: fleet::Load,
    load_at: Duration,
}

/// Compares what this router sees with what it last published, and publishes the difference.
#[derive(Debug)]
pub(super) struct Publisher {
    bridge: Bridge,
    mesh: mesh::Handle,
    metrics: Metrics,
    /// The generation under which `workers` and `totals` were published.
    me: Option<NodeId>,
    workers: HashMap<WorkerId, Published>,
    totals: HashMap<(ModelId, Outcome), u64>,
    /// Counts that were published under earlier generations of this process: a new writer begins at zero.
    bases: HashMap<(ModelId, Outcome), u64>,
    totals_at: Duration,
}

impl Publisher {
    pub(super) fn new(bridge: &Bridge, mesh: mesh::Handle, metrics: Metrics) -> Self {
        Self {
            bridge: bridge.clone(),
            mesh,
            metrics,
            me: None,
            workers: HashMap::new(),
            totals: HashMap::new(),
            bases: HashMap::new(),
            totals_at: Duration::ZERO,
        }
    }

    /// Publishes what has changed. Returns whether anything had.
    pub(super) async fn publish_changes(&mut self) -> bool {
        let now = self.bridge.clock.now();
        self.follow_generation();
        let snapshot = self.bridge.fleet.snapshot();
        let mut writes = self.observations(&snapshot, now);
        writes.extend(self.departures(now));
        let pages = self.bridge.policies.memory().journal.take();
        let counting = now.mono.saturating_sub(self.totals_at) >= COUNT_INTERVAL;
        let mut models = Vec::new();
        if counting {
            self.totals_at = now.mono;
            writes.extend(self.count());
            models = snapshot.models().map(|(model, _)| model.clone()).collect();
        }
        let has_changes = !writes.is_empty() || !pages.is_empty();
        if !has_changes && !counting {
            return false;
        }
        let dropped = self.bridge.policies.memory().journal.dropped();
        let ttl = self.bridge.policies.memory().session_ttl().min(session::MAX_TTL);
        let visit = self.mesh.visit(move |node, _, now| {
            write_all(node, now, writes, &pages, ttl);
            let totals: Vec<_> = models.into_iter().map(|model| total(node, model)).collect();
            let hints = node.state().prefixes();
            counting.then(|| (totals, hints.len(), hints.dropped()))
        });
        match visit.await {
            Ok(Some((totals, hints, unpublished))) => {
                totals.iter().for_each(|(model, counts)| self.metrics.show(model, counts));
                self.metrics.show_hints(hints, unpublished + dropped);
            }
            Ok(None) => {}
            // The node does not answer: publish all of it again when it does.
            Err(_) => self.forget_published(),
        }
        has_changes
    }

    /// Starts from nothing published if this router goes on under a new generation.
    fn follow_generation(&mut self) {
        let me = self.mesh.view().me.node.clone();
        if self.me.as_ref() != Some(&me) {
            self.me = Some(me);
            for (key, count) in self.totals.drain() {
                *self.bases.entry(key).or_default() += count;
            }
            self.workers.clear();
        }
    }

    fn forget_published(&mut self) {
        self.workers.clear();
        // A count holds everything since the start, so that publishing it again is complete.
        self.totals.values_mut().for_each(|published| *published = 0);
    }

    fn observations(&mut self, snapshot: &Snapshot, now: Now) -> Vec<Write> {
        let mut writes = Vec::new();
        let breaker = &self.bridge.fleet.config().breaker;
        for worker in snapshot.workers() {
            let published = self.workers.entry(worker.id).or_default();
            let seen = worker.local_view(now, breaker);
            if seen.load.is_news(published.load, now.mono.saturating_sub(published.load_at)) {
                published.load = seen.load;
                published.load_at = now.mono;
                let fleet::Load { requests, waiting_tokens } = seen.load;
                let load =
                    (requests > 0).then_some(Load { requests, tokens: waiting_tokens.into() });
                writes.push(LoadWrite { worker: worker.id, load }.into());
            }
            let observation = health::observation(&seen, now);
            if observation_changed(published, &observation, now.mono) {
                published.seen = Some(observation);
                published.seen_at = now.mono;
                writes.push(ObservationWrite { worker: worker.id, seen: Some(observation) }.into());
            }
        }
        self.workers.retain(|id, published| {
            let stays = snapshot.worker(*id).is_some();
            if !stays {
                if published.seen.is_some() {
                    writes.push(ObservationWrite { worker: *id, seen: None }.into());
                }
                if published.load.requests > 0 {
                    writes.push(LoadWrite { worker: *id, load: None }.into());
                }
            }
            stays
        });
        writes
    }

    /// The models that have lost their last worker, and those that have one again.
    fn departures(&self, now: Now) -> impl Iterator<Item = Write> + use<> {
        self.bridge.fleet.take_departures(now).into_iter().map(|departure| {
            let remember = departure.remember.map(|time| time.min(departure::MAX_MEMORY));
            DepartureWrite { model: departure.model, remember }.into()
        })
    }

    fn count(&mut self) -> Vec<Write> {
        let mut writes = Vec::new();
        for (model, endings) in self.bridge.policies.endings() {
            let Endings { complete, failed, client_left } = endings;
            for (outcome, count) in [
                (Outcome::Ok, complete),
                (Outcome::ServerError, failed),
                (Outcome::Cancelled, client_left),
            ] {
                let key = (model.clone(), outcome);
                let count = count.saturating_sub(self.bases.get(&key).copied().unwrap_or(0));
                let published = self.totals.entry(key).or_default();
                if *published < count {
                    *published = count;
                    writes.push(TotalWrite { model: model.clone(), outcome, count }.into());
                }
            }
        }
        writes
    }
}

fn write_all(node: &mut Node, now: Now, writes: Vec<Write>, pages: &JournalBatch, ttl: Duration) {
    for (prompt, blocks) in pages.prompts() {
        node.served(now, prompt.worker, prompt.parent, blocks);
    }
    let sessions = pages.sessions.iter().map(|bound| {
        let (key, worker) = (SessionKey(bound.key), bound.worker);
        let write = if bound.moved {
            SessionWrite::Rebind { key, worker, ttl }
        } else {
            SessionWrite::Use { key, worker, ttl }
        };
        Write::from(write)
    });
    for write in writes.into_iter().chain(sessions) {
        if let Err(error) = node.update(now, write) {
            tracing::debug!(%error, "the cluster does not take an observation");
        }
    }
}

/// The requests of a model by outcome, summed over all routers.
fn total(node: &Node, model: ModelId) -> (ModelId, [(&'static str, u64); 3]) {
    let counts = [
        ("complete", Outcome::Ok),
        ("failed", Outcome::ServerError),
        ("client_left", Outcome::Cancelled),
    ];
    let counts = counts.map(|(name, outcome)| (name, node.state().total(&model, outcome)));
    (model, counts)
}

/// Whether to publish an observation: at once if health, breaker or restarts differ, later if only the latency has moved by a
/// quarter.
fn observation_changed(published: &Published, seen: &Observation, now: Duration) -> bool {
    let Some(before) = published.seen else { return true };
    let judged = |o: &Observation| (o.health, o.breaker, o.restarts);
    let moved = before.latency_us.abs_diff(seen.latency_us) > before.latency_us / 4;
    judged(&before) != judged(seen)
        || (moved && now.saturating_sub(published.seen_at) >= 5 * COUNT_INTERVAL)
}

#[cfg(test)]
mod tests {
    use smg_cluster::state::observation::{SeenBreaker, SeenHealth};

    use super::*;

    fn seen() -> Observation {
        Observation {
            health: SeenHealth::Healthy,
            breaker: SeenBreaker::Closed,
            latency_us: 1000,
            restarts: 0,
            seen_ms: 5,
        }
    }

    #[test]
    fn a_judgement_is_said_at_once_and_a_latency_seldom() {
        let published = Published { seen: Some(seen()), ..Published::default() };
        let at = Duration::from_millis(10);
        assert!(observation_changed(&Published::default(), &seen(), at));
        assert!(!observation_changed(&published, &Observation { seen_ms: 99, ..seen() }, at));
        assert!(observation_changed(
            &published,
            &Observation { breaker: SeenBreaker::Open, ..seen() },
            at
        ));
        assert!(observation_changed(&published, &Observation { restarts: 1, ..seen() }, at));
        let slower = Observation { latency_us: 1300, ..seen() };
        assert!(!observation_changed(&published, &slower, at));
        assert!(observation_changed(&published, &slower, 5 * COUNT_INTERVAL));
        assert!(!observation_changed(
            &published,
            &Observation { latency_us: 1200, ..seen() },
            5 * COUNT_INTERVAL
        ));
    }
}
