//! The configuration of a router's cluster node: names and timings, how other routers reach it and how clients do, and the
//! services of the process that it uses.

use std::io;
use std::net::{IpAddr, SocketAddr};

use smg_cluster as cluster;
use smg_runtime::resolve::Resolver;
use smg_runtime::shortage::Shortages;
use smg_types::ids::NodeName;

use crate::advertise::{self, Wanted};
use crate::durability::{DataConfig, DiskMetrics};
use crate::join_address::JoinAddress;
use crate::security::Config as SecurityConfig;

/// The configuration of a router's cluster node.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// This router's name.
    pub name: NodeName,
    /// The cluster's name, as shown to users.
    pub cluster_name: String,
    /// Timings, bounds, the cluster's id.
    pub node: cluster::Config,
    /// The network with other routers; `None` if this router is a cluster of one, without a mesh port and connections.
    pub network: Option<NetworkConfig>,
    /// Where the state is kept; `None`: in memory only.
    pub data: Option<DataConfig>,
}

/// How other routers reach this one, and how it reaches them.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// The address of the mesh port; port 0 means one that the system chooses.
    pub listen: SocketAddr,
    /// The configured candidates for the address at which other routers reach this one.
    pub advertise: Wanted,
    /// The addresses of other routers to join.
    pub join: Vec<JoinAddress>,
    /// Certificates and shared keys.
    pub security: SecurityConfig,
}

/// The services of the process that the mesh uses, besides sockets and the clock.
#[derive(Debug, Clone)]
pub struct HostServices {
    /// Resolves join addresses.
    pub resolver: Resolver,
    /// Takes reports of shortages of the process's own resources.
    pub shortages: Shortages,
    /// The metrics of the data folder, if there is one.
    pub disk_metrics: Option<DiskMetrics>,
}

/// Why the node can't start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The system refuses the mesh port.
    #[error("cannot listen on {address} (--mesh-host, --mesh-port): {source}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// Another process uses the data folder, or it is none.
    #[error("{0} (--data-dir)")]
    Data(#[from] smg_persist::FolderError),
    /// A certificate or key can't be used.
    #[error(transparent)]
    Tls(#[from] smg_runtime::tls::TlsErrors),
    /// The timings or bounds contradict each other.
    #[error("the mesh configuration is not valid: {0}")]
    Config(String),
}

/// The address and scheme of this router for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientEndpoint {
    /// The address on which the port listens; may be unspecified (`0.0.0.0`).
    pub listen: SocketAddr,
    /// Whether the port needs TLS.
    pub secure: bool,
}

impl ClientEndpoint {
    /// The URL for clients, with the address `reached` if the port listens on all addresses.
    pub(super) fn url(self, reached: IpAddr) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{}", self.address(reached))
    }

    /// The address for clients, with the address `reached` if the port listens on all addresses.
    fn address(self, reached: IpAddr) -> SocketAddr {
        let ip = if self.listen.ip().is_unspecified() { reached } else { self.listen.ip() };
        SocketAddr::new(ip, self.listen.port())
    }

    /// The address that stands for a router without a mesh port: that for clients.
    pub(super) fn address_alone(self) -> SocketAddr {
        self.address(advertise::choose(&Wanted::default(), self.listen.ip(), &[]).0)
    }
}
