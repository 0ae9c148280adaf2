//! The laws of every store's table.
//!
//! Shared stores: replicas exchange deltas that are cut anywhere, duplicated, late or relayed, and ranges of snapshots with
//! other events in between. They end writers that still write, adopt their rows and retire them. In the end every replica
//! holds what an add-wins set of the same history holds: the keys of `crdts::Orswot`, and all values but those that a later
//! write or removal had seen. No value that a replica has lost comes back to it. For stores with a row per node, see `own`.

mod endings;
pub(crate) mod own;
mod rules;

use std::collections::BTreeSet;
use std::time::Duration;

use crdts::orswot::Op;
use crdts::{CmRDT, Dot as ForeignDot, Orswot, VClock};
use proptest::prelude::*;
use smg_types::ids::{Generation, NodeId};
use smg_types::now::Now;

use super::Replica as _;
use super::*;
use crate::crdt::stamp::{Author, HybridClock, Stamp};
use crate::state::operations::StoreOperations;
use crate::state::policy::Policies;
use crate::state::row::Blob;
use crate::state::writers::{Writer, Writers};
pub(crate) const REPLICAS: usize = 4;
pub(crate) const KEYS: u8 = 4;
const NOW: Now = Now { mono: Duration::from_secs(1_000), wall: Duration::from_secs(1_000) };

/// A shared store whose values are distinguished by a number.
pub(crate) trait SharedSample: StoreOperations<Value: Merge> {
    fn key(n: u8) -> Self::Key;
    /// A value that wins over `before`, what is read under the key.
    fn value(n: u8, number: u64, stamp: Stamp, before: Option<&Self::Value>) -> Self::Value;
    fn number(value: &Self::Value) -> u64;
}

#[derive(Debug, Clone)]
enum Event {
    Put(usize, u8),
    Remove(usize, u8),
    /// Sender, receiver, writer, and most bytes of the writer's log.
    Delta(usize, usize, usize, usize),
    /// Donor, receiver, and most bytes of the next range of the receiver's snapshot, whose earlier ranges may be from other
    /// donors.
    Range(usize, usize, usize),
    /// Replica and writer: drops all tombstones that are covered. Safety must not depend on waiting.
    Collect(usize, usize),
    /// Replica and writer: the writer has ended, as far as the replica knows.
    End(usize, usize),
    /// The replica adopts the rows of writers that have ended.
    Adopt(usize),
    /// The replica retires writers whose writes other rows hold.
    Retire(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let r = || 0..REPLICAS;
    let event = prop_oneof![
        5 => (r(), 0..KEYS).prop_map(|(at, key)| Event::Put(at, key)),
        3 => (r(), 0..KEYS).prop_map(|(at, key)| Event::Remove(at, key)),
        9 => (r(), r(), r(), 1..400usize)
            .prop_map(|(from, to, of, bytes)| Event::Delta(from, to, of, bytes)),
        2 => (r(), r(), 1..400usize).prop_map(|(a, b, bytes)| Event::Range(a, b, bytes)),
        1 => (r(), r()).prop_map(|(at, of)| Event::Collect(at, of)),
        1 => (r(), r()).prop_map(|(at, of)| Event::End(at, of)),
        2 => r().prop_map(Event::Adopt),
        1 => r().prop_map(Event::Retire),
    ];
    prop::collection::vec(event, 1..80)
}

struct Replica<S: StoreOperations> {
    at: usize,
    table: Table<S>,
    writers: Writers,
    clock: HybridClock,
    /// A snapshot that is being loaded: the key after which it continues, and what may be claimed at its end.
    join: Option<(Option<Blob>, Vec<Mark>)>,
}

pub(crate) fn writer(at: usize) -> NodeId {
    NodeId { name: format!("n{at}").parse().unwrap(), generation: Generation(1) }
}

impl<S: StoreOperations> Replica<S> {
    fn new(at: usize) -> Self {
        let mut writers = Writers::default();
        for at in 0..REPLICAS {
            let number = writers.intern(&writer(at)).unwrap();
            writers.note_member(number, false);
        }
        let clock = HybridClock::new(Author::of(&writer(at)));
        Self { at, table: Table::default(), writers, clock, join: None }
    }

    fn number(&self, of: usize) -> Writer {
        self.writers.number(&writer(of)).unwrap()
    }

    fn with<T>(&mut self, f: impl FnOnce(&mut Table<S>, &mut NodeParts<'_>) -> T) -> T {
        let me = self.number(self.at);
        let mut parts =
            NodeParts { writers: &mut self.writers, clock: &mut self.clock, me, now: NOW };
        f(&mut self.table, &mut parts)
    }

    /// Checks the invariants of all logs, and that none has moved back from where it was in `before`.
    fn check_logs(&self, before: &mut BTreeMap<Writer, LogPosition>) {
        assert_eq!(self.table.check_logs(self.number(self.at)), Ok(()), "at {}", self.at);
        for (writer, log) in self.table.log_positions() {
            let former = before.insert(writer, log).unwrap_or_default();
            assert_eq!(log.check_after(&former), Ok(()), "at {}", self.at);
        }
    }

    /// Merges the next range of a snapshot; after the last one, claims what all its donors cover.
    fn range(&mut self, from: &Self, bytes: usize) {
        let (after, claim) = self.join.take().unwrap_or_default();
        let section = from.table.range_after(&from.writers, after.clone(), bytes).unwrap();
        self.with(|table, parts| table.merge_range(parts, &section)).unwrap();
        let least = |mark: &Mark| {
            let before = claim.iter().find(|known| known.writer == mark.writer);
            let unknown = if after.is_none() { mark.version } else { 0 };
            let version = before.map_or(unknown, |known| known.version.min(mark.version));
            Mark { version, ..*mark }
        };
        let claim: Vec<Mark> = section.marks.iter().map(least).collect();
        if section.end.is_some() {
            self.join = Some((section.end, claim));
            return;
        }
        let me = self.number(self.at);
        for mark in claim.iter().filter(|mark| mark.writer != me) {
            self.table.claim(mark.writer, mark.version);
        }
    }

    fn snapshot(&mut self, from: &Self, bytes: usize) {
        self.range(from, bytes);
        while self.join.is_some() {
            self.range(from, bytes);
        }
    }

    fn delta(&mut self, from: &Self, of: usize, bytes: usize) {
        if of == self.at {
            return;
        }
        let of = from.number(of);
        let applied = self.table.applied(of);
        if applied < from.table.floor(of) {
            self.join = None;
            self.snapshot(from, bytes);
            return;
        }
        let LogRange { rows, to, upto } = from.table.rows_after(&from.writers, of, applied, bytes);
        let floor = from.table.floor(of);
        self.with(|table, parts| {
            table.raise_floor(of, floor);
            // Each row twice, because a duplicated delta must change nothing.
            for row in rows.iter().chain(&rows) {
                table.apply(parts, of, row);
            }
            table.advance(of, to, upto);
        });
    }

    fn adopt(&mut self)
    where
        S::Value: Merge,
    {
        for of in [0, 1, 2, 3].map(|of| self.number(of)) {
            if self.writers.has_ended(of) {
                self.with(|table, parts| table.adopt(parts, of, 100));
            }
        }
    }

    fn retire(&mut self) -> bool {
        let of = (0..REPLICAS).map(|of| self.number(of));
        let spent: Vec<Writer> = of
            .filter(|of| self.writers.has_ended(*of) && self.table.applied(*of) > 0)
            .filter(|of| self.table.is_spent(&self.writers, *of))
            .collect();
        for writer in &spent {
            self.table.retire(*writer);
        }
        !spent.is_empty()
    }
}

impl<S: SharedSample> Replica<S> {
    fn put(&mut self, n: u8, number: u64) {
        let stamp = self.clock.tick(NOW);
        let value = S::value(n, number, stamp, self.table.merged(&S::key(n)).as_ref());
        self.with(|table, parts| table.put_shared(parts, &S::key(n), value)).unwrap();
    }

    fn remove(&mut self, n: u8) {
        self.with(|table, parts| table.remove_shared(parts, &S::key(n))).unwrap();
    }

    fn holds(&self) -> BTreeSet<(u8, u64)> {
        let values = |n| self.table.values(&S::key(n)).map(move |(_, v)| (n, S::number(v)));
        (0..KEYS).flat_map(values).collect()
    }
}

/// The expected result of a history, computed without rows, logs and versions.
#[derive(Default)]
struct Expected {
    all: BTreeSet<(u8, u64)>,
    dead: BTreeSet<(u8, u64)>,
    by: BTreeMap<u64, usize>,
    keys: Orswot<u8, usize>,
}

impl Expected {
    /// Replaces everything that was seen under the key.
    fn replace(&mut self, n: u8, seen: &BTreeSet<(u8, u64)>) {
        let seen: Vec<_> = seen.iter().filter(|(key, _)| *key == n).copied().collect();
        let clock: VClock<usize> =
            seen.iter().map(|(_, number)| ForeignDot::new(self.by[number], *number)).collect();
        self.keys.apply(Op::Rm { clock, members: vec![n] });
        self.dead.extend(seen);
    }

    fn put(&mut self, at: usize, n: u8, number: u64) {
        self.all.insert((n, number));
        self.by.insert(number, at);
        self.keys.apply(Op::Add { dot: ForeignDot::new(at, number), members: vec![n] });
    }

    fn living(&self) -> BTreeSet<(u8, u64)> {
        self.all.difference(&self.dead).copied().collect()
    }
}

fn two<T>(replicas: &mut [T], a: usize, b: usize) -> (&T, &mut T) {
    let [a, b] = replicas.get_disjoint_mut([a, b]).unwrap();
    (a, b)
}

/// Plays a history and checks it; returns whether a row was adopted, and whether a writer was retired.
fn play<S: SharedSample>(events: &[Event]) -> Result<(bool, bool), TestCaseError> {
    let mut replicas: Vec<Replica<S>> = (0..REPLICAS).map(Replica::new).collect();
    let mut gone: Vec<BTreeSet<(u8, u64)>> = vec![BTreeSet::new(); REPLICAS];
    let mut logs: Vec<BTreeMap<Writer, LogPosition>> = vec![BTreeMap::new(); REPLICAS];
    let mut expected = Expected::default();
    let (mut adopted, mut retired) = (false, false);
    for (number, event) in (1u64..).zip(events) {
        let before: Vec<_> = replicas.iter().map(Replica::holds).collect();
        match *event {
            Event::Put(at, n) => {
                expected.replace(n, &before[at]);
                expected.put(at, n, number);
                replicas[at].put(n, number);
            }
            Event::Remove(at, n) => {
                expected.replace(n, &before[at]);
                replicas[at].remove(n);
            }
            Event::Delta(from, to, of, bytes) if from != to => {
                let (from, target) = two(&mut replicas, from, to);
                target.delta(from, of, bytes);
            }
            Event::Range(from, to, bytes) if from != to => {
                let (from, target) = two(&mut replicas, from, to);
                target.range(from, bytes);
            }
            Event::Collect(at, of) => {
                let of = replicas[at].number(of);
                replicas[at].table.collect(of, u64::MAX);
            }
            Event::End(at, of) if at != of => {
                let of = replicas[at].number(of);
                replicas[at].writers.end(of);
            }
            Event::Delta(..) | Event::Range(..) | Event::End(..) => {}
            Event::Adopt(at) => {
                let me = replicas[at].number(at);
                let version = replicas[at].table.applied(me);
                replicas[at].adopt();
                adopted |= replicas[at].table.applied(me) > version;
            }
            Event::Retire(at) => retired |= replicas[at].retire(),
        }
        for (at, replica) in replicas.iter().enumerate() {
            let holds = replica.holds();
            let back: Vec<_> = holds.intersection(&gone[at]).collect();
            prop_assert!(back.is_empty(), "{:?} came back at {} by {:?}", back, at, event);
            gone[at].extend(before[at].difference(&holds));
            replica.check_logs(&mut logs[at]);
        }
    }
    // Every replica receives all logs from every other.
    for _ in 0..3 {
        for from in 0..REPLICAS {
            for to in (0..REPLICAS).filter(|to| *to != from) {
                for of in 0..REPLICAS {
                    let (from, target) = two(&mut replicas, from, to);
                    target.delta(from, of, 1 << 20);
                }
            }
        }
    }
    let keys: BTreeSet<u8> = expected.keys.read().val.into_iter().collect();
    for replica in &replicas {
        prop_assert_eq!(replica.holds(), expected.living());
        let held: BTreeSet<u8> = replica.holds().into_iter().map(|(n, _)| n).collect();
        prop_assert_eq!(&held, &keys, "as crdts says");
        prop_assert_eq!(replica.table.fingerprint, replicas[0].table.fingerprint);
        prop_assert_eq!(replica.table.dots, expected.living().len());
        prop_assert!(replica.table.pending.is_empty());
        check_sums(&replica.table);
    }
    Ok((adopted, retired))
}

/// Checks that the sums and indexes of a table agree with its rows.
fn check_sums<S: StoreOperations>(table: &Table<S>) {
    let rows = || table.cells.values().flatten();
    assert_eq!(table.bytes, rows().map(|(_, row)| row.bytes as usize).sum::<usize>());
    assert_eq!(table.tombstones, rows().filter(|(_, row)| row.is_tombstone()).count());
    let logged: usize = table.logs.values().map(|log| log.by_version.len()).sum();
    assert_eq!(logged, rows().count());
    let carried: usize = rows().map(|(_, row)| row.carried().len()).sum();
    assert_eq!(table.carried.values().sum::<usize>(), carried);
    let dots: BTreeMap<_, _> = table
        .cells
        .iter()
        .flat_map(|(key, cell)| cell.iter().map(move |(w, row)| (key, w, row)))
        .flat_map(|(key, w, row)| row.dots(*w).map(move |(dot, hash)| ((key, dot), hash)))
        .collect();
    assert_eq!(table.dots, dots.len());
    let fingerprint =
        dots.iter().fold(0, |all, ((_, dot), hash)| all ^ fingerprint_of(dot.1, *hash));
    assert_eq!(table.fingerprint, fingerprint);
}

/// Proves the laws of a shared store: plays `cases` random histories, or as many as `SMG_HISTORIES` says, and checks that rare events were among them.
pub(crate) fn check_histories<S: SharedSample>(cases: u32) {
    let more = std::env::var("SMG_HISTORIES").ok();
    let cases = more.map_or(cases, |more| more.parse().expect("SMG_HISTORIES is a number"));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(cases));
    let reached = std::cell::Cell::new((0, 0));
    let played = runner.run(&events(), |events| {
        let (adopted, retired) = play::<S>(&events)?;
        let (a, r) = reached.get();
        reached.set((a + u32::from(adopted), r + u32::from(retired)));
        Ok(())
    });
    if let Err(error) = played {
        panic!("{error}");
    }
    let (adopted, retired) = reached.get();
    assert!(adopted > cases / 50 && retired > cases / 500, "{adopted} adopted, {retired} retired");
}

#[test]
fn a_row_dropped_by_an_audit_is_not_taken_for_dead() {
    let whole = 1 << 20;
    let [mut a, mut b, mut c, mut d] = [0, 1, 2, 3].map(Replica::<Policies>::new);
    a.put(1, 7);
    b.delta(&a, 0, whole);
    c.delta(&a, 0, whole);
    // b adopts a's row; c receives b's row, and an audit drops a's.
    let of = b.number(0);
    b.writers.end(of);
    b.adopt();
    c.delta(&b, 1, whole);
    c.with(|table, parts| table.repair(parts, of, u64::MAX, &[]));
    assert_eq!(c.holds(), BTreeSet::from([(1, 7)]));
    // d receives a's log, which is empty at c, before the row in which b carries a's write.
    d.delta(&c, 0, whole);
    d.delta(&c, 1, whole);
    assert_eq!(d.holds(), BTreeSet::from([(1, 7)]));
}

#[test]
fn a_kill_that_was_collected_before_its_row_arrived_still_applies() {
    let whole = 1 << 20;
    let [mut a, mut b, mut c, mut d] = [0, 1, 2, 3].map(Replica::<Policies>::new);
    a.put(0, 1);
    b.delta(&a, 0, whole);
    b.put(1, 2);
    b.put(0, 3);
    c.delta(&a, 0, whole);
    c.delta(&b, 1, whole);
    let of = c.number(1);
    c.table.collect(of, u64::MAX);
    // The first range of a snapshot brings d the row of b whose kill c has collected, and a takes it from there.
    d.range(&c, 1);
    a.delta(&d, 1, whole);
    a.delta(&b, 1, whole);
    assert_eq!(a.holds(), BTreeSet::from([(0, 3), (1, 2)]));
    // d does not load the rest of the snapshot, and receives the logs instead.
    d.delta(&b, 1, whole);
    d.delta(&a, 0, whole);
    assert_eq!(d.holds(), BTreeSet::from([(0, 3), (1, 2)]));
}

#[test]
fn a_snapshot_from_two_donors_brings_no_dead_write_back() {
    let whole = 1 << 20;
    let [mut a, mut b, mut c, mut d] = [0, 1, 2, 3].map(Replica::<Policies>::new);
    a.put(1, 1);
    b.delta(&a, 0, whole);
    b.put(1, 2);
    c.delta(&b, 1, whole);
    let of = b.number(1);
    b.table.collect(of, u64::MAX);
    // b has dropped the kill of a's write and covers that write. c, the donor of the second range, does not cover it.
    d.range(&b, 1);
    d.range(&c, 1);
    assert!(d.join.is_none());
    d.delta(&a, 0, whole);
    assert_eq!(d.holds(), BTreeSet::from([(1, 2)]));
}

#[test]
fn a_removal_in_a_part_of_a_log_is_kept_until_all_of_the_log_has_arrived() {
    let whole = 1 << 20;
    let [mut a, mut b, mut c, _] = [0, 1, 2, 3].map(Replica::<Policies>::new);
    a.put(1, 1);
    c.delta(&a, 0, whole);
    a.remove(1);
    a.put(0, 2);
    b.delta(&a, 0, 1);
    let of = b.number(0);
    b.table.collect(of, u64::MAX);
    // c has not received the removal.
    b.snapshot(&c, whole);
    b.delta(&a, 0, whole);
    assert_eq!(b.holds(), BTreeSet::from([(0, 2)]));
}
