//! A mock worker without its sockets: its models, its faults, and its state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::request::Parts;
use parking_lot::Mutex;
use smg_runtime::clock::Clock;
use xxhash_rust::xxh3::xxh3_64;

use crate::config::Config;
use crate::engine::{Engine, Stats};
use crate::script::{Faults, Script};
use crate::stored::Responses;

/// A running mock worker, for use within its own process.
#[derive(Debug)]
pub struct Worker {
    config: Config,
    name: HeaderValue,
    models: Vec<Model>,
    engine: Arc<Engine>,
    clock: Clock,
    answers: AtomicU64,
    responses: Responses,
    last: Mutex<Option<Last>>,
    faults: Mutex<Faults>,
    /// Avoids the lock on `faults` while there are none.
    has_faults: AtomicBool,
    is_sleeping: AtomicBool,
}

/// A model that the worker serves.
#[derive(Debug)]
pub(super) struct Model {
    id: String,
    /// The model's name as JSON, with its quotes.
    pub(super) json: String,
    /// Keeps the model's prefixes apart from those of other models.
    pub(super) seed: u64,
}

/// The last inference request that arrived.
///
/// Headers are in the order of arrival, except that headers of one name are grouped at the first of them.
#[derive(Debug, Clone)]
pub struct Last {
    /// The method, target and headers.
    pub head: Parts,
    /// The body, unchanged; at most 64 MiB.
    pub body: Bytes,
}

impl Worker {
    /// A worker with the given name in its answers. `config` has at least one model.
    pub(super) fn new(config: Config, name: HeaderValue) -> Self {
        let model = |id: &String| Model {
            id: id.clone(),
            json: serde_json::Value::from(id.as_str()).to_string(),
            seed: xxh3_64(id.as_bytes()),
        };
        // Two workers must not give two responses the same id, because a router asks all of them for a stored one.
        let first_id = (xxh3_64(name.as_bytes()) >> 32) << 20;
        Self {
            name,
            models: config.models.iter().map(model).collect(),
            engine: Arc::new(Engine::new(config.clone())),
            clock: Clock::start(),
            answers: AtomicU64::new(first_id),
            responses: Responses::default(),
            last: Mutex::default(),
            faults: Mutex::default(),
            is_sleeping: AtomicBool::new(false),
            has_faults: AtomicBool::new(false),
            config,
        }
    }

    /// The counts since the start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.engine.stats()
    }

    /// Counts a request to `/health`.
    pub(super) fn count_probe(&self) {
        self.engine.count_probe();
    }

    /// Whether the engine sleeps. It still answers requests, so that tests see those that must not reach it.
    #[must_use]
    pub fn is_sleeping(&self) -> bool {
        self.is_sleeping.load(Ordering::Acquire)
    }

    /// Puts the engine to sleep, or wakes it up.
    pub fn set_sleeping(&self, sleeping: bool) {
        self.is_sleeping.store(sleeping, Ordering::Release);
    }

    /// The last inference request that arrived.
    #[must_use]
    pub fn last(&self) -> Option<Last> {
        self.last.lock().clone()
    }

    /// Sets the faults for the requests from now on.
    pub fn set_faults(&self, faults: Faults) {
        let mut current = self.faults.lock();
        self.has_faults.store(!faults.is_idle(), Ordering::Release);
        *current = faults;
    }

    /// The current faults.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.faults.lock().clone()
    }

    /// The name in the header `x-mock-worker`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.to_str().unwrap_or_default()
    }

    pub(super) fn strike(&self) -> Option<Script> {
        if !self.has_faults.load(Ordering::Acquire) {
            return None;
        }
        let mut faults = self.faults.lock();
        self.engine.with_rng(|rng| faults.strike(rng))
    }

    pub(super) fn remember(&self, last: Last) {
        *self.last.lock() = Some(last);
    }

    /// The model of a request: the one that it names (as JSON), or the first one if it names none.
    pub(super) fn model(&self, json: Option<&str>) -> Option<&Model> {
        let Some(json) = json else { return self.models.first() };
        let is = |model: &&Model| model.json == json;
        // With escapes the same name can have several spellings.
        let means =
            |model: &&Model| serde_json::from_str::<String>(json).is_ok_and(|id| id == model.id);
        self.models.iter().find(is).or_else(|| self.models.iter().find(means))
    }

    pub(super) fn models(&self) -> impl Iterator<Item = &str> {
        self.models.iter().map(|model| model.id.as_str())
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(super) fn name_header(&self) -> HeaderValue {
        self.name.clone()
    }

    pub(super) fn api_key(&self) -> Option<&str> {
        self.config.api_key.as_deref()
    }

    pub(super) fn output_tokens(&self) -> u32 {
        self.config.output_tokens
    }

    pub(super) fn slots(&self) -> Option<usize> {
        self.config.slots.map(std::num::NonZero::get)
    }

    pub(super) fn cache_tokens(&self) -> usize {
        self.config.cache_blocks.saturating_mul(self.config.block_tokens.get())
    }

    pub(super) fn next_id(&self) -> u64 {
        self.answers.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn seconds(&self) -> u64 {
        self.clock.now().wall.as_secs()
    }

    pub(super) fn mono(&self) -> Duration {
        self.clock.mono()
    }

    pub(super) fn responses(&self) -> &Responses {
        &self.responses
    }
}
