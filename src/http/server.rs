//! Listeners and threads: one task accepts connections, and data-path threads serve them.
//!
//! The data path has threads of its own, each with its own runtime: a connection, its requests and their connections to
//! workers stay on one thread. The accepting task passes each connection to the thread that has the fewest. Sockets are
//! bound before anything runs, so that a test can read the actual ports and a busy port is reported at once.

#![expect(clippy::disallowed_methods, reason = "each thread of the data path has a generator")]

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use smg_proxy::dispatch::Dispatcher;
use smg_proxy::upstream::{self, Client};
use smg_runtime::descriptors;
use smg_runtime::tasks::{OnEnd, Tasks};
use smg_runtime::tls::{self, Live};
use tokio::sync::watch;
use tracing::warn;

use super::accept::{self, Acceptor, Lane};
use super::data_thread::DataThread;
use super::idle::{GivesWay, IdleConnections};
use super::shard::Shard;
use super::{Config, OwnAddresses, Surface, public};

/// A port that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({setting}): {source}")]
pub struct BindError {
    /// The address that was to be bound.
    pub address: SocketAddr,
    /// The flags that set it.
    pub setting: &'static str,
    /// The system's error.
    pub source: io::Error,
}

/// Bound sockets that are not served yet.
#[derive(Debug)]
pub struct Server {
    api: TcpListener,
    metrics: Option<TcpListener>,
    health: Option<TcpListener>,
}

/// The handle of a running server.
#[derive(Debug)]
pub struct Running {
    /// The number of open connections of clients.
    open: watch::Receiver<usize>,
    stop_accepting: watch::Sender<bool>,
    closing: watch::Sender<bool>,
    cut: watch::Sender<bool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Binds all ports.
    ///
    /// # Errors
    /// If a port that was set explicitly can't be bound. If the default metrics port is busy, that is only logged.
    pub fn bind(config: &Config) -> Result<Self, BindError> {
        let api = bind(config.listen, "--host, --port")?;
        let metrics = match config.metrics_listen {
            None => None,
            Some(wanted) => match bind(wanted.address, "--prometheus-host, --prometheus-port") {
                Ok(listener) => Some(listener),
                Err(error) if !wanted.asked_for => {
                    warn!(%error, "metrics are served on the main port only");
                    None
                }
                Err(error) => return Err(error),
            },
        };
        let health =
            config.health_listen.map(|address| bind(address, "--health-check-port")).transpose()?;
        Ok(Self { api, metrics, health })
    }

    /// The address on which clients connect.
    ///
    /// # Errors
    /// If the system does not report the address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.api.local_addr()
    }

    /// All addresses at which this router listens, without the mesh's.
    ///
    /// # Errors
    /// If the system does not report the address.
    pub fn own_addresses(&self) -> io::Result<OwnAddresses> {
        let others = [&self.metrics, &self.health].into_iter().flatten();
        let all = std::iter::once(&self.api).chain(others);
        Ok(OwnAddresses::new(all.map(TcpListener::local_addr).collect::<io::Result<_>>()?))
    }

    /// The additional address for Prometheus, if there is one.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// The additional address for probes, if there is one.
    #[must_use]
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Starts threads and accepts connections.
    ///
    /// # Errors
    /// If a socket can't be registered with a runtime, or a thread can't be started.
    pub fn start(
        self,
        surface: &Arc<Surface>,
        upstream: &upstream::Config,
        worker_tls: &Arc<Live<tls::ClientConfig>>,
        listener_tls: Option<&Arc<Live<tls::ServerConfig>>>,
        tasks: &Tasks,
    ) -> io::Result<Running> {
        let (open_tx, open) = watch::channel(0usize);
        let open_tx = Arc::new(open_tx);
        let (stop_accepting, stopped) = watch::channel(false);
        let (closing, closing_rx) = watch::channel(false);
        let (cut, cut_rx) = watch::channel(false);
        let mut threads = Vec::new();
        let mut lanes = Vec::new();
        for at in 0..surface.config.threads.max(1) {
            let (lane, receiver) = Lane::new();
            let dialer = Arc::clone(&surface.dialer);
            let tls = Some(Arc::clone(worker_tls));
            let client = Client::new(upstream.clone(), tls, dialer, surface.clock);
            let chance = SmallRng::from_rng(&mut rand::rng());
            let dispatcher = Dispatcher::new(
                Arc::clone(&surface.dispatch),
                client,
                surface.clock,
                SmallRng::from_rng(&mut rand::rng()),
            );
            let shard = Arc::new(Shard::new(Arc::clone(surface), dispatcher, chance));
            let thread = DataThread {
                shard,
                listener_tls: listener_tls.cloned(),
                closing: closing_rx.clone(),
                cut: cut_rx.clone(),
            };
            let runtime = runtime()?;
            threads.push(
                std::thread::Builder::new()
                    .name(format!("smg-data-{at}"))
                    .spawn(move || thread.run(runtime, receiver))?,
            );
            lanes.push(lane);
        }
        let acceptor = Acceptor {
            listener: to_tokio(self.api)?,
            lanes,
            open: open_tx,
            idle: IdleConnections::new(surface.clock, GivesWay::BeforeFirstRequest, accept::GRACE),
            max_connections: surface.config.max_connections,
            metrics: surface.metrics.clone(),
            dialer: Arc::clone(&surface.dialer),
        };
        tasks.spawn("http.api", OnEnd::Stop, acceptor.run(stopped, tasks.stopping()));
        if let Some(listener) = self.metrics {
            let listener = to_tokio(listener)?;
            let serving = public::serve(listener, Arc::clone(surface), tasks.stopping());
            tasks.spawn("http.metrics", OnEnd::Stop, serving);
        }
        if let Some(listener) = self.health {
            // A thread of its own answers probes even while the data path is saturated.
            let surface = Arc::clone(surface);
            // It ends together with the data path's threads, which are joined with it.
            let stopping = cut_rx;
            let runtime = runtime()?;
            threads.push(std::thread::Builder::new().name("smg-health".to_owned()).spawn(
                move || {
                    let serving = async {
                        let listener = to_tokio(listener)?;
                        public::serve(listener, surface, stopping).await
                    };
                    if let Err(error) = runtime.block_on(serving) {
                        warn!(%error, "the health port ended");
                    }
                },
            )?);
        }
        surface.dialer.descriptors().begin(descriptors::open_now());
        Ok(Running { open, stop_accepting, closing, cut, threads })
    }
}

impl Running {
    /// Stops accepting connections, and ends each open one after the exchange in progress.
    pub fn close(&self) {
        self.stop_accepting.send_replace(true);
        self.closing.send_replace(true);
    }

    /// Resolves when no client is connected any more.
    pub async fn drained(&self) {
        let mut open = self.open.clone();
        // An error means that the acceptor has ended, with all its connections.
        let _gone = open.wait_for(|open| *open == 0).await.is_err();
    }

    /// The number of open connections of clients.
    #[must_use]
    pub fn open(&self) -> usize {
        *self.open.borrow()
    }

    /// Aborts the open connections and ends the threads.
    pub fn cut(self) {
        self.close();
        self.cut.send_replace(true);
        for thread in self.threads {
            if thread.join().is_err() {
                warn!("a thread of the data path has panicked");
            }
        }
    }
}

fn bind(address: SocketAddr, setting: &'static str) -> Result<TcpListener, BindError> {
    let listen = || {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM,
            None,
        )?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    };
    listen().map_err(|source| BindError { address, setting, source })
}

fn to_tokio(listener: TcpListener) -> io::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::from_std(listener)
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
