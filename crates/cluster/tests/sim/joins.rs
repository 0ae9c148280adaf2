//! Routers that join a cluster that runs: under a name that is taken, and several at the same moment.

use std::time::Duration;

use smg_cluster::membership::{Config, MemberState};

use crate::checks::{Violation, disagreements};
use crate::faults::{Fault, inflict};
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// A cluster of `n` slots that has run for a while. Each has the slots from 0 up to `known`, those to come among them,
/// as join addresses.
fn cluster(seed: u64, n: u16, known: usize) -> Result<World, Violation> {
    let mut world = World::new(seed);
    world.add_cluster(n, &Config::lan());
    for slot in &mut world.slots {
        slot.seeds = (0..known).collect();
    }
    world.start_all()?;
    Ok(world)
}

/// The generation and the state of the member `name`, as the process of `observer` lists it.
fn listed(world: &World, observer: usize, name: &str) -> Option<(u64, MemberState)> {
    let node = world.node(observer)?;
    let mut members = node.members();
    let member = members.find(|member| member.node.name.as_str() == name)?;
    Some((member.node.generation.0, member.state))
}

/// Plays for `time` and checks after each millisecond that the slots `observers` list `name` as it was at first.
fn check_unchanged(
    world: &mut World,
    observers: &[usize],
    name: &str,
    time: Duration,
) -> Result<(), Violation> {
    let before = listed(world, observers[0], name);
    assert!(before.is_some_and(|(_, state)| state == MemberState::Alive), "{before:?}");
    let end = world.now + time;
    while world.now < end {
        world.run_for(MILLISECOND)?;
        for observer in observers {
            let now = listed(world, *observer, name);
            assert_eq!(now, before, "{name} as slot {observer} lists it, at {:?}", world.now);
        }
    }
    Ok(())
}

/// Adds a slot with the name of slot 0 at the address with the number `address`.
fn add_namesake(world: &mut World, address: u16, seeds: Vec<usize>) -> usize {
    let namesake = world.add("n0", address, &Config::lan());
    world.slots[namesake].seeds = seeds;
    namesake
}

#[test]
fn a_second_router_of_a_name_is_refused_before_it_replaces_the_first() -> Result<(), Violation> {
    // The join addresses of the second router, and whether the others have its address as a join address.
    for (seeds, is_sought) in [
        (vec![1], false),
        (vec![0], false),
        (vec![0, 1, 2], false),
        (vec![1, 2], true),
        (vec![0], true),
    ] {
        for seed in 0..20 {
            let mut world = cluster(seed, 3, 3)?;
            world.run_for(SECOND * 2)?;
            let namesake = add_namesake(&mut world, 3, seeds.clone());
            if is_sought {
                for slot in 0..3 {
                    world.slots[slot].seeds.push(namesake);
                }
                // The others resolve their join addresses again.
                world.run_for(SECOND * 4)?;
            }
            world.start(namesake)?;
            check_unchanged(&mut world, &[1, 2], "n0", SECOND * 6)?;
            let refused =
                world.node(namesake).is_some_and(|node| node.membership().refused().is_some());
            assert!(refused, "the second router knows that its name is taken");
            let me = world.node(0).expect("it runs").me();
            assert_eq!(
                (me.state, me.node.generation.0),
                (MemberState::Alive, listed(&world, 1, "n0").expect("it is listed").0)
            );
        }
    }
    Ok(())
}

#[test]
fn a_router_that_knows_two_of_one_name_does_not_bring_the_second_in() -> Result<(), Violation> {
    for seed in 0..20 {
        let mut world = cluster(seed, 3, 3)?;
        world.run_for(SECOND * 2)?;
        // The second n0 is a cluster of one, and a newcomer meets it before it meets the others.
        let namesake = add_namesake(&mut world, 3, Vec::new());
        world.start(namesake)?;
        let newcomer = world.add("n4", 4, &Config::lan());
        world.slots[newcomer].seeds = vec![namesake];
        world.start(newcomer)?;
        world.run_for(SECOND)?;
        world.slots[newcomer].seeds = vec![namesake, 1];
        let end = world.now + SECOND * 20;
        while world.now < end {
            world.run_for(MILLISECOND)?;
            for observer in [1, 2] {
                let state = listed(&world, observer, "n0").map(|(_, state)| state);
                assert_eq!(state, Some(MemberState::Alive), "slot {observer} at {:?}", world.now);
            }
        }
        let refused =
            world.node(namesake).is_some_and(|node| node.membership().refused().is_some());
        assert!(refused, "the second router knows that its name is taken");
        let known = [1, 2, newcomer].map(|slot| listed(&world, slot, "n0"));
        assert!(known.iter().all(|known| *known == known_of(&world, 0)), "{known:?}");
    }
    Ok(())
}

/// The generation and the state of the process of `slot`, as it lists itself.
fn known_of(world: &World, slot: usize) -> Option<(u64, MemberState)> {
    let me = world.node(slot)?.me();
    Some((me.node.generation.0, me.state))
}

#[test]
fn a_router_that_crashes_and_starts_at_another_address_has_its_name_back() -> Result<(), Violation>
{
    for seed in 0..20 {
        let mut world = cluster(seed, 4, 4)?;
        world.run_for(SECOND * 2)?;
        world.crash(0);
        inflict(&mut world, Fault::Start(0))?;
        world.readdress(0, 9)?;
        let back =
            world.run_while_not(SECOND * 5, MILLISECOND * 10, |w| disagreements(w).is_empty())?;
        assert!(back.is_some(), "seed {seed}: {:?}", disagreements(&world));
        // Now the former process is gone for good, and its address answers nothing.
        world.crash(0);
        world.readdress(0, 10)?;
        world.start(0)?;
        let back =
            world.run_while_not(SECOND * 5, MILLISECOND * 10, |w| disagreements(w).is_empty())?;
        assert!(back.is_some(), "seed {seed}: {:?}", disagreements(&world));
    }
    Ok(())
}

#[test]
fn routers_that_join_at_the_same_moment_see_each_other_within_a_second() -> Result<(), Violation> {
    let mut slow = Vec::new();
    for n in [1, 3, 12, 30] {
        for seed in 0..20 {
            let mut world = cluster(seed, n, 1)?;
            // Long enough that no gossip of the start is left.
            world.run_for(SECOND * 25)?;
            let newcomers: Vec<usize> = (0..3)
                .map(|i| {
                    let slot = world.add(&format!("new{i}"), 100 + i, &Config::lan());
                    world.slots[slot].seeds = vec![0];
                    slot
                })
                .collect();
            newcomers.iter().try_for_each(|slot| world.start(*slot))?;
            let took = world
                .run_while_not(SECOND * 30, MILLISECOND * 10, |w| disagreements(w).is_empty())?;
            if took.is_none_or(|took| took > SECOND) {
                slow.push((n, seed, took));
            }
        }
    }
    assert!(slow.is_empty(), "size, seed and time: {slow:?}");
    Ok(())
}
