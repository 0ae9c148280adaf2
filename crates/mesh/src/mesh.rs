//! Starts and ends a cluster node: binds its port, runs its thread, and departs from the cluster.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use smg_runtime::clock::Clock;
use smg_runtime::tasks::{OnEnd, Tasks};
use smg_types::ids::NodeId;
use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};

use crate::advertise::{self, Source};
use crate::config::{BindError, ClientEndpoint, Config, HostServices, NetworkConfig};
use crate::durability::{DiskHandle, DiskMetrics};
use crate::engine::{Ends, Engine, assemble};
use crate::handle::Handle;
use crate::metrics::Metrics;
use crate::net;
use crate::view::Follower;

/// How long the departure may take. The members have known of it long before, through LEAVING.
const DEPARTURE: Duration = Duration::from_secs(2);

/// A cluster node that is not running yet. Its port is bound if it has a network.
#[derive(Debug)]
pub struct Mesh {
    handle: Handle,
    engine: Engine,
    port: Option<Port>,
    stop: watch::Sender<bool>,
    failed: watch::Sender<bool>,
    metrics: Metrics,
    disk_metrics: Option<DiskMetrics>,
}

/// The bound mesh port and its advertised address.
#[derive(Debug)]
struct Port {
    listener: TcpListener,
    /// The address at which other routers reach it.
    address: SocketAddr,
    /// Where that address came from.
    source: Source,
}

/// A running cluster node.
#[derive(Debug)]
pub struct Running {
    pub(super) handle: Handle,
    stop: watch::Sender<bool>,
    thread: std::thread::JoinHandle<()>,
    disk_thread: Option<std::thread::JoinHandle<()>>,
}

impl Mesh {
    /// Creates the node. If it has a network, binds the port and chooses the advertised address, as far as that is
    /// possible without resolving a name. `client_endpoint` is the address of this router for clients, which the other
    /// routers also receive.
    ///
    /// # Errors
    /// If the port can't be bound, or the configuration is not valid.
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
        let disk_metrics = services.disk_metrics.clone();
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
        Ok(Self { handle, engine, port, stop, failed, metrics, disk_metrics })
    }

    /// Makes `follower` apply all changes, from the start on. It applies what was loaded from disk before this returns.
    pub fn follow(&mut self, follower: Box<dyn Follower>) {
        self.engine.follow(follower);
    }

    /// The handle for the rest of the router. The node answers visits after [`Mesh::start`].
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Starts the node's thread.
    ///
    /// # Errors
    /// If the system refuses a thread or a runtime.
    pub fn start(self, tasks: &Tasks) -> io::Result<Running> {
        let Self { handle, mut engine, port, stop, failed, metrics, disk_metrics } = self;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = port
            .map(|port| {
                port.log(&engine.node.me().node, &handle.config.cluster_name);
                let _inside = runtime.enter();
                tokio::net::TcpListener::from_std(port.listener)
            })
            .transpose()?;
        metrics.node_up.set(1);
        let keeper =
            engine.data.take().and_then(|data| data.into_keeper(engine.clock, disk_metrics));
        let disk_thread = keeper
            .map(|keeper| {
                std::thread::Builder::new().name("smg-disk".to_owned()).spawn(move || keeper.run())
            })
            .transpose()?;
        let (ended_tx, ended) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("smg-mesh".to_owned()).spawn(move || {
            match runtime.block_on(engine.run(listener)) {
                // The watching task may have ended before.
                Ok(()) => drop(ended_tx.send(())),
                // The sender is dropped without sending, as by a panic, which means that the node has failed.
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
                    "the cluster node has failed: this router routes by its last state and refuses administrators' \
                     writes, other routers list it as DOWN; restart it"
                );
                metrics.node_up.set(0);
                failed.send_replace(true);
            }
            Ok(())
        });
        Ok(Running { handle, stop, thread, disk_thread })
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
            warn!("only routers of this machine can reach this one: set --mesh-advertise-host");
        }
    }
}

impl Running {
    /// Leaves the cluster, sends what is queued, and ends the thread.
    pub async fn depart(self) {
        let Self { handle, stop, thread, disk_thread } = self;
        if tokio::time::timeout(DEPARTURE, handle.depart()).await.is_err() {
            warn!("the cluster node did not leave in time");
        }
        stop.send_replace(true);
        let is_networked = handle.is_networked();
        // Joining blocks, which this runtime must not; the thread has nothing left to do.
        let disk = handle.disk.clone();
        let joined = tokio::task::spawn_blocking(move || {
            let joined = thread.join();
            // The last changes are handed over: the thread of the disk writes them and ends.
            disk.iter().for_each(DiskHandle::stop);
            joined.and_then(|()| disk_thread.map_or(Ok(()), std::thread::JoinHandle::join))
        });
        match tokio::time::timeout(DEPARTURE, joined).await {
            Ok(Ok(Ok(()))) if is_networked => info!("left the mesh"),
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(_)) | Err(_)) => warn!("the thread smg-mesh or smg-disk has panicked"),
            Err(_elapsed) => warn!("the thread smg-mesh or smg-disk did not end in time"),
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
