//! Nodes that others have forgotten, and nodes that join after others have left: R34 of `docs/replication.md`.

use std::time::Duration;

use smg_cluster::membership::Config;
use smg_cluster::state::StoreId;
use smg_cluster::state::worker::{WorkerRecord, WorkerWrite};

use crate::checks::Violation;
use crate::faults::{Fault, inflict};
use crate::ledger::worker_spec;
use crate::runner::converge;
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

fn put(world: &mut World, slot: usize, number: u64) -> Result<(), Violation> {
    let record = WorkerRecord::from(&worker_spec(number));
    world.write(slot, WorkerWrite::Put(record)).map(|_| ())
}

/// The names and generations whose logs of workers the digests of a slot name.
fn named_by(world: &World, slot: usize) -> Vec<String> {
    let state = world.node(slot).expect("it runs").state();
    state.versions(StoreId::Workers).map(|(id, _)| id.to_string()).collect()
}

fn workers_at(world: &World, slot: usize) -> usize {
    world.node(slot).expect("it runs").state().workers().count()
}

#[test]
fn a_node_that_was_forgotten_while_it_ran_goes_on_as_a_later_generation() -> Result<(), Violation> {
    let mut world = World::new(1);
    let config = Config { forget_after: SECOND * 10, ..Config::lan() };
    world.add_cluster(3, &config);
    world.start_all()?;
    world.run_for(SECOND * 5)?;
    put(&mut world, 2, 1)?;
    world.run_for(SECOND)?;
    let before = world.node(2).expect("it runs").me().node;
    inflict(&mut world, Fault::Partition(vec![0, 0, 1]))?;
    put(&mut world, 2, 2)?;
    world.run_for(SECOND * 60)?;
    assert_eq!(workers_at(&world, 0), 1);
    assert!(!named_by(&world, 0).contains(&before.to_string()), "it is retired");
    inflict(&mut world, Fault::Heal)?;
    world.run_for(SECOND * 30)?;
    let after = world.node(2).expect("it runs").me().node;
    assert!(after.generation > before.generation, "{after}");
    for slot in 0..3 {
        assert_eq!(workers_at(&world, slot), 2, "slot {slot}");
        assert!(!named_by(&world, slot).contains(&before.to_string()), "slot {slot}");
    }
    converge(&mut world)
}

#[test]
fn a_node_that_joins_after_another_left_retires_it_as_its_peers_do() -> Result<(), Violation> {
    let mut world = World::new(1);
    world.add_cluster(4, &Config::lan());
    for slot in 0..3 {
        world.start(slot)?;
    }
    world.run_for(SECOND * 5)?;
    put(&mut world, 2, 1)?;
    world.run_for(SECOND)?;
    let left = world.node(2).expect("it runs").me().node.to_string();
    inflict(&mut world, Fault::Leave(2, Duration::ZERO))?;
    world.run_for(SECOND)?;
    // The others adopt only when they have had their peers for three seconds.
    world.start(3)?;
    world.run_for(SECOND)?;
    assert!(named_by(&world, 3).contains(&left), "it has received the rows of the one that left");
    world.run_for(SECOND * 20)?;
    for slot in [0, 1, 3] {
        assert!(!named_by(&world, slot).contains(&left), "slot {slot}");
        assert_eq!(workers_at(&world, slot), 1, "slot {slot}");
    }
    converge(&mut world)
}
