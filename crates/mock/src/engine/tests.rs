//! Tests of times, slots and counts, under a paused clock.

#![expect(clippy::disallowed_methods, reason = "the paused clock of a test")]

use std::num::NonZeroUsize;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::*;
use crate::config::{Rate, Share};

/// An engine that prefills 1,000 tokens and generates 100 tokens per second, with blocks of 4 tokens.
fn slow(slots: usize) -> Arc<Engine> {
    Arc::new(Engine::new(Config {
        prefill: Rate::new(1000.0).unwrap(),
        decode: Rate::new(100.0).unwrap(),
        block_tokens: NonZeroUsize::new(4).unwrap(),
        slots: NonZeroUsize::new(slots),
        ..Config::default()
    }))
}

/// Prefills a prompt and generates tokens. Returns the token counts and the elapsed time.
async fn run(engine: &Arc<Engine>, prompt: &[u8], tokens: u32) -> (Usage, Duration) {
    let start = Instant::now();
    let mut job = engine.begin();
    let usage = job.prefill(prompt, 0).await;
    pause(job.decode_time(tokens)).await;
    job.complete();
    (usage, start.elapsed())
}

/// Runs all `futures` concurrently and returns their results in the order in which they end.
async fn join_all<F>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let mut running: JoinSet<_> = futures.into_iter().collect();
    let mut ended = Vec::new();
    while let Some(output) = running.join_next().await {
        ended.push(output.unwrap());
    }
    ended
}

#[tokio::test(start_paused = true)]
async fn a_cached_prefix_needs_no_prefill() {
    let engine = slow(0);
    let (usage, took) = run(&engine, &[b'a'; 400], 11).await;
    assert_eq!((usage.prompt, usage.cached), (100, 0));
    assert_eq!(took, Duration::from_millis(100 + 100));

    let longer = [[b'a'; 400].as_slice(), &[b'b'; 80]].concat();
    let (usage, took) = run(&engine, &longer, 1).await;
    assert_eq!((usage.prompt, usage.cached), (120, 100));
    assert_eq!(took, Duration::from_millis(20));

    let (usage, _) = run(&engine, &longer, 1).await;
    assert_eq!(usage.cached, 119, "the last token is always worked off");
    engine.flush_cache();
    assert_eq!(run(&engine, &longer, 1).await.0.cached, 0);
}

#[tokio::test(start_paused = true)]
async fn slots_are_served_in_order_and_never_exceeded() {
    let engine = slow(2);
    let start = Instant::now();
    let ends = join_all((0_u8..5).map(|nth| {
        let engine = Arc::clone(&engine);
        async move {
            run(&engine, &[nth; 400], 1).await;
            (nth, Instant::now())
        }
    }))
    .await;
    let order: Vec<u8> = ends.iter().map(|(nth, _)| *nth).collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
    assert_eq!(ends[4].1 - start, Duration::from_millis(300));
    let stats = engine.stats();
    assert_eq!((stats.max_running, stats.max_in_flight, stats.completed), (2, 5, 5));
    assert_eq!((stats.running, stats.in_flight), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn prompts_are_prefilled_in_order_and_find_what_earlier_ones_have_cached() {
    let config = slow(0).config.clone();
    let engine = Arc::new(Engine::new(Config { prefill_slots: NonZeroUsize::new(1), ..config }));
    let start = Instant::now();
    let prompts = [vec![b'a'; 400], vec![b'b'; 400], vec![b'a'; 400]];
    let ends = join_all(prompts.map(|prompt| {
        let engine = Arc::clone(&engine);
        async move { (run(&engine, &prompt, 1).await.0.cached, start.elapsed().as_millis()) }
    }))
    .await;
    assert_eq!(ends, [(0, 100), (0, 200), (99, 201)]);
    assert_eq!(engine.stats().max_running, 3, "they wait with a slot");
    // One that leaves while it waits makes room for the next one.
    let mut first = engine.begin();
    let mut second = engine.begin();
    let both = async { tokio::join!(first.prefill(&[b'c'; 400], 0), second.prefill(b"d", 0)) };
    assert!(tokio::time::timeout(Duration::from_millis(10), both).await.is_err());
    drop((first, second));
    assert_eq!(run(&engine, &[b'e'; 400], 1).await.1, Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_dropped_counts_as_aborted_and_frees_its_slot() {
    let engine = slow(1);
    let mut running = engine.begin();
    let working = tokio::time::timeout(Duration::from_millis(10), running.prefill(&[b'a'; 400], 0));
    assert!(working.await.is_err());
    let mut queued = engine.begin();
    let waiting = tokio::time::timeout(Duration::from_millis(10), queued.prefill(b"b", 0));
    assert!(waiting.await.is_err());
    assert_eq!((engine.stats().running, engine.stats().in_flight), (1, 2));
    drop((running, queued));
    let stats = engine.stats();
    assert_eq!((stats.running, stats.in_flight, stats.aborted), (0, 0, 2));
    assert_eq!(run(&engine, &[b'a'; 400], 1).await.0.cached, 0, "an aborted prefill is not cached");
}

#[tokio::test(start_paused = true)]
async fn jitter_stays_within_its_share_and_repeats_with_its_seed() {
    let config = Config {
        decode: Rate::new(10.0).unwrap(),
        jitter: Share::new(0.2).unwrap(),
        ..Config::default()
    };
    let times = |seed| {
        let engine = Arc::new(Engine::new(Config { seed, ..config.clone() }));
        (0..50).map(|_| engine.begin().token_time()).collect::<Vec<_>>()
    };
    assert!(times(3).iter().all(|time| (80..=120).contains(&time.as_millis())), "{:?}", times(3));
    assert_eq!(times(3), times(3));
    assert_ne!(times(3), times(4));
}
