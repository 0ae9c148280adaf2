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
use crate::config::Limits;
use crate::http;

/// The configuration of a router, one part per module.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Listeners, keys, and limits of clients.
    pub http: http::Config,
    /// How a worker is chosen for a request.
    pub policy: policy::Config,
    /// Bounds of the prefix tree.
    pub prefix: prefix::Config,
    /// How many requests are admitted.
    pub limit: limit::Config,
    /// Health checks and circuit breaker of the workers.
    pub fleet: fleet::Config,
    /// Connections and timeouts toward workers.
    pub upstream: upstream::Config,
    /// Retries, and waiting for a worker.
    pub dispatch: dispatch::Config,
    /// The workers known from the start, each one once.
    pub workers: Vec<WorkerSpec>,
    /// This router's cluster node and, with `--enable-mesh`, its network.
    pub mesh: mesh::Config,
    /// The connection between the cluster node and routing.
    pub bridge: bridge::Config,
    /// Limits of requests and tokens, which the cluster shares.
    pub limits: Limits,
    /// The configuration of the log.
    pub telemetry: telemetry::Config,
}
