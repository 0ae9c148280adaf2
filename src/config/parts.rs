//! The configuration of a router, one part per module.

use smg_mesh as mesh;
use smg_proxy::dispatch;
use smg_proxy::upstream;
use smg_routing::fleet;
use smg_routing::limit;
use smg_routing::policy;
use smg_routing::prefix;
use smg_runtime::telemetry;
use smg_types::spec::WorkerSpec;

use crate::bridge;
use crate::http;

/// The configuration of a router, one part per module.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Listeners, keys, bounds on clients.
    pub http: http::Config,
    /// How a worker is chosen.
    pub policy: policy::Config,
    /// Bounds of the prefix tree.
    pub prefix: prefix::Config,
    /// How many requests are let in.
    pub limit: limit::Config,
    /// Health and breaker.
    pub fleet: fleet::Config,
    /// Connections and timeouts toward workers.
    pub upstream: upstream::Config,
    /// Retries and waiting.
    pub dispatch: dispatch::Config,
    /// The workers known from the start, each once.
    pub workers: Vec<WorkerSpec>,
    /// This router's cluster node and, with `--enable-mesh`, how it meets others.
    pub mesh: mesh::Config,
    /// What connects the cluster node with routing.
    pub bridge: bridge::Config,
    /// Logs.
    pub telemetry: telemetry::Config,
}
