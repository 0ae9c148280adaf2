//! Publishes what the node's leases are, and counts what happens to them.

use std::sync::Arc;

use smg_lease::{Event, EventKind};
use tracing::{info, warn};

use crate::driver::Driver;
use crate::lease_view::{HaMode, LEADER, LeaseView};
use crate::metrics::Metrics;

impl Driver {
    /// Publishes the leases if something about them has changed. This comes before frames are sent: no other router may take
    /// over what the rest of this one believes to hold.
    pub(super) fn publish_leases(&mut self) {
        let version = self.node.leases_version();
        if version == self.leases.version {
            return;
        }
        self.leases.version = version;
        let now = self.now();
        let at = self.node.lease_time(now);
        let Some(leases) = self.node.leases() else { return };
        let quorum = leases.quorum();
        let view = LeaseView {
            leader: leases.statuses(at).find(|status| status.lease == *LEADER),
            reaches_majority: leases.reaches_majority(),
            voters: quorum.names().into_iter().cloned().collect(),
            needed: quorum.0.iter().map(|voters| voters.majority()).max().unwrap_or(0),
        };
        self.measure_leases(&view);
        self.outputs.leases.send_replace(Arc::new(view));
        while let Some(event) = self.node.poll_lease_event() {
            record(&self.metrics, &event);
        }
    }

    fn measure_leases(&mut self, view: &LeaseView) {
        let is_leader = view.leader.as_ref().is_some_and(|status| status.held_until.is_some());
        let mode = match (is_leader, view.reaches_majority) {
            (true, _) => HaMode::Leader,
            (false, true) => HaMode::Follower,
            (false, false) => HaMode::ReadOnly,
        };
        let metrics = &self.metrics;
        metrics.is_leader.set(i64::from(is_leader));
        metrics.quorum.set(i64::from(view.reaches_majority));
        let term = view.leader.as_ref().map_or(0, |status| status.term.0);
        metrics.lease_term.set(i64::try_from(term).unwrap_or(i64::MAX));
        let before = std::mem::replace(&mut self.leases.mode, mode);
        if before != mode {
            let (from, to) = (before.as_str(), mode.as_str());
            info!(from, to, term, "the role of this router in the cluster changed");
            metrics.role_transitions.with_label_values(&[from, to]).inc();
        }
    }
}

fn record(metrics: &Metrics, event: &Event) {
    let Event { lease, term, kind } = event;
    match kind {
        EventKind::Expired => {
            warn!(%lease, %term, "a majority has not renewed the lease of this router in time");
        }
        EventKind::Started
        | EventKind::Won
        | EventKind::Lost
        | EventKind::Released
        | EventKind::Raised => {
            info!(%lease, %term, event = kind.as_str(), "the state of a lease changed");
        }
    }
    if *lease == *LEADER && *kind != EventKind::Raised {
        metrics.leader_elections.with_label_values(&[kind.as_str()]).inc();
    }
}
