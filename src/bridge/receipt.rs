//! Receipts: what each router has done with an administrator's write.

use std::collections::BTreeMap;

use serde::Serialize;
use smg_cluster::Node;
use smg_cluster::replication::Acknowledgement;
use smg_cluster::state::Version;
use smg_cluster::state::table::NotAppliedReason;
use smg_types::ids::NodeName;

/// Which routers a write waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wait {
    /// This router only.
    #[default]
    Local,
    /// More than half of all listed routers, those that are DOWN included: two sides of a partition never both reach it.
    Quorum,
    /// All present routers.
    All,
}

/// What each router has done with a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// The routers that have applied the write, by name; this one is among them.
    pub applied: Vec<NodeName>,
    /// The present routers that have not acknowledged it yet.
    pub pending: Vec<NodeName>,
    /// The present routers on which the write has no effect.
    pub not_applied: Vec<NotApplied>,
    /// Whether as many have applied it as the write waited for.
    pub complete: bool,
}

/// A router on which a write has no effect, although it has received it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotApplied {
    /// The router.
    pub router: NodeName,
    /// The store of the row that it did not apply.
    pub store: &'static str,
    /// A name for the cause.
    pub reason: &'static str,
    /// The cause as a sentence.
    pub message: String,
}

impl NotApplied {
    /// The router `router` did not apply the row `version` for `reason`.
    #[must_use]
    pub fn new(router: NodeName, version: Version, reason: NotAppliedReason) -> Self {
        let store = version.store.name();
        Self { router, store, reason: reason.name(), message: reason.to_string() }
    }
}

impl Receipt {
    /// The receipt of the writes `versions` of `node`, as far as it is known now.
    pub(super) fn of(node: &Node, versions: &[Version], wait: Wait) -> Self {
        let replication = node.replication();
        let listed: BTreeMap<NodeName, bool> =
            replication.members().map(|(member, up)| (member.name.clone(), up)).collect();
        let all = listed.len() + 1;
        let mut receipt = Self {
            applied: vec![replication.me().name.clone()],
            pending: Vec::new(),
            not_applied: Vec::new(),
            complete: false,
        };
        for (name, _) in listed.into_iter().filter(|(_, up)| *up) {
            receipt.note(node, name, versions);
        }
        receipt.applied.sort();
        receipt.complete = match wait {
            Wait::Local => true,
            Wait::Quorum => receipt.applied.len() > all / 2,
            Wait::All => receipt.pending.is_empty() && receipt.not_applied.is_empty(),
        };
        receipt
    }

    /// Notes what the router `name` has done with the writes.
    fn note(&mut self, node: &Node, name: NodeName, versions: &[Version]) {
        let mut is_pending = false;
        for version in versions {
            let mut parts = node.replication().receipt(*version);
            match parts.find(|(member, _)| member.name == name).map(|(_, part)| part) {
                Some(Acknowledgement::Applied) => {}
                Some(Acknowledgement::NotApplied(reason)) => {
                    self.not_applied.push(NotApplied::new(name, *version, reason));
                    return;
                }
                Some(Acknowledgement::Pending) | None => is_pending = true,
            }
        }
        if is_pending { &mut self.pending } else { &mut self.applied }.push(name);
    }

    /// Whether waiting longer changes nothing: it is complete, or nothing is pending.
    pub(super) fn is_final(&self) -> bool {
        self.complete || self.pending.is_empty()
    }
}
