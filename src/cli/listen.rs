//! Flags of the HTTP surface: listeners, TLS, keys, probes, shutdown.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::HeaderName;
use smg_types::spec::Secret;

use crate::cli::values::{
    AdminKey, TenantKey, address, admin_key, file, header_name, origin, seconds, secret,
    tenant_key, whole, whole_or_zero,
};

/// Where the router listens for clients, and the limits of their connections.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Listener")]
pub struct ListenArgs {
    /// Address to listen on.
    ///
    /// 0.0.0.0 listens on all IPv4 addresses, :: on all IPv4 and IPv6 addresses, 127.0.0.1 on loopback only.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0", value_parser = address)]
    pub host: IpAddr,
    /// Port to listen on, 0 to 65535; 0: a free port, which the log shows.
    ///
    /// If SMG_PORT has the form tcp://…, it comes from Kubernetes, which sets it for a Service named smg: the router
    /// ignores it and logs a warning.
    #[arg(long, value_name = "PORT", default_value = "8000", value_parser = whole::<u16>(0, 65_535))]
    pub port: u16,
    /// Largest request body, 1024 to 4294967296 bytes.
    ///
    /// A larger one is answered 413. A body is held in memory until its request can no longer be retried.
    #[arg(
        long,
        value_name = "BYTES",
        default_value = "536870912",
        value_parser = whole::<usize>(1024, 1 << 32)
    )]
    pub max_payload_size: usize,
    /// Memory for the bodies of all requests together, 1024 to 1099511627776 bytes; 0: a share of the memory that the
    /// router may use.
    ///
    /// The share is a sixth of what is beyond 96 MiB, 8 MiB to 2 GiB: 26 MiB of 256 MiB, 325 MiB of 2 GiB.
    /// The memory that the router may use is the limit of its control group (a container's limit), or else the memory of
    /// the machine. A request that finds no room is answered 503, one that is larger than all of it 413.
    #[arg(
        long,
        value_name = "BYTES",
        default_value = "0",
        value_parser = whole_or_zero::<usize>(1024, 1 << 40)
    )]
    pub max_buffered_bytes: usize,
    /// Decodes compressed request bodies (content-encoding gzip, zstd, br or deflate) before they go to a worker.
    ///
    /// The decoded body may be as large as --max-payload-size allows. Without this flag a compressed body is answered
    /// 415, because the router cannot read the model's name in it.
    #[arg(
        long,
        value_name = "YES",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        value_parser = crate::cli::values::yes_or_no,
        action = clap::ArgAction::Set
    )]
    pub decompress_requests: bool,
    /// Sends workers no x-forwarded-for, x-forwarded-proto and x-forwarded-host of this router.
    ///
    /// By default the client's address is appended to x-forwarded-for; the other two are set unless the request has them.
    #[arg(
        long,
        value_name = "YES",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub disable_forwarded_headers: bool,
    /// How long a request's head may take to arrive, 0.001 to 3600 seconds.
    ///
    /// Limits clients that send single bytes with long pauses, and those that send nothing: the time of a connection's
    /// first request begins when the client has connected. Applies to every port.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds(0.001, 3600.0))]
    pub header_timeout_secs: Duration,
    /// How long a client's idle connection is kept, 0.001 to 86400 seconds.
    ///
    /// Must be longer than the idle timeout of the proxies and load balancers in front. Otherwise they may send a
    /// request on a connection that the router is closing.
    #[arg(long, value_name = "SECONDS", default_value = "75", value_parser = seconds(0.001, 86_400.0))]
    pub idle_connection_timeout_secs: Duration,
    /// How long a client may pause within a request's or a response's body, 0.001 to 3600 seconds.
    ///
    /// The whole body of a request may take ten times as long. A client that reads nothing of its response for this
    /// long is disconnected (over HTTP/2 its stream is reset), because its request occupies a worker.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds(0.001, 3600.0))]
    pub body_timeout_secs: Duration,
    /// The most client connections at the same time, 1 to 1000000.
    ///
    /// At the limit, the oldest connection that has made no request is closed for a new one. Without such a connection,
    /// the new one is closed at once and counted. The hard limit on open files (ulimit -Hn) must allow about twice as
    /// many. If it does not, the router warns at its start, and accepts only so many clients that a quarter of the limit
    /// remains for connections to workers.
    #[arg(
        long,
        value_name = "N",
        default_value = "32768",
        value_parser = whole::<usize>(1, 1_000_000)
    )]
    pub max_connections: usize,
    /// Threads that forward requests, 0 to 1024; 0: one per CPU.
    ///
    /// Set it to the CPU request of a container that has no CPU limit.
    #[arg(long, value_name = "N", default_value = "0", value_parser = whole::<usize>(0, 1024))]
    pub threads: usize,
    /// Request headers in which clients send a request's id, in order of preference.
    ///
    /// The router uses the first header that the request has, if its value is 1 to 128 visible ASCII characters, and
    /// otherwise makes an id. Worker and client receive the id as x-request-id. A list of at most 16 names.
    #[arg(
        long,
        value_name = "HEADER",
        num_args = 1..,
        default_values = ["x-request-id", "x-correlation-id", "x-trace-id", "request-id"],
        value_parser = header_name
    )]
    pub request_id_headers: Vec<HeaderName>,
    /// Origins from which browsers may call the router; *: all.
    ///
    /// A list of `scheme://host[:port]`. Default: none; the router sends no CORS headers.
    #[arg(long, value_name = "ORIGIN", num_args = 1.., value_parser = origin)]
    pub cors_allowed_origins: Vec<String>,
}

/// TLS on the connections with clients and workers.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// PEM file with the certificate chain that the router presents to clients.
    ///
    /// Needs --tls-key-path; the two together turn TLS on. Read again on SIGHUP. Default: none, plain HTTP.
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub tls_cert_path: Option<PathBuf>,
    /// PEM file with the private key of --tls-cert-path.
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub tls_key_path: Option<PathBuf>,
    /// PEM file with the authorities that must have signed client certificates.
    ///
    /// The handshake fails for clients without such a certificate. Needs --tls-cert-path. Read again on SIGHUP.
    /// Default: none, clients are not asked for a certificate.
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub client_ca_path: Option<PathBuf>,
    /// PEM file with the authorities that must have signed the certificates of https:// workers.
    ///
    /// Read again on SIGHUP. Default: the system's authorities.
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub worker_tls_ca: Option<PathBuf>,
    /// PEM file with the certificate chain that the router presents to workers.
    ///
    /// Needs --worker-tls-key. Read again on SIGHUP. Default: none, for workers that don't ask for a certificate.
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub worker_tls_cert: Option<PathBuf>,
    /// PEM file with the private key of --worker-tls-cert.
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub worker_tls_key: Option<PathBuf>,
}

/// Who may use the router.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Access")]
pub struct AccessArgs {
    /// Keys that clients may send as `authorization: Bearer KEY`.
    ///
    /// A list, so that a key can be replaced without an interruption. Default: none; if --tenant-api-key is not set
    /// either, every client is admitted. Prefer the variable: every process of the machine can read a command line.
    #[arg(long, value_name = "KEY", num_args = 1.., value_parser = secret, hide_env_values = true)]
    pub api_key: Vec<Secret>,
    /// Keys of tenants, as id:key.
    ///
    /// A list; a tenant may have several keys. Log lines of level debug name the tenant of a request; the id has no
    /// other effect. It has 1 to 64 letters, digits, dashes, underscores or dots. Default: none.
    #[arg(
        long,
        value_name = "ID:KEY",
        num_args = 1..,
        value_parser = tenant_key,
        hide_env_values = true
    )]
    pub tenant_api_key: Vec<TenantKey>,
    /// Keys for the admin routes (/workers, /ha and the like), as KEY or id:name:role:KEY.
    ///
    /// A list. The role is admin (everything) or user (reads only); a plain KEY has the role admin. A client key must
    /// not be the same. Default: none; admin routes then require a key of --api-key. Without those too, admin writes
    /// are accepted from this machine only, and never through a proxy.
    #[arg(
        long,
        value_name = "KEY",
        num_args = 1..,
        value_parser = admin_key,
        hide_env_values = true
    )]
    pub admin_api_key: Vec<AdminKey>,
    /// Paths that clients may send to workers: documented, and prefixes such as /v1/custom.
    ///
    /// documented stands for the inference paths that engines document, which the page on engines lists. A prefix opens
    /// its path and all paths below it, for every method and for WebSocket; give documented beside it to keep the others.
    /// No prefix opens a path that changes an engine, or one of the router's own. A list.
    #[arg(
        long,
        value_name = "PREFIX",
        num_args = 1..,
        default_value = "documented",
        value_parser = crate::cli::values::passed_path
    )]
    pub pass_through: Vec<String>,
    /// Accepts admin writes from every address while no key is configured.
    ///
    /// Everyone who reaches the port can then add, change and remove workers. Use it only in networks that nobody else
    /// reaches.
    #[arg(
        long,
        value_name = "YES",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        value_parser = crate::cli::values::yes_or_no,
        action = clap::ArgAction::Set
    )]
    pub admin_open: bool,
}

/// How the router answers probes.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Probes")]
pub struct ProbeArgs {
    /// Additional port for /liveness, /readiness and /health, 0 to 65535; 0: none.
    ///
    /// A thread of its own serves it on --host, so that probes are answered while the router is saturated.
    #[arg(long, value_name = "PORT", default_value = "0", value_parser = whole::<u16>(0, 65_535))]
    pub health_check_port: u16,
    /// Ready workers below which /readiness answers 503, 0 to 65535.
    ///
    /// With 0 the router is ready without a worker.
    #[arg(long, value_name = "N", default_value = "1", value_parser = whole::<usize>(0, 65_535))]
    pub min_ready_workers: usize,
}

/// How the router shuts down.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Shutdown")]
pub struct ShutdownArgs {
    /// How long requests are still accepted after /readiness answers 503, 0 to 3600 seconds.
    ///
    /// Long enough for the load balancer in front to notice.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds(0.0, 3600.0))]
    pub drain_settle_secs: Duration,
    /// How long requests and streams in flight may take to finish, 0 to 86400 seconds.
    ///
    /// Streams that take longer are aborted and the exit status is 1. In Kubernetes, terminationGracePeriodSeconds must
    /// exceed the sum of this and --drain-settle-secs.
    #[arg(long, value_name = "SECONDS", default_value = "180", value_parser = seconds(0.0, 86_400.0))]
    pub shutdown_grace_period_secs: Duration,
}
