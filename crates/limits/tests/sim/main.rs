//! Simulates clusters of routers with limits: crashes, restarts, leaving, partitions, lost and late rows, threads that stop,
//! changes of the number of routers, and one clock that is wrong by an hour or steps. Whatever happens, no window admits more
//! than its limit.
//!
//! `SMG_LIMIT_SEEDS=10000 cargo test -p smg-limits --release --test sim -- --nocapture` plays that many histories of each kind
//! and lists those that fail; `SMG_LIMIT_FIRST=5000` begins with that seed; `SMG_LIMIT_SEED=17` plays one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "a test")]

mod replica;
mod world;

use world::{Kind, World};

fn seeds(default: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    if let Some(seed) = number("SMG_LIMIT_SEED") {
        return vec![seed];
    }
    let first = number("SMG_LIMIT_FIRST").unwrap_or(0);
    (first..first + number("SMG_LIMIT_SEEDS").unwrap_or(default)).collect()
}

/// Plays histories of a kind; returns how much of the limit per second was used where there was demand.
fn play(kind: Kind, steps: u64, default: u64) -> f64 {
    let (mut used, mut possible) = (0, 0);
    let (mut failed, mut excluded) = (Vec::new(), 0);
    for seed in seeds(default) {
        let mut world = World::new(seed, kind);
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..steps {
                world.step();
                if kind.resizes && world.has_second_origin {
                    // More routers run than are expected, and a group of them without memory has been cut off: not promised.
                    break;
                }
            }
        }));
        if played.is_err() {
            eprintln!("seed {seed}: replay with SMG_LIMIT_SEED={seed}");
            failed.push(seed);
            continue;
        }
        if kind.resizes && world.has_second_origin {
            excluded += 1;
            continue;
        }
        for ((rule, subject, start), offered) in &world.offered {
            if rule == "second" && *start > world.begin + 20_000 && *offered >= 20 {
                possible += 20;
                let key = (rule.clone(), subject.clone(), *start);
                used += world.admitted.get(&key).copied().unwrap_or(0);
            }
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let part = used as f64 / f64::max(possible as f64, 1.0);
    eprintln!(
        "used {:.1} % of what was possible; {excluded} histories are not promised",
        part * 100.0
    );
    assert!(failed.is_empty(), "the histories of seeds {failed:?} fail");
    part
}

const CALM: Kind = Kind {
    routers: 3,
    has_expected: true,
    crashes: 0.0,
    partitions: 0.0,
    stops: 0.0,
    parts: 2,
    rolling: 0.0,
    steps: 0.0,
    growth: 2_000,
    resizes: false,
    skew: false,
    late: 0.0,
    is_plain: false,
};

#[test]
fn a_calm_cluster_uses_its_limits() {
    let part = play(Kind { is_plain: true, ..CALM }, 600, 6);
    assert!(part > 0.98, "{part}");
}

#[test]
fn crashes_and_partitions_never_admit_more_than_the_limit() {
    play(Kind { crashes: 0.004, partitions: 0.01, late: 0.2, ..CALM }, 900, 12);
}

#[test]
fn larger_clusters_with_wrong_clocks_never_admit_more_than_the_limit() {
    let kind = Kind { routers: 5, crashes: 0.003, partitions: 0.01, skew: true, late: 0.2, ..CALM };
    play(kind, 900, 8);
}

#[test]
fn threads_that_stop_never_admit_more_than_the_limit() {
    let kind =
        Kind { stops: 0.005, crashes: 0.002, partitions: 0.005, skew: true, late: 0.1, ..CALM };
    play(kind, 900, 12);
}

#[test]
fn rolling_restarts_never_admit_more_than_the_limit() {
    play(Kind { rolling: 0.01, crashes: 0.001, partitions: 0.003, late: 0.1, ..CALM }, 900, 8);
}

#[test]
fn a_changed_number_of_routers_never_admits_more_than_the_limit() {
    let kind = Kind { routers: 5, resizes: true, rolling: 0.004, ..CALM };
    play(Kind { crashes: 0.001, partitions: 0.006, late: 0.1, ..kind }, 1_200, 8);
}

#[test]
fn a_growing_cluster_never_admits_more_than_the_limit() {
    let kind = Kind { routers: 5, has_expected: false, growth: 50_000, ..CALM };
    play(Kind { crashes: 0.001, stops: 0.002, ..kind }, 900, 8);
}

#[test]
fn several_partitions_and_steps_of_a_clock_never_admit_more_than_the_limit() {
    let kind = Kind { routers: 5, parts: 3, skew: true, steps: 0.005, ..CALM };
    play(Kind { crashes: 0.001, partitions: 0.01, late: 0.1, ..kind }, 900, 8);
    play(Kind { routers: 3, skew: true, partitions: 0.01, steps: 0.005, ..CALM }, 900, 8);
}
