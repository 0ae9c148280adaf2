//! The model of a worker.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::{BLOCK_TOKENS, Request};

/// A worker with a queue of prompts and an LRU cache of blocks.
pub(crate) struct Worker {
    cache: Cache,
    pub(crate) waiting: VecDeque<usize>,
    computing: bool,
    running: u32,
    /// Prompt tokens per second.
    rate: f64,
    /// The time to generate a token, relative to that of a worker of speed 1.
    slowness: f64,
}

impl Worker {
    pub(crate) fn new(blocks: usize, rate: f64, slowness: f64) -> Self {
        Self {
            cache: Cache::new(blocks),
            waiting: VecDeque::new(),
            computing: false,
            running: 0,
            rate,
            slowness,
        }
    }

    pub(crate) fn queue(&mut self, request: usize) {
        self.waiting.push_back(request);
    }

    /// Takes the next prompt from the queue, if none is being computed.
    pub(crate) fn next(&mut self) -> Option<usize> {
        if self.computing {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.computing = true;
        Some(next)
    }

    /// The cached tokens of a prompt and the time to compute the others.
    pub(crate) fn compute(&mut self, request: &Request) -> (u32, Duration) {
        let hit = self.cache.prefix(&request.hash_ids) as u32 * BLOCK_TOKENS;
        let cached = hit.min(request.input_length);
        self.cache.touch(&request.hash_ids);
        let computed = request.input_length.saturating_sub(hit).max(1);
        (cached, Duration::from_secs_f64(f64::from(computed) / self.rate))
    }

    /// The time to generate the tokens of the request whose prompt was computed just now.
    pub(crate) fn first_token(&mut self, output: u32) -> Duration {
        self.computing = false;
        self.running += 1;
        let token = (0.012 + 0.0004 * f64::from(self.running)) * self.slowness;
        Duration::from_secs_f64(f64::from(output) * token)
    }

    pub(crate) fn end(&mut self) {
        self.running -= 1;
    }
}

/// An LRU cache of blocks.
pub(crate) struct Cache {
    room: usize,
    /// The time of the last use of each block.
    used: HashMap<u64, u64>,
    order: std::collections::BTreeMap<u64, u64>,
    uses: u64,
}

impl Cache {
    pub(crate) fn new(room: usize) -> Self {
        Self { room, used: HashMap::new(), order: std::collections::BTreeMap::new(), uses: 0 }
    }

    /// The number of blocks, from the head on, that are cached.
    pub(crate) fn prefix(&self, blocks: &[u64]) -> usize {
        blocks.iter().take_while(|block| self.used.contains_key(block)).count()
    }

    pub(crate) fn touch(&mut self, blocks: &[u64]) {
        for block in blocks {
            self.uses += 1;
            if let Some(before) = self.used.insert(*block, self.uses) {
                self.order.remove(&before);
            }
            self.order.insert(self.uses, *block);
            if self.used.len() > self.room
                && let Some((_, oldest)) = self.order.pop_first()
            {
                self.used.remove(&oldest);
            }
        }
    }
}
