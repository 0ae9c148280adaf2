//! What was written, and what must therefore be true in the end.
//!
//! Every worker is registered once under an address of its own and removed at most once, so that what must be there is
//! known without a model of the stores: a write is *safe* if the process that wrote it, or one that acknowledged it,
//! still runs. Safe additions that nobody removed are everywhere, safe removals are nowhere; what only the dead knew may
//! be there or not, but everywhere alike.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use smg::cluster::state::policy::PolicyRecord;
use smg::cluster::state::totals::Outcome;
use smg::cluster::state::worker::WorkerRecord;
use smg::cluster::state::{StoreId, Version, Write};
use smg::ids::{ModelId, NodeId, WorkerId};
use smg::spec::{WorkerSpec, WorkerUrl};

use crate::checks::Violation;
use crate::world::World;

/// The stores that must be equal on all nodes once the faults are over; the others end with time or with their writer.
pub(crate) const COMPARED: [StoreId; 4] =
    [StoreId::Workers, StoreId::Policies, StoreId::Rules, StoreId::Totals];

/// One write, and who can vouch for it.
#[derive(Debug, Clone)]
struct Deed {
    slot: usize,
    life: u32,
    version: Version,
    /// Lives that acknowledged it.
    copies: Vec<u32>,
}

#[derive(Debug, Clone)]
struct Fact {
    added: Deed,
    removed: Option<Deed>,
}

/// All writes of a history.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    facts: BTreeMap<WorkerId, Fact>,
    /// Requests that each life of a node has counted: a process that is reborn counts from zero again.
    totals: BTreeMap<NodeId, (u64, Option<Deed>)>,
    pub(crate) writes: u64,
}

/// A worker of this number.
pub(crate) fn worker_spec(number: u64) -> WorkerSpec {
    let url: WorkerUrl =
        format!("http://10.{}.{}.1:8000", number / 250 % 250, number % 250).parse().expect("a url");
    WorkerSpec::new(url)
}

fn model() -> ModelId {
    ModelId::from("m")
}

impl Ledger {
    /// Lets a slot write something by chance.
    pub(crate) fn write(&mut self, world: &mut World, slot: usize) -> Result<(), Violation> {
        let Some(process) = &world.slots[slot].process else { return Ok(()) };
        let is_in = !process.leaving && process.node.membership().refused().is_none();
        let is_writer = world.is_ours(slot) && !process.stalled && is_in;
        if !is_writer {
            return Ok(());
        }
        let life = process.life;
        self.writes += 1;
        let what = world.rng.random_range(0..10);
        if what < 5 {
            let record = WorkerRecord::from(&worker_spec(self.facts.len() as u64));
            let id = record.id;
            if let Some(version) = world.write(slot, Write::PutWorker(record))? {
                let added = Deed { slot, life, version, copies: Vec::new() };
                self.facts.insert(id, Fact { added, removed: None });
            }
        } else if what < 7 {
            let state = process.node.state();
            let seen: Vec<WorkerId> = state.workers().map(|(id, _)| id).collect();
            if let Some(id) =
                (!seen.is_empty()).then(|| seen[world.rng.random_range(0..seen.len())])
                && let Some(version) = world.write(slot, Write::RemoveWorker(id))?
                && let Some(fact) = self.facts.get_mut(&id)
            {
                // The first removal that is safe counts; a second one only adds to it.
                if fact.removed.is_none() {
                    fact.removed = Some(Deed { slot, life, version, copies: Vec::new() });
                }
            }
        } else if what < 8 {
            let policy = format!("policy-{}", world.rng.random_range(0..1000));
            let record =
                PolicyRecord { policy, parameters: BTreeMap::new(), weights: BTreeMap::new() };
            world.write(slot, Write::Policy(model(), Some(record)))?;
        } else {
            let me = process.node.me().node;
            let (count, _) = self.totals.get(&me).cloned().unwrap_or_default();
            let count = count + world.rng.random_range(1..100);
            let version = world.write(slot, Write::Total(model(), Outcome::Ok, count))?;
            let deed = version.map(|version| Deed { slot, life, version, copies: Vec::new() });
            self.totals.insert(me, (count, deed));
        }
        Ok(())
    }

    /// A process is about to end: who else has what it wrote?
    pub(crate) fn process_ends(&mut self, world: &World, slot: usize) {
        let Some(process) = &world.slots[slot].process else { return };
        let life = process.life;
        let totals = self.totals.values_mut().filter_map(|(_, deed)| deed.as_mut());
        let deeds = self
            .facts
            .values_mut()
            .flat_map(|fact| std::iter::once(&mut fact.added).chain(fact.removed.as_mut()))
            .chain(totals)
            .filter(|deed| (deed.slot, deed.life) == (slot, life));
        for deed in deeds {
            for (peer, has) in process.node.replication().receipt(deed.version) {
                let holder = world.running().find(|(_, other)| other.node.me().node == *peer);
                if has && let Some((_, holder)) = holder {
                    deed.copies.push(holder.life);
                }
            }
        }
    }

    /// What is not as it was written, once all agree.
    pub(crate) fn unkept(&self, world: &World) -> Vec<String> {
        let holds = |life: u32| {
            world.running().any(|(_, process)| {
                process.life == life
                    && !process.leaving
                    && process.node.membership().refused().is_none()
            })
        };
        let is_safe = |deed: &Deed| holds(deed.life) || deed.copies.iter().any(|life| holds(*life));
        let mut found = Vec::new();
        for (slot, process) in world.running() {
            let is_in = world.is_ours(slot)
                && !process.leaving
                && process.node.membership().refused().is_none();
            if !is_in {
                continue;
            }
            let (me, state) = (process.node.me().node, process.node.state());
            for (id, fact) in &self.facts {
                let is_there = state.worker(*id).is_some();
                match &fact.removed {
                    None if is_safe(&fact.added) && !is_there => {
                        found.push(format!("NoDataLoss: {me} lost {id}, {fact:?}"));
                    }
                    Some(removed) if is_there && is_safe(removed) => {
                        found.push(format!("NoResurrection: {me} has {id} again, {fact:?}"));
                    }
                    None | Some(_) => {}
                }
            }
            let all: u64 = self.totals.values().map(|(count, _)| count).sum();
            let safe: u64 = self
                .totals
                .values()
                .filter(|(_, deed)| deed.as_ref().is_some_and(is_safe))
                .map(|(count, _)| count)
                .sum();
            let counted = state.total(&model(), Outcome::Ok);
            if counted < safe || counted > all {
                found.push(format!("NoDataLoss: {me} counts {counted}, not {safe} to {all}"));
            }
        }
        found
    }
}

/// Nodes that have everything that was written but hold different rows: their versions lie.
///
/// Only who is at the newest version of every writer is compared. Behind it two nodes may lawfully differ: the log is
/// coalescing, so that "up to 2" has no row if the row moved on to 3, or was taken back by a writer that the node has
/// not heard yet. And only while no writer has died: what it told only some of is for the audit to find.
pub(crate) fn dishonest(world: &World) -> Option<String> {
    let ours: Vec<_> = world
        .running()
        .filter(|(slot, process)| {
            let stays = !process.leaving && process.node.membership().refused().is_none();
            world.is_ours(*slot) && stays
        })
        .map(|(_, process)| (process.node.me().node, process.node.state()))
        .collect();
    let names: BTreeSet<_> = ours.iter().map(|(me, _)| &me.name).collect();
    if names.len() < ours.len() {
        // Two processes of one name each take the other's rows for those of a former life.
        return None;
    }
    if world.reached.contains("a life was reborn above its past") || world.has_lost_a_life() {
        // What a dead writer removed may be done here, and its log closed, before others have heard of it.
        return None;
    }
    for store in COMPARED {
        let vectors: Vec<BTreeMap<&NodeId, u64>> =
            ours.iter().map(|(_, state)| state.versions(store).collect()).collect();
        let mut newest: BTreeMap<&NodeId, u64> = BTreeMap::new();
        for (writer, version) in vectors.iter().flatten() {
            let known = newest.entry(writer).or_default();
            *known = (*known).max(*version);
        }
        if newest.keys().any(|writer| !ours.iter().any(|(me, _)| me == *writer)) {
            continue;
        }
        let mut seen: Option<(u64, &NodeId)> = None;
        for ((me, state), vector) in ours.iter().zip(&vectors) {
            if *vector != newest {
                continue;
            }
            let print = state.fingerprint(store);
            if let Some((other_print, other)) = seen
                && other_print != print
            {
                if world.verbose {
                    tell_rows(world, store);
                }
                return Some(format!("{me} and {other} have all of {store} and hold other rows"));
            }
            seen = Some((print, me));
        }
    }
    None
}

/// What each node holds of a store, for whoever replays a history.
fn tell_rows(world: &World, store: StoreId) {
    for (slot, process) in world.running() {
        let state = process.node.state();
        println!("{slot}: {}", process.node.me().node);
        for (writer, version) in state.versions(store) {
            let rows: Vec<_> = state
                .living_rows(store, writer, version)
                .into_iter()
                .map(|(key, version)| {
                    format!("{version}:{:x}", xxhash_rust::xxh3::xxh3_64(&key) & 0xfff)
                })
                .collect();
            println!("   {writer} at {version}: {}", rows.join(" "));
        }
    }
}
