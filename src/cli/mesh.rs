//! Flags of the mesh: how routers find each other, and when they declare one of them down.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use smg_mesh::JoinAddress;
use smg_types::ids::NodeName;
use smg_types::spec::Secret;

use crate::cli::values::{address, file, node_name, peer_url, secret, span, whole, yes_or_no};

/// Whether and how several routers form a cluster.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Mesh")]
pub struct MeshArgs {
    /// Form a cluster with other routers: share state, survive the loss of any of them.
    #[arg(
        long,
        value_name = "YES",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        value_parser = yes_or_no,
        action = clap::ArgAction::Set
    )]
    pub enable_mesh: bool,
    /// This router's name in the cluster: unique, and the same after a restart.
    ///
    /// A second live router with the same name is refused. Visible ASCII characters, at most 253. Default: the host's
    /// name, followed by the mesh port if that is not 39527, so that two routers of one host differ.
    #[arg(long, value_name = "NAME", value_parser = node_name)]
    pub mesh_server_name: Option<NodeName>,
    /// Address to listen on for other routers.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0", value_parser = address)]
    pub mesh_host: IpAddr,
    /// Port for other routers, 0 to 65535: membership and state, gRPC over TCP; 0: a free port.
    #[arg(long, value_name = "PORT", default_value = "39527", value_parser = whole::<u16>(0, 65_535))]
    pub mesh_port: u16,
    /// Addresses of other routers to join.
    ///
    /// A list of host:port, address:port (IPv6 in brackets) or http(s)://host:port; without a port, 39527. One router
    /// that answers is enough. The list may contain this router itself, so that all routers can have the same list.
    /// Names are resolved to all their addresses, repeatedly. Default: none; the router is a cluster of one that others
    /// may join.
    #[arg(long, value_name = "ADDRESS", num_args = 1.., value_parser = peer_url)]
    pub mesh_peer_urls: Vec<JoinAddress>,
    /// Address that this router announces to the others.
    ///
    /// Default: --mesh-host if that is a single address, else the variable POD_IP, else the local address of the
    /// connection to another router. Set it where addresses are translated (NAT).
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub mesh_advertise_host: Option<IpAddr>,
    /// Name of the cluster. Routers of another cluster are refused, even at a reused address.
    #[arg(long, value_name = "NAME", default_value = "smg", value_parser = node_name)]
    pub mesh_cluster_id: NodeName,
    /// Number of routers that the cluster is meant to have, 1 to 1024.
    ///
    /// Limits are divided into this many shares, so that a router never takes the part of one that it does not see. Set it to the
    /// replicas of the StatefulSet, the same on all routers. Default: none; limits are divided among the routers that have
    /// joined.
    #[arg(long, value_name = "COUNT", value_parser = whole::<u32>(1, 1_024))]
    pub mesh_expected_replicas: Option<u32>,
    /// What becomes of administrators' writes on a router that reaches no majority of the configured routers.
    #[arg(long, value_name = "CHOICE", default_value = "accept")]
    pub mesh_minority_writes: MinorityWrites,
    /// The set of timings that the next flags default to.
    #[arg(long, value_name = "NAME", default_value = "lan")]
    pub mesh_profile: MeshProfile,
    /// Time between two probes of a random router, 100ms to 60s. Default: 800ms (lan), 5s (wan).
    ///
    /// A shorter time detects failures sooner and costs more messages.
    #[arg(long, value_name = "TIME", value_parser = span(100, 60_000))]
    pub mesh_probe_interval: Option<Duration>,
    /// How long a probe may take before other routers are asked to probe, 10ms to 30s. Default: 300ms (lan), 1500ms
    /// (wan).
    ///
    /// At most half of the probe interval. Set it well above the round trip to the farthest router.
    #[arg(long, value_name = "TIME", value_parser = span(10, 30_000))]
    pub mesh_probe_timeout: Option<Duration>,
    /// How long a suspected router may refute before it is declared down, 100ms to 10m. Default: 3s (lan), 15s (wan).
    ///
    /// A longer time tolerates longer pauses of a router. Applies to clusters of up to 50 routers; larger ones wait
    /// longer.
    #[arg(long, value_name = "TIME", value_parser = span(100, 600_000))]
    pub mesh_suspicion_timeout: Option<Duration>,
    /// Time between two comparisons of state with a random router, 100ms to 60s.
    ///
    /// Writes are sent at once; the comparison finds those that were lost.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = span(100, 60_000))]
    pub mesh_sync_interval: Duration,
    /// How long a new router may take to load the cluster's state before it is ready all the same, 0s to 10m.
    ///
    /// Until then /readiness answers `joining`, so that load balancers wait; requests are served.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = span(0, 600_000))]
    pub mesh_join_timeout: Duration,
    /// How many routers probe each worker, 1 to 64; the other routers use their reports.
    ///
    /// More routers test more network paths to a worker, and send it more probes. A router whose own requests fail
    /// probes the worker itself.
    #[arg(long, value_name = "N", default_value = "2", value_parser = whole::<usize>(1, 64))]
    pub health_probers: usize,
    /// How long a router that is down stays listed, 1s to 30d.
    ///
    /// The others try to reach it all that time, so that a partition of that length heals by itself.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = span(1_000, 2_592_000_000))]
    pub mesh_forget_after: Duration,
    /// PEM file with the certificate chain that this router presents to others.
    ///
    /// With --mesh-tls-key and --mesh-tls-ca, the routers use mutual TLS. A name in the certificate must be the
    /// router's name, or begin with that name and a dot. Read again when a file changes and on SIGHUP. Default: none.
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub mesh_tls_cert: Option<PathBuf>,
    /// PEM file with the private key of --mesh-tls-cert.
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub mesh_tls_key: Option<PathBuf>,
    /// PEM file with the authorities that must have signed the other routers' certificates.
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub mesh_tls_ca: Option<PathBuf>,
    /// Keys that all routers share: 32 bytes each, in base64. The first one encrypts what is sent.
    ///
    /// `head -c 32 /dev/urandom | base64` makes one. Prefer the variable or --mesh-encryption-key-file: every process
    /// of the machine can read a command line. At most eight; /ha/keys changes them at run time. Default: none.
    #[arg(long, value_name = "KEY", num_args = 1.., value_parser = secret, hide_env_values = true)]
    pub mesh_encryption_key: Vec<Secret>,
    /// File with the keys that all routers share, one per line; they come before those of --mesh-encryption-key.
    ///
    /// Read again on SIGHUP. If they have changed, they replace all keys of this router, those of /ha/keys included.
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub mesh_encryption_key_file: Option<PathBuf>,
    /// Whether messages between routers are encrypted with the shared key. Default: required with a key, off without.
    #[arg(long, value_name = "MODE")]
    pub mesh_encryption: Option<MeshEncryption>,
    /// Folder in which this router keeps what administrators set: workers, policies, limits and shared keys.
    ///
    /// A restarted router, or a cluster of which all routers have stopped, goes on with it. Each router needs a folder of its
    /// own on a local disk; with --enable-mesh and without it. It is created if there is none. The files are sealed with a
    /// shared key if there is one. Default: none; all state is in memory, and lost when all routers stop.
    #[arg(long, value_name = "FOLDER", value_parser = file)]
    pub data_dir: Option<PathBuf>,
    /// When a change is written to --data-dir and synced.
    #[arg(long, value_name = "WHEN", default_value = "interval")]
    pub persist_fsync: PersistFsync,
}

/// When a change is written to the data folder and synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PersistFsync {
    /// Within 50 ms, together with others: a power failure loses at most that, unless another router has it
    Interval,
    /// At once: an administrator's write is answered when it is on disk, or it is known that the disk does not work
    Always,
}

/// Whether messages between routers are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MeshEncryption {
    /// Messages are not encrypted
    Off,
    /// Messages are encrypted if the receiver has the key, and plain ones are accepted: for a migration
    Permissive,
    /// Messages are encrypted, and plain ones are refused
    Required,
}

/// What becomes of administrators' writes without a majority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MinorityWrites {
    /// They take effect here, and on the other routers when these can be reached again
    Accept,
    /// They are refused with 503 `no_quorum`
    Reject,
}

/// A named set of timings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MeshProfile {
    /// One data centre: a failed router is detected within seconds
    Lan,
    /// Sites with up to half a second of latency: all timings are longer
    Wan,
}
