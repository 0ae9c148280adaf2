//! What the configuration declares of the shared state, workers and rules of limits, and what a reload changes in it.
//!
//! A reload writes only what differs between the configuration that was applied last and the new one, by the rules of a
//! start: what administrators have removed stays removed, and what they have changed stays changed unless the configuration
//! itself has changed. In addition, a reload withdraws what the configuration no longer declares: a worker drains, as after
//! `DELETE /workers/{id}`, and a rule ends. What administrators have registered themselves, or another router's configuration
//! declares differently, stays.

use smg_cluster::Node;
use smg_cluster::state::Write;
use smg_cluster::state::rule::{RuleId, RuleWrite};
use smg_cluster::state::worker::{AdminState, WorkerRecord, WorkerWrite};
use smg_limits::rule::{Rule, hash};
use smg_types::ids::WorkerId;
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;

use super::admin::{Admin, WriteError};
use super::limits::{configured_rule, text};
use super::startup::configured_record;

/// What a configuration declares of the shared state.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Declared {
    /// The workers, each one once.
    pub workers: Vec<WorkerSpec>,
    /// The rules of limits, each id once.
    pub rules: Vec<Rule>,
}

/// The result of a changed declaration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Redeclared {
    /// What has changed in the shared state.
    pub changed: Vec<String>,
    /// What stays as it is although the declaration of it has changed, and why.
    pub kept: Vec<(String, String)>,
}

impl Declared {
    fn worker(&self, id: WorkerId) -> Option<&WorkerSpec> {
        self.workers.iter().find(|spec| spec.id() == id)
    }

    fn rule(&self, id: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.id == id)
    }
}

impl Admin {
    /// Writes the difference between two declarations, `before` and `wanted`, into the shared state. When this returns, this
    /// router routes by the result.
    ///
    /// # Errors
    /// If this router may not write now. Then nothing has changed.
    pub async fn redeclare(
        &self,
        before: Declared,
        wanted: Declared,
    ) -> Result<Redeclared, WriteError> {
        if before == wanted {
            return Ok(Redeclared::default());
        }
        let redeclared = self.write_with(move |node, now| {
            let mut redeclared = Redeclared::default();
            redeclare_workers(node, &before, &wanted, now, &mut redeclared);
            redeclare_rules(node, &before, &wanted, now, &mut redeclared);
            redeclared
        });
        let redeclared = redeclared.await?;
        // The next visit takes place after the follower has applied the writes to routing.
        self.write_with(|_, _| ()).await?;
        Ok(redeclared)
    }
}

const DISMISSED: &str =
    "an administrator has removed it, and it stays removed: register it again through the API";
const SET_BY_OTHERS: &str =
    "an administrator has registered it, or the configuration of another router declares it";
/// Usually another router has read the same configuration before.
const ALREADY: &str = " (the cluster has this version of it already)";

fn redeclare_workers(
    node: &mut Node,
    before: &Declared,
    wanted: &Declared,
    now: Now,
    redeclared: &mut Redeclared,
) {
    for spec in &wanted.workers {
        let old = before.worker(spec.id());
        if old == Some(spec) {
            continue;
        }
        let entry = node.state().worker(spec.id());
        if entry.is_some_and(|entry| entry.admin_state() == AdminState::Dismissed) {
            redeclared.keep(format!("worker {}", spec.url), DISMISSED);
            continue;
        }
        let rekeyed = old.and_then(|old| rekeyed_record(node, old, spec));
        let what = match (&rekeyed, old) {
            (Some(_), _) => format!("key of worker {}", spec.url),
            (None, Some(_)) => format!("worker {} changed", spec.url),
            (None, None) => format!("worker {} added", spec.url),
        };
        match rekeyed.or_else(|| configured_record(node, spec)) {
            Some(record) => redeclared.write(node, now, what, WorkerWrite::Put(record)),
            None => redeclared.changed.push(format!("{what}{ALREADY}")),
        }
    }
    for spec in before.workers.iter().filter(|spec| wanted.worker(spec.id()).is_none()) {
        let Some(entry) = node.state().worker(spec.id()) else { continue };
        if entry.admin_state() == AdminState::Dismissed {
            continue;
        }
        let mine = WorkerRecord::configured(spec).configuration();
        let is_mine = entry.record().is_some_and(|record| {
            record.registration().is_none() && record.configuration() == mine
        });
        match is_mine {
            true => {
                let what = format!("worker {} removed", spec.url);
                redeclared.write(node, now, what, WorkerWrite::Remove(spec.id()));
            }
            false => redeclared.keep(format!("worker {}", spec.url), SET_BY_OTHERS),
        }
    }
}

/// The record of a worker whose declaration differs from that in `old` in the key alone: the other fields stay as
/// administrators have set them.
fn rekeyed_record(node: &Node, old: &WorkerSpec, spec: &WorkerSpec) -> Option<WorkerRecord> {
    let without_key = |spec: &WorkerSpec| WorkerSpec { api_key: None, ..spec.clone() };
    if old.api_key == spec.api_key || without_key(old) != without_key(spec) {
        return None;
    }
    let entry = node.state().worker(spec.id())?;
    let known = entry.record()?;
    let registered = WorkerSpec::try_from(known).ok()?;
    let rekeyed = WorkerSpec { api_key: spec.api_key.clone(), ..registered };
    let configured = WorkerRecord::configured(spec).configuration();
    Some(WorkerRecord::from(&rekeyed).replacing(known).with_configuration(configured))
}

fn redeclare_rules(
    node: &mut Node,
    before: &Declared,
    wanted: &Declared,
    now: Now,
    redeclared: &mut Redeclared,
) {
    for rule in &wanted.rules {
        let old = before.rule(&rule.id);
        if old == Some(rule) {
            continue;
        }
        let change = if old.is_some() { "changed" } else { "added" };
        let id = RuleId(rule.id.clone());
        match configured_rule(node, rule) {
            Some(record) => {
                let write = RuleWrite { id, rule: Some(record) };
                redeclared.write(node, now, format!("rule {} {change}", rule.id), write);
            }
            None => redeclared.changed.push(format!("rule {} {change}{ALREADY}", rule.id)),
        }
    }
    for rule in before.rules.iter().filter(|rule| wanted.rule(&rule.id).is_none()) {
        let id = RuleId(rule.id.clone());
        let Some(known) = node.state().rule(&id) else { continue };
        if known.configured == Some(hash(&text(rule.document()))) {
            let write = RuleWrite { id, rule: None };
            redeclared.write(node, now, format!("rule {} removed", rule.id), write);
        } else {
            redeclared.keep(format!("rule {}", rule.id), SET_BY_OTHERS);
        }
    }
}

impl Redeclared {
    fn write(&mut self, node: &mut Node, now: Now, what: String, write: impl Into<Write>) {
        match node.update(now, write) {
            Ok(_) => self.changed.push(what),
            Err(error) => self.kept.push((what, format!("the cluster refuses it: {error}"))),
        }
    }

    fn keep(&mut self, what: String, why: &str) {
        self.kept.push((what, why.to_owned()));
    }
}
