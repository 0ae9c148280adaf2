//! Accepts clients' connections and hands each to one thread of the data path.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use smg_runtime::descriptors;
use smg_runtime::dial::Dialer;
use smg_runtime::shortage::Kind;
use smg_runtime::tasks::turned_on;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::idle::{IdleConnections, Place};
use super::metrics::Metrics;

/// The most connections that wait for their thread.
const HANDOVER: usize = 1024;

/// How often the acceptor checks whether descriptors are free again.
const SCARCE_CHECK: Duration = Duration::from_millis(10);

/// The same while a connection closes to make room.
const CLOSING_CHECK: Duration = Duration::from_millis(1);

/// How long a new client is left alone although others wait for its place: a TLS handshake takes a few round trips.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A connection that is passed to its thread.
pub(super) struct Handover {
    pub(super) stream: std::net::TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) place: Arc<Place>,
    pub(super) counted: Counted,
}

/// Counts a connection until it is dropped.
pub(super) struct Counted {
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

/// The channel to one thread.
pub(super) struct Lane {
    sender: mpsc::Sender<Handover>,
    load: Arc<AtomicUsize>,
}

impl Lane {
    /// A lane, and the receiving end for the thread.
    pub(super) fn new() -> (Self, mpsc::Receiver<Handover>) {
        let (sender, receiver) = mpsc::channel(HANDOVER);
        (Self { sender, load: Arc::default() }, receiver)
    }
}

/// Accepts connections and passes each to the data-path thread that has the fewest.
pub(super) struct Acceptor {
    pub(super) listener: tokio::net::TcpListener,
    pub(super) lanes: Vec<Lane>,
    /// The number of open connections of clients.
    pub(super) open: Arc<watch::Sender<usize>>,
    /// Those of them that have made no request: they give way when places or descriptors run out.
    pub(super) idle: Arc<IdleConnections>,
    /// The most connections of clients at the same time.
    pub(super) max_connections: usize,
    pub(super) metrics: Metrics,
    pub(super) dialer: Arc<Dialer>,
}

impl Acceptor {
    /// Runs until `stopped`, then waits for `stopping`, because the task must end together with the process.
    pub(super) async fn run(
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
        // Connections that the kernel has already completed would be reset otherwise.
        while let Ok(Ok((stream, peer))) =
            tokio::time::timeout(Duration::ZERO, self.listener.accept()).await
        {
            self.hand_over(stream, peer);
        }
        // From here on the kernel refuses new connections.
        drop(self.listener);
        turned_on(&mut stopping).await;
        Ok(())
    }

    /// The next connection, as soon as there are descriptors for it and for its connection to a worker. Until then it
    /// waits in the kernel.
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let descriptors = self.dialer.descriptors();
        if descriptors.is_scarce() {
            let error = "what is left is kept for connections to workers: new clients wait";
            let shortages = self.dialer.shortages();
            shortages.report(Kind::Descriptors, "accepting a client", &error);
            while descriptors.is_scarce() {
                let is_closing = self.idle.closing() > 0 || self.make_room();
                let wait = if is_closing { CLOSING_CHECK } else { SCARCE_CHECK };
                tokio::time::sleep(wait).await;
            }
        }
        self.listener.accept().await
    }

    /// Closes the connection that has waited longest for its first request. Whether there is one that had its time.
    fn make_room(&self) -> bool {
        let closes = self.idle.close_oldest();
        if closes {
            self.metrics.connections_closed_idle.inc();
        }
        closes
    }

    fn hand_over(&self, stream: TcpStream, peer: SocketAddr) {
        let staying = self.open.borrow().saturating_sub(self.idle.closing());
        if staying >= self.max_connections && !self.make_room() {
            self.metrics.connections_refused.inc();
            return;
        }
        // A lost thread takes no connections, so its empty lane must not attract all of them.
        let open = self.lanes.iter().filter(|lane| !lane.sender.is_closed());
        let Some(lane) = open.min_by_key(|lane| lane.load.load(Ordering::Relaxed)) else {
            self.metrics.connections_refused.inc();
            return;
        };
        let Ok(stream) = stream.into_std() else { return };
        let descriptor = self.dialer.descriptors().count();
        let counted = Counted::new(&lane.load, &self.open, &self.metrics.connections, descriptor);
        let handover = Handover { stream, peer, place: self.idle.add(), counted };
        if lane.sender.try_send(handover).is_err() {
            // The thread is a thousand connections behind, so the connection is closed at once.
            self.metrics.connections_refused.inc();
        }
    }
}

/// Reports that a connection could not be accepted, and waits. If descriptors are short, connections wait in the kernel
/// until some are free.
pub(super) async fn pause_after(error: &io::Error, doing: &str, dialer: &Dialer) {
    match Kind::of(error) {
        Some(kind) => dialer.shortages().report(kind, doing, error),
        None => warn!(%error, doing, "a connection could not be accepted"),
    }
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
