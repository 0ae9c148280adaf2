//! The laws of a replicated type, which one macro checks in random histories.
//!
//! In a history, four replicas write or merge the whole state of another replica. Each law is checked with the states and
//! deltas that occur in it, and every replica must read the same as the oracle, which is the same type of the `crdts`
//! crate. `PROPTEST_CASES` and `PROPTEST_RNG_SEED` apply; a failure prints the shortest history that fails.

use std::fmt::Debug;

use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::crdt::Merge;

pub(crate) const REPLICAS: u8 = 4;

/// A replicated type whose laws are checked, and its oracle.
pub(crate) trait Subject:
    Merge + Clone + Default + PartialEq + Debug + Serialize + DeserializeOwned + 'static
{
    type Op: Clone + Debug;
    type Oracle: Clone + Default;
    type Value: PartialEq + Debug;

    fn ops() -> BoxedStrategy<Self::Op>;
    /// Writes at `replica`, which is also the actor's name; returns the delta. Each write of a history has another `turn`.
    fn write(&mut self, replica: u8, turn: u64, op: &Self::Op) -> Self;
    fn read(&self) -> Self::Value;
    fn oracle_write(oracle: &mut Self::Oracle, replica: u8, turn: u64, op: &Self::Op);
    fn oracle_merge(oracle: &mut Self::Oracle, other: &Self::Oracle);
    fn oracle_read(oracle: &Self::Oracle) -> Self::Value;
}

#[derive(Debug, Clone)]
pub(crate) enum Event<Op> {
    Write(u8, Op),
    /// The second replica merges the state of the first.
    Merge(u8, u8),
}

pub(crate) fn history<S: Subject>() -> impl Strategy<Value = Vec<Event<S::Op>>> {
    let event = prop_oneof![
        3 => (0..REPLICAS, S::ops()).prop_map(|(at, op)| Event::Write(at, op)),
        2 => (0..REPLICAS, 0..REPLICAS).prop_map(|(from, to)| Event::Merge(from, to)),
    ];
    prop::collection::vec(event, 1..24)
}

/// The values that a history has produced.
pub(crate) struct Played<S: Subject> {
    pub(crate) replicas: Vec<S>,
    pub(crate) oracles: Vec<S::Oracle>,
    pub(crate) deltas: Vec<S>,
    /// Every state that any replica had.
    pub(crate) past: Vec<S>,
}

pub(crate) fn play<S: Subject>(history: &[Event<S::Op>]) -> Played<S> {
    let count = usize::from(REPLICAS);
    let mut played = Played {
        replicas: vec![S::default(); count],
        oracles: vec![S::Oracle::default(); count],
        deltas: Vec::new(),
        past: Vec::new(),
    };
    for (turn, event) in (1u64..).zip(history) {
        let at = match event {
            Event::Write(at, op) => {
                let delta = played.replicas[usize::from(*at)].write(*at, turn, op);
                played.deltas.push(delta);
                S::oracle_write(&mut played.oracles[usize::from(*at)], *at, turn, op);
                *at
            }
            Event::Merge(from, to) => {
                let source = played.replicas[usize::from(*from)].clone();
                played.replicas[usize::from(*to)].merge(&source);
                let source = played.oracles[usize::from(*from)].clone();
                S::oracle_merge(&mut played.oracles[usize::from(*to)], &source);
                *to
            }
        };
        played.past.push(played.replicas[usize::from(at)].clone());
    }
    played
}

pub(crate) fn joined<'a, S: Subject>(parts: impl IntoIterator<Item = &'a S>) -> S {
    let mut whole = S::default();
    for part in parts {
        whole.merge(part);
    }
    whole
}

/// Encodes and decodes as the wire does, with a limit of 64 KiB so that a false length does not allocate.
pub(crate) fn round_trip<S: Subject>(state: &S) -> S {
    let config = bincode::config::standard().with_limit::<65_536>();
    let bytes = bincode::serde::encode_to_vec(state, config).expect("a state encodes");
    let (decoded, used) = bincode::serde::decode_from_slice(&bytes, config).expect("and decodes");
    assert_eq!(used, bytes.len(), "nothing is left over");
    decoded
}

/// Checks each law of a [`Subject`] in 10,000 histories.
macro_rules! laws {
    ($subject:ty) => {
        mod laws_hold {
            use proptest::prelude::*;

            use super::*;
            use $crate::crdt::laws::{history, joined, play, round_trip};

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(10_000))]

                #[test]
                fn merge_commutes_associates_and_is_idempotent(history in history::<$subject>()) {
                    let replicas = play::<$subject>(&history).replicas;
                    let (a, b, c) = (&replicas[0], &replicas[1], &replicas[2]);
                    prop_assert_eq!(joined([a, b]), joined([b, a]));
                    prop_assert_eq!(joined([&joined([a, b]), c]), joined([a, &joined([b, c])]));
                    let mut twice = a.clone();
                    prop_assert!(!twice.merge(a), "merging itself changes nothing");
                    prop_assert_eq!(&twice, a);
                    let mut both = joined([a, b]);
                    prop_assert!(!both.merge(b), "merging again changes nothing");
                }

                #[test]
                fn deltas_in_any_split_order_and_number_equal_the_full_state(
                    history in history::<$subject>(),
                    order in prop::collection::vec((any::<u16>(), 1..4usize), 0..64),
                ) {
                    let played = play::<$subject>(&history);
                    let whole = joined(&played.replicas);
                    let mut left: Vec<$subject> = played.deltas.clone();
                    let mut got = <$subject>::default();
                    for (at, group) in order {
                        if left.is_empty() { break; }
                        // Some deltas are merged with others before they are sent, some are sent again.
                        let at = usize::from(at) % left.len();
                        let end = (at + group).min(left.len());
                        let batch = joined(&left[at..end]);
                        got.merge(&batch);
                        if group > 1 { left.drain(at..end); }
                    }
                    for delta in left.iter().rev() { got.merge(delta); }
                    prop_assert_eq!(got.read(), whole.read());
                    prop_assert_eq!(got, whole);
                }

                #[test]
                fn merging_an_old_state_changes_nothing(history in history::<$subject>()) {
                    let played = play::<$subject>(&history);
                    let whole = joined(&played.replicas);
                    for old in played.past.iter().chain(&played.deltas) {
                        let mut late = whole.clone();
                        prop_assert!(!late.merge(old), "merging an old state changes nothing");
                        prop_assert_eq!(&late, &whole);
                    }
                }

                #[test]
                fn an_encoded_state_decodes_to_the_same(history in history::<$subject>()) {
                    for state in play::<$subject>(&history).replicas {
                        prop_assert_eq!(round_trip(&state), state);
                    }
                }

                #[test]
                fn every_replica_reads_the_same_as_its_oracle(history in history::<$subject>()) {
                    let played = play::<$subject>(&history);
                    for (replica, oracle) in played.replicas.iter().zip(&played.oracles) {
                        prop_assert_eq!(replica.read(), <$subject>::oracle_read(oracle));
                    }
                }
            }
        }
    };
}
pub(crate) use laws;
