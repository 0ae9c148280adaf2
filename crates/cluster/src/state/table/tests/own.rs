//! The laws of stores in which each router has rows of its own: however rows arrive, every replica ends with the last row
//! of each writer under each key.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{KEYS, REPLICAS, Replica, check_sums, two};
use crate::state::operations::StoreOperations;
use crate::state::store::Store;
use crate::state::table::Replica as _;

/// A store in which each node has rows of its own, whose values can be made from a number.
pub(crate) trait OwnSample: StoreOperations {
    /// Whether nodes remove rows.
    const REMOVES: bool = false;
    fn key(at: usize, n: u8) -> Self::Key;
    fn value(number: u64) -> Self::Value;
}

#[derive(Debug, Clone)]
pub(crate) enum Event {
    Put(usize, u8),
    Remove(usize, u8),
    /// Sender, receiver, writer, and most bytes of the writer's log.
    Delta(usize, usize, usize, usize),
    Range(usize, usize, usize),
    Collect(usize, usize),
}

pub(crate) fn events() -> impl Strategy<Value = Vec<Event>> {
    let r = || 0..REPLICAS;
    let event = prop_oneof![
        5 => (r(), 0..KEYS).prop_map(|(at, n)| Event::Put(at, n)),
        2 => (r(), 0..KEYS).prop_map(|(at, n)| Event::Remove(at, n)),
        9 => (r(), r(), r(), 1..200usize).prop_map(|(a, b, of, bytes)| Event::Delta(a, b, of, bytes)),
        2 => (r(), r(), 1..200usize).prop_map(|(a, b, bytes)| Event::Range(a, b, bytes)),
        1 => (r(), r()).prop_map(|(at, of)| Event::Collect(at, of)),
    ];
    prop::collection::vec(event, 1..60)
}

pub(crate) type Rows<S> = BTreeMap<(usize, <S as Store>::Key), <S as Store>::Value>;

fn rows<S: OwnSample>(replica: &Replica<S>) -> Rows<S> {
    let mut rows = BTreeMap::new();
    for of in 0..REPLICAS {
        let writer = replica.number(of);
        for key in replica.table.keys_of(writer) {
            let value = replica.table.value_of(&key, writer).unwrap().clone();
            rows.insert((of, key), value);
        }
    }
    rows
}

/// Plays a history and checks that every node holds the same in the end; returns that.
pub(crate) fn play<S: OwnSample>(events: &[Event]) -> Result<Rows<S>, TestCaseError> {
    let mut replicas: Vec<Replica<S>> = (0..REPLICAS).map(Replica::new).collect();
    let mut written: Rows<S> = BTreeMap::new();
    let mut logs = vec![BTreeMap::new(); REPLICAS];
    for (number, event) in (1u64..).zip(events) {
        match *event {
            Event::Put(at, n) => {
                let (key, value) = (S::key(at, n), S::value(number));
                written.insert((at, key.clone()), value.clone());
                replicas[at].with(|table, parts| table.put(parts, key, value)).unwrap();
            }
            Event::Remove(at, n) if S::REMOVES => {
                written.remove(&(at, S::key(at, n)));
                replicas[at].with(|table, parts| table.remove(parts, &S::key(at, n)));
            }
            Event::Delta(from, to, of, bytes) if from != to => {
                let (from, target) = two(&mut replicas, from, to);
                target.delta(from, of, bytes);
            }
            Event::Range(from, to, bytes) if from != to => {
                let (from, target) = two(&mut replicas, from, to);
                target.range(from, bytes);
            }
            Event::Remove(..) | Event::Delta(..) | Event::Range(..) => {}
            Event::Collect(at, of) => {
                let of = replicas[at].number(of);
                replicas[at].table.collect(of, u64::MAX);
            }
        }
        for (replica, logs) in replicas.iter().zip(&mut logs) {
            replica.check_logs(logs);
        }
    }
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
    for replica in &replicas {
        prop_assert!(rows(replica) == written, "{} lacks or has too much", replica.at);
        prop_assert_eq!(replica.table.fingerprint, replicas[0].table.fingerprint);
        check_sums(&replica.table);
    }
    Ok(written)
}

pub(crate) fn counts(events: &[Event], n: u8) -> impl Iterator<Item = (usize, u64)> {
    let numbered = (1u64..).zip(events);
    numbered.filter_map(move |(number, event)| match event {
        Event::Put(at, key) if *key == n => Some((*at, number)),
        _ => None,
    })
}
