//! One thread of the data path: receives the connections that are passed to it, and serves them on a runtime of its
//! own.

#![expect(
    clippy::disallowed_methods,
    reason = "connections are tasks that end with their connection, counted at the handover"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use smg_runtime::tasks::turned_on;
use smg_runtime::tls::{self, Live};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::accept::Handover;
use super::connection::{self, Protocol, Timeouts};
use super::exchange::State;
use super::idle::Place;
use super::shard::Shard;
use super::tunnel::Slot;

/// How often a thread closes connections to workers that have been idle for too long.
const EVICT: Duration = Duration::from_secs(5);

/// The first bytes of a connection that speaks HTTP/2. No method of HTTP/1.1 is called `PRI`.
const PREFACE: &[u8; 4] = b"PRI ";

/// Time between two looks at a connection of which less than that has come.
const MORE: Duration = Duration::from_millis(10);

/// The state of one thread of the data path.
pub(super) struct DataThread {
    pub(super) shard: Arc<Shard>,
    /// The TLS configuration of new connections; `None` means plain HTTP.
    pub(super) listener_tls: Option<Arc<Live<tls::ServerConfig>>>,
    /// Changes to `true` when connections must end after the exchanges in progress.
    pub(super) closing: watch::Receiver<bool>,
    /// Changes to `true` when connections are aborted.
    pub(super) cut: watch::Receiver<bool>,
}

impl DataThread {
    /// Runs until connections are aborted.
    pub(super) fn run(self, runtime: tokio::runtime::Runtime, receiver: mpsc::Receiver<Handover>) {
        runtime.block_on(self.serve(receiver));
        // The remaining connections are aborted here.
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
        let Handover { stream, peer, place, counted } = handover;
        let shard = Arc::clone(&self.shard);
        let acceptor = self.listener_tls.as_ref().map(|tls| TlsAcceptor::from(tls.current()));
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
            // Small chunks of a stream must not wait for delayed acknowledgements, which take up to 40 ms.
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "a connection was gone before it was served");
                return;
            }
            let client = Client { shard, peer, place: Arc::clone(&place), closing };
            let serving = async {
                match acceptor {
                    None => {
                        if let Some(protocol) = client.spoken(&stream).await {
                            client.serve(stream, protocol).await;
                        }
                    }
                    Some(acceptor) => Box::pin(client.serve_tls(acceptor, stream)).await,
                }
            };
            tokio::select! {
                biased;
                () = serving => {}
                () = place.gives_way() => debug!(%peer, "closed to make room: it had no request"),
            }
        });
    }
}

/// A client that is connected, and what it takes to serve it.
struct Client {
    shard: Arc<Shard>,
    peer: SocketAddr,
    place: Arc<Place>,
    closing: watch::Receiver<bool>,
}

impl Client {
    /// The protocol of a client without TLS: HTTP/2 begins with a preface that is no request of HTTP/1.1 (RFC 9113, 3.4).
    /// `None`: the client sends nothing in time, or the router ends.
    async fn spoken(&self, stream: &TcpStream) -> Option<Protocol> {
        let first = async {
            loop {
                let mut begin = [0; PREFACE.len()];
                // The bytes stay in the socket. If the connection has broken, the next read reports the error.
                let found = stream.peek(&mut begin).await.unwrap_or(0);
                if begin[..found] == PREFACE[..] {
                    return Protocol::Http2;
                }
                if found == 0 || !PREFACE.starts_with(&begin[..found]) {
                    return Protocol::Http1;
                }
                // The system does not report when more bytes than these have arrived.
                tokio::time::sleep(MORE).await;
            }
        };
        let mut closing = self.closing.clone();
        tokio::select! {
            protocol = first => Some(protocol),
            () = turned_on(&mut closing) => None,
            () = tokio::time::sleep(self.shard.surface().config.header_timeout) => None,
        }
    }

    /// Serves the requests of the connection.
    async fn serve<T>(self, stream: T, protocol: Protocol)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Self { shard, peer, place, closing } = self;
        let surface = Arc::clone(shard.surface());
        let timeouts = Timeouts::of(&surface.config);
        let state = State::new(surface.clock, place);
        let slot = Slot::default();
        let service_slot = slot.clone();
        let service_state = Arc::clone(&state);
        let service = service_fn(move |request| {
            let shard = Arc::clone(&shard);
            let state = Arc::clone(&service_state);
            let slot = service_slot.clone();
            async move { shard.handle(request, peer, &state, &slot).await }
        });
        connection::serve(protocol, stream, service, state, timeouts, closing).await;
        slot.run(surface.config.tunnel_idle, &surface.metrics).await;
    }

    async fn serve_tls(self, acceptor: TlsAcceptor, stream: TcpStream) {
        let peer = self.peer;
        let timeout = self.shard.surface().config.header_timeout;
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
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let protocol = if is_http2 { Protocol::Http2 } else { Protocol::Http1 };
        self.serve(stream, protocol).await;
    }
}
