//! The limits of this router in its cluster: brings rules, counts and grants from the shared state to the limiter, and the rows
//! of the limits' engine into the shared state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use smg_cluster::Node;
use smg_cluster::membership::MemberState;
use smg_cluster::state::beat::BeatWrite;
use smg_cluster::state::rights::{GrantKey, GrantWrite, Granted};
use smg_cluster::state::roster::RosterWrite;
use smg_cluster::state::rule::{RuleId, RuleRecord, RuleWrite};
use smg_cluster::state::stores::ChangedKeys;
use smg_cluster::state::tokens::{TokenFlow, TokenWrite};
use smg_cluster::state::usage::{UsageCount, UsageKey, UsageWrite};
use smg_cluster::state::{Version, Write};
use smg_lease::{Quorum, Voters};
use smg_limits::engine::{Config, Engine, Turn};
use smg_limits::limiter::Limiter;
use smg_limits::roster::{Member, Shares};
use smg_limits::rows::{LIFE_MS, MeterId, Report, Row, SubjectId, WindowKey};
use smg_limits::rule::{Kind, Rule, RuleDocument, hash};
use smg_mesh as mesh;
use smg_runtime::clock::Clock;
use smg_types::ids::NodeId;
use smg_types::now::Now;
use tokio::sync::Notify;
use tracing::{debug, info, warn};

use super::gate::Gate;

/// The meter of rows of the rights store that hold no grant, but when a life of their writer began or ended.
const LIVES: u64 = 0;

/// Time between two turns of the engine while there are rules.
const TURN: Duration = Duration::from_millis(100);

/// The same time while there are none, when only the roster is kept up to date.
const QUIET_TURN: Duration = Duration::from_millis(300);

/// Time between two sweeps of the subjects that are no longer counted.
const SWEEP: Duration = Duration::from_secs(5);

/// Pause after a turn for which the node had no time.
const AFTER_TIMEOUT: Duration = Duration::from_secs(1);

/// Time between two warnings that limits are not divided yet.
const UNDIVIDED: Duration = Duration::from_secs(10);

/// Least time between two turns that requests without rights ask for.
const LEAST_TURN: Duration = Duration::from_millis(2);

/// The routers among which limits are divided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Division {
    /// How often the division has changed.
    pub version: u64,
    /// The number of shares.
    pub size: u32,
    /// The routers that have one.
    pub routers: Vec<String>,
    /// Whether all of them are known to go by this division.
    pub is_settled: bool,
}

/// The limits of this router.
#[derive(Debug, Clone)]
pub struct Limits {
    limiter: Arc<Limiter>,
    config: Config,
    /// The rules that this router's configuration names.
    configured: Arc<[Rule]>,
    engine: Arc<Mutex<Option<Engine>>>,
    /// A request lacks rights that another router may have, or the rules have changed.
    wake: Arc<Notify>,
}

impl Limits {
    /// The limits of a router whose configuration names the rules `configured`.
    #[must_use]
    pub fn new(config: Config, configured: Vec<Rule>) -> Self {
        let limiter = Arc::new(Limiter::default());
        let wake = Arc::new(Notify::new());
        let waker = Arc::clone(&wake);
        limiter.on_shortage(move || waker.notify_one());
        Self { limiter, config, configured: configured.into(), engine: Arc::default(), wake }
    }

    /// What every request passes.
    #[must_use]
    pub fn limiter(&self) -> &Arc<Limiter> {
        &self.limiter
    }

    /// The number of shares that a limit is divided into.
    #[must_use]
    pub fn size(&self) -> u32 {
        let roster = self.with_engine(|engine| engine.roster().map(|(roster, _)| roster.size));
        roster.flatten().or(self.config.expected).unwrap_or(1)
    }

    /// The routers among which limits are divided.
    #[must_use]
    pub fn division(&self) -> Option<Division> {
        let division = |engine: &Engine| {
            let (roster, is_settled) = engine.roster()?;
            let routers = roster.places.iter().map(|place| place.name.to_string()).collect();
            Some(Division { version: roster.version, size: roster.size, routers, is_settled })
        };
        self.with_engine(division).flatten()
    }

    /// What the other routers have reported of a window, by router.
    #[must_use]
    pub fn used_elsewhere(&self, key: &WindowKey) -> BTreeMap<String, u64> {
        let mut used = BTreeMap::new();
        for (node, report) in self.with_engine(|engine| engine.reports(key)).unwrap_or_default() {
            *used.entry(node.name.to_string()).or_default() += report.used();
        }
        used
    }

    /// How many subjects this router exchanges with others, and how many windows.
    #[must_use]
    pub fn exchanged(&self) -> (usize, usize) {
        self.with_engine(Engine::exchanged).unwrap_or_default()
    }

    /// Does something with the engine, if it has been started.
    fn with_engine<T>(&self, read: impl FnOnce(&Engine) -> T) -> Option<T> {
        self.engine.lock().as_ref().map(read)
    }

    /// Applies changes of the shared state.
    pub(super) fn apply(
        &self,
        node: &mut Node,
        changed: &ChangedKeys,
        members: bool,
        is_complete: bool,
        now: Now,
    ) {
        let is_concerned = members
            || !changed.rules.is_empty()
            || !changed.rosters.is_empty()
            || !changed.beats.is_empty()
            || !changed.usage.is_empty()
            || !changed.tokens.is_empty()
            || !changed.rights.is_empty();
        if !is_concerned {
            return;
        }
        let mut engine = self.engine.lock();
        let engine = current(&mut engine, node, self.config, now);
        if !changed.rules.is_empty() {
            self.limiter.set_rules(rules(node));
            engine.rules_changed();
            self.wake.notify_one();
        }
        self.receive(engine, node, changed, now);
        self.take_turn(engine, node, is_complete, now);
    }

    /// Passes the rows of the changed keys to the engine.
    fn receive(&self, engine: &mut Engine, node: &Node, changed: &ChangedKeys, now: Now) {
        let limiter = &*self.limiter;
        let state = node.state();
        let me = engine.me().clone();
        if !changed.rosters.is_empty()
            && let Some(roster) = state.roster()
        {
            engine.receive(&me, Row::Roster(roster), limiter, now);
        }
        if !changed.beats.is_empty() {
            for (from, beat) in state.beats() {
                engine.receive(from, Row::Beat(beat.clone()), limiter, now);
            }
        }
        for key in &changed.usage {
            for (from, count) in state.usage(key) {
                let report = Report { taken: count.requests, returned: 0, wanted: count.wanted };
                engine.receive(from, Row::Report(window_of(key), report), limiter, now);
            }
        }
        for key in &changed.tokens {
            for (from, TokenFlow { taken, given_back, wanted }) in state.token_flows(key) {
                let report = Report { taken, returned: given_back, wanted };
                engine.receive(from, Row::Report(window_of(key), report), limiter, now);
            }
        }
        for key in &changed.rights {
            for (from, granted) in state.granted(key) {
                if key.window.rule == LIVES {
                    let until_ms = Some(granted.amount).filter(|until| *until > 0);
                    let row = Row::Life { at_ms: key.window.start_ms, until_ms };
                    engine.receive(from, row, limiter, now);
                    continue;
                }
                let (key, to) = (window_of(&key.window), key.to.clone());
                engine.receive(from, Row::Grant { key, to, units: granted.amount }, limiter, now);
            }
        }
    }

    /// A turn of the engine.
    pub(super) fn turn(&self, node: &mut Node, is_complete: bool, now: Now) {
        let mut engine = self.engine.lock();
        let engine = current(&mut engine, node, self.config, now);
        self.take_turn(engine, node, is_complete, now);
    }

    fn take_turn(&self, engine: &mut Engine, node: &mut Node, is_complete: bool, now: Now) {
        let members = members(node);
        let turn = Turn { now, cluster_ms: cluster_ms(now), members: &members, is_complete };
        let rows = engine.turn(&turn, &self.limiter);
        let quorum = quorum_of(engine.divisions());
        if node.leases().is_some_and(|leases| *leases.quorum() != quorum) {
            node.update_leases(now, |leases, at| leases.set_quorum(at, quorum));
        }
        // The engine writes again what matters and has changed: nobody waits for these rows.
        let _versions = self.write(node, rows, now);
    }

    /// Hands the rights of this router to the others, because it takes no more requests. Returns the versions of the rows.
    pub(super) fn leave(&self, node: &mut Node, now: Now) -> Vec<Version> {
        let mut engine = self.engine.lock();
        let engine = current(&mut engine, node, self.config, now);
        let members = members(node);
        let turn = Turn { now, cluster_ms: cluster_ms(now), members: &members, is_complete: true };
        let rows = engine.leave(&turn, &self.limiter);
        self.write(node, rows, now)
    }

    fn write(&self, node: &mut Node, rows: Vec<Row>, now: Now) -> Vec<Version> {
        let me = node.replication().me().clone();
        let mut versions = Vec::new();
        for row in rows {
            let Some(write) = self.write_of(&me, row) else { continue };
            let store = write.store();
            match node.update(now, write) {
                Ok(written) => versions.extend(written),
                // Rights that were granted and not written are unused. That is the safe side.
                Err(error) => debug!(%store, %error, "a row of the limits was refused"),
            }
        }
        versions
    }

    fn write_of(&self, me: &NodeId, row: Row) -> Option<Write> {
        Some(match row {
            Row::Roster(roster) => {
                info!(
                    version = roster.version,
                    size = roster.size,
                    routers = roster.places.len(),
                    "limits are divided among these routers"
                );
                RosterWrite(roster).into()
            }
            Row::Beat(beat) => BeatWrite(beat).into(),
            Row::Report(window, report) => {
                let key = key_of(&window);
                let Report { taken, returned, wanted } = report;
                match self.limiter.kind(window.meter)? {
                    Kind::Requests => {
                        UsageWrite { key, count: UsageCount { requests: report.used(), wanted } }
                            .into()
                    }
                    Kind::Tokens => {
                        TokenWrite { key, flow: TokenFlow { taken, given_back: returned, wanted } }
                            .into()
                    }
                }
            }
            Row::Life { at_ms, until_ms } => {
                let window = UsageKey {
                    rule: LIVES,
                    subject: hash(me.name.as_str()),
                    start_ms: at_ms,
                    length_ms: LIFE_MS / 2,
                };
                let granted = Granted {
                    amount: until_ms.unwrap_or(0),
                    expires_ms: at_ms + u64::from(LIFE_MS),
                };
                GrantWrite { key: GrantKey { window, to: me.clone() }, granted }.into()
            }
            Row::Grant { key: window, to, units } => {
                let key = GrantKey { window: key_of(&window), to };
                let granted = Granted { amount: units, expires_ms: window.end_ms() };
                GrantWrite { key, granted }.into()
            }
        })
    }

    /// Writes the rules that the configuration names, as far as the cluster lacks them. A rule that administrators have
    /// changed or removed stays so, unless the configuration has changed since.
    pub(super) fn announce(&self, node: &mut Node, now: Now) {
        for rule in self.configured.iter() {
            let Some(record) = configured_rule(node, rule) else { continue };
            let id = RuleId(rule.id.clone());
            if let Err(error) = node.update(now, RuleWrite { id, rule: Some(record) }) {
                warn!(rule = %rule.id, %error, "the cluster refuses this configured rule");
            }
        }
    }

    /// Takes turns until the task is dropped.
    pub(super) async fn run(
        &self,
        mesh: &mesh::Handle,
        gate: &Arc<Gate>,
        clock: Clock,
    ) -> std::convert::Infallible {
        let mut swept = clock.mono();
        let mut undivided_since = None;
        loop {
            let is_idle = self.limiter.is_idle();
            if is_idle && !mesh.is_networked() {
                // A router alone does nothing without rules.
                self.wake.notified().await;
            }
            let gate = Arc::clone(gate);
            let limits = self.clone();
            let visit = mesh.visit(move |node, _, now| limits.turn(node, gate.is_open(), now));
            if visit.await.is_err() {
                // A node that has failed ends this task from outside; a busy one must not get more to do.
                tokio::time::sleep(AFTER_TIMEOUT).await;
            }
            let now = clock.now();
            self.warn_while_undivided(&mut undivided_since, now);
            if now.mono.saturating_sub(swept) >= SWEEP {
                swept = now.mono;
                self.limiter.sweep(now);
            }
            // The pace of the turns: at most one in this time, however many requests lack rights.
            tokio::time::sleep(LEAST_TURN).await;
            let pause = if is_idle { QUIET_TURN } else { TURN };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.wake.notified() => {}
            }
        }
    }
}

impl Limits {
    /// Logs once in a while that requests are refused because nothing is divided among the routers yet.
    fn warn_while_undivided(&self, since: &mut Option<Duration>, now: Now) {
        if self.limiter.is_idle() || self.division().is_some_and(|division| division.is_settled) {
            *since = None;
            return;
        }
        let began = *since.get_or_insert(now.mono);
        if now.mono.saturating_sub(began) < UNDIVIDED {
            return;
        }
        *since = Some(now.mono);
        let expected = self.config.expected;
        warn!(
            ?expected,
            "limits are not divided among the routers yet, so that requests that rules concern are refused: more than half \
             of --mesh-expected-replicas routers must be in contact, and all routers that have a share"
        );
    }
}

/// The routers that vote on leases: those among which limits are divided.
fn quorum_of(divisions: Vec<Shares>) -> Quorum {
    let voters = divisions.into_iter().map(|Shares { size, names }| Voters { size, names });
    Quorum(voters.collect())
}

/// The record to write for a rule that the configuration names; `None`: the cluster has it as this configuration wants it, or
/// an administrator has changed or removed it since.
pub(super) fn configured_rule(node: &Node, rule: &Rule) -> Option<RuleRecord> {
    let document = text(rule.document());
    let configured = Some(hash(&document));
    let mine = RuleRecord { document: Some(document), configured };
    match node.state().rule(&RuleId(rule.id.clone())) {
        None => Some(mine),
        Some(known) if known.configured == configured => None,
        Some(known) if known.configured.is_none() => Some(RuleRecord { configured, ..known }),
        Some(_) => Some(mine),
    }
}

/// The document of a rule as text.
pub(super) fn text(document: &RuleDocument) -> String {
    serde_json::to_string(document).unwrap_or_default()
}

/// The engine under this node's present generation.
fn current<'a>(
    engine: &'a mut Option<Engine>,
    node: &Node,
    config: Config,
    now: Now,
) -> &'a mut Engine {
    let me = node.replication().me();
    if engine.as_ref().is_none_or(|engine| engine.me() != me) {
        *engine = None;
    }
    engine.get_or_insert_with(|| Engine::new(me.clone(), config, now))
}

/// The rules of the shared state that this version understands.
fn rules(node: &Node) -> Vec<Rule> {
    let rule = |(id, record): (&RuleId, RuleRecord)| {
        let document = serde_json::from_str::<RuleDocument>(&record.document?);
        let rule = document.map_err(|error| error.to_string());
        let rule = rule.and_then(|document| Rule::new(document).map_err(|error| error.to_string()));
        rule.map_err(|error| warn!(rule = %id.0, %error, "the rule that is set can't be used")).ok()
    };
    node.state().rules().filter_map(rule).collect()
}

fn members(node: &Node) -> Vec<Member> {
    node.members()
        .map(|member| Member {
            is_alive: matches!(member.state, MemberState::Alive | MemberState::Suspected),
            node: member.node,
        })
        .collect()
}

fn cluster_ms(now: Now) -> u64 {
    u64::try_from(now.wall.as_millis()).unwrap_or(u64::MAX)
}

const fn window_of(key: &UsageKey) -> WindowKey {
    WindowKey {
        meter: MeterId(key.rule),
        subject: SubjectId(key.subject),
        start_ms: key.start_ms,
        length_ms: key.length_ms,
    }
}

const fn key_of(window: &WindowKey) -> UsageKey {
    UsageKey {
        rule: window.meter.0,
        subject: window.subject.0,
        start_ms: window.start_ms,
        length_ms: window.length_ms,
    }
}
