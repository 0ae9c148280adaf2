//! What the nodes agree on: typed stores of rows.
//!
//! Every row is written by one writer (a life of a node) and travels in that writer's log; see `table`. A value is a
//! deterministic function of the living rows under its key, so nodes with the same rows read the same. In *shared* stores
//! (workers, rules, policies, sessions) whoever writes takes the place of what it has seen, and a removal removes what it
//! has seen, so a write that a removal has not seen survives it. In *own* stores each router has its row, and reading adds
//! them up. Stores are fields of [`State`], so a wrong merge rule can't be written.
//!
//! Memory: per row the encoded bytes plus about 250; per store, [`StoreId::max_rows`] × [`StoreId::max_content_bytes`] per
//! writer bounds what a writer may send, [`State::sizes`] says what is held.

pub mod news;
pub mod observation;
pub mod policy;
pub mod prefixes;
pub mod quota;
pub mod row;
pub mod session;
pub mod table;
pub mod totals;
pub mod worker;
pub mod writers;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_types::ids::{ModelId, NodeId, WorkerId};
use smg_types::now::Now;

use crate::crdt::bounded_counter::BoundedCounter;
use crate::crdt::lww_register::LwwRegister;
use crate::crdt::stamp::{Author, HybridClock, millis};
use crate::state::observation::{Load, Loads, Observation, Observations};
use crate::state::policy::{Policies, PolicyRecord};
use crate::state::prefixes::Prefixes;
use crate::state::quota::{
    GrantKey, Granted, RightsStore, Rule, RuleId, Rules, TokenFlow, Tokens, Usage, UsageCount,
    UsageKey,
};
use crate::state::session::{Session, SessionKey, Sessions};
use crate::state::table::{
    BrokenInvariant, Context, LogPosition, RefusedRow, Replica, Sizes, Table,
};
use crate::state::totals::{Total, TotalKey, Totals};
use crate::state::worker::{Override, Stance, WorkerEntry, WorkerRecord, Workers};
use crate::state::writers::{Writer, Writers};

/// How many stores travel in logs.
pub const STORES: usize = 10;

/// A store that travels in logs. The order is that of importance: what a joiner is sent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StoreId {
    /// The workers of the fleet, with their specs and overrides. Shared.
    Workers,
    /// The policy of each model. Shared.
    Policies,
    /// The limits. Shared.
    Rules,
    /// Rights passed on between nodes. Own.
    Rights,
    /// What each node has admitted. Own.
    Usage,
    /// Tokens that each node has reserved and given back. Own.
    Tokens,
    /// Which worker a session sticks to. Shared.
    Sessions,
    /// What each router saw of each worker. Own.
    Observations,
    /// What each router has in flight at each worker. Own.
    Load,
    /// Requests served, for ever. Own.
    Totals,
}

impl StoreId {
    /// All stores, most important first.
    pub const ALL: [Self; STORES] = [
        Self::Workers,
        Self::Policies,
        Self::Rules,
        Self::Rights,
        Self::Usage,
        Self::Tokens,
        Self::Sessions,
        Self::Observations,
        Self::Load,
        Self::Totals,
    ];

    /// The name under which people see it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Workers => "workers",
            Self::Policies => "policies",
            Self::Rules => "rules",
            Self::Rights => "rights",
            Self::Usage => "usage",
            Self::Tokens => "tokens",
            Self::Sessions => "sessions",
            Self::Observations => "observations",
            Self::Load => "load",
            Self::Totals => "totals",
        }
    }

    /// Its place in [`StoreId::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Living rows that one writer may have.
    #[must_use]
    pub const fn max_rows(self) -> usize {
        match self {
            Self::Policies | Self::Rules => 2_048,
            Self::Workers | Self::Observations | Self::Load | Self::Totals => 32_768,
            Self::Rights => 65_536,
            Self::Usage | Self::Tokens | Self::Sessions => 262_144,
        }
    }

    /// Longest content of a row, in bytes.
    #[must_use]
    pub const fn max_content_bytes(self) -> usize {
        match self {
            Self::Workers | Self::Policies => row::MAX_CONTENT_BYTES,
            Self::Rules => 8 * 1024,
            // Room for the removals that a row of a shared store carries.
            Self::Sessions => 4 * 1024,
            Self::Rights | Self::Usage | Self::Tokens | Self::Observations | Self::Load => 512,
            Self::Totals => 512,
        }
    }

    /// Time within which writes are sent as one.
    #[must_use]
    pub const fn coalescing(self) -> Duration {
        match self {
            Self::Workers | Self::Policies | Self::Rules => Duration::from_millis(5),
            Self::Sessions => Duration::from_millis(20),
            Self::Rights => Duration::ZERO,
            Self::Usage | Self::Tokens => Duration::from_millis(100),
            Self::Observations | Self::Load => Duration::from_millis(100),
            Self::Totals => Duration::from_secs(1),
        }
    }

    /// Whether somebody may wait for its writes to be confirmed: an administrator.
    #[must_use]
    pub const fn is_awaited(self) -> bool {
        match self {
            Self::Workers | Self::Policies | Self::Rules => true,
            Self::Rights
            | Self::Usage
            | Self::Tokens
            | Self::Sessions
            | Self::Observations
            | Self::Load
            | Self::Totals => false,
        }
    }

    /// Whether whoever writes takes the place of what it has seen. Otherwise each router has a row of its own.
    #[must_use]
    pub const fn is_shared(self) -> bool {
        match self {
            Self::Workers | Self::Policies | Self::Rules | Self::Sessions => true,
            Self::Rights
            | Self::Usage
            | Self::Tokens
            | Self::Observations
            | Self::Load
            | Self::Totals => false,
        }
    }

    /// The store with this place in [`StoreId::ALL`].
    #[must_use]
    pub fn from_index(index: usize) -> Option<Self> {
        Self::ALL.get(index).copied()
    }

    /// Whether a row means nothing once its router has died: what was measured, not what was decided.
    #[must_use]
    pub const fn ends_with_writer(self) -> bool {
        match self {
            Self::Observations | Self::Load => true,
            Self::Workers
            | Self::Policies
            | Self::Rules
            | Self::Rights
            | Self::Usage
            | Self::Tokens
            | Self::Sessions
            | Self::Totals => false,
        }
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A write of this node.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Registers a worker, or changes what is told about it.
    PutWorker(WorkerRecord),
    /// Lays down an operator's verdict on a worker, or lifts it.
    OverrideWorker(WorkerId, Option<Override>),
    /// Says whether a worker takes part.
    Stance(WorkerId, Stance),
    /// Removes a worker.
    RemoveWorker(WorkerId),
    /// What this router sees of a worker; `None`: no longer.
    Observe(WorkerId, Option<Observation>),
    /// What this router has in flight at a worker; `None`: nothing any more.
    Load(WorkerId, Option<Load>),
    /// Sets the policy of a model; `None`: its default again.
    Policy(ModelId, Option<PolicyRecord>),
    /// Sets a limit; `None`: removes it.
    Rule(RuleId, Option<Rule>),
    /// All that this node has admitted in a window so far.
    Usage(UsageKey, UsageCount),
    /// All tokens that this node has taken and given back in a window so far.
    Tokens(UsageKey, TokenFlow),
    /// All rights that this node has passed on to another in a window so far.
    Grant(GrantKey, Granted),
    /// Binds a session to a worker, or says that it was used again.
    Session(SessionKey, SessionWrite),
    /// Requests that this node has served since it started.
    Total(ModelId, totals::Outcome, u64),
}

/// What happened to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionWrite {
    /// It goes to this worker; a binding that is known already stays. Ends after `ttl` without use.
    Use {
        /// Which worker.
        worker: WorkerId,
        /// How long it is remembered without use.
        ttl: Duration,
    },
    /// It goes to this worker from now on.
    Rebind {
        /// Which worker.
        worker: WorkerId,
        /// How long it is remembered without use.
        ttl: Duration,
    },
    /// It is forgotten.
    End,
}

/// Which write of which store: what a receipt waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The store.
    pub store: StoreId,
    /// This node's version of it.
    pub version: u64,
}

/// A log whose invariants do not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("log of {writer} in {store}: {broken}")]
pub struct BrokenLog {
    /// The store.
    pub store: StoreId,
    /// The writer of the log.
    pub writer: String,
    /// What does not hold.
    pub broken: BrokenInvariant,
}

/// Everything that this node holds of what the cluster agrees on.
#[derive(Debug)]
pub struct State {
    pub(crate) me: Writer,
    pub(crate) writers: Writers,
    pub(crate) clock: HybridClock,
    pub(crate) workers: Table<Workers>,
    pub(crate) policies: Table<Policies>,
    pub(crate) rules: Table<Rules>,
    pub(crate) rights: Table<RightsStore>,
    pub(crate) usage: Table<Usage>,
    pub(crate) tokens: Table<Tokens>,
    pub(crate) sessions: Table<Sessions>,
    pub(crate) observations: Table<Observations>,
    pub(crate) load: Table<Loads>,
    pub(crate) totals: Table<Totals>,
    pub(crate) prefixes: Prefixes,
}

/// A table and what its operations need, borrowed apart.
macro_rules! with_table {
    ($state:expr, $now:expr, $field:ident, $cx:ident) => {{
        let state = $state;
        let $cx = Context {
            writers: &mut state.writers,
            clock: &mut state.clock,
            me: state.me,
            now: $now,
        };
        (&mut state.$field, $cx)
    }};
}

impl State {
    /// The state of a node that knows nothing yet.
    #[must_use]
    pub fn new(me: &NodeId, max_ahead: Duration, prefixes: prefixes::Config) -> Self {
        let mut writers = Writers::default();
        let number = writers.intern(me).expect("the first writer finds room");
        writers.set_down(number, false);
        Self {
            me: number,
            writers,
            clock: HybridClock::new(Author::of(me), max_ahead),
            workers: Table::default(),
            policies: Table::default(),
            rules: Table::default(),
            rights: Table::default(),
            usage: Table::default(),
            tokens: Table::default(),
            sessions: Table::default(),
            observations: Table::default(),
            load: Table::default(),
            totals: Table::default(),
            prefixes: Prefixes::new(prefixes),
        }
    }

    /// The node begins a later life: a new writer with a new clock. `None` when there are too many writers.
    pub(crate) fn begin_life(&mut self, me: &NodeId) -> Option<Writer> {
        let writer = self.writers.intern(me)?;
        self.writers.set_down(writer, false);
        self.clock.hand_over(Author::of(me));
        Some(writer)
    }

    pub(crate) fn replica(&self, store: StoreId) -> &dyn Replica {
        match store {
            StoreId::Workers => &self.workers,
            StoreId::Policies => &self.policies,
            StoreId::Rules => &self.rules,
            StoreId::Rights => &self.rights,
            StoreId::Usage => &self.usage,
            StoreId::Tokens => &self.tokens,
            StoreId::Sessions => &self.sessions,
            StoreId::Observations => &self.observations,
            StoreId::Load => &self.load,
            StoreId::Totals => &self.totals,
        }
    }

    /// The table of `store` and what its operations need.
    pub(crate) fn replica_mut(
        &mut self,
        store: StoreId,
        now: Now,
    ) -> (&mut dyn Replica, Context<'_>) {
        let table: &mut dyn Replica = match store {
            StoreId::Workers => &mut self.workers,
            StoreId::Policies => &mut self.policies,
            StoreId::Rules => &mut self.rules,
            StoreId::Rights => &mut self.rights,
            StoreId::Usage => &mut self.usage,
            StoreId::Tokens => &mut self.tokens,
            StoreId::Sessions => &mut self.sessions,
            StoreId::Observations => &mut self.observations,
            StoreId::Load => &mut self.load,
            StoreId::Totals => &mut self.totals,
        };
        let me = self.me;
        (table, Context { writers: &mut self.writers, clock: &mut self.clock, me, now })
    }

    /// Whether nothing of `writer`, which is over, is left that others' rows do not hold too. What ends with a writer does
    /// not count.
    pub(crate) fn is_spent(&self, writer: Writer) -> bool {
        let decided = StoreId::ALL.into_iter().filter(|store| !store.ends_with_writer());
        decided.into_iter().all(|store| match store {
            StoreId::Totals => self.totals.is_settled(&self.writers, writer),
            _ => self.replica(store).is_spent(&self.writers, writer),
        })
    }

    /// Forgets writers that were retired before `oldest`, if they are too many and nothing needs their names any more.
    pub(crate) fn forget_retired(&mut self, oldest: Duration, now: Now) {
        for writer in self.writers.retired_before(oldest) {
            if StoreId::ALL.iter().all(|store| !self.replica(*store).is_carried(writer)) {
                for store in StoreId::ALL {
                    self.replica_mut(store, now).0.forget(writer);
                }
                self.writers.forget(writer);
            }
        }
    }

    /// Writes a row of this node; `None` when there was nothing to remove.
    pub(crate) fn write(&mut self, now: Now, write: Write) -> Result<Option<Version>, RefusedRow> {
        let stamp = match &write {
            Write::PutWorker(_)
            | Write::OverrideWorker(..)
            | Write::Stance(..)
            | Write::Policy(..)
            | Write::Rule(..)
            | Write::Session(..) => Some(self.clock.tick(now)),
            Write::RemoveWorker(_)
            | Write::Observe(..)
            | Write::Load(..)
            | Write::Usage(..)
            | Write::Tokens(..)
            | Write::Grant(..)
            | Write::Total(..) => None,
        };
        let stamp = stamp.unwrap_or_default();
        let (store, version) = match write {
            Write::PutWorker(record) => {
                let id = record.id;
                let entry = WorkerEntry::told(LwwRegister::of(stamp, record));
                let (table, cx) = with_table!(self, now, workers, cx);
                (StoreId::Workers, Some(table.put_shared(&cx, &id, entry)?))
            }
            Write::OverrideWorker(id, verdict) => {
                let entry = WorkerEntry::overridden(LwwRegister::of(stamp, verdict));
                (StoreId::Workers, Some(self.amend_worker(now, id, entry)?))
            }
            Write::Stance(id, stance) => {
                let entry = WorkerEntry::stands(LwwRegister::of(stamp, stance));
                (StoreId::Workers, Some(self.amend_worker(now, id, entry)?))
            }
            Write::RemoveWorker(id) => {
                let (table, cx) = with_table!(self, now, workers, cx);
                (StoreId::Workers, table.remove_shared(&cx, &id)?)
            }
            Write::Observe(id, seen) => {
                let (table, cx) = with_table!(self, now, observations, cx);
                (StoreId::Observations, put_or_remove(table, &cx, id, seen)?)
            }
            Write::Load(id, load) => {
                let (table, cx) = with_table!(self, now, load, cx);
                (StoreId::Load, put_or_remove(table, &cx, id, load)?)
            }
            Write::Policy(model, policy) => {
                let (table, cx) = with_table!(self, now, policies, cx);
                let version = match policy {
                    Some(policy) => {
                        let value = LwwRegister::of(stamp, policy);
                        Some(table.put_shared(&cx, &model, value)?)
                    }
                    None => table.remove_shared(&cx, &model)?,
                };
                (StoreId::Policies, version)
            }
            Write::Rule(id, rule) => {
                let (table, cx) = with_table!(self, now, rules, cx);
                let version = match rule {
                    Some(rule) => Some(table.put_shared(&cx, &id, LwwRegister::of(stamp, rule))?),
                    None => table.remove_shared(&cx, &id)?,
                };
                (StoreId::Rules, version)
            }
            Write::Usage(key, count) => {
                let (table, cx) = with_table!(self, now, usage, cx);
                (StoreId::Usage, Some(table.put(&cx, key, count)?))
            }
            Write::Tokens(key, flow) => {
                let (table, cx) = with_table!(self, now, tokens, cx);
                (StoreId::Tokens, Some(table.put(&cx, key, flow)?))
            }
            Write::Grant(key, granted) => {
                let (table, cx) = with_table!(self, now, rights, cx);
                (StoreId::Rights, Some(table.put(&cx, key, granted)?))
            }
            Write::Session(key, change) => {
                let (table, cx) = with_table!(self, now, sessions, cx);
                let used_ms = millis(now.wall);
                let version = match change {
                    SessionWrite::Use { worker, ttl } => {
                        let session = Session::first(worker, stamp, used_ms, ttl);
                        Some(table.put_shared(&cx, &key, session)?)
                    }
                    SessionWrite::Rebind { worker, ttl } => {
                        // A binding that is removed first can't win by being the earliest.
                        let before = table.merged(&key);
                        let session = Session::again(before.as_ref(), worker, stamp, used_ms, ttl);
                        Some(table.put_shared(&cx, &key, session)?)
                    }
                    SessionWrite::End => table.remove_shared(&cx, &key)?,
                };
                (StoreId::Sessions, version)
            }
            Write::Total(model, outcome, count) => {
                let name = match self.writers.id(self.me) {
                    Some(id) => id.name.clone(),
                    None => unreachable!("this node is among the writers"),
                };
                let key = TotalKey { name, model, outcome };
                let (table, cx) = with_table!(self, now, totals, cx);
                let before = table.value_of(&key, cx.me).copied().unwrap_or_default();
                let total = Total { count: count.max(before.count), ..before };
                (StoreId::Totals, Some(table.put(&cx, key, total)?))
            }
        };
        Ok(version.map(|version| Version { store, version }))
    }

    /// Changes what is known of a worker that is registered.
    fn amend_worker(
        &mut self,
        now: Now,
        id: WorkerId,
        entry: WorkerEntry,
    ) -> Result<u64, RefusedRow> {
        let (table, cx) = with_table!(self, now, workers, cx);
        if table.values(&id).next().is_none() {
            let reason = format!("worker {id} is not registered");
            return Err(RefusedRow::Invalid { store: StoreId::Workers, reason });
        }
        table.put_shared(&cx, &id, entry)
    }
}

fn put_or_remove<S: table::Store>(
    table: &mut Table<S>,
    cx: &Context<'_>,
    key: S::Key,
    value: Option<S::Value>,
) -> Result<Option<u64>, RefusedRow> {
    match value {
        Some(value) => table.put(cx, key, value).map(Some),
        None => Ok(table.remove(cx, &key)),
    }
}

/// Reading. Everything is O(rows asked for).
impl State {
    /// All workers, in the order of their ids.
    pub fn workers(&self) -> impl Iterator<Item = (WorkerId, WorkerEntry)> {
        self.workers.keys().filter_map(|id| Some((*id, self.workers.merged(id)?)))
    }

    /// A worker, if it is registered.
    #[must_use]
    pub fn worker(&self, id: WorkerId) -> Option<WorkerEntry> {
        self.workers.merged(&id)
    }

    /// What the routers that are believed to run see of a worker.
    pub fn observations(&self, id: WorkerId) -> impl Iterator<Item = (&NodeId, &Observation)> {
        self.of_the_living(self.observations.values(&id))
    }

    /// What the routers that are believed to run have in flight at a worker.
    pub fn loads(&self, id: WorkerId) -> impl Iterator<Item = (&NodeId, &Load)> {
        self.of_the_living(self.load.values(&id))
    }

    fn of_the_living<'a, V: 'a>(
        &'a self,
        values: impl Iterator<Item = (Writer, &'a V)>,
    ) -> impl Iterator<Item = (&'a NodeId, &'a V)> {
        values
            .filter(|(writer, _)| self.writers.is_live(*writer))
            .filter_map(|(writer, value)| Some((self.writers.id(writer)?, value)))
    }

    /// The policy that was set for a model.
    #[must_use]
    pub fn policy(&self, model: &ModelId) -> Option<PolicyRecord> {
        self.policies.merged(model)?.get().cloned()
    }

    /// All policies that were set, in the order of their models.
    pub fn policies(&self) -> impl Iterator<Item = (&ModelId, PolicyRecord)> {
        self.policies.keys().filter_map(|model| Some((model, self.policy(model)?)))
    }

    /// A limit.
    #[must_use]
    pub fn rule(&self, id: &RuleId) -> Option<Rule> {
        self.rules.merged(id)?.get().cloned()
    }

    /// All limits, in the order of their ids.
    pub fn rules(&self) -> impl Iterator<Item = (&RuleId, Rule)> {
        self.rules.keys().filter_map(|id| Some((id, self.rule(id)?)))
    }

    /// What each node has admitted in a window. The sum is what a G-Counter of these slots reads.
    pub fn usage(&self, key: &UsageKey) -> impl Iterator<Item = (&NodeId, UsageCount)> {
        let values = self.usage.values(key);
        values.filter_map(|(writer, count)| Some((self.writers.id(writer)?, *count)))
    }

    /// Tokens reserved in a window and not given back: what a PN-Counter of these slots reads.
    #[must_use]
    pub fn tokens(&self, key: &UsageKey) -> i128 {
        let flows = self.tokens.values(key);
        flows.map(|(_, f)| i128::from(f.taken) - i128::from(f.given_back)).sum()
    }

    /// The rights of a window, from the shares that all nodes were configured with. What was spent is in `usage`.
    #[must_use]
    pub fn rights(
        &self,
        key: &UsageKey,
        shares: impl IntoIterator<Item = (NodeId, u64)>,
        now: Now,
    ) -> BoundedCounter<NodeId> {
        let mut rights = BoundedCounter::new(shares);
        for grant in self.rights.keys_of_window(key) {
            for (writer, granted) in self.rights.values(grant) {
                if granted.expires_ms > millis(now.wall)
                    && let Some(from) = self.writers.id(writer)
                {
                    rights.raise_granted(from.clone(), grant.to.clone(), granted.amount);
                }
            }
        }
        for (node, count) in self.usage(key) {
            rights.raise_spent(node.clone(), count.requests);
        }
        rights
    }

    /// The worker that a session sticks to.
    #[must_use]
    pub fn session(&self, key: SessionKey, now: Now) -> Option<Session> {
        self.sessions.merged(&key).filter(|session| session.ends_ms() > millis(now.wall))
    }

    /// Requests of a model that ended in a way, over all nodes and all their lives.
    #[must_use]
    pub fn total(&self, model: &ModelId, outcome: totals::Outcome) -> u64 {
        self.totals.sum(model, outcome, &self.writers)
    }

    /// Which workers have served a prompt's blocks, as far as others have told.
    #[must_use]
    pub fn prefixes(&self) -> &Prefixes {
        &self.prefixes
    }

    /// Who writes rows.
    #[must_use]
    pub fn writers(&self) -> &Writers {
        &self.writers
    }

    /// How many keys of `store` have a value: of what several routers wrote at once, one. O(keys) in shared stores.
    #[must_use]
    pub fn entries(&self, store: StoreId) -> usize {
        match store {
            StoreId::Workers => self.workers.keys().count(),
            StoreId::Policies => self.policies.keys().count(),
            StoreId::Rules => self.rules.keys().count(),
            StoreId::Sessions => self.sessions.keys().count(),
            StoreId::Rights
            | StoreId::Usage
            | StoreId::Tokens
            | StoreId::Observations
            | StoreId::Load
            | StoreId::Totals => self.sizes(store).entries,
        }
    }

    /// How much a store holds.
    #[must_use]
    pub fn sizes(&self, store: StoreId) -> Sizes {
        self.replica(store).sizes()
    }

    /// A number that is equal on nodes which hold the same living rows of `store`.
    #[must_use]
    pub fn fingerprint(&self, store: StoreId) -> u64 {
        self.replica(store).print()
    }

    /// How far each writer's rows of `store` are applied here.
    pub fn versions(&self, store: StoreId) -> impl Iterator<Item = (&NodeId, u64)> {
        let replica = self.replica(store);
        self.writers.current().filter_map(move |(writer, id)| {
            let version = replica.applied(writer);
            (version > 0).then_some((id, version))
        })
    }

    /// Up to which version of each writer what is not held here is known to be gone, retired writers included: nodes that
    /// are equal in this hold the same rows. For checks.
    pub fn covered(&self, store: StoreId) -> impl Iterator<Item = (&NodeId, u64)> {
        let marks = self.replica(store).marks().into_iter();
        let covered = marks.filter(|mark| mark.version > 0);
        covered.filter_map(|mark| Some((self.writers.id(mark.writer)?, mark.version)))
    }

    /// Where the log of each writer is, in each store: for checks.
    pub fn log_positions(&self) -> impl Iterator<Item = ((StoreId, Writer), LogPosition)> {
        StoreId::ALL.into_iter().flat_map(|store| {
            let logs = self.replica(store).log_positions().into_iter();
            logs.map(move |(writer, position)| ((store, writer), position))
        })
    }

    /// Checks the invariants of every log: for checks, O(logs and tombstones).
    ///
    /// # Errors
    ///
    /// The first log whose invariants do not hold.
    pub fn check_logs(&self) -> Result<(), BrokenLog> {
        StoreId::ALL.into_iter().try_for_each(|store| {
            self.replica(store).check_logs(self.me).map_err(|(writer, broken)| {
                let writer = self.writers.id(writer).map(ToString::to_string).unwrap_or_default();
                BrokenLog { store, writer, broken }
            })
        })
    }

    /// Keys (encoded) and versions of the living rows of `writer` in `store`, up to `version`: for checks.
    #[must_use]
    pub fn living_rows(
        &self,
        store: StoreId,
        writer: &NodeId,
        version: u64,
    ) -> Vec<(Vec<u8>, u64)> {
        let number = self.writers.number(writer);
        number.map_or_else(Vec::new, |writer| self.replica(store).living(writer, version))
    }
}
