//! Counts the prompt tokens that wait for their computation on a worker, and holds what the worker was seen to take.
//!
//! The prompt of a streamed answer waits until the first event of the stream. A complete answer comes only after all its tokens
//! were generated, so it does not show when its prompt was computed: such prompts are taken to be computed one after the other at
//! the worker's speed.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use smg_types::now::Now;

use crate::speed::{FirstToken, Speed, SpeedFit};

/// The prompt tokens in front of a worker, and its speed.
#[derive(Debug)]
pub(super) struct Prefill {
    /// Tokens of prompts whose streams have not begun.
    streamed: AtomicU32,
    /// Tokens of other prompts: how many there were (upper half) at a time in milliseconds (lower half).
    draining: AtomicU64,
    /// Tokens that the other routers report.
    remote: AtomicU32,
    /// The time in milliseconds since when the worker is taken to compute the prompt that is next: the last first token, or the
    /// beginning of the queue.
    computing_since: AtomicU32,
    /// The three terms of [`Speed`], as bits.
    speed: [AtomicU32; 3],
    is_learnt: AtomicBool,
    fit: Mutex<SpeedFit>,
    /// Tokens per byte of prompt, as bits.
    tokens_per_byte: AtomicU32,
    /// Tokens of the prompts whose answers report how many were cached.
    prompt_tokens: AtomicU64,
    /// Those of them that were cached.
    cached_tokens: AtomicU64,
}

/// The tokens of all prompts that this router has sent to a worker and of which the worker has reported how many were in its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CachedTokens {
    /// All tokens of these prompts.
    pub all: u64,
    /// Those that were cached.
    pub cached: u64,
}

/// Tokens per byte that are assumed until an answer shows it.
const TOKENS_PER_BYTE: f32 = 0.25;

impl Default for Prefill {
    fn default() -> Self {
        let Speed { overhead, per_token, per_request } = Speed::ASSUMED;
        Self {
            streamed: AtomicU32::new(0),
            draining: AtomicU64::new(0),
            remote: AtomicU32::new(0),
            computing_since: AtomicU32::new(0),
            speed: [overhead, per_token, per_request].map(|term| AtomicU32::new(term.to_bits())),
            is_learnt: AtomicBool::new(false),
            fit: Mutex::default(),
            tokens_per_byte: AtomicU32::new(TOKENS_PER_BYTE.to_bits()),
            prompt_tokens: AtomicU64::new(0),
            cached_tokens: AtomicU64::new(0),
        }
    }
}

impl Prefill {
    /// The tokens that wait: this router's and those that the others report. Of the prompts whose computation shows in a first token,
    /// it leaves out what the worker should have computed since the last one.
    pub(super) fn waiting(&self, now: Now) -> u32 {
        let remote = self.remote.load(Ordering::Relaxed);
        let shown = self.streamed.load(Ordering::Relaxed).saturating_add(remote);
        let since = self.computing_since.load(Ordering::Relaxed);
        self.draining(now).saturating_add(self.left(shown, since, millis(now)))
    }

    /// The tokens of this router's requests that wait.
    pub(super) fn own(&self, now: Now) -> u32 {
        self.streamed.load(Ordering::Relaxed).saturating_add(self.draining(now))
    }

    /// Notes the tokens that the other routers report now. Fewer than before are taken for a first token at one of them.
    pub(super) fn set_remote(&self, tokens: u32, now: Now) {
        let before = self.remote.swap(tokens, Ordering::Relaxed);
        if tokens < before || (before == 0 && self.own(now) == 0) {
            self.computing_since.store(millis(now), Ordering::Relaxed);
        }
    }

    /// Adds the tokens of a prompt whose answer is streamed.
    pub(super) fn begin_streamed(&self, tokens: u32, now: Now) {
        if self.streamed.fetch_add(tokens, Ordering::Relaxed) == 0
            && self.remote.load(Ordering::Relaxed) == 0
        {
            self.computing_since.store(millis(now), Ordering::Relaxed);
        }
    }

    /// Notes the first token of a streamed answer.
    pub(super) fn first_token(&self, tokens: u32, now: Now) {
        self.computing_since.store(millis(now), Ordering::Relaxed);
        self.end_streamed(tokens);
    }

    /// Removes the tokens of a prompt whose answer is streamed.
    pub(super) fn end_streamed(&self, tokens: u32) {
        let before = self.streamed.fetch_sub(tokens, Ordering::Relaxed);
        debug_assert!(before >= tokens, "tokens were counted down twice");
    }

    /// Adds the tokens of a prompt whose answer comes whole.
    pub(super) fn begin_whole(&self, tokens: u32, now: Now) {
        let at = millis(now);
        let add = |draining| {
            let (before, since) = unpack(draining);
            Some(pack(self.left(before, since, at).saturating_add(tokens), at))
        };
        let added = self.draining.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        debug_assert!(added.is_ok(), "every value can be added to");
    }

    /// Notes that no request is in flight.
    pub(super) fn clear_whole(&self) {
        if self.draining.load(Ordering::Relaxed) != 0 {
            self.draining.store(0, Ordering::Relaxed);
        }
    }

    /// The tokens of prompts whose answers come whole that wait.
    fn draining(&self, now: Now) -> u32 {
        let (tokens, since) = unpack(self.draining.load(Ordering::Relaxed));
        self.left(tokens, since, millis(now))
    }

    /// What is left of `tokens` that the worker has computed since a time in milliseconds.
    fn left(&self, tokens: u32, since: u32, at: u32) -> u32 {
        let elapsed = at.wrapping_sub(since);
        if tokens == 0 || elapsed > u32::MAX / 2 {
            // Another thread has read the clock later.
            return tokens;
        }
        let done = elapsed as f32 / 1000.0 / self.speed().per_token;
        tokens.saturating_sub(done.round() as u32)
    }

    pub(super) fn speed(&self) -> Speed {
        let [overhead, per_token, per_request] =
            self.speed.each_ref().map(|term| f32::from_bits(term.load(Ordering::Relaxed)));
        Speed { overhead, per_token, per_request }
    }

    /// The speed, if an answer has shown it.
    pub(super) fn learnt_speed(&self) -> Option<Speed> {
        self.is_learnt.load(Ordering::Relaxed).then(|| self.speed())
    }

    pub(super) fn learn(&self, seen: FirstToken) {
        let Speed { overhead, per_token, per_request } = self.fit.lock().learn(seen);
        for (term, value) in self.speed.iter().zip([overhead, per_token, per_request]) {
            term.store(value.to_bits(), Ordering::Relaxed);
        }
        self.is_learnt.store(true, Ordering::Relaxed);
    }

    pub(super) fn tokens_per_byte(&self) -> f32 {
        f32::from_bits(self.tokens_per_byte.load(Ordering::Relaxed))
    }

    /// Counts a prompt of `all` tokens of which the worker reports that `cached` were in its cache.
    pub(super) fn count_cached(&self, all: u64, cached: u64) {
        self.prompt_tokens.fetch_add(all, Ordering::Relaxed);
        self.cached_tokens.fetch_add(cached.min(all), Ordering::Relaxed);
    }

    /// The tokens that were counted so far.
    pub(super) fn cached(&self) -> CachedTokens {
        // Read in this order, so that a prompt that is counted meanwhile can't show more cached tokens than tokens.
        let cached = self.cached_tokens.load(Ordering::Relaxed);
        let all = self.prompt_tokens.load(Ordering::Relaxed).max(cached);
        CachedTokens { all, cached }
    }

    /// Learns from a prompt how many tokens a byte has; a moving average in which a prompt has a weight of 1/16.
    pub(super) fn learn_tokens(&self, tokens: u64, bytes: usize) {
        if bytes < 64 {
            return;
        }
        let seen = (tokens as f32 / bytes as f32).clamp(0.001, 2.0);
        let before = self.tokens_per_byte();
        // A lost update between two threads costs one sample.
        let after = before + (seen - before) / 16.0;
        self.tokens_per_byte.store(after.to_bits(), Ordering::Relaxed);
    }
}

fn pack(tokens: u32, at: u32) -> u64 {
    u64::from(tokens) << 32 | u64::from(at)
}

fn unpack(draining: u64) -> (u32, u32) {
    ((draining >> 32) as u32, draining as u32)
}

/// The monotonic clock in milliseconds; it wraps.
fn millis(now: Now) -> u32 {
    Duration::from_nanos(now.mono_nanos()).as_millis() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Now {
        Now::at(Duration::from_millis(1_000_000 + millis))
    }

    #[test]
    fn prompts_of_whole_answers_are_computed_at_the_workers_speed() {
        let prefill = Prefill::default();
        prefill.begin_whole(8000, at(0));
        for (ms, left) in [(0, 8000), (250, 6000), (1000, 0), (5000, 0)] {
            assert_eq!((prefill.own(at(ms)), prefill.waiting(at(ms))), (left, left), "{ms} ms");
        }
        prefill.begin_whole(4000, at(500));
        assert_eq!(prefill.own(at(500)), 8000);
        assert_eq!(prefill.own(at(499)), 8000, "the clock of another thread");
        prefill.clear_whole();
        assert_eq!(prefill.own(at(500)), 0);
    }

    #[test]
    fn what_waits_is_the_sum_of_all_routers() {
        let prefill = Prefill::default();
        prefill.begin_streamed(100, at(0));
        prefill.set_remote(30, at(0));
        assert_eq!((prefill.own(at(0)), prefill.waiting(at(0))), (100, 130));
        prefill.end_streamed(100);
        assert_eq!(prefill.waiting(at(0)), 30);
    }

    #[test]
    fn what_the_worker_has_computed_since_the_last_first_token_does_not_wait() {
        let prefill = Prefill::default();
        prefill.begin_streamed(8000, at(0));
        prefill.begin_streamed(4000, at(100));
        assert_eq!(prefill.waiting(at(500)), 8000);
        prefill.first_token(8000, at(1100));
        assert_eq!((prefill.waiting(at(1100)), prefill.waiting(at(1350))), (4000, 2000));
        assert_eq!(prefill.own(at(1350)), 4000, "the others get what waits for a first token");
    }

    #[test]
    fn the_tokens_of_a_byte_are_learnt() {
        let prefill = Prefill::default();
        for _ in 0..100 {
            prefill.learn_tokens(500, 1000);
            prefill.learn_tokens(50, 10);
        }
        assert!((prefill.tokens_per_byte() - 0.5).abs() < 0.01);
    }

    #[test]
    fn cached_tokens_are_never_more_than_those_of_the_prompts() {
        let prefill = Prefill::default();
        assert_eq!(prefill.cached(), CachedTokens::default());
        prefill.count_cached(100, 60);
        prefill.count_cached(50, 70);
        assert_eq!(prefill.cached(), CachedTokens { all: 150, cached: 110 });
    }
}
