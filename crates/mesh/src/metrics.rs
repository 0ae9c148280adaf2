//! The Prometheus metrics of the mesh. Their names are those of the high-availability document where it defines one.
//!
//! Labels are names of peers (bounded by the membership), states, stores, and values from fixed sets. The driver sets
//! gauges once a second; counters are incremented where the event happens.

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
    pub(super) clock_correction: GaugeVec,
    pub(super) not_applied: IntGaugeVec,
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
    pub(super) is_leader: IntGauge,
    pub(super) lease_term: IntGauge,
    pub(super) quorum: IntGauge,
    pub(super) role_transitions: IntCounterVec,
    pub(super) leader_elections: IntCounterVec,
}

impl Metrics {
    /// Registers the metrics of this router's node with `own`, and those of other routers with `registry`, which is not
    /// shown if no other router can join.
    ///
    /// # Errors
    /// If a name is already registered.
    pub fn register(own: &Registry, registry: &Registry) -> prometheus::Result<Self> {
        let node_up = IntGauge::new(
            "smg_cluster_node_up",
            "Whether this router's cluster node runs: 1, or 0 once it has failed. Requests are still routed then, but \
             nothing can be changed here until the router is restarted.",
        )?;
        own.register(Box::new(node_up.clone()))?;
        let series = Registrar(registry);
        let turn = Histogram::with_opts(
            HistogramOpts::new("smg_mesh_turn_seconds", "Time of one turn of the mesh's driver.")
                .buckets(vec![0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5]),
        )?;
        registry.register(Box::new(turn.clone()))?;
        let sync_latency = Histogram::with_opts(
            HistogramOpts::new(
                "smg_mesh_sync_latency_seconds",
                "Time from a write of this router to its acknowledgement by another router, which may delay it \
                 by 0.1 s to combine several.",
            )
            .buckets(vec![0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]),
        )?;
        registry.register(Box::new(sync_latency.clone()))?;
        let leader_elections = series.counters(LEADER_ELECTIONS)?;
        for event in ["started", "won", "lost", "expired", "released"] {
            leader_elections.with_label_values(&[event]).reset();
        }
        let link_failures = series.counters(LINK_FAILURES)?;
        for lane in [Lane::Swim, Lane::State] {
            // Shown from the start, so that a rate can be computed.
            link_failures.with_label_values(&[lane_name(lane)]).reset();
        }
        Ok(Self {
            node_up,
            peers: series.gauge(PEERS)?,
            peer_status: series.gauges(PEER_STATUS)?,
            node_state: series.gauges(NODE_STATE)?,
            transitions: series.counters(TRANSITIONS)?,
            probe_rtt: series.fractions(PROBE_RTT)?,
            lag: series.fractions(LAG)?,
            clock_skew: series.fractions(CLOCK_SKEW)?,
            clock_correction: series.fractions(CLOCK_CORRECTION)?,
            not_applied: series.gauges(NOT_APPLIED)?,
            gossip: series.counters(GOSSIP)?,
            sync_operations: series.counters(SYNC_OPERATIONS)?,
            store_entries: series.gauges(STORE_ENTRIES)?,
            store_bytes: series.gauges(STORE_BYTES)?,
            tombstones: series.gauges(TOMBSTONES)?,
            store_digest: series.fractions(STORE_DIGEST)?,
            delta_bytes: series.counters(DELTA_BYTES)?,
            repairs: series.counter(REPAIRS)?,
            snapshots: series.counters(SNAPSHOTS)?,
            dropped: series.counters(DROPPED)?,
            rejected: series.counters(REJECTED)?,
            refutations: series.counter(REFUTATIONS)?,
            failed_probes: series.counter(FAILED_PROBES)?,
            stalls: series.counter(STALLS)?,
            name_conflict: series.gauge(NAME_CONFLICT)?,
            turn,
            sync_latency,
            connections: series.gauges(CONNECTIONS)?,
            link_failures,
            is_leader: series.gauge(IS_LEADER)?,
            lease_term: series.gauge(LEASE_TERM)?,
            quorum: series.gauge(QUORUM)?,
            role_transitions: series.counters(ROLE_TRANSITIONS)?,
            leader_elections,
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

    /// Removes the series of a router that is no longer listed.
    pub(super) fn forget(&self, peer: &str) {
        // Removing a series that was never set fails, and has no effect.
        for gauges in [&self.probe_rtt, &self.lag, &self.clock_skew] {
            let _absent = gauges.remove_label_values(&[peer]).is_err();
        }
        let _absent = self.peer_status.remove_label_values(&[peer]).is_err();
        let _absent = self.not_applied.remove_label_values(&[peer]).is_err();
    }
}

/// A family of series: its name, its help, and its labels.
struct Family {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
}

const PEERS: Family = Family {
    name: "smg_mesh_peers_total",
    help: "Routers that are in the cluster and not known to be down, without this one.",
    labels: &[],
};
const PEER_STATUS: Family = Family {
    name: "smg_mesh_peer_status",
    help: "Whether a router is in the cluster: 1, or 0 while it is DOWN. Absent after it left or was removed from the list.",
    labels: &["peer"],
};
const NODE_STATE: Family = Family {
    name: "smg_mesh_node_state",
    help: "Membership state of this router: 1 for the current state.",
    labels: &["state"],
};
const TRANSITIONS: Family = Family {
    name: "smg_mesh_state_transitions_total",
    help: "Changes of a router's membership state, as this router observed them.",
    labels: &["peer", "from_state", "to_state"],
};
const PROBE_RTT: Family = Family {
    name: "smg_mesh_probe_rtt_seconds",
    help: "Round-trip time of the last answered probe of a router, in seconds.",
    labels: &["peer"],
};
const LAG: Family = Family {
    name: "smg_mesh_replication_lag_seconds",
    help: "Age of the oldest write of this router that another router has not acknowledged, in seconds.",
    labels: &["peer"],
};
const CLOCK_SKEW: Family = Family {
    name: "smg_mesh_clock_skew_seconds",
    help: "How far the wall clock of a router is ahead of this one's, in seconds.",
    labels: &["peer"],
};
const CLOCK_CORRECTION: Family = Family {
    name: "smg_mesh_clock_correction_seconds",
    help: "How far the time of the cluster, which this router goes by, is ahead of its own wall clock, in seconds; 0 while they differ by 5 seconds at most.",
    labels: &[],
};
const NOT_APPLIED: Family = Family {
    name: "smg_mesh_not_applied_rows",
    help: "Rows of this router that have no effect on another router, although that has received them: /ha/health has the reasons.",
    labels: &["peer"],
};
const GOSSIP: Family = Family {
    name: "smg_mesh_gossip_messages_total",
    help: "Messages exchanged with other routers, by kind and direction.",
    labels: &["direction", "type"],
};
const SYNC_OPERATIONS: Family = Family {
    name: "smg_mesh_sync_operations_total",
    help: "Operations of replication other than sending deltas, by kind.",
    labels: &["type"],
};
const STORE_ENTRIES: Family = Family {
    name: "smg_mesh_store_entries",
    help: "Rows of a store on this router, without tombstones.",
    labels: &["store"],
};
const STORE_BYTES: Family = Family {
    name: "smg_mesh_store_bytes",
    help: "Bytes of the rows of a store on this router, without tombstones.",
    labels: &["store"],
};
const TOMBSTONES: Family = Family {
    name: "smg_mesh_tombstones",
    help: "Tombstones of a store on this router.",
    labels: &["store"],
};
const STORE_DIGEST: Family = Family {
    name: "smg_mesh_state_digest",
    help: "48 bits of the fingerprint of a store: equal on routers whose stores hold the same rows.",
    labels: &["store"],
};
const DELTA_BYTES: Family = Family {
    name: "smg_mesh_deltas_bytes_total",
    help: "Bytes of rows exchanged with other routers, by store.",
    labels: &["store", "direction"],
};
const REPAIRS: Family = Family {
    name: "smg_mesh_repairs_total",
    help: "Rows that an audit has repaired: each is a loss that was not detected otherwise.",
    labels: &[],
};
const SNAPSHOTS: Family = Family {
    name: "smg_mesh_snapshots_total",
    help: "Parts of snapshots that were sent, and snapshots that were received.",
    labels: &["direction"],
};
const DROPPED: Family = Family {
    name: "smg_mesh_dropped_total",
    help: "Messages that were dropped because a queue was full.",
    labels: &["queue"],
};
const REJECTED: Family = Family {
    name: "smg_mesh_rejected_total",
    help: "Input on the mesh port that was refused, by reason.",
    labels: &["reason"],
};
const REFUTATIONS: Family = Family {
    name: "smg_mesh_refutations_total",
    help: "Times that this router was declared DOWN while alive, and refuted it.",
    labels: &[],
};
const FAILED_PROBES: Family = Family {
    name: "smg_mesh_failed_probes_total",
    help: "Probes that were answered neither directly nor through other routers.",
    labels: &[],
};
const STALLS: Family = Family {
    name: "smg_mesh_stalls_total",
    help: "Turns of the mesh's driver that were so late that the process must have been suspended.",
    labels: &[],
};
const NAME_CONFLICT: Family = Family {
    name: "smg_mesh_name_conflict",
    help: "Whether another live router uses this one's name: 1 or 0.",
    labels: &[],
};
const CONNECTIONS: Family = Family {
    name: "smg_mesh_connections",
    help: "Connections to other routers, by lane and by whether they are up.",
    labels: &["lane", "state"],
};
const LEADER_ELECTIONS: Family = Family {
    name: "smg_mesh_leader_elections_total",
    help: "Elections of a leader in which this router took part: started, won, lost to another router; and leases of this \
           router that expired or were released.",
    labels: &["event"],
};
const IS_LEADER: Family = Family {
    name: "smg_mesh_is_leader",
    help: "Whether this router holds the lease of the leader: 1 or 0.",
    labels: &[],
};
const LEASE_TERM: Family = Family {
    name: "smg_mesh_lease_term",
    help: "The term of the leader that this router knows; without a leader, the last one.",
    labels: &[],
};
const QUORUM: Family = Family {
    name: "smg_mesh_quorum",
    help: "Whether this router reaches a majority of the configured routers: 1 or 0.",
    labels: &[],
};
const ROLE_TRANSITIONS: Family = Family {
    name: "smg_mesh_role_transitions_total",
    help: "Changes of this router's part in the cluster: leader, follower, read_only.",
    labels: &["from_state", "to_state"],
};
const LINK_FAILURES: Family = Family {
    name: "smg_mesh_connection_failures_total",
    help: "Connections to other routers that broke or could not be made.",
    labels: &["lane"],
};

/// Creates families and registers them.
struct Registrar<'a>(&'a Registry);

impl Registrar<'_> {
    fn gauge(&self, Family { name, help, .. }: Family) -> prometheus::Result<IntGauge> {
        let gauge = IntGauge::new(name, help)?;
        self.0.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    fn gauges(&self, Family { name, help, labels }: Family) -> prometheus::Result<IntGaugeVec> {
        let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }

    fn fractions(&self, Family { name, help, labels }: Family) -> prometheus::Result<GaugeVec> {
        let gauges = GaugeVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }

    fn counter(&self, Family { name, help, .. }: Family) -> prometheus::Result<IntCounter> {
        let counter = IntCounter::new(name, help)?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn counters(&self, Family { name, help, labels }: Family) -> prometheus::Result<IntCounterVec> {
        let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(counters.clone()))?;
        Ok(counters)
    }
}

/// The name of a lane in metrics and on `/ha/health`.
pub(super) const fn lane_name(lane: Lane) -> &'static str {
    match lane {
        Lane::Swim => "swim",
        Lane::State => "state",
    }
}

/// Increases a counter to a total that is counted elsewhere.
pub(super) fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// Sets a gauge, to its maximum if the number is too large for it.
pub(super) fn set(gauge: &IntGauge, value: usize) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Sets a gauge to a time, in seconds.
pub(super) fn set_time(gauge: &Gauge, time: Duration) {
    gauge.set(time.as_secs_f64());
}
