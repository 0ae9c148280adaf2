//! Checks what must hold after every step, and what must hold once the faults are over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use smg_cluster::Event;
use smg_cluster::membership::{self, MemberState};
use smg_cluster::state::StoreId;
use smg_cluster::state::table::LogPosition;
use smg_cluster::state::writers::Writer;
use smg_types::ids::{NodeId, NodeName};

use crate::world::{Slot, World};

/// A check that failed.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub check: &'static str,
    pub at: Duration,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:.6} s: {}", self.check, self.at.as_secs_f64(), self.what)
    }
}

/// The memory of the checks between steps. A process is named by its number.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// Per observing process: the highest (claim, incarnation) under each name, while it is listed.
    highest: BTreeMap<u32, BTreeMap<NodeName, (u64, u16)>>,
    /// The process that writes as each node.
    writers: BTreeMap<NodeId, u32>,
    /// Generations that have left gracefully.
    gone: BTreeSet<NodeId>,
    /// Per observing process: the generations that it saw leave.
    seen_gone: BTreeMap<u32, BTreeSet<NodeId>>,
    /// Per observing process: where each log was.
    logs: BTreeMap<u32, BTreeMap<(StoreId, Writer), LogPosition>>,
    /// The most timers that any node had.
    pub most_timers: usize,
}

impl Checks {
    pub(crate) fn departed(&mut self, slot: usize, slots: &[Slot]) {
        if let Some(process) = &slots[slot].process {
            self.gone.insert(process.node.me().node);
        }
    }

    pub(crate) fn after_step(
        &mut self,
        world: &World,
        slot: usize,
        events: &[Event],
    ) -> Result<(), Violation> {
        let Some(process) = &world.slots[slot].process else { return Ok(()) };
        let violated = |check, what| {
            Err(Violation { check, at: world.now, what: format!("slot {slot}: {what}") })
        };
        let (node, run) = (&process.node, process.run);
        let me = node.me();

        // SelfLiveness: a node that runs is never down or suspected to itself, nor back in INIT without a reason.
        let sound = match me.state {
            MemberState::Alive => true,
            MemberState::Init => !process.leaving,
            MemberState::Leaving => process.leaving,
            MemberState::Suspected | MemberState::Down => false,
        };
        if !sound {
            return violated("SelfLiveness", format!("lists itself as {}", me.state));
        }
        for event in events {
            let fell_back =
                membership::Event::OwnState { from: MemberState::Alive, to: MemberState::Init };
            if *event == Event::Membership(fell_back) && node.membership().refused().is_none() {
                return violated("SelfLiveness", "fell back to INIT without being refused".into());
            }
        }

        // SingleWriter: one process per (name, generation), ever.
        let writer = *self.writers.entry(me.node.clone()).or_insert(run);
        if writer != run {
            return violated("SingleWriter", format!("writes as {}, as run {writer} did", me.node));
        }

        for event in events {
            let Event::Membership(membership::Event::Member(transition)) = event else { continue };
            // LegalTransitions: the table of the state machine.
            if !MemberState::is_legal(transition.from, transition.to) {
                return violated("LegalTransitions", format!("{transition:?}"));
            }
            // SuspicionEvictsNothing: a member that is alive or suspected stays listed, unless a later generation takes
            // its place.
            let vanished = transition.to.is_none()
                && matches!(transition.from, Some(MemberState::Alive | MemberState::Suspected));
            // A lie may be that a later generation took its place and is gone.
            if vanished
                && !world.has_liar
                && !node.members().any(|m| m.node.name == transition.node.name)
            {
                return violated("SuspicionEvictsNothing", format!("{transition:?}"));
            }
            // NoResurrection: a generation that was seen to leave is never listed again.
            let gone = self.seen_gone.entry(run).or_default();
            if transition.from == Some(MemberState::Leaving) && transition.to.is_none() {
                if self.gone.contains(&transition.node) {
                    gone.insert(transition.node.clone());
                }
            } else if transition.from.is_none() && gone.contains(&transition.node) {
                return violated("NoResurrection", format!("{transition:?} after it left"));
            }
        }

        // LogInvariants: the versions that describe a log fit each other.
        if let Err(broken) = node.state().check_logs() {
            return violated("LogInvariants", broken.to_string());
        }

        if !events.is_empty() || world.steps.is_multiple_of(64) {
            self.check_members(world, slot)?;
            self.check_logs_moved_forward(world, slot)?;
        }
        Ok(())
    }

    fn check_logs_moved_forward(&mut self, world: &World, slot: usize) -> Result<(), Violation> {
        let Some(process) = &world.slots[slot].process else { return Ok(()) };
        let state = process.node.state();
        let before = self.logs.entry(process.run).or_default();
        for ((store, writer), log) in state.log_positions() {
            let moved_back = before
                .insert((store, writer), log)
                .and_then(|before| log.check_after(&before).err());
            if let Some(broken) = moved_back {
                // LogInvariants: a log only moves forward.
                let id = state.writers().id(writer);
                let what = format!("slot {slot}: log of {id:?} in {store}: {broken}");
                return Err(Violation { check: "LogInvariants", at: world.now, what });
            }
        }
        Ok(())
    }

    fn check_members(&mut self, world: &World, slot: usize) -> Result<(), Violation> {
        let Some(process) = &world.slots[slot].process else { return Ok(()) };
        let violated = |check, what| {
            Err(Violation { check, at: world.now, what: format!("slot {slot}: {what}") })
        };
        let (node, run) = (&process.node, process.run);
        let members: BTreeMap<_, _> =
            node.members().map(|member| (member.node.name.clone(), member)).collect();

        // IncarnationMonotonic: what is known under a name only grows while it is listed.
        let highest = self.highest.entry(run).or_default();
        highest.retain(|name, _| members.contains_key(name));
        for (name, member) in &members {
            if member.state == MemberState::Init {
                // A newcomer may give up; then the generation that is known is listed again.
                continue;
            }
            let claim = member.node.generation.0.saturating_add(member.renewal);
            let known = (claim, member.incarnation);
            // A member that is down has no incarnation.
            let known = if member.state.is_present() { known } else { (claim, u16::MAX) };
            let before = highest.insert(name.clone(), (claim, member.incarnation));
            if let Some(before) = before
                && before > known
                && !world.has_liar
            {
                let what = format!("{name} went back from {before:?} to {known:?}");
                return violated("IncarnationMonotonic", what);
            }
        }

        // Boundedness: nothing grows with the number of faults.
        let (names, timers, backlog) = node.membership().sizes();
        self.most_timers = self.most_timers.max(timers);
        // A liar may bring in 16 members that are present and 64 that are not, again and again while the former go down.
        let slots = world.slots.len() + if world.has_liar { 160 } else { 0 };
        if names > slots || timers > 64 + 24 * slots || backlog > slots + 1 {
            let what =
                format!("{names} names, {timers} timers, {backlog} updates for {slots} slots");
            return violated("Boundedness", what);
        }
        let counters = node.membership().counters();
        if counters.dropped_frames + node.frames().dropped_events + node.frames().oversized > 0 {
            return violated("Boundedness", "frames were dropped before they were sent".into());
        }
        Ok(())
    }
}

/// The faults of the lists of members of all nodes; empty if there are none.
pub(crate) fn disagreements(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    let clusters: BTreeSet<_> =
        world.slots.iter().map(|slot| (slot.cluster, slot.version.0)).collect();
    for (cluster, major) in clusters {
        let inside: Vec<_> = world
            .running()
            .filter(|(i, process)| {
                let slot = &world.slots[*i];
                let counts = !process.leaving && process.node.membership().refused().is_none();
                (slot.cluster, slot.version.0) == (cluster, major) && counts
            })
            .collect();
        for (i, process) in &inside {
            let me = process.node.me();
            // A node without any other to talk to stays in INIT and probes for ever.
            let is_lone = inside.len() == 1 && me.state == MemberState::Init;
            if me.state != MemberState::Alive && !is_lone {
                found.push(format!("{} is {} to itself", me.node, me.state));
            }
            let members: BTreeMap<_, _> =
                process.node.members().map(|m| (m.node.name.clone(), m)).collect();
            for (j, other) in &inside {
                if i == j {
                    continue;
                }
                let it = other.node.me();
                match members.get(&it.node.name) {
                    None => found.push(format!("{} does not list {}", me.node, it.node)),
                    Some(seen) if seen.node != it.node => {
                        found.push(format!("{} lists {} for {}", me.node, seen.node, it.node));
                    }
                    Some(seen) if seen.state != MemberState::Alive => {
                        found.push(format!("{} lists {} as {}", me.node, it.node, seen.state));
                    }
                    Some(seen) if seen.address != it.address => {
                        let (at, is) = (seen.address, it.address);
                        found.push(format!("{} has {} at {at}, it is at {is}", me.node, it.node));
                    }
                    Some(_) => {}
                }
            }
            for member in members.values() {
                let runs = world.running().any(|(_, other)| {
                    let expected =
                        if other.leaving { MemberState::Leaving } else { MemberState::Alive };
                    other.node.me().node == member.node && member.state == expected
                });
                if !runs && member.state != MemberState::Down {
                    let node = &member.node;
                    found.push(format!("{} lists the dead {node} as {}", me.node, member.state));
                }
            }
        }
    }
    found
}

/// The faults of the state: its differences between nodes, and from what was written; empty if there are none.
pub(crate) fn differences(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    if !world.compares_state {
        return found;
    }
    let ours: Vec<_> = world
        .running()
        .filter(|(i, process)| {
            let stays = !process.leaving && process.node.membership().refused().is_none();
            world.is_ours(*i) && stays
        })
        .map(|(_, process)| &process.node)
        .collect();
    for pair in ours.windows(2) {
        for store in StoreId::ALL {
            if pair[0].state().reading(store) != pair[1].state().reading(store) {
                let (a, b) = (pair[0].me().node, pair[1].me().node);
                found.push(format!("{a} and {b} hold different {store}"));
            }
        }
    }
    if found.is_empty() {
        found = world.ledger.find_broken_promises(world);
    }
    found
}
