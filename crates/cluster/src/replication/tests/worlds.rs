//! Replicas in a small world: virtual time, links that lose, duplicate, delay and reorder messages, partitions, crashes,
//! restarts with and without saved rows, members that are forgotten and return. The replicas are checked after each step,
//! and after the last fault they must agree with each other and with what was written.
//!
//! A seed that fails prints the command that replays it alone.

use std::time::Duration;

use smg_types::ids::WorkerId;

use crate::replication::tests::world::{Faults, World};
use crate::state::load::{Load, LoadWrite};

fn seeds() -> std::ops::Range<u64> {
    let read = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match read("SMG_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..read("SMG_SEEDS").unwrap_or(24),
    }
}

fn for_each_seed(
    name: &str,
    test: impl Fn(u64) -> World + std::panic::RefUnwindSafe,
) -> Vec<World> {
    seeds()
        .map(|seed| {
            let played = std::panic::catch_unwind(|| test(seed));
            played.unwrap_or_else(|_| {
                panic!("seed {seed} failed: SMG_SEED={seed} cargo test -p smg-cluster --lib replication::tests::worlds::{name}")
            })
        })
        .collect()
}

#[test]
fn replicas_agree_whatever_the_network_does() {
    let worlds = for_each_seed("replicas_agree_whatever_the_network_does", |seed| {
        let mut world = World::new(seed, 3 + (seed % 4) as usize, Faults::NETWORK);
        world.play(Duration::from_secs(30));
        world.heal_and_check();
        world
    });
    let sum = |f: fn(&crate::replication::Counters) -> u64| -> u64 {
        worlds.iter().map(|world| world.sum(f)).sum()
    };
    if worlds.len() > 10 {
        assert!(sum(|c| c.gaps) > 0, "no seed lost a delta");
        assert!(sum(|c| c.retries) > 0, "no seed sent again");
        assert!(sum(|c| c.collected) > 0, "no seed collected a tombstone");
    }
}

#[test]
fn replicas_agree_whichever_nodes_crash_and_restart() {
    let worlds = for_each_seed("replicas_agree_whichever_nodes_crash_and_restart", |seed| {
        let mut world = World::new(seed, 3 + (seed % 4) as usize, Faults::ALL);
        world.play(Duration::from_secs(60));
        world.heal_and_check();
        world
    });
    let sum = |f: fn(&crate::replication::Counters) -> u64| -> u64 {
        worlds.iter().map(|world| world.sum(f)).sum()
    };
    if worlds.len() > 10 {
        assert!(sum(|c| c.snapshots_joined) > 0, "no seed needed a snapshot");
        assert!(sum(|c| c.adopted) > 0, "no seed adopted");
        assert!(sum(|c| c.retired) > 0, "no seed retired a writer");
    }
}

#[test]
fn without_faults_each_write_is_delivered_once_to_each_peer() {
    for count in [3, 5, 10] {
        let mut world = World::new(7, count, Faults::NONE);
        world.run(Duration::from_secs(3));
        let before = world.sum(|c| c.rows_received);
        let mut writes = 0;
        for _ in 0..400 {
            writes += world.write_somewhere();
            world.run(Duration::from_millis(20));
        }
        world.run(Duration::from_secs(5));
        let received = world.sum(|c| c.rows_received) - before;
        let most = writes * (count as u64 - 1) * 11 / 10;
        assert!(received <= most, "{received} rows for {writes} writes on {count} nodes");
        world.heal_and_check();
    }
}

#[test]
fn a_write_is_visible_on_all_nodes_in_time() {
    let mut world = World::new(3, 5, Faults::NONE);
    world.run(Duration::from_secs(3));
    let id = WorkerId::from_u64(77);
    let start = world.now;
    world.update(0, LoadWrite { worker: id, load: Some(Load { requests: 1, tokens: 1 }) });
    while (0..5).any(|at| world.replica(at).state().loads(id).next().is_none()) {
        world.step();
        assert!(world.now - start < Duration::from_millis(120), "a measurement took too long");
    }
    assert!(
        world.now - start < Duration::from_millis(10),
        "the first of a quiet time goes at once"
    );
}

#[test]
fn each_confirmation_is_timed_once_and_a_joiner_confirms_no_old_write() {
    let mut world = World::new(4, 3, Faults::NONE);
    world.run(Duration::from_secs(3));
    world.confirmation_times(0);
    world.update(
        0,
        LoadWrite { worker: WorkerId::from_u64(77), load: Some(Load { requests: 1, tokens: 1 }) },
    );
    world.run(Duration::from_secs(60));
    let times = world.confirmation_times(0);
    assert_eq!(times.len(), 2, "{times:?}");
    assert!(times.iter().all(|time| *time < Duration::from_millis(200)), "{times:?}");
    world.kill(2);
    world.run(Duration::from_secs(10));
    world.revive(2, false);
    world.run(Duration::from_secs(10));
    assert!(world.confirmation_times(0).is_empty());
}

#[test]
fn idle_replicas_send_few_messages() {
    let mut world = World::new(3, 10, Faults::NONE);
    for _ in 0..100 {
        world.write_somewhere();
    }
    world.run(Duration::from_secs(10));
    let before = world.delivered;
    world.run(Duration::from_secs(60));
    let per_pair_second = (world.delivered - before) as f64 / 60.0 / 45.0;
    assert!(per_pair_second < 1.0, "{per_pair_second} messages per pair and second");
}
