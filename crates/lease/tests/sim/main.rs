//! Simulates clusters of routers with leases: crashes, restarts with and without memory, partitions, lost, late and repeated
//! messages, processes and machines that stop, clocks that run at different rates, transfers, and a growing cluster. Whatever
//! happens, no two routers hold a lease at the same instant and terms grow; and ten seconds after the last fault each lease has a holder.
//!
//! `SMG_LEASE_SEEDS=10000 cargo test -p smg-lease --release --test sim` plays that many histories of each kind;
//! `SMG_LEASE_SEED=17` plays one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "a test")]

mod disk;
mod world;

use world::{Kind, World};

fn seeds(default: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    if let Some(seed) = number("SMG_LEASE_SEED") {
        return vec![seed];
    }
    (0..number("SMG_LEASE_SEEDS").unwrap_or(default)).collect()
}

fn play(kind: Kind, default: u64) {
    let (mut wins, mut refused) = (0, 0);
    for seed in seeds(default) {
        let mut world = World::new(seed, kind);
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.play()));
        if let Err(panic) = played {
            eprintln!("seed {seed}: replay with SMG_LEASE_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
        wins += world.wins;
        refused += world.refused_acts;
    }
    assert!(wins > 0, "no lease was ever held");
    eprintln!("{wins} holders, {refused} acts of former holders refused");
}

/// Histories without a fault, except that clocks run at different rates.
const CALM: Kind = Kind {
    routers: 3,
    crashes: 0.0,
    remembers: false,
    partitions: 0.0,
    stops: 0.0,
    loss: 0.0,
    late: 0.0,
    repeated: 0.0,
    commands: 0.0,
    grows: false,
    stays_down: false,
};

const ROUGH: Kind = Kind { loss: 0.05, late: 0.05, repeated: 0.05, ..CALM };

#[test]
fn a_calm_cluster_has_one_holder_of_each_lease() {
    play(CALM, 20);
}

#[test]
fn crashes_and_partitions_leave_one_holder() {
    play(Kind { crashes: 0.01, partitions: 0.02, ..ROUGH }, 40);
}

#[test]
fn routers_that_remember_their_votes_leave_one_holder() {
    play(Kind { crashes: 0.03, partitions: 0.02, remembers: true, ..ROUGH }, 40);
}

#[test]
fn processes_that_stop_leave_one_holder() {
    play(Kind { crashes: 0.004, partitions: 0.01, stops: 0.02, late: 0.2, ..ROUGH }, 40);
}

#[test]
fn five_routers_with_two_down_have_one_holder() {
    let kind = Kind { routers: 5, crashes: 0.004, partitions: 0.02, stops: 0.01, ..ROUGH };
    play(Kind { stays_down: true, ..kind }, 40);
}

#[test]
fn transfers_and_departures_leave_one_holder() {
    play(Kind { commands: 0.05, crashes: 0.004, partitions: 0.01, late: 0.1, ..ROUGH }, 40);
}

#[test]
fn a_growing_cluster_has_one_holder() {
    let kind = Kind { routers: 5, grows: true, crashes: 0.002, partitions: 0.01, ..ROUGH };
    play(Kind { stops: 0.005, commands: 0.01, ..kind }, 40);
}
