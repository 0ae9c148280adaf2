//! The service of the mesh port: on each stream, another router introduces itself and then sends frames.
//!
//! Membership frames that find the inbox full are dropped. State waits, which slows down only the peer that sent it.

#![expect(clippy::disallowed_methods, reason = "streams are tasks that end with their connection")]

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use smg_cluster::Lane;
use smg_runtime::shortage::Shortages;
use smg_runtime::tasks::turned_on;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

use crate::admission::Ticket;
use crate::keys;
use crate::link::Board;
use crate::metrics::Metrics;
use crate::purpose::{Purpose, Side};
use crate::refusals::Refusals;
use crate::seal::Mode;
use crate::security::Security;
use crate::wire::proto::mesh_server::Mesh;
use crate::wire::proto::{Envelope, Opening};
use crate::wire::{self, Introduction, OpeningError};

/// How long a stream may take to introduce itself.
pub(super) const OPENING_TIMEOUT: Duration = Duration::from_secs(3);

/// A frame that was received.
#[derive(Debug)]
pub(super) struct Incoming {
    /// The address of the caller. The port is that of the connection, not the one on which the caller listens.
    pub(super) from: SocketAddr,
    pub(super) frame: Bytes,
}

/// The channels to the driver.
#[derive(Debug, Clone)]
pub(super) struct Inbox {
    pub(super) swim: mpsc::Sender<Incoming>,
    pub(super) state: mpsc::Sender<Incoming>,
}

/// The state that every connection needs.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) me: Arc<ArcSwap<Introduction>>,
    pub(super) security: Arc<Security>,
    pub(super) inbox: Inbox,
    pub(super) metrics: Metrics,
    pub(super) refusals: Arc<Refusals>,
    /// Receives the addresses of routers that have connected, and ends the pauses of links to them.
    pub(super) board: Arc<Board>,
    pub(super) shortages: Shortages,
    /// Changes to `true` when the router shuts down.
    pub(super) stopping: watch::Receiver<bool>,
}

/// The address of a connection's other side, and the names in its certificate.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) address: SocketAddr,
    pub(super) names: Option<Arc<[String]>>,
    /// Its place among the strangers, until it is known to be a member's.
    pub(super) ticket: Arc<Ticket>,
}

fn caller_of<T>(request: &Request<T>) -> Result<Caller, Status> {
    request.extensions().get().cloned().ok_or_else(|| Status::internal("no address"))
}

type Outgoing = Pin<Box<dyn Stream<Item = Result<Envelope, Status>> + Send>>;

impl Service {
    fn opening(&self, me: &Introduction, from: &Caller) -> Opening {
        let mut opening = wire::opening(me, Some(from.address));
        self.security.open_with(&mut opening);
        opening
    }

    /// The message with our opening.
    fn introduction(&self, ours: &Opening) -> Envelope {
        wire::opening_envelope(self.security.conceal(ours, Side::Called))
    }

    /// Reads the opening of the other side and checks it.
    async fn read_opening(
        &self,
        inbound: &mut Streaming<Envelope>,
        from: &Caller,
    ) -> Result<(Opening, Introduction), Status> {
        let first = tokio::time::timeout(OPENING_TIMEOUT, inbound.message()).await.map_err(
            |_elapsed| Status::deadline_exceeded("no introduction within the timeout"),
        )??;
        let cluster = self.me.load().cluster;
        wire::first(first)
            .and_then(|opening| self.security.reveal(opening, Side::Caller))
            .and_then(|opening| {
                let it = wire::introduced(&opening, cluster, from.names.as_deref())?;
                Ok((opening, it))
            })
            .map_err(|error| self.refuse(from.address, &error))
    }

    fn refuse(&self, from: SocketAddr, error: &OpeningError) -> Status {
        self.metrics.rejected(error.name());
        if self.refusals.must_log(from, error.name()) {
            info!(%from, %error, "a router was refused");
        }
        Status::failed_precondition(error.to_string())
    }

    /// Reads one change of keys, applies it and answers.
    async fn take_keys(
        &self,
        mut inbound: Streaming<Envelope>,
        from: &Caller,
        ours: &Opening,
    ) -> Result<Envelope, Status> {
        let (theirs, it) = self.read_opening(&mut inbound, from).await?;
        let refused = |error: OpeningError| self.refuse(from.address, &error);
        let mut opener = self.security.opener(&theirs, ours, Purpose::Keys).map_err(refused)?;
        let mut sealer =
            self.security.sealer(&theirs, ours, &theirs, Purpose::KeysAnswer).map_err(refused)?;
        let message = tokio::time::timeout(OPENING_TIMEOUT, inbound.message())
            .await
            .map_err(|_elapsed| Status::deadline_exceeded("no change within the timeout"))??;
        let change =
            keys::read_change(&self.security, opener.as_mut(), message, from.names.is_some());
        if change.is_ok() {
            from.ticket.accept();
        }
        let answer = keys::apply(&self.security, change);
        self.security.saved().await;
        match &answer {
            Ok(ids) => info!(by = %it.node, keys = ?ids, "the shared keys have changed"),
            Err(error) => {
                self.metrics.rejected("keys");
                info!(by = %it.node, %error, "a change of the shared keys was refused");
            }
        }
        keys::answer_envelope(&self.security, sealer.as_mut(), answer)
            .ok_or_else(|| Status::internal("no key to encrypt the answer with"))
    }

    async fn receive(
        &self,
        request: Request<Streaming<Envelope>>,
        lane: Lane,
    ) -> Result<Response<Outgoing>, Status> {
        let from = caller_of(&request)?;
        let me = self.me.load_full();
        let inbound = request.into_inner();
        let (answer, answers) = mpsc::channel(2);
        let ours = self.opening(&me, &from);
        // The channel is new and has room.
        let _full = answer.try_send(Ok(self.introduction(&ours))).is_err();
        let mut stopping = self.stopping.clone();
        let this = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = this.listen(inbound, lane, &from, &ours) => if let Err(status) = ended {
                    // The caller may be gone.
                    let _caller_gone = answer.try_send(Err(status)).is_err();
                },
                () = turned_on(&mut stopping) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    /// Receives frames until the stream ends.
    async fn listen(
        &self,
        mut inbound: Streaming<Envelope>,
        lane: Lane,
        from: &Caller,
        ours: &Opening,
    ) -> Result<(), Status> {
        let (theirs, it) = self.read_opening(&mut inbound, from).await?;
        let Caller { address: from, ticket, .. } = from;
        let from = *from;
        let mut opener = self
            .security
            .opener(&theirs, ours, Purpose::Lane(lane))
            .map_err(|error| self.refuse(from, &error))?;
        debug!(%from, ?lane, node = %it.node, "receiving frames");
        let mut is_first = true;
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
                    if self.refusals.must_log(from, error.name()) {
                        info!(%from, node = %it.node, %error, "a frame was refused");
                    }
                    return Err(Status::unauthenticated(error.to_string()));
                }
            };
            if std::mem::take(&mut is_first) {
                ticket.accept();
                self.board.called(it.address);
            }
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

/// Whether a stream ended because of its content, and not because its connection broke.
fn is_about_content(status: &Status) -> bool {
    matches!(
        status.code(),
        tonic::Code::OutOfRange | tonic::Code::InvalidArgument | tonic::Code::ResourceExhausted
    ) || (status.code() == tonic::Code::Internal && std::error::Error::source(status).is_none())
}

#[tonic::async_trait]
impl Mesh for Service {
    async fn hello(&self, request: Request<Opening>) -> Result<Response<Opening>, Status> {
        let from = caller_of(&request)?;
        if self.security.mode() == Mode::Required && from.names.is_none() {
            // No frame proves here that the caller has the key.
            self.metrics.rejected("hello");
            return Err(Status::unauthenticated(
                "this router introduces itself only to routers with its key",
            ));
        }
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
        let from = caller_of(&request)?;
        let ours = self.opening(&self.me.load(), &from);
        let (answer, answers) = mpsc::channel(2);
        // The channel is new and has room.
        let _full = answer.try_send(Ok(self.introduction(&ours))).is_err();
        let this = self.clone();
        tokio::spawn(async move {
            let taken = this.take_keys(request.into_inner(), &from, &ours).await;
            // The caller may be gone.
            let _caller_gone = answer.try_send(taken).is_err();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}
