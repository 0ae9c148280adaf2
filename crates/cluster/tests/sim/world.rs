//! The world: virtual time, processes with disks and clocks, and a network that does everything except invent bytes.
//!
//! One queue, ordered by (time, sequence), holds everything that will happen. Each step takes one item, feeds it to a
//! production `Node`, drains the node and runs the checks. All chance comes from one generator, so that a seed is a
//! history. `network` is what happens to a frame on its way; `events` notes the rare states that a history reaches.

mod events;
mod network;
mod queue;
mod slot;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use smg_cluster::codec::{self, ClusterId, Frame};
use smg_cluster::membership;
use smg_cluster::replication;
use smg_cluster::state::{Version, Write};
use smg_cluster::{Config, Event, Node};
use smg_types::ids::Generation;
use smg_types::now::Now;
use xxhash_rust::xxh3::Xxh3;

pub(crate) use network::{Net, Traffic};
use queue::{Action, Item};
pub(crate) use slot::{Process, Slot};

use crate::checks::{Checks, Violation};
use crate::ledger::Ledger;

/// The wall-clock time when a world begins.
pub(crate) const EPOCH: Duration = Duration::from_secs(1_800_000_000);

/// Time between two resolutions of the join addresses.
pub(crate) const RESOLVE: Duration = Duration::from_secs(3);

/// Frames that a stalled process has not read yet; more are lost, as in a full socket.
const MAX_INBOX: usize = 1024;

pub(crate) struct World {
    pub now: Duration,
    sequence: u64,
    queue: BinaryHeap<Reverse<Item>>,
    pub slots: Vec<Slot>,
    pub net: Net,
    pub rng: StdRng,
    trace: Xxh3,
    /// Whether to print what happens, for a replay.
    pub verbose: bool,
    pub checks: Checks,
    pub ledger: Ledger,
    /// Whether all nodes must hold the same rows in the end. Not if clocks are so wrong that stamps are not believed.
    pub compares_state: bool,
    /// Whether a liar sends frames. Then nodes need not agree while it does, and must agree within a minute after it ends.
    pub has_liar: bool,
    /// The rare states that this history has reached.
    pub reached: BTreeSet<&'static str>,
    pub traffic: Traffic,
    pub steps: u64,
    runs: u32,
    /// The ledger is taken out of the world, because it is writing.
    is_writing: bool,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Duration::ZERO,
            sequence: 0,
            queue: BinaryHeap::new(),
            slots: Vec::new(),
            net: Net::clean(),
            rng: StdRng::seed_from_u64(seed),
            trace: Xxh3::new(),
            verbose: false,
            checks: Checks::default(),
            ledger: Ledger::default(),
            compares_state: true,
            has_liar: false,
            reached: BTreeSet::new(),
            traffic: Traffic::default(),
            steps: 0,
            runs: 0,
            is_writing: false,
        }
    }

    /// Adds a slot called `name` at the address with the number `address`.
    pub(crate) fn add(&mut self, name: &str, address: u16, config: &membership::Config) -> usize {
        self.slots.push(Slot {
            name: name.parse().expect("names of slots are names of nodes"),
            address: address_number(address),
            cluster: ClusterId::of("test"),
            version: codec::VERSION,
            seeds: Vec::new(),
            config: config.clone(),
            replication: replication::Config::default(),
            clock_error: 0,
            disk: None,
            process: None,
            lost: 0,
        });
        self.slots.len() - 1
    }

    /// Adds `n` slots that have each other as join addresses; none runs.
    pub(crate) fn add_cluster(&mut self, n: u16, config: &membership::Config) {
        let seeds: Vec<_> = (0..usize::from(n)).collect();
        for i in 0..n {
            let slot = self.add(&format!("n{i}"), i, config);
            self.slots[slot].seeds.clone_from(&seeds);
        }
    }

    pub(crate) fn start_all(&mut self) -> Result<(), Violation> {
        (0..self.slots.len()).try_for_each(|slot| self.start(slot))
    }

    /// Starts a process in a slot, with a generation from its disk and its clock.
    pub(crate) fn start(&mut self, slot: usize) -> Result<(), Violation> {
        assert!(self.slots[slot].process.is_none(), "slot {slot} runs already");
        self.runs += 1;
        let run = self.runs;
        let now = self.clock(slot);
        let place = &mut self.slots[slot];
        let by_clock = membership::generation_at(now.wall, self.rng.random());
        let generation = place.disk.map_or(by_clock, |disk| by_clock.max(Generation(disk.0 + 1)));
        place.disk = place.disk.is_some().then_some(generation);
        let config = Config {
            cluster: place.cluster,
            membership: place.config.clone(),
            replication: place.replication.clone(),
        };
        let (name, address) = (place.name.clone(), place.address);
        let mut rng = StdRng::from_rng(&mut self.rng);
        let mut node = Node::try_new(config, name, generation, address, now, &mut rng)
            .expect("the simulator's configurations are sound");
        node.join(now, &self.resolve(slot));
        self.push(self.now + RESOLVE, Action::Resolve { slot, run });
        self.note(&format!("{slot} starts as {}", node.me().node));
        let inbox = Vec::new();
        let process = Process { node, run, stalled: false, inbox, wake: None, leaving: false };
        self.slots[slot].process = Some(process);
        self.drain(slot)
    }

    pub(crate) fn crash(&mut self, slot: usize) {
        let mut ledger = std::mem::take(&mut self.ledger);
        ledger.process_ends(self, slot);
        self.ledger = ledger;
        if self.slots[slot].process.take().is_some() {
            self.note(&format!("{slot} ends"));
        }
    }

    /// Lets the process of a slot write a row.
    pub(crate) fn write(
        &mut self,
        slot: usize,
        write: impl Into<Write>,
    ) -> Result<Option<Version>, Violation> {
        let (now, write) = (self.clock(slot), write.into());
        let Some(process) = &mut self.slots[slot].process else { return Ok(None) };
        let what = format!("{write:.80?}");
        let written = process.node.update(now, write);
        if let Err(refused) = &written {
            self.reached.insert("a row was refused to its author");
            self.note(&format!("{slot}: {refused}"));
        }
        self.note(&format!("{slot} writes {what}: {written:?}"));
        self.drain(slot)?;
        Ok(written.ok().flatten())
    }

    /// Lets the process of a slot write something random.
    pub(crate) fn write_something(&mut self, slot: usize) -> Result<(), Violation> {
        let mut ledger = std::mem::take(&mut self.ledger);
        self.is_writing = true;
        let result = ledger.write(self, slot);
        self.is_writing = false;
        self.ledger = ledger;
        result
    }

    /// Stalls a process for `time`.
    pub(crate) fn stall(&mut self, slot: usize, time: Duration) {
        if let Some(process) = &mut self.slots[slot].process
            && !process.stalled
        {
            process.stalled = true;
            let run = process.run;
            self.note(&format!("{slot} stalls for {time:?}"));
            self.push(self.now + time, Action::Resume { slot, run });
        }
    }

    /// Lets a process leave gracefully: it drains for `drain`, and ends a little later.
    pub(crate) fn leave(&mut self, slot: usize, drain: Duration) -> Result<(), Violation> {
        let now = self.clock(slot);
        let Some(process) = &mut self.slots[slot].process else { return Ok(()) };
        let run = process.run;
        process.leaving = true;
        process.node.leave(now);
        self.note(&format!("{slot} leaves"));
        self.push(self.now + drain, Action::Depart { slot, run });
        self.drain(slot)
    }

    /// Moves a slot to another address, whatever runs there.
    pub(crate) fn readdress(&mut self, slot: usize, address: u16) -> Result<(), Violation> {
        let address = address_number(address);
        self.slots[slot].address = address;
        let now = self.clock(slot);
        self.note(&format!("{slot} moves to {address}"));
        if let Some(process) = &mut self.slots[slot].process {
            process.node.readdress(now, address);
            self.drain(slot)?;
        }
        Ok(())
    }

    /// Whether a process of another slot is bound to `address`.
    pub(crate) fn is_taken(&self, address: SocketAddr, by_other_than: usize) -> bool {
        self.running().any(|(i, _)| i != by_other_than && self.slots[i].address == address)
    }

    /// The join addresses of a slot, as they resolve now.
    fn resolve(&self, slot: usize) -> Vec<SocketAddr> {
        self.slots[slot].seeds.iter().map(|seed| self.slots[*seed].address).collect()
    }

    /// The time by which the process of `slot` goes: that of its cluster.
    pub(crate) fn clock(&mut self, slot: usize) -> Now {
        let reading = self.slots[slot].reading(Now { mono: self.now, wall: EPOCH + self.now });
        match &mut self.slots[slot].process {
            Some(process) => process.node.cluster_time(reading),
            None => reading,
        }
    }

    pub(crate) fn node(&self, slot: usize) -> Option<&Node> {
        self.slots[slot].process.as_ref().map(|process| &process.node)
    }

    /// Whether a slot belongs to the cluster that is tested: not to another cluster, nor to another major version.
    pub(crate) fn is_ours(&self, slot: usize) -> bool {
        let slot = &self.slots[slot];
        slot.cluster == ClusterId::of("test") && slot.version.0 == codec::VERSION.0
    }

    /// Whether some process has ended.
    pub(crate) fn has_lost_a_process(&self) -> bool {
        self.running().count() < self.runs as usize
    }

    /// Slots with a process.
    pub(crate) fn running(&self) -> impl Iterator<Item = (usize, &Process)> {
        self.slots.iter().enumerate().filter_map(|(i, slot)| Some((i, slot.process.as_ref()?)))
    }

    /// Plays until `until`.
    pub(crate) fn run_until(&mut self, until: Duration) -> Result<(), Violation> {
        while self.queue.peek().is_some_and(|Reverse(item)| item.at <= until) {
            let Some(Reverse(item)) = self.queue.pop() else { break };
            self.now = item.at;
            self.step(item.what)?;
        }
        self.now = until;
        Ok(())
    }

    pub(crate) fn run_for(&mut self, time: Duration) -> Result<(), Violation> {
        self.run_until(self.now + time)
    }

    /// Plays until `done` holds, checking that every `tick`. Returns how long that took; `None` if it took longer than
    /// `limit`.
    pub(crate) fn run_while_not(
        &mut self,
        limit: Duration,
        tick: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Result<Option<Duration>, Violation> {
        let start = self.now;
        while !done(self) {
            if self.now >= start + limit {
                return Ok(None);
            }
            self.run_for(tick)?;
        }
        Ok(Some(self.now - start))
    }

    /// A hash of the history so far.
    pub(crate) fn trace_hash(&self) -> u64 {
        self.trace.digest()
    }

    fn step(&mut self, what: Action) -> Result<(), Violation> {
        self.steps += 1;
        match what {
            Action::Deliver { from, to, bytes } => self.deliver(from, to, bytes),
            Action::Wake { slot, run } => {
                let now = self.clock(slot);
                let Some(process) = self.process_of_run(slot, run) else { return Ok(()) };
                let due = process.wake.take();
                if process.stalled {
                    return Ok(());
                }
                let is_due = process.node.next_deadline().is_some_and(|at| at <= now.mono);
                if due.is_some() && is_due {
                    process.node.handle_timeout(now);
                }
                self.trace(0, slot, &[]);
                self.drain(slot)
            }
            Action::Resume { slot, run } => {
                let Some(process) = self.process_of_run(slot, run) else { return Ok(()) };
                process.stalled = false;
                let inbox = std::mem::take(&mut process.inbox);
                self.note(&format!("{slot} goes on"));
                // The timer is late before the first frame is read, as in a real process.
                let now = self.clock(slot);
                if let Some(process) = self.process_of_run(slot, run) {
                    process.node.handle_timeout(now);
                }
                for (from, bytes) in inbox {
                    if let Some(process) = self.process_of_run(slot, run) {
                        process.node.handle_frame(now, from, &bytes);
                    }
                }
                self.drain(slot)
            }
            Action::Resolve { slot, run } => {
                let (now, seeds) = (self.clock(slot), self.resolve(slot));
                let Some(process) = self.process_of_run(slot, run) else { return Ok(()) };
                if !process.stalled {
                    process.node.join(now, &seeds);
                }
                self.push(self.now + RESOLVE, Action::Resolve { slot, run });
                self.drain(slot)
            }
            Action::Depart { slot, run } => {
                let now = self.clock(slot);
                let Some(process) = self.process_of_run(slot, run) else { return Ok(()) };
                process.node.depart(now);
                self.checks.departed(slot, &self.slots);
                self.push(self.now + Duration::from_millis(100), Action::Stop { slot, run });
                self.drain(slot)
            }
            Action::Stop { slot, run } => {
                if self.process_of_run(slot, run).is_some() {
                    self.crash(slot);
                }
                Ok(())
            }
        }
    }

    fn deliver(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    ) -> Result<(), Violation> {
        // Of two slots at one address, the one that was added last has it.
        let Some(slot) =
            self.slots.iter().rposition(|slot| slot.address == to && slot.process.is_some())
        else {
            return Ok(());
        };
        self.trace(1, slot, &bytes);
        let now = self.clock(slot);
        let place = &mut self.slots[slot];
        let Some(process) = &mut place.process else { return Ok(()) };
        if process.stalled {
            if process.inbox.len() < MAX_INBOX {
                process.inbox.push((from, bytes));
            } else {
                place.lost += 1;
            }
            return Ok(());
        }
        if place.version.0 == codec::VERSION.0 {
            process.node.handle_frame(now, from, &bytes);
        } else if bytes.first() == Some(&place.version.0)
            && let Some(bytes) = as_of_major(codec::VERSION.0, &bytes)
        {
            process.node.handle_frame(now, from, &bytes);
        }
        self.drain(slot)
    }

    /// Takes the frames and events of a node, queues its next wake-up, and runs the checks on it.
    fn drain(&mut self, slot: usize) -> Result<(), Violation> {
        let Some(process) = &mut self.slots[slot].process else { return Ok(()) };
        let run = process.run;
        let mut transmits = Vec::new();
        while let Some(transmit) = process.node.poll_transmit() {
            transmits.push(transmit);
        }
        let mut events = Vec::new();
        while let Some(event) = process.node.poll_event() {
            events.push(event);
        }
        let wake = process.node.next_deadline().filter(|_| !process.stalled);
        let queued = process.wake;
        if let Some(at) = wake
            && queued.is_none_or(|queued| at < queued)
        {
            process.wake = Some(at);
            self.push(at.max(self.now), Action::Wake { slot, run });
        }
        for transmit in transmits {
            self.send(slot, transmit);
        }
        for event in &events {
            self.note_event(slot, event);
        }
        if events.iter().any(|event| {
            matches!(event, Event::Membership(membership::Event::NewGeneration { .. }))
        }) {
            let place = &mut self.slots[slot];
            if let (Some(disk), Some(process)) = (&mut place.disk, &place.process) {
                *disk = process.node.me().node.generation;
            }
        }
        let mut checks = std::mem::take(&mut self.checks);
        let result = checks.after_step(self, slot, &events);
        self.checks = checks;
        result?;
        let looks = !self.is_writing && (!events.is_empty() || self.steps.is_multiple_of(64));
        if self.compares_state && !self.has_liar && looks {
            // VectorHonesty: nodes that have everything that was written hold the same rows.
            let mut ledger = std::mem::take(&mut self.ledger);
            ledger.note_all_versions(self);
            let lie = crate::ledger::find_dishonest(&ledger, self);
            self.ledger = ledger;
            if let Some(what) = lie {
                return Err(Violation { check: "VectorHonesty", at: self.now, what });
            }
        }
        Ok(())
    }

    fn process_of_run(&mut self, slot: usize, run: u32) -> Option<&mut Process> {
        self.slots[slot].process.as_mut().filter(|process| process.run == run)
    }

    fn push(&mut self, at: Duration, what: Action) {
        self.sequence += 1;
        self.queue.push(Reverse(Item { at, sequence: self.sequence, what }));
    }

    fn trace(&mut self, kind: u8, slot: usize, bytes: &[u8]) {
        self.trace.update(&[kind]);
        self.trace.update(&self.now.as_nanos().to_le_bytes());
        self.trace.update(&slot.to_le_bytes());
        self.trace.update(bytes);
        if self.verbose && kind == 1 && std::env::var_os("SMG_SIM_FRAMES").is_some() {
            let kind = Frame::read(bytes).map(|frame| frame.kind);
            println!("{:>12.6} -> {slot}: {kind:?}", self.now.as_secs_f64());
        }
    }

    pub(crate) fn note(&mut self, text: &str) {
        self.trace.update(text.as_bytes());
        if self.verbose {
            println!("{:>12.6} {text}", self.now.as_secs_f64());
        }
    }
}

/// A frame of another major version, as this version would have sent it: what routers of that version read.
fn as_of_major(major: u8, bytes: &[u8]) -> Option<Vec<u8>> {
    let (header, payload) = bytes.split_first_chunk::<{ codec::HEADER_BYTES }>()?;
    let cluster = ClusterId(u64::from_le_bytes(header[4..12].try_into().ok()?));
    Some(codec::frame_of_version((major, header[1]), header[2], cluster, payload))
}

/// The address with this number.
pub(crate) fn address_number(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    SocketAddr::from(([10, 0, high, low], 39527))
}

/// A generator for what is decided before a world begins.
pub(crate) fn planner(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed ^ 0x5eed)
}

/// A random one of `items`.
pub(crate) fn any_of<T: Copy>(rng: &mut dyn Rng, items: &[T]) -> T {
    items[rng.random_range(0..items.len())]
}
