//! What Prometheus learns of the mesh. Names are the document's where it has one.
//!
//! Labels: peers' names (bounded by the membership), states, stores, and words from closed sets. What is a level is set
//! once a second by the driver; what is counted is counted where it happens.

use std::time::Duration;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};
use smg_cluster::Lane;

/// Handles of the mesh's metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(super) node_up: IntGauge,
    pub(super) peers: IntGauge,
    pub(super) peer_status: IntGaugeVec,
    pub(super) node_state: IntGaugeVec,
    pub(super) transitions: IntCounterVec,
    pub(super) probe_rtt: GaugeVec,
    pub(super) lag: GaugeVec,
    pub(super) clock_skew: GaugeVec,
    pub(super) gossip: IntCounterVec,
    pub(super) sync_operations: IntCounterVec,
    pub(super) store_entries: IntGaugeVec,
    pub(super) store_bytes: IntGaugeVec,
    pub(super) tombstones: IntGaugeVec,
    pub(super) store_digest: GaugeVec,
    pub(super) delta_bytes: IntCounterVec,
    pub(super) repairs: IntCounter,
    pub(super) snapshots: IntCounterVec,
    pub(super) dropped: IntCounterVec,
    pub(super) rejected: IntCounterVec,
    pub(super) refutations: IntCounter,
    pub(super) failed_probes: IntCounter,
    pub(super) stalls: IntCounter,
    pub(super) name_conflict: IntGauge,
    pub(super) turn: Histogram,
    pub(super) sync_latency: Histogram,
    pub(super) connections: IntGaugeVec,
    pub(super) link_failures: IntCounterVec,
}

impl Metrics {
    /// Registers what concerns this router's node with `own`, and the rest with `registry`: a router that nobody can join
    /// has no other routers to measure.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn register(own: &Registry, registry: &Registry) -> prometheus::Result<Self> {
        let node_up = IntGauge::new(
            "smg_cluster_node_up",
            "Whether this router's cluster node runs: 1, or 0 once it has failed. Requests are still routed then, but \
             nothing can be changed here until the router is restarted.",
        )?;
        own.register(Box::new(node_up.clone()))?;
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntGaugeVec> {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok(gauges)
        };
        let fractions = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<GaugeVec> {
            let gauges = GaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok(gauges)
        };
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let counters =
            |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntCounterVec> {
                let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
                registry.register(Box::new(counters.clone()))?;
                Ok(counters)
            };
        let turn = Histogram::with_opts(
            HistogramOpts::new("smg_mesh_turn_seconds", "Time of one turn of the mesh's driver.")
                .buckets(vec![0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5]),
        )?;
        registry.register(Box::new(turn.clone()))?;
        let sync_latency = Histogram::with_opts(
            HistogramOpts::new(
                "smg_mesh_sync_latency_seconds",
                "Time from a write of this router to another router's word that it is applied there, which may wait 0.1 s for more.",
            )
            .buckets(vec![0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]),
        )?;
        registry.register(Box::new(sync_latency.clone()))?;
        let leader_elections = counters(
            "smg_mesh_leader_elections_total",
            "Elections of a leader, by what came of them. No part of this router needs a leader, so there are none.",
            &["event"],
        )?;
        for event in ["started", "won", "lost", "expired"] {
            leader_elections.with_label_values(&[event]).reset();
        }
        let link_failures = counters(
            "smg_mesh_connection_failures_total",
            "Connections to other routers that broke or could not be made.",
            &["lane"],
        )?;
        for lane in [Lane::Swim, Lane::State] {
            // Shown from the start, so that a rate has where to begin.
            link_failures.with_label_values(&[lane_name(lane)]).reset();
        }
        Ok(Self {
            node_up,
            peers: gauge(
                "smg_mesh_peers_total",
                "Routers that are in the cluster and not known to be down, without this one.",
            )?,
            peer_status: gauges(
                "smg_mesh_peer_status",
                "Whether a router is in the cluster: 1, or 0 while it is DOWN. Gone once it left or is forgotten.",
                &["peer"],
            )?,
            node_state: gauges(
                "smg_mesh_node_state",
                "This router's own state: 1 for the one it is in.",
                &["state"],
            )?,
            transitions: counters(
                "smg_mesh_state_transitions_total",
                "Changes of a router's state, as seen from here.",
                &["peer", "from_state", "to_state"],
            )?,
            probe_rtt: fractions(
                "smg_mesh_probe_rtt_seconds",
                "How long the last answered probe of a router took.",
                &["peer"],
            )?,
            lag: fractions(
                "smg_mesh_replication_lag_seconds",
                "Age of the oldest write of this router that a router has not confirmed.",
                &["peer"],
            )?,
            clock_skew: fractions(
                "smg_mesh_clock_skew_seconds",
                "How far a router's calendar is ahead of this one's.",
                &["peer"],
            )?,
            gossip: counters(
                "smg_mesh_gossip_messages_total",
                "Messages exchanged with other routers, by what they are.",
                &["direction", "type"],
            )?,
            sync_operations: counters(
                "smg_mesh_sync_operations_total",
                "What replication did beyond sending deltas, by what it was.",
                &["type"],
            )?,
            store_entries: gauges(
                "smg_mesh_store_entries",
                "Living rows of a store on this router.",
                &["store"],
            )?,
            store_bytes: gauges(
                "smg_mesh_store_bytes",
                "Bytes of the living rows of a store on this router.",
                &["store"],
            )?,
            tombstones: gauges(
                "smg_mesh_tombstones",
                "Removals of a store that are still remembered on this router.",
                &["store"],
            )?,
            store_digest: fractions(
                "smg_mesh_state_digest",
                "48 bits of the fingerprint of a store: equal on routers that hold the same.",
                &["store"],
            )?,
            delta_bytes: counters(
                "smg_mesh_deltas_bytes_total",
                "Bytes of rows exchanged, by store.",
                &["store", "direction"],
            )?,
            repairs: counter(
                "smg_mesh_repairs_total",
                "Rows that an audit had to put right: each is a loss that nothing else had noticed.",
            )?,
            snapshots: counters(
                "smg_mesh_snapshots_total",
                "Parts of snapshots sent, and snapshots received.",
                &["direction"],
            )?,
            dropped: counters(
                "smg_mesh_dropped_total",
                "Messages that found a queue full.",
                &["queue"],
            )?,
            rejected: counters(
                "smg_mesh_rejected_total",
                "What came in on the mesh port and was refused, by why.",
                &["reason"],
            )?,
            refutations: counter(
                "smg_mesh_refutations_total",
                "Times that this router was declared DOWN while alive, and said so.",
            )?,
            failed_probes: counter(
                "smg_mesh_failed_probes_total",
                "Probes that nobody answered, neither directly nor through others.",
            )?,
            stalls: counter(
                "smg_mesh_stalls_total",
                "Turns so late that this process must have been frozen.",
            )?,
            name_conflict: gauge(
                "smg_mesh_name_conflict",
                "Whether another live router claims this one's name.",
            )?,
            turn,
            sync_latency,
            connections: gauges(
                "smg_mesh_connections",
                "Connections to other routers, by what they carry and whether they are up.",
                &["lane", "state"],
            )?,
            link_failures,
        })
    }

    pub(super) fn link_failed(&self, lane: Lane) {
        self.link_failures.with_label_values(&[lane_name(lane)]).inc();
    }

    pub(super) fn rejected(&self, reason: &str) {
        self.rejected.with_label_values(&[reason]).inc();
    }

    pub(super) fn dropped(&self, queue: &str) {
        self.dropped.with_label_values(&[queue]).inc();
    }

    /// What belongs to a router that is not listed any more.
    pub(super) fn forget(&self, peer: &str) {
        // What was never set can't be removed, which is as good.
        for gauges in [&self.probe_rtt, &self.lag, &self.clock_skew] {
            let _absent = gauges.remove_label_values(&[peer]).is_err();
        }
        let _absent = self.peer_status.remove_label_values(&[peer]).is_err();
    }
}

/// The name of a lane in metrics and on `/ha/health`.
pub(super) const fn lane_name(lane: Lane) -> &'static str {
    match lane {
        Lane::Swim => "swim",
        Lane::State => "state",
    }
}

/// Brings a counter up to a total that is counted elsewhere.
pub(super) fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// Sets a gauge to a number that may be larger than it can hold.
pub(super) fn set(gauge: &IntGauge, value: usize) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Sets a gauge to a time.
pub(super) fn set_time(gauge: &Gauge, time: Duration) {
    gauge.set(time.as_secs_f64());
}
