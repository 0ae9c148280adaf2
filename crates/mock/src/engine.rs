//! Simulates an engine: a request waits for a slot, takes its time, is cached as a prefix, and is counted.
//!
//! A request is represented by a [`Job`]. hyper drops it when the client disconnects, whether it is queued, in prefill
//! or streaming. Dropping it before its end frees its slot and counts an abort.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ask;
use crate::config::Config;
use crate::prefix_cache::{PrefixCache, block_hashes};

/// The slots, times, prefix cache and counts of one worker.
#[derive(Debug)]
pub(super) struct Engine {
    config: Config,
    slots: Option<Arc<Semaphore>>,
    /// Of the prefill alone: a request has a slot before it waits for one of these.
    prefill_slots: Option<Semaphore>,
    cache: Mutex<PrefixCache>,
    rng: Mutex<StdRng>,
    counts: Counts,
}

/// Accesses are relaxed, because the numbers are independent of each other.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    in_flight: AtomicU64,
    max_in_flight: AtomicU64,
    running: AtomicU64,
    max_running: AtomicU64,
    completed: AtomicU64,
    aborted: AtomicU64,
    failed: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    probes: AtomicU64,
    completion_tokens: AtomicU64,
}

/// The counts of a worker since its start (`GET /_mock/stats`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Inference requests that arrived, whatever their result.
    pub requests: u64,
    /// Requests that are running or queued now.
    pub in_flight: u64,
    /// The most requests that were running or queued at the same time.
    pub max_in_flight: u64,
    /// Requests that have a slot now.
    pub running: u64,
    /// The most requests that had a slot at the same time.
    pub max_running: u64,
    /// Requests whose answer was generated to its end.
    pub completed: u64,
    /// Requests whose client disconnected before that.
    pub aborted: u64,
    /// Requests that failed because of a script.
    pub failed: u64,
    /// Tokens in prompts.
    pub prompt_tokens: u64,
    /// Prompt tokens that were found in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens that were generated.
    pub completion_tokens: u64,
    /// Blocks that are in the prefix cache now.
    pub cache_blocks: u64,
    /// Requests to `/health`.
    pub probes: u64,
}

/// The token counts of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt: u32,
    pub(super) cached: u32,
    pub(super) completion: u32,
}

impl Engine {
    pub(super) fn new(config: Config) -> Self {
        let semaphore =
            |slots: NonZeroUsize| Semaphore::new(slots.get().min(Semaphore::MAX_PERMITS));
        Self {
            slots: config.slots.map(|slots| Arc::new(semaphore(slots))),
            prefill_slots: config.prefill_slots.map(semaphore),
            cache: Mutex::new(PrefixCache::new(config.cache_blocks)),
            rng: Mutex::new(StdRng::seed_from_u64(config.seed)),
            counts: Counts::default(),
            config,
        }
    }

    /// Counts a new request and returns its job.
    pub(super) fn begin(self: &Arc<Self>) -> Job {
        let counts = &self.counts;
        counts.requests.fetch_add(1, Ordering::Relaxed);
        raise(&counts.in_flight, &counts.max_in_flight);
        Job { engine: Arc::clone(self), permit: None, running: false, end: None }
    }

    pub(super) fn with_rng<T>(&self, f: impl FnOnce(&mut StdRng) -> T) -> T {
        f(&mut self.rng.lock())
    }

    pub(super) fn flush_cache(&self) {
        self.cache.lock().clear();
    }

    /// Counts a request to `/health`.
    pub(super) fn count_probe(&self) {
        self.counts.probes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> Stats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.counts;
        Stats {
            requests: load(&counts.requests),
            in_flight: load(&counts.in_flight),
            max_in_flight: load(&counts.max_in_flight),
            running: load(&counts.running),
            max_running: load(&counts.max_running),
            completed: load(&counts.completed),
            aborted: load(&counts.aborted),
            failed: load(&counts.failed),
            prompt_tokens: load(&counts.prompt_tokens),
            cached_tokens: load(&counts.cached_tokens),
            completion_tokens: load(&counts.completion_tokens),
            cache_blocks: self.cache.lock().len() as u64,
            probes: load(&counts.probes),
        }
    }

    /// `time`, varied at random by up to the configured share.
    fn jittered(&self, time: Duration) -> Duration {
        let jitter = self.config.jitter.get();
        if jitter == 0.0 || time.is_zero() {
            return time;
        }
        let factor = self.with_rng(|rng| rng.random_range(1.0 - jitter..=1.0 + jitter));
        time.mul_f64(factor)
    }
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Job {
    engine: Arc<Engine>,
    permit: Option<OwnedSemaphorePermit>,
    running: bool,
    end: Option<End>,
}

/// How a job ended. A job without an end was aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Completed,
    Failed,
}

impl Job {
    /// Counts the tokens of a prompt without running the model.
    pub(super) fn count(prompt: &[u8]) -> Usage {
        Usage { prompt: ask::tokens(prompt.len()), cached: 0, completion: 0 }
    }

    /// Waits for a slot and for earlier prefills, then takes the time to prefill the prompt's tokens that are not cached by then.
    /// Returns the token counts. `seed` keeps the prefixes of different models apart.
    pub(super) async fn prefill(&mut self, prompt: &[u8], seed: u64) -> Usage {
        self.start().await;
        let engine = &*self.engine;
        let config = &engine.config;
        let prompt_tokens = ask::tokens(prompt.len());
        let block_tokens = config.block_tokens.get();
        let blocks = if config.cache_blocks == 0 {
            Vec::new()
        } else {
            block_hashes(prompt, block_tokens.saturating_mul(4), seed)
        };
        let turn = match &engine.prefill_slots {
            Some(slots) => Some(slots.acquire().await.expect("the slots are never closed")),
            None => None,
        };
        let matched = engine.cache.lock().matched(&blocks);
        // An engine always prefills the last token, because it needs its output.
        let cached = ask::tokens(matched * block_tokens * 4).min(prompt_tokens.saturating_sub(1));
        pause(engine.jittered(config.prefill.time_for(prompt_tokens - cached))).await;
        engine.cache.lock().insert(&blocks);
        drop(turn);
        engine.counts.prompt_tokens.fetch_add(prompt_tokens.into(), Ordering::Relaxed);
        engine.counts.cached_tokens.fetch_add(cached.into(), Ordering::Relaxed);
        Usage { prompt: prompt_tokens, cached, completion: 0 }
    }

    /// The time that generating `tokens` takes. The first token is ready at the end of the prefill.
    pub(super) fn decode_time(&self, tokens: u32) -> Duration {
        let time = self.engine.config.decode.time_for(tokens.saturating_sub(1));
        self.engine.jittered(time)
    }

    /// The time between two tokens of this request.
    pub(super) fn token_time(&self) -> Duration {
        self.engine.jittered(self.engine.config.decode.time_for(1))
    }

    /// Counts tokens as generated.
    pub(super) fn generated(&self, tokens: u32) {
        self.engine.counts.completion_tokens.fetch_add(tokens.into(), Ordering::Relaxed);
    }

    /// Counts the job as completed. A disconnect after that is not counted as an abort.
    pub(super) fn complete(mut self) {
        self.end = Some(End::Completed);
    }

    /// Counts the job as failed by a script.
    pub(super) fn fail(mut self) {
        self.end = Some(End::Failed);
    }

    async fn start(&mut self) {
        if let Some(slots) = &self.engine.slots {
            let permit = Arc::clone(slots).acquire_owned().await;
            self.permit = Some(permit.expect("the slots are never closed"));
        }
        self.running = true;
        raise(&self.engine.counts.running, &self.engine.counts.max_running);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let counts = &self.engine.counts;
        counts.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.running {
            counts.running.fetch_sub(1, Ordering::Relaxed);
        }
        let end = match self.end {
            Some(End::Completed) => &counts.completed,
            Some(End::Failed) => &counts.failed,
            None => &counts.aborted,
        };
        end.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits, unless the time is zero: a timer costs as much as the rest of a request.
pub(super) async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

fn raise(counter: &AtomicU64, highest: &AtomicU64) {
    let now = counter.fetch_add(1, Ordering::Relaxed) + 1;
    highest.fetch_max(now, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
