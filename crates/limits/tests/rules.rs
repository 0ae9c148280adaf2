//! Each rule on which the bound of a limit rests, in a small history that exceeds the limit without that rule.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use smg_limits::engine::{Config, Engine, Turn};
use smg_limits::limiter::Limiter;
use smg_limits::roster::Member;
use smg_limits::roster::Roster;
use smg_limits::rows::Row;
use smg_limits::rule::{Rule, RuleDocument, TokenCount, Who};
use smg_limits::standing::{Inherited, Place, Standing};
use smg_limits::windows::ClusterTime;
use smg_types::ids::{Generation, NodeId};
use smg_types::now::Now;

/// A time at which a window of every length begins.
const EPOCH: i64 = 1_800_000_000_000;
const STEP: i64 = 100;
const LIMIT: u64 = 12;

fn rule(window: &str, mode: &str) -> Rule {
    let json = format!(r#"{{"id":"r","requests":{LIMIT},"window":"{window}","mode":"{mode}"}}"#);
    Rule::new(serde_json::from_str::<RuleDocument>(&json).unwrap()).unwrap()
}

struct Router {
    id: NodeId,
    running: Option<(Engine, Limiter)>,
    started: i64,
    /// Routers of different groups do not reach each other.
    group: u8,
    skew_ms: i64,
    rows: Vec<Row>,
    /// How many rows of each other router have arrived, and of whom.
    seen: BTreeMap<NodeId, usize>,
}

/// Routers `a`, `b` and so on, and what they have admitted.
struct Net {
    /// Time since [`EPOCH`], in milliseconds.
    at: i64,
    expected: Option<u32>,
    rules: Vec<Rule>,
    routers: Vec<Router>,
    left: BTreeSet<NodeId>,
    admitted: BTreeMap<u64, u64>,
}

impl Net {
    /// All of `count` routers, half a minute before [`EPOCH`]; `running` of them run.
    fn new(count: u8, running: usize, expected: Option<u32>, rules: Vec<Rule>) -> Self {
        let router = |n: u8| Router {
            id: NodeId {
                name: char::from(b'a' + n).to_string().parse().unwrap(),
                generation: Generation(0),
            },
            running: None,
            started: -30_000,
            group: 0,
            skew_ms: 0,
            rows: Vec::new(),
            seen: BTreeMap::new(),
        };
        let routers = (0..count).map(router).collect();
        let (left, admitted) = (BTreeSet::new(), BTreeMap::new());
        let mut net = Self { at: -30_000, expected, rules, routers, left, admitted };
        (0..running).for_each(|at| net.start(at));
        net
    }

    fn start(&mut self, at: usize) {
        let router = &mut self.routers[at];
        router.id.generation.0 += 1;
        router.started = self.at;
        router.rows.clear();
        router.seen.clear();
        let limiter = Limiter::default();
        limiter.set_rules(self.rules.clone());
        let config = Config { expected: self.expected, ..Config::default() };
        let now = Now { mono: Duration::from_secs(5), wall: Duration::ZERO };
        router.running = Some((Engine::new(router.id.clone(), config, now), limiter));
    }

    fn now(&self, at: usize) -> Now {
        let mono = u64::try_from(self.at - self.routers[at].started).unwrap() + 5_000;
        Now { mono: Duration::from_millis(mono), wall: Duration::ZERO }
    }

    fn members(&self, at: usize) -> Vec<Member> {
        let group = self.routers[at].group;
        let others = self.routers.iter().enumerate().filter(|(other, router)| {
            *other != at && router.id.generation.0 > 0 && !self.left.contains(&router.id)
        });
        others
            .map(|(_, router)| Member {
                node: router.id.clone(),
                is_alive: router.running.is_some() && router.group == group,
            })
            .collect()
    }

    /// Delivers what `from` has written to those that it reaches.
    fn deliver(&mut self, from: usize) {
        let (id, group) = (self.routers[from].id.clone(), self.routers[from].group);
        let Some((engine, _)) = &self.routers[from].running else { return };
        let roster = engine.roster().map(|(roster, _)| roster.clone());
        for to in 0..self.routers.len() {
            let now = self.now(to);
            let rows = self.routers[from].rows.clone();
            let target = &mut self.routers[to];
            if to == from || target.group != group {
                continue;
            }
            let Some((engine, limiter)) = &mut target.running else { continue };
            let seen = target.seen.entry(id.clone()).or_default();
            // The roster is replicated: each router has the latest one that any of them has written.
            let version = |roster: &Option<Roster>| roster.as_ref().map_or(0, |own| own.version);
            let known = engine.roster().map(|(roster, _)| roster.clone());
            if version(&roster) > version(&known) {
                engine.receive(&id, Row::Roster(roster.clone().unwrap()), limiter, now);
            }
            for row in rows[*seen..].iter().filter(|row| !matches!(row, Row::Roster(_))) {
                engine.receive(&id, row.clone(), limiter, now);
            }
            *seen = rows.len();
        }
    }

    fn act(&mut self, at: usize, act: impl FnOnce(&mut Engine, &Turn<'_>, &Limiter) -> Vec<Row>) {
        let (now, members) = (self.now(at), self.members(at));
        let cluster_ms = u64::try_from(EPOCH + self.at + self.routers[at].skew_ms).unwrap();
        let turn = Turn { now, cluster_ms, members: &members, is_complete: true };
        let router = &mut self.routers[at];
        if let Some((engine, limiter)) = &mut router.running {
            let rows = act(engine, &turn, limiter);
            router.rows.extend(rows);
        }
    }

    fn step(&mut self) {
        self.at += STEP;
        (0..self.routers.len()).for_each(|at| self.deliver(at));
        (0..self.routers.len()).for_each(|at| self.act(at, Engine::turn));
    }

    fn run_until(&mut self, at: i64) {
        while self.at < at {
            self.step();
        }
    }

    /// Takes all that is there, at all routers and at all times until `at`.
    fn drain_until(&mut self, at: i64) {
        while self.at < at {
            self.step();
            (0..self.routers.len()).rev().for_each(|router| {
                self.drain(router);
            });
        }
    }

    /// Takes all that a router gives; no window gives more than the limit.
    fn drain(&mut self, at: usize) -> u64 {
        let now = self.now(at);
        let Some((_, limiter)) = &self.routers[at].running else { return 0 };
        let who = Who { api_key: None, tenant: None, model: None };
        let length = u64::from(self.rules[0].meters[0].window_ms);
        let cluster_ms = limiter.cluster_ms(now);
        let mut taken = 0;
        while !limiter.is_idle() && limiter.check(&who, &TokenCount::default(), now).is_ok() {
            taken += 1;
            assert!(taken <= LIMIT, "router {at} gives {taken} by itself");
        }
        let sum = self.admitted.entry(cluster_ms - cluster_ms % length).or_default();
        *sum += taken;
        assert!(*sum <= LIMIT, "{sum} of {LIMIT} at {} with {taken} of router {at}", self.at);
        taken
    }

    fn cut(&mut self, at: usize) {
        self.routers[at].group = 1;
    }

    fn heal(&mut self) {
        self.routers.iter_mut().for_each(|router| router.group = 0);
    }

    fn leave(&mut self, at: usize) {
        self.act(at, Engine::leave);
        self.deliver(at);
        self.left.insert(self.routers[at].id.clone());
        self.routers[at].running = None;
    }

    fn roster(&self, at: usize) -> Option<(u64, bool)> {
        let (engine, _) = self.routers[at].running.as_ref()?;
        engine.roster().map(|(roster, is_settled)| (roster.version, is_settled))
    }
}

fn three(window: &str, mode: &str) -> Net {
    Net::new(3, 3, Some(3), vec![rule(window, mode)])
}

#[test]
fn boot_a_restarted_router_has_no_share_in_windows_that_began_before() {
    let mut net = three("1m", "strict");
    net.run_until(1_000);
    assert_eq!(net.drain(0), 4);
    net.start(0);
    net.run_until(6_000);
    assert_eq!(net.drain(0), 0);
    net.drain_until(59_000);
    assert_eq!(net.admitted[&u64::try_from(EPOCH).unwrap()], 12);
}

#[test]
fn boot_a_restarted_router_has_no_share_in_windows_that_its_former_life_granted() {
    let mut net = three("1s", "strict");
    net.drain_until(0);
    net.leave(0);
    net.run_until(100);
    net.start(0);
    net.drain_until(20_000);
}

#[test]
fn rights_of_windows_far_ahead_are_not_lent() {
    let mut net = three("1m", "strict");
    net.run_until(1_000);
    assert_eq!(net.drain(0), 4);
    // Its new life takes that window for one that is an hour away.
    net.routers[0].skew_ms = -3_600_000;
    net.start(0);
    net.drain_until(50_000);
}

#[test]
fn whole_from_a_router_that_was_cut_off_is_not_whole_in_windows_that_began_before() {
    let mut net = three("1m", "bounded");
    net.run_until(-20_000);
    net.cut(0);
    net.run_until(2_000);
    assert_eq!(net.drain(1), 7, "the heir uses three of the four units");
    assert_eq!(net.drain(2), 4);
    net.heal();
    net.drain_until(30_000);
}

#[test]
fn heir_from_an_heir_uses_nothing_in_windows_that_began_before_its_lease() {
    let mut net = three("1m", "bounded");
    net.run_until(1_000);
    assert_eq!(net.drain(0), 4);
    net.cut(0);
    net.drain_until(40_000);
}

#[test]
fn heir_from_holds_if_the_time_of_the_cluster_steps() {
    let mut net = three("1m", "bounded");
    net.run_until(1_000);
    assert_eq!(net.drain(0), 4);
    net.cut(0);
    net.routers.iter_mut().skip(1).for_each(|router| router.skew_ms = -3_600_000);
    net.run_until(14_000);
    net.routers.iter_mut().for_each(|router| router.skew_ms = 0);
    net.drain_until(40_000);
}

#[test]
fn a_joining_router_has_no_share_in_windows_that_began_before() {
    let mut net = Net::new(3, 2, None, vec![rule("1m", "strict")]);
    net.run_until(1_000);
    assert_eq!((net.drain(0), net.drain(1)), (6, 6));
    net.start(2);
    net.drain_until(50_000);
    assert_eq!(net.roster(2), Some((2, true)));
}

#[test]
fn a_joining_router_has_no_share_in_windows_that_a_leaving_one_granted() {
    let mut net = Net::new(3, 2, None, vec![rule("1s", "strict")]);
    net.drain_until(0);
    net.leave(0);
    net.run_until(100);
    net.start(0);
    net.start(2);
    net.drain_until(20_000);
}

/// A third router joins two, and the first one loses contact when the other two know that all go by the new roster.
fn cut_while_joining(mode: &str) -> Net {
    let mut net = Net::new(3, 2, None, vec![rule("1m", mode)]);
    net.run_until(0);
    net.start(2);
    while net.roster(0) != Some((2, false)) {
        net.step();
    }
    net.step();
    net.cut(0);
    net.run_until(59_900);
    assert_eq!(net.roster(0), Some((2, false)));
    assert_eq!((net.roster(1), net.roster(2)), (Some((2, true)), Some((2, true))));
    net
}

#[test]
fn shares_shrink_at_once() {
    cut_while_joining("strict").drain_until(200_000);
}

#[test]
fn majorities_of_both_rosters_are_needed_until_the_new_one_is_settled() {
    cut_while_joining("bounded").drain_until(200_000);
}

#[test]
fn shares_grow_only_when_all_routers_go_by_the_roster() {
    let mut net = Net::new(3, 2, None, vec![rule("1m", "strict")]);
    net.run_until(0);
    net.start(2);
    while net.roster(0) != Some((2, false)) {
        net.step();
    }
    // The second router never learns of the roster.
    net.cut(1);
    net.drain_until(200_000);
    assert_eq!((net.roster(0), net.roster(1)), (Some((2, false)), Some((1, true))));
}

#[test]
fn a_roster_that_was_replaced_before_it_was_settled_restricts() {
    let mut net = three("1m", "strict");
    net.run_until(0);
    let (now, from) = (net.now(0), net.routers[1].id.clone());
    let (engine, limiter) = net.routers[0].running.as_mut().unwrap();
    let (first, _) = engine.roster().unwrap();
    let first = first.clone();
    let second = Roster { version: 2, size: 6, previous: Some(first.shares()), ..first.clone() };
    let third = Roster { version: 3, previous: Some(second.shares()), ..first };
    engine.receive(&from, Row::Roster(second), limiter, now);
    engine.receive(&from, Row::Roster(third), limiter, now);
    net.act(0, Engine::turn);
    assert_eq!(net.drain(0), 2);
}

#[test]
fn rights_of_later_windows_are_lent_only_if_the_lender_will_be_whole() {
    let mut net = three("1s", "bounded");
    net.drain_until(0);
    net.cut(0);
    net.drain_until(7_700);
    net.heal();
    net.leave(0);
    net.drain_until(30_000);
}

#[test]
fn rules_that_are_set_late_make_no_heirs_at_once() {
    for late in [0, 100, 300, 1_000] {
        for begin in [-7_500, -7_000, -6_500, -6_300, -6_100] {
            let mut net = Net::new(3, 3, Some(3), Vec::new());
            net.run_until(begin);
            net.rules = vec![rule("1m", "bounded")];
            for router in 0..3 {
                let (_, limiter) = net.routers[router].running.as_ref().unwrap();
                limiter.set_rules(net.rules.clone());
                net.run_until(begin + late);
            }
            net.drain_until(20_000);
        }
    }
}

/// The limiter of a router alone in the cluster's eyes, for what the data path does by itself.
fn limiter(mode: &str) -> Limiter {
    let limiter = Limiter::default();
    limiter.set_rules(vec![rule("1m", mode)]);
    limiter
}

fn now(seconds: u64) -> Now {
    let time = Duration::from_secs(seconds);
    Now { mono: time, wall: time }
}

fn take_all(limiter: &Limiter, now: Now) -> u64 {
    let who = Who { api_key: None, tenant: None, model: None };
    (0..100).filter(|_| limiter.check(&who, &TokenCount::default(), now).is_ok()).count() as u64
}

fn take(limiter: &Limiter, now: Now) {
    let who = Who { api_key: None, tenant: None, model: None };
    limiter.check(&who, &TokenCount::default(), now).unwrap();
}

fn third() -> Standing {
    Standing { places: vec![Place { size: 3, place: Some(0) }], ..Standing::alone() }
}

#[test]
fn sticky_a_share_that_shrank_does_not_grow_in_the_same_window() {
    let limiter = limiter("strict");
    let time = ClusterTime::new(now(0), 600_000);
    let twelfth = Standing { places: vec![Place { size: 12, place: Some(0) }], ..third() };
    limiter.set_standing(twelfth, time);
    take(&limiter, now(1));
    limiter.set_standing(third(), time);
    assert_eq!(take_all(&limiter, now(2)), 0);
    assert_eq!(take_all(&limiter, now(61)), 4);
}

#[test]
fn sticky_a_router_that_was_cut_off_is_not_whole_in_the_same_window() {
    let limiter = limiter("bounded");
    let time = ClusterTime::new(now(0), 600_000);
    limiter.set_standing(Standing { whole_until: Duration::from_secs(1), ..third() }, time);
    take(&limiter, now(2));
    limiter.set_standing(third(), time);
    assert_eq!(take_all(&limiter, now(3)), 0);
    assert_eq!(take_all(&limiter, now(61)), 4);
}

#[test]
fn v6_an_heir_uses_only_what_the_absent_router_does_not_keep() {
    let limiter = limiter("bounded");
    let inherited = vec![Inherited { place: 1, from_ms: 0, until: Duration::MAX }];
    limiter.set_standing(Standing { inherited, ..third() }, ClusterTime::new(now(0), 600_000));
    assert_eq!(take_all(&limiter, now(1)), 4 + 3);
}

#[test]
fn windows_that_were_dropped_stay_closed() {
    let limiter = limiter("strict");
    limiter.set_standing(third(), ClusterTime::new(now(0), 600_000));
    assert_eq!(take_all(&limiter, now(1)), 4);
    limiter.set_standing(third(), ClusterTime::new(now(1), 900_000));
    assert_eq!(take_all(&limiter, now(1)), 4);
    limiter.set_standing(third(), ClusterTime::new(now(1), 600_000));
    assert_eq!(take_all(&limiter, now(1)), 0, "the counts of that window are gone");
}

#[test]
fn grants_are_only_of_one_generation_of_the_receiver() {
    let mut net = three("1m", "strict");
    net.run_until(1_000);
    while net.at < 10_000 {
        net.step();
        net.drain(0);
    }
    assert!(net.admitted.values().any(|units| *units > 4), "nothing was granted");
    // The grants to the former life arrive again.
    net.start(0);
    net.drain_until(30_000);
}
