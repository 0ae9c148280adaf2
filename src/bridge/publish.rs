//! From this router to the cluster: what it sees of each worker, what it has in flight there, what its policies have
//! learnt, and how many requests it has served. Said when it has changed enough to matter.

use std::collections::HashMap;
use std::time::Duration;

use smg_cluster::Node;
use smg_cluster::state::Write;
use smg_cluster::state::load::{Load, LoadWrite};
use smg_cluster::state::observation::{Observation, ObservationWrite, SeenBreaker, SeenHealth};
use smg_cluster::state::session::{self, SessionKey, SessionWrite};
use smg_cluster::state::totals::{Outcome, TotalWrite};
use smg_mesh as mesh;
use smg_proxy::dispatch::Endings;
use smg_routing::fleet::{Mode, Seen, Snapshot};
use smg_routing::policy::journal::Pages;
use smg_types::ids::{ModelId, NodeId, WorkerId};
use smg_types::now::Now;

use super::{Bridge, Metrics};

/// Between two words about requests served, and about latencies.
const SELDOM: Duration = Duration::from_secs(1);

/// Between two words about a load that has changed by one.
const LOAD_PAUSE: Duration = Duration::from_millis(100);

/// What was last said of a worker.
#[derive(Debug, Default)]
struct Said {
    seen: Option<Observation>,
    seen_at: Duration,
    load: u32,
    load_at: Duration,
}

/// What was last said.
#[derive(Debug)]
pub(super) struct Publisher {
    bridge: Bridge,
    mesh: mesh::Handle,
    metrics: Metrics,
    /// As whom.
    me: Option<NodeId>,
    workers: HashMap<WorkerId, Said>,
    totals: HashMap<(ModelId, Outcome), u64>,
    /// Counts that were said in earlier lives of this process: a new writer begins at zero.
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

    /// Says what has changed; whether anything had.
    pub(super) async fn look(&mut self) -> bool {
        let now = self.bridge.clock.now();
        self.follow_life();
        let snapshot = self.bridge.fleet.snapshot();
        let mut writes = self.observations(&snapshot, now);
        let pages = self.bridge.dispatch.policies.memory().journal.read();
        let counting = now.mono.saturating_sub(self.totals_at) >= SELDOM;
        let mut models = Vec::new();
        if counting {
            self.totals_at = now.mono;
            writes.extend(self.count());
            models = snapshot.models().map(|(model, _)| model.clone()).collect();
        }
        let is_news = !writes.is_empty() || !pages.is_empty();
        if !is_news && !counting {
            return false;
        }
        let dropped = self.bridge.dispatch.policies.memory().journal.dropped();
        let ttl = self.bridge.dispatch.policies.memory().session_ttl().min(session::MAX_TTL);
        let told = self.mesh.visit(move |node, _, now| {
            tell(node, now, writes, &pages, ttl);
            let totals: Vec<_> = models.into_iter().map(|model| total(node, model)).collect();
            let hints = node.state().prefixes();
            counting.then(|| (totals, hints.len(), hints.dropped()))
        });
        match told.await {
            Ok(Some((totals, hints, untold))) => {
                totals.iter().for_each(|(model, counts)| self.metrics.show(model, counts));
                self.metrics.show_hints(hints, untold + dropped);
            }
            Ok(None) => {}
            // The node does not answer: all of it is said again when it does.
            Err(_) => self.forget(),
        }
        is_news
    }

    /// A new life of this router has said nothing yet.
    fn follow_life(&mut self) {
        let me = self.mesh.view().me.node.clone();
        if self.me.as_ref() != Some(&me) {
            self.me = Some(me);
            for (key, count) in self.totals.drain() {
                *self.bases.entry(key).or_default() += count;
            }
            self.workers.clear();
        }
    }

    fn forget(&mut self) {
        self.workers.clear();
        // A count says all since the start: it is complete whenever it is said next.
        self.totals.values_mut().for_each(|said| *said = 0);
    }

    fn observations(&mut self, snapshot: &Snapshot, now: Now) -> Vec<Write> {
        let mut writes = Vec::new();
        let breaker = &self.bridge.fleet.config().breaker;
        for worker in snapshot.workers() {
            let said = self.workers.entry(worker.id).or_default();
            let seen = worker.seen(now, breaker);
            if is_load_news(said, seen.in_flight, now.mono) {
                said.load = seen.in_flight;
                said.load_at = now.mono;
                let load = Load { requests: seen.in_flight, tokens: 0 };
                let load = (seen.in_flight > 0).then_some(load);
                writes.push(LoadWrite { worker: worker.id, load }.into());
            }
            let observation = observation(&seen, now);
            if is_news(said, &observation, now.mono) {
                said.seen = Some(observation);
                said.seen_at = now.mono;
                writes.push(ObservationWrite { worker: worker.id, seen: Some(observation) }.into());
            }
        }
        self.workers.retain(|id, said| {
            let stays = snapshot.worker(*id).is_some();
            if !stays {
                if said.seen.is_some() {
                    writes.push(ObservationWrite { worker: *id, seen: None }.into());
                }
                if said.load > 0 {
                    writes.push(LoadWrite { worker: *id, load: None }.into());
                }
            }
            stays
        });
        writes
    }

    fn count(&mut self) -> Vec<Write> {
        let mut writes = Vec::new();
        for (model, endings) in self.bridge.dispatch.policies.endings() {
            let Endings { complete, failed, client_left } = endings;
            for (outcome, count) in [
                (Outcome::Ok, complete),
                (Outcome::ServerError, failed),
                (Outcome::Cancelled, client_left),
            ] {
                let key = (model.clone(), outcome);
                let count = count.saturating_sub(self.bases.get(&key).copied().unwrap_or(0));
                let said = self.totals.entry(key).or_default();
                if *said < count {
                    *said = count;
                    writes.push(TotalWrite { model: model.clone(), outcome, count }.into());
                }
            }
        }
        writes
    }
}

fn tell(node: &mut Node, now: Now, writes: Vec<Write>, pages: &Pages, ttl: Duration) {
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

/// All requests of a model, over all routers.
fn total(node: &Node, model: ModelId) -> (ModelId, [(&'static str, u64); 3]) {
    let counts = [
        ("complete", Outcome::Ok),
        ("failed", Outcome::ServerError),
        ("client_left", Outcome::Cancelled),
    ];
    let counts = counts.map(|(name, outcome)| (name, node.state().total(&model, outcome)));
    (model, counts)
}

pub(super) fn observation(seen: &Seen, now: Now) -> Observation {
    Observation {
        health: match seen.health {
            None => SeenHealth::Unknown,
            Some(true) => SeenHealth::Healthy,
            Some(false) => SeenHealth::Unhealthy,
        },
        breaker: match seen.breaker {
            Mode::Closed if seen.serving => SeenBreaker::Serving,
            Mode::Closed => SeenBreaker::Closed,
            Mode::HalfOpen => SeenBreaker::HalfOpen,
            Mode::Open => SeenBreaker::Open,
        },
        latency_us: seen
            .latency
            .map_or(0, |latency| u32::try_from(latency.as_micros()).unwrap_or(u32::MAX)),
        restarts: seen.colds,
        seen_ms: u64::try_from(now.wall.as_millis()).unwrap_or(u64::MAX),
    }
}

/// Whether what is seen of a worker is worth saying: a judgement at once, a latency when it has moved by a quarter.
fn is_news(said: &Said, seen: &Observation, now: Duration) -> bool {
    let Some(before) = said.seen else { return true };
    let judged = |o: &Observation| (o.health, o.breaker, o.restarts);
    let moved = before.latency_us.abs_diff(seen.latency_us) > before.latency_us / 4;
    judged(&before) != judged(seen) || (moved && now.saturating_sub(said.seen_at) >= 5 * SELDOM)
}

/// Whether a load is worth saying: at once when it has changed by a tenth and more than one, else after a pause.
fn is_load_news(said: &Said, load: u32, now: Duration) -> bool {
    let change = said.load.abs_diff(load);
    change > 0
        && ((change > 1 && change * 10 > said.load)
            || now.saturating_sub(said.load_at) >= LOAD_PAUSE)
}

#[cfg(test)]
mod tests {
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
        let said = Said { seen: Some(seen()), ..Said::default() };
        let at = Duration::from_millis(10);
        assert!(is_news(&Said::default(), &seen(), at));
        assert!(!is_news(&said, &Observation { seen_ms: 99, ..seen() }, at));
        assert!(is_news(&said, &Observation { breaker: SeenBreaker::Open, ..seen() }, at));
        assert!(is_news(&said, &Observation { restarts: 1, ..seen() }, at));
        let slower = Observation { latency_us: 1300, ..seen() };
        assert!(!is_news(&said, &slower, at));
        assert!(is_news(&said, &slower, 5 * SELDOM));
        assert!(!is_news(&said, &Observation { latency_us: 1200, ..seen() }, 5 * SELDOM));
    }

    #[test]
    fn a_burst_is_said_at_once_and_a_wobble_ten_times_a_second() {
        let said = Said { load: 10, ..Said::default() };
        let soon = Duration::from_millis(25);
        assert!(!is_load_news(&said, 10, LOAD_PAUSE));
        assert!(!is_load_news(&said, 11, soon));
        assert!(is_load_news(&said, 11, LOAD_PAUSE));
        assert!(is_load_news(&said, 12, soon));
        assert!(is_load_news(&Said::default(), 2, soon));
    }
}
