//! The simulator: production nodes in virtual time, with every kind of fault, in thousands of histories.
//!
//! ```text
//! cargo sim                                            plays each family with 200 seeds
//! SMG_SIM_SEEDS=10000 cargo sim --release              plays more, before a release
//! SMG_SIM_SEED=42 cargo sim -- partition --nocapture   replays one history and prints what happens
//! ```

#![expect(clippy::print_stdout, reason = "a test")]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

mod checks;
mod ended;
mod families;
mod faults;
mod joins;
mod ledger;
mod liar;
mod lies;
mod numbers;
mod runner;
mod states;
mod world;

use crate::runner::play_family;

macro_rules! families {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            play_family(stringify!($name));
        })*

        #[test]
        fn every_family_is_played() {
            let played: Vec<_> = families::FAMILIES.iter().map(|family| family.name).collect();
            assert_eq!(played, [$(stringify!($name)),*]);
        }
    };
}

families! {
    cold_start loss disorder one_way_cut partition crash_restart stall slow_link clocks addresses duplicate_names
    foreign_cluster mixed_versions corruption leaving chaos liar
}

/// Histories that failed once. Each is named for what was wrong; the rule behind it has a test beside the code.
#[track_caller]
fn replay(family: &str, seed: u64) {
    let family = families::FAMILIES.iter().find(|known| known.name == family).expect("a family");
    if let Err(violation) = runner::play(family, seed, false) {
        panic!("{} with seed {seed}: {violation}", family.name);
    }
}

#[test]
fn a_snapshot_does_not_drop_adopted_rows() {
    replay("chaos", 494);
}

#[test]
fn a_removal_ends_rows_that_were_adopted_and_collected_before_it_arrived() {
    replay("chaos", 12);
}

#[test]
fn a_newcomer_waits_for_unreachable_members_before_it_collects() {
    replay("chaos", 122);
}

#[test]
fn a_removal_ends_rows_that_were_adopted_twice() {
    // A generation of n0 writes; the next one adopts that while n3 removes it on the other side of a partition, and a
    // third one adopts it.
    replay("chaos", 912);
}

#[test]
fn a_removal_by_a_node_that_crashes_ends_adopted_rows() {
    replay("chaos", 999);
}

#[test]
fn a_node_that_gave_up_its_name_joins_again() {
    // It has declared its identity dead. A node that had not learned of that let it in as it was, and it answered no
    // probe.
    replay("duplicate_names", 775);
    replay("duplicate_names", 827);
    replay("duplicate_names", 1702);
}

#[test]
fn counts_of_a_forgotten_node_are_kept() {
    // Two nodes left before a third one joined: each of the nodes that stayed took the other's row for one that stays.
    replay("leaving", 2644);
    replay("leaving", 7034);
    replay("leaving", 8172);
}

#[test]
fn adopted_rows_survive_an_audit_that_drops_the_original() {
    replay("leaving", 6970);
}

#[test]
fn counts_of_a_generation_that_only_unreachable_members_know_are_kept() {
    replay("chaos", 2683);
}

#[test]
fn the_same_seed_is_the_same_history() {
    for family in families::FAMILIES {
        for seed in [1, 2, 3] {
            let [a, b] = [(); 2].map(|()| runner::play(family, seed, false).unwrap().trace_hash);
            assert_eq!(a, b, "{} with seed {seed}", family.name);
        }
    }
}
