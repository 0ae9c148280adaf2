//! The mesh port: accepts other routers and feeds their frames to the driver.
//!
//! Whatever comes in here is foreign. It is bounded (connections, streams, message sizes, time to introduce oneself),
//! refused with a counter, and never more than that. Membership frames that find the inbox full are dropped; state waits,
//! which slows down the peer that sent it and nobody else.

#![expect(
    clippy::disallowed_methods,
    reason = "connections and streams are tasks that end with their connection"
)]

use std::io::{Cursor, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::link::{self, Board};
use super::metrics::Metrics;
use super::wire::proto::mesh_server::{Mesh, MeshServer};
use super::wire::proto::{self, Envelope, Opening};
use super::wire::{self, Introduction, MAX_MESSAGE_BYTES};
use crate::cluster::Lane;
use crate::tasks::turned_on;

/// Connections at once: two from each peer, and those that are only looking.
const MAX_CONNECTIONS: usize = 8192;

/// How long a stream may take to introduce itself.
const OPENING_TIMEOUT: Duration = Duration::from_secs(3);

/// Time between two pings to a caller. Rare, for callers ping as well: this only finds those that are gone for good.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How long the answer to a ping may take.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A frame that came in.
#[derive(Debug)]
pub(super) struct Incoming {
    /// Where from; the port is the caller's, not the one where it listens.
    pub(super) from: SocketAddr,
    pub(super) frame: Bytes,
}

/// Where frames go.
#[derive(Debug, Clone)]
pub(super) struct Inbox {
    pub(super) swim: mpsc::Sender<Incoming>,
    pub(super) state: mpsc::Sender<Incoming>,
}

/// What every connection needs.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) me: Arc<ArcSwap<Introduction>>,
    pub(super) inbox: Inbox,
    pub(super) metrics: Metrics,
    /// Told who has called.
    pub(super) board: Arc<Board>,
    /// Turns true when the router ends.
    pub(super) stopping: watch::Receiver<bool>,
}

/// Accepts routers until the end.
pub(super) async fn run(listener: tokio::net::TcpListener, service: Service) -> anyhow::Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<MeshServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let mut stopping = service.stopping.clone();
    let metrics = service.metrics.clone();
    let mesh = MeshServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let routes = Routes::new(mesh)
        .add_service(health_service)
        .add_service(reflection)
        .prepare()
        .into_axum_router();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = turned_on(&mut stopping) => return Ok(()),
        };
        let (tcp, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely no file descriptors are left: connections wait in the kernel until some are.
                warn!(%error, "cannot accept a connection of a router");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            metrics.rejected("connections");
            continue;
        };
        let routes = routes.clone();
        let metrics = metrics.clone();
        let mut stopping = stopping.clone();
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = link::make_prompt(&tcp) {
                debug!(%from, %error, "connection of a router");
                return;
            }
            // Answers to pings and little else goes this way.
            link::make_steady(&tcp);
            let io = match greeted(tcp).await {
                Ok(io) => io,
                Err(NotGreeted::Gone(error)) => {
                    debug!(%from, %error, "connection of a router ended");
                    return;
                }
                Err(refused @ (NotGreeted::Silent | NotGreeted::OtherProtocol)) => {
                    metrics.rejected(refused.name());
                    debug!(%from, error = %refused, "a connection was refused");
                    return;
                }
            };
            let service = TowerToHyperService::new(tower::ServiceExt::map_request(
                routes,
                move |mut request: http::Request<hyper::body::Incoming>| {
                    request.extensions_mut().insert(From(from));
                    request.map(tonic::body::Body::new)
                },
            ));
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
                .max_concurrent_streams(64)
                .max_header_list_size(16 << 10)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(4 << 20)
                .serve_connection(TokioIo::new(io), service);
            tokio::pin!(serving);
            let ended = tokio::select! {
                ended = &mut serving => ended,
                () = turned_on(&mut stopping) => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            };
            if let Err(error) = ended {
                // Somebody who does not speak HTTP/2, or a peer that died.
                if error.is_parse() || !is_io(&error) {
                    metrics.rejected("not_http2");
                }
                debug!(%from, %error, "connection of a router ended");
            }
        });
    }
}

/// What every HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Why a connection was closed before a word of HTTP/2.
#[derive(Debug, thiserror::Error)]
enum NotGreeted {
    #[error("{0}")]
    Gone(std::io::Error),
    #[error("nothing came within {OPENING_TIMEOUT:?}")]
    Silent,
    #[error("it does not speak HTTP/2")]
    OtherProtocol,
}

impl NotGreeted {
    /// A name from a closed set, for metrics.
    const fn name(&self) -> &'static str {
        match self {
            Self::Gone(_) => "gone",
            Self::Silent => "silent",
            Self::OtherProtocol => "not_http2",
        }
    }
}

/// Waits for the greeting, which the server itself would do for ever: it begins to ping only after it. Who says nothing
/// would keep others out in the end.
async fn greeted(
    tcp: tokio::net::TcpStream,
) -> Result<impl AsyncRead + AsyncWrite + Unpin, NotGreeted> {
    let (mut read, write) = tcp.into_split();
    let mut greeting = [0; PREFACE.len()];
    let mut known = 0;
    let greeting = tokio::time::timeout(OPENING_TIMEOUT, async {
        while known < greeting.len() {
            match read.read(&mut greeting[known..]).await.map_err(NotGreeted::Gone)? {
                0 if known == 0 => return Err(NotGreeted::Gone(ErrorKind::UnexpectedEof.into())),
                0 => return Err(NotGreeted::OtherProtocol),
                more => known += more,
            }
            if greeting[..known] != PREFACE[..known] {
                return Err(NotGreeted::OtherProtocol);
            }
        }
        Ok(greeting)
    })
    .await
    .unwrap_or(Err(NotGreeted::Silent))?;
    Ok(tokio::io::join(Cursor::new(greeting).chain(read), write))
}

/// Whether a connection ended because the other side went, rather than because of what it said.
fn is_io(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.is::<std::io::Error>() {
            return true;
        }
        cause = error.source();
    }
    error.is_incomplete_message() || error.is_timeout()
}

/// Where a connection came from.
#[derive(Debug, Clone, Copy)]
struct From(SocketAddr);

fn came_from<T>(request: &Request<T>) -> Result<SocketAddr, Status> {
    let From(from) = request.extensions().get().ok_or_else(|| Status::internal("no address"))?;
    Ok(*from)
}

type Outgoing = Pin<Box<dyn Stream<Item = Result<Envelope, Status>> + Send>>;

impl Service {
    async fn receive(
        &self,
        request: Request<Streaming<Envelope>>,
        lane: Lane,
    ) -> Result<Response<Outgoing>, Status> {
        let from = came_from(&request)?;
        let me = self.me.load_full();
        let inbound = request.into_inner();
        let (answer, answers) = mpsc::channel(1);
        let opening = wire::opening_envelope(wire::opening(&me, Some(from)));
        // The channel is new and has room.
        let _full = answer.try_send(Ok(opening)).is_err();
        let mut stopping = self.stopping.clone();
        let this = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = this.listen(inbound, lane, from, &me) => if let Err(status) = ended {
                    // The caller may be gone.
                    let _unheard = answer.try_send(Err(status)).is_err();
                },
                () = turned_on(&mut stopping) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    /// Takes frames until the stream ends.
    async fn listen(
        &self,
        mut inbound: Streaming<Envelope>,
        lane: Lane,
        from: SocketAddr,
        me: &Introduction,
    ) -> Result<(), Status> {
        let first = tokio::time::timeout(OPENING_TIMEOUT, inbound.message())
            .await
            .map_err(|_elapsed| Status::deadline_exceeded("no introduction in time"))??;
        let introduced =
            wire::first(first).and_then(|opening| wire::introduced(&opening, me.cluster));
        let it = match introduced {
            Ok(it) => it,
            Err(error) => {
                self.metrics.rejected(error.name());
                info!(%from, %error, "a router was refused");
                return Err(Status::failed_precondition(error.to_string()));
            }
        };
        debug!(%from, ?lane, node = %it.node, "listening to");
        self.board.called(it.address);
        loop {
            let message = match inbound.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(status) => {
                    if is_about_content(&status) {
                        self.metrics.rejected("message");
                        info!(%from, node = %it.node, error = status.message(), "a message was refused");
                    }
                    return Err(status);
                }
            };
            let Some(frame) = wire::frame(message) else {
                self.metrics.rejected("envelope");
                continue;
            };
            let incoming = Incoming { from, frame };
            match lane {
                Lane::Swim => {
                    if self.inbox.swim.try_send(incoming).is_err() {
                        self.metrics.dropped("inbox");
                    }
                }
                Lane::State => {
                    if self.inbox.state.send(incoming).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Whether a stream ended because of what was in it, rather than because its connection broke.
fn is_about_content(status: &Status) -> bool {
    matches!(
        status.code(),
        tonic::Code::OutOfRange | tonic::Code::InvalidArgument | tonic::Code::ResourceExhausted
    ) || (status.code() == tonic::Code::Internal && std::error::Error::source(status).is_none())
}

#[tonic::async_trait]
impl Mesh for Service {
    async fn hello(&self, request: Request<Opening>) -> Result<Response<Opening>, Status> {
        let from = came_from(&request)?;
        Ok(Response::new(wire::opening(&self.me.load(), Some(from))))
    }

    type SwimStream = Outgoing;

    async fn swim(
        &self,
        request: Request<Streaming<Envelope>>,
    ) -> Result<Response<Outgoing>, Status> {
        self.receive(request, Lane::Swim).await
    }

    type SyncStream = Outgoing;

    async fn sync(
        &self,
        request: Request<Streaming<Envelope>>,
    ) -> Result<Response<Outgoing>, Status> {
        self.receive(request, Lane::State).await
    }
}
