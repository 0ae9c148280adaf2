//! The laws of a table: replicas that exchange deltas cut anywhere, doubled, late and relayed, and snapshots by ranges,
//! hold what an add-wins set of the same history holds (all puts but those that another put or a removal had seen), and
//! nothing that was seen to go comes back.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::Replica as _;
use super::*;
use crate::cluster::state::policy::{Policies, PolicyRecord};
use crate::crdt::lww_register::LwwRegister;
use crate::crdt::stamp::Author;
use crate::ids::{Generation, ModelId, NodeId};

const REPLICAS: usize = 4;

#[derive(Debug, Clone)]
enum Event {
    Put(usize, u8),
    Remove(usize, u8),
    /// From, to, whose stream, how much of it.
    Delta(usize, usize, usize, usize),
    /// From, to, at most so many bytes per range.
    Snapshot(usize, usize, usize),
    /// Collects what is applied, as early as can be: safety must not depend on waiting.
    Collect(usize, usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let r = 0..REPLICAS;
    let event = prop_oneof![
        5 => (r.clone(), 0..4u8).prop_map(|(at, key)| Event::Put(at, key)),
        3 => (r.clone(), 0..4u8).prop_map(|(at, key)| Event::Remove(at, key)),
        9 => (r.clone(), r.clone(), r.clone(), 1..400usize)
            .prop_map(|(from, to, of, bytes)| Event::Delta(from, to, of, bytes)),
        1 => (r.clone(), r.clone(), 1..400usize).prop_map(|(a, b, bytes)| Event::Snapshot(a, b, bytes)),
        1 => (r.clone(), r).prop_map(|(at, of)| Event::Collect(at, of)),
    ];
    prop::collection::vec(event, 1..60)
}

struct Replica {
    table: Table<Policies>,
    writers: Writers,
    clock: HybridClock,
}

fn writer(at: usize) -> NodeId {
    NodeId { name: format!("n{at}").parse().unwrap(), generation: Generation(1) }
}

fn key(n: u8) -> ModelId {
    ModelId::new(format!("m{n}"))
}

impl Replica {
    fn new(at: usize) -> Self {
        let mut writers = Writers::default();
        for at in 0..REPLICAS {
            writers.intern(&writer(at)).unwrap();
        }
        let clock = HybridClock::new(Author::of(&writer(at)), HybridClock::MAX_AHEAD);
        Self { table: Table::default(), writers, clock }
    }

    fn with<T>(
        &mut self,
        at: usize,
        f: impl FnOnce(&mut Table<Policies>, &mut Context<'_>) -> T,
    ) -> T {
        let me = self.writers.number(&writer(at)).unwrap();
        let now = Now::at(Duration::from_secs(1_000));
        let mut cx = Context { writers: &mut self.writers, clock: &mut self.clock, me, now };
        f(&mut self.table, &mut cx)
    }

    fn holds(&self) -> BTreeSet<(u8, u64)> {
        let mut all = BTreeSet::new();
        for n in 0..4 {
            for (_, value) in self.table.values(&key(n)) {
                all.insert((n, value.get().unwrap().policy.parse().unwrap()));
            }
        }
        all
    }
}

fn value(clock: &mut HybridClock, number: u64) -> LwwRegister<PolicyRecord> {
    let stamp = clock.tick(Now::at(Duration::from_secs(1_000)));
    let policy = number.to_string();
    LwwRegister::of(
        stamp,
        PolicyRecord { policy, parameters: BTreeMap::new(), weights: BTreeMap::new() },
    )
}

/// All ranges of a snapshot, joined; then its claim.
fn snapshot(from: &Replica, to: &mut Replica, at: usize, bytes: usize) {
    let mut after = None;
    loop {
        let section = from.table.section(&from.writers, after.clone(), bytes).unwrap();
        after = section.end.clone();
        to.with(at, |table, cx| table.join_section(cx, &section)).unwrap();
        if after.is_none() {
            let me = to.writers.number(&writer(at)).unwrap();
            for mark in section.marks.iter().filter(|mark| mark.writer != me) {
                to.table.advance(mark.writer, mark.version);
            }
            return;
        }
    }
}

fn delta(from: &Replica, to: &mut Replica, at: usize, of: usize, bytes: usize) {
    let of = from.writers.number(&writer(of)).unwrap();
    if of == to.writers.number(&writer(at)).unwrap() {
        return;
    }
    let applied = to.table.applied(of);
    if applied < from.table.floor(of) {
        snapshot(from, to, at, bytes);
        return;
    }
    let (rows, upto) = from.table.rows_after(&from.writers, of, applied, bytes);
    to.with(at, |table, cx| {
        // Each row twice: a doubled delta changes nothing.
        for row in rows.iter().chain(&rows) {
            table.apply(cx, of, row);
        }
        table.advance(of, upto);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn a_table_holds_what_an_add_wins_set_holds(events in events()) {
        let mut replicas: Vec<Replica> = (0..REPLICAS).map(Replica::new).collect();
        let mut gone: Vec<BTreeSet<(u8, u64)>> = vec![BTreeSet::new(); REPLICAS];
        let mut dead: BTreeSet<(u8, u64)> = BTreeSet::new();
        let mut all: BTreeSet<(u8, u64)> = BTreeSet::new();
        for (number, event) in (1u64..).zip(&events) {
            let before: Vec<_> = replicas.iter().map(Replica::holds).collect();
            match *event {
                Event::Put(at, n) => {
                    let replica = &mut replicas[at];
                    dead.extend(replica.holds().into_iter().filter(|(key, _)| *key == n));
                    all.insert((n, number));
                    let value = value(&mut replica.clock, number);
                    replica.with(at, |table, cx| table.put_shared(cx, &key(n), value)).unwrap();
                }
                Event::Remove(at, n) => {
                    let replica = &mut replicas[at];
                    dead.extend(replica.holds().into_iter().filter(|(key, _)| *key == n));
                    replica.with(at, |table, cx| table.remove_shared(cx, &key(n))).unwrap();
                }
                Event::Delta(from, to, of, bytes) if from != to => {
                    let (from, target) = two(&mut replicas, from, to);
                    delta(from, target, to, of, bytes);
                }
                Event::Snapshot(from, to, bytes) if from != to => {
                    let (from, target) = two(&mut replicas, from, to);
                    snapshot(from, target, to, bytes);
                }
                Event::Delta(..) | Event::Snapshot(..) => {}
                Event::Collect(at, of) => {
                    let of = replicas[at].writers.number(&writer(of)).unwrap();
                    replicas[at].table.collect(of, u64::MAX);
                }
            }
            for (at, replica) in replicas.iter().enumerate() {
                let holds = replica.holds();
                let back: Vec<_> = holds.intersection(&gone[at]).collect();
                prop_assert!(back.is_empty(), "{back:?} came back at {at}");
                gone[at].extend(before[at].difference(&holds));
            }
        }
        // Everybody hears everything, by relays and in any order.
        for _ in 0..3 {
            for from in 0..REPLICAS {
                for to in (0..REPLICAS).filter(|to| *to != from) {
                    for of in 0..REPLICAS {
                        let (from, target) = two(&mut replicas, from, to);
                        delta(from, target, to, of, 1 << 20);
                    }
                }
            }
        }
        let should: BTreeSet<_> = all.difference(&dead).copied().collect();
        for replica in &replicas {
            prop_assert_eq!(replica.holds(), should.clone());
            prop_assert_eq!(replica.table.print, replicas[0].table.print);
            prop_assert!(replica.table.pending.is_empty());
        }
    }
}

fn two(replicas: &mut [Replica], a: usize, b: usize) -> (&Replica, &mut Replica) {
    let [a, b] = replicas.get_disjoint_mut([a, b]).unwrap();
    (a, b)
}

/// Replica 1 has adopted the only row of replica 0, whose writer is over; replica 2 hears of that without having had the
/// row itself, so that the kills in it wait there.
fn adopted_and_heard_of() -> [Replica; 3] {
    let [mut former, mut adopter, mut other] = [0, 1, 2].map(Replica::new);
    let value = value(&mut former.clock, 1);
    former.with(0, |table, cx| table.put_shared(cx, &key(0), value)).unwrap();
    delta(&former, &mut adopter, 1, 0, 1 << 20);
    let of = adopter.writers.number(&writer(0)).unwrap();
    assert_eq!(adopter.with(1, |table, cx| table.adopt(cx, of, false, 10)), 1);
    delta(&adopter, &mut other, 2, 1, 1 << 20);
    assert_eq!(other.holds(), BTreeSet::from([(0, 1)]));
    assert_eq!(other.table.sizes().pending, 1, "the row of the former life was never here");
    [former, adopter, other]
}

#[test]
fn a_waiting_kill_of_an_adoption_does_not_end_what_was_adopted() {
    let [_, mut adopter, other] = adopted_and_heard_of();
    snapshot(&other, &mut adopter, 1, 1 << 20);
    assert_eq!(adopter.holds(), BTreeSet::from([(0, 1)]));
}

#[test]
fn a_waiting_kill_of_a_removal_ends_what_was_adopted() {
    let [former, mut adopter, mut other] = adopted_and_heard_of();
    // Replica 3 removes the row before it hears of the adoption; its tombstone is collected where the kill waits.
    let mut remover = Replica::new(3);
    delta(&former, &mut remover, 3, 0, 1 << 20);
    remover.with(3, |table, cx| table.remove_shared(cx, &key(0))).unwrap();
    delta(&remover, &mut other, 2, 3, 1 << 20);
    let of = other.writers.number(&writer(3)).unwrap();
    assert_eq!(other.table.collect(of, u64::MAX), 1);
    snapshot(&other, &mut adopter, 1, 1 << 20);
    assert!(adopter.holds().is_empty());
}

#[test]
fn a_removal_ends_what_was_adopted_also_when_its_kills_were_collected() {
    let [former, mut adopter, _] = adopted_and_heard_of();
    let mut remover = Replica::new(3);
    delta(&former, &mut remover, 3, 0, 1 << 20);
    remover.with(3, |table, cx| table.remove_shared(cx, &key(0))).unwrap();
    let own = adopter.writers.number(&writer(1)).unwrap();
    assert_eq!(adopter.table.collect(own, u64::MAX), 1);
    assert_eq!(adopter.holds(), BTreeSet::from([(0, 1)]));
    delta(&remover, &mut adopter, 1, 3, 1 << 20);
    assert!(adopter.holds().is_empty());
}
