//! Learns how long a worker takes to the first token of an answer.
//!
//! The time to first token is taken as `overhead + per_token * tokens + per_request * running`: `tokens` are the prompt tokens that
//! the worker computes until then, those of the requests that wait before this one included, and `running` are the requests that it
//! generates tokens for meanwhile. The three are fitted by weighted least squares over the recent answers (exponential forgetting,
//! as in recursive least squares). The variance of a time is taken to grow with the time, so that short prompts count too. None
//! of them can be negative: a term that would be is left out and the others are fitted again.

/// The share of its weight that an old answer keeps when a new one comes: some 25 answers count.
const KEPT: f64 = 0.96;
/// The variance of a time does not fall below that of this many seconds.
const NOISE: f64 = 0.02;
/// An answer that took more than this many times its expected time, plus a second, counts as if it had taken that long: a request
/// that was stuck must not make a worker look slow for long.
const MOST_LATE: f64 = 4.0;
/// The weight of an answer that took longer than expected, relative to one that was faster: prompts of other routers that this one
/// does not see make answers late, and nothing makes them early.
const LATE: f64 = 0.3;
/// Prompt tokens are counted in thousands, so that the sums have similar sizes.
const UNIT: f64 = 1000.0;
/// The weight of the assumption that the fit starts from, in answers.
const PRIOR: f64 = 0.5;

/// The least time to compute a prompt token, in seconds: an engine with a small model on a large GPU.
const FASTEST: f32 = 2.5e-5;

/// The time that a worker needs, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// The part of the time to first token that depends on neither prompt nor load.
    pub overhead: f32,
    /// The time to compute one prompt token.
    pub per_token: f32,
    /// The time that each request adds which the worker generates tokens for.
    pub per_request: f32,
}

impl Speed {
    /// Assumed of a worker that has not answered yet: 8,000 prompt tokens per second.
    pub const ASSUMED: Self = Self { overhead: 0.02, per_token: 1.0 / 8000.0, per_request: 0.001 };

    /// The expected time to first token of a request before which and for which the worker computes `tokens` prompt tokens, while
    /// it generates tokens for `running` requests. Seconds.
    #[must_use]
    pub fn expected(&self, tokens: f32, running: u32) -> f32 {
        self.overhead + self.per_token * tokens + self.per_request * running as f32
    }
}

/// The time to first token of one answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FirstToken {
    /// Seconds from sending the request.
    pub seconds: f64,
    /// Prompt tokens that the worker had to compute until then, those of the requests before it included.
    pub tokens: f64,
    /// Requests that the worker generated tokens for when the request was sent.
    pub running: f64,
}

/// The fit of [`Speed`] to the answers of one worker.
#[derive(Debug, Clone)]
pub(crate) struct SpeedFit {
    /// Weighted sums of the products of two features.
    products: [[f64; 3]; 3],
    /// Weighted sums of the products of a feature and the time.
    times: [f64; 3],
    speed: [f64; 3],
    answers: u32,
}

impl Default for SpeedFit {
    fn default() -> Self {
        Self::assuming(1.0)
    }
}

impl SpeedFit {
    /// A fit that begins from the assumption, as if it had been seen with a typical prompt and load, with all times multiplied by
    /// `slowness`.
    fn assuming(slowness: f64) -> Self {
        let Speed { overhead, per_token, per_request } = Speed::ASSUMED;
        let speed = [overhead.into(), f64::from(per_token) * UNIT, per_request.into()];
        let speed = speed.map(|term: f64| term * slowness);
        let mut fit = Self { products: [[0.0; 3]; 3], times: [0.0; 3], speed, answers: 0 };
        for (at, typical) in [1.0, 1.0, 4.0].into_iter().enumerate() {
            fit.products[at][at] = PRIOR * weight(speed[at] * typical) * typical * typical;
            fit.times[at] = fit.products[at][at] * speed[at];
        }
        fit
    }

    /// Learns from an answer. Returns the new fit.
    pub(crate) fn learn(&mut self, seen: FirstToken) -> Speed {
        let features = [1.0, seen.tokens / UNIT, seen.running];
        let expected =
            |fit: &Self| -> f64 { features.iter().zip(fit.speed).map(|(f, s)| f * s).sum() };
        if self.answers == 0 {
            // Workers differ by orders of magnitude: the first answer shows which it is.
            *self = Self::assuming((seen.seconds / expected(self)).clamp(1e-3, 1e3));
        }
        let expected = expected(self);
        // The first answers replace the assumption, however far from it they are.
        let most = if self.answers < 8 { f64::MAX } else { expected * MOST_LATE + 1.0 };
        let seconds = seen.seconds.min(most);
        let late = if seconds > expected { LATE } else { 1.0 };
        let weight = weight(expected) * late;
        for row in 0..3 {
            for column in 0..3 {
                let kept = self.products[row][column] * KEPT;
                self.products[row][column] = kept + weight * features[row] * features[column];
            }
            self.times[row] = self.times[row] * KEPT + weight * features[row] * seconds;
        }
        self.answers = self.answers.saturating_add(1);
        self.speed = least_squares(&self.products, &self.times);
        let [overhead, per_token, per_request] = self.speed.map(|value| value as f32);
        // No engine is faster: below this, the time of an answer shows something else than the prompt.
        let per_token = (per_token / UNIT as f32).max(FASTEST);
        Speed { overhead, per_token, per_request }
    }
}

/// The weight of an answer that is expected after this many seconds.
fn weight(expected: f64) -> f64 {
    1.0 / (expected + NOISE)
}

/// The vector without negative elements that fits the equations `products * x = times` best. A feature whose element would be
/// negative is left out, the worst one first.
fn least_squares(products: &[[f64; 3]; 3], times: &[f64; 3]) -> [f64; 3] {
    let mut used = [true; 3];
    loop {
        let x = solve(products, times, used);
        let worst = (0..3).filter(|at| x[*at] < 0.0).min_by(|a, b| x[*a].total_cmp(&x[*b]));
        match worst {
            Some(worst) => used[worst] = false,
            None => return x,
        }
    }
}

/// Solves the equations of the features in use by Gaussian elimination; the others are 0.
fn solve(products: &[[f64; 3]; 3], times: &[f64; 3], used: [bool; 3]) -> [f64; 3] {
    let (mut a, mut b) = (*products, *times);
    for at in (0..3).filter(|at| !used[*at]) {
        b[at] = 0.0;
        a[at] = [0.0; 3];
        a.iter_mut().for_each(|row| row[at] = 0.0);
        a[at][at] = 1.0;
    }
    // The matrix is positive definite, so no pivot is zero; a little is added against rounding.
    for at in 0..3 {
        a[at][at] += a[at][at] * 1e-9 + 1e-12;
        for row in at + 1..3 {
            let factor = a[row][at] / a[at][at];
            let pivot = a[at];
            a[row].iter_mut().zip(pivot).for_each(|(cell, above)| *cell -= factor * above);
            b[row] -= factor * b[at];
        }
    }
    let mut x = [0.0; 3];
    for at in (0..3).rev() {
        let known: f64 = (at + 1..3).map(|column| a[at][column] * x[column]).sum();
        x[at] = (b[at] - known) / a[at][at];
    }
    x
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    /// Fits answers of a worker with these constants, whose times vary by `noise`.
    fn learnt(real: Speed, answers: usize, noise: f64, fit: &mut SpeedFit) -> Speed {
        let mut rng = StdRng::seed_from_u64(3);
        let mut speed = Speed::ASSUMED;
        for _ in 0..answers {
            let tokens: f64 = rng.random_range(10.0..20_000.0);
            let running = rng.random_range(0..32);
            let exact = f64::from(real.expected(tokens as f32, running));
            let seconds = exact * (1.0 + noise * rng.random_range(-1.0..1.0));
            let running = f64::from(running);
            speed = fit.learn(FirstToken { seconds, tokens, running });
        }
        speed
    }

    fn is_near(a: f32, b: f32) -> bool {
        (a - b).abs() <= 0.1 * b
    }

    #[test]
    fn fast_and_slow_workers_are_learnt() {
        for rate in [60.0, 1000.0, 8000.0, 30_000.0] {
            let real = Speed { overhead: 0.05, per_token: 1.0 / rate, per_request: 0.004 };
            let speed = learnt(real, 60, 0.05, &mut SpeedFit::default());
            assert!(is_near(speed.per_token, real.per_token), "{speed:?} instead of {real:?}");
        }
    }

    #[test]
    fn few_answers_suffice() {
        let real = Speed { overhead: 0.01, per_token: 0.001, per_request: 0.0 };
        let speed = learnt(real, 8, 0.05, &mut SpeedFit::default());
        assert!((0.8..1.2).contains(&(speed.per_token / real.per_token)), "{speed:?}");
    }

    #[test]
    fn a_worker_that_becomes_slower_is_learnt_anew() {
        let mut fit = SpeedFit::default();
        let fast = Speed { overhead: 0.01, per_token: 1.0 / 10_000.0, per_request: 0.0 };
        learnt(fast, 200, 0.05, &mut fit);
        let slow = Speed { per_token: 1.0 / 1000.0, ..fast };
        let speed = learnt(slow, 200, 0.05, &mut fit);
        assert!(is_near(speed.per_token, slow.per_token), "{speed:?}");
    }

    #[test]
    fn one_stuck_request_changes_little() {
        let mut fit = SpeedFit::default();
        let real = Speed { overhead: 0.01, per_token: 1.0 / 10_000.0, per_request: 0.001 };
        learnt(real, 200, 0.1, &mut fit);
        let stuck = fit.learn(FirstToken { seconds: 600.0, tokens: 100.0, running: 1.0 });
        assert!(stuck.expected(5000.0, 4) < 2.0 * real.expected(5000.0, 4), "{stuck:?}");
    }

    #[test]
    fn nothing_is_negative_whatever_is_seen() {
        let mut rng = StdRng::seed_from_u64(5);
        let mut fit = SpeedFit::default();
        for _ in 0..2000 {
            let seconds = rng.random_range(0.0..3.0);
            let tokens = rng.random_range(0.0..1e6);
            let running = f64::from(rng.random_range(0..500u32));
            let speed = fit.learn(FirstToken { seconds, tokens, running });
            let terms = [speed.overhead, speed.per_token, speed.per_request];
            assert!(terms.iter().all(|term| term.is_finite() && *term >= 0.0), "{speed:?}");
        }
    }
}
