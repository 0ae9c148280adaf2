//! Runs the cluster node, and connects it with those of other routers: sockets, clock and tasks around `cluster`, which
//! decides.
//!
//! Everything here runs on a thread and a runtime of its own: a flood of requests must not delay a probe, or a healthy
//! router would look dead. One task, the driver, owns the `cluster::Node`. Links send its frames, the server receives those
//! of other routers, `join` resolves names. A router that nobody can join has the driver only. The rest of the router holds
//! a [`Handle`]: it gives the newest [`View`] and the events, and runs visits to the node.
//!
//! Not here: what any of it means for requests. That is in `bridge` and `fleet`.

mod advertise;
mod driver;
mod engine;
mod handle;
mod join;
mod keys;
mod link;
mod metrics;
mod net;
mod queue;
mod seal;
mod security;
mod server;
mod status;
mod wire;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};

pub use advertise::{Source, Wanted};
pub use handle::{Handle, KeyReceipts, KeysError, VisitError};
pub use join::{JoinAddress, ParseJoinAddressError};
pub use link::{LaneStatus, LinkStatus};
pub use metrics::Metrics;
pub use seal::{KeyId, Mode, ParseKeyError, Ring, RingError, SharedKey};
pub use security::{Config as SecurityConfig, KeyChange};
pub use status::{
    ConnectionStatus, Drift, Health, JoinStatus, NodeStatus, PeerStatus, Router, Status,
    StoreStatus, rfc3339,
};

pub use smg_cluster::membership::MemberState;
use smg_runtime::clock::Clock;
use smg_runtime::resolve::Resolver;
use smg_runtime::shortage::Shortages;

use engine::{Ends, Engine, assemble};
use smg_cluster::membership::{Identity, MemberView, RefusalReason, Transition};
use smg_cluster::state::stores::ChangedKeys;
use smg_cluster::{self as cluster, Node};
use smg_runtime::tasks::{OnEnd, Tasks};
use smg_types::ids::{NodeId, NodeName};
use smg_types::now::Now;

/// The port of the mesh.
pub const DEFAULT_PORT: u16 = 39527;

/// When each store was last compared with another router's or changed by one, as time since the Unix epoch.
pub type Synced = std::collections::BTreeMap<cluster::state::StoreId, Duration>;

/// How long the departure may take. The members learnt of it long before, by LEAVING.
const DEPARTURE: Duration = Duration::from_secs(2);

/// The configuration of a router's cluster node.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// This router's name.
    pub name: NodeName,
    /// The cluster's name, for people.
    pub cluster_name: String,
    /// Timings, bounds, the cluster's id.
    pub node: cluster::Config,
    /// How other routers reach this one and are reached; `None`: this router is a cluster of one, listens on no mesh port
    /// and connects to nobody.
    pub network: Option<NetworkConfig>,
}

/// How other routers reach this one and are reached.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// The address of the mesh port; port 0: one that the system chooses.
    pub listen: SocketAddr,
    /// What flags and environment say of the address under which other routers reach this one.
    pub advertise: Wanted,
    /// Addresses where other routers may be.
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
    /// The certificates can't be used.
    #[error(transparent)]
    Tls(#[from] smg_runtime::tls::TlsErrors),
    /// The timings or bounds contradict each other.
    #[error("the mesh can't work like this: {0}")]
    Config(String),
}

/// A cluster node that does not run yet, its port bound if it has a network.
#[derive(Debug)]
pub struct Mesh {
    handle: Handle,
    engine: Engine,
    port: Option<Port>,
    stop: watch::Sender<bool>,
    failed: watch::Sender<bool>,
    metrics: Metrics,
}

/// The mesh port.
#[derive(Debug)]
struct Port {
    listener: TcpListener,
    /// Where other routers reach it.
    address: SocketAddr,
    /// Where that address came from.
    source: Source,
}

/// The members of the cluster at one moment, as this router lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// This router.
    pub me: MemberView,
    /// The other members, by name; those that are DOWN are among them until they are forgotten.
    pub members: Vec<MemberView>,
    /// Why this router can't join, while it can't.
    pub refused: Option<RefusalReason>,
    /// Grows with each change of the members.
    pub version: u64,
    /// Whether this router has once had everything that some other router had.
    pub warm: bool,
}

impl View {
    /// The other members that are ALIVE or SUSPECTED. A suspicion is information: it removes nobody.
    pub fn present(&self) -> impl Iterator<Item = &MemberView> {
        self.members.iter().filter(|member| match member.state {
            MemberState::Alive | MemberState::Suspected => true,
            MemberState::Init | MemberState::Down | MemberState::Leaving => false,
        })
    }

    /// Whether another member is ALIVE or SUSPECTED.
    #[must_use]
    pub fn has_others(&self) -> bool {
        self.present().next().is_some()
    }
}

/// A change of the membership, as seen by this router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterEvent {
    /// Counts this router's events from 1.
    pub number: u64,
    /// When it happened, as time since the Unix epoch.
    pub at: Duration,
    /// What changed.
    pub kind: ClusterEventKind,
}

/// What changed in the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterEventKind {
    /// Another router's state changed.
    Member {
        /// The router, its state before and its state now.
        transition: Transition,
        /// The router's address, while it is listed.
        address: Option<SocketAddr>,
    },
    /// This router's state changed.
    Me {
        /// The state before.
        from: MemberState,
        /// The state now.
        to: MemberState,
    },
    /// Another router declared this one DOWN while it was alive, and this router refuted that.
    Renewed,
    /// This router goes on under a new generation, because other routers know a later one than its own.
    Reborn {
        /// The name and the new generation.
        is: NodeId,
    },
    /// This router can't join.
    Refused(RefusalReason),
    /// Another live router claims this one's name.
    NameContested(Identity),
}

/// Applies changes of the shared state to the rest of the router. The driver calls it on the mesh's thread, so it must be
/// quick and must not wait.
pub trait Follower: Send + std::fmt::Debug {
    /// Applies what has changed: `changed` holds the keys, `members` says whether the list of members has changed. The
    /// driver calls it before this router acknowledges the change to any other.
    fn apply(&mut self, node: &mut Node, changed: &ChangedKeys, members: bool, now: Now);
}

/// A cluster node that runs.
#[derive(Debug)]
pub struct Running {
    handle: Handle,
    stop: watch::Sender<bool>,
    thread: std::thread::JoinHandle<()>,
}

impl Mesh {
    /// Creates the node. If it has a network, binds the port and finds out where other routers reach this one, as far as
    /// that is known without resolving a name. `client_endpoint` says how clients reach it, which the other routers learn too.
    ///
    /// # Errors
    /// If the port can't be had, or the configuration is one that can't work.
    pub fn bind(
        config: Config,
        clock: Clock,
        metrics: Metrics,
        client_endpoint: ClientEndpoint,
        services: HostServices,
    ) -> Result<Self, BindError> {
        let port = config.network.as_ref().map(Port::bind).transpose()?;
        let address =
            port.as_ref().map_or_else(|| client_endpoint.address_alone(), |port| port.address);
        let provisional = port.as_ref().is_some_and(|port| port.source.is_provisional());
        let (handle, mut engine, ends) = assemble(
            config,
            clock,
            metrics.clone(),
            client_endpoint,
            address,
            Arc::new(net::Tcp),
            services,
        )?;
        if let Some(network) = &mut engine.network {
            network.joiner.provisional = provisional.then_some(address);
        }
        let Ends { stop, failed } = ends;
        Ok(Self { handle, engine, port, stop, failed, metrics })
    }

    /// Lets `follower` apply all changes, from the start on.
    pub fn follow(&mut self, follower: Box<dyn Follower>) {
        self.engine.follower = Some(follower);
    }

    /// The handle for the rest of the router. The node answers once it runs.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Starts the node's thread.
    ///
    /// # Errors
    /// If the system refuses a thread or a runtime.
    pub fn start(self, tasks: &Tasks) -> io::Result<Running> {
        let Self { handle, engine, port, stop, failed, metrics } = self;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = port
            .map(|port| {
                port.log(&engine.node.me().node, &handle.config.cluster_name);
                let _inside = runtime.enter();
                tokio::net::TcpListener::from_std(port.listener)
            })
            .transpose()?;
        metrics.node_up.set(1);
        let (ended_tx, ended) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("smg-mesh".to_owned()).spawn(move || {
            match runtime.block_on(engine.run(listener)) {
                // The watching task may have ended before.
                Ok(()) => drop(ended_tx.send(())),
                // The sender is dropped unused, as by a panic: the node has failed.
                Err(error) => error!(error = format!("{error:#}"), "the mesh has failed"),
            }
        })?;
        let stopping = tasks.clone();
        // The end of the node must not end the process: requests are routed without it.
        tasks.spawn("mesh", OnEnd::Log, async move {
            let has_failed = tokio::select! {
                ended = ended => ended.is_err(),
                () = stopping.stopped() => false,
            };
            if has_failed {
                error!(
                    "the cluster node has failed: this router routes by what it knew last and refuses administrators' \
                     writes, other routers list it as DOWN; restart it"
                );
                metrics.node_up.set(0);
                failed.send_replace(true);
            }
            Ok(())
        });
        Ok(Running { handle, stop, thread })
    }
}

impl Port {
    fn bind(config: &NetworkConfig) -> Result<Self, BindError> {
        let (listener, bound) = listen(config.listen)
            .map_err(|source| BindError::Listen { address: config.listen, source })?;
        let (ip, source) = advertise::choose(&config.advertise, config.listen.ip(), &config.join);
        Ok(Self { listener, address: SocketAddr::new(ip, bound.port()), source })
    }

    fn log(&self, node: &NodeId, cluster: &str) {
        let Self { address, source, .. } = self;
        info!(%node, %address, ?source, cluster, "mesh");
        if *source == Source::Loopback {
            warn!("only routers of this machine can reach this one: give --mesh-advertise-host");
        }
    }
}

/// The port where clients reach this router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientEndpoint {
    /// The address on which the port listens; may be unspecified (`0.0.0.0`).
    pub listen: SocketAddr,
    /// Whether the port needs TLS.
    pub secure: bool,
}

impl ClientEndpoint {
    /// The URL for clients, with the address `reached` if the port listens on all addresses.
    fn url(self, reached: IpAddr) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{}", self.address(reached))
    }

    /// The address for clients, with the address `reached` if the port listens on all addresses.
    fn address(self, reached: IpAddr) -> SocketAddr {
        let ip = if self.listen.ip().is_unspecified() { reached } else { self.listen.ip() };
        SocketAddr::new(ip, self.listen.port())
    }

    /// The address that stands for a router without a mesh port: the one for clients.
    fn address_alone(self) -> SocketAddr {
        self.address(advertise::choose(&Wanted::default(), self.listen.ip(), &[]).0)
    }
}

impl Running {
    /// Leaves the cluster, sends what is queued, and ends the thread.
    pub async fn depart(self) {
        let Self { handle, stop, thread } = self;
        if tokio::time::timeout(DEPARTURE, handle.depart()).await.is_err() {
            warn!("the cluster node did not leave in time");
        }
        stop.send_replace(true);
        let is_networked = handle.is_networked();
        // Joining blocks, which this runtime must not; the thread has nothing left to do.
        let joined = tokio::task::spawn_blocking(move || thread.join());
        match tokio::time::timeout(DEPARTURE, joined).await {
            Ok(Ok(Ok(()))) if is_networked => info!("left the mesh"),
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(_)) | Err(_)) => warn!("the thread smg-mesh has panicked"),
            Err(_elapsed) => warn!("the thread smg-mesh did not end in time"),
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    let listener: TcpListener = socket.into();
    let address = listener.local_addr()?;
    Ok((listener, address))
}

#[cfg(test)]
mod tests;
