//! Flags of the mesh: how routers find each other and when they call one of them dead.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use smg_mesh::JoinAddress;
use smg_types::ids::NodeName;
use smg_types::spec::Secret;

use crate::cli::values::{address, file, node_name, peer_url, secret, span, whole, yes_or_no};

/// Whether several routers become one, and how.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Mesh")]
pub struct MeshArgs {
    /// Become one router with others: share what is known, survive the loss of any of them.
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
    /// This router's name among the others: unique, and the same after a restart.
    ///
    /// A second live router with the same name is refused. Visible ASCII characters, at most 253. Default: the host's
    /// name, followed by the mesh port if that is not 39527, so that two routers of one host differ.
    #[arg(long, value_name = "NAME", value_parser = node_name)]
    pub mesh_server_name: Option<NodeName>,
    /// Address to listen on for other routers.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0", value_parser = address)]
    pub mesh_host: IpAddr,
    /// Port for other routers, 0 to 65535: membership and state, gRPC over TCP; 0: any that is free.
    #[arg(long, value_name = "PORT", default_value = "39527", value_parser = whole::<u16>(0, 65_535))]
    pub mesh_port: u16,
    /// Where other routers may be found.
    ///
    /// A list of host:port, address:port (IPv6 in brackets) or http(s)://host:port; without a port, 39527. One that answers
    /// is enough; the list may name this router itself, so that all can be given the same. Names are resolved to all their
    /// addresses, again and again. Default: none, which is a cluster of one that others may join.
    #[arg(long, value_name = "ADDRESS", num_args = 1.., value_parser = peer_url)]
    pub mesh_peer_urls: Vec<JoinAddress>,
    /// Address at which the others reach this router.
    ///
    /// Default: --mesh-host if that is one address, else the variable POD_IP, else the address from which the others are
    /// reached. Give it where addresses are translated.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub mesh_advertise_host: Option<IpAddr>,
    /// Name of the cluster: routers of another one are refused, even at a reused address.
    #[arg(long, value_name = "NAME", default_value = "smg", value_parser = node_name)]
    pub mesh_cluster_id: NodeName,
    /// Which timings the next flags begin from.
    #[arg(long, value_name = "NAME", default_value = "lan")]
    pub mesh_profile: MeshProfile,
    /// Time between two probes of a random router, 100ms to 60s. Default: 800ms (lan), 5s (wan).
    ///
    /// Shorter finds the dead sooner and costs more messages.
    #[arg(long, value_name = "TIME", value_parser = span(100, 60_000))]
    pub mesh_probe_interval: Option<Duration>,
    /// How long a probe may take before others are asked to try, 10ms to 30s. Default: 300ms (lan), 1500ms (wan).
    ///
    /// At most half of the probe interval. Well above the round trip to the farthest router.
    #[arg(long, value_name = "TIME", value_parser = span(10, 30_000))]
    pub mesh_probe_timeout: Option<Duration>,
    /// How long a suspected router may refute before it counts as DOWN, 100ms to 10m. Default: 3s (lan), 15s (wan).
    ///
    /// Longer forgives longer pauses. Applies to clusters of up to 50; larger ones get more.
    #[arg(long, value_name = "TIME", value_parser = span(100, 600_000))]
    pub mesh_suspicion_timeout: Option<Duration>,
    /// Time between two comparisons of state with a random router, 100ms to 60s.
    ///
    /// Writes are pushed at once; this is what finds the ones that were lost.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = span(100, 60_000))]
    pub mesh_sync_interval: Duration,
    /// How long a new router may take to learn what the others know before it is ready all the same, 0s to 10m.
    ///
    /// Until then /readiness says `joining`, so that load balancers wait; requests are served.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = span(0, 600_000))]
    pub mesh_join_timeout: Duration,
    /// How many routers ask each worker how it is, 1 to 64; the others go by what those say.
    ///
    /// More see more ways to a worker, and ask it more often. A router whose own requests fail asks for itself.
    #[arg(long, value_name = "N", default_value = "2", value_parser = whole::<usize>(1, 64))]
    pub health_probers: usize,
    /// How long a router that is DOWN stays listed, 1s to 30d.
    ///
    /// It is looked for all that time, so that a partition of that length heals by itself.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = span(1_000, 2_592_000_000))]
    pub mesh_forget_after: Duration,
    /// Certificate that this router shows to others: a PEM file with its chain.
    ///
    /// With --mesh-tls-key and --mesh-tls-ca, the routers speak mutual TLS. A name in it must be the router's name, or begin
    /// with the name and a point. Read again when a file changes and on SIGHUP. Default: none.
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub mesh_tls_cert: Option<PathBuf>,
    /// Private key of --mesh-tls-cert: a PEM file.
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub mesh_tls_key: Option<PathBuf>,
    /// Authorities that the other routers' certificates come from: a PEM file.
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub mesh_tls_ca: Option<PathBuf>,
    /// Keys that all routers share: 32 bytes each, in base64; what is sent is sealed with the first.
    ///
    /// `head -c 32 /dev/urandom | base64` makes one. Prefer the variable or --mesh-encryption-key-file: a command line can
    /// be read by every process of the machine. Up to eight, changed live by /ha/keys. Default: none.
    #[arg(long, value_name = "KEY", num_args = 1.., value_parser = secret, hide_env_values = true)]
    pub mesh_encryption_key: Vec<Secret>,
    /// File with the keys that all routers share, one a line; they come before those of --mesh-encryption-key.
    ///
    /// Read again on SIGHUP. Keys that have changed replace all that this router has, those of /ha/keys included.
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub mesh_encryption_key_file: Option<PathBuf>,
    /// Whether what routers say is sealed with the shared key. Default: required with a key, off without.
    #[arg(long, value_name = "MODE")]
    pub mesh_encryption: Option<MeshEncryption>,
}

/// Whether frames are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MeshEncryption {
    /// Nothing is sealed
    Off,
    /// Sealed where the other can open it, and what is not sealed is taken: for the time of a change
    Permissive,
    /// Nothing else is taken
    Required,
}

/// A set of timings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MeshProfile {
    /// One data centre: a dead router is known within seconds
    Lan,
    /// Sites with up to half a second between them: slower in everything
    Wan,
}
