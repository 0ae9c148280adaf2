//! Mode `trace`: the requests of a trace file at their times, sped up.
//!
//! A prompt is made up from the ids of its blocks, so that two prompts share exactly the blocks that the trace says they share.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use smg_mock::client::{Connection, request};

use crate::trace_file::{self, Request};
use crate::{Asker, Shared, Window};

/// Tokens of a block of the trace.
const BLOCK_TOKENS: usize = 512;
/// Bytes of a token, as mock workers count.
const TOKEN_BYTES: usize = 4;

/// The first `most` requests of a trace file, with equal timestamps spread.
///
/// # Errors
/// The file can't be read, a line is no request, or there is none.
pub(crate) fn read(path: &Path, most: usize) -> anyhow::Result<Vec<Request>> {
    let mut trace = trace_file::read(path, most).map_err(|error| anyhow!("--trace {error}"))?;
    if trace.is_empty() {
        bail!("--trace {} has no request", path.display());
    }
    trace_file::spread(&mut trace);
    Ok(trace)
}

/// The request as bytes: a streamed chat whose answer is one token, and whose usage is asked for.
fn chat(entry: &Request) -> Vec<u8> {
    let bytes = entry.input_length as usize * TOKEN_BYTES;
    let mut prompt = String::with_capacity(bytes + BLOCK_TOKENS * TOKEN_BYTES);
    for id in &entry.hash_ids {
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

/// Sends the requests of `trace`, `speed` times as fast as they were recorded, to the targets in turn. The latency of each counts
/// from when it was due. Returns the seconds from the first due time to the last answer.
///
/// # Errors
/// A target can't be reached.
pub(crate) async fn play(
    trace: Vec<Request>,
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
            asker.ask(&chat(&entry), due, None).await;
            free.borrow_mut().push(asker.connection);
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(begin.elapsed().as_secs_f64())
}
