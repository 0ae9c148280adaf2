//! The states from which another mesh never leaves without a restart, each as a history that must leave it.
//!
//! The catalogue was drawn from measurements of that mesh; numbers are those of the catalogue.

use std::time::Duration;

use smg::cluster::membership::{Config, MemberState};

use crate::checks::{Violation, disagreements};
use crate::faults::{Fault, inflict};
use crate::runner::converge;
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

fn cluster_of(n: u16) -> World {
    let mut world = World::new(u64::from(n));
    world.add_cluster(n, &Config::lan());
    world
}

fn running_cluster_of(n: u16) -> Result<World, Violation> {
    let mut world = cluster_of(n);
    world.start_all()?;
    world.run_for(SECOND * 5)?;
    assert_eq!(disagreements(&world), [""; 0]);
    Ok(world)
}

/// What `observer` believes of the slot `of`.
fn belief(world: &World, observer: usize, of: usize) -> Option<MemberState> {
    let name = &world.slots[of].name;
    let node = world.node(observer).expect("the observer runs");
    node.members().find(|member| member.node.name == *name).map(|member| member.state)
}

fn isolate(world: &mut World, slot: usize) -> Result<(), Violation> {
    let groups = (0..world.slots.len()).map(|i| u8::from(i == slot)).collect();
    inflict(world, Fault::Partition(groups))
}

#[test]
fn state_1_a_healthy_node_is_suspected() -> Result<(), Violation> {
    let mut world = running_cluster_of(3)?;
    isolate(&mut world, 2)?;
    let limit = SECOND * 10;
    let suspected = |world: &World| belief(world, 0, 2) == Some(MemberState::Suspected);
    assert!(world.run_while_not(limit, SECOND / 100, suspected)?.is_some());
    inflict(&mut world, Fault::Mend)?;
    let healed = world.run_while_not(SECOND * 2, SECOND / 100, |w| disagreements(w).is_empty())?;
    assert!(healed.is_some(), "a false suspicion is refuted within 2 s");
    assert_eq!(world.node(2).expect("it runs").membership().counters().renewals, 0);
    converge(&mut world)
}

#[test]
fn state_2_a_healthy_node_is_down() -> Result<(), Violation> {
    let mut world = running_cluster_of(3)?;
    isolate(&mut world, 2)?;
    world.run_for(SECOND * 100)?;
    assert_eq!(belief(&world, 0, 2), Some(MemberState::Down));
    assert_eq!(belief(&world, 2, 0), Some(MemberState::Down));
    inflict(&mut world, Fault::Mend)?;
    let healed = world.run_while_not(SECOND * 10, SECOND / 100, |w| disagreements(w).is_empty())?;
    assert!(healed.is_some(), "a partition heals within 10 s");
    converge(&mut world)
}

#[test]
fn state_3_a_leaver_is_back() -> Result<(), Violation> {
    let mut world = running_cluster_of(3)?;
    inflict(&mut world, Fault::Leave(1, SECOND))?;
    world.run_for(SECOND / 2)?;
    assert_eq!(belief(&world, 0, 1), Some(MemberState::Leaving));
    world.run_for(SECOND)?;
    assert_eq!(belief(&world, 0, 1), None);
    inflict(&mut world, Fault::Start(1))?;
    world.run_for(SECOND / 2)?;
    assert_eq!(disagreements(&world), [""; 0], "the same name is back within half a second");
    converge(&mut world)
}

#[test]
fn state_4_one_knows_the_other_but_not_the_reverse() -> Result<(), Violation> {
    // Whichever name sorts first.
    for (knows, is_known) in [(0, 1), (1, 0)] {
        let mut world = cluster_of(2);
        world.slots[is_known].seeds.clear();
        inflict(&mut world, Fault::Start(is_known))?;
        inflict(&mut world, Fault::Start(knows))?;
        world.run_for(Duration::from_micros(900))?;
        inflict(&mut world, Fault::CutOneWay(knows, is_known))?;
        world.run_for(SECOND * 20)?;
        inflict(&mut world, Fault::Mend)?;
        converge(&mut world)?;
    }
    Ok(())
}

#[test]
fn state_5_two_believe_different_things_of_one_life() -> Result<(), Violation> {
    let mut world = running_cluster_of(4)?;
    // 3 stays with 0; 1 and 2 take both for dead.
    inflict(&mut world, Fault::Partition(vec![0, 1, 1, 0]))?;
    world.run_for(SECOND * 30)?;
    assert_eq!(belief(&world, 0, 3), Some(MemberState::Alive));
    assert_eq!(belief(&world, 1, 3), Some(MemberState::Down));
    inflict(&mut world, Fault::Mend)?;
    converge(&mut world)
}

#[test]
fn state_6_two_islands_after_a_seed_that_came_late() -> Result<(), Violation> {
    let mut world = cluster_of(2);
    // Only the joiner knows the seed, as in a list that names one address.
    world.slots[0].seeds.clear();
    inflict(&mut world, Fault::Start(1))?;
    world.run_for(SECOND * 60)?;
    assert_eq!(world.node(1).expect("it runs").me().state, MemberState::Init);
    inflict(&mut world, Fault::Start(0))?;
    let joined = world.run_while_not(SECOND * 5, SECOND / 100, |w| disagreements(w).is_empty())?;
    assert!(joined.is_some(), "joined within 5 s of the seed's start");
    converge(&mut world)
}
