//! A router of this project: its fleet, its policies, and what it exchanges with the others.

use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use smg_routing::fleet::{
    self, Fleet, InFlight, Load, Outcome, ProbeResult, RemoteView, TimeToFirstToken,
};
use smg_routing::policies::{self, Asked, Entry, Policies, PromptTokens};
use smg_routing::policy::{self, Hint, Kind, Measure};
use smg_routing::prefix::{self, BLOCK_BYTES, Evicted, Index};
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;

use crate::{BLOCK_TOKENS, Request, TOKEN_BYTES};

/// The clock of a router begins at a time that is not 0.
const BEGIN: Duration = Duration::from_secs(1000);

pub(crate) struct Router {
    number: usize,
    fleet: Fleet,
    policies: Policies,
    ids: Vec<WorkerId>,
    rng: StdRng,
    /// The loads that were published last, and when.
    published: Vec<(Load, Duration)>,
    /// The loads of the other routers by router and worker.
    others: Vec<Vec<Load>>,
}

/// A request that was sent to a worker.
pub(crate) struct Sent {
    in_flight: InFlight,
    worker: WorkerId,
    asked: Asked,
    entry: Arc<Entry>,
}

/// What a router publishes.
pub(crate) struct News {
    from: usize,
    loads: Vec<(usize, Load)>,
    prompts: Vec<(WorkerId, u64, Vec<u64>)>,
}

impl Sent {
    pub(crate) fn first_token(&mut self, now: Duration) -> Option<TimeToFirstToken> {
        self.in_flight.first_token(Now::at(BEGIN + now))
    }
}

impl Router {
    /// Router `number`, whose policy is `kind`, or `cache_aware` by `measure`.
    pub(crate) fn new(
        number: usize,
        workers: usize,
        (kind, measure): (Kind, Measure),
        in_cluster: bool,
        seed: u64,
    ) -> Self {
        let registry = Registry::new();
        let metrics = fleet::Metrics::register(&registry).expect("an empty registry");
        let fleet = Fleet::new(fleet::Config::default(), metrics);
        let ids = (0..workers)
            .map(|at| {
                let url = format!("http://worker-{at}:8000").parse().expect("a URL");
                let spec = WorkerSpec { models: vec![ModelId::from("m")], ..WorkerSpec::new(url) };
                let id = fleet.register(spec).expect("room for a worker");
                fleet.report_probe(id, ProbeResult::Good);
                id
            })
            .collect();
        let config = policy::Config {
            kind,
            cache_aware_by: measure,
            cache_threshold: match measure {
                Measure::Time => 0.0,
                Measure::Requests => 0.3,
            },
            agree_across_routers: in_cluster,
            ..policy::Config::default()
        };
        let index = Arc::new(Index::new(&prefix::Config::default()));
        let metrics = policies::Metrics::register(&registry).expect("an empty registry");
        let policies = Policies::new(config, index, metrics);
        if in_cluster {
            policies.memory().journal.open();
        }
        let rng = StdRng::seed_from_u64(seed + 1000 * number as u64);
        Self {
            number,
            fleet,
            policies,
            ids,
            rng,
            published: vec![Default::default(); workers],
            others: Vec::new(),
        }
    }

    /// Sends a request to the worker that the policy picks, or to the one that was `chosen`.
    pub(crate) fn send(
        &mut self,
        request: &Request,
        chosen: Option<usize>,
        now: Duration,
    ) -> (usize, Sent) {
        let now = Now::at(BEGIN + now);
        let snapshot = self.fleet.load();
        let table = self.policies.table(&snapshot);
        let entry = Arc::clone(table.entry(Some("m")));
        let blocks = blocks(request);
        let prompt_bytes = request.input_length as usize * TOKEN_BYTES;
        let hint = Hint { blocks: &blocks, prompt_bytes, ..Hint::default() };
        let worker = |id| snapshot.worker(id).expect("no worker leaves");
        let candidates: Vec<_> =
            self.ids.iter().map(|id| policies::candidate(worker(*id), 1, now)).collect();
        let mut pick =
            entry.policy.pick(&candidates, &hint, now, &mut self.rng).expect("there are workers");
        if let Some(chosen) = chosen {
            (pick.index, pick.recall) = (chosen, Default::default());
        }
        let id = self.ids[pick.index];
        let mut in_flight =
            worker(id).begin(now, &self.fleet.config().breaker, false).expect("it is not full");
        let tokens = pick.uncached_tokens(prompt_bytes, worker(id).tokens_per_byte());
        in_flight.send_prompt(tokens, true, now);
        entry.policy.sent(id, &hint, now);
        let asked = Asked { recall: pick.recall, blocks: blocks.len(), prompt_bytes };
        drop(table);
        (pick.index, Sent { in_flight, worker: id, asked, entry })
    }

    /// Learns from a complete answer.
    pub(crate) fn end(&mut self, sent: Sent, tokens: u32, cached: Option<u32>) {
        let Sent { in_flight, worker, asked, entry } = sent;
        let reported =
            cached.map(|cached| PromptTokens { all: tokens.into(), cached: Some(cached.into()) });
        if entry.learn(worker, asked, reported, &in_flight) == Evicted::All {
            self.fleet.mark_cold(worker);
        }
        let _mode = in_flight.end(Outcome::Success, Now::at(BEGIN), &self.fleet.config().breaker);
    }

    /// What the other routers should learn.
    pub(crate) fn publish(&mut self, now: Duration) -> Option<News> {
        let at = Now::at(BEGIN + now);
        let snapshot = self.fleet.load();
        let mut loads = Vec::new();
        for (number, id) in self.ids.iter().enumerate() {
            let worker = snapshot.worker(*id).expect("no worker leaves");
            let load = worker.local_view(at, &self.fleet.config().breaker).load;
            let (before, published_at) = self.published[number];
            if load.is_news(before, now.saturating_sub(published_at)) {
                self.published[number] = (load, now);
                loads.push((number, load));
            }
        }
        let batch = self.policies.memory().journal.take();
        let prompts: Vec<_> = batch
            .prompts()
            .map(|(prompt, blocks)| (prompt.worker, prompt.parent, blocks.to_vec()))
            .collect();
        let is_news = !loads.is_empty() || !prompts.is_empty();
        is_news.then_some(News { from: self.number, loads, prompts })
    }

    /// Learns what another router has published.
    pub(crate) fn apply(&mut self, news: &News, now: Duration) {
        if news.from == self.number {
            return;
        }
        let at = Now::at(BEGIN + now);
        self.others.resize_with(self.others.len().max(news.from + 1), || {
            vec![Load::default(); self.ids.len()]
        });
        for (worker, load) in &news.loads {
            self.others[news.from][*worker] = *load;
            let sum = self.others.iter().map(|router| router[*worker]);
            let load = sum.fold(Load::default(), |sum, load| Load {
                requests: sum.requests + load.requests,
                waiting_tokens: sum.waiting_tokens + load.waiting_tokens,
            });
            let view = RemoteView { load, ..RemoteView::default() };
            self.fleet.set_remote_view(self.ids[*worker], view, at);
        }
        for (worker, parent, blocks) in &news.prompts {
            self.policies.memory().index.insert_remote(*parent, blocks, *worker, at);
        }
    }
}

/// The hashes of a prompt's blocks. A block of the trace is several blocks of the router.
fn blocks(request: &Request) -> Vec<u64> {
    let per_id = BLOCK_TOKENS as usize * TOKEN_BYTES / BLOCK_BYTES;
    let count = request.input_length as usize * TOKEN_BYTES / BLOCK_BYTES;
    let ids = request.hash_ids.iter();
    // A multiplication by an odd number is a bijection: different blocks have different hashes.
    let hash = |id: &u64, part: usize| {
        (id * per_id as u64 + part as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    };
    ids.flat_map(|id| (0..per_id).map(move |part| hash(id, part))).take(count).collect()
}
