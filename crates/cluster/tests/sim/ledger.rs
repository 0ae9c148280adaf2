//! What was written, and what must therefore be true in the end.
//!
//! Every worker is registered once under an address of its own and removed at most once, so that what must be there is
//! known without a model of the stores: a write is *safe* if the process that wrote it, or one that acknowledged it,
//! still runs. Safe additions that nobody removed are everywhere, safe removals are nowhere; what only the dead knew may
//! be there or not, but everywhere alike.

use rand::RngExt;
use smg_cluster::state::policy::{PolicyRecord, PolicyWrite};
use smg_cluster::state::store::{Draw, Retention};
use smg_cluster::state::totals::{Outcome, TotalWrite};
use smg_cluster::state::worker::{WorkerRecord, WorkerWrite};
use smg_cluster::state::{State, StoreId, Version, Write};
use smg_types::ids::{ModelId, NodeId, WorkerId};
use smg_types::spec::{WorkerSpec, WorkerUrl};
use std::collections::{BTreeMap, BTreeSet};

use crate::checks::Violation;
use crate::world::{EPOCH, World};

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
    /// The newest version of each writer that any node ever had, and be it the writer alone.
    newest: BTreeMap<(StoreId, NodeId), u64>,
    /// Whether limits are counted too. Such rows last until their window ends, so that no writer of one is retired in the
    /// time that a history takes.
    pub(crate) counts_limits: bool,
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
        let what = world.rng.random_range(0..14);
        if what >= 10 {
            return self.write_aside(world, slot).map(|_| ());
        }
        if what < 5 {
            let record = WorkerRecord::from(&worker_spec(self.facts.len() as u64));
            let id = record.id;
            if let Some(version) = world.write(slot, WorkerWrite::Put(record))? {
                let added = Deed { slot, life, version, copies: Vec::new() };
                self.facts.insert(id, Fact { added, removed: None });
            }
        } else if what < 7 {
            let state = process.node.state();
            let seen: Vec<WorkerId> = state.workers().map(|(id, _)| id).collect();
            if let Some(id) =
                (!seen.is_empty()).then(|| seen[world.rng.random_range(0..seen.len())])
                && let Some(version) = world.write(slot, WorkerWrite::Remove(id))?
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
            world.write(slot, PolicyWrite { model: model(), policy: Some(record) })?;
        } else {
            let me = process.node.me().node;
            let (count, _) = self.totals.get(&me).cloned().unwrap_or_default();
            let count = count + world.rng.random_range(1..100);
            let version =
                world.write(slot, TotalWrite { model: model(), outcome: Outcome::Ok, count })?;
            let deed = version.map(|version| Deed { slot, life, version, copies: Vec::new() });
            self.totals.insert(me, (count, deed));
        }
        Ok(())
    }

    /// Writes to a store of which only equality is asked.
    fn write_aside(&self, world: &mut World, slot: usize) -> Result<Option<Version>, Violation> {
        let others = world.running().filter(|(i, _)| *i != slot);
        let other = others.map(|(_, process)| process.node.me().node).next();
        let rng = &mut world.rng;
        let (number, worker) = (rng.random_range(0..1000), rng.random_range(0..4));
        let is_put = rng.random_bool(0.7);
        let stores = stores_aside(self.counts_limits);
        let store = stores[rng.random_range(0..stores.len())];
        let mut draw = Draw {
            number,
            worker: WorkerId::from_u64(worker),
            is_put,
            other,
            wall_ms: u64::try_from(EPOCH.as_millis()).expect("it is this century"),
            rng,
        };
        match Write::sample(store, &mut draw) {
            Some(write) => world.write(slot, write),
            None => Ok(None),
        }
    }

    /// A process is about to end: who else has what it wrote?
    pub(crate) fn process_ends(&mut self, world: &World, slot: usize) {
        let Some(process) = &world.slots[slot].process else { return };
        self.look(process.node.state());
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

    fn look(&mut self, state: &State) {
        for store in StoreId::ALL {
            for (writer, version) in state.covered(store) {
                let newest = self.newest.entry((store, writer.clone())).or_default();
                *newest = version.max(*newest);
            }
        }
    }

    /// Looks at how far all nodes are that run.
    pub(crate) fn look_around(&mut self, world: &World) {
        for (_, process) in world.running() {
            self.look(process.node.state());
        }
    }

    /// Whether `state` covers all of `store` that was ever written.
    fn has_all(&self, state: &State, store: StoreId) -> bool {
        let covered: BTreeMap<&NodeId, u64> = state.covered(store).collect();
        let newest = self.newest.iter().filter(|((of, _), _)| *of == store);
        newest.into_iter().all(|((_, writer), version)| covered.get(writer) == Some(version))
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

/// The stores of whose writes no account is kept. Without limits, those whose rows somebody else takes over or that end
/// with their writer.
///
/// The first seven are in the order in which they have always been drawn, so that the seeds in `main.rs` stay the
/// histories that they are.
fn stores_aside(counts_limits: bool) -> Vec<StoreId> {
    const IN_THE_ACCOUNT: [StoreId; 3] = [StoreId::Workers, StoreId::Policies, StoreId::Totals];
    const FIRST: [StoreId; 7] = [
        StoreId::Sessions,
        StoreId::Rules,
        StoreId::Observations,
        StoreId::Load,
        StoreId::Usage,
        StoreId::Tokens,
        StoreId::Rights,
    ];
    let is_later = |store: &StoreId| !FIRST.contains(store) && !IN_THE_ACCOUNT.contains(store);
    let later = StoreId::ALL.into_iter().filter(is_later);
    let is_adopted = |store: &StoreId| {
        counts_limits || store.is_shared() || store.retention() != Retention::TimeToLive
    };
    FIRST.into_iter().chain(later).filter(is_adopted).collect()
}

/// Two nodes that have everything that was ever written to a store but hold different rows: their versions lie.
///
/// Behind that two nodes may lawfully differ though their versions are equal: what another writer has replaced or removed
/// is missing in the logs that relays serve, also to who has not heard that writer yet. If its write is lost with it,
/// nobody ever will, and only an audit finds the difference: such a store is compared no more.
///
/// Observations and loads end where a node takes their writer for dead, so they are compared only while nobody has died.
pub(crate) fn dishonest(ledger: &Ledger, world: &World) -> Option<String> {
    let ours = world.running().filter(|(slot, process)| {
        let stays = !process.leaving && process.node.membership().refused().is_none();
        world.is_ours(*slot) && stays
    });
    let ours: Vec<_> =
        ours.map(|(_, process)| (process.node.me().node, process.node.state())).collect();
    let all_live = !world.reached.contains("a life was reborn above its past")
        && !world.has_lost_a_life()
        && ours.iter().map(|(me, _)| &me.name).collect::<BTreeSet<_>>().len() == ours.len();
    for store in StoreId::ALL.into_iter().filter(|store| all_live || !store.ends_with_writer()) {
        let mut seen: Option<(u64, &NodeId)> = None;
        for (me, state) in ours.iter().filter(|(_, state)| ledger.has_all(state, store)) {
            let reading = state.reading(store);
            let (other_reading, other) = *seen.get_or_insert((reading, me));
            if other_reading != reading {
                if world.verbose {
                    tell_rows(world, store);
                }
                return Some(format!("{me} and {other} have all of {store} and hold other rows"));
            }
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
