//! The configuration of the HTTP surface: listeners, keys and bounds on clients.

use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderName;
use smg_routing::limit::Priority;
use smg_runtime::tls;
use smg_types::spec::{Secret, WorkerNetworks};

/// What the listeners offer and whom they let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where Prometheus may scrape besides `/metrics` on the main port; `None`: nowhere.
    pub metrics_listen: Option<MetricsListen>,
    /// A further port for `/liveness`, `/readiness` and `/health`, served by a thread of its own; `None`: none.
    pub health_listen: Option<SocketAddr>,
    /// TLS on the main port; `None`: plain.
    pub tls: Option<tls::ServerConfig>,
    /// Keys that clients may show; empty and no tenants: everyone is let in.
    pub api_keys: Vec<Secret>,
    /// Keys of tenants.
    pub tenants: Vec<Tenant>,
    /// Keys for admin routes; empty: see `auth` for who is let in then.
    pub admin_api_keys: Vec<AdminKey>,
    /// Admin writes need no key where none is configured, wherever they come from.
    pub admin_open: bool,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Whether compressed request bodies are decoded; otherwise they are refused.
    pub decompress_requests: bool,
    /// What the bodies of all requests may hold in memory together, in bytes.
    pub max_buffered_bytes: usize,
    /// Time for a request's head to arrive.
    pub header_timeout: Duration,
    /// Time that a client's connection is kept between two requests.
    pub idle_timeout: Duration,
    /// Time between two pieces of a request's body, and for a client to take the next piece of its response.
    pub body_timeout: Duration,
    /// Time after which a stream without an answer gets its first comment, and between two of them; `None`: it gets none.
    pub stream_heartbeat: Option<Duration>,
    /// The most urgent class that a client may claim.
    pub max_client_priority: Priority,
    /// Where workers may be.
    pub worker_networks: WorkerNetworks,
    /// Client connections at once.
    pub max_connections: usize,
    /// Threads of the data path.
    pub threads: usize,
    /// Ready workers below which `/readiness` says 503.
    pub min_ready_workers: usize,
    /// Request headers that carry a session's key, in order of preference.
    pub session_headers: Vec<HeaderName>,
    /// Request headers that carry a request's id, in order of preference.
    pub request_id_headers: Vec<HeaderName>,
    /// Tell clients which worker, policy and decision served them.
    pub debug_headers: bool,
    /// Origins that browsers may call from; empty: no CORS headers.
    pub cors_allowed_origins: Vec<String>,
    /// Time that connections are still accepted after readiness says no.
    pub drain_settle: Duration,
    /// Time for requests and streams in flight to finish.
    pub shutdown_grace: Duration,
    /// This router's name in `/health` and logs.
    pub node_name: String,
}

/// The metrics port: whether somebody asked for it decides what a busy port means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsListen {
    /// Where to listen.
    pub address: SocketAddr,
    /// Asked for: a busy port is an error. Otherwise it is a warning.
    pub asked_for: bool,
}

/// A tenant: a name and the key that proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// The tenant's name, for logs and limits.
    pub id: String,
    /// Its key.
    pub key: Secret,
}

/// An administrator's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminKey {
    /// Whose key it is, for logs.
    pub id: String,
    /// What it allows.
    pub role: AdminRole,
    /// The key.
    pub key: Secret,
}

/// What an administrator's key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdminRole {
    /// Reads of the admin surface.
    User,
    /// Everything.
    Admin,
}
