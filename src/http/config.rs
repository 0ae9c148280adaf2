//! The configuration of the HTTP surface: listeners, keys and limits of clients.

use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderName;
use smg_routing::limit::Priority;
use smg_runtime::tls;
use smg_types::spec::{Secret, WorkerNetworks};

use super::access_log::AccessConfig;
use super::pass_through::PassThrough;

/// The configuration of the listeners and of access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The address on which clients connect.
    pub listen: SocketAddr,
    /// The additional address for Prometheus, besides `/metrics` on the main port; `None` means none.
    pub metrics_listen: Option<MetricsListen>,
    /// An additional address for `/liveness`, `/readiness` and `/health`, served by a thread of its own; `None` means
    /// none.
    pub health_listen: Option<SocketAddr>,
    /// TLS on the main port; `None` means plain HTTP.
    pub tls: Option<tls::ServerConfig>,
    /// The keys that clients may send. If this and `tenants` are empty, every client is admitted.
    pub api_keys: Vec<Secret>,
    /// The tenants and their keys.
    pub tenants: Vec<Tenant>,
    /// The keys for admin routes. For the rules without any, see `auth`.
    pub admin_api_keys: Vec<AdminKey>,
    /// Whether admin writes from every address need no key if none is configured.
    pub admin_open: bool,
    /// The largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Whether workers learn of the client by `x-forwarded-*`.
    pub forwarded_headers: bool,
    /// Whether compressed request bodies are decoded; otherwise they are refused.
    pub decompress_requests: bool,
    /// The most bytes that the bodies of all requests may hold in memory together.
    pub max_buffered_bytes: usize,
    /// How long a request's head may take to arrive.
    pub header_timeout: Duration,
    /// How long a client's connection is kept open between two requests.
    pub idle_timeout: Duration,
    /// The most time between two pieces of a request's body, and until a client reads the next piece of its response.
    pub body_timeout: Duration,
    /// Time after which a stream without an answer gets its first comment, and between two of them; `None`: it gets none.
    pub stream_heartbeat: Option<Duration>,
    /// Whether workers are asked for the usage of every stream, also of those whose clients do not ask for it.
    pub meter_streams: bool,
    /// Whether and where requests are logged; `None`: not at all.
    pub access_log: Option<AccessConfig>,
    /// The most urgent class that a client may claim.
    pub max_client_priority: Priority,
    /// The paths that clients may send to workers.
    pub pass_through: PassThrough,
    /// Time without a byte in either direction after which a tunnel is closed.
    pub tunnel_idle: Duration,
    /// Where workers may be.
    pub worker_networks: WorkerNetworks,
    /// The most connections of clients at the same time.
    pub max_connections: usize,
    /// The number of threads of the data path.
    pub threads: usize,
    /// The number of ready workers below which `/readiness` answers 503.
    pub min_ready_workers: usize,
    /// The request headers that carry a session's key, in order of preference.
    pub session_headers: Vec<HeaderName>,
    /// The request headers that carry a request's id, in order of preference.
    pub request_id_headers: Vec<HeaderName>,
    /// Whether responses show which worker, policy and decision served the client.
    pub debug_headers: bool,
    /// The origins from which browsers may call; empty means no CORS headers.
    pub cors_allowed_origins: Vec<String>,
    /// How long connections are still accepted after `/readiness` has begun to answer 503.
    pub drain_settle: Duration,
    /// How long requests and streams in flight may take to finish.
    pub shutdown_grace: Duration,
    /// The router's name in `/health` and logs.
    pub node_name: String,
}

/// The metrics port, and whether it was set explicitly, which decides how a busy port is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsListen {
    /// The address to listen on.
    pub address: SocketAddr,
    /// Whether it was set explicitly. Then a busy port is an error, otherwise a warning.
    pub asked_for: bool,
}

/// A tenant's name and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// The tenant's name, for logs and limits.
    pub id: String,
    /// The tenant's key.
    pub key: Secret,
}

/// An administrator's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminKey {
    /// The id of the key, for logs.
    pub id: String,
    /// The role of the key.
    pub role: AdminRole,
    /// The key.
    pub key: Secret,
}

/// What an administrator's key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdminRole {
    /// Reads of the admin routes.
    User,
    /// Reads and writes.
    Admin,
}
