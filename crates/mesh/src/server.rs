//! The mesh port: accepts other routers and feeds their frames to the driver.
//!
//! Everything that is received here is untrusted. It is bounded (connections, streams, message sizes, time for the
//! introduction); whatever is not valid is refused and counted, and has no other effect. Membership frames that find
//! the inbox full are dropped. State waits, which slows down only the peer that sent it.

#![expect(
    clippy::disallowed_methods,
    reason = "connections and streams are tasks that end with their connection"
)]

mod greeting;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use smg_runtime::shortage::Kind;
use smg_runtime::tasks::turned_on;
use tokio::sync::{Semaphore, watch};
use tonic::service::Routes;
use tracing::{debug, info, warn};

use crate::admission::{Counted, STRANGER_TIMEOUT, Strangers, Ticket};
use crate::metrics::Metrics;
use crate::net::{Duplex, Listener};
use crate::refusals::Refusals;
use crate::security::Security;
use crate::server::greeting::{NotGreeted, greeted, secured};
use crate::service::{Caller, Service};
use crate::wire::MAX_MESSAGE_BYTES;
use crate::wire::proto;
use crate::wire::proto::mesh_server::MeshServer;

/// The most connections at the same time: two from each peer, and some that only check the port.
const MAX_CONNECTIONS: usize = 8192;

/// The most streams of a connection at the same time. A router opens one on each.
const MAX_STREAMS: u32 = 1;

/// The time between two pings to a caller. It is long, because callers ping as well; these pings only find callers that
/// are gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How long the answer to a ping may take.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Accepts routers until the router shuts down.
pub(super) async fn run(mut listener: impl Listener, service: Service) -> anyhow::Result<()> {
    let mut stopping = service.stopping.clone();
    let shortages = service.shortages.clone();
    let port = MeshPort {
        metrics: service.metrics.clone(),
        security: Arc::clone(&service.security),
        refusals: Arc::clone(&service.refusals),
        stopping: service.stopping.clone(),
        routes: routes(service).await?,
    };
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let strangers = Arc::new(Strangers::default());
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
            port.metrics.rejected("connections");
            continue;
        };
        let port = port.clone();
        let ticket = strangers.admit(from.ip());
        tokio::spawn(async move {
            let _place = place;
            let metrics = port.metrics.clone();
            let refused = tokio::select! {
                () = port.serve(stream, from, Arc::clone(&ticket)) => return,
                refused = no_longer_admitted(&ticket) => refused,
            };
            metrics.rejected(refused);
            debug!(%from, refused, "a connection that no member uses was closed");
        });
    }
}

/// Resolves when a connection must be closed that is not known to be a member's. Returns the reason, from a closed set.
async fn no_longer_admitted(ticket: &Ticket) -> &'static str {
    tokio::select! {
        () = ticket.closed() => return "strangers",
        () = tokio::time::sleep(STRANGER_TIMEOUT) => {}
    }
    if ticket.is_member() { std::future::pending().await } else { "stranger_timeout" }
}

/// The routes of the mesh port: the mesh, the health of the server, and its reflection.
async fn routes(service: Service) -> anyhow::Result<Routes> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<MeshServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let mesh = MeshServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Ok(Routes::new(mesh).add_service(health_service).add_service(reflection).prepare())
}

/// The parts of the port that each of its connections uses.
#[derive(Debug, Clone)]
struct MeshPort {
    routes: Routes,
    metrics: Metrics,
    security: Arc<Security>,
    refusals: Arc<Refusals>,
    /// Changes to `true` when the router shuts down.
    stopping: watch::Receiver<bool>,
}

impl MeshPort {
    /// Serves one connection until it ends.
    async fn serve(mut self, stream: Box<dyn Duplex>, from: SocketAddr, ticket: Arc<Ticket>) {
        let Some((io, caller)) = self.greet(stream, from, ticket).await else { return };
        let service = TowerToHyperService::new(tower::ServiceExt::map_request(
            self.routes.into_axum_router(),
            move |mut request: http::Request<hyper::body::Incoming>| {
                request.extensions_mut().insert(caller.clone());
                request.map(tonic::body::Body::new)
            },
        ));
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(16 << 10)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .serve_connection(TokioIo::new(io), service);
        tokio::pin!(serving);
        let ended = tokio::select! {
            ended = &mut serving => ended,
            () = turned_on(&mut self.stopping) => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = ended {
            // The other side does not use HTTP/2, or its process died.
            if error.is_parse() || !is_io(&error) {
                self.metrics.rejected("not_http2");
            }
            debug!(%from, %error, "a connection of another router ended");
        }
    }

    /// Does the TLS handshake, if the mesh has TLS, and waits for the first bytes of HTTP/2. `None` means that the
    /// connection was refused, which is counted.
    async fn greet(
        &self,
        stream: Box<dyn Duplex>,
        from: SocketAddr,
        ticket: Arc<Ticket>,
    ) -> Option<(impl Duplex + use<>, Caller)> {
        let (io, names) = match secured(stream, self.security.tls()).await {
            Ok(secured) => secured,
            Err(error) => {
                self.metrics.rejected("tls");
                if self.refusals.must_log(from, &error) {
                    info!(%from, %error, "a connection was refused");
                }
                return None;
            }
        };
        if names.is_some() {
            // Its certificate was checked.
            ticket.accept();
        }
        let caller =
            Caller { address: from, names: names.map(Arc::from), ticket: Arc::clone(&ticket) };
        match greeted(Box::new(Counted::new(io, ticket))).await {
            Ok(io) => Some((io, caller)),
            Err(NotGreeted::Gone(error)) => {
                debug!(%from, %error, "a connection of another router ended");
                None
            }
            Err(refused @ (NotGreeted::Silent | NotGreeted::OtherProtocol)) => {
                self.metrics.rejected(refused.name());
                debug!(%from, error = %refused, "a connection was refused");
                None
            }
        }
    }
}

/// Whether a connection ended because the other side closed it, and not because of its data.
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
