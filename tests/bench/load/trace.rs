//! Mode `trace`: the requests of a trace file at their times, sped up.
//!
//! The file has one JSON object per line: `timestamp` (milliseconds), `input_length` (tokens) and `hash_ids`, one per 512 tokens,
//! each naming a block together with all blocks before it (the format of the Mooncake traces). A prompt is made up from its
//! ids, so that two prompts share exactly the blocks that the trace says they share. Requests with equal timestamps are spread
//! evenly over the time to the next timestamp, because those traces round them to three seconds.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use smg_mock::client::{Connection, request};

use crate::{Asker, Shared, Window};

/// Tokens of a block of the trace.
const BLOCK_TOKENS: usize = 512;
/// Bytes of a token, as mock workers count.
const TOKEN_BYTES: usize = 4;

/// One request of a trace.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Entry {
    /// Milliseconds since the start of the trace.
    timestamp: f64,
    /// Tokens of the prompt.
    input_length: usize,
    /// The blocks of the prompt.
    hash_ids: Vec<u64>,
}

/// The first `most` requests of a trace file, in the order of their times.
///
/// # Errors
/// The file can't be read, a line is no request, or there is none.
pub(crate) fn read(path: &Path, most: usize) -> anyhow::Result<Vec<Entry>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("--trace {shown}"))?;
    let mut trace = Vec::new();
    for (at, line) in text.lines().take(most).enumerate() {
        let entry: Entry = serde_json::from_str(line)
            .with_context(|| format!("--trace {shown}: line {}", at + 1))?;
        trace.push(entry);
    }
    if trace.is_empty() {
        bail!("--trace {shown} has no request");
    }
    trace.sort_by(|a, b| a.timestamp.total_cmp(&b.timestamp));
    spread(&mut trace);
    Ok(trace)
}

/// Spreads requests with equal timestamps evenly over the time to the next timestamp. Those with the last timestamp stay.
fn spread(trace: &mut [Entry]) {
    let mut rest = trace;
    while let Some(first) = rest.first() {
        let begin = first.timestamp;
        let count = rest.iter().take_while(|entry| entry.timestamp <= begin).count();
        let (equal, later) = rest.split_at_mut(count);
        if let Some(next) = later.first() {
            let step = (next.timestamp - begin) / count as f64;
            for (at, entry) in equal.iter_mut().enumerate() {
                entry.timestamp += step * at as f64;
            }
        }
        rest = later;
    }
}

impl Entry {
    /// The request as bytes: a streamed chat whose answer is one token, and whose usage is asked for.
    fn to_request(&self) -> Vec<u8> {
        let bytes = self.input_length * TOKEN_BYTES;
        let mut prompt = String::with_capacity(bytes + BLOCK_TOKENS * TOKEN_BYTES);
        for id in &self.hash_ids {
            let mut number = *id;
            let end = prompt.len() + BLOCK_TOKENS * TOKEN_BYTES;
            while prompt.len() < end {
                // SplitMix64 (Steele, Lea and Flood, 2014).
                number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                let _infallible = write!(prompt, "{:016x}", mixed ^ (mixed >> 31));
            }
        }
        prompt.truncate(bytes);
        let body = format!(
            r#"{{"model":"mock-model","max_tokens":1,"stream":true,"stream_options":{{"include_usage":true}},"messages":[{{"role":"user","content":"{prompt}"}}]}}"#
        );
        request("POST", "/v1/chat/completions", "bench", "", body.as_bytes())
    }
}

/// Sends the requests of `trace`, `speed` times as fast as they were recorded, to the targets in turn. The latency of each counts
/// from when it was due. Returns the seconds from the first due time to the last answer.
///
/// # Errors
/// A target can't be reached.
pub(crate) async fn play(
    trace: Vec<Entry>,
    speed: f64,
    targets: &[SocketAddr],
    seen: &Shared,
) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let day = Duration::from_secs(86_400);
    let window = Window { begin, from: begin, until: begin + day };
    let free: Vec<Rc<RefCell<Vec<Connection>>>> = targets.iter().map(|_| Rc::default()).collect();
    let first = trace.first().map_or(0.0, |entry| entry.timestamp);
    let mut tasks = tokio::task::JoinSet::new();
    for (at, entry) in trace.into_iter().enumerate() {
        let ms = (entry.timestamp - first) / speed;
        let due = begin + Duration::from_secs_f64(ms / 1e3).min(day);
        tokio::time::sleep_until(due.into()).await;
        let (target, free) = (targets[at % targets.len()], Rc::clone(&free[at % targets.len()]));
        let idle = free.borrow_mut().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => Connection::open(target).await.with_context(|| format!("target {target}"))?,
        };
        let mut asker = Asker { connection, target, seen: Rc::clone(seen), window };
        tasks.spawn_local(async move {
            asker.ask(&entry.to_request(), due, None).await;
            free.borrow_mut().push(asker.connection);
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(begin.elapsed().as_secs_f64())
}
