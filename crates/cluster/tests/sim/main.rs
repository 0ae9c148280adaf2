//! The simulator: production nodes, virtual time, every fault, thousands of histories.
//!
//! ```text
//! cargo sim                                            each family with 200 seeds
//! SMG_SIM_SEEDS=10000 cargo sim --release              by hand, before a release
//! SMG_SIM_SEED=42 cargo sim -- partition --nocapture   one history again, told as it happens
//! ```

#![expect(clippy::print_stdout, reason = "a test")]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

mod checks;
mod families;
mod faults;
mod ledger;
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
    foreign_cluster mixed_versions corruption leaving chaos
}

/// Histories that failed once, each named for the rule that was missing. The rule itself has a test beside the code.
#[track_caller]
fn play_again(family: &str, seed: u64) {
    let family = families::FAMILIES.iter().find(|known| known.name == family).expect("a family");
    if let Err(violation) = runner::play(family, seed, false) {
        panic!("{} with seed {seed}: {violation}", family.name);
    }
}

#[test]
fn a_snapshot_does_not_end_what_was_adopted() {
    play_again("chaos", 494);
}

#[test]
fn a_removal_ends_what_was_adopted_and_collected_before_it_came() {
    play_again("chaos", 12);
}

#[test]
fn a_newcomer_does_not_collect_what_the_unreachable_have_not_seen() {
    play_again("chaos", 122);
}

#[test]
fn a_removal_ends_what_was_carried_on_twice() {
    // A life of n0 writes, the next one carries that on while n3 removes it beyond a cut, and a third one carries it on.
    play_again("chaos", 912);
}

#[test]
fn a_removal_by_a_node_that_dies_ends_what_was_carried_on() {
    play_again("chaos", 999);
}

#[test]
fn who_stepped_back_from_its_name_comes_in_again() {
    // It has called itself dead; where nobody had heard that, it was let in as it was and answered no probe.
    play_again("duplicate_names", 775);
    play_again("duplicate_names", 827);
    play_again("duplicate_names", 1702);
}

#[test]
fn counts_of_a_node_that_nobody_knows_any_more_are_kept() {
    // Two that had left before a third came: each node that was left took the other's row for one that stays.
    play_again("leaving", 2644);
    play_again("leaving", 7034);
    play_again("leaving", 8172);
}

#[test]
fn what_an_audit_drops_because_somebody_carries_it_lives_on() {
    play_again("leaving", 6970);
}

#[test]
fn counts_of_a_life_that_only_the_unreachable_know_are_kept() {
    play_again("chaos", 2683);
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
