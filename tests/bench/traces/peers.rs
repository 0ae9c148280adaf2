//! The rules of other routers, as a yardstick.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use crate::workers::Cache;
use crate::{BLOCK_TOKENS, Request};

/// A router of another project that sees all requests.
pub(crate) struct Peer {
    rule: PeerRule,
    /// What it knows of each worker's cache.
    views: Vec<Cache>,
    in_flight: Vec<u32>,
    /// Prompt tokens that wait for their computation.
    prefill: Vec<i64>,
    /// Blocks of running requests.
    active: Vec<i64>,
    expected: std::collections::HashMap<*const Request, i64>,
}

enum PeerRule {
    Sglang,
    Dynamo,
}

/// The index of sglang-router, in blocks: its default bound is 2^26 characters.
const SGLANG_BLOCKS: usize = 32_768;

impl Peer {
    /// sglang-router 0.3.2, as it was seen to behave.
    pub(crate) fn sglang(workers: usize) -> Self {
        Self::new(PeerRule::Sglang, workers, SGLANG_BLOCKS)
    }

    /// Dynamo's documented cost with an overlap weight of 1. It learns from events of the engines, so it knows their caches.
    pub(crate) fn dynamo(workers: usize, blocks: usize) -> Self {
        Self::new(PeerRule::Dynamo, workers, blocks)
    }

    fn new(rule: PeerRule, workers: usize, blocks: usize) -> Self {
        Self {
            rule,
            views: (0..workers).map(|_| Cache::new(blocks)).collect(),
            in_flight: vec![0; workers],
            prefill: vec![0; workers],
            active: vec![0; workers],
            expected: std::collections::HashMap::new(),
        }
    }

    pub(crate) fn pick(&mut self, request: &Request, rng: &mut StdRng) -> usize {
        let blocks = request.hash_ids.len();
        let matched: Vec<_> =
            self.views.iter().map(|view| view.prefix(&request.hash_ids)).collect();
        let all = 0..self.views.len();
        let least_of = |cost: &dyn Fn(usize) -> f64, rng: &mut StdRng| {
            let least = all.clone().map(cost).fold(f64::MAX, f64::min);
            let equals: Vec<_> = all.clone().filter(|at| cost(*at) <= least).collect();
            *equals.choose(rng).expect("at least one worker")
        };
        let load = |at: usize| f64::from(self.in_flight[at]);
        let worker = match self.rule {
            PeerRule::Sglang => {
                let most = self.in_flight.iter().copied().max().unwrap_or(0);
                let least = self.in_flight.iter().copied().min().unwrap_or(0);
                let is_uneven = most - least > 64 && f64::from(most) > 1.5 * f64::from(least);
                let best = matched.iter().copied().max().unwrap_or(0);
                if !is_uneven && best as f64 / blocks.max(1) as f64 > 0.3 {
                    matched.iter().position(|m| *m == best).unwrap_or(0)
                } else {
                    least_of(&load, rng)
                }
            }
            PeerRule::Dynamo => {
                let cost = |at: usize| {
                    self.prefill[at] as f64 / f64::from(BLOCK_TOKENS)
                        + (blocks - matched[at]) as f64
                        + self.active[at] as f64
                };
                least_of(&cost, rng)
            }
        };
        let held = matched[worker] as i64 * i64::from(BLOCK_TOKENS);
        let tokens = (i64::from(request.input_length) - held).max(1);
        self.expected.insert(std::ptr::from_ref(request), tokens);
        self.prefill[worker] += tokens;
        self.active[worker] += blocks as i64;
        self.in_flight[worker] += 1;
        self.views[worker].touch(&request.hash_ids);
        worker
    }

    pub(crate) fn first_token(&mut self, worker: usize, request: &Request) {
        self.prefill[worker] -= self.expected.remove(&std::ptr::from_ref(request)).unwrap_or(0);
    }

    pub(crate) fn end(&mut self, worker: usize, request: &Request) {
        self.active[worker] -= request.hash_ids.len() as i64;
        self.in_flight[worker] -= 1;
    }
}
