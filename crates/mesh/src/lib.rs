//! The machinery that connects routers: sockets, clock and tasks around `cluster`, which does the thinking.
//!
//! Everything here runs on a thread and runtime of its own, so that a flood of requests never delays a probe and makes a
//! healthy router look dead. One task, the driver, owns the `cluster::Node`; links carry its frames out, the server brings
//! the others' in, `join` resolves names. The rest of the router holds a [`Handle`]: the newest [`View`], happenings as
//! they happen, and visits to the node.
//!
//! Not here: what any of it means for requests. That is `bridge`'s and `fleet`'s.

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
use smg_cluster::state::stores::News;
use smg_cluster::{self as cluster, Node};
use smg_runtime::tasks::{OnEnd, Tasks};
use smg_types::ids::{NodeId, NodeName};
use smg_types::now::Now;

/// The port of the mesh.
pub const DEFAULT_PORT: u16 = 39527;

/// When each store was last compared with, or changed by, another router: since the Unix epoch.
pub type Synced = std::collections::BTreeMap<cluster::state::StoreId, Duration>;

/// How long the end of the mesh may take: LEAVING was told long before.
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
    /// Where to listen.
    pub listen: SocketAddr,
    /// What was said of the address to be reached at.
    pub advertise: Wanted,
    /// Where others may be.
    pub join: Vec<JoinAddress>,
    /// How it is protected.
    pub security: SecurityConfig,
}

/// What the mesh uses of its process, besides sockets and the clock.
#[derive(Debug, Clone)]
pub struct HostServices {
    /// Resolves join addresses.
    pub resolver: Resolver,
    /// Where shortages of the process's own resources are reported.
    pub shortages: Shortages,
}

/// A mesh that can't begin.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Its port could not be had.
    #[error("cannot listen on {address} (--mesh-host, --mesh-port): {source}")]
    Listen {
        /// What was wanted.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Its certificates can't be used.
    #[error(transparent)]
    Tls(#[from] smg_runtime::tls::TlsErrors),
    /// Its numbers can't work.
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

/// Everybody that this router knows of, as of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// This router.
    pub me: MemberView,
    /// The others that are listed, the dead included, by name.
    pub members: Vec<MemberView>,
    /// Why this router can't join, while it can't.
    pub refused: Option<RefusalReason>,
    /// Grows with each change of the members.
    pub version: u64,
    /// This router has once had all that another had.
    pub warm: bool,
}

impl View {
    /// The others that take part: ALIVE and, since that is only information, SUSPECTED.
    pub fn present(&self) -> impl Iterator<Item = &MemberView> {
        self.members.iter().filter(|member| match member.state {
            MemberState::Alive | MemberState::Suspected => true,
            MemberState::Init | MemberState::Down | MemberState::Leaving => false,
        })
    }

    /// Whether there is anybody else.
    #[must_use]
    pub fn has_others(&self) -> bool {
        self.present().next().is_some()
    }
}

/// Something that happened in the cluster, as seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// Counted from 1 since the start of this router.
    pub number: u64,
    /// When, since the Unix epoch.
    pub at: Duration,
    /// What.
    pub what: What,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Another router's state changed.
    Member {
        /// Whose, and how.
        transition: Transition,
        /// Where it is, while it is listed.
        address: Option<SocketAddr>,
    },
    /// This router's state changed.
    Me {
        /// Before.
        from: MemberState,
        /// After.
        to: MemberState,
    },
    /// This router was declared DOWN while alive, and said so.
    Renewed,
    /// This router goes on as another writer.
    Reborn {
        /// As which.
        is: NodeId,
    },
    /// This router can't join.
    Refused(RefusalReason),
    /// Another live router claims this one's name.
    NameContested(Identity),
}

/// Keeps a picture of the shared state in step, on the mesh's thread: it must be quick and never wait.
pub trait Follower: Send + std::fmt::Debug {
    /// Something has changed: `news` says where, `members` whether others came, left, died or came back. Called before any
    /// other router is told that this one has applied it.
    fn follow(&mut self, node: &mut Node, news: &News, members: bool, now: Now);
}

/// A mesh that runs.
#[derive(Debug)]
pub struct Running {
    handle: Handle,
    stop: watch::Sender<bool>,
    thread: std::thread::JoinHandle<()>,
}

impl Mesh {
    /// Creates the node. If it has a network, binds the port and finds out where other routers reach this one, as far as
    /// that is known without resolving a name. `clients` says how clients reach it, which the other routers learn too.
    ///
    /// # Errors
    /// If the port can't be had, or the configuration is one that can't work.
    pub fn bind(
        config: Config,
        clock: Clock,
        metrics: Metrics,
        clients: Clients,
        services: HostServices,
    ) -> Result<Self, BindError> {
        let port = config.network.as_ref().map(Port::bind).transpose()?;
        let address = port.as_ref().map_or_else(|| clients.address_alone(), |port| port.address);
        let provisional = port.as_ref().is_some_and(|port| port.source.is_provisional());
        let (handle, mut engine, ends) = assemble(
            config,
            clock,
            metrics.clone(),
            clients,
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

    /// From the start on, `follower` is told what changes.
    pub fn follow(&mut self, follower: Box<dyn Follower>) {
        self.engine.follower = Some(follower);
    }

    /// What the rest of the router holds. It answers once the node runs.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Starts the thread.
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
                // Whoever watched may have ended before.
                Ok(()) => drop(ended_tx.send(())),
                // Dropped without a word, as by a panic: the node has failed.
                Err(error) => error!(error = format!("{error:#}"), "the mesh has failed"),
            }
        })?;
        let stopping = tasks.clone();
        // Only a line in the log, never the end of the process: requests are routed without the node.
        tasks.spawn("mesh", OnEnd::Log, async move {
            let has_failed = tokio::select! {
                ended = ended => ended.is_err(),
                () = stopping.stopped() => false,
            };
            if has_failed {
                error!(
                    "the cluster node has failed: requests are routed by what was known last, administrators' writes are \
                     refused, other routers take this one for DOWN; restart this router"
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

/// How clients reach this router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clients {
    /// The port's address, perhaps all addresses.
    pub listen: SocketAddr,
    /// Whether it speaks TLS.
    pub secure: bool,
}

impl Clients {
    /// The URL, with `reached` where the port listens on all addresses.
    fn url(self, reached: IpAddr) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{}", self.address(reached))
    }

    /// Address and port, with `reached` where the port listens on all addresses.
    fn address(self, reached: IpAddr) -> SocketAddr {
        let ip = if self.listen.ip().is_unspecified() { reached } else { self.listen.ip() };
        SocketAddr::new(ip, self.listen.port())
    }

    /// The address of a router that has no mesh port: where clients reach it.
    fn address_alone(self) -> SocketAddr {
        self.address(advertise::choose(&Wanted::default(), self.listen.ip(), &[]).0)
    }
}

impl Running {
    /// Tells everybody that this router is gone, sends what is queued, and ends the thread.
    pub async fn depart(self) {
        let Self { handle, stop, thread } = self;
        if tokio::time::timeout(DEPARTURE, handle.depart()).await.is_err() {
            warn!("the mesh did not end in time");
        }
        stop.send_replace(true);
        let is_networked = handle.is_networked();
        // Joined where waiting is allowed; it has nothing left to do.
        let joined = tokio::task::spawn_blocking(move || thread.join());
        match tokio::time::timeout(DEPARTURE, joined).await {
            Ok(Ok(Ok(()))) if is_networked => info!("left the mesh"),
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(_)) | Err(_)) => warn!("the mesh's thread has panicked"),
            Err(_elapsed) => warn!("the mesh's thread did not end in time"),
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
