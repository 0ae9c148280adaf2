//! A simulated cluster of routers with limits: what happens to it, and what it admits.
//!
//! This file is long because one world has all kinds of faults, and each fault needs the state of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use smg_limits::engine::{Config, Engine, Turn};
use smg_limits::limiter::Limiter;
use smg_limits::roster::Member;
use smg_limits::rows::{LIFE_MS, Row};
use smg_limits::rule::{Rule, RuleDocument, TokenCount, Who};
use smg_types::ids::{Generation, NodeId, NodeName};
use smg_types::now::Now;

use crate::replica::{Key, Replica, Writer};

/// Length of a step, in milliseconds.
const STEP: u64 = 100;
/// Time at which the simulation begins.
const EPOCH: u64 = 1_800_000_000_000;
/// How long a router is missed before it counts as down.
const DOWN_AFTER: u64 = 3_000;

struct Router {
    engine: Engine,
    limiter: Arc<Limiter>,
    rows: Replica,
    /// Up to which arrival this router has all rows of each other generation.
    seen: BTreeMap<Writer, u64>,
    /// When this router last heard of each other one, by name.
    heard: BTreeMap<NodeName, (NodeId, u64)>,
    is_complete: bool,
    started: u64,
    /// Until when it stands still.
    stopped_until: u64,
    count: u64,
}

struct Slot {
    name: NodeName,
    generation: u64,
    skew_ms: i64,
    router: Option<Router>,
    back_at: u64,
}

/// How a kind of history is played.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) routers: usize,
    pub(crate) has_expected: bool,
    /// How likely these are in a step, for each router or for the whole cluster.
    pub(crate) crashes: f64,
    pub(crate) partitions: f64,
    pub(crate) stops: f64,
    /// A partition has up to this many parts.
    pub(crate) parts: u8,
    /// How likely all routers are restarted one after the other.
    pub(crate) rolling: f64,
    /// How likely the one wrong clock steps.
    pub(crate) steps: f64,
    /// Time within which the routers start, in milliseconds.
    pub(crate) growth: u64,
    /// Whether the configuration expects three routers at first and five later, and three again.
    pub(crate) resizes: bool,
    pub(crate) skew: bool,
    pub(crate) late: f64,
    /// Whether only the rule per second is in force.
    pub(crate) is_plain: bool,
}

/// The slot and generation of a router, the units that it admitted, and when.
type Admitted = (usize, u64, u64, u64);

pub(crate) struct World {
    rng: SmallRng,
    at: u64,
    kind: Kind,
    /// When the simulation began.
    pub(crate) begin: u64,
    /// The router whose clock may be wrong.
    wrong: usize,
    expected: Option<u32>,
    /// Routers that are to be restarted, and when the next one is.
    rolling: (Vec<usize>, u64),
    slots: Vec<Slot>,
    /// The group of each slot; routers of different groups do not reach each other.
    groups: Vec<u8>,
    rules: Vec<Rule>,
    /// Units admitted, by rule, subject and window, and the routers that admitted them.
    pub(crate) admitted: BTreeMap<(String, String, u64), u64>,
    pub(crate) offered: BTreeMap<(String, String, u64), u64>,
    /// Who admitted how much when, for the message of a failure.
    history: BTreeMap<(String, String, u64), Vec<Admitted>>,
    left: BTreeSet<NodeName>,
    /// Whether routers without memory have made a first roster although there was one.
    pub(crate) has_second_origin: bool,
}

fn rules() -> Vec<Rule> {
    let rule = |json: &str| Rule::new(serde_json::from_str::<RuleDocument>(json).unwrap()).unwrap();
    vec![
        rule(r#"{"id":"second","match":{"tenant":"second"},"requests":20,"window":"1s"}"#),
        rule(
            r#"{"id":"strict","match":{"tenant":"strict","model":"*"},"requests":7,"window":"5s","mode":"strict"}"#,
        ),
        rule(
            r#"{"id":"small","match":{"tenant":"small","model":"*"},"requests":2,"window":"10s"}"#,
        ),
        rule(
            r#"{"id":"tokens","match":{"tenant":"tokens","model":"*"},"tokens":900,"window":"20s"}"#,
        ),
        rule(r#"{"id":"large","match":{"tenant":"large"},"requests":400,"window":"30s"}"#),
        rule(r#"{"id":"minute","match":{"tenant":"minute"},"requests":40,"window":"1m"}"#),
        rule(
            r#"{"id":"even","match":{"tenant":"even"},"requests":90,"window":"1m","burst":30,"mode":"strict"}"#,
        ),
        rule(r#"{"id":"all","match":"global","requests":1000,"window":"1m"}"#),
    ]
}

impl World {
    pub(crate) fn new(seed: u64, kind: Kind) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let wrong = rng.random_range(0..kind.routers);
        // Where windows begin differs.
        let phase = rng.random_range(0..600) * STEP;
        let mut rules = rules();
        match rng.random_range(0..4) {
            _ if kind.is_plain => rules.truncate(1),
            0 => {}
            _ => drop(rules.pop()),
        }
        let slots = (0..kind.routers).map(|n| Slot {
            name: format!("r{n}").parse().unwrap(),
            generation: 0,
            skew_ms: if kind.skew && n == wrong {
                if rng.random_bool(0.5) { 3_600_000 } else { -3_600_000 }
            } else {
                rng.random_range(-300..300)
            },
            router: None,
            back_at: phase
                + match kind.resizes && n >= 3 {
                    true => rng.random_range(15_000..60_000),
                    false => rng.random_range(0..kind.growth),
                },
        });
        let slots = slots.collect::<Vec<_>>();
        Self {
            at: EPOCH + phase,
            begin: EPOCH + phase,
            wrong,
            expected: match (kind.has_expected, kind.resizes) {
                (false, _) => None,
                (true, true) => Some(3),
                (true, false) => Some(u32::try_from(kind.routers).unwrap()),
            },
            rolling: (Vec::new(), 0),
            groups: vec![0; slots.len()],
            slots,
            rng,
            kind,
            rules,
            admitted: BTreeMap::new(),
            offered: BTreeMap::new(),
            history: BTreeMap::new(),
            left: BTreeSet::new(),
            has_second_origin: false,
        }
    }

    fn now(&self, slot: usize) -> Now {
        let own = &self.slots[slot];
        let started = own.router.as_ref().map_or(self.at, |router| router.started);
        let wall = i64::try_from(self.at).unwrap() + own.skew_ms;
        Now {
            mono: Duration::from_millis(self.at - started + 5_000),
            wall: Duration::from_millis(u64::try_from(wall).unwrap()),
        }
    }

    fn start(&mut self, slot: usize) {
        let own = &mut self.slots[slot];
        own.generation += 1;
        let me = NodeId { name: own.name.clone(), generation: Generation(own.generation) };
        let now = Now { mono: Duration::from_millis(5_000), wall: Duration::ZERO };
        let config = Config { expected: self.expected, ..Config::default() };
        let limiter = Limiter::default();
        limiter.set_rules(self.rules.clone());
        self.left.remove(&self.slots[slot].name);
        self.slots[slot].router = Some(Router {
            engine: Engine::new(me, config, now),
            limiter: Arc::new(limiter),
            rows: Replica::default(),
            seen: BTreeMap::new(),
            heard: BTreeMap::new(),
            is_complete: false,
            started: self.at,
            stopped_until: 0,
            count: 0,
        });
    }

    /// What happens to routers and links in this step.
    fn fate(&mut self) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].router.is_none() && self.at >= EPOCH + self.slots[slot].back_at {
                self.start(slot);
            }
            let Some(router) = &mut self.slots[slot].router else { continue };
            if self.rng.random_bool(self.kind.stops) {
                router.stopped_until = self.at + self.rng.random_range(1_000..15_000);
            }
            if self.rng.random_bool(self.kind.crashes) && self.may_crash(slot) {
                let away = self.rng.random_range(200..25_000);
                let leaves = self.rng.random_bool(0.5);
                self.end(slot, leaves, away);
            }
        }
        self.roll();
        if self.rng.random_bool(self.kind.steps) {
            let skews = [3_600_000, -3_600_000, 4_000, -4_000, 100, 60_000, -60_000];
            self.slots[self.wrong].skew_ms = skews[self.rng.random_range(0..skews.len())];
        }
        if self.rng.random_bool(self.kind.partitions) {
            let heal = self.rng.random_bool(0.5);
            for group in &mut self.groups {
                *group = if heal { 0 } else { self.rng.random_range(0..self.kind.parts) };
            }
        }
    }

    fn end(&mut self, slot: usize, leaves: bool, away: u64) {
        if leaves {
            self.leave(slot);
        }
        self.slots[slot].router = None;
        self.slots[slot].back_at = self.at - EPOCH + away;
    }

    /// Restarts all routers one after the other, with a changed configuration or without.
    fn roll(&mut self) {
        let (next, due) = &mut self.rolling;
        if next.is_empty() && self.rng.random_bool(self.kind.rolling) {
            *next = (0..self.slots.len()).collect();
            *due = self.at;
            if self.kind.resizes {
                self.expected = self.expected.map(|size| if size == 3 { 5 } else { 3 });
            }
        }
        if self.at < *due {
            return;
        }
        let Some(slot) = next.pop() else { return };
        *due = self.at + self.rng.random_range(1_000..12_000);
        if self.slots[slot].router.is_some() && self.may_crash(slot) {
            let away = self.rng.random_range(200..3_000);
            self.end(slot, true, away);
        }
    }

    /// Whether a majority would remember what has been admitted if this router crashed. More is not promised: nothing is on
    /// disk, so that a majority without memory makes a new roster.
    fn may_crash(&self, slot: usize) -> bool {
        let remembers = |other: &usize| {
            let router = self.slots[*other].router.as_ref();
            *other != slot
                && router.is_some_and(|router| {
                    router.engine.roster().is_some_and(|(_, is_settled)| is_settled)
                })
        };
        let rosters = self.slots.iter().filter_map(|slot| slot.router.as_ref()?.engine.roster());
        let size = rosters.map(|(roster, _)| roster.size as usize).max();
        (0..self.slots.len()).filter(remembers).count() > size.unwrap_or(self.slots.len()) / 2
    }

    /// A router leaves: its last rows reach those that it can reach.
    fn leave(&mut self, slot: usize) {
        let now = self.now(slot);
        let (members, cluster_ms) = (self.members(slot), self.cluster_ms(slot));
        let Some(router) = &mut self.slots[slot].router else { return };
        if router.stopped_until > self.at {
            return;
        }
        let turn = Turn { now, cluster_ms, members: &members, is_complete: router.is_complete };
        let rows = router.engine.leave(&turn, &router.limiter);
        self.write(slot, rows);
        for other in 0..self.slots.len() {
            if other != slot && self.groups[other] == self.groups[slot] {
                self.exchange(slot, other, 1.0);
            }
        }
        self.left.insert(self.slots[slot].name.clone());
    }

    /// The slot and generation of a router.
    fn writer(node: &NodeId) -> Writer {
        (node.name.as_str()[1..].parse().unwrap(), node.generation.0)
    }

    fn write(&mut self, slot: usize, rows: Vec<Row>) {
        let at = self.at;
        let skew = self.slots[slot].skew_ms;
        let me = (slot, self.slots[slot].generation);
        let has_origin = self.slots.iter().any(|slot| {
            let roster = slot.router.as_ref().and_then(|router| router.engine.roster());
            roster.is_some_and(|(_, is_settled)| is_settled)
        });
        let is_origin = |row: &Row| matches!(row, Row::Roster(roster) if roster.previous.is_none());
        self.has_second_origin |= has_origin && rows.iter().any(is_origin);
        let Some(router) = &mut self.slots[slot].router else { return };
        for row in rows {
            router.count += 1;
            let own = (router.count, slot);
            let (key, version) = match &row {
                // The stamp of the cluster's clock orders the rosters of different writers.
                Row::Roster(_) => {
                    let before = router.rows.version(&Key::Roster).map_or(0, |(stamp, _)| stamp);
                    let stamp = u64::try_from(i64::try_from(at).unwrap() + skew / 1_000).unwrap();
                    (Key::Roster, (stamp.max(before + 1), slot))
                }
                Row::Beat(_) => (Key::Beat(me), own),
                Row::Report(key, _) => (Key::Report(me, *key), own),
                Row::Life { at_ms, .. } => (Key::Life(me, *at_ms), own),
                Row::Grant { key, to, .. } => (Key::Grant(me, *key, Self::writer(to)), own),
            };
            router.rows.insert(key, version, row);
        }
    }

    /// `to` receives each newer row of `from` with this probability.
    fn exchange(&mut self, from: usize, to: usize, probability: f64) {
        let now = self.now(to);
        let at = self.at;
        let names: Vec<NodeName> = self.slots.iter().map(|slot| slot.name.clone()).collect();
        let Ok([source, target]) = self.slots.get_disjoint_mut([from, to]) else { return };
        let writer = (from, source.generation);
        let (Some(source), Some(target)) = (&source.router, &mut target.router) else { return };
        if source.stopped_until > at || target.stopped_until > at {
            return;
        }
        let sender = source.engine.me().clone();
        target.heard.insert(sender.name.clone(), (sender, at));
        // Rows may be repeated.
        let is_repeated = self.rng.random_bool(0.01);
        let mut seen =
            target.seen.get(&writer).copied().filter(|_| !is_repeated).unwrap_or_default();
        let mut is_whole = true;
        for (arrived, key, held) in source.rows.since(seen) {
            let is_known = target.rows.version(key).is_some_and(|known| known >= held.version);
            if !is_known {
                if !self.rng.random_bool(probability) {
                    is_whole = false;
                    continue;
                }
                let writer = match key.writer() {
                    None => target.engine.me().clone(),
                    Some((slot, generation)) => {
                        NodeId { name: names[slot].clone(), generation: Generation(generation) }
                    }
                };
                target.rows.insert(*key, held.version, held.row.clone());
                target.engine.receive(&writer, held.row.clone(), &target.limiter, now);
            }
            if is_whole {
                seen = arrived;
            }
        }
        target.seen.insert(writer, seen);
        target.is_complete |= is_whole;
    }

    fn members(&self, slot: usize) -> Vec<Member> {
        let Some(router) = &self.slots[slot].router else { return Vec::new() };
        let known = router.heard.values().filter(|(node, _)| !self.left.contains(&node.name));
        known
            .map(|(node, at)| Member { node: node.clone(), is_alive: self.at < at + DOWN_AFTER })
            .collect()
    }

    /// The lower median of the clocks that the router hears; its own, if that is near.
    fn cluster_ms(&self, slot: usize) -> u64 {
        let own = self.slots[slot].skew_ms;
        let mut skews: Vec<i64> = (0..self.slots.len())
            .filter(|other| {
                self.members(slot)
                    .iter()
                    .any(|member| member.is_alive && member.node.name == self.slots[*other].name)
            })
            .map(|other| self.slots[other].skew_ms)
            .chain([own])
            .collect();
        skews.sort_unstable();
        let median = skews[(skews.len() - 1) / 2];
        let skew = if (median - own).abs() <= 5_000 { own } else { median };
        u64::try_from(i64::try_from(self.at).unwrap() + skew).unwrap()
    }

    /// The grants of windows that start at `start`, in any replica, and what each router may use.
    fn grants(&self, start: u64) -> String {
        let mut grants = BTreeSet::new();
        for router in self.slots.iter().filter_map(|slot| slot.router.as_ref()) {
            for (key_of_row, held) in router.rows.iter() {
                if let Row::Grant { key, to, units } = &held.row
                    && key.start_ms == start
                {
                    grants.insert(format!(
                        "\n {:?} of {} to {to}: {units} of {:?} {:?}",
                        key_of_row.writer(),
                        held.version.0,
                        key.meter,
                        key.subject
                    ));
                }
            }
            grants.insert(format!(
                "\n {} {:?} {:?}",
                router.engine.me(),
                router.engine.roster(),
                router.limiter.standing()
            ));
        }
        grants.into_iter().collect()
    }

    fn requests(&mut self, slot: usize, load: usize) {
        let now = self.now(slot);
        let Some(router) = &self.slots[slot].router else { return };
        if router.stopped_until > self.at {
            return;
        }
        let limiter = Arc::clone(&router.limiter);
        for _ in 0..load {
            let tenant = self.rules[self.rng.random_range(0..self.rules.len())].id.clone();
            let model = ["small", "large"][self.rng.random_range(0..2)];
            let who = Who { api_key: None, tenant: Some(&tenant), model: Some(model) };
            let input = self.rng.random_range(1..60);
            let estimate = TokenCount { input, cached_input: 0, output: 20 };
            let cluster_ms = limiter.cluster_ms(now);
            let answer = limiter.check(&who, &estimate, now);
            let is_admitted = answer.is_ok();
            for rule in self.rules.iter().filter(|rule| rule.subject(&who).is_some()) {
                let key = |rule: &Rule| {
                    let meter = &rule.meters[0];
                    let start = cluster_ms - cluster_ms % u64::from(meter.window_ms);
                    (rule.id.clone(), rule.label(&who), start)
                };
                let units = rule.meters[0].units(&estimate);
                *self.offered.entry(key(rule)).or_default() += units;
                if is_admitted {
                    let sum = self.admitted.entry(key(rule)).or_default();
                    *sum += units;
                    let sum = *sum;
                    let limit = rule.meters[0].limit;
                    let history = self.history.entry(key(rule)).or_default();
                    history.push((slot, self.slots[slot].generation, units, self.at - EPOCH));
                    if sum > limit {
                        let start = key(rule).2;
                        let history = format!("{history:?}");
                        let grants = self.grants(start);
                        panic!(
                            "{sum} of {limit} for {} {} in the window of {}: slot, generation, units and time {history}; grants: {grants}",
                            rule.id,
                            rule.label(&who),
                            start - EPOCH,
                        );
                    }
                }
            }
            if let Ok(admission) = answer
                && tenant == "tokens"
                && self.rng.random_bool(0.5)
            {
                // Fewer tokens than reserved; what is returned may be taken again.
                let used = TokenCount { output: self.rng.random_range(0..20), ..estimate };
                let rule = &self.rules[3];
                let window_ms = u64::from(rule.meters[0].window_ms);
                let key = (rule.id.clone(), rule.label(&who), cluster_ms - cluster_ms % window_ms);
                *self.admitted.get_mut(&key).unwrap() -= estimate.output - used.output;
                admission.settle(&used);
            }
        }
    }

    pub(crate) fn step(&mut self) {
        self.at += STEP;
        self.fate();
        for from in 0..self.slots.len() {
            for to in 0..self.slots.len() {
                if from != to && self.groups[from] == self.groups[to] {
                    let is_late = self.rng.random_bool(self.kind.late);
                    if !is_late {
                        let probability = if self.kind.late > 0.0 { 0.7 } else { 1.0 };
                        self.exchange(from, to, probability);
                    }
                }
            }
        }
        for slot in 0..self.slots.len() {
            let load = if self.rng.random_bool(0.3) { 6 } else { self.rng.random_range(0..3) };
            // The data path goes on while the engine waits for its turn.
            self.requests(slot, load);
            if self.rng.random_bool(0.9) {
                self.turn(slot);
            }
            self.requests(slot, load);
        }
    }

    fn turn(&mut self, slot: usize) {
        let now = self.now(slot);
        let (members, cluster_ms) = (self.members(slot), self.cluster_ms(slot));
        let at = self.at;
        let Some(router) = &mut self.slots[slot].router else { return };
        if router.stopped_until > at {
            return;
        }
        // Nobody answers for a while: it is alone.
        router.is_complete |= at >= router.started + 10_000;
        let turn = Turn { now, cluster_ms, members: &members, is_complete: router.is_complete };
        let rows = router.engine.turn(&turn, &router.limiter);
        router.limiter.sweep(now);
        if !at.is_multiple_of(10 * STEP) {
            return self.write(slot, rows);
        }
        // Rows end two windows after they began.
        router.rows.retain(|row| match row {
            Row::Report(key, _) | Row::Grant { key, .. } => {
                key.end_ms() + 2 * u64::from(key.length_ms) + 10_000 > cluster_ms
            }
            Row::Life { at_ms, .. } => at_ms + u64::from(LIFE_MS) > cluster_ms,
            Row::Roster(_) | Row::Beat(_) => true,
        });
        self.write(slot, rows);
    }
}
