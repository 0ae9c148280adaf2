//! A load generator that uses less CPU time than the servers that it measures.
//!
//! One thread, keep-alive connections, requests prepared as bytes, answers read without being parsed further than
//! their framing. It prints one JSON object. Connection `i` uses target `i mod n`, so that several targets act as a
//! perfect load balancer.
//!
//! Modes: `saturate` (as fast as the connections allow) · `rate` (open loop; latency counts from when a request was
//! due) · `streams` (server-sent events: time to first token, time between tokens) · `sessions` (chats whose prompts
//! grow, with the hit rate that the workers report) · `hold` (opens streams that fall silent, and keeps them) · `trace` (the
//! requests of a trace file at their times).

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a program that measures and prints"
)]

mod trace;
#[path = "../trace_file.rs"]
#[expect(dead_code, reason = "the answers of mode trace are one token")]
mod trace_file;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use smg_mock::client::{Connection, request};
use smg_mock::histogram::Histogram;
use smg_mock::traffic::{Chats, FixedRate, Session, answer_text};
use tokio::sync::{Mutex, mpsc};
use tokio::task::LocalSet;

#[derive(Debug, Clone, Parser)]
#[command(about = "Loads OpenAI-compatible servers and prints what it saw as JSON")]
struct Args {
    /// The mode.
    #[arg(value_enum)]
    mode: Mode,
    /// URL of a server; repeat it for several.
    #[arg(long = "target", required = true, value_name = "IP:PORT")]
    targets: Vec<SocketAddr>,
    /// Number of connections, or of streams in mode `hold`.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    connections: u32,
    /// Duration after the warm-up, in seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Warm-up in seconds, during which nothing is counted.
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
    /// Requests per second in mode `rate`.
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// Tokens of an answer, or chunks of a stream.
    #[arg(long, default_value_t = 16)]
    tokens: u32,
    /// Seed of the sessions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Bytes of a session's shared system prompt.
    #[arg(long, default_value_t = 1200)]
    system_bytes: usize,
    /// Bytes that a session adds in each turn.
    #[arg(long, default_value_t = 700)]
    turn_bytes: usize,
    /// Turns of a session.
    #[arg(long, default_value_t = 10)]
    turns: u32,
    /// System prompts that sessions share.
    #[arg(long, default_value_t = 64)]
    system_prompts: u32,
    /// Trace file of mode `trace`.
    #[arg(long, required_if_eq("mode", "trace"))]
    trace: Option<PathBuf>,
    /// How many times as fast as it was recorded a trace is played.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Requests at the start of the trace that are played.
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    first: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Saturate,
    Rate,
    Streams,
    Sessions,
    Hold,
    Trace,
}

/// The measurements since the warm-up.
#[derive(Debug, Default)]
struct Seen {
    requests: u64,
    errors: u64,
    first_error: Option<String>,
    events: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    body_bytes: u64,
    latency: Histogram,
    first_token: Histogram,
    between_tokens: Histogram,
    held: u64,
}

type Shared = Rc<RefCell<Seen>>;

/// The times at which counting begins and the run ends.
#[derive(Debug, Clone, Copy)]
struct Window {
    begin: Instant,
    from: Instant,
    until: Instant,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if !(args.seconds > 0.0 && args.seconds <= 86_400.0 && (0.0..=3600.0).contains(&args.warmup)) {
        bail!("--seconds {} or --warmup {} is out of bounds", args.seconds, args.warmup);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = LocalSet::new().block_on(&runtime, run(args))?;
    println!("{result}");
    Ok(())
}

async fn run(mut args: Args) -> anyhow::Result<Value> {
    let seen = Shared::default();
    if let (Mode::Trace, Some(path)) = (args.mode, &args.trace) {
        if !(args.speed > 0.0 && args.speed <= 10_000.0) {
            bail!("--speed {} is out of bounds", args.speed);
        }
        let trace = trace::read(path, args.first)?;
        let cpu = cpu_seconds()?;
        args.seconds = trace::play(trace, args.speed, &args.targets, &seen).await?;
        return Ok(report(&args, &seen.borrow(), cpu_seconds()? - cpu));
    }
    let connections = if args.mode == Mode::Hold { Vec::new() } else { connect(&args).await? };
    let begin = Instant::now();
    let from = begin + Duration::from_secs_f64(args.warmup);
    let window = Window { begin, from, until: from + Duration::from_secs_f64(args.seconds) };
    let mut tasks = tokio::task::JoinSet::new();
    let dues = Rc::new(Mutex::new(pace(&args, window)?));
    let sessions = Rc::new(RefCell::new(args.seed));
    let small = small_chat(args.tokens, args.mode == Mode::Streams);
    for (index, (connection, target)) in connections.into_iter().enumerate() {
        let asker = Asker { connection, target, seen: Rc::clone(&seen), window };
        let small = small.clone();
        match args.mode {
            Mode::Saturate | Mode::Streams => drop(tasks.spawn_local(asker.repeat(small))),
            Mode::Rate => drop(tasks.spawn_local(asker.at_rate(small, Rc::clone(&dues)))),
            Mode::Sessions => {
                let chats = chats(&args);
                drop(tasks.spawn_local(asker.chat(chats, Rc::clone(&sessions), index)));
            }
            Mode::Hold | Mode::Trace => {}
        }
    }
    if args.mode == Mode::Hold {
        hold(&args, &seen, window, &mut tasks).await?;
    }
    tokio::time::sleep_until(window.from.into()).await;
    let cpu = cpu_seconds()?;
    tokio::time::sleep_until(window.until.into()).await;
    let cpu = cpu_seconds()? - cpu;
    // Answers in flight at the end are not counted; in mode `rate` each connection waits for its own.
    tasks.abort_all();
    while tasks.join_next().await.is_some() {}
    let seen = seen.borrow();
    Ok(report(&args, &seen, cpu))
}

/// Sends the times at which requests are due, from a thread: a timer of tokio is accurate to a millisecond, a sleeping thread to
/// about 60 µs. The sent time is that of the wake-up, so that the lateness of the thread does not count for the server, while the
/// wait for a free connection does.
fn pace(args: &Args, window: Window) -> anyhow::Result<mpsc::Receiver<Instant>> {
    let mut rate =
        FixedRate::new(args.rate).with_context(|| format!("--rate {} is no rate", args.rate))?;
    let (sender, dues) = mpsc::channel(1 << 16);
    if args.mode == Mode::Rate {
        std::thread::Builder::new().name("pace".to_owned()).spawn(move || {
            loop {
                let due = window.begin + rate.next_due();
                if due >= window.until {
                    return;
                }
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                // The queue is full: the server is a minute behind, and the latency of the queued requests shows it.
                if let Err(mpsc::error::TrySendError::Closed(_)) = sender.try_send(Instant::now()) {
                    return;
                }
            }
        })?;
    }
    Ok(dues)
}

async fn connect(args: &Args) -> anyhow::Result<Vec<(Connection, SocketAddr)>> {
    let mut connections = Vec::new();
    for index in 0..args.connections as usize {
        let target = args.targets[index % args.targets.len()];
        let connection =
            Connection::open(target).await.with_context(|| format!("target {target}"))?;
        connections.push((connection, target));
    }
    Ok(connections)
}

fn small_chat(tokens: u32, stream: bool) -> Vec<u8> {
    let stream = if stream { r#","stream":true"# } else { "" };
    let body = format!(
        r#"{{"model":"mock-model","max_tokens":{tokens}{stream},"messages":[{{"role":"user","content":"Say something short, please."}}]}}"#
    );
    request("POST", "/v1/chat/completions", "bench", "", body.as_bytes())
}

fn chats(args: &Args) -> Chats {
    Chats {
        system_prompts: args.system_prompts,
        system_bytes: args.system_bytes,
        turn_bytes: args.turn_bytes,
        turns: args.turns,
        max_tokens: args.tokens,
        stream: false,
        ..Chats::default()
    }
}

/// One connection and its mode.
struct Asker {
    connection: Connection,
    target: SocketAddr,
    seen: Shared,
    window: Window,
}

impl Asker {
    /// Sends the same request repeatedly.
    async fn repeat(mut self, request: Vec<u8>) {
        while Instant::now() < self.window.until {
            self.ask(&request, Instant::now(), None).await;
        }
    }

    /// Sends the next due request whenever the connection is free.
    async fn at_rate(mut self, request: Vec<u8>, dues: Rc<Mutex<mpsc::Receiver<Instant>>>) {
        loop {
            let Some(due) = dues.lock().await.recv().await else { return };
            self.ask(&request, due, None).await;
        }
    }

    /// Runs one session after the other.
    async fn chat(mut self, chats: Chats, next_seed: Rc<RefCell<u64>>, index: usize) {
        // Sessions begin at different turns, as after some running time.
        let mut turns = 1 + u32::try_from(index).unwrap_or(0) % chats.turns.max(1);
        while Instant::now() < self.window.until {
            let seed = {
                let mut next = next_seed.borrow_mut();
                *next += 1;
                *next
            };
            let mut session = Session::start(&Chats { turns, ..chats.clone() }, seed);
            turns = chats.turns;
            let mut answer = Vec::new();
            while let Some(body) = session.ask() {
                let request = request("POST", "/v1/chat/completions", "bench", "", body.as_bytes());
                answer.clear();
                self.ask(&request, Instant::now(), Some(&mut answer)).await;
                if Instant::now() >= self.window.until {
                    return;
                }
                session.answered(&answer_text(&answer));
            }
        }
    }

    /// Sends one request and counts the response. The latency is measured from `since`.
    async fn ask(&mut self, request: &[u8], since: Instant, mut keep: Option<&mut Vec<u8>>) {
        let window = self.window;
        let counted = since >= window.from;
        let (seen, mut last_event, mut at_line_end) = (&self.seen, None::<Instant>, false);
        let streamed = keep.is_none();
        let end = self
            .connection
            .exchange(request, |piece| {
                if let Some(keep) = keep.as_deref_mut() {
                    keep.extend_from_slice(piece);
                }
                let events = if streamed { event_ends(piece, &mut at_line_end) } else { 0 };
                if !counted {
                    return;
                }
                let seen = &mut *seen.borrow_mut();
                seen.body_bytes += piece.len() as u64;
                if events > 0 {
                    let now = Instant::now();
                    match last_event.replace(now) {
                        None => seen.first_token.record(now - since),
                        Some(last) => seen.between_tokens.record(now - last),
                    }
                    seen.events += events;
                }
            })
            .await;
        let now = Instant::now();
        let problem = match end {
            Ok((head, reusable)) => {
                if !reusable {
                    self.reopen().await;
                }
                (head.status != 200).then(|| format!("status {}", head.status))
            }
            Err(e) => {
                self.reopen().await;
                Some(e.to_string())
            }
        };
        let seen = &mut *self.seen.borrow_mut();
        if let Some(problem) = problem {
            // Errors during the warm-up count too.
            seen.errors += 1;
            seen.first_error.get_or_insert(problem);
        } else if counted && now <= window.until {
            seen.requests += 1;
            seen.latency.record(now - since);
            if let Some(answer) = keep {
                seen.prompt_tokens += number(answer, b"\"prompt_tokens\":");
                seen.cached_tokens += number(answer, b"\"cached_tokens\":");
            }
        }
    }

    async fn reopen(&mut self) {
        match Connection::open(self.target).await {
            Ok(connection) => self.connection = connection,
            // The connection stays broken, and the next request reports it.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Opens streams that send one token and then fall silent, some hundred at a time.
async fn hold(
    args: &Args,
    seen: &Shared,
    window: Window,
    tasks: &mut tokio::task::JoinSet<()>,
) -> anyhow::Result<()> {
    let body = json!({
        "model": "mock-model", "stream": true, "messages": [{ "role": "user", "content": "Hold on." }],
        "mock": { "stall_after_chunks": 1, "output_tokens": 2 },
    });
    let request: Rc<[u8]> =
        request("POST", "/v1/chat/completions", "bench", "", body.to_string().as_bytes()).into();
    for index in 0..args.connections as usize {
        let target = args.targets[index % args.targets.len()];
        let mut connection =
            Connection::open_small(target).await.with_context(|| format!("target {target}"))?;
        let (seen_by_stream, request) = (Rc::clone(seen), Rc::clone(&request));
        tasks.spawn_local(async move {
            let mut first = true;
            let ended = connection
                .exchange(&request, |_| {
                    seen_by_stream.borrow_mut().held += u64::from(first);
                    first = false;
                })
                .await;
            let seen = &mut *seen_by_stream.borrow_mut();
            seen.held -= u64::from(!first);
            seen.errors += 1;
            seen.first_error
                .get_or_insert_with(|| format!("a stream that was to be held ended: {ended:?}"));
        });
        if index % 100 == 99 {
            let floor = index as u64 + 1 - 100;
            while seen.borrow().held < floor
                && Instant::now() < window.until
                && seen.borrow().errors == 0
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    Ok(())
}

/// Counts the events that end in `piece`. An event ends with an empty line; `at_line_end` carries the state between pieces.
fn event_ends(piece: &[u8], at_line_end: &mut bool) -> u64 {
    let mut events = 0;
    for at in memchr::memchr_iter(b'\n', piece) {
        let after_line_end = if at == 0 { *at_line_end } else { piece[at - 1] == b'\n' };
        events += u64::from(after_line_end);
    }
    *at_line_end = piece.last() == Some(&b'\n');
    events
}

fn number(answer: &[u8], key: &[u8]) -> u64 {
    let Some(start) = memchr::memmem::find(answer, key).map(|at| at + key.len()) else { return 0 };
    let digits = answer[start..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

/// Processor time of this process since its start.
fn cpu_seconds() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/self/schedstat").context("/proc/self/schedstat")?;
    let nanos: f64 = text
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .parse()
        .context("/proc/self/schedstat")?;
    Ok(nanos / 1e9)
}

fn report(args: &Args, seen: &Seen, cpu: f64) -> Value {
    let micros = |time: Duration| (time.as_secs_f64() * 1e7).round() / 10.0;
    let quantiles = |times: &Histogram| {
        json!({
            "count": times.count(), "mean": micros(times.mean()), "p50": micros(times.quantile(0.5)),
            "p90": micros(times.quantile(0.9)), "p99": micros(times.quantile(0.99)),
            "p999": micros(times.quantile(0.999)), "max": micros(times.max()),
        })
    };
    let per = |count: u64, by: f64| if by > 0.0 { count as f64 / by } else { 0.0 };
    json!({
        "mode": args.mode.to_possible_value().map(|value| value.get_name().to_owned()),
        "seconds": args.seconds,
        "requests": seen.requests,
        "errors": seen.errors,
        "first_error": seen.first_error,
        "requests_per_second": per(seen.requests, args.seconds),
        "latency_micros": quantiles(&seen.latency),
        "events": seen.events,
        "first_token_micros": quantiles(&seen.first_token),
        "between_tokens_micros": quantiles(&seen.between_tokens),
        "prompt_tokens": seen.prompt_tokens,
        "cached_tokens": seen.cached_tokens,
        "hit_rate": per(seen.cached_tokens, seen.prompt_tokens as f64),
        "body_bytes": seen.body_bytes,
        "held": seen.held,
        "load_cpu_micros_per_request": per(1, seen.requests as f64) * cpu * 1e6,
    })
}
