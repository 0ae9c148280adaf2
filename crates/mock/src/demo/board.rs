//! The results of the demo's users, and the view that is computed from them.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::Stats;
use crate::histogram::Histogram;
use crate::worker::Worker;

/// The length of the recent period, in seconds.
const RECENT: u64 = 5;

/// Totals since the start, and the last seconds one by one.
#[derive(Debug, Default)]
pub(super) struct Board {
    requests: u64,
    failed: u64,
    first_error: Option<String>,
    latency: Histogram,
    first_token: Histogram,
    /// One entry per second, the newest last; at most `RECENT + 1` entries.
    seconds: VecDeque<Second>,
}

#[derive(Debug, Default)]
struct Second {
    number: u64,
    latency: Histogram,
    first_token: Histogram,
}

impl Board {
    /// Records a complete answer.
    pub(super) fn answered(&mut self, now: Duration, latency: Duration, first_token: Duration) {
        self.requests += 1;
        self.latency.record(latency);
        self.first_token.record(first_token);
        if self.seconds.back().is_none_or(|second| second.number != now.as_secs()) {
            self.seconds.push_back(Second { number: now.as_secs(), ..Second::default() });
            while self.seconds.len() as u64 > RECENT + 1 {
                self.seconds.pop_front();
            }
        }
        let second = self.seconds.back_mut().expect("pushed above");
        second.latency.record(latency);
        second.first_token.record(first_token);
    }

    /// Records a failed request.
    pub(super) fn failed(&mut self, problem: String) {
        self.failed += 1;
        self.first_error.get_or_insert(problem);
    }

    /// The view at time `now`, with the given number of routers.
    pub(super) fn view(&self, now: Duration, routers: usize, workers: &[Arc<Worker>]) -> View {
        // The current second is left out, because it is incomplete and would lower the rate.
        let this = now.as_secs();
        let mut recent = (Histogram::default(), Histogram::default());
        for second in self.seconds.iter().filter(|s| s.number < this && s.number + RECENT >= this) {
            recent.0.merge(&second.latency);
            recent.1.merge(&second.first_token);
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of requests in five seconds")]
        let rate = recent.0.count() as f64 / this.clamp(1, RECENT) as f64;
        let stats: Vec<(String, Stats)> =
            workers.iter().map(|worker| (worker.name().to_owned(), worker.stats())).collect();
        View {
            elapsed: now,
            routers,
            requests: self.requests,
            failed: self.failed,
            first_error: self.first_error.clone(),
            requests_per_second: rate,
            latency: Times::of(&recent.0),
            first_token: Times::of(&recent.1),
            latency_overall: Times::of(&self.latency),
            first_token_overall: Times::of(&self.first_token),
            workers: rows(&stats),
        }
    }
}

/// The numbers that the demo shows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    pub(super) elapsed: Duration,
    pub(super) routers: usize,
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) first_error: Option<String>,
    /// The rate in the last [`RECENT`] whole seconds.
    pub(super) requests_per_second: f64,
    /// The latency in the last [`RECENT`] whole seconds.
    pub(super) latency: Times,
    /// The time to the first token in the last [`RECENT`] whole seconds.
    pub(super) first_token: Times,
    pub(super) latency_overall: Times,
    pub(super) first_token_overall: Times,
    pub(super) workers: Vec<Row>,
}

/// Two quantiles of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) p50: Duration,
    pub(super) p99: Duration,
}

impl Times {
    fn of(histogram: &Histogram) -> Self {
        Self { p50: histogram.quantile(0.5), p99: histogram.quantile(0.99) }
    }
}

/// The numbers of one worker.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) requests: u64,
    pub(super) in_flight: u64,
    /// The share of all requests, 0 to 1.
    pub(super) share: f64,
    /// The share of its prompt tokens that were cached, 0 to 1.
    pub(super) hit_rate: f64,
}

fn rows(stats: &[(String, Stats)]) -> Vec<Row> {
    let all: u64 = stats.iter().map(|(_, stats)| stats.requests).sum();
    let row = |(name, stats): &(String, Stats)| Row {
        name: name.clone(),
        requests: stats.requests,
        in_flight: stats.in_flight,
        share: fraction(stats.requests, all),
        hit_rate: fraction(stats.cached_tokens, stats.prompt_tokens),
    };
    stats.iter().map(row).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a share is shown with two digits")]
fn fraction(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl View {
    /// The view as one line, for a run without a screen.
    pub(super) fn line(&self) -> String {
        let shares: Vec<String> = self
            .workers
            .iter()
            .map(|row| format!("{:.0}/{:.0}", row.share * 100.0, row.hit_rate * 100.0))
            .collect();
        format!(
            "{:>4} s  {:>6.1} requests/s  p50 {:>4} ms  p99 {:>4} ms  failed {}  share/hit % by worker: {}",
            self.elapsed.as_secs(),
            self.requests_per_second,
            self.latency.p50.as_millis(),
            self.latency.p99.as_millis(),
            self.failed,
            shares.join("  ")
        )
    }

    /// The final summary as a table.
    pub(super) fn table(&self) -> String {
        let mut table = format!(
            "\n{} requests answered, {} failed, in {:.1} s\n\n{:<14}{:>10}{:>10}\n",
            self.requests,
            self.failed,
            self.elapsed.as_secs_f64(),
            "",
            "p50 ms",
            "p99 ms"
        );
        let millis = |time: Duration| time.as_secs_f64() * 1000.0;
        for (name, times) in
            [("first token", self.first_token_overall), ("whole answer", self.latency_overall)]
        {
            // Writing to a string can't fail.
            let _infallible =
                writeln!(table, "{name:<14}{:>10.1}{:>10.1}", millis(times.p50), millis(times.p99));
        }
        let _infallible = writeln!(
            table,
            "\n{:<14}{:>10}{:>10}{:>18}",
            "worker", "requests", "share %", "prefix hit rate %"
        );
        for row in &self.workers {
            let _infallible = writeln!(
                table,
                "{:<14}{:>10}{:>10.1}{:>18.1}",
                row.name,
                row.requests,
                row.share * 100.0,
                row.hit_rate * 100.0
            );
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_numbers_cover_whole_seconds() {
        let mut board = Board::default();
        let ms = Duration::from_millis;
        for tenth in 0..95 {
            board.answered(ms(tenth * 100), ms(tenth), ms(1));
        }
        let view = board.view(ms(9400), 1, &[]);
        assert_eq!(view.requests_per_second, 10.0, "the ninth second is incomplete");
        assert!(view.latency.p50 > ms(60) && view.latency.p50 < ms(70), "{:?}", view.latency);
        assert!(view.latency_overall.p50 < ms(50), "{:?}", view.latency_overall);
        assert_eq!(board.view(ms(20_000), 1, &[]).requests_per_second, 0.0);
        assert!(board.seconds.len() as u64 <= RECENT + 1);
    }

    #[test]
    fn the_first_error_is_kept_and_all_are_counted() {
        let mut board = Board::default();
        board.failed("one".to_owned());
        board.failed("two".to_owned());
        let view = board.view(Duration::from_secs(1), 1, &[]);
        assert_eq!((view.failed, view.first_error.as_deref()), (2, Some("one")));
    }

    #[test]
    fn shares_add_up_to_one() {
        let stats = |requests, cached_tokens| Stats {
            requests,
            cached_tokens,
            prompt_tokens: 100,
            ..Stats::default()
        };
        let rows = rows(&[("a".to_owned(), stats(30, 50)), ("b".to_owned(), stats(10, 0))]);
        assert_eq!(rows.iter().map(|row| row.share).collect::<Vec<_>>(), [0.75, 0.25]);
        assert_eq!(rows[0].hit_rate, 0.5);
        assert_eq!(fraction(0, 0), 0.0);
    }
}
