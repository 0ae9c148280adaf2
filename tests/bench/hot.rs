//! Benchmarks of the work before a request is sent: admission, hashing the prompt, finding its prefix, picking a worker.
//!
//! `cargo bench --bench hot`, or with a filter such as `-- prefix`. Publish figures only with machine,
//! commit and command; see docs/benchmarks.md.

#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand::rngs::{SmallRng, StdRng};
use rand::{RngExt, SeedableRng};
use smg_proxy::usage::{Encoding, Reader, Strip};
use smg_routing::limit::{self, Admission};
use smg_routing::policy::{self, Candidate, Hint, Kind};
use smg_routing::prefix::{self, Index};
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;

const SEED: u64 = 1;
/// Blocks of an 8 KB prompt.
const DEPTH: usize = 32;
const ENTRIES: usize = 1_000_000;

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30);
    targets = hashing, ignoring, tree, picking, journal, admitting, metering
}
criterion_main!(benches);

fn hashing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hash");
    let root = prefix::root(&ModelId::from("model"));
    for kib in [8, 128] {
        let prompt: Vec<u8> = random_bytes(kib << 10);
        group.throughput(Throughput::Bytes(prompt.len() as u64));
        let mut blocks = Vec::new();
        group.bench_function(format!("{kib}_kib"), |bencher| {
            bencher.iter(|| {
                prefix::chain(root, &[black_box(&prompt)], &mut blocks);
                blocks.last().copied()
            });
        });
    }
    // Tools and system precede the messages, so two blocks span segments.
    let prompt = random_bytes(8 << 10);
    group.throughput(Throughput::Bytes(prompt.len() as u64));
    let mut blocks = Vec::new();
    group.bench_function("8_kib_in_3_segments", |bencher| {
        let (tools, rest) = prompt.split_at(3000);
        let (system, messages) = rest.split_at(700);
        bencher.iter(|| {
            prefix::chain(root, black_box(&[tools, system, messages]), &mut blocks);
            blocks.last().copied()
        });
    });
    group.finish();
}

fn ignoring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ignored");
    let words = "This is a sentence of a prompt, as people write it at 12:30. ";
    for (name, pattern) in [
        ("none", None),
        ("literal", Some("current time: [0-9:]+")),
        ("class", Some(r"\d{2}:\d{2}")),
        ("no_literal", Some(r"[a-z]+\d+[a-z]+")),
    ] {
        let ignored = prefix::Ignored::new(pattern).unwrap();
        for kib in [8, 64, 400] {
            let prompt = words.repeat((kib << 10) / words.len());
            group.bench_function(format!("{name}_{kib}_kib"), |bencher| {
                bencher.iter(|| ignored.without(&[black_box(prompt.as_bytes())]).len());
            });
        }
    }
    group.finish();
}

fn tree(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("prefix");
    let mut rng = StdRng::seed_from_u64(SEED);
    let index = Index::new(&prefix::Config { max_entries: ENTRIES });
    let prompts: Vec<Vec<u64>> = (0..ENTRIES / DEPTH + 2000).map(|_| blocks(&mut rng)).collect();
    for (at, prompt) in prompts.iter().enumerate() {
        index.insert(prompt, WorkerId::from_u64(at as u64 % 64), Now::default());
    }
    let entries = index.entries();
    assert!(entries >= ENTRIES * 99 / 100, "only {entries} entries");
    #[expect(clippy::print_stderr, reason = "a figure of its own")]
    {
        let bytes = index.bytes() as f64 / entries as f64;
        eprintln!("prefix: {entries} entries, {bytes:.1} bytes each");
    }

    // Each look-up takes another prompt in random order, so that most of its reads miss the near caches. The blocks are copied
    // outside of the measurement, because a prompt's blocks have just been hashed when it is looked up.
    let mut draw = SmallRng::seed_from_u64(SEED);
    let everyone = |_| true;
    for (name, known) in [("all", DEPTH), ("three_quarters", DEPTH * 3 / 4), ("one_block", 1)] {
        group.bench_function(BenchmarkId::new("longest_8_kib_known", name), |bencher| {
            bencher.iter_batched_ref(
                || {
                    let mut prompt = prompts[draw.random_range(0..prompts.len())].clone();
                    prompt[known..].iter_mut().for_each(|block| *block = draw.random());
                    prompt
                },
                |prompt| index.longest(prompt, Now::default(), everyone).map(|m| m.depth),
                BatchSize::SmallInput,
            );
        });
    }
    group.bench_function(BenchmarkId::new("longest_8_kib_known", "nothing"), |bencher| {
        bencher.iter_batched_ref(
            || blocks(&mut draw),
            |prompt| index.longest(prompt, Now::default(), everyone).map(|m| m.depth),
            BatchSize::SmallInput,
        );
    });
    // The worker with the prefix serves it again, as each turn of a conversation does with its head.
    group.bench_function("insert_8_kib_known", |bencher| {
        bencher.iter_batched_ref(
            || {
                let at = draw.random_range(0..prompts.len());
                (&prompts[at], WorkerId::from_u64(at as u64 % 64))
            },
            |(prompt, worker)| index.insert(prompt, *worker, Now::default()).parent(),
            BatchSize::SmallInput,
        );
    });
    // The index is at its bound, so each block evicts another.
    group.bench_function("insert_8_kib_new", |bencher| {
        bencher.iter_batched_ref(
            || blocks(&mut draw),
            |prompt| index.insert(prompt, WorkerId::from_u64(1), Now::default()).parent(),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn picking(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick");
    let mut rng = StdRng::seed_from_u64(SEED);
    let prompts: Vec<Vec<u64>> = (0..1000).map(|_| blocks(&mut rng)).collect();
    for kind in Kind::ALL {
        for (count, even) in [(8, true), (64, true), (256, true), (256, false)] {
            let candidates: Vec<Candidate> = (0..count)
                .map(|_| {
                    let load = rng.random_range(0..8);
                    let weight = if even { 1 } else { rng.random_range(1..9) };
                    Candidate::new(WorkerId::from_u64(rng.random()), load, weight)
                })
                .collect();
            let index = Arc::new(Index::new(&prefix::Config { max_entries: 1 << 16 }));
            let policy = policy::build(
                kind,
                &policy::Config::default(),
                Arc::new(policy::Memory::new(&policy::Config::default(), index)),
            );
            for (at, prompt) in prompts.iter().enumerate() {
                let key = at.to_le_bytes();
                let hint =
                    Hint { session: Some(&key), blocks: prompt, prompt_bytes: 100 * at, model: 0 };
                policy.sent(candidates[at % count].id, &hint, Now::default());
            }
            let name = format!("{count}{}", if even { "" } else { "_weighted" });
            group.bench_function(BenchmarkId::new(kind.name(), name), |bencher| {
                let mut draw = SmallRng::seed_from_u64(SEED);
                let mut at = 0;
                bencher.iter(|| {
                    at = (at + 1) % prompts.len();
                    let key = at.to_le_bytes();
                    let hint = Hint {
                        session: Some(&key),
                        blocks: &prompts[at],
                        prompt_bytes: 100 * at,
                        model: 0,
                    };
                    policy.pick(black_box(&candidates), &hint, Now::default(), &mut draw).unwrap()
                });
            });
        }
    }
    group.finish();
}

/// The cost of `pick` and `sent` together, without and with a journal for other routers, for the next turn of a conversation of
/// which three blocks in twenty are new.
fn journal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("turn");
    for kind in [Kind::CacheAware, Kind::Manual] {
        for shared in [false, true] {
            let mut rng = StdRng::seed_from_u64(SEED);
            let candidates: Vec<Candidate> =
                (0..8).map(|_| Candidate::new(WorkerId::from_u64(rng.random()), 1, 1)).collect();
            let config =
                policy::Config { agree_across_routers: shared, ..policy::Config::default() };
            let index = Arc::new(Index::new(&prefix::Config { max_entries: 1 << 18 }));
            let memory = Arc::new(policy::Memory::new(&config, index));
            let policy = policy::build(kind, &config, Arc::clone(&memory));
            if shared {
                memory.journal.open();
            }
            let mut talks: Vec<Vec<u64>> =
                (0..1000).map(|_| (0..17).map(|_| rng.random()).collect()).collect();
            let mut draw = SmallRng::seed_from_u64(SEED);
            let mut at = 0;
            let name = if shared { "shared" } else { "alone" };
            group.bench_function(BenchmarkId::new(kind.name(), name), |bencher| {
                bencher.iter(|| {
                    at = (at + 1) % talks.len();
                    if at == 0 {
                        // As often as at 40,000 requests per second.
                        black_box(memory.journal.take());
                    }
                    let talk = &mut talks[at];
                    if talk.len() >= 64 {
                        talk.truncate(17);
                    }
                    talk.extend(std::array::from_fn::<u64, 3, _>(|_| draw.random()));
                    let key = (at as u64).to_le_bytes();
                    let hint =
                        Hint { session: Some(&key), blocks: talk, prompt_bytes: 5000, model: 1 };
                    let pick = policy
                        .pick(black_box(&candidates), &hint, Now::default(), &mut draw)
                        .unwrap();
                    policy.sent(candidates[pick.index].id, &hint, Now::default());
                });
            });
        }
    }
    group.finish();
}

fn admitting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("admission");
    let config = limit::Config { max_concurrent: NonZeroU32::new(100), queue_size: 100 };
    let admission = Admission::new(&config);
    group.bench_function("try_enter_and_give_back", |bencher| {
        bencher.iter(|| admission.try_acquire().unwrap());
    });
    let taken: Vec<_> = (0..100).map(|_| admission.try_acquire().unwrap()).collect();
    group.bench_function("wait_and_leave", |bencher| {
        bencher.iter(|| admission.acquire(limit::Priority::Default).unwrap());
    });
    drop(taken);
    group.finish();
}

/// Reading the usage of answers: a stream of 100 tokens as vLLM sends it, one event per piece, and a JSON answer.
fn metering(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("usage");
    let path = "/v1/chat/completions";
    let chunk = |usage: &str| {
        let head = r#"data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1790000000,"#;
        let choice = r#""model":"m","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]"#;
        Bytes::from(format!("{head}{choice}{usage}}}\n\n"))
    };
    let counts = r#","usage":{"prompt_tokens":900,"completion_tokens":100,"total_tokens":1000}"#;
    for (name, usage) in [("none", ""), ("null", ",\"usage\":null"), ("continuous", counts)] {
        let chunk = chunk(usage);
        group.throughput(Throughput::Elements(100));
        group.bench_function(BenchmarkId::new("stream_of_100", name), |bencher| {
            bencher.iter(|| {
                let mut reader = Reader::new(path, Encoding::Events);
                (0..100).for_each(|_| reader.feed(black_box(&chunk)));
                reader.settlement(true, 4000)
            });
        });
        group.bench_function(BenchmarkId::new("strip_100", name), |bencher| {
            bencher.iter(|| {
                let mut strip = Strip::default();
                (0..100).map(|_| strip.feed(black_box(&chunk).clone()).len()).sum::<usize>()
            });
        });
    }
    let text = "words and \\\"quotes\\\" ".repeat(80);
    let answer = format!(
        r#"{{"id":"1","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}}}}]{counts}}}"#
    );
    let numbers = "0.0123456789,".repeat(1024 * 64);
    let vectors = format!(r#"{{"data":[{{"embedding":[{numbers}0]}}]{counts}}}"#);
    for (name, answer) in [("chat_2_kib", answer), ("embeddings_850_kib", vectors)] {
        group.throughput(Throughput::Bytes(answer.len() as u64));
        group.bench_function(BenchmarkId::new("json", name), |bencher| {
            bencher.iter(|| {
                let mut reader = Reader::new(path, Encoding::Json);
                reader.feed(black_box(answer.as_bytes()));
                reader.settlement(true, 4000)
            });
        });
    }
    group.finish();
}

fn random_bytes(len: usize) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(SEED);
    (0..len).map(|_| rng.random()).collect()
}

fn blocks(rng: &mut impl rand::Rng) -> Vec<u64> {
    (0..DEPTH).map(|_| rng.random_range(1..=u64::MAX)).collect()
}
