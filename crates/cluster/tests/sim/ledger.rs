//! The ledger: the rows that were written, and the reads that they must lead to in the end.
//!
//! Every worker is registered once, under an address of its own, and removed at most once, so that what must be there
//! is known without a model of the stores. A write is *safe* if the process that wrote it, or one that acknowledged it,
//! still runs. Safe additions that were not removed are on all nodes; workers with a safe removal are on none. What
//! only crashed processes had may be there or not, but alike on all nodes.

use rand::RngExt;
use smg_cluster::replication::Acknowledgement;
use smg_cluster::state::operations::Draw;
use smg_cluster::state::policy::{PolicyRecord, PolicyWrite};
use smg_cluster::state::store::Retention;
use smg_cluster::state::totals::{Outcome, TotalWrite};
use smg_cluster::state::worker::{WorkerRecord, WorkerWrite};
use smg_cluster::state::{State, StoreId, Version, Write};
use smg_types::ids::{ModelId, NodeId, WorkerId};
use smg_types::spec::{WorkerSpec, WorkerUrl};
use std::collections::{BTreeMap, BTreeSet};

use crate::checks::Violation;
use crate::world::{EPOCH, World};

/// One write, and the processes that have it.
#[derive(Debug, Clone)]
struct WriteRecord {
    slot: usize,
    run: u32,
    version: Version,
    /// Processes that acknowledged it.
    copies: Vec<u32>,
}

#[derive(Debug, Clone)]
struct WorkerHistory {
    added: WriteRecord,
    removed: Option<WriteRecord>,
}

/// All writes of a history.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    workers: BTreeMap<WorkerId, WorkerHistory>,
    /// Requests that each generation of a node has counted: a later generation counts from zero again.
    totals: BTreeMap<NodeId, (u64, Option<WriteRecord>)>,
    pub(crate) writes: u64,
    /// The newest version of each writer that any node ever had, even if only the writer itself.
    newest: BTreeMap<(StoreId, NodeId), u64>,
    /// Whether limits are counted too. Such rows last until their window ends, so that no writer of one is retired in
    /// the time that a history takes.
    pub(crate) counts_limits: bool,
}

/// The worker with this number.
pub(crate) fn worker_spec(number: u64) -> WorkerSpec {
    let url: WorkerUrl =
        format!("http://10.{}.{}.1:8000", number / 250 % 250, number % 250).parse().expect("a url");
    WorkerSpec::new(url)
}

fn model() -> ModelId {
    ModelId::from("m")
}

impl Ledger {
    /// Lets a slot write something random.
    pub(crate) fn write(&mut self, world: &mut World, slot: usize) -> Result<(), Violation> {
        let Some(process) = &world.slots[slot].process else { return Ok(()) };
        let is_in = !process.leaving && process.node.membership().refused().is_none();
        let is_writer = world.is_ours(slot) && !process.stalled && is_in;
        if !is_writer {
            return Ok(());
        }
        let run = process.run;
        self.writes += 1;
        let what = world.rng.random_range(0..14);
        if what >= 10 {
            return self.write_to_other_store(world, slot).map(|_| ());
        }
        if what < 5 {
            let record = WorkerRecord::from(&worker_spec(self.workers.len() as u64));
            let id = record.id;
            if let Some(version) = world.write(slot, WorkerWrite::Put(record))? {
                let added = WriteRecord { slot, run, version, copies: Vec::new() };
                self.workers.insert(id, WorkerHistory { added, removed: None });
            }
        } else if what < 7 && !world.has_liar {
            // A removal that a liar makes its receivers skip is lost, see `docs/replication.md`.
            let state = process.node.state();
            let seen: Vec<WorkerId> = state.workers().map(|(id, _)| id).collect();
            if let Some(id) =
                (!seen.is_empty()).then(|| seen[world.rng.random_range(0..seen.len())])
                && let Some(version) = world.write(slot, WorkerWrite::Remove(id))?
                && let Some(history) = self.workers.get_mut(&id)
            {
                // The first removal counts; a second one adds nothing.
                if history.removed.is_none() {
                    history.removed = Some(WriteRecord { slot, run, version, copies: Vec::new() });
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
            let record =
                version.map(|version| WriteRecord { slot, run, version, copies: Vec::new() });
            self.totals.insert(me, (count, record));
        }
        Ok(())
    }

    /// Writes to a store whose rows are only compared between nodes.
    fn write_to_other_store(
        &self,
        world: &mut World,
        slot: usize,
    ) -> Result<Option<Version>, Violation> {
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

    /// A process is about to end: notes which others have what it wrote.
    pub(crate) fn process_ends(&mut self, world: &World, slot: usize) {
        let Some(process) = &world.slots[slot].process else { return };
        self.note_versions(process.node.state());
        let run = process.run;
        let totals = self.totals.values_mut().filter_map(|(_, record)| record.as_mut());
        let records = self
            .workers
            .values_mut()
            .flat_map(|history| std::iter::once(&mut history.added).chain(history.removed.as_mut()))
            .chain(totals)
            .filter(|record| (record.slot, record.run) == (slot, run));
        for record in records {
            for (peer, part) in process.node.replication().receipt(record.version) {
                let holder = world.running().find(|(_, other)| other.node.me().node == *peer);
                if part == Acknowledgement::Applied
                    && let Some((_, holder)) = holder
                {
                    record.copies.push(holder.run);
                }
            }
        }
    }

    fn note_versions(&mut self, state: &State) {
        for store in StoreId::ALL {
            for (writer, version) in state.covered(store) {
                let newest = self.newest.entry((store, writer.clone())).or_default();
                *newest = version.max(*newest);
            }
        }
    }

    /// Notes the versions of all nodes that run.
    pub(crate) fn note_all_versions(&mut self, world: &World) {
        for (_, process) in world.running() {
            self.note_versions(process.node.state());
        }
    }

    /// Whether `state` covers all of `store` that was ever written.
    fn has_all(&self, state: &State, store: StoreId) -> bool {
        let covered: BTreeMap<&NodeId, u64> = state.covered(store).collect();
        let newest = self.newest.iter().filter(|((of, _), _)| *of == store);
        newest.into_iter().all(|((_, writer), version)| covered.get(writer) == Some(version))
    }

    /// The rows that are not as they were written, once all nodes agree.
    pub(crate) fn find_broken_promises(&self, world: &World) -> Vec<String> {
        let holds = |run: u32| {
            world.running().any(|(_, process)| {
                process.run == run
                    && !process.leaving
                    && process.node.membership().refused().is_none()
            })
        };
        let is_safe =
            |record: &WriteRecord| holds(record.run) || record.copies.iter().any(|run| holds(*run));
        let mut found = Vec::new();
        for (slot, process) in world.running() {
            let is_in = world.is_ours(slot)
                && !process.leaving
                && process.node.membership().refused().is_none();
            if !is_in {
                continue;
            }
            let (me, state) = (process.node.me().node, process.node.state());
            for (id, history) in &self.workers {
                let is_there = state.worker(*id).is_some();
                match &history.removed {
                    None if is_safe(&history.added) && !is_there => {
                        found.push(format!("NoDataLoss: {me} lost {id}, {history:?}"));
                    }
                    Some(removed) if is_there && is_safe(removed) => {
                        found.push(format!("NoResurrection: {me} has {id} again, {history:?}"));
                    }
                    None | Some(_) => {}
                }
            }
            let all: u64 = self.totals.values().map(|(count, _)| count).sum();
            let safe: u64 = self
                .totals
                .values()
                .filter(|(_, record)| record.as_ref().is_some_and(is_safe))
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
/// Nodes that are behind may differ although their versions are equal: a row that another writer has replaced or
/// removed is missing in the logs that relays send, also to a node that has not received the replacement. If the
/// replacement is lost with its writer, no node will ever receive it, and only an audit finds the difference. Such a
/// store is not compared any more.
///
/// Measurements are dropped where a node takes their writer for dead, so they are compared only while no process has ended and
/// no two processes have the same name.
pub(crate) fn find_dishonest(ledger: &Ledger, world: &World) -> Option<String> {
    let ours = world.running().filter(|(slot, process)| {
        let stays = !process.leaving && process.node.membership().refused().is_none();
        world.is_ours(*slot) && stays
    });
    let ours: Vec<_> =
        ours.map(|(_, process)| (process.node.me().node, process.node.state())).collect();
    let mut names = BTreeSet::new();
    let are_unique = world.running().all(|(_, process)| names.insert(process.node.me().node.name));
    let all_live = !world.reached.contains("a node went on as a later generation")
        && !world.has_lost_a_process()
        && are_unique;
    for store in StoreId::ALL.into_iter().filter(|store| all_live || !store.ends_with_writer()) {
        let mut seen: Option<(u64, &NodeId)> = None;
        for (me, state) in ours.iter().filter(|(_, state)| ledger.has_all(state, store)) {
            let rows = match store.ends_with_writer() {
                true => state.fingerprint(store),
                false => state.reading(store),
            };
            let (other_rows, other) = *seen.get_or_insert((rows, me));
            if other_rows != rows {
                if world.verbose {
                    print_rows(world, store);
                }
                return Some(format!("{me} and {other} have all of {store} and hold other rows"));
            }
        }
    }
    None
}

/// Prints what each node holds of a store, for a replay.
fn print_rows(world: &World, store: StoreId) {
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
