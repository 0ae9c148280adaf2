//! The totals store: requests per model and outcome, for ever, over all lives of all nodes.
//!
//! A restarted node is a new writer, so its former lives' rows must be kept or taken over. A row therefore has a *base*:
//! what all lives of that name before `covers` have counted together. Reading takes the row with the highest `covers`, its
//! base, and the counts of the lives from there on; so taking over and forgetting are two steps, and no count is seen
//! twice or lost in between.

use serde::{Deserialize, Serialize};
use smg_types::bounds;
use smg_types::ids::{Generation, ModelId, NodeId, NodeName};

use crate::state::StoreId;
use crate::state::table::{Context, Store, Table};
use crate::state::writers::{Writer, Writers};

/// The totals store.
#[derive(Debug)]
pub enum Totals {}

impl Store for Totals {
    const ID: StoreId = StoreId::Totals;
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

/// What is counted, and on whose behalf.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TotalKey {
    /// Of which model.
    pub model: ModelId,
    /// How they ended.
    pub outcome: Outcome,
    /// Which node served them, in any of its lives.
    pub name: NodeName,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// Answered.
    Ok,
    /// The client's mistake.
    ClientError,
    /// A worker's or this router's.
    ServerError,
    /// Refused by a limit.
    Limited,
    /// The client left.
    Cancelled,
}

/// A node's counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Total {
    /// Requests since the writer started; 0 when it writes on behalf of another.
    pub count: u64,
    /// Requests of earlier lives.
    pub base: u64,
    /// The base holds all lives before this one.
    pub covers: Generation,
}

impl Table<Totals> {
    /// All requests of a model with an outcome.
    pub(crate) fn sum(&self, model: &ModelId, outcome: Outcome, writers: &Writers) -> u64 {
        let first = TotalKey { model: model.clone(), outcome, name: NodeName::least() };
        self.keys_from(&first)
            .take_while(|key| key.model == *model && key.outcome == outcome)
            .fold(0, |sum, key| sum.saturating_add(self.of_name(key, writers)))
    }

    /// All requests under `key`, over all lives of its node.
    fn of_name(&self, key: &TotalKey, writers: &Writers) -> u64 {
        let (base, covers) = self.base(key);
        base.saturating_add(self.counted(key, writers, covers, Generation(u64::MAX)))
    }

    /// What the lives from `from` to before `to` have counted themselves.
    fn counted(&self, key: &TotalKey, writers: &Writers, from: Generation, to: Generation) -> u64 {
        let lives = self.values(key).filter(|(writer, _)| {
            writers.id(*writer).is_some_and(|id| {
                id.name == key.name && id.generation >= from && id.generation < to
            })
        });
        lives.fold(0, |sum, (_, total)| sum.saturating_add(total.count))
    }

    /// The base that counts, and the life before which it covers all.
    fn base(&self, key: &TotalKey) -> (u64, Generation) {
        let best = self.values(key).map(|(_, total)| (total.covers, total.base)).max();
        best.map_or((0, Generation(0)), |(covers, base)| (base, covers))
    }

    /// Whether the row of `of` is contained in that of another writer, which still writes.
    fn contains(&self, key: &TotalKey, of: Writer, former: &NodeId, writers: &Writers) -> bool {
        let Some(row) = self.value_of(key, of) else { return true };
        let others = self.values(key).filter(|(writer, _)| *writer != of);
        others.filter(|(writer, _)| writers.still_writes(*writer)).any(|(_, other)| {
            let counts = key.name != former.name || other.covers > former.generation;
            counts && (other.covers, other.base) >= (row.covers, row.base)
        })
    }

    /// Whether all that `of`, a writer that is over, has counted is contained in rows of others that still write.
    pub(crate) fn is_settled(&self, writers: &Writers, of: Writer) -> bool {
        let Some(former) = writers.id(of) else { return true };
        self.keys_of(of).iter().all(|key| self.contains(key, of, former, writers))
    }

    /// Takes what `of`, a life that is over, has counted into this node's own base, up to `budget` rows. Says how many.
    pub(crate) fn adopt_counts(&mut self, cx: &Context<'_>, of: Writer, budget: usize) -> usize {
        let Some(former) = cx.writers.id(of).cloned() else { return 0 };
        let mut adopted = 0;
        for key in self.keys_of(of).into_iter().take(budget) {
            let (mut base, mut covers) = self.base(&key);
            if key.name == former.name && covers <= former.generation {
                let next = Generation(former.generation.0.saturating_add(1));
                base = base.saturating_add(self.counted(&key, cx.writers, covers, next));
                covers = next;
            }
            let own = self.value_of(&key, cx.me).copied().unwrap_or_default();
            adopted += usize::from(self.put(cx, key, Total { base, covers, ..own }).is_ok());
        }
        adopted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crdt::stamp::HybridClock;
    use crate::state::table::Replica;
    use smg_types::now::Now;

    fn life(generation: u64) -> NodeId {
        NodeId { name: "a".parse().unwrap(), generation: Generation(generation) }
    }

    #[test]
    fn no_count_is_lost_or_seen_twice_while_a_former_life_is_taken_over() {
        let mut writers = Writers::default();
        let mut clock =
            HybridClock::new(crate::crdt::stamp::Author::default(), HybridClock::MAX_AHEAD);
        let key = TotalKey { model: "m".into(), outcome: Outcome::Ok, name: life(1).name };
        let mut table = Table::<Totals>::default();
        let lives: Vec<Writer> = (1..=3).map(|g| writers.intern(&life(g)).unwrap()).collect();
        writers.set_down(lives[2], false);
        for (me, count) in lives.iter().zip([100, 40, 7]) {
            let cx =
                Context { writers: &mut writers, clock: &mut clock, me: *me, now: Now::default() };
            let total = Total { count, ..Total::default() };
            table.put(&cx, key.clone(), total).unwrap();
        }
        let sum =
            |table: &Table<Totals>, writers: &Writers| table.sum(&"m".into(), Outcome::Ok, writers);
        assert_eq!(sum(&table, &writers), 147);
        for former in [lives[1], lives[0]] {
            let cx = Context {
                writers: &mut writers,
                clock: &mut clock,
                me: lives[2],
                now: Now::default(),
            };
            table.adopt_counts(&cx, former, 10);
            assert_eq!(sum(&table, &writers), 147, "taken over, not yet dropped");
            writers.end(former);
            assert!(table.is_settled(&writers, former));
            table.retire(former);
            assert_eq!(sum(&table, &writers), 147, "dropped");
        }
        assert_eq!(table.sizes().entries, 1);
    }

    #[test]
    fn a_row_of_somebody_who_never_was_a_member_here_keeps_nothing() {
        // A joiner is told of two writers that had left before it came, each of which has taken over the other's counts.
        let mut writers = Writers::default();
        let mut clock =
            HybridClock::new(crate::crdt::stamp::Author::default(), HybridClock::MAX_AHEAD);
        let key = TotalKey { model: "m".into(), outcome: Outcome::Ok, name: life(1).name };
        let mut table = Table::<Totals>::default();
        let of = |name: &str| NodeId { name: name.parse().unwrap(), generation: Generation(1) };
        let [b, c] = ["b", "c"].map(|name| writers.intern(&of(name)).unwrap());
        for me in [b, c] {
            let cx = Context { writers: &mut writers, clock: &mut clock, me, now: Now::default() };
            let total = Total { count: 0, base: 50, covers: Generation(2) };
            table.put(&cx, key.clone(), total).unwrap();
        }
        writers.end(c);
        assert!(!table.is_settled(&writers, c), "b may be gone too");
        writers.set_down(b, true);
        assert!(table.is_settled(&writers, c), "b is a member, be it down");
    }
}
