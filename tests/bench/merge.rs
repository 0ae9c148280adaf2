//! What replication costs: a write among a hundred thousand keys, a quiet and a busy round, a snapshot of ten thousand
//! workers, a million puts and deletes. `cargo bench --bench merge`.

#![expect(clippy::unwrap_used, reason = "a bench")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rand::SeedableRng;
use rand::rngs::StdRng;
use smg_cluster::replication::message::Message;
use smg_cluster::replication::{Config, Replication};
use smg_cluster::state::StoreId;
use smg_cluster::state::load::{Load, LoadWrite};
use smg_cluster::state::session::{SessionKey, SessionWrite};
use smg_cluster::state::worker::WorkerWrite;
use smg_types::ids::{Generation, NodeId, WorkerId};
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;

fn at(ms: u64) -> Now {
    Now::at(Duration::from_millis(1_000_000 + ms))
}

fn id(name: &str) -> NodeId {
    NodeId { name: name.parse().unwrap(), generation: Generation(1) }
}

fn load(worker: u64, requests: u32) -> LoadWrite {
    LoadWrite { worker: WorkerId::from_u64(worker), load: Some(Load { requests, tokens: 1000 }) }
}

/// A hundred thousand keys in the stores that may hold so many: a session each.
fn with_sessions(count: u64) -> Replication {
    let mut replica = Replication::new(id("a"), Config::default(), at(0));
    for n in 0..count {
        let ttl = Duration::from_secs(3600);
        let worker = WorkerId::from_u64(n % 100);
        let key = SessionKey(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        replica.update(at(0), SessionWrite::Use { key, worker, ttl }).unwrap();
    }
    replica
}

fn spec(n: u64) -> WorkerSpec {
    let mut spec =
        WorkerSpec::new(format!("http://10.0.{}.{}:8000", n / 250, n % 250).parse().unwrap());
    spec.models = vec!["meta-llama/Llama-3.1-70B-Instruct".into()];
    spec.labels.insert("zone".to_owned(), "eu-central-1a".to_owned());
    spec.labels.insert("pool".to_owned(), format!("pool-{}", n % 7));
    spec.api_key = Some(smg_types::spec::Secret::new("sk-0123456789abcdef0123456789abcdef"));
    spec
}

fn exchange(now: Now, replicas: &mut [Replication]) {
    loop {
        let mut said = Vec::new();
        for replica in replicas.iter_mut() {
            while let Some((to, message, _)) = replica.poll_transmit(now) {
                said.push((replica.me().clone(), to, message));
            }
        }
        if said.is_empty() {
            return;
        }
        for (from, to, message) in said {
            if let Some(replica) = replicas.iter_mut().find(|replica| *replica.me() == to) {
                replica.handle_message(now, &from, message);
            }
        }
    }
}

fn write_among_100k_keys(c: &mut Criterion) {
    let mut replica = with_sessions(100_000);
    let mut n = 0u64;
    c.bench_function("update_one_of_100k_sessions", |b| {
        b.iter(|| {
            n += 1;
            let key = SessionKey((n * 7919 % 100_000).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let ttl = Duration::from_secs(3600);
            let worker = WorkerId::from_u64(n % 100);
            let write = SessionWrite::Use { key, worker, ttl };
            black_box(replica.update(at(n / 1000), write).unwrap())
        });
    });
    let mut replica = Replication::new(id("a"), Config::default(), at(0));
    for n in 0..30_000 {
        replica.update(at(0), load(n, 1)).unwrap();
    }
    c.bench_function("update_one_of_30k_load_gauges", |b| {
        b.iter(|| {
            n += 1;
            black_box(replica.update(at(n / 1000), load(n * 7919 % 30_000, n as u32)).unwrap())
        });
    });
}

/// A pair with a hundred thousand keys, level with each other.
fn level_pair() -> [Replication; 2] {
    let mut a = with_sessions(100_000);
    let mut b = Replication::new(id("b"), Config::default(), at(0));
    let (one, two) = (a.me().clone(), b.me().clone());
    a.peer_up(at(0), &two);
    b.peer_up(at(0), &one);
    let mut pair = [a, b];
    let mut rng = StdRng::seed_from_u64(1);
    for ms in (0..20_000).step_by(50) {
        for replica in &mut pair {
            replica.handle_tick(at(ms), &mut rng);
        }
        exchange(at(ms), &mut pair);
    }
    assert_eq!(
        pair[0].state().fingerprint(StoreId::Sessions),
        pair[1].state().fingerprint(StoreId::Sessions)
    );
    pair
}

fn rounds_with_100k_keys(c: &mut Criterion) {
    let mut pair = level_pair();
    let mut rng = StdRng::seed_from_u64(1);
    let mut ms = 20_000;
    c.bench_function("quiet_second_of_two_nodes_with_100k_keys", |b| {
        b.iter(|| {
            for _ in 0..4 {
                ms += 250;
                for replica in &mut pair {
                    replica.handle_tick(at(ms), &mut rng);
                }
                exchange(at(ms), &mut pair);
            }
        });
    });
    c.bench_function("100_gauges_change_and_reach_the_peer_with_100k_other_keys", |b| {
        b.iter(|| {
            ms += 100;
            for n in 0..100 {
                pair[0].update(at(ms), load(n, ms as u32)).unwrap();
            }
            exchange(at(ms), &mut pair);
        });
    });
}

fn snapshot_of_10k_workers(c: &mut Criterion) {
    let mut donor = Replication::new(id("a"), Config::default(), at(0));
    for n in 0..10_000 {
        donor.update(at(0), WorkerWrite::Put((&spec(n)).into())).unwrap();
    }
    let config = bincode::config::standard();
    c.bench_function("snapshot_10k_workers_encode_decode_apply", |b| {
        b.iter_batched(
            || Replication::new(id("b"), Config::default(), at(0)),
            |mut joiner| {
                let (mut chunks, mut after) = (Vec::new(), None);
                loop {
                    let chunk = donor.chunk(StoreId::Workers, 0, after).unwrap();
                    after = chunk.end.clone();
                    let message = Message::Snapshot(chunk);
                    let bytes = bincode::serde::encode_to_vec(&message, config).unwrap();
                    let (decoded, _) = bincode::serde::decode_from_slice(&bytes, config).unwrap();
                    let Message::Snapshot(chunk) = decoded else { unreachable!("as encoded") };
                    chunks.push(chunk);
                    if after.is_none() {
                        break;
                    }
                }
                joiner.restore(at(1), StoreId::Workers, chunks);
                assert_eq!(joiner.state().sizes(StoreId::Workers).entries, 10_000);
                joiner
            },
            BatchSize::LargeInput,
        );
    });
}

fn million_puts_and_deletes(c: &mut Criterion) {
    let mut group = c.benchmark_group("churn");
    group.sample_size(10);
    group.bench_function("1m_put_delete_cycles", |b| {
        b.iter(|| {
            let mut replica = Replication::new(id("a"), Config::default(), at(0));
            replica.peer_up(at(0), &id("b"));
            for n in 0..1_000_000u64 {
                let key = n / 100 * 100 + n % 3;
                replica.update(at(n / 1000), load(key, 1)).unwrap();
                let remove = LoadWrite { worker: WorkerId::from_u64(key), load: None };
                replica.update(at(n / 1000), remove).unwrap();
            }
            let sizes = replica.state().sizes(StoreId::Load);
            assert!(sizes.entries == 0 && sizes.bytes + 250 * sizes.tombstones < 1 << 20);
            replica
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    targets = write_among_100k_keys, rounds_with_100k_keys, snapshot_of_10k_workers, million_puts_and_deletes
}
criterion_main!(benches);
