//! A member that lies: what single lies do, while they are sent and after. The family `liar` sends them at random.

use std::time::Duration;

use foca::{Member, Message as Gossip, State};
use smg_cluster::membership::{Config, Identity, MemberState};
use smg_cluster::replication::message::{
    Claim, Claims, Delta, Digest, Message, Offer, RetiredWriter, SnapshotChunk, StoreNumber,
};
use smg_cluster::state::StoreId;
use smg_cluster::state::worker::{WorkerRecord, WorkerWrite};
use smg_types::ids::{Generation, NodeId};

use crate::checks::{Violation, differences, disagreements};
use crate::ledger::worker_spec;
use crate::lies::{ListedState, goodbye, gossip, identity_of, made_up, replicate, welcome};
use crate::runner::converge;
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);
const YEAR_MS: i64 = 365 * 24 * 3_600_000;

/// A cluster of `n` nodes that has run for a while, and a liar without a process.
fn cluster(n: u16) -> Result<World, Violation> {
    let mut world = World::new(1);
    world.has_liar = true;
    world.add_cluster(n, &Config::lan());
    world.start_all()?;
    world.run_for(SECOND * 5)?;
    Ok(world)
}

fn identity(world: &World, slot: usize) -> Identity {
    identity_of(world, slot).expect("it runs")
}

fn put(world: &mut World, slot: usize, number: u64) -> Result<(), Violation> {
    let record = WorkerRecord::from(&worker_spec(number));
    world.write(slot, WorkerWrite::Put(record)).map(|_| ())
}

fn workers_at(world: &World, slot: usize) -> usize {
    world.node(slot).expect("it runs").state().workers().count()
}

/// The state in which `observer` lists the process of `slot`.
fn state_of(world: &World, observer: usize, slot: usize) -> Option<MemberState> {
    let it = identity(world, slot).node();
    let mut members = world.node(observer)?.members();
    members.find(|member| member.node == it).map(|member| member.state)
}

/// Plays until all nodes agree; fails after a minute.
fn heals(world: &mut World) -> Result<Duration, Violation> {
    let agree = |world: &World| disagreements(world).is_empty() && differences(world).is_empty();
    let took = world.run_while_not(SECOND * 60, SECOND / 4, agree)?;
    let found = disagreements(world);
    Ok(took.unwrap_or_else(|| panic!("not healed after a minute: {found:?}")))
}

#[test]
fn a_generation_beyond_the_clock_does_not_keep_a_name_down() -> Result<(), Violation> {
    for (same_address, renewal) in [(true, false), (false, false), (true, true)] {
        let mut world = cluster(3)?;
        let mut lie = identity(&world, 0);
        if renewal {
            lie.renewal = Identity::MAX_CLAIM - lie.generation.0 - 1;
        } else {
            lie.generation = Generation(Identity::MAX_CLAIM - 1);
        }
        if !same_address {
            lie.address = made_up(1).address;
        }
        let liar = made_up(0);
        for slot in [1, 2] {
            for state in [State::Down, State::Alive, State::Suspect] {
                gossip(
                    &mut world,
                    slot,
                    &liar,
                    Gossip::Gossip,
                    &[Member::new(lie.clone(), 0, state)],
                );
                gossip(&mut world, slot, &lie, Gossip::Gossip, &[]);
                let list = vec![(lie.clone(), 0, ListedState::Down(Duration::ZERO))];
                welcome(&mut world, slot, &liar, None, list);
            }
        }
        world.run_for(SECOND)?;
        // The owner is told of it as well, and restarts.
        let (host, known) = (identity(&world, 1), Some(lie.clone()));
        welcome(&mut world, 0, &host, known, Vec::new());
        world.run_for(SECOND)?;
        heals(&mut world)?;
        world.crash(0);
        world.run_for(SECOND)?;
        world.start(0)?;
        heals(&mut world)?;
        assert_eq!(state_of(&world, 1, 0), Some(MemberState::Alive));
        converge(&mut world)?;
    }
    Ok(())
}

#[test]
fn a_name_that_was_claimed_before_its_owner_started_is_free_for_it() -> Result<(), Violation> {
    let mut world = World::new(1);
    world.has_liar = true;
    world.add_cluster(3, &Config::lan());
    world.start(0)?;
    world.start(1)?;
    world.run_for(SECOND * 5)?;
    let mut lie = made_up(0);
    lie.name = world.slots[2].name.clone();
    lie.generation = Generation(Identity::MAX_CLAIM - 1);
    for slot in [0, 1] {
        gossip(&mut world, slot, &lie, Gossip::Gossip, &[]);
    }
    world.run_for(SECOND)?;
    assert!(world.node(0).expect("it runs").members().any(|member| member.node == lie.node()));
    world.start(2)?;
    heals(&mut world)?;
    put(&mut world, 2, 1)?;
    converge(&mut world)
}

#[test]
fn a_router_whose_clock_is_wrong_by_years_is_a_member_like_any_other() -> Result<(), Violation> {
    for years in [-40, -1, 1, 40] {
        let mut world = World::new(2);
        world.add_cluster(4, &Config::lan());
        world.slots[3].clock_error = years * YEAR_MS;
        world.start_all()?;
        converge(&mut world)?;
        put(&mut world, 3, 1)?;
        put(&mut world, 0, 2)?;
        converge(&mut world)?;
        world.crash(3);
        world.run_for(SECOND * 10)?;
        world.start(3)?;
        converge(&mut world)?;
        // Its clock is set right.
        world.crash(3);
        world.slots[3].clock_error = 0;
        world.run_for(SECOND * 10)?;
        world.start(3)?;
        converge(&mut world)?;
        put(&mut world, 3, 3)?;
        converge(&mut world)?;
        for slot in 0..4 {
            assert_eq!(workers_at(&world, slot), 3, "{years} years, slot {slot}");
        }
    }
    Ok(())
}

/// A delta of an honest writer without rows.
fn delta(writer: &NodeId, from: u64, to: u64, upto: u64) -> Message {
    let store = StoreNumber::from(StoreId::Workers);
    let writer = writer.clone();
    Message::Delta(Delta { store, writer, from, to, upto, floor: 0, rows: Vec::new() })
}

#[test]
fn a_delta_beyond_the_log_of_its_writer_deafens_nobody() -> Result<(), Violation> {
    for (beyond, upto) in [(1, 1), (5, 5), (1 << 40, 1 << 40), (1, 1000), (u64::MAX, u64::MAX)] {
        let mut world = cluster(3)?;
        put(&mut world, 0, 1)?;
        world.run_for(SECOND)?;
        let (writer, speaker) = (identity(&world, 0).node(), identity(&world, 2).node());
        let end = |by: u64| 1_u64.saturating_add(by);
        replicate(&mut world, 1, &speaker, delta(&writer, 1, end(beyond), end(upto)));
        world.run_for(SECOND / 10)?;
        for number in 2..5 {
            put(&mut world, 0, number)?;
            world.run_for(SECOND / 10)?;
        }
        heals(&mut world)?;
        for slot in 0..3 {
            assert_eq!(workers_at(&world, slot), 4, "slot {slot}, {beyond} beyond");
        }
        put(&mut world, 0, 9)?;
        converge(&mut world)?;
        assert_eq!(workers_at(&world, 1), 5);
    }
    Ok(())
}

/// The writer has not the lowest name, and writes before it learns of the lie: its row has a version that the lie covers, and
/// no third node has received it.
#[test]
fn a_row_that_is_written_before_the_writer_learns_of_a_lie_is_not_lost() -> Result<(), Violation> {
    // The lie takes some of this time to arrive, and the answer to it takes as long again.
    for (beyond, delay) in (0..30).map(|n| (1 << (n % 3 * 10), Duration::from_micros(n * 100))) {
        let mut world = cluster(2)?;
        put(&mut world, 1, 1)?;
        world.run_for(SECOND)?;
        let writer = identity(&world, 1).node();
        replicate(&mut world, 0, &writer, delta(&writer, 1, 1 + beyond, 1 + beyond));
        world.run_for(delay)?;
        put(&mut world, 1, 2)?;
        world.run_for(SECOND * 20)?;
        heals(&mut world)?;
        for slot in 0..2 {
            assert_eq!(workers_at(&world, slot), 2, "slot {slot}, {beyond} beyond, {delay:?}");
        }
    }
    Ok(())
}

#[test]
fn a_claim_that_a_peer_never_made_is_withdrawn() -> Result<(), Violation> {
    let mut world = cluster(3)?;
    put(&mut world, 2, 1)?;
    world.run_for(SECOND * 2)?;
    let (writer, speaker) = (identity(&world, 2).node(), identity(&world, 0).node());
    let claim =
        Claim { writer: 0, store: StoreNumber::from(StoreId::Workers), version: 500, floor: 0 };
    let claims = Claims { writers: vec![writer.clone()], claims: vec![claim] };
    let digest = Digest { wall_ms: 1_800_000_005_000, relay: false, claims };
    replicate(&mut world, 1, &speaker, Message::Digest(digest));
    world.run_for(SECOND * 20)?;
    // Without that, the rows of a node that leaves would never be adopted: another node seems to have more of them.
    world.leave(2, Duration::ZERO)?;
    world.run_for(SECOND * 40)?;
    for slot in [0, 1] {
        let state = world.node(slot).expect("it runs").state();
        assert!(state.versions(StoreId::Workers).all(|(id, _)| *id != writer), "slot {slot}");
        assert_eq!(workers_at(&world, slot), 1, "slot {slot}");
    }
    Ok(())
}

#[test]
fn thousands_of_forged_retirements_do_not_stop_replication() -> Result<(), Violation> {
    let mut world = cluster(3)?;
    let speaker = identity(&world, 1).node();
    for n in 0..4_110 {
        let writer = identity(&world, 0).node();
        let versions = Vec::new();
        let retired = vec![RetiredWriter { writer, closed: false, versions }];
        replicate(&mut world, 0, &speaker, Message::Retired(retired));
        if n % 10 == 0 {
            world.run_for(SECOND / 100)?;
        }
    }
    world.run_for(SECOND)?;
    let refused = world.node(0).expect("it runs").membership().counters().refused_generations;
    assert!(refused > 1_000, "{refused} refused");
    put(&mut world, 0, 1)?;
    put(&mut world, 1, 2)?;
    heals(&mut world)?;
    for slot in 0..3 {
        assert_eq!(workers_at(&world, slot), 2, "slot {slot}");
        let writers = world.node(slot).expect("it runs").state().writers().len();
        assert!(writers < 20, "{writers} writers at slot {slot}");
    }
    converge(&mut world)
}

#[test]
fn thousands_of_made_up_writers_are_forgotten() -> Result<(), Violation> {
    let mut world = cluster(3)?;
    let speaker = identity(&world, 1).node();
    for part in 0..10 {
        let writers: Vec<NodeId> = (0..1_000).map(|n| made_up(part * 1_000 + n).node()).collect();
        let claim = |writer| Claim {
            writer,
            store: StoreNumber::from(StoreId::Workers),
            version: 3,
            floor: 0,
        };
        let claims = (0..1_000).map(claim).collect();
        replicate(&mut world, 0, &speaker, Message::Ack(Claims { writers, claims }));
        // Others have written, it says.
        for n in 0..40 {
            let writer = made_up(100_000 + part * 40 + n).node();
            replicate(&mut world, 0, &speaker, delta(&writer, 0, 1, 1));
        }
    }
    world.run_for(SECOND)?;
    // A node that restarts now is a new writer, and finds a place.
    world.crash(2);
    world.start(2)?;
    put(&mut world, 2, 1)?;
    world.run_for(SECOND)?;
    assert_eq!(workers_at(&world, 0), 1);
    world.run_for(SECOND * 60)?;
    for slot in 0..3 {
        let writers = world.node(slot).expect("it runs").state().writers().len();
        assert!(writers < 520, "{writers} writers at slot {slot}");
    }
    converge(&mut world)
}

#[test]
fn a_hundred_thousand_made_up_members_are_not_listed() -> Result<(), Violation> {
    for with_packets in [false, true] {
        let mut world = cluster(3)?;
        let liar = identity(&world, 1);
        for part in 0..100 {
            let ghosts = (0..1_000).map(|n| made_up(part * 1_000 + n));
            if with_packets {
                for ghost in ghosts.step_by(20) {
                    gossip(&mut world, 0, &ghost, Gossip::Gossip, &[]);
                    gossip(&mut world, 0, &liar, Gossip::Gossip, &[Member::alive(ghost)]);
                }
            } else {
                let states =
                    [ListedState::Alive, ListedState::Leaving, ListedState::Down(Duration::ZERO)];
                let list = ghosts.map(|ghost| (ghost, 0, states[part % 3])).collect();
                welcome(&mut world, 0, &liar, None, list);
            }
            world.run_for(SECOND / 100)?;
            let listed = world.node(0).expect("it runs").members().count();
            assert!(listed <= 100, "{listed} members are listed");
        }
        // A newcomer gets in meanwhile, and what is left of the others is gone within a minute.
        let newcomer = world.add("n9", 9, &Config::lan());
        world.slots[newcomer].seeds = vec![0];
        world.start(newcomer)?;
        let took = heals(&mut world)?;
        let ghosts = |world: &World| {
            let members = (0..3).flat_map(|slot| world.node(slot).expect("it runs").members());
            members.filter(|member| member.node.name.as_str().starts_with("ghost")).count()
        };
        let rest = SECOND * 60 - took;
        world.run_while_not(rest, SECOND, |world| ghosts(world) == 0)?;
        assert_eq!(ghosts(&world), 0, "with packets: {with_packets}");
    }
    Ok(())
}

#[test]
fn a_forged_goodbye_does_not_last() -> Result<(), Violation> {
    for is_gone in [false, true] {
        let mut world = cluster(3)?;
        let mut lie = identity(&world, 0);
        lie.renewal += 1_000;
        for slot in [1, 2] {
            goodbye(&mut world, slot, &lie, is_gone);
        }
        world.run_for(SECOND / 10)?;
        assert_ne!(state_of(&world, 1, 0), Some(MemberState::Alive));
        let took = heals(&mut world)?;
        assert!(took < SECOND * 40, "{took:?}");
        // The node may still leave.
        world.leave(0, SECOND)?;
        world.run_for(SECOND / 2)?;
        assert_eq!(state_of(&world, 1, 0), Some(MemberState::Leaving));
        world.run_for(SECOND * 5)?;
        let names = world.node(1).expect("it runs").members().count();
        assert_eq!(names, 1, "it has left");
    }
    Ok(())
}

#[test]
fn a_join_probe_that_seems_to_come_back_does_not_hide_the_others_for_ever() -> Result<(), Violation>
{
    let mut world = World::new(3);
    world.has_liar = true;
    world.add_cluster(2, &Config::lan());
    world.start(0)?;
    world.run_for(SECOND)?;
    let me = identity(&world, 0);
    let other = world.slots[1].address;
    let hello = smg_cluster::codec::encode(&(me, other, false));
    crate::lies::send(&mut world, 0, smg_cluster::codec::Kind::Hello, &hello);
    world.run_for(SECOND)?;
    // The other one has no join address: only this node can find it.
    world.slots[1].seeds = vec![1];
    world.start(1)?;
    heals(&mut world)?;
    converge(&mut world)
}

#[test]
fn a_log_that_ends_nowhere_is_given_up_when_its_writer_has_left() -> Result<(), Violation> {
    let mut world = cluster(3)?;
    put(&mut world, 2, 1)?;
    world.run_for(SECOND)?;
    let (writer, speaker) = (identity(&world, 2).node(), identity(&world, 1).node());
    world.leave(2, Duration::ZERO)?;
    world.run_for(SECOND / 2)?;
    replicate(&mut world, 0, &speaker, delta(&writer, 1, 2, 1_000));
    world.run_for(SECOND * 60)?;
    for slot in [0, 1] {
        let state = world.node(slot).expect("it runs").state();
        assert!(state.versions(StoreId::Workers).all(|(id, _)| *id != writer), "slot {slot}");
        assert_eq!(workers_at(&world, slot), 1, "slot {slot}");
    }
    Ok(())
}

#[test]
fn a_row_that_was_dropped_by_a_forged_snapshot_returns() -> Result<(), Violation> {
    let mut world = cluster(3)?;
    for number in 0..3 {
        put(&mut world, 0, number)?;
    }
    world.run_for(SECOND)?;
    let (writer, donor) = (identity(&world, 0).node(), identity(&world, 2).node());
    let store = StoreNumber::from(StoreId::Workers);
    // The node is told that it lacks tombstones, and the liar answers its request before the donor does.
    let mut attempts = 0;
    while workers_at(&world, 1) > 0 {
        attempts += 1;
        assert!(attempts < 200, "no forged part of a snapshot was merged");
        let offer = Offer { store, writer: writer.clone(), floor: 100 };
        replicate(&mut world, 1, &donor, Message::Offer(offer));
        world.run_for(SECOND / 1_000)?;
        for session in attempts..attempts + 3 {
            let claim = Claim { writer: 0, store, version: 3, floor: 0 };
            let claims = Claims { writers: vec![writer.clone()], claims: vec![claim] };
            let (rows, pending) = (Vec::new(), Vec::new());
            let chunk =
                SnapshotChunk { store, session, after: None, end: None, claims, rows, pending };
            replicate(&mut world, 1, &donor, Message::Snapshot(chunk));
        }
        world.run_for(SECOND / 100)?;
    }
    heals(&mut world)?;
    assert_eq!(workers_at(&world, 1), 3);
    converge(&mut world)
}
