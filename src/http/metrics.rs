//! The Prometheus metrics of the HTTP surface. Handles are resolved once per route and status.

use std::sync::{Arc, OnceLock};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};
use smg_proxy::dispatch::TunnelEnd;

/// The metric families of the HTTP surface.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    pub(super) connections: IntGauge,
    pub(super) connections_refused: IntCounter,
    pub(super) connections_closed_idle: IntCounter,
    pub(super) buffered: IntGauge,
    tunnels: IntGauge,
    /// By the place of an end.
    pub(super) tunnels_ended: [IntCounter; TunnelEnd::ALL.len()],
    pub(super) buffered_refused: IntCounter,
}

/// The statuses that have a handle of their own; others are looked up.
const USUAL: [u16; 12] = [200, 202, 400, 401, 404, 408, 413, 429, 499, 502, 503, 504];

/// The handles of one route.
#[derive(Debug)]
pub(super) struct RouteMetrics {
    route: &'static str,
    family: IntCounterVec,
    usual: [OnceLock<IntCounter>; USUAL.len()],
    pub(super) duration: Histogram,
}

impl Metrics {
    /// Registers the families.
    ///
    /// # Errors
    /// If a family of the same name is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let buckets = [
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0,
            1800.0,
        ]
        .to_vec();
        let tunnels_ended = IntCounterVec::new(
            Opts::new("smg_http_tunnels_ended_total", "Tunnels that have ended, by how."),
            &["end"],
        )?;
        registry.register(Box::new(tunnels_ended.clone()))?;
        let metrics = Self {
            tunnels: IntGauge::new(
                "smg_http_tunnels",
                "Open tunnels between clients and workers (WebSocket).",
            )?,
            tunnels_ended: TunnelEnd::ALL.map(|end| tunnels_ended.with_label_values(&[end.name()])),
            requests: IntCounterVec::new(
                Opts::new(
                    "smg_http_requests_total",
                    "Requests by status and route; 499: the client disconnected before the answer.",
                ),
                &["status", "route"],
            )?,
            duration: HistogramVec::new(
                HistogramOpts::new(
                    "smg_http_request_duration_seconds",
                    "Time from a request's head to the last byte of its response.",
                )
                .buckets(buckets),
                &["route"],
            )?,
            connections: IntGauge::new("smg_http_connections", "Open connections of clients.")?,
            connections_refused: IntCounter::new(
                "smg_http_connections_refused_total",
                "Connections closed at once because the maximum number was open.",
            )?,
            connections_closed_idle: IntCounter::new(
                "smg_http_connections_closed_idle_total",
                "Connections without a request that were closed to make room for others.",
            )?,
            buffered: IntGauge::new(
                "smg_http_buffered_bytes",
                "Bytes of request bodies that are held in memory until a worker has begun to answer.",
            )?,
            buffered_refused: IntCounter::new(
                "smg_http_buffered_refused_total",
                "Requests refused because the maximum number of bytes of bodies was held.",
            )?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.connections_refused.clone()))?;
        registry.register(Box::new(metrics.connections_closed_idle.clone()))?;
        registry.register(Box::new(metrics.tunnels.clone()))?;
        registry.register(Box::new(metrics.buffered.clone()))?;
        registry.register(Box::new(metrics.buffered_refused.clone()))?;
        Ok(metrics)
    }

    /// Counts a tunnel until the guard is dropped.
    pub(super) fn open_tunnel(&self) -> OpenTunnel {
        self.tunnels.inc();
        OpenTunnel(self.tunnels.clone())
    }

    /// The handles of a route, which must be in the route table.
    pub(super) fn route(&self, route: &'static str) -> Arc<RouteMetrics> {
        Arc::new(RouteMetrics {
            route,
            family: self.requests.clone(),
            usual: Default::default(),
            duration: self.duration.with_label_values(&[route]),
        })
    }
}

/// Counts a tunnel as open.
#[derive(Debug)]
pub(super) struct OpenTunnel(IntGauge);

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl RouteMetrics {
    pub(super) fn count(&self, status: u16) {
        match USUAL.iter().position(|usual| *usual == status) {
            Some(at) => self.usual[at].get_or_init(|| self.counter(status)).inc(),
            None => self.counter(status).inc(),
        }
    }

    fn counter(&self, status: u16) -> IntCounter {
        // A status has three digits, so that no two pairs of labels give the same text.
        self.family.with_label_values(&[status.to_string().as_str(), self.route])
    }
}
