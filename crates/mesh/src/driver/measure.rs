//! The housekeeping of the driver: once a second it removes unused links and sets the gauges.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use smg_cluster::Lane;
use smg_cluster::membership::{self, MemberState};
use smg_cluster::state::StoreId;
use smg_types::ids::NodeName;
use tracing::warn;

use crate::driver::Driver;
use crate::driver::refused_log::Refused;
use crate::metrics;
use crate::view::View;

/// The driver removes a link that carried nothing for this long and leads to no member.
const LINK_UNUSED: Duration = Duration::from_secs(30);

/// How long the metric `smg_mesh_name_conflict` stays 1 after another router claimed this one's name: long enough to be
/// scraped and to fire an alert.
const NAME_CONFLICT_SHOWN: Duration = Duration::from_secs(300);

/// The most samples of `written`, from which the age of an unacknowledged write is computed.
const LAG_SAMPLES: usize = 300;

impl Driver {
    pub(super) fn measure_view(&mut self, view: &View) {
        let listed: BTreeSet<NodeName> =
            view.members.iter().map(|member| member.node.name.clone()).collect();
        for name in self.measured.difference(&listed) {
            self.metrics.forget(name.as_str());
        }
        for member in &view.members {
            let status = &self.metrics.peer_status;
            let name = &[member.node.name.as_str()];
            match member.state {
                MemberState::Alive | MemberState::Suspected => {
                    status.with_label_values(name).set(1);
                }
                MemberState::Down => status.with_label_values(name).set(0),
                // The router joins or leaves, which must not fire an alert.
                MemberState::Init | MemberState::Leaving => {
                    let _absent = status.remove_label_values(name).is_err();
                }
            }
        }
        self.measured = listed;
        metrics::set(&self.metrics.peers, view.present().count());
        for state in MemberState::ALL {
            let is = i64::from(view.me.state == state);
            self.metrics.node_state.with_label_values(&[state.as_str()]).set(is);
        }
    }

    /// Removes unused links and updates the gauges.
    pub(super) fn housekeep(&mut self, now: Duration) {
        let members: BTreeSet<SocketAddr> =
            self.node.members().map(|member| member.address).collect();
        self.links
            .retain(|to, link| members.contains(to) || now.saturating_sub(link.used) < LINK_UNUSED);
        self.measure_peers(now);
        self.measure_state();
        self.measure_membership();
        self.log_refused(now);
    }

    /// Logs once a minute that other routers sent what no honest router sends.
    fn log_refused(&mut self, now: Duration) {
        let (membership, replication) =
            (self.node.membership().counters(), self.node.replication().counters());
        let refused = Refused {
            absurd_claim: membership.absurd_claims,
            too_many_strangers: membership.refused_strangers,
            too_many_members: membership.refused_members,
            too_many_generations: membership.refused_generations,
            absurd_version: replication.absurd_versions,
            too_many_writers: replication.refused_writers,
            unconfirmed_version: replication.withdrawn_claims,
        };
        if self.refused_log.must_log(now, refused) {
            warn!(
                ?refused,
                "other routers have reported members, generations or versions that can't be right, and this router has \
                 refused them; if no clock is wrong by more than a week, a member of the cluster lies or is faulty \
                 (smg_mesh_rejected_total counts by reason)"
            );
        }
    }

    fn measure_peers(&mut self, now: Duration) {
        let replication = self.node.replication();
        let me = replication.me();
        let written: u64 = StoreId::ALL
            .into_iter()
            .flat_map(|store| self.node.state().versions(store))
            .filter(|(writer, _)| *writer == me)
            .map(|(_, version)| version)
            .sum();
        if self.written.back().is_none_or(|(_, last)| *last != written) {
            self.written.push_back((now, written));
            if self.written.len() > LAG_SAMPLES {
                self.written.pop_front();
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a metric")]
        let correction = replication.correction_ms() as f64 / 1000.0;
        self.metrics.clock_correction.with_label_values::<&str>(&[]).set(correction);
        for member in self.node.members() {
            let name = [member.node.name.as_str()];
            let not_applied = replication.not_applied().filter(|(peer, ..)| **peer == member.node);
            metrics::set(&self.metrics.not_applied.with_label_values(&name), not_applied.count());
            if let Some(rtt) = member.rtt {
                metrics::set_time(&self.metrics.probe_rtt.with_label_values(&name), rtt);
            }
            if let Some(ahead) = replication.wall_ahead_ms(&member.node.name) {
                #[expect(clippy::cast_precision_loss, reason = "a metric")]
                self.metrics.clock_skew.with_label_values(&name).set(ahead as f64 / 1000.0);
            }
            if let Some(behind) = replication.lag(&member.node.name) {
                let confirmed = written.saturating_sub(behind);
                let since = self.written.iter().find(|(_, total)| *total > confirmed);
                let age = since.map_or(Duration::ZERO, |(at, _)| now.saturating_sub(*at));
                metrics::set_time(&self.metrics.lag.with_label_values(&name), age);
            }
        }
        let links = self.dialler.board.all();
        for lane in [Lane::Swim, Lane::State] {
            let name = metrics::lane_name(lane);
            let count = |up: bool| {
                links.values().filter_map(|l| l.lane(lane)).filter(|l| l.up == up).count()
            };
            let connections = &self.metrics.connections;
            metrics::set(&connections.with_label_values(&[name, "up"]), count(true));
            metrics::set(&connections.with_label_values(&[name, "down"]), count(false));
        }
    }

    fn measure_state(&mut self) {
        for time in self.node.take_confirmation_times() {
            self.metrics.sync_latency.observe(time.as_secs_f64());
        }
        let state = self.node.state();
        let counters = self.node.replication().counters();
        for store in StoreId::in_use() {
            let (name, sizes) = (store.name(), state.sizes(store));
            let metrics = &self.metrics;
            metrics::set(&metrics.store_entries.with_label_values(&[name]), sizes.entries);
            metrics::set(&metrics.store_bytes.with_label_values(&[name]), sizes.bytes);
            metrics::set(&metrics.tombstones.with_label_values(&[name]), sizes.tombstones);
            // A float holds 53 bits exactly.
            #[expect(clippy::cast_precision_loss, reason = "48 bits fit")]
            let digest = (state.fingerprint(store) >> 16) as f64;
            metrics.store_digest.with_label_values(&[name]).set(digest);
            for (direction, bytes) in [
                ("sent", counters.sent_bytes[store.index()]),
                ("received", counters.received_bytes[store.index()]),
            ] {
                metrics::raise(&metrics.delta_bytes.with_label_values(&[name, direction]), bytes);
            }
        }
        for (kind, count) in [
            ("pull", counters.pulls),
            ("retry", counters.retries),
            ("gap", counters.gaps),
            ("adopt", counters.adopted),
            ("retire", counters.retired),
            ("collect", counters.collected),
            ("quarantine", counters.quarantined_rows),
        ] {
            metrics::raise(&self.metrics.sync_operations.with_label_values(&[kind]), count);
        }
        metrics::raise(&self.metrics.repairs, counters.repaired);
        let snapshots = &self.metrics.snapshots;
        metrics::raise(&snapshots.with_label_values(&["received"]), counters.snapshots_joined);
        metrics::raise(&snapshots.with_label_values(&["sent"]), counters.snapshot_chunks_served);
        for (reason, count) in [
            ("row", counters.refused_rows),
            ("contradiction", counters.refused_messages),
            ("unknown_store", counters.unknown_stores),
            ("absurd_version", counters.absurd_versions),
            ("too_many_writers", counters.refused_writers),
            ("unconfirmed_version", counters.withdrawn_claims),
        ] {
            metrics::raise(&self.metrics.rejected.with_label_values(&[reason]), count);
        }
        let outbox = self.metrics.dropped.with_label_values(&["replication"]);
        metrics::raise(&outbox, counters.dropped_messages);
        // Each digest and each delta contains the sender's versions of every store.
        let received = self.node.received();
        let received: u64 = ["digest", "delta"].iter().filter_map(|kind| received.get(kind)).sum();
        if received != self.state_frames {
            self.state_frames = received;
            let wall = self.clock.now().wall;
            self.synced.extend(StoreId::ALL.map(|store| (store, wall)));
        }
    }

    fn measure_membership(&mut self) {
        let counters = self.node.membership().counters();
        metrics::raise(&self.metrics.refutations, counters.renewals);
        metrics::raise(&self.metrics.failed_probes, counters.failed_probes);
        metrics::raise(&self.metrics.stalls, counters.stalls);
        let frames = self.node.frames();
        for (reason, count) in [
            ("cluster", counters.foreign_cluster),
            ("packet", counters.refused_packets),
            ("stray", counters.stray_messages),
            ("absurd_claim", counters.absurd_claims),
            ("too_many_strangers", counters.refused_strangers),
            ("too_many_members", counters.refused_members),
            ("too_many_generations", counters.refused_generations),
            ("kind", frames.unknown_kind),
            ("version", frames.unknown_version),
            ("corrupted", frames.corrupted),
            ("payload", frames.undecodable),
            ("misdirected", frames.misdirected),
        ] {
            metrics::raise(&self.metrics.rejected.with_label_values(&[reason]), count);
        }
        for (queue, count) in
            [("membership", counters.dropped_frames), ("events", frames.dropped_events)]
        {
            metrics::raise(&self.metrics.dropped.with_label_values(&[queue]), count);
        }
        for (kind, count) in self.node.received() {
            let counter = self.metrics.gossip.with_label_values(&["received", kind]);
            metrics::raise(&counter, *count);
        }
        let contested = self.node.membership().refused().is_some_and(|reason| match reason {
            membership::RefusalReason::DuplicateName(_) => true,
            membership::RefusalReason::ForeignCluster(_) => false,
        });
        let now = self.clock.mono();
        self.contested = self.contested.filter(|at| now.saturating_sub(*at) < NAME_CONFLICT_SHOWN);
        self.metrics.name_conflict.set(i64::from(contested || self.contested.is_some()));
    }
}
