//! Stores in which each router has rows of its own. Everybody holds each writer's rows as it wrote them last, however they
//! came; read together they are the counters of `crdts`.

use std::collections::BTreeMap;

use crdts::{CmRDT, GCounter, PNCounter};
use proptest::prelude::*;
use smg_types::ids::{Generation, ModelId, WorkerId};

use super::{KEYS, REPLICAS, Replica, check_sums, two, writer};
use crate::state::observation::{Load, Loads, Observation, Observations, SeenBreaker, SeenHealth};
use crate::state::quota::{
    GrantKey, Granted, RightsStore, TokenFlow, Tokens, Usage, UsageCount, UsageKey,
};
use crate::state::table::{Replica as _, Store};
use crate::state::totals::{Outcome, Total, TotalKey, Totals};

/// A store of own rows whose values can be made from a number.
trait Sample: Store {
    /// Whether a row is ever taken back.
    const REMOVES: bool = false;
    fn key(at: usize, n: u8) -> Self::Key;
    fn value(number: u64) -> Self::Value;
}

impl Sample for Observations {
    const REMOVES: bool = true;

    fn key(_: usize, n: u8) -> WorkerId {
        WorkerId::from_u64(u64::from(n))
    }

    fn value(number: u64) -> Observation {
        Observation {
            health: SeenHealth::Healthy,
            breaker: SeenBreaker::Closed,
            latency_us: 0,
            restarts: 0,
            seen_ms: number,
        }
    }
}

impl Sample for Loads {
    const REMOVES: bool = true;

    fn key(_: usize, n: u8) -> WorkerId {
        WorkerId::from_u64(u64::from(n))
    }

    fn value(number: u64) -> Load {
        Load { requests: u32::try_from(number).unwrap(), tokens: 0 }
    }
}

fn window(n: u8) -> UsageKey {
    UsageKey { rule: 1, subject: u64::from(n), start_ms: 1_000_000, length_ms: 60_000 }
}

impl Sample for Usage {
    fn key(_: usize, n: u8) -> UsageKey {
        window(n)
    }

    fn value(number: u64) -> UsageCount {
        UsageCount { requests: number, ..UsageCount::default() }
    }
}

impl Sample for Tokens {
    fn key(_: usize, n: u8) -> UsageKey {
        window(n)
    }

    fn value(number: u64) -> TokenFlow {
        TokenFlow { taken: number, given_back: number / 3 }
    }
}

impl Sample for RightsStore {
    fn key(at: usize, n: u8) -> GrantKey {
        GrantKey { window: window(n), to: writer((at + 1) % REPLICAS) }
    }

    fn value(number: u64) -> Granted {
        Granted { amount: number, expires_ms: 1_030_000 }
    }
}

impl Sample for Totals {
    fn key(at: usize, n: u8) -> TotalKey {
        let model = ModelId::new(format!("m{n}"));
        TotalKey { model, outcome: Outcome::Ok, name: writer(at).name }
    }

    fn value(number: u64) -> Total {
        Total { count: number, base: 0, covers: Generation(0) }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Put(usize, u8),
    Remove(usize, u8),
    /// From, to, whose stream, how much of it.
    Delta(usize, usize, usize, usize),
    Range(usize, usize, usize),
    Collect(usize, usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
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

type Rows<S> = BTreeMap<(usize, <S as Store>::Key), <S as Store>::Value>;

fn rows<S: Sample>(replica: &Replica<S>) -> Rows<S> {
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

/// Plays a history; what everybody holds in the end.
fn play<S: Sample>(events: &[Event]) -> Result<Rows<S>, TestCaseError> {
    let mut replicas: Vec<Replica<S>> = (0..REPLICAS).map(Replica::new).collect();
    let mut written: Rows<S> = BTreeMap::new();
    let mut logs = vec![BTreeMap::new(); REPLICAS];
    for (number, event) in (1u64..).zip(events) {
        match *event {
            Event::Put(at, n) => {
                let (key, value) = (S::key(at, n), S::value(number));
                written.insert((at, key.clone()), value.clone());
                replicas[at].with(|table, cx| table.put(cx, key, value)).unwrap();
            }
            Event::Remove(at, n) if S::REMOVES => {
                written.remove(&(at, S::key(at, n)));
                replicas[at].with(|table, cx| table.remove(cx, &S::key(at, n)));
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
        prop_assert_eq!(replica.table.print, replicas[0].table.print);
        check_sums(&replica.table);
    }
    Ok(written)
}

fn counts(events: &[Event], n: u8) -> impl Iterator<Item = (usize, u64)> {
    let numbered = (1u64..).zip(events);
    numbered.filter_map(move |(number, event)| match event {
        Event::Put(at, key) if *key == n => Some((*at, number)),
        _ => None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn observations_are_everywhere_as_written_last(events in events()) {
        play::<Observations>(&events)?;
    }

    #[test]
    fn loads_are_everywhere_as_written_last(events in events()) {
        play::<Loads>(&events)?;
    }

    #[test]
    fn rights_are_everywhere_as_written_last(events in events()) {
        play::<RightsStore>(&events)?;
    }

    #[test]
    fn totals_are_everywhere_as_written_last(events in events()) {
        play::<Totals>(&events)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn usage_reads_as_a_g_counter(events in events()) {
        let rows = play::<Usage>(&events)?;
        for n in 0..KEYS {
            let mut oracle = GCounter::new();
            let mut before: BTreeMap<usize, u64> = BTreeMap::new();
            for (at, total) in counts(&events, n) {
                let last = before.insert(at, total).unwrap_or_default();
                oracle.apply(oracle.inc_many(at, total - last));
            }
            let here: u64 = rows
                .iter()
                .filter(|((_, key), _)| *key == window(n))
                .map(|(_, count)| count.requests)
                .sum();
            prop_assert_eq!(oracle.read().to_string(), here.to_string());
        }
    }

    #[test]
    fn tokens_read_as_a_pn_counter(events in events()) {
        let rows = play::<Tokens>(&events)?;
        for n in 0..KEYS {
            let mut oracle = PNCounter::new();
            let mut before: BTreeMap<usize, TokenFlow> = BTreeMap::new();
            for (at, number) in counts(&events, n) {
                let flow = Tokens::value(number);
                let last = before.insert(at, flow).unwrap_or_default();
                oracle.apply(oracle.inc_many(at, flow.taken - last.taken));
                oracle.apply(oracle.dec_many(at, flow.given_back - last.given_back));
            }
            let here: i128 = rows
                .iter()
                .filter(|((_, key), _)| *key == window(n))
                .map(|(_, flow)| i128::from(flow.taken) - i128::from(flow.given_back))
                .sum();
            prop_assert_eq!(oracle.read().to_string(), here.to_string());
        }
    }
}
