//! Listeners and threads: who accepts connections, and which thread serves them.
//!
//! The data path runs on threads of its own, each with a runtime of its own: a connection, the requests on it and their
//! connections to workers stay on one thread. One task accepts and gives each connection to the thread that has the
//! fewest. Sockets are bound before anything runs, so that a test can read the real ports and a busy port is told at
//! once.

#![expect(
    clippy::disallowed_methods,
    reason = "connections are tasks that end with their connection, counted here"
)]

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use smg_proxy::dispatch::Dispatcher;
use smg_proxy::upstream::{self, Client};
use smg_runtime::descriptors;
use smg_runtime::dial::Dialer;
use smg_runtime::shortage::Kind;
use smg_runtime::tasks::{OnEnd, Tasks, turned_on};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use super::body::Body;
use super::connection::{Patience, State, serve_http1, serve_http2};
use super::shard::Shard;
use super::{Config, Surface, headers, local};

/// Connections that wait for their thread to take them.
const HANDOVER: usize = 1024;

/// How often a thread looks for connections to workers that are no longer needed.
const EVICT: Duration = Duration::from_secs(5);

/// How often the acceptor looks whether there are descriptors again.
const SCARCE_LOOK: Duration = Duration::from_millis(10);

/// After a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A port that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({setting}): {source}")]
pub struct BindError {
    /// What was wanted.
    pub address: SocketAddr,
    /// The flags that ask for it.
    pub setting: &'static str,
    /// Why not.
    pub source: io::Error,
}

/// Bound sockets, not served yet.
#[derive(Debug)]
pub struct Server {
    api: TcpListener,
    metrics: Option<TcpListener>,
    health: Option<TcpListener>,
}

/// What a running server can be told.
#[derive(Debug)]
pub struct Running {
    /// Clients' connections that are open.
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
    /// If one that was asked for can't be bound. A busy default metrics port is only logged.
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

    /// Where clients connect.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.api.local_addr()
    }

    /// Where Prometheus may scrape, if anywhere but on the main port.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Where probes are answered, if anywhere but on the main port.
    #[must_use]
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Starts threads and accepts connections.
    ///
    /// # Errors
    /// If a socket can't be given to a runtime, or a thread not be started.
    pub fn start(
        self,
        surface: &Arc<Surface>,
        upstream: &upstream::Config,
        worker_tls: Option<&Arc<rustls::ClientConfig>>,
        tls: Option<Arc<rustls::ServerConfig>>,
        tasks: &Tasks,
    ) -> io::Result<Running> {
        let (open_tx, open) = watch::channel(0usize);
        let open_tx = Arc::new(open_tx);
        let (stop_accepting, stopped) = watch::channel(false);
        let (closing, closing_rx) = watch::channel(false);
        let (cut, cut_rx) = watch::channel(false);
        let acceptor = tls.map(TlsAcceptor::from);
        let mut threads = Vec::new();
        let mut lanes = Vec::new();
        for at in 0..surface.config.threads.max(1) {
            let (sender, receiver) = mpsc::channel(HANDOVER);
            let load = Arc::new(AtomicUsize::new(0));
            let dialer = Arc::clone(&surface.dialer);
            let client = Client::new(upstream.clone(), worker_tls.cloned(), dialer, surface.clock);
            let chance = SmallRng::from_rng(&mut rand::rng());
            let dispatcher = Dispatcher::new(
                Arc::clone(&surface.dispatch),
                client,
                surface.clock,
                SmallRng::from_rng(&mut rand::rng()),
            );
            let shard = Arc::new(Shard::new(Arc::clone(surface), dispatcher, chance));
            let port = Port {
                shard,
                acceptor: acceptor.clone(),
                closing: closing_rx.clone(),
                cut: cut_rx.clone(),
            };
            let runtime = runtime()?;
            threads.push(
                std::thread::Builder::new()
                    .name(format!("smg-data-{at}"))
                    .spawn(move || port.run(runtime, receiver))?,
            );
            lanes.push(Lane { sender, load });
        }
        let accepting = Accepting {
            listener: to_tokio(self.api)?,
            lanes,
            open: open_tx,
            most: surface.config.max_connections,
            metrics: surface.metrics.clone(),
            dialer: Arc::clone(&surface.dialer),
        };
        tasks.spawn("http.api", OnEnd::Stop, accepting.run(stopped, tasks.stopping()));
        if let Some(listener) = self.metrics {
            let listener = to_tokio(listener)?;
            let serving = serve_public(listener, Arc::clone(surface), tasks.stopping());
            tasks.spawn("http.metrics", OnEnd::Stop, serving);
        }
        if let Some(listener) = self.health {
            // A thread of its own: probes are answered also when the data path is saturated.
            let surface = Arc::clone(surface);
            // Ends with the data path's threads: they are joined together.
            let stopping = cut_rx;
            let runtime = runtime()?;
            threads.push(std::thread::Builder::new().name("smg-health".to_owned()).spawn(
                move || {
                    let serving = async {
                        let listener = to_tokio(listener)?;
                        serve_public(listener, surface, stopping).await
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
    /// Accepts no more connections and ends each open one after the exchange that is under way.
    pub fn close(&self) {
        self.stop_accepting.send_replace(true);
        self.closing.send_replace(true);
    }

    /// Resolves when no client is connected any more.
    pub async fn drained(&self) {
        let mut open = self.open.clone();
        // An error means that the acceptor is gone with all its connections.
        let _gone = open.wait_for(|open| *open == 0).await.is_err();
    }

    /// Clients' connections that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        *self.open.borrow()
    }

    /// Cuts what is still open and ends the threads.
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

/// A connection on its way to its thread, with what counts it.
struct Handover {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    counted: Counted,
}

/// Counts a connection as long as it lives.
struct Counted {
    load: Arc<AtomicUsize>,
    open: Arc<watch::Sender<usize>>,
    gauge: prometheus::IntGauge,
    _descriptor: descriptors::Counted,
}

impl Counted {
    fn new(
        load: &Arc<AtomicUsize>,
        open: &Arc<watch::Sender<usize>>,
        gauge: &prometheus::IntGauge,
        descriptor: descriptors::Counted,
    ) -> Self {
        load.fetch_add(1, Ordering::Relaxed);
        open.send_modify(|open| *open += 1);
        gauge.inc();
        Self {
            load: Arc::clone(load),
            open: Arc::clone(open),
            gauge: gauge.clone(),
            _descriptor: descriptor,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
        self.open.send_modify(|open| *open -= 1);
        self.gauge.dec();
    }
}

/// The way to one thread.
struct Lane {
    sender: mpsc::Sender<Handover>,
    load: Arc<AtomicUsize>,
}

struct Accepting {
    listener: tokio::net::TcpListener,
    lanes: Vec<Lane>,
    open: Arc<watch::Sender<usize>>,
    most: usize,
    metrics: super::Metrics,
    dialer: Arc<Dialer>,
}

impl Accepting {
    async fn run(
        self,
        mut stopped: watch::Receiver<bool>,
        mut stopping: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        loop {
            let accepted = tokio::select! {
                accepted = self.accept() => accepted,
                () = turned_on(&mut stopped) => break,
            };
            match accepted {
                Ok((stream, peer)) => self.hand_over(stream, peer),
                Err(error) => pause_after(&error, "accepting a client", &self.dialer).await,
            }
        }
        // Those that the kernel has taken already would be reset.
        while let Ok(Ok((stream, peer))) =
            tokio::time::timeout(Duration::ZERO, self.listener.accept()).await
        {
            self.hand_over(stream, peer);
        }
        // From here on the kernel refuses new connections. The task ends with the process, as others must.
        drop(self.listener);
        turned_on(&mut stopping).await;
        Ok(())
    }

    /// The next connection, once there are descriptors for it and for its way to a worker. Until then it waits in the
    /// kernel.
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let descriptors = self.dialer.descriptors();
        if descriptors.is_scarce() {
            let error = "what is left is kept for connections to workers: new clients wait";
            let shortages = self.dialer.shortages();
            shortages.report(Kind::Descriptors, "accepting a client", &error);
            while descriptors.is_scarce() {
                tokio::time::sleep(SCARCE_LOOK).await;
            }
        }
        self.listener.accept().await
    }

    fn hand_over(&self, stream: TcpStream, peer: SocketAddr) {
        if *self.open.borrow() >= self.most {
            self.metrics.connections_refused.inc();
            return;
        }
        // A thread that is lost takes nothing: its idle lane must not attract everything.
        let open = self.lanes.iter().filter(|lane| !lane.sender.is_closed());
        let Some(lane) = open.min_by_key(|lane| lane.load.load(Ordering::Relaxed)) else {
            self.metrics.connections_refused.inc();
            return;
        };
        let Ok(stream) = stream.into_std() else { return };
        let descriptor = self.dialer.descriptors().count();
        let counted = Counted::new(&lane.load, &self.open, &self.metrics.connections, descriptor);
        if lane.sender.try_send(Handover { stream, peer, counted }).is_err() {
            // The thread is a thousand connections behind: closing is the kindest answer.
            self.metrics.connections_refused.inc();
        }
    }
}

/// A connection could not be accepted. If descriptors are short, connections wait in the kernel until some are free.
async fn pause_after(error: &io::Error, doing: &str, dialer: &Dialer) {
    match Kind::of(error) {
        Some(kind) => dialer.shortages().report(kind, doing, error),
        None => warn!(%error, doing, "a connection could not be accepted"),
    }
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// One thread's end: takes connections and serves them.
struct Port {
    shard: Arc<Shard>,
    acceptor: Option<TlsAcceptor>,
    closing: watch::Receiver<bool>,
    cut: watch::Receiver<bool>,
}

impl Port {
    fn run(self, runtime: tokio::runtime::Runtime, receiver: mpsc::Receiver<Handover>) {
        runtime.block_on(self.serve(receiver));
        // What is left is cut here.
        runtime.shutdown_background();
    }

    async fn serve(self, mut receiver: mpsc::Receiver<Handover>) {
        let mut cut = self.cut.clone();
        let mut evict = tokio::time::interval(EVICT);
        loop {
            tokio::select! {
                handover = receiver.recv() => match handover {
                    Some(handover) => self.take(handover),
                    None => break,
                },
                _tick = evict.tick() => self.shard.dispatcher().upstream().evict(),
                () = turned_on(&mut cut) => return,
            }
        }
        turned_on(&mut cut).await;
    }

    fn take(&self, handover: Handover) {
        let Handover { stream, peer, counted } = handover;
        let shard = Arc::clone(&self.shard);
        let acceptor = self.acceptor.clone();
        let closing = self.closing.clone();
        tokio::spawn(async move {
            let _counted = counted;
            let stream = match TcpStream::from_std(stream) {
                Ok(stream) => stream,
                Err(error) => {
                    debug!(%error, "a connection could not be taken over");
                    return;
                }
            };
            // Small chunks of a stream must not wait for acknowledgements: a delayed one costs 40 ms.
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "a connection was gone before it was served");
                return;
            }
            match acceptor {
                None => serve(shard, stream, peer, closing).await,
                Some(acceptor) => Box::pin(serve_tls(shard, acceptor, stream, peer, closing)).await,
            }
        });
    }
}

fn patience(surface: &Surface) -> Patience {
    let config = &surface.config;
    Patience { head: config.header_timeout, idle: config.idle_timeout, write: config.body_timeout }
}

async fn serve<T>(shard: Arc<Shard>, stream: T, peer: SocketAddr, closing: watch::Receiver<bool>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let patience = patience(shard.surface());
    let state = State::new(shard.surface().clock);
    let service_state = Arc::clone(&state);
    let service = service_fn(move |request| {
        let shard = Arc::clone(&shard);
        let state = Arc::clone(&service_state);
        async move { shard.handle(request, peer, &state).await }
    });
    serve_http1(stream, service, state, patience, closing).await;
}

async fn serve_tls(
    shard: Arc<Shard>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    closing: watch::Receiver<bool>,
) {
    let timeout = shard.surface().config.header_timeout;
    let stream = match tokio::time::timeout(timeout, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            debug!(%peer, %error, "TLS handshake failed");
            return;
        }
        Err(_elapsed) => {
            debug!(%peer, "TLS handshake took too long");
            return;
        }
    };
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return serve(shard, stream, peer, closing).await;
    }
    let patience = patience(shard.surface());
    let state = State::new(shard.surface().clock);
    let service_state = Arc::clone(&state);
    let service = service_fn(move |request| {
        let shard = Arc::clone(&shard);
        let state = Arc::clone(&service_state);
        async move { shard.handle(request, peer, &state).await }
    });
    serve_http2(stream, service, state, patience, closing).await;
}

/// Serves probes and metrics on a further port.
async fn serve_public(
    listener: tokio::net::TcpListener,
    surface: Arc<Surface>,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let router = local::public(Arc::clone(&surface)).fallback(local::nothing);
    let patience = patience(&surface);
    let open = Arc::new(tokio::sync::Semaphore::new(256));
    loop {
        let (stream, _peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause_after(&error, "accepting a probe", &surface.dialer).await;
                    continue;
                }
            },
            () = turned_on(&mut stopping) => return Ok(()),
        };
        // Nobody needs more than a few connections here.
        let Ok(permit) = Arc::clone(&open).try_acquire_owned() else { continue };
        let router = router.clone();
        let state = State::new(surface.clock);
        let busy = Arc::clone(&state);
        // The exchange says that the head has come: without it, a connection that is kept would be timed out in mid-air.
        let surface = Arc::clone(&surface);
        let service = service_fn(move |request: Request<Incoming>| {
            let exchange = busy.begin();
            let mut chance = SmallRng::from_rng(&mut rand::rng());
            let names = &surface.config.request_id_headers;
            let request_id = headers::request_id(request.headers(), names, &mut chance);
            let answering = router.clone().oneshot(request.map(axum::body::Body::new));
            async move {
                let answered = answering.await;
                answered.map(|mut answer| {
                    answer.headers_mut().insert(headers::X_REQUEST_ID.clone(), request_id);
                    answer.map(|body| Body::axum(body).ending(exchange))
                })
            }
        });
        let closing = stopping.clone();
        tokio::spawn(async move {
            let _permit = permit;
            serve_http1(stream, service, state, patience, closing).await;
        });
    }
}
