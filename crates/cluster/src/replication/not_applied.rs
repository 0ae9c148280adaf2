//! Rows that have no effect on a node although it has received them, and how their writer learns of that.
//!
//! A node acknowledges a version of a log even if it could not apply each row up to it, so that one bad row does not stop
//! those after it (R13, R14). So that the writer's receipts are true all the same, the node sends the writer the list of
//! such rows before the acknowledgement, and again before each digest while the list is not empty (R41). The list is a
//! function of the tables, so nothing needs to be remembered, and a lost message is made good by the next digest.

use smg_types::ids::NodeName;

use crate::replication::Replication;
use crate::replication::changes::Changes;
use crate::replication::message::{Digest, Message, NotAppliedRow};
use crate::state::table::NotAppliedReason;
use crate::state::{StoreId, Version};

impl Replication {
    /// Queues a digest for `to`, and before it the list of rows of `to` that have no effect here.
    pub(super) fn queue_digest(&mut self, to: &NodeName, digest: Digest) {
        self.report_not_applied(to);
        self.own_clock.shown = self.own_clock.clock;
        self.queue(to, Message::Digest(digest));
    }

    /// Queues the list of rows of `to` that have no effect here, unless it is empty and was empty before.
    pub(super) fn report_not_applied(&mut self, to: &NodeName) {
        let Some(peer) = self.peers.get_mut(to) else { return };
        let mut rows = Vec::new();
        for store in StoreId::ALL {
            let not_applied = self.state.replica(store).not_applied(peer.writer());
            rows.extend(not_applied.into_iter().map(|(version, reason)| NotAppliedRow {
                store: store.into(),
                version,
                reason: reason.wire_id(),
            }));
        }
        let reported = std::mem::replace(&mut peer.reported_not_applied, rows.len());
        if !rows.is_empty() || reported > 0 {
            self.queue(to, Message::NotApplied(rows));
        }
    }

    pub(super) fn handle_not_applied(
        &mut self,
        from: &NodeName,
        rows: &[NotAppliedRow],
    ) -> Changes {
        if let Some(peer) = self.peers.get_mut(from) {
            peer.set_not_applied(rows.iter().filter_map(|row| {
                let version = Version { store: row.store.store()?, version: row.version };
                Some((version, NotAppliedReason::from_wire_id(row.reason)))
            }));
        }
        Changes::default()
    }
}
