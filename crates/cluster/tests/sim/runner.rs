//! Plays a family with many seeds, and prints how to replay the ones that failed.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use smg_cluster::membership::RefusalReason;
use smg_cluster::state::StoreId;

use crate::checks::{Violation, differences, disagreements};
use crate::families::{FAMILIES, Family};
use crate::world::{RESOLVE, World, planner};

/// Seeds of the gate that are known to fail, by family: faults that are not mended yet, which "Not guaranteed" in
/// docs/replication.md states. They must go on failing: one that passes is taken out of this list.
const OPEN: &[(&str, &[u64])] = &[("liar", &[106])];

/// The rare states that a history has reached.
pub(crate) struct Outcome {
    pub trace_hash: u64,
    pub reached: BTreeSet<&'static str>,
    pub steps: u64,
}

/// Plays a family with `SMG_SIM_SEEDS` seeds (200), or with the one of `SMG_SIM_SEED`.
pub(crate) fn play_family(name: &str) {
    let family = FAMILIES.iter().find(|family| family.name == name).expect("a family of that name");
    let number = |variable| {
        std::env::var(variable).ok().map(|text| text.parse::<u64>().expect("a seed is a number"))
    };
    if let Some(seed) = number("SMG_SIM_SEED") {
        match play(family, seed, true) {
            Ok(outcome) => {
                let Outcome { steps, trace_hash, reached } = outcome;
                println!("{name} {seed}: {steps} steps, trace {trace_hash:016x}, {reached:?}");
            }
            Err(violation) => panic!("{violation}"),
        }
        return;
    }
    let seeds = number("SMG_SIM_SEEDS").unwrap_or(200);
    let mut reached = BTreeSet::new();
    let mut failed = Vec::new();
    let mut steps = 0;
    let open = OPEN.iter().find(|(family, _)| *family == name).map_or(&[][..], |(_, seeds)| seeds);
    for seed in 0..seeds {
        let played = catch_unwind(AssertUnwindSafe(|| play(family, seed, false)));
        match played {
            Ok(Err(violation)) if open.contains(&seed) => println!("{name}, known: {violation}"),
            Ok(Ok(_)) if open.contains(&seed) => {
                failed.push((seed, "passes: take it out of OPEN".to_owned()));
            }
            Ok(Ok(outcome)) => {
                reached.extend(outcome.reached);
                steps += outcome.steps;
            }
            Ok(Err(violation)) => failed.push((seed, violation.to_string())),
            Err(_) => failed.push((seed, "a panic, see above".to_owned())),
        }
        if failed.len() == 10 {
            break;
        }
    }
    if let Some((seed, _)) = failed.first() {
        let lines: Vec<_> =
            failed.iter().map(|(seed, what)| format!("  seed {seed}: {what}")).collect();
        panic!(
            "{name}: {} seeds failed\n{}\nreplay: SMG_SIM_SEED={seed} cargo sim -- {name} --exact --nocapture",
            failed.len(),
            lines.join("\n")
        );
    }
    println!("{name}: {seeds} seeds, {steps} steps");
    if seeds >= 200 {
        let missed: Vec<_> =
            family.sometimes.iter().filter(|state| !reached.contains(*state)).collect();
        assert!(missed.is_empty(), "{name}: no seed reached {missed:?}");
    }
}

/// Plays one history: the plan, then until all nodes agree within the bound, then a while in which they must go on
/// agreeing.
pub(crate) fn play(family: &Family, seed: u64, verbose: bool) -> Result<Outcome, Violation> {
    let mut world = World::new(seed);
    world.verbose = verbose;
    world.ledger.counts_limits = seed.is_multiple_of(3);
    let mut rng = planner(seed);
    let mut plan = (family.prepare)(&mut rng, &mut world);
    plan.add_writes(&mut rng, world.slots.len());
    plan.play(&mut world)?;
    converge(&mut world)?;
    collect_rare_states(&mut world);
    Ok(Outcome { trace_hash: world.trace_hash(), reached: world.reached, steps: world.steps })
}

/// What a member that lied has left behind is healed this long after its last frame.
const AFTER_LIAR: Duration = Duration::from_secs(60);
/// The state is the same on all nodes this long after the last fault,
const HEALED: Duration = Duration::from_secs(10);
/// or, where membership took longer, this long after it.
const SETTLED: Duration = Duration::from_secs(5);

/// After the last fault, all nodes list each other within the bound of the configuration, and go on to. The state is
/// the same on all nodes within the promised time, and stays so, even if something was written that no node has any
/// more.
pub(crate) fn converge(world: &mut World) -> Result<(), Violation> {
    let last_fault = world.now;
    let slot = &world.slots[0];
    let bound = slot.config.convergence(world.slots.len()) + RESOLVE;
    let bound = if world.has_liar { AFTER_LIAR } else { bound };
    let look = Duration::from_millis(250);
    let met = world.run_while_not(bound, look, |world| disagreements(world).is_empty())?;
    let state_bound = HEALED.max(met.unwrap_or(bound) + SETTLED);
    let state_bound = if world.has_liar { AFTER_LIAR } else { state_bound };
    let mut agreed_for = 0;
    while agreed_for < 6 {
        let after = world.now - last_fault;
        // A frame that was sent before the last fault ended may raise a suspicion, which is refuted within the bound.
        let found = disagreements(world);
        if !found.is_empty() && after >= bound {
            return Err(not_converged(world, last_fault, bound, &found));
        }
        let apart = if found.is_empty() { differences(world) } else { Vec::new() };
        if !apart.is_empty() && after >= state_bound {
            return Err(not_converged(world, last_fault, state_bound, &apart));
        }
        agreed_for = if found.is_empty() && apart.is_empty() { agreed_for + 1 } else { 0 };
        world.run_for(Duration::from_secs(1))?;
    }
    Ok(())
}

fn not_converged(
    world: &World,
    last_fault: Duration,
    bound: Duration,
    found: &[String],
) -> Violation {
    let after = world.now - last_fault;
    if world.verbose {
        print_all(world, found);
    }
    let first = found.first().map_or("they did not agree for long enough", String::as_str);
    let what = format!(
        "{after:?} after the last fault, bound {bound:?}: {first} (and {} more)",
        found.len().saturating_sub(1)
    );
    Violation { check: "Convergence", at: world.now, what }
}

/// Prints what each node holds, for a replay.
fn print_all(world: &World, found: &[String]) {
    for line in found {
        println!("{line}");
    }
    for (slot, process) in world.running() {
        let (node, replication) = (&process.node, process.node.replication());
        println!("{slot}: {} writes as {}", node.me().node, replication.me());
        println!("   reaches {:?}", replication.members().collect::<Vec<_>>());
        for store in StoreId::ALL {
            let versions: Vec<_> = node.state().versions(store).collect();
            println!("   {store} {:016x} {versions:?}", node.state().fingerprint(store));
        }
        println!("   {:?}", replication.counters());
        println!("   {:?}", node.frames());
    }
}

fn collect_rare_states(world: &mut World) {
    let mut reached = BTreeSet::new();
    for (_, process) in world.running() {
        let (counters, frames) = (process.node.membership().counters(), process.node.frames());
        let rows = process.node.replication().counters();
        for (seen, state) in [
            (counters.stale_suspicions, "a stale suspicion was dropped"),
            (counters.stalls, "a freeze was noticed"),
            (counters.foreign_cluster, "a foreign frame was counted"),
            (counters.unanswered_challenges, "a challenge was not answered"),
            (frames.unknown_kind, "an unknown kind was skipped"),
            (frames.unknown_version, "an unknown version was refused"),
            (frames.corrupted, "a corrupted frame was refused"),
            (counters.absurd_claims, "an absurd claim was refused"),
            (rows.absurd_versions, "an absurd version was refused"),
            (rows.withdrawn_claims, "a claim was withdrawn"),
            (rows.repaired, "an audit repaired rows"),
        ] {
            if seen > 0 {
                reached.insert(state);
            }
        }
    }
    let namesake_runs = |process: &crate::world::Process| {
        !matches!(process.node.membership().refused(), Some(RefusalReason::DuplicateName(_)))
    };
    let holder_gone = world.slots.iter().enumerate().any(|(i, slot)| {
        slot.process.as_ref().is_some_and(namesake_runs)
            && world
                .slots
                .iter()
                .take(i)
                .any(|other| other.name == slot.name && other.process.is_none())
    });
    if holder_gone {
        reached.insert("a namesake came in after the holder had gone");
    }
    world.reached.extend(reached);
}
