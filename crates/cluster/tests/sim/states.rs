//! States that another mesh never leaves without a restart, each as a history that must leave it.
//!
//! The catalogue comes from measurements of that mesh; the numbers are those of the catalogue.

use std::time::Duration;

use smg_cluster::membership::{Config, MemberState};
use smg_cluster::state::StoreId;
use smg_cluster::state::policy::{PolicyRecord, PolicyWrite};
use smg_cluster::state::session::{SessionKey, SessionWrite};
use smg_cluster::state::usage::{UsageCount, UsageKey, UsageWrite};
use smg_cluster::state::worker::{WorkerRecord, WorkerWrite};
use smg_types::ids::{ModelId, WorkerId};
use smg_types::spec::WorkerSpec;

use crate::checks::{Violation, differences, disagreements};
use crate::faults::{Fault, inflict};
use crate::ledger::worker_spec;
use crate::runner::converge;
use crate::world::{EPOCH, World};

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

/// The state of the slot `of`, as `observer` believes.
fn state_seen_by(world: &World, observer: usize, of: usize) -> Option<MemberState> {
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
    let suspected = |world: &World| state_seen_by(world, 0, 2) == Some(MemberState::Suspected);
    assert!(world.run_while_not(limit, SECOND / 100, suspected)?.is_some());
    inflict(&mut world, Fault::Heal)?;
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
    assert_eq!(state_seen_by(&world, 0, 2), Some(MemberState::Down));
    assert_eq!(state_seen_by(&world, 2, 0), Some(MemberState::Down));
    inflict(&mut world, Fault::Heal)?;
    let healed = world.run_while_not(SECOND * 10, SECOND / 100, |w| disagreements(w).is_empty())?;
    assert!(healed.is_some(), "a partition heals within 10 s");
    converge(&mut world)
}

#[test]
fn state_3_a_node_that_left_is_back() -> Result<(), Violation> {
    let mut world = running_cluster_of(3)?;
    inflict(&mut world, Fault::Leave(1, SECOND))?;
    world.run_for(SECOND / 2)?;
    assert_eq!(state_seen_by(&world, 0, 1), Some(MemberState::Leaving));
    world.run_for(SECOND)?;
    assert_eq!(state_seen_by(&world, 0, 1), None);
    inflict(&mut world, Fault::Start(1))?;
    world.run_for(SECOND / 2)?;
    assert_eq!(disagreements(&world), [""; 0], "the same name is back within half a second");
    converge(&mut world)
}

#[test]
fn state_4_one_knows_the_other_but_not_the_reverse() -> Result<(), Violation> {
    // Whichever of the two names sorts first.
    for (knows, is_known) in [(0, 1), (1, 0)] {
        let mut world = cluster_of(2);
        world.slots[is_known].seeds.clear();
        inflict(&mut world, Fault::Start(is_known))?;
        inflict(&mut world, Fault::Start(knows))?;
        world.run_for(Duration::from_micros(900))?;
        inflict(&mut world, Fault::CutOneWay(knows, is_known))?;
        world.run_for(SECOND * 20)?;
        inflict(&mut world, Fault::Heal)?;
        converge(&mut world)?;
    }
    Ok(())
}

#[test]
fn state_5_two_nodes_believe_different_things_of_one_generation() -> Result<(), Violation> {
    let mut world = running_cluster_of(4)?;
    // Slot 3 stays with 0; 1 and 2 take both for down.
    inflict(&mut world, Fault::Partition(vec![0, 1, 1, 0]))?;
    world.run_for(SECOND * 30)?;
    assert_eq!(state_seen_by(&world, 0, 3), Some(MemberState::Alive));
    assert_eq!(state_seen_by(&world, 1, 3), Some(MemberState::Down));
    inflict(&mut world, Fault::Heal)?;
    converge(&mut world)
}

#[test]
fn state_6_two_islands_after_a_join_address_that_started_late() -> Result<(), Violation> {
    let mut world = cluster_of(2);
    // Only the joiner has the other's address, as in a list of one join address.
    world.slots[0].seeds.clear();
    inflict(&mut world, Fault::Start(1))?;
    world.run_for(SECOND * 60)?;
    assert_eq!(world.node(1).expect("it runs").me().state, MemberState::Init);
    inflict(&mut world, Fault::Start(0))?;
    let joined = world.run_while_not(SECOND * 5, SECOND / 100, |w| disagreements(w).is_empty())?;
    assert!(joined.is_some(), "joined within 5 s of the other's start");
    converge(&mut world)
}

fn put(world: &mut World, slot: usize, spec: &WorkerSpec) -> Result<WorkerId, Violation> {
    world.write(slot, WorkerWrite::Put(WorkerRecord::from(spec)))?;
    Ok(spec.id())
}

fn policy(name: &str) -> PolicyWrite {
    let (parameters, weights) = Default::default();
    let record = PolicyRecord { policy: name.to_owned(), parameters, weights };
    PolicyWrite { model: ModelId::from("m"), policy: Some(record) }
}

fn policy_at(world: &World, slot: usize) -> Option<String> {
    let state = world.node(slot).expect("it runs").state();
    state.policy(&ModelId::from("m")).map(|record| record.policy)
}

fn workers_at(world: &World, slot: usize) -> usize {
    world.node(slot).expect("it runs").state().workers().count()
}

fn priority_at(world: &World, slot: usize, id: WorkerId) -> Option<i32> {
    let entry = world.node(slot).expect("it runs").state().worker(id)?;
    Some(WorkerSpec::try_from(entry.record()?).expect("a good record").priority)
}

#[test]
fn state_7_keys_that_a_truncated_log_would_have_lost() -> Result<(), Violation> {
    let mut world = cluster_of(2);
    inflict(&mut world, Fault::Start(0))?;
    // As measured: 12,000 keys, each written twice, then one more write.
    for priority in [1, 2] {
        for number in 0..12_000 {
            put(&mut world, 0, &WorkerSpec { priority, ..worker_spec(number) })?;
        }
    }
    put(&mut world, 0, &worker_spec(12_000))?;
    inflict(&mut world, Fault::Start(1))?;
    let all = world.run_while_not(SECOND * 5, SECOND / 20, |w| workers_at(w, 1) == 12_001)?;
    assert!(all.is_some(), "the joiner has {} of 12,001 keys", workers_at(&world, 1));
    assert_eq!(priority_at(&world, 1, worker_spec(0).id()), Some(2));
    converge(&mut world)
}

#[test]
fn state_8_a_counter_that_grows_after_it_was_acknowledged() -> Result<(), Violation> {
    let mut world = running_cluster_of(3)?;
    let key = UsageKey { rule: 1, subject: 1, start_ms: millis(EPOCH), length_ms: 600_000 };
    for requests in [1, 5, 9] {
        let count = UsageCount { requests, ..UsageCount::default() };
        world.write(0, UsageWrite { key, count })?;
        world.run_for(SECOND)?;
        for slot in [1, 2] {
            let state = world.node(slot).expect("it runs").state();
            let seen: u64 = state.usage(&key).map(|(_, count)| count.requests).sum();
            assert_eq!(seen, requests, "slot {slot} after the write was acknowledged once");
        }
    }
    Ok(())
}

#[test]
fn state_9_a_busy_reader_misses_nothing() -> Result<(), Violation> {
    let mut world = running_cluster_of(2)?;
    world.stall(1, SECOND * 2);
    for number in 0..3000 {
        put(&mut world, 0, &worker_spec(number))?;
        if number % 100 == 0 {
            world.run_for(SECOND / 100)?;
        }
    }
    world.run_for(SECOND * 4)?;
    assert_eq!(workers_at(&world, 1), 3000);
    converge(&mut world)
}

#[test]
fn state_10_a_write_of_a_node_with_a_wrong_clock_is_read_everywhere_and_blocks_no_later_one()
-> Result<(), Violation> {
    const HOUR: i64 = 3_600_000;
    for error in [-24 * HOUR, -HOUR, -61_000, 61_000, HOUR, 24 * HOUR, 365 * 24 * HOUR] {
        for nodes in [2, 3] {
            let mut world = running_cluster_of(nodes)?;
            let wrong = usize::from(nodes) - 1;
            inflict(&mut world, Fault::ClockJump(wrong, error))?;
            for (turn, writer) in [wrong, 0, wrong, 0].into_iter().enumerate() {
                let name = format!("{turn}");
                world.write(writer, policy(&name))?;
                world.run_for(SECOND)?;
                for slot in 0..usize::from(nodes) {
                    let read = policy_at(&world, slot);
                    assert_eq!(read.as_deref(), Some(&*name), "slot {slot}, clock {error} ms off");
                }
            }
            converge(&mut world)?;
        }
    }
    Ok(())
}

#[test]
fn a_session_lasts_by_the_clocks_of_the_cluster_whichever_clock_is_wrong() -> Result<(), Violation>
{
    const HOUR: i64 = 3_600_000;
    let ttl = SECOND * 600;
    for error in [-24 * HOUR, -HOUR, HOUR, 24 * HOUR] {
        let mut world = running_cluster_of(3)?;
        let worker = put(&mut world, 0, &worker_spec(1))?;
        inflict(&mut world, Fault::ClockJump(2, error))?;
        let sessions = [(SessionKey(1), 2), (SessionKey(2), 0)];
        for (key, writer) in sessions {
            world.write(writer, SessionWrite::Use { key, worker, ttl })?;
        }
        let check = |world: &mut World, lasts: bool| {
            for ((key, writer), slot) in
                sessions.into_iter().flat_map(|s| [0, 1, 2].map(|n| (s, n)))
            {
                let now = world.clock(slot);
                let state = world.node(slot).expect("it runs").state();
                let at = format!("slot {slot}, written at {writer}, clock {error} ms off");
                assert_eq!(state.session(key, now).is_some(), lasts, "{at}");
            }
        };
        world.run_for(SECOND * 2)?;
        check(&mut world, true);
        world.run_for(ttl - SECOND * 4)?;
        check(&mut world, true);
        world.run_for(SECOND * 4)?;
        check(&mut world, false);
    }
    Ok(())
}

#[test]
fn state_11_a_worker_outlives_its_registrar_and_can_be_removed() -> Result<(), Violation> {
    let mut world = running_cluster_of(3)?;
    let id = put(&mut world, 2, &worker_spec(1))?;
    world.run_for(SECOND)?;
    inflict(&mut world, Fault::Crash(2))?;
    world.run_for(SECOND * 20)?;
    assert_eq!([workers_at(&world, 0), workers_at(&world, 1)], [1, 1]);
    world.write(0, WorkerWrite::Remove(id))?;
    world.run_for(SECOND)?;
    assert_eq!([workers_at(&world, 0), workers_at(&world, 1)], [0, 0]);
    converge(&mut world)
}

#[test]
fn state_12_a_changed_spec_is_seen_on_all_nodes() -> Result<(), Violation> {
    let mut world = running_cluster_of(3)?;
    let id = put(&mut world, 0, &worker_spec(1))?;
    world.run_for(SECOND)?;
    put(&mut world, 0, &WorkerSpec { priority: 7, ..worker_spec(1) })?;
    let seen = world.run_while_not(SECOND, SECOND / 100, |w| {
        [1, 2].iter().all(|slot| priority_at(w, *slot, id) == Some(7))
    })?;
    assert!(seen.is_some(), "seen within a second");
    converge(&mut world)
}

#[test]
fn state_13_a_repair_larger_than_any_buffer() -> Result<(), Violation> {
    let mut world = cluster_of(3);
    inflict(&mut world, Fault::Start(0))?;
    inflict(&mut world, Fault::Start(1))?;
    for number in 0..8000 {
        put(&mut world, 0, &worker_spec(number))?;
    }
    let bytes = world.node(0).expect("it runs").state().sizes(StoreId::Workers).bytes;
    assert!(bytes > 2 * smg_cluster::replication::CHUNK_BYTES, "it takes several parts");
    inflict(&mut world, Fault::Drop(0.2))?;
    inflict(&mut world, Fault::Start(2))?;
    world.run_for(SECOND * 10)?;
    inflict(&mut world, Fault::Heal)?;
    let all = world.run_while_not(SECOND * 10, SECOND / 10, |w| workers_at(w, 2) == 8000)?;
    assert!(all.is_some(), "the joiner has {} of 8,000 keys", workers_at(&world, 2));
    converge(&mut world)
}

#[test]
fn state_14_a_window_of_the_future_blocks_no_count() -> Result<(), Violation> {
    let mut world = running_cluster_of(3)?;
    let window = |start: Duration| UsageKey {
        rule: 1,
        subject: 1,
        start_ms: millis(start),
        length_ms: 60_000,
    };
    let (present, future) = (window(EPOCH), window(EPOCH + SECOND * 86_400));
    let count = |requests| UsageCount { requests, ..UsageCount::default() };
    world.write(2, UsageWrite { key: future, count: count(1_000_000) })?;
    world.run_for(SECOND)?;
    inflict(&mut world, Fault::Crash(2))?;
    world.run_for(SECOND * 10)?;
    world.write(0, UsageWrite { key: present, count: count(3) })?;
    world.run_for(SECOND)?;
    let state = world.node(1).expect("it runs").state();
    let seen: u64 = state.usage(&present).map(|(_, count)| count.requests).sum();
    assert_eq!(seen, 3, "a count of the present is neither refused nor added to");
    assert_eq!(differences(&world), [""; 0]);
    Ok(())
}

/// Cuts slot 2 off for longer than members that are down are listed and retired writers are remembered. Meanwhile what
/// it holds is removed, and `meanwhile` happens. Then it returns as it was.
fn returns_after_three_days(
    meanwhile: impl Fn(&mut World) -> Result<(), Violation>,
) -> Result<(), Violation> {
    let mut world = World::new(7);
    // The slower settings simulate the same days in fewer steps.
    world.add_cluster(4, &Config::wan());
    for slot in &mut world.slots {
        slot.replication.digest_interval = SECOND * 5;
    }
    world.start_all()?;
    world.run_for(SECOND * 20)?;
    let mut ids = Vec::new();
    for number in 0..20 {
        ids.push(put(&mut world, number as usize % 4, &worker_spec(number))?);
    }
    world.run_for(SECOND * 20)?;
    // The fourth node leaves for good: the others adopt what it wrote.
    inflict(&mut world, Fault::Leave(3, SECOND))?;
    world.run_for(SECOND * 20)?;
    isolate(&mut world, 2)?;
    world.run_for(SECOND * 60)?;
    for id in &ids[..15] {
        world.write(0, WorkerWrite::Remove(*id))?;
    }
    let alone = put(&mut world, 2, &worker_spec(100))?;
    meanwhile(&mut world)?;
    world.run_for(SECOND * 3600 * 75)?;
    assert_eq!([workers_at(&world, 0), workers_at(&world, 1)], [5, 5]);
    inflict(&mut world, Fault::Heal)?;
    let end = world.now + SECOND * 60;
    while world.now < end {
        world.run_for(SECOND / 10)?;
        for slot in [0, 1] {
            let state = world.node(slot).expect("it runs").state();
            let back: Vec<_> = ids[..15].iter().filter(|id| state.worker(**id).is_some()).collect();
            assert!(back.is_empty(), "slot {slot} has {} removed workers again", back.len());
        }
    }
    for slot in [0, 1, 2] {
        assert_eq!(workers_at(&world, slot), 6, "what is left, and what was written alone");
        assert!(world.node(slot).expect("it runs").state().worker(alone).is_some());
    }
    converge(&mut world)
}

#[test]
fn nothing_resurrects_after_three_days() -> Result<(), Violation> {
    returns_after_three_days(|_| Ok(()))
}

#[test]
fn nothing_resurrects_after_three_days_and_a_rollout() -> Result<(), Violation> {
    returns_after_three_days(|world| {
        for slot in [0, 1] {
            world.run_for(SECOND * 3600 * 30)?;
            inflict(world, Fault::Crash(slot))?;
            world.run_for(SECOND)?;
            inflict(world, Fault::Start(slot))?;
            world.run_for(SECOND * 60)?;
        }
        Ok(())
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).expect("it is this century")
}
