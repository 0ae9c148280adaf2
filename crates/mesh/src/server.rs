//! The mesh port: accepts other routers and feeds their frames to the driver.
//!
//! Whatever comes in here is foreign. It is bounded (connections, streams, message sizes, time to introduce oneself),
//! refused with a counter, and never more than that. Membership frames that find the inbox full are dropped; state waits,
//! which slows down the peer that sent it and nobody else.

#![expect(
    clippy::disallowed_methods,
    reason = "connections and streams are tasks that end with their connection"
)]

use std::collections::HashMap;
use std::io::{Cursor, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use smg_cluster::Lane;
use smg_runtime::shortage::{Kind, Shortages};
use smg_runtime::tasks::turned_on;
use smg_runtime::tls::{MeshTls, names_in};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::keys;
use super::link::Board;
use super::metrics::Metrics;
use super::net::{Duplex, Listener};
use super::seal::Purpose;
use super::security::Security;
use super::wire::proto::mesh_server::{Mesh, MeshServer};
use super::wire::proto::{self, Envelope, Opening};
use super::wire::{self, Introduction, MAX_MESSAGE_BYTES, OpeningError};

/// Connections at once: two from each peer, and those that are only looking.
const MAX_CONNECTIONS: usize = 8192;

/// How long a stream may take to introduce itself.
const OPENING_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a refusal is not told again.
const REFUSAL_TOLD: Duration = Duration::from_secs(60);

/// Refusals remembered at most; beyond, they are only counted.
const MAX_REFUSALS: usize = 256;

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
    pub(super) security: Arc<Security>,
    pub(super) inbox: Inbox,
    pub(super) metrics: Metrics,
    pub(super) refusals: Arc<Refusals>,
    /// Told who has called.
    pub(super) board: Arc<Board>,
    pub(super) shortages: Shortages,
    /// Turns true when the router ends.
    pub(super) stopping: watch::Receiver<bool>,
}

/// Accepts routers until the end.
pub(super) async fn run(mut listener: impl Listener, service: Service) -> anyhow::Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<MeshServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let mut stopping = service.stopping.clone();
    let metrics = service.metrics.clone();
    let shortages = service.shortages.clone();
    let security = Arc::clone(&service.security);
    let refusals = Arc::clone(&service.refusals);
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
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // If descriptors are short, connections wait in the kernel until some are free.
                match Kind::of(&error) {
                    Some(kind) => shortages.report(kind, "accepting a router", &error),
                    None => warn!(%error, "cannot accept a connection of a router"),
                }
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
        let tls = security.tls();
        let refusals = Arc::clone(&refusals);
        tokio::spawn(async move {
            let _place = place;
            let (io, names) = match secured(stream, tls).await {
                Ok(secured) => secured,
                Err(error) => {
                    metrics.rejected("tls");
                    if refusals.is_news(from, &error) {
                        info!(%from, %error, "a connection was refused");
                    }
                    return;
                }
            };
            let came = From { address: from, names: names.map(Arc::from) };
            let io = match greeted(io).await {
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
                    request.extensions_mut().insert(came.clone());
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
async fn greeted(io: Box<dyn Duplex>) -> Result<impl Duplex, NotGreeted> {
    let (mut read, write) = tokio::io::split(io);
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

/// A connection with its TLS handshake done, if there is to be one, and the names in the certificate that it showed.
async fn secured(
    stream: Box<dyn Duplex>,
    tls: Option<Arc<MeshTls>>,
) -> Result<(Box<dyn Duplex>, Option<Vec<String>>), String> {
    let Some(tls) = tls else { return Ok((stream, None)) };
    let accepting = TlsAcceptor::from(Arc::clone(&tls.server)).accept(stream);
    let stream = tokio::time::timeout(OPENING_TIMEOUT, accepting)
        .await
        .map_err(|_elapsed| "no TLS handshake in time".to_owned())?
        .map_err(|error| format!("TLS: {error}"))?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let names = shown.map(names_in);
    Ok((Box::new(stream), names))
}

/// Refusals that were told a while ago: who is refused tries again and again, and one line is enough.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    told: Mutex<HashMap<(IpAddr, String), Instant>>,
}

impl Refusals {
    /// Whether this was not told in the last minute.
    fn is_news(&self, from: SocketAddr, why: &str) -> bool {
        let now = Instant::now();
        let mut told = self.told.lock();
        told.retain(|_, at| now.duration_since(*at) < REFUSAL_TOLD);
        let key = (from.ip(), why.to_owned());
        if told.contains_key(&key) || told.len() >= MAX_REFUSALS {
            return false;
        }
        told.insert(key, now);
        true
    }
}

/// Where a connection came from, and what its certificate proves.
#[derive(Debug, Clone)]
struct From {
    address: SocketAddr,
    names: Option<Arc<[String]>>,
}

fn came_from<T>(request: &Request<T>) -> Result<From, Status> {
    request.extensions().get().cloned().ok_or_else(|| Status::internal("no address"))
}

type Outgoing = Pin<Box<dyn Stream<Item = Result<Envelope, Status>> + Send>>;

impl Service {
    fn opening(&self, me: &Introduction, from: &From) -> Opening {
        let mut opening = wire::opening(me, Some(from.address));
        self.security.open_with(&mut opening);
        opening
    }

    /// Hears who calls.
    async fn meet(
        &self,
        inbound: &mut Streaming<Envelope>,
        from: &From,
    ) -> Result<(Opening, Introduction), Status> {
        let first = tokio::time::timeout(OPENING_TIMEOUT, inbound.message())
            .await
            .map_err(|_elapsed| Status::deadline_exceeded("no introduction in time"))??;
        let cluster = self.me.load().cluster;
        wire::first(first)
            .and_then(|opening| {
                let it = wire::introduced(&opening, cluster, from.names.as_deref())?;
                Ok((opening, it))
            })
            .map_err(|error| self.refuse(from.address, &error))
    }

    fn refuse(&self, from: SocketAddr, error: &OpeningError) -> Status {
        self.metrics.rejected(error.name());
        if self.refusals.is_news(from, error.name()) {
            info!(%from, %error, "a router was refused");
        }
        Status::failed_precondition(error.to_string())
    }

    /// Takes one change of keys and answers it.
    async fn take_keys(
        &self,
        mut inbound: Streaming<Envelope>,
        from: &From,
        ours: &Opening,
    ) -> Result<Envelope, Status> {
        let (theirs, it) = self.meet(&mut inbound, from).await?;
        let refused = |error: OpeningError| self.refuse(from.address, &error);
        let mut opener = self.security.opener(&theirs, ours, Purpose::Keys).map_err(refused)?;
        let mut sealer =
            self.security.sealer(&theirs, ours, &theirs, Purpose::KeysAnswer).map_err(refused)?;
        let message = tokio::time::timeout(OPENING_TIMEOUT, inbound.message())
            .await
            .map_err(|_elapsed| Status::deadline_exceeded("no change in time"))??;
        let change =
            keys::read_change(&self.security, opener.as_mut(), message, from.names.is_some());
        let answer = keys::apply(&self.security, change);
        match &answer {
            Ok(ids) => info!(by = %it.node, keys = ?ids, "the shared keys have changed"),
            Err(error) => {
                self.metrics.rejected("keys");
                info!(by = %it.node, %error, "a change of the shared keys was refused");
            }
        }
        keys::answer_envelope(&self.security, sealer.as_mut(), answer)
            .ok_or_else(|| Status::internal("no key to seal the answer with"))
    }

    async fn receive(
        &self,
        request: Request<Streaming<Envelope>>,
        lane: Lane,
    ) -> Result<Response<Outgoing>, Status> {
        let from = came_from(&request)?;
        let me = self.me.load_full();
        let inbound = request.into_inner();
        let (answer, answers) = mpsc::channel(2);
        let ours = self.opening(&me, &from);
        // The channel is new and has room.
        let _full = answer.try_send(Ok(wire::opening_envelope(ours.clone()))).is_err();
        let mut stopping = self.stopping.clone();
        let this = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = this.listen(inbound, lane, &from, &ours) => if let Err(status) = ended {
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
        from: &From,
        ours: &Opening,
    ) -> Result<(), Status> {
        let (theirs, it) = self.meet(&mut inbound, from).await?;
        let from = from.address;
        let mut opener = self
            .security
            .opener(&theirs, ours, Purpose::Lane(lane))
            .map_err(|error| self.refuse(from, &error))?;
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
            let frame = match self.security.disclose(opener.as_mut(), message) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    self.metrics.rejected("envelope");
                    continue;
                }
                Err(error) => {
                    self.metrics.rejected(error.name());
                    if self.refusals.is_news(from, error.name()) {
                        info!(%from, node = %it.node, %error, "a frame was refused");
                    }
                    return Err(Status::unauthenticated(error.to_string()));
                }
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
        Ok(Response::new(wire::opening(&self.me.load(), Some(from.address))))
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

    type KeysStream = Outgoing;

    async fn keys(
        &self,
        request: Request<Streaming<Envelope>>,
    ) -> Result<Response<Outgoing>, Status> {
        let from = came_from(&request)?;
        let ours = self.opening(&self.me.load(), &from);
        let (answer, answers) = mpsc::channel(2);
        // The channel is new and has room.
        let _full = answer.try_send(Ok(wire::opening_envelope(ours.clone()))).is_err();
        let this = self.clone();
        tokio::spawn(async move {
            let taken = this.take_keys(request.into_inner(), &from, &ours).await;
            // The caller may be gone.
            let _unheard = answer.try_send(taken).is_err();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}
