//! The promises of the mesh, measured in virtual time and printed as tables.
//!
//! ```text
//! cargo test --release --package smg-cluster --test sim -- numbers --ignored --nocapture --test-threads 1
//! ```

use std::time::Duration;

use rand::RngExt;
use smg_cluster::membership::{Config, MemberState};
use smg_cluster::state::worker::{WorkerRecord, WorkerWrite};

use crate::checks::{Violation, differences, disagreements};
use crate::faults::{Fault, inflict};
use crate::ledger::worker_spec;
use crate::world::{Traffic, World};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(10);
const SIZES: [u16; 4] = [3, 5, 10, 50];

/// Virtual durations, printed as median and 99th percentile.
#[derive(Default)]
struct Sample(Vec<Duration>);

impl Sample {
    fn quantile(&self, q: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let last = sorted.len().saturating_sub(1);
        let at = (0..=last).find(|i| *i as f64 >= q * last as f64).unwrap_or(last);
        sorted.get(at).copied().unwrap_or_default()
    }

    fn show(&self) -> String {
        let seconds = |q| self.quantile(q).as_secs_f64();
        format!("{:.2} / {:.2}", seconds(0.5), seconds(0.99))
    }
}

fn trials(n: u16) -> u64 {
    if n < 50 { 50 } else { 12 }
}

/// The 99th percentile of a dozen samples is their maximum, so detection is measured more often.
const DETECTIONS: u64 = 400;

fn up(n: u16, seed: u64) -> Result<World, Violation> {
    let mut world = World::new(seed);
    world.add_cluster(n, &Config::lan());
    world.start_all()?;
    let ready = world.run_while_not(SECOND * 60, TICK, |w| disagreements(w).is_empty())?;
    assert!(ready.is_some(), "{n} nodes do not find each other");
    // Faults must not keep step with the probes.
    let phase = world.rng.random_range(Duration::ZERO..SECOND);
    world.run_for(SECOND * 3 + phase)?;
    Ok(world)
}

fn all_believe(world: &World, of: usize, state: Option<MemberState>) -> bool {
    let name = &world.slots[of].name;
    world.running().filter(|(i, _)| *i != of).all(|(_, process)| {
        let state_seen_by = process.node.members().find(|member| member.node.name == *name);
        state_seen_by.map(|member| member.state) == state
    })
}

fn any_believes(world: &World, of: usize, state: MemberState) -> bool {
    let name = &world.slots[of].name;
    world.running().filter(|(i, _)| *i != of).any(|(_, process)| {
        process.node.members().any(|m| m.node.name == *name && m.state == state)
    })
}

fn within(
    world: &mut World,
    limit: Duration,
    what: &str,
    done: impl FnMut(&World) -> bool,
) -> Result<Duration, Violation> {
    let took = world.run_while_not(limit, TICK, done)?;
    Ok(took.unwrap_or_else(|| panic!("{what} took longer than {limit:?}")))
}

/// A cold start, and a router that joins late.
fn joins(n: u16, seed: u64, samples: &mut [Sample; 8]) -> Result<(), Violation> {
    let last = usize::from(n) - 1;
    let mut world = World::new(seed);
    world.add_cluster(n, &Config::lan());
    (0..last).try_for_each(|slot| world.start(slot))?;
    let together = |w: &World| disagreements(w).is_empty();
    samples[0].0.push(within(&mut world, SECOND * 60, "cold start", together)?);
    world.run_for(SECOND * 5)?;
    world.start(last)?;
    samples[1].0.push(within(&mut world, SECOND * 60, "joining", together)?);
    Ok(())
}

/// A member that is cut off until it is suspected, and refutes.
fn refutes(n: u16, seed: u64, samples: &mut [Sample; 8]) -> Result<(), Violation> {
    let together = |w: &World| disagreements(w).is_empty();
    let last = usize::from(n) - 1;
    let mut world = up(n, seed)?;
    inflict(&mut world, Fault::Partition((0..=last).map(|i| u8::from(i == last)).collect()))?;
    within(&mut world, SECOND * 20, "suspicion", |w| {
        any_believes(w, last, MemberState::Suspected)
    })?;
    inflict(&mut world, Fault::Heal)?;
    samples[4].0.push(within(&mut world, SECOND * 60, "refutation", together)?);
    Ok(())
}

/// A member that leaves.
fn leaves(n: u16, seed: u64, samples: &mut [Sample; 8]) -> Result<(), Violation> {
    let last = usize::from(n) - 1;
    let mut world = up(n, seed)?;
    inflict(&mut world, Fault::Leave(last, SECOND * 5))?;
    samples[6].0.push(within(&mut world, SECOND * 4, "leaving", |w| {
        all_believe(w, last, Some(MemberState::Leaving))
    })?);
    Ok(())
}

/// A partition of a minute, with writes on both sides.
fn heals(n: u16, seed: u64, samples: &mut [Sample; 8]) -> Result<(), Violation> {
    let together = |w: &World| disagreements(w).is_empty();
    let last = usize::from(n) - 1;
    let mut world = up(n, seed)?;
    inflict(&mut world, Fault::Partition((0..=last).map(|i| u8::from(i % 2 == 0)).collect()))?;
    for slot in 0..=last {
        let spec = worker_spec(slot as u64);
        world.write(slot, WorkerWrite::Put(WorkerRecord::from(&spec)))?;
    }
    world.run_for(SECOND * 60)?;
    inflict(&mut world, Fault::Heal)?;
    samples[7].0.push(within(&mut world, SECOND * 60, "healing", |w| {
        together(w) && differences(w).is_empty()
    })?);
    Ok(())
}

/// A crash, and a restart if the trials ask for one.
fn crashes(n: u16, seed: u64, samples: &mut [Sample; 8]) -> Result<(), Violation> {
    let last = usize::from(n) - 1;
    let mut world = up(n, seed)?;
    world.crash(last);
    let crashed = world.now;
    within(&mut world, SECOND * 60, "suspicion", |w| {
        all_believe(w, last, Some(MemberState::Suspected))
            || any_believes(w, last, MemberState::Down)
    })?;
    samples[2].0.push(world.now - crashed);
    within(&mut world, SECOND * 60, "detection", |w| {
        all_believe(w, last, Some(MemberState::Down))
    })?;
    samples[3].0.push(world.now - crashed);
    if seed < trials(n) {
        let together = |w: &World| disagreements(w).is_empty();
        world.start(last)?;
        samples[5].0.push(within(&mut world, SECOND * 60, "restart", together)?);
    }
    Ok(())
}

/// The promises that the samples break, each with its figure.
fn broken_promises(samples: &[Sample; 8]) -> Vec<String> {
    let [_, _, suspected, down, refuted, restart, leave, heal] = samples;
    let promised = [
        (suspected, 0.5, 2.0),
        (suspected, 0.99, 6.0),
        (down, 0.5, 5.0),
        (down, 0.99, 8.0),
        (refuted, 1.0, 2.0),
        (restart, 1.0, 0.5),
        (leave, 1.0, 0.5),
        (heal, 1.0, 10.0),
    ];
    promised
        .iter()
        .filter(|(sample, q, limit)| sample.quantile(*q).as_secs_f64() > *limit)
        .map(|(sample, q, limit)| {
            format!("q{q} {:.2} > {limit}", sample.quantile(*q).as_secs_f64())
        })
        .collect()
}

#[test]
#[ignore = "prints tables; see the head of this file"]
fn numbers_membership() -> Result<(), Violation> {
    println!("Seconds of virtual time, median / 99th percentile; LAN profile, latency 0.2-1 ms.\n");
    println!(
        "| N | cold start | late joiner | SUSPECTED everywhere | DOWN everywhere | refuted | restart | leave known | heal | promise kept |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for n in SIZES {
        let mut samples: [Sample; 8] = Default::default();
        for seed in 0..trials(n) {
            joins(n, seed, &mut samples)?;
            refutes(n, seed, &mut samples)?;
            leaves(n, seed, &mut samples)?;
            heals(n, seed, &mut samples)?;
        }
        for seed in 0..DETECTIONS {
            crashes(n, seed, &mut samples)?;
        }
        let broken = broken_promises(&samples);
        let shown: Vec<_> = samples.iter().map(Sample::show).collect();
        let verdict = if broken.is_empty() { "yes".to_owned() } else { broken.join(", ") };
        println!("| {n} | {} | {verdict} |", shown.join(" | "));
    }
    Ok(())
}

#[test]
#[ignore = "prints tables; see the head of this file"]
fn numbers_idle() -> Result<(), Violation> {
    println!("Idle for 60 s of virtual time.\n");
    println!("| N | frames/s per pair | frames/s per node | bytes/s per node |");
    println!("|---|---|---|---|");
    for n in SIZES {
        let mut world = up(n, 1)?;
        world.run_for(SECOND * 10)?;
        world.traffic = Traffic::default();
        world.run_for(SECOND * 60)?;
        let per_node = |count: u64| count as f64 / 60.0 / f64::from(n);
        let frames = per_node(world.traffic.frames);
        // The frames of both directions count for a pair.
        let per_pair = frames * 2.0 / f64::from(n - 1);
        println!("| {n} | {per_pair:.2} | {frames:.2} | {:.0} |", per_node(world.traffic.bytes));
    }
    Ok(())
}

#[test]
#[ignore = "prints tables; see the head of this file"]
fn numbers_false_downs() -> Result<(), Violation> {
    println!(
        "Under independent loss, in virtual time: false DOWNs of live nodes in the whole cluster.\n"
    );
    println!("| N | time | loss | false DOWNs | stale suspicions dropped | failed probes |");
    println!("|---|---|---|---|---|---|");
    for n in [3, 10, 30] {
        for loss in [0.05, 0.1, 0.2] {
            let mut world = up(n, 7)?;
            inflict(&mut world, Fault::Drop(loss))?;
            // A large cluster sees as many in less time.
            let hours = if n > 10 { 0.25 } else { 1.0 };
            world.run_for((SECOND * 3600).mul_f64(hours))?;
            let (mut renewals, mut stale, mut failed) = (0, 0, 0);
            for (_, process) in world.running() {
                let counters = process.node.membership().counters();
                renewals += counters.renewals;
                stale += counters.stale_suspicions;
                failed += counters.failed_probes;
            }
            println!(
                "| {n} | {hours} h | {:.0} % | {renewals} | {stale} | {failed} |",
                loss * 100.0
            );
        }
    }
    Ok(())
}

#[test]
#[ignore = "prints tables; see the head of this file"]
fn numbers_visibility() -> Result<(), Violation> {
    println!(
        "Milliseconds of virtual time until a write is on all nodes, median / 99th percentile.\n"
    );
    println!(
        "| N | visible everywhere | state frames per write | deliveries per write | promise kept |"
    );
    println!("|---|---|---|---|---|");
    for n in SIZES {
        let mut world = up(n, 3)?;
        let mut sample = Sample::default();
        let writes = 100;
        let received = |world: &World| -> u64 {
            world.running().map(|(_, p)| p.node.replication().counters().rows_received).sum()
        };
        let before = received(&world);
        world.traffic = Traffic::default();
        for number in 0..writes {
            let slot = world.rng.random_range(0..usize::from(n));
            let spec = worker_spec(number);
            world.write(slot, WorkerWrite::Put(WorkerRecord::from(&spec)))?;
            let took = world.run_while_not(SECOND * 5, Duration::from_micros(200), |w| {
                w.running().all(|(_, p)| p.node.state().worker(spec.id()).is_some())
            })?;
            sample.0.push(took.expect("a write is seen within 5 s"));
            let pause = world.rng.random_range(Duration::ZERO..SECOND / 2);
            world.run_for(pause)?;
        }
        let deliveries = (received(&world) - before) as f64 / writes as f64;
        let frames = world.traffic.state_frames as f64 / writes as f64;
        let [median, worst] = [0.5, 0.99].map(|q| sample.quantile(q).as_secs_f64() * 1000.0);
        let kept = median < 10.0 && worst < 100.0 && deliveries <= 1.1 * f64::from(n - 1);
        println!(
            "| {n} | {median:.1} / {worst:.1} | {frames:.1} | {deliveries:.2} of {} | {} |",
            n - 1,
            if kept { "yes" } else { "no" }
        );
    }
    Ok(())
}
