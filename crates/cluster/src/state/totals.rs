//! The totals store: all requests ever served, per model and outcome, by all generations of all nodes.
//!
//! A restarted node is a new writer, so the counts of its former generations must be kept. A row therefore has a *base*:
//! the sum that all generations of its name before `covers` have counted. A reader takes the row with the highest
//! `covers`, and adds its base to the counts of the generations from `covers` on. Adopting a count into a base and
//! dropping the row that it came from are therefore two steps, and between them no count is lost or read twice.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_types::bounds;
use smg_types::ids::{Generation, ModelId, NodeId, NodeName};

#[cfg(test)]
use crate::state::golden::Golden;
use crate::state::operations::{Draw, StoreOperations};
use crate::state::row;
use crate::state::store::{Ownership, Retention, Store};
use crate::state::store_id::StoreId;
use crate::state::table::{NodeParts, RefusedRow, Table};
use crate::state::writers::{Writer, Writers};

/// The totals store.
#[derive(Debug)]
pub enum Totals {}

impl Store for Totals {
    const NAME: &'static str = "totals";
    const ID: StoreId = StoreId::Totals;
    const OWNERSHIP: Ownership = Ownership::PerNode;
    const RETENTION: Retention = Retention::Never;
    const COALESCING: Duration = Duration::from_secs(1);
    const MAX_ROWS: usize = 32_768;
    const MAX_CONTENT_BYTES: usize = 512;
    const IS_AWAITED: bool = false;
    const IS_IN_USE: bool = true;
    const IS_DURABLE: bool = false;

    type Key = TotalKey;
    type Value = Total;

    fn validate(key: &TotalKey, _: &Total) -> Result<(), String> {
        let bytes = key.model.as_str().len();
        let most = *bounds::MODEL_NAME_BYTES.end();
        if bytes > most {
            Err(format!("model name of {bytes} bytes, at most {most}"))
        } else {
            Ok(())
        }
    }
}

impl StoreOperations for Totals {
    type Write = TotalWrite;

    fn write(
        table: &mut Table<Self>,
        parts: &mut NodeParts<'_>,
        TotalWrite { model, outcome, count }: TotalWrite,
    ) -> Result<Option<u64>, RefusedRow> {
        let id = parts.writers.id(parts.me).expect("this node is among the writers");
        let key = TotalKey { name: id.name.clone(), model, outcome };
        let before = table.value_of(&key, parts.me).copied().unwrap_or_default();
        let total = Total { count: count.max(before.count), ..before };
        table.put(parts, key, total).map(Some)
    }

    fn adopt(table: &mut Table<Self>, parts: &NodeParts<'_>, of: Writer, budget: usize) -> usize {
        table.adopt_counts(parts, of, budget)
    }

    fn is_spent(table: &Table<Self>, writers: &Writers, of: Writer) -> bool {
        table.are_counts_adopted(writers, of)
    }

    /// Of the sums. Nodes that read the same may hold different rows, because each node drops a row whose count is in
    /// another row's base at a time of its own.
    fn reading(table: &Table<Self>, writers: &Writers) -> u64 {
        let mut sums: BTreeMap<(&ModelId, Outcome), u64> = BTreeMap::new();
        for key in table.keys() {
            let sum = sums.entry((&key.model, key.outcome)).or_default();
            *sum = sum.saturating_add(table.of_name(key, writers));
        }
        sums.into_iter().fold(0, |hash, (of, sum)| {
            xxhash_rust::xxh3::xxh3_64_with_seed(&row::encode_key(&(of, sum)), hash)
        })
    }

    fn sample(draw: &mut Draw<'_>) -> Option<TotalWrite> {
        let count = u64::from(draw.number);
        Some(TotalWrite { model: "m".into(), outcome: Outcome::Ok, count })
    }

    #[cfg(test)]
    fn golden() -> Golden {
        let write = TotalWrite { model: "m".into(), outcome: Outcome::Limited, count: 300 };
        Golden {
            writes: vec![write.into()],
            key: "016d03056e6f646531",
            content: "0101fb2c0100000000",
        }
    }
}

/// The requests of a model with an outcome that this node has counted since it started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TotalWrite {
    /// The model.
    pub model: ModelId,
    /// The outcome.
    pub outcome: Outcome,
    /// The count. A number below the one written last changes nothing.
    pub count: u64,
}

/// A count's model and outcome, and the node that counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TotalKey {
    /// The model.
    pub model: ModelId,
    /// The outcome.
    pub outcome: Outcome,
    /// The name of the node that served the requests, in any generation.
    pub name: NodeName,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// The worker answered.
    Ok,
    /// The request was refused because of a mistake of the client.
    ClientError,
    /// A worker or this router failed.
    ServerError,
    /// A limit refused the request.
    Limited,
    /// The client disconnected.
    Cancelled,
}

/// The counts of a row for the node in its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Total {
    /// Requests that the writer has served since it started; 0 if the row is of another node.
    pub count: u64,
    /// Requests that generations before `covers` have served.
    pub base: u64,
    /// The base includes all generations before this one.
    pub covers: Generation,
}

impl Table<Totals> {
    /// All requests of a model with an outcome, saturating.
    pub(crate) fn sum(&self, model: &ModelId, outcome: Outcome, writers: &Writers) -> u64 {
        let first = TotalKey { model: model.clone(), outcome, name: NodeName::least() };
        self.keys_from(&first)
            .take_while(|key| key.model == *model && key.outcome == outcome)
            .fold(0, |sum, key| sum.saturating_add(self.of_name(key, writers)))
    }

    /// All requests under `key`, by all generations of its node.
    fn of_name(&self, key: &TotalKey, writers: &Writers) -> u64 {
        let (base, covers) = self.base(key);
        base.saturating_add(self.counted(key, writers, covers, Generation(u64::MAX)))
    }

    /// The counts of the generations from `from` up to, but not including, `to`.
    fn counted(&self, key: &TotalKey, writers: &Writers, from: Generation, to: Generation) -> u64 {
        let generations = self.values(key).filter(|(writer, _)| {
            writers.id(*writer).is_some_and(|id| {
                id.name == key.name && id.generation >= from && id.generation < to
            })
        });
        generations.fold(0, |sum, (_, total)| sum.saturating_add(total.count))
    }

    /// The base with the highest `covers`, and that `covers`.
    fn base(&self, key: &TotalKey) -> (u64, Generation) {
        let best = self.values(key).map(|(_, total)| (total.covers, total.base)).max();
        best.map_or((0, Generation(0)), |(covers, base)| (base, covers))
    }

    /// Whether the row of another writer that still writes includes the count and the base of the row of `of`.
    /// `former` is the id of `of`.
    fn is_included(&self, key: &TotalKey, of: Writer, former: &NodeId, writers: &Writers) -> bool {
        let Some(row) = self.value_of(key, of) else { return true };
        let others = self.values(key).filter(|(writer, _)| *writer != of);
        others.filter(|(writer, _)| writers.still_writes(*writer)).any(|(_, other)| {
            let counts = key.name != former.name || other.covers > former.generation;
            counts && (other.covers, other.base) >= (row.covers, row.base)
        })
    }

    /// Whether rows of writers that still write include all counts of `of`, a writer that has ended.
    pub(crate) fn are_counts_adopted(&self, writers: &Writers, of: Writer) -> bool {
        let Some(former) = writers.id(of) else { return true };
        self.keys_of(of).iter().all(|key| self.is_included(key, of, former, writers))
    }

    /// Adds the counts of `of`, a writer that has ended, to bases of this node's rows, up to `budget` rows, except those
    /// that a row of a writer that still writes includes already; returns how many.
    pub(crate) fn adopt_counts(
        &mut self,
        parts: &NodeParts<'_>,
        of: Writer,
        budget: usize,
    ) -> usize {
        let Some(former) = parts.writers.id(of).cloned() else { return 0 };
        let mut adopted = 0;
        let keys = self.keys_of(of).into_iter();
        let missing = |key: &TotalKey| !self.is_included(key, of, &former, parts.writers);
        let missing: Vec<TotalKey> = keys.filter(missing).take(budget).collect();
        for key in missing {
            let (mut base, mut covers) = self.base(&key);
            if key.name == former.name && covers <= former.generation {
                let next = Generation(former.generation.0.saturating_add(1));
                base = base.saturating_add(self.counted(&key, parts.writers, covers, next));
                covers = next;
            }
            let own = self.value_of(&key, parts.me).copied().unwrap_or_default();
            adopted += usize::from(self.put(parts, key, Total { base, covers, ..own }).is_ok());
        }
        adopted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crdt::stamp::HybridClock;
    use crate::state::table::Replica;
    use crate::state::table::tests::own::{OwnSample, events, play};
    use crate::state::table::tests::writer;
    use smg_types::now::Now;

    fn generation(generation: u64) -> NodeId {
        NodeId { name: "a".parse().unwrap(), generation: Generation(generation) }
    }

    #[test]
    fn no_count_is_lost_or_read_twice_while_a_former_generation_is_adopted() {
        let mut writers = Writers::default();
        let mut clock = HybridClock::new(crate::crdt::stamp::Author::default());
        let key = TotalKey { model: "m".into(), outcome: Outcome::Ok, name: generation(1).name };
        let mut table = Table::<Totals>::default();
        let generations: Vec<Writer> =
            (1..=3).map(|g| writers.intern(&generation(g)).unwrap()).collect();
        writers.note_member(generations[2], false);
        for (me, count) in generations.iter().zip([100, 40, 7]) {
            let parts = NodeParts {
                writers: &mut writers,
                clock: &mut clock,
                me: *me,
                now: Now::default(),
            };
            let total = Total { count, ..Total::default() };
            table.put(&parts, key.clone(), total).unwrap();
        }
        let sum =
            |table: &Table<Totals>, writers: &Writers| table.sum(&"m".into(), Outcome::Ok, writers);
        assert_eq!(sum(&table, &writers), 147);
        for former in [generations[1], generations[0]] {
            let parts = NodeParts {
                writers: &mut writers,
                clock: &mut clock,
                me: generations[2],
                now: Now::default(),
            };
            table.adopt_counts(&parts, former, 10);
            assert_eq!(sum(&table, &writers), 147, "adopted, not yet dropped");
            writers.end(former);
            assert!(table.are_counts_adopted(&writers, former));
            table.retire(former);
            assert_eq!(sum(&table, &writers), 147, "dropped");
        }
        assert_eq!(table.sizes().entries, 1);
    }

    #[test]
    fn counts_are_adopted_a_few_rows_at_a_time_and_each_once() {
        let mut writers = Writers::default();
        let mut clock = HybridClock::new(crate::crdt::stamp::Author::default());
        let mut table = Table::<Totals>::default();
        let [former, me] = [1, 2].map(|g| writers.intern(&generation(g)).unwrap());
        writers.note_member(me, false);
        let now = Now::default();
        let parts = NodeParts { writers: &mut writers, clock: &mut clock, me: former, now };
        for model in ["m1", "m2", "m3"] {
            let name = generation(1).name;
            let key = TotalKey { model: model.into(), outcome: Outcome::Ok, name };
            table.put(&parts, key, Total { count: 5, ..Total::default() }).unwrap();
        }
        let parts = NodeParts { me, ..parts };
        assert_eq!([(); 3].map(|()| table.adopt_counts(&parts, former, 2)), [2, 1, 0]);
        assert!(table.are_counts_adopted(parts.writers, former));
    }

    #[test]
    fn a_row_of_a_writer_that_was_never_a_member_here_is_not_enough() {
        // A node that joins receives rows of two writers that had left before, each of which has adopted the other's counts.
        let mut writers = Writers::default();
        let mut clock = HybridClock::new(crate::crdt::stamp::Author::default());
        let key = TotalKey { model: "m".into(), outcome: Outcome::Ok, name: generation(1).name };
        let mut table = Table::<Totals>::default();
        let of = |name: &str| NodeId { name: name.parse().unwrap(), generation: Generation(1) };
        let [b, c] = ["b", "c"].map(|name| writers.intern(&of(name)).unwrap());
        for me in [b, c] {
            let parts =
                NodeParts { writers: &mut writers, clock: &mut clock, me, now: Now::default() };
            let total = Total { count: 0, base: 50, covers: Generation(2) };
            table.put(&parts, key.clone(), total).unwrap();
        }
        writers.end(c);
        assert!(!table.are_counts_adopted(&writers, c), "b may have left too");
        writers.note_member(b, true);
        assert!(table.are_counts_adopted(&writers, c), "b is a member, although it is down");
    }

    impl OwnSample for Totals {
        fn key(at: usize, n: u8) -> TotalKey {
            let model = ModelId::new(format!("m{n}"));
            TotalKey { model, outcome: Outcome::Ok, name: writer(at).name }
        }

        fn value(number: u64) -> Total {
            Total { count: number, base: 0, covers: Generation(0) }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn totals_are_everywhere_as_written_last(events in events()) {
            play::<Totals>(&events)?;
        }
    }
}
