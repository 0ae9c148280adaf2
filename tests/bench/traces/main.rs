//! Plays a trace of requests in virtual time through the production policy, index and load code, and prints what each rule gives.
//!
//!     cargo bench-traces TRACE [--workers 8] [--routers 1] [--blocks 2000] [--prefill 8000] [--speeds 1,0.5] [--rate 1]
//!                              [--rules time,requests,...] [--limit N] [--seed 1] [--no-usage] [--as-recorded]
//!
//! The trace has one JSON object per line: `timestamp` (milliseconds), `input_length` and `output_length` (tokens), and `hash_ids`,
//! one per 512 tokens, each naming a block together with all blocks before it (the format of the Mooncake traces). Those traces round
//! their timestamps to three seconds. Requests with equal timestamps are therefore spread evenly over the time to the next timestamp,
//! unless `--as-recorded` is given: then some ten requests arrive in the same instant, and no router can know what the others do with
//! theirs.
//!
//! A worker is modelled as in `routesim.py` of the field notes: it computes one prompt after the other at a fixed rate, holds an LRU
//! cache of `--blocks` blocks of 512 tokens, and generates the tokens of its running requests side by side, more slowly the more there
//! are. It reports its cached tokens at the end of an answer. `--routers 3` gives each request to one of three routers at random;
//! they exchange loads and prompts as the mesh does, 25 ms apart and 5 ms late.
//!
//! Rules: `time` and `requests` are this router's `cache_aware`, by `--cache-aware-by`. `round_robin` and `least_load` are its
//! policies of that name. `sglang` and `dynamo` are written down here from those projects' documentation, as a yardstick: the first
//! follows a match above 0.3 unless loads are far apart; the second minimises prefill blocks to do plus active blocks. Both see the
//! load of all workers without delay.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the figures are its output")]

mod peers;
mod router;
#[path = "../trace_file.rs"]
mod trace_file;
mod workers;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use smg_routing::policy::{Kind, Measure};

use peers::Peer;
use router::{Router, Sent};
use trace_file::Request;
use workers::Worker;

/// Bytes of a token in the prompts that the routers see.
const TOKEN_BYTES: usize = 4;
/// Tokens of a block of the trace.
const BLOCK_TOKENS: u32 = 512;
/// Time between two looks of a router for what to publish.
const PUBLISH_EVERY: Duration = Duration::from_millis(25);
/// Time from publishing to the other routers.
const NETWORK_DELAY: Duration = Duration::from_millis(5);

/// The settings of a run.
#[derive(Debug, Clone)]
struct Settings {
    trace: PathBuf,
    workers: usize,
    routers: usize,
    blocks: usize,
    prefill: f64,
    speeds: Vec<f64>,
    rate: f64,
    rules: Vec<Rule>,
    limit: usize,
    seed: u64,
    /// Whether workers report cached tokens.
    usage: bool,
    /// Whether requests with equal timestamps arrive at once.
    as_recorded: bool,
}

/// A rule to play.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Policy(Kind, Measure),
    Sglang,
    Dynamo,
}

impl Rule {
    const ALL: [(&'static str, Self); 6] = [
        ("round_robin", Self::Policy(Kind::RoundRobin, Measure::Time)),
        ("least_load", Self::Policy(Kind::LeastLoad, Measure::Time)),
        ("sglang", Self::Sglang),
        ("dynamo", Self::Dynamo),
        ("requests", Self::Policy(Kind::CacheAware, Measure::Requests)),
        ("time", Self::Policy(Kind::CacheAware, Measure::Time)),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, rule)| *rule == self).map_or("?", |(name, _)| name)
    }
}

/// What happens at a time.
enum Event {
    Arrive(usize),
    FirstToken(usize),
    End(usize),
    Publish,
    Deliver(router::News),
}

/// The figures of a rule.
#[derive(Debug, Default)]
struct Figures {
    ttft: Vec<f64>,
    hits: u64,
    tokens: u64,
    shares: Vec<usize>,
    /// Expected over actual times to first token.
    errors: Vec<f64>,
}

/// A request that is under way.
struct Running {
    worker: usize,
    router: usize,
    arrived: Duration,
    cached: u32,
    sent: Sent,
}

fn main() -> ExitCode {
    let settings = match arguments(std::env::args().skip(1)) {
        Ok(Some(settings)) => settings,
        Ok(None) => {
            eprintln!("usage: cargo bench-traces TRACE [--workers N] ... (see the source)");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let trace = match read(&settings) {
        Ok(trace) => trace,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "{} requests, {} workers of {} tokens/s (speeds {:?}), {} blocks, {} router(s), x{}",
        trace.len(),
        settings.workers,
        settings.prefill,
        settings.speeds,
        settings.blocks,
        settings.routers,
        settings.rate
    );
    println!(
        "rule         hit    mean   p50    p90    p99    busiest  expected/actual p50 (p10 to p90)"
    );
    for rule in &settings.rules {
        let mut figures = play(*rule, &trace, &settings);
        figures.print(rule.name());
    }
    ExitCode::SUCCESS
}

/// The settings of the command line; `None` if it names no trace.
fn arguments(mut given: impl Iterator<Item = String>) -> Result<Option<Settings>, String> {
    let mut settings = Settings {
        trace: PathBuf::new(),
        workers: 8,
        routers: 1,
        blocks: 2000,
        prefill: 8000.0,
        speeds: vec![1.0],
        rate: 1.0,
        rules: Rule::ALL.map(|(_, rule)| rule).to_vec(),
        limit: usize::MAX,
        seed: 1,
        usage: true,
        as_recorded: false,
    };
    fn number<T: std::str::FromStr>(name: &str, value: Option<String>) -> Result<T, String> {
        let value = value.ok_or_else(|| format!("{name} needs a value"))?;
        value.parse().map_err(|_| format!("{name}: {value:?} is not a number"))
    }
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--bench" | "--test" => {}
            "--workers" => settings.workers = number("--workers", given.next())?,
            "--routers" => settings.routers = number("--routers", given.next())?,
            "--blocks" => settings.blocks = number("--blocks", given.next())?,
            "--prefill" => settings.prefill = number("--prefill", given.next())?,
            "--rate" => settings.rate = number("--rate", given.next())?,
            "--limit" => settings.limit = number("--limit", given.next())?,
            "--seed" => settings.seed = number("--seed", given.next())?,
            "--no-usage" => settings.usage = false,
            "--as-recorded" => settings.as_recorded = true,
            "--speeds" => {
                let list = given.next().unwrap_or_default();
                let speeds = list.split(',').map(|s| number("--speeds", Some(s.to_owned())));
                settings.speeds = speeds.collect::<Result<_, _>>()?;
            }
            "--rules" => {
                let list = given.next().unwrap_or_default();
                let rule = |name: &str| {
                    let found = Rule::ALL.iter().find(|(known, _)| *known == name);
                    found.map(|(_, rule)| *rule).ok_or_else(|| format!("--rules: no rule {name:?}"))
                };
                settings.rules = list.split(',').map(rule).collect::<Result<_, _>>()?;
            }
            other if other.starts_with('-') => return Err(format!("no such option: {other}")),
            path => settings.trace = path.into(),
        }
    }
    if settings.workers == 0 || settings.routers == 0 || settings.blocks == 0 {
        return Err("--workers, --routers and --blocks are at least 1".to_owned());
    }
    if !(settings.prefill > 0.0 && settings.rate > 0.0 && settings.speeds.iter().all(|s| *s > 0.0))
    {
        return Err("--prefill, --rate and --speeds are above 0".to_owned());
    }
    Ok((!settings.trace.as_os_str().is_empty()).then_some(settings))
}

fn read(settings: &Settings) -> Result<Vec<Request>, Box<dyn Error + Send + Sync>> {
    let mut trace = trace_file::read(&settings.trace, settings.limit)?;
    if !settings.as_recorded {
        trace_file::spread(&mut trace);
    }
    Ok(trace)
}

/// Plays the trace under one rule.
fn play(rule: Rule, trace: &[Request], settings: &Settings) -> Figures {
    let mut rng = StdRng::seed_from_u64(settings.seed);
    let mut workers: Vec<Worker> = (0..settings.workers)
        .map(|at| {
            let speed = settings.speeds[at % settings.speeds.len()];
            Worker::new(settings.blocks, settings.prefill * speed, 1.0 / speed)
        })
        .collect();
    let mut peer = match rule {
        Rule::Policy(..) => None,
        Rule::Sglang => Some(Peer::sglang(settings.workers)),
        Rule::Dynamo => Some(Peer::dynamo(settings.workers, settings.blocks)),
    };
    let policy = match rule {
        Rule::Policy(kind, by) => (kind, by),
        Rule::Sglang | Rule::Dynamo => (Kind::RoundRobin, Measure::Time),
    };
    let mut routers: Vec<Router> = (0..settings.routers)
        .map(|at| Router::new(at, settings.workers, policy, settings.routers > 1, settings.seed))
        .collect();
    let mut figures = Figures { shares: vec![0; settings.workers], ..Figures::default() };
    let mut running: Vec<Option<Running>> = trace.iter().map(|_| None).collect();
    let mut agenda = Agenda::default();
    for (at, request) in trace.iter().enumerate() {
        let time = Duration::from_secs_f64(request.timestamp / 1000.0 / settings.rate);
        agenda.add(time, Event::Arrive(at));
    }
    if settings.routers > 1 {
        agenda.add(PUBLISH_EVERY, Event::Publish);
    }
    let mut left = trace.len();
    while let Some((now, event)) = agenda.next() {
        match event {
            Event::Arrive(at) => {
                let request = &trace[at];
                let router = rng.random_range(0..routers.len());
                let chosen = peer.as_mut().map(|peer| peer.pick(request, &mut rng));
                let (worker, sent) = routers[router].send(request, chosen, now);
                figures.shares[worker] += 1;
                running[at] = Some(Running { worker, router, arrived: now, cached: 0, sent });
                workers[worker].queue(at);
                start(&mut workers[worker], trace, &mut running, &mut agenda, now);
            }
            Event::FirstToken(at) => {
                let request = &trace[at];
                let run = running[at].as_mut().expect("a request that runs");
                figures.ttft.push((now - run.arrived).as_secs_f64());
                figures.hits += u64::from(run.cached);
                figures.tokens += u64::from(request.input_length);
                if let Some(time) = run.sent.first_token(now) {
                    figures.errors.push(time.expected / time.actual.max(1e-3));
                }
                if let Some(peer) = &mut peer {
                    peer.first_token(run.worker, request);
                }
                let worker = run.worker;
                let time = workers[worker].first_token(request.output_length);
                agenda.add(now + time, Event::End(at));
                start(&mut workers[worker], trace, &mut running, &mut agenda, now);
            }
            Event::End(at) => {
                let run = running[at].take().expect("a request that runs");
                workers[run.worker].end();
                if let Some(peer) = &mut peer {
                    peer.end(run.worker, &trace[at]);
                }
                let cached = settings.usage.then_some(run.cached);
                routers[run.router].end(run.sent, trace[at].input_length, cached);
                left -= 1;
            }
            Event::Publish => {
                for router in &mut routers {
                    if let Some(news) = router.publish(now) {
                        agenda.add(now + NETWORK_DELAY, Event::Deliver(news));
                    }
                }
                if left > 0 {
                    agenda.add(now + PUBLISH_EVERY, Event::Publish);
                }
            }
            Event::Deliver(news) => {
                for router in &mut routers {
                    router.apply(&news, now);
                }
            }
        }
    }
    figures
}

/// Lets a worker begin with its next prompt, if it computes none.
fn start(
    worker: &mut Worker,
    trace: &[Request],
    running: &mut [Option<Running>],
    agenda: &mut Agenda,
    now: Duration,
) {
    let Some(at) = worker.next() else { return };
    let (cached, time) = worker.compute(&trace[at]);
    running[at].as_mut().expect("a request that runs").cached = cached;
    agenda.add(now + time, Event::FirstToken(at));
}

/// Events in the order of their times, and of their addition.
#[derive(Default)]
struct Agenda {
    events: BTreeMap<(Duration, u64), Event>,
    added: u64,
}

impl Agenda {
    fn add(&mut self, at: Duration, event: Event) {
        self.added += 1;
        self.events.insert((at, self.added), event);
    }

    fn next(&mut self) -> Option<(Duration, Event)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }
}

impl Figures {
    fn print(&mut self, rule: &str) {
        self.ttft.sort_by(f64::total_cmp);
        self.errors.sort_by(f64::total_cmp);
        let share = |sorted: &[f64], part: f64| {
            sorted
                .get(((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1)))
                .copied()
                .unwrap_or(f64::NAN)
        };
        let mean = self.ttft.iter().sum::<f64>() / self.ttft.len().max(1) as f64;
        let busiest =
            self.shares.iter().max().copied().unwrap_or(0) as f64 / self.ttft.len().max(1) as f64;
        println!(
            "{rule:<12} {:.3}  {mean:<6.2} {:<6.2} {:<6.2} {:<6.2} {busiest:<8.3} {:.2} ({:.2} to {:.2})",
            self.hits as f64 / self.tokens.max(1) as f64,
            share(&self.ttft, 0.5),
            share(&self.ttft, 0.9),
            share(&self.ttft, 0.99),
            share(&self.errors, 0.5),
            share(&self.errors, 0.1),
            share(&self.errors, 0.9),
        );
    }
}
