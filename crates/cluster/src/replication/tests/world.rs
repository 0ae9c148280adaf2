//! The world of the replication tests: nodes, links, time, faults, and what must hold.
//!
//! Every write of a policy has a number of its own, so that the world knows which values a write or a removal has seen,
//! and so which values may live. The world also plays membership.

mod checks;
mod faults;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use smg_types::ids::{Generation, ModelId, NodeId, WorkerId};
use smg_types::now::Now;

use crate::replication::{CHUNK_BYTES, Config, Counters, Message, Replication};
use crate::state::Write;
use crate::state::load::{Load, LoadWrite};
use crate::state::policy::{PolicyRecord, PolicyWrite};
use crate::state::session::{SessionKey, SessionWrite};
use crate::state::totals::{Outcome, TotalWrite};
use crate::state::worker::WorkerWrite;

pub(super) fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// The kinds of faults of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Faults {
    /// Loss, duplicates, delay, clock skew, partitions.
    network: bool,
    /// Crashes, restarts, and members that are forgotten.
    restarts: bool,
}

impl Faults {
    pub(super) const NONE: Self = Self { network: false, restarts: false };
    pub(super) const NETWORK: Self = Self { network: true, restarts: false };
    pub(super) const ALL: Self = Self { network: true, restarts: true };
}

struct Node {
    id: NodeId,
    replica: Option<Replication>,
    /// How far its wall clock is from that of the world, in milliseconds.
    skew_ms: i64,
    /// When its next tick is planned.
    tick_at: Option<Duration>,
    /// The snapshots that it has saved.
    disk: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What the node held when it last saved all: what it must hold when it has loaded that.
    saved: Option<Vec<(u64, BTreeMap<NodeId, u64>)>>,
    /// Values seen here under each key, and those that were seen and are gone.
    seen: BTreeMap<ModelId, BTreeSet<u64>>,
    gone: BTreeSet<u64>,
    /// Requests that its present generation has counted.
    counted: u64,
    /// The others have forgotten it while it runs, so they may have adopted what it replaces or removes now.
    isolated: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A node, and when its tick was planned: an older plan is void.
    Tick(usize, Duration),
    Deliver(usize, NodeId, NodeId, usize),
    Up(usize, usize),
    Down(usize, usize),
}

pub(super) struct World {
    pub(super) now: Duration,
    pub(super) delivered: u64,
    seed: u64,
    rng: StdRng,
    faults: Faults,
    loss: f64,
    nodes: Vec<Node>,
    /// Directed links that are cut.
    cut: BTreeSet<(usize, usize)>,
    queue: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    sequence: u64,
    messages: BTreeMap<usize, Message>,
    /// The key under which each number was written.
    written: BTreeMap<u64, ModelId>,
    /// Numbers that a later write or a removal has seen.
    superseded: BTreeSet<u64>,
    /// Numbers that may be lost or not, depending on what a crashed node had sent.
    uncertain: BTreeSet<u64>,
    next_number: u64,
    /// The counters of replicas that have crashed.
    crashed: Vec<Counters>,
}

fn name(at: usize) -> String {
    format!("n{at}")
}

impl World {
    pub(super) fn new(seed: u64, count: usize, faults: Faults) -> Self {
        let mut world = Self {
            now: Duration::from_secs(1_000),
            delivered: 0,
            seed,
            rng: rng(seed),
            faults,
            loss: if faults.network { 0.1 } else { 0.0 },
            nodes: Vec::new(),
            cut: BTreeSet::new(),
            queue: BinaryHeap::new(),
            sequence: 0,
            messages: BTreeMap::new(),
            written: BTreeMap::new(),
            superseded: BTreeSet::new(),
            uncertain: BTreeSet::new(),
            next_number: 1,
            crashed: Vec::new(),
        };
        for at in 0..count {
            let skew_ms = if faults.network { world.rng.random_range(-5_000..5_000) } else { 0 };
            let id = NodeId { name: name(at).parse().unwrap(), generation: Generation(1) };
            world.nodes.push(Node {
                id,
                replica: None,
                skew_ms,
                tick_at: None,
                disk: BTreeMap::new(),
                saved: None,
                seen: BTreeMap::new(),
                gone: BTreeSet::new(),
                counted: 0,
                isolated: false,
            });
            world.start(at);
        }
        world
    }

    fn now_at(&self, at: usize) -> Now {
        let wall_ms = 1_700_000_000_000 + i64::try_from(self.now.as_millis()).unwrap();
        let wall = u64::try_from(wall_ms + self.nodes[at].skew_ms).unwrap();
        Now { mono: self.now, wall: Duration::from_millis(wall) }
    }

    fn push(&mut self, after: Duration, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + after, self.sequence, event)));
    }

    fn config() -> Config {
        // Audits come often, so that there are some in the half minute that a world lasts.
        Config { audit_interval: Duration::from_secs(15), ..Config::default() }
    }

    fn start(&mut self, at: usize) {
        let id = self.nodes[at].id.clone();
        let mut replica = Replication::new(id, Self::config(), self.now_at(at));
        replica.track_unsaved();
        self.nodes[at].replica = Some(replica);
        self.nodes[at].tick_at = None;
        self.plan_tick(at);
        for other in 0..self.nodes.len() {
            if other != at && self.nodes[other].replica.is_some() {
                self.connect(at, other);
            }
        }
    }

    fn plan_tick(&mut self, at: usize) {
        let Some(replica) = &self.nodes[at].replica else { return };
        let Some(deadline) = replica.next_deadline() else { return };
        let wanted = deadline.max(self.now + Duration::from_millis(1));
        if self.nodes[at].tick_at.is_none_or(|planned| planned > wanted) {
            self.nodes[at].tick_at = Some(wanted);
            self.push(wanted - self.now, Event::Tick(at, wanted));
        }
    }

    /// Each of two nodes learns within 400 ms that it can reach the other.
    fn connect(&mut self, a: usize, b: usize) {
        for (here, there) in [(a, b), (b, a)] {
            let after = Duration::from_millis(self.rng.random_range(1..400));
            self.push(after, Event::Up(here, there));
        }
    }

    pub(super) fn replica(&self, at: usize) -> &Replication {
        self.nodes[at].replica.as_ref().unwrap()
    }

    pub(super) fn confirmation_times(&mut self, at: usize) -> Vec<Duration> {
        self.nodes[at].replica.as_mut().unwrap().take_confirmation_times()
    }

    pub(super) fn sum(&self, of: impl Fn(&Counters) -> u64) -> u64 {
        let living = self.nodes.iter().filter_map(|node| node.replica.as_ref());
        let living: u64 = living.map(|replica| of(replica.counters())).sum();
        living + self.crashed.iter().map(of).sum::<u64>()
    }

    fn can_talk(&self, a: usize, b: usize) -> bool {
        !self.cut.contains(&(a, b)) && !self.cut.contains(&(b, a))
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.queue.peek().is_some_and(|Reverse((at, _, _))| *at <= end) {
            self.step();
        }
        self.now = end;
    }

    pub(super) fn step(&mut self) {
        let Some(Reverse((at, _, event))) = self.queue.pop() else { return };
        self.now = at;
        match event {
            Event::Tick(at, planned) => {
                if self.nodes[at].tick_at != Some(planned) {
                    return;
                }
                self.nodes[at].tick_at = None;
                let now = self.now_at(at);
                if let Some(replica) = &mut self.nodes[at].replica
                    && replica.next_deadline().is_some_and(|deadline| now.mono >= deadline)
                {
                    let mut rng = rng(self.rng.next_u64());
                    replica.handle_tick(now, &mut rng);
                    self.check(at);
                }
                self.transmit(at);
            }
            Event::Deliver(to, from, id, number) => {
                let now = self.now_at(to);
                let message = self.messages.remove(&number).unwrap();
                if self.nodes[to].id == id
                    && let Some(replica) = &mut self.nodes[to].replica
                {
                    self.delivered += 1;
                    let changes = replica.handle_message(now, &from, message);
                    assert!(!changes.conflict, "two processes write as {id}");
                    self.check(to);
                    self.begin_generation_if_fenced(to);
                    self.transmit(to);
                }
            }
            Event::Up(here, there) => {
                if self.can_talk(here, there) && self.nodes[there].replica.is_some() {
                    let (now, id) = (self.now_at(here), self.nodes[there].id.clone());
                    if let Some(replica) = &mut self.nodes[here].replica {
                        replica.peer_up(now, &id);
                    }
                    self.transmit(here);
                }
            }
            Event::Down(here, there) => {
                if !self.can_talk(here, there) || self.nodes[there].replica.is_none() {
                    let (now, id) = (self.now_at(here), self.nodes[there].id.clone());
                    if let Some(replica) = &mut self.nodes[here].replica {
                        replica.peer_down(now, &id);
                    }
                }
            }
        }
    }

    fn begin_generation_if_fenced(&mut self, at: usize) {
        let fenced = self.nodes[at].replica.as_ref().is_some_and(Replication::is_fenced);
        if !fenced {
            return;
        }
        let now = self.now_at(at);
        let node = &mut self.nodes[at];
        node.id.generation.0 += 1;
        node.isolated = false;
        let id = node.id.clone();
        node.replica.as_mut().unwrap().begin_generation(now, id);
        for other in 0..self.nodes.len() {
            if other != at {
                // The later generation connects again, on both sides.
                let (now, id) = (self.now_at(at), self.nodes[other].id.clone());
                self.nodes[at].replica.as_mut().unwrap().peer_down(now, &id);
                self.connect(at, other);
            }
        }
    }

    fn transmit(&mut self, at: usize) {
        let now = self.now_at(at);
        let from = self.nodes[at].id.clone();
        let Some(replica) = &mut self.nodes[at].replica else { return };
        let mut sent = Vec::new();
        while let Some((to, message, _)) = replica.poll_transmit(now) {
            sent.push((to, message));
        }
        self.plan_tick(at);
        for (to, message) in sent {
            let Some(target) = self.nodes.iter().position(|node| node.id.name == to.name) else {
                continue;
            };
            if self.cut.contains(&(at, target)) || self.rng.random_bool(self.loss) {
                continue;
            }
            assert!(message_bytes(&message) <= 2 * CHUNK_BYTES, "{} too long", message.kind());
            let copies = if self.faults.network && self.rng.random_bool(0.05) { 2 } else { 1 };
            for _ in 0..copies {
                let delay = if self.faults.network && self.rng.random_bool(0.05) {
                    self.rng.random_range(1..2_000)
                } else {
                    self.rng.random_range(0..3)
                };
                let number = self.messages.last_key_value().map_or(0, |(last, _)| last + 1);
                self.messages.insert(number, message.clone());
                let event = Event::Deliver(target, from.clone(), to.clone(), number);
                self.push(Duration::from_millis(delay), event);
            }
        }
    }

    pub(super) fn update(&mut self, at: usize, write: impl Into<Write>) -> bool {
        let now = self.now_at(at);
        let replica = self.nodes[at].replica.as_mut().unwrap();
        let wrote = replica.update(now, write).unwrap().is_some();
        self.transmit(at);
        wrote
    }

    fn values(&self, at: usize, key: &ModelId) -> BTreeSet<u64> {
        let values = self.replica(at).state.tables.policies.values(key);
        values.filter_map(|(_, value)| value.get()?.policy.parse().ok()).collect()
    }

    /// A random write at a random node that runs. Returns how many rows it made.
    pub(super) fn write_somewhere(&mut self) -> u64 {
        let living: Vec<usize> =
            (0..self.nodes.len()).filter(|at| self.nodes[*at].replica.is_some()).collect();
        let at = living[self.rng.random_range(0..living.len())];
        let worker = WorkerId::from_u64(self.rng.random_range(0..12));
        let write: Write = match self.rng.random_range(0..10) {
            0..=3 => {
                let key = ModelId::new(format!("m{}", self.rng.random_range(0..6)));
                let seen = self.values(at, &key);
                let remove = self.rng.random_bool(0.4);
                if remove && seen.is_empty() {
                    return 0;
                }
                if self.nodes[at].isolated {
                    self.uncertain.extend(seen);
                    self.uncertain.insert(self.next_number);
                } else {
                    self.superseded.extend(seen);
                }
                if remove {
                    PolicyWrite { model: key, policy: None }.into()
                } else {
                    let number = self.next_number;
                    self.next_number += 1;
                    self.written.insert(number, key.clone());
                    let policy = PolicyRecord {
                        policy: number.to_string(),
                        parameters: BTreeMap::new(),
                        weights: BTreeMap::new(),
                    };
                    PolicyWrite { model: key, policy: Some(policy) }.into()
                }
            }
            4 => LoadWrite { worker, load: None }.into(),
            5..=6 => {
                let requests = self.rng.random_range(1..1_000_000);
                LoadWrite { worker, load: Some(Load { requests, tokens: 0 }) }.into()
            }
            7 => {
                let spec =
                    smg_types::spec::WorkerSpec::new(format!("http://{worker}:1").parse().unwrap());
                if self.rng.random_bool(0.5) {
                    WorkerWrite::Put((&spec).into()).into()
                } else {
                    WorkerWrite::Remove(spec.id()).into()
                }
            }
            8 => {
                let ttl = Duration::from_secs(100_000);
                let key = SessionKey(self.rng.random_range(0..5));
                SessionWrite::Use { key, worker, ttl }.into()
            }
            _ => {
                self.nodes[at].counted += 1;
                let count = self.nodes[at].counted;
                TotalWrite { model: "m".into(), outcome: Outcome::Ok, count }.into()
            }
        };
        u64::from(self.update(at, write))
    }

    /// Writes and causes faults for `time`.
    pub(super) fn play(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.write_somewhere();
            if self.rng.random_bool(0.03) {
                self.break_something();
            }
            let pause = self.rng.random_range(1..100);
            self.run(Duration::from_millis(pause));
        }
    }
}

fn message_bytes(message: &Message) -> usize {
    let config = bincode::config::standard();
    let bytes = bincode::serde::encode_to_vec(message, config).unwrap();
    if bytes.len() < 2_000 {
        let decoded: (Message, usize) = bincode::serde::decode_from_slice(&bytes, config).unwrap();
        assert_eq!(decoded.0, *message, "a message survives its encoding");
    }
    bytes.len()
}
