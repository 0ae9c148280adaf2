//! A simulated cluster of routers with leases: what happens to it, and what is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use smg_lease::{
    EventKind, Fence, LeaseName, Leases, Member, Message, Quorum, Term, Times, Voters,
};
use smg_types::ids::{Generation, NodeId, NodeName};

use crate::disk::Disk;

/// Microseconds in a second.
const SECOND: u64 = 1_000_000;
/// Time between two chances of a fault.
const STEP: u64 = SECOND / 10;
/// How long faults happen.
const FAULTS: u64 = 60 * SECOND;
/// The calendar time at which the simulation begins, in milliseconds.
const EPOCH_MS: u64 = 1_800_000_000_000;

/// How a kind of history is played. Chances are per router or cluster and step of 100 ms, or per message.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) routers: usize,
    pub(crate) crashes: f64,
    /// Whether votes survive a restart.
    pub(crate) remembers: bool,
    pub(crate) partitions: f64,
    /// Processes or machines stop for up to 12 s; their clocks go on.
    pub(crate) stops: f64,
    pub(crate) loss: f64,
    /// Messages that arrive up to 9 s late.
    pub(crate) late: f64,
    pub(crate) repeated: f64,
    /// Transfers, holders that step down, and restarts with a departure.
    pub(crate) commands: f64,
    /// Whether there are three voters at first and five later.
    pub(crate) grows: bool,
    /// Whether a minority stays down at the end.
    pub(crate) stays_down: bool,
}

struct Slot {
    name: NodeName,
    generation: u64,
    /// How fast its clock runs, and what it shows at the beginning.
    rate: f64,
    offset: u64,
    disk: Disk,
    leases: Option<Leases<Disk>>,
    back_at: u64,
    stopped_until: u64,
    /// How many voters it goes by: see `quorum`.
    stage: usize,
}

struct Flight {
    from: NodeId,
    to: NodeId,
    message: Message,
}

pub(crate) struct World {
    rng: SmallRng,
    kind: Kind,
    at: u64,
    slots: Vec<Slot>,
    /// The group of each slot; messages between groups are lost.
    groups: Vec<u8>,
    flights: BTreeMap<(u64, u64), Flight>,
    sent: u64,
    names: Vec<LeaseName>,
    /// The holder of each term of each lease.
    terms: BTreeMap<(LeaseName, Term), NodeId>,
    /// Acts of holders on their way to a resource with a fence.
    acts: BTreeMap<(u64, u64), (LeaseName, Term)>,
    fence: Fence,
    is_calm: bool,
    pub(crate) wins: u64,
    pub(crate) refused_acts: u64,
}

impl World {
    pub(crate) fn new(seed: u64, kind: Kind) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let drift = 1.0 / f64::from(Times::MAX_DRIFT);
        let slots = (0..kind.routers).map(|n| Slot {
            name: format!("r{n}").parse().unwrap(),
            generation: 0,
            // The worst rates are the likeliest to break a rule.
            rate: match rng.random_range(0..3) {
                0 => 1.0 - drift,
                1 => 1.0 + drift,
                _ => rng.random_range(1.0 - drift..1.0 + drift),
            },
            offset: rng.random_range(0..1_000 * SECOND),
            disk: Disk::new(kind.remembers),
            leases: None,
            back_at: rng.random_range(0..2 * SECOND),
            stopped_until: 0,
            stage: 0,
        });
        let slots: Vec<Slot> = slots.collect();
        Self {
            groups: vec![0; slots.len()],
            slots,
            rng,
            kind,
            at: 0,
            flights: BTreeMap::new(),
            sent: 0,
            names: ["leader", "other"].map(|name| name.parse().unwrap()).to_vec(),
            terms: BTreeMap::new(),
            acts: BTreeMap::new(),
            fence: Fence::default(),
            is_calm: false,
            wins: 0,
            refused_acts: 0,
        }
    }

    /// Plays faults, and then ten seconds and more without any.
    pub(crate) fn play(&mut self) {
        while self.at < FAULTS {
            self.faults();
            self.run_until(self.at + STEP);
        }
        self.calm_down();
        self.run_until(self.at + 10 * SECOND);
        let holders = self.names.clone().iter().map(|lease| self.holder(lease)).collect::<Vec<_>>();
        assert!(holders.iter().all(Option::is_some), "no holder after 10 s: {holders:?}");
        for _ in 0..50 {
            self.run_until(self.at + STEP);
            for (lease, before) in self.names.clone().iter().zip(&holders) {
                assert_eq!(self.holder(lease), *before, "{lease} has changed without a fault");
            }
        }
        self.check_transfer();
    }

    fn clock(&self, slot: usize) -> Duration {
        let Slot { rate, offset, .. } = self.slots[slot];
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a few thousand seconds in microseconds"
        )]
        let elapsed = (self.at as f64 * rate) as u64;
        Duration::from_micros(offset + elapsed)
    }

    fn chance(&mut self, likely: f64) -> bool {
        likely > 0.0 && self.rng.random_bool(likely)
    }

    fn me(&self, slot: usize) -> NodeId {
        let own = &self.slots[slot];
        NodeId { name: own.name.clone(), generation: Generation(own.generation) }
    }

    /// The voters by which a router goes. A cluster that grows has three, then a majority of both is needed, then five; nobody
    /// goes by the five alone before all need both.
    fn quorum(&self, slot: usize) -> Quorum {
        let of = |count: usize| Voters {
            size: u32::try_from(count).unwrap(),
            names: self.slots[..count].iter().map(|slot| slot.name.clone()).collect(),
        };
        match (self.kind.grows, self.slots[slot].stage) {
            (false, _) | (true, 2) => Quorum(vec![of(self.slots.len())]),
            (true, 0) => Quorum(vec![of(3)]),
            (true, _) => Quorum(vec![of(self.slots.len()), of(3)]),
        }
    }

    fn start(&mut self, slot: usize) {
        self.slots[slot].generation += 1;
        let (at, me) = (self.clock(slot), self.me(slot));
        let floor = Term(EPOCH_MS + self.at / 1_000);
        let disk = self.slots[slot].disk.used_by(me.clone());
        let mut leases =
            Leases::new(at, me, self.names.iter().cloned(), Times::DEFAULT, floor, disk);
        leases.set_quorum(at, self.quorum(slot));
        self.slots[slot].leases = Some(leases);
        self.slots[slot].stopped_until = 0;
        self.refresh(slot);
    }

    /// Gives a router the members, as membership would know them: mostly right.
    fn refresh(&mut self, slot: usize) {
        let mut members = Vec::new();
        for other in 0..self.slots.len() {
            let is_wrong = !self.is_calm && self.chance(0.02);
            let is_up = self.slots[other].leases.is_some();
            let is_present = is_up && self.groups[slot] == self.groups[other];
            if other != slot && self.slots[other].generation > 0 {
                let node = self.me(other);
                members.push(Member {
                    node,
                    is_present: is_present != is_wrong,
                    is_leaving: false,
                });
            }
        }
        self.input(slot, |leases, at| leases.set_members(at, members));
    }

    fn faults(&mut self) {
        for slot in 0..self.slots.len() {
            if self.chance(0.1) && self.slots[slot].leases.is_some() {
                self.refresh(slot);
            }
            if self.slots[slot].leases.is_some() && self.chance(self.kind.crashes) {
                self.slots[slot].leases = None;
                let longest = if self.chance(0.5) { SECOND } else { 9 * SECOND };
                self.slots[slot].back_at = self.at + self.rng.random_range(0..longest);
            }
            if self.chance(self.kind.stops) {
                let until = self.at + self.rng.random_range(0..12 * SECOND);
                self.slots[slot].stopped_until = until;
            }
            if self.chance(self.kind.commands) {
                self.command(slot);
            }
        }
        if self.chance(self.kind.partitions) {
            let parts = self.rng.random_range(1..=3);
            for group in &mut self.groups {
                *group = self.rng.random_range(0..parts);
            }
        }
        if self.kind.grows && self.at > 15 * SECOND {
            self.grow();
        }
    }

    /// Lets a router go by later voters, if the others are as far as it is.
    fn grow(&mut self) {
        let slot = self.rng.random_range(0..self.slots.len());
        let earliest = self.slots.iter().map(|slot| slot.stage).min().unwrap();
        let stands_still = self.slots[slot].stopped_until > self.at;
        if self.slots[slot].stage < 2 && self.slots[slot].stage == earliest && !stands_still {
            self.slots[slot].stage += 1;
            let quorum = self.quorum(slot);
            self.input(slot, |leases, at| leases.set_quorum(at, quorum));
        }
    }

    fn command(&mut self, slot: usize) {
        let lease = self.names[self.rng.random_range(0..self.names.len())].clone();
        let to = self.slots[self.rng.random_range(0..self.slots.len())].name.clone();
        match self.rng.random_range(0..8) {
            0 => self.input(slot, |leases, at| drop(leases.step_down(at, &lease))),
            1 if self.slots[slot].leases.is_some() => {
                self.input(slot, Leases::leave);
                self.run_until(self.at + STEP / 2);
                self.slots[slot].leases = None;
                self.slots[slot].back_at = self.at + self.rng.random_range(0..3 * SECOND);
            }
            2 => {
                let term = self.terms.keys().map(|(_, term)| *term).max().unwrap_or_default();
                self.input(slot, |leases, at| leases.note_term(at, &lease, term));
            }
            _ => self.input(slot, |leases, at| drop(leases.transfer(at, &lease, &to))),
        }
    }

    /// Ends all faults. A minority may stay down. Late messages do not arrive any more: each may cost a voter's time.
    fn calm_down(&mut self) {
        self.is_calm = true;
        self.flights.clear();
        self.groups.fill(0);
        let mut down: BTreeSet<usize> = BTreeSet::new();
        if self.kind.stays_down {
            while down.len() * 2 + 1 < self.slots.len() {
                down.insert(self.rng.random_range(0..self.slots.len()));
            }
        }
        for slot in 0..self.slots.len() {
            self.slots[slot].stopped_until = 0;
            self.slots[slot].disk.repair();
            if down.contains(&slot) {
                self.slots[slot].leases = None;
                self.slots[slot].back_at = u64::MAX;
            } else if self.slots[slot].leases.is_none() {
                self.start(slot);
            }
            // All need both majorities before any needs only the one of five.
            self.slots[slot].stage = self.slots[slot].stage.max(1);
            let both = self.quorum(slot);
            self.input(slot, |leases, at| leases.set_quorum(at, both));
        }
        for slot in 0..self.slots.len() {
            self.slots[slot].stage = 2;
            let quorum = self.quorum(slot);
            self.input(slot, |leases, at| leases.set_quorum(at, quorum));
            if self.slots[slot].leases.is_some() {
                self.refresh(slot);
            }
        }
    }

    fn check_transfer(&mut self) {
        let lease = self.names[0].clone();
        let Some(holder) = self.holder(&lease) else { return };
        let from = self.slots.iter().position(|slot| slot.name == holder.name).unwrap();
        let to = (0..self.slots.len())
            .find(|slot| *slot != from && self.slots[*slot].leases.is_some())
            .unwrap();
        let name = self.slots[to].name.clone();
        let mut done = None;
        self.input(from, |leases, at| done = Some(leases.transfer(at, &lease, &name)));
        done.unwrap().unwrap();
        assert_eq!(self.holder(&lease), None, "the former holder goes on");
        self.run_until(self.at + SECOND);
        assert_eq!(self.holder(&lease).unwrap().name, name, "a transfer takes more than a second");
    }

    /// The router that holds a lease now. No two may.
    fn holder(&self, lease: &LeaseName) -> Option<NodeId> {
        let holds = |slot: &usize| {
            let leases = self.slots[*slot].leases.as_ref();
            leases.is_some_and(|leases| leases.still_held(self.clock(*slot), lease).is_some())
        };
        let holders: Vec<usize> = (0..self.slots.len()).filter(holds).collect();
        assert!(
            holders.len() <= 1,
            "{} s: {lease} is held by {:?}",
            self.at / SECOND,
            holders.iter().map(|slot| self.me(*slot)).collect::<Vec<_>>()
        );
        holders.first().map(|slot| self.me(*slot))
    }

    /// Gives an input to a router that runs, and sends what comes of it.
    fn input(&mut self, slot: usize, act: impl FnOnce(&mut Leases<Disk>, Duration)) {
        let at = self.clock(slot);
        if self.slots[slot].stopped_until > self.at {
            return;
        }
        let Some(leases) = &mut self.slots[slot].leases else { return };
        act(leases, at);
        let me = self.me(slot);
        let leases = self.slots[slot].leases.as_mut().unwrap();
        let mut outgoing = Vec::new();
        while let Some(out) = leases.poll_transmit() {
            outgoing.push(out);
        }
        while let Some(event) = leases.poll_event() {
            if matches!(event.kind, EventKind::Won | EventKind::Raised) {
                self.wins += 1;
            }
        }
        for out in outgoing {
            self.send(slot, &Flight { from: me.clone(), to: out.to, message: out.message });
        }
        self.check();
        if self.chance(0.2) {
            self.act(slot);
        }
    }

    /// Lets a holder act. Its act arrives when it will.
    fn act(&mut self, slot: usize) {
        let Some(leases) = &self.slots[slot].leases else { return };
        let lease = self.names[0].clone();
        if let Some((term, _)) = leases.still_held(self.clock(slot), &lease) {
            let longest = if self.chance(0.1) { 20 * SECOND } else { SECOND / 100 };
            self.sent += 1;
            let at = self.at + self.rng.random_range(0..longest);
            self.acts.insert((at, self.sent), (lease, term));
        }
    }

    fn send(&mut self, slot: usize, flight: &Flight) {
        let to = self.slots.iter().position(|slot| slot.name == flight.to.name).unwrap();
        let copies = 1 + u8::from(!self.is_calm && self.chance(self.kind.repeated));
        for _ in 0..copies {
            let is_lost = !self.is_calm && self.chance(self.kind.loss);
            if is_lost || self.groups[slot] != self.groups[to] {
                continue;
            }
            let is_late = !self.is_calm && self.chance(self.kind.late);
            let delay = match is_late {
                true => self.rng.random_range(0..9 * SECOND),
                false => self.rng.random_range(100..20_000),
            };
            self.sent += 1;
            let Flight { from, to, message } = flight;
            let copy = Flight { from: from.clone(), to: to.clone(), message: message.clone() };
            self.flights.insert((self.at + delay, self.sent), copy);
        }
    }

    fn check(&mut self) {
        for lease in self.names.clone() {
            let Some(holder) = self.holder(&lease) else { continue };
            let slot = self.slots.iter().position(|slot| slot.name == holder.name).unwrap();
            let leases = self.slots[slot].leases.as_ref().unwrap();
            let (term, _) = leases.still_held(self.clock(slot), &lease).unwrap();
            let known = self.terms.get(&(lease.clone(), term));
            if let Some(known) = known {
                assert_eq!(*known, holder, "two routers hold {lease} in term {term}");
                continue;
            }
            let of_it = self.terms.keys().filter(|(name, _)| *name == lease);
            let newest = of_it.map(|(_, term)| *term).max();
            assert!(newest < Some(term), "term {term} of {lease} comes after {newest:?}");
            self.terms.insert((lease, term), holder);
        }
    }

    /// Plays what happens until `end`, in order.
    fn run_until(&mut self, end: u64) {
        loop {
            let flight = self.flights.keys().next().map(|(at, _)| *at);
            let act = self.acts.keys().next().map(|(at, _)| *at);
            let timers = (0..self.slots.len()).filter_map(|slot| self.timer(slot));
            let next = timers.chain(flight).chain(act).min();
            let Some(next) = next.filter(|at| *at <= end) else { break };
            self.at = self.at.max(next);
            self.step();
        }
        self.at = end;
        self.check();
    }

    /// When something of a router is due: its start, the end of its stop, or its deadline.
    fn timer(&self, slot: usize) -> Option<u64> {
        let own = &self.slots[slot];
        let Some(leases) = &own.leases else { return Some(own.back_at) };
        let now = self.clock(slot);
        let wait = leases.next_deadline(now)?.saturating_sub(now);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a few seconds in microseconds"
        )]
        let wait = (wait.as_nanos() as f64 / 1_000.0 / own.rate).ceil() as u64;
        Some((self.at + wait).max(own.stopped_until))
    }

    fn step(&mut self) {
        let at = self.at;
        while let Some(entry) = self.acts.first_entry().filter(|entry| entry.key().0 <= at) {
            let (lease, term) = entry.remove();
            self.refused_acts += u64::from(self.fence.admit(&lease, term).is_err());
        }
        if let Some(entry) = self.flights.first_entry().filter(|entry| entry.key().0 <= at) {
            let (key, flight) = entry.remove_entry();
            let to = self.slots.iter().position(|slot| slot.name == flight.to.name).unwrap();
            if self.slots[to].leases.is_some() && self.me(to) == flight.to {
                let stopped_until = self.slots[to].stopped_until;
                if stopped_until > at {
                    self.flights.insert((stopped_until, key.1), flight);
                } else {
                    let Flight { from, message, .. } = flight;
                    self.input(to, |leases, at| leases.handle_message(at, &from, message));
                }
            }
        }
        for slot in 0..self.slots.len() {
            if self.timer(slot).is_some_and(|due| due <= at) {
                match self.slots[slot].leases {
                    Some(_) => self.input(slot, Leases::handle_timeout),
                    None => self.start(slot),
                }
            }
        }
    }
}
