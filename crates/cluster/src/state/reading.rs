//! Readings: the values that the rows of each store add up to. Each method takes time proportional to the rows that it
//! returns.

use std::time::Duration;

use smg_limits::roster::Roster;
use smg_limits::rows::Beat;
use smg_types::ids::{ModelId, NodeId, WorkerId};
use smg_types::now::Now;

use crate::crdt::bounded_counter::BoundedCounter;
use crate::crdt::stamp::millis;
use crate::state::State;
use crate::state::beat::SOLE;
use crate::state::load::Load;
use crate::state::observation::Observation;
use crate::state::policy::PolicyRecord;
use crate::state::rights::{GrantKey, Granted};
use crate::state::rule::{RuleId, RuleRecord};
use crate::state::session::{Session, SessionKey};
use crate::state::tokens::TokenFlow;
use crate::state::totals::Outcome;
use crate::state::usage::{UsageCount, UsageKey};
use crate::state::worker::WorkerEntry;
use crate::state::writers::Writer;

/// Workers.
impl State {
    /// All registered workers, in the order of their ids.
    pub fn workers(&self) -> impl Iterator<Item = (WorkerId, WorkerEntry)> {
        let workers = &self.tables.workers;
        workers.keys().filter_map(|id| Some((*id, workers.merged(id)?)))
    }

    /// A worker, if it is registered.
    #[must_use]
    pub fn worker(&self, id: WorkerId) -> Option<WorkerEntry> {
        self.tables.workers.merged(&id)
    }
}

/// Policies.
impl State {
    /// The policy that is set for a model.
    #[must_use]
    pub fn policy(&self, model: &ModelId) -> Option<PolicyRecord> {
        self.tables.policies.merged(model)?.get().cloned()
    }

    /// All policies that are set, in the order of their models.
    pub fn policies(&self) -> impl Iterator<Item = (&ModelId, PolicyRecord)> {
        self.tables.policies.keys().filter_map(|model| Some((model, self.policy(model)?)))
    }
}

/// Rules.
impl State {
    /// A rule.
    #[must_use]
    pub fn rule(&self, id: &RuleId) -> Option<RuleRecord> {
        self.tables.rules.merged(id)?.get().cloned()
    }

    /// All rules, in the order of their ids.
    pub fn rules(&self) -> impl Iterator<Item = (&RuleId, RuleRecord)> {
        self.tables.rules.keys().filter_map(|id| Some((id, self.rule(id)?)))
    }
}

/// Usage, tokens and rights.
impl State {
    /// The requests that each node has admitted in a window.
    pub fn usage(&self, key: &UsageKey) -> impl Iterator<Item = (&NodeId, UsageCount)> {
        let values = self.tables.usage.values(key);
        values.filter_map(|(writer, count)| Some((self.writers.id(writer)?, *count)))
    }

    /// The tokens that all nodes have reserved in a window and not returned.
    #[must_use]
    pub fn tokens(&self, key: &UsageKey) -> i128 {
        let flows = self.tables.tokens.values(key);
        flows.map(|(_, f)| i128::from(f.taken) - i128::from(f.given_back)).sum()
    }

    /// The tokens that each node has reserved and returned in a window.
    pub fn token_flows(&self, key: &UsageKey) -> impl Iterator<Item = (&NodeId, TokenFlow)> {
        let values = self.tables.tokens.values(key);
        values.filter_map(|(writer, flow)| Some((self.writers.id(writer)?, *flow)))
    }

    /// What each node has granted to one node in a window.
    pub fn granted(&self, key: &GrantKey) -> impl Iterator<Item = (&NodeId, Granted)> {
        let values = self.tables.rights.values(key);
        values.filter_map(|(writer, granted)| Some((self.writers.id(writer)?, *granted)))
    }

    /// The routers among which the limits are divided.
    #[must_use]
    pub fn roster(&self) -> Option<Roster> {
        self.tables.rosters.merged(&SOLE)?.get().cloned()
    }

    /// The regular messages of all nodes about the limits, without those of nodes that are down.
    pub fn beats(&self) -> impl Iterator<Item = (&NodeId, &Beat)> {
        self.of_live_writers(self.tables.beats.values(&SOLE))
    }

    /// The rights of all nodes in a window: their `shares`, which all nodes must have configured alike, the grants between
    /// them that have not expired, and what the usage store says they have spent.
    #[must_use]
    pub fn rights(
        &self,
        key: &UsageKey,
        shares: impl IntoIterator<Item = (NodeId, u64)>,
        now: Now,
    ) -> BoundedCounter<NodeId> {
        let mut rights = BoundedCounter::new(shares);
        for grant in self.tables.rights.keys_of_window(key) {
            for (writer, granted) in self.tables.rights.values(grant) {
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
}

/// Sessions.
impl State {
    /// A session that has not expired.
    #[must_use]
    pub fn session(&self, key: SessionKey, now: Now) -> Option<Session> {
        let session = self.tables.sessions.merged(&key);
        session.filter(|session| session.ends_ms() > millis(now.wall))
    }
}

/// Departures.
impl State {
    /// How long the model is still remembered; `None`: it is not.
    #[must_use]
    pub fn departure(&self, model: &ModelId, now: Now) -> Option<Duration> {
        let until_ms = self.tables.departures.merged(model)?.get()?.until_ms;
        let left_ms = until_ms.checked_sub(millis(now.wall)).filter(|left_ms| *left_ms > 0)?;
        Some(Duration::from_millis(left_ms))
    }
}

/// Measurements.
impl State {
    /// The observations of a worker by all routers, without those of routers that are down.
    pub fn observations(&self, id: WorkerId) -> impl Iterator<Item = (&NodeId, &Observation)> {
        self.of_live_writers(self.tables.observations.values(&id))
    }

    /// The loads of all routers at a worker, without those of routers that are down.
    pub fn loads(&self, id: WorkerId) -> impl Iterator<Item = (&NodeId, &Load)> {
        self.of_live_writers(self.tables.load.values(&id))
    }
}

/// Totals.
impl State {
    /// The requests of a model with an outcome, counted by all generations of all nodes.
    #[must_use]
    pub fn total(&self, model: &ModelId, outcome: Outcome) -> u64 {
        self.tables.totals.sum(model, outcome, &self.writers)
    }
}

/// Steps that several readings share.
impl State {
    /// The values of writers whose processes are believed to run, each with its writer's id.
    fn of_live_writers<'a, V: 'a>(
        &'a self,
        values: impl Iterator<Item = (Writer, &'a V)>,
    ) -> impl Iterator<Item = (&'a NodeId, &'a V)> {
        values
            .filter(|(writer, _)| self.writers.is_live(*writer))
            .filter_map(|(writer, value)| Some((self.writers.id(writer)?, value)))
    }
}
