//! The link to one peer: two connections, one for membership and one for state, each with a queue and a task.
//!
//! A link connects when there is something to send, and again after a connection broke, with growing pauses while that
//! fails. A pause ends as soon as the peer connects to us; otherwise a restarted router would have to wait for it. Both
//! ends of a connection introduce themselves before a frame is sent, so that frames never go to another router at a
//! reused address. HTTP/2 pings detect a connection that died without a message.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::RngExt as _;
use rustls::pki_types::ServerName;
use smg_cluster::Lane;
use smg_runtime::clock::Clock;
use smg_runtime::shortage::{Kind, Shortages};
use smg_runtime::tls::names_in;
use smg_types::ids::NodeId;
use tokio::sync::{Notify, oneshot};
use tokio_rustls::TlsConnector;
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, info};

use super::keys;
use super::metrics::Metrics;
use super::net::{Duplex, Net};
use super::purpose::{Purpose, Side};
use super::queue::{Bounds, Queue};
use super::seal::{KeyId, Sealer};
use super::security::{KeyChange, Security};
use super::wire::proto::Envelope;
use super::wire::proto::mesh_client::MeshClient;
use super::wire::{self, Introduction, MAX_MESSAGE_BYTES, OpeningError};

/// The most membership frames that wait for a peer. More than those of a second would be outdated on arrival.
const SWIM: Bounds = Bounds { frames: 64, bytes: 4 << 20 };

/// The most state that waits for a peer, which is more than replication ever has in flight to one.
const STATE: Bounds = Bounds { frames: 1024, bytes: 8 << 20 };

/// How long connecting and the introduction may each take: long enough for one lost packet to be sent again.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// The time between two pings, which are most of the traffic of an idle mesh. A dead connection is detected after this
/// time plus [`KEEP_ALIVE_TIMEOUT`].
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// How long the answer to a ping may take: long enough for many repetitions of a lost packet. Otherwise live routers
/// would look dead on a network that loses packets.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_millis(2500);

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// A connection that lasted this long counts as good: the next one is attempted without a growing pause.
const GOOD: Duration = Duration::from_secs(5);

/// The state that all links share.
#[derive(Debug)]
pub(super) struct Dialler {
    pub(super) net: Arc<dyn Net>,
    pub(super) me: Arc<ArcSwap<Introduction>>,
    pub(super) security: Arc<Security>,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) board: Arc<Board>,
    pub(super) shortages: Shortages,
}

/// The status of the connection for one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneStatus {
    /// Whether frames can be sent.
    pub up: bool,
    /// `Clock::mono` of the last change of `up`.
    pub since: Duration,
    /// Why the last connection broke or could not be made; kept until a connection is up again.
    pub error: Option<String>,
}

/// The status of the link to one address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkStatus {
    /// The node that introduced itself there.
    pub node: Option<NodeId>,
    /// The URL for clients that it reported.
    pub client_url: Option<String>,
    /// The membership connection; `None` before the first attempt.
    pub swim: Option<LaneStatus>,
    /// The state connection; `None` before the first attempt.
    pub state: Option<LaneStatus>,
}

impl LinkStatus {
    /// The status of a lane.
    #[must_use]
    pub const fn lane(&self, lane: Lane) -> Option<&LaneStatus> {
        match lane {
            Lane::Swim => self.swim.as_ref(),
            Lane::State => self.state.as_ref(),
        }
    }

    fn lane_mut(&mut self, lane: Lane) -> &mut Option<LaneStatus> {
        match lane {
            Lane::Swim => &mut self.swim,
            Lane::State => &mut self.state,
        }
    }

    /// The newest error of a connection that is down.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        [&self.swim, &self.state]
            .into_iter()
            .flatten()
            .filter(|lane| !lane.up)
            .max_by_key(|lane| lane.since)
            .and_then(|lane| lane.error.as_deref())
    }
}

/// The statuses of all links. Their tasks write it; `/ha/health` and the metrics read it.
#[derive(Debug, Default)]
pub(super) struct Board {
    // One entry per address. Locked only to copy or change one.
    links: Mutex<BTreeMap<SocketAddr, LinkStatus>>,
    // The notifications that end the pauses of a link's two tasks, by address. Locked only to find one.
    pausing: Mutex<BTreeMap<SocketAddr, [Arc<Notify>; 2]>>,
}

impl Board {
    pub(super) fn all(&self) -> BTreeMap<SocketAddr, LinkStatus> {
        self.links.lock().clone()
    }

    fn went_up(&self, to: SocketAddr, lane: Lane, now: Duration, it: Introduction) {
        let mut links = self.links.lock();
        let link = links.entry(to).or_default();
        *link.lane_mut(lane) = Some(LaneStatus { up: true, since: now, error: None });
        link.client_url = Some(it.client_url).filter(|url| !url.is_empty());
        link.node = Some(it.node);
    }

    /// Records a failure. Returns whether it differs from the previous one.
    fn went_down(&self, to: SocketAddr, lane: Lane, now: Duration, error: &str) -> bool {
        let mut links = self.links.lock();
        let status = links.entry(to).or_default().lane_mut(lane);
        let since = status.as_ref().filter(|status| !status.up).map(|status| status.since);
        let is_news = since.is_none()
            || status.as_ref().is_some_and(|status| status.error.as_deref() != Some(error));
        let error = Some(error.to_owned());
        *status = Some(LaneStatus { up: false, since: since.unwrap_or(now), error });
        is_news
    }

    /// Ends the pauses of the links to `address`, because the router there has connected to us.
    pub(super) fn called(&self, address: SocketAddr) {
        if let Some(lanes) = self.pausing.lock().get(&address) {
            lanes.iter().for_each(|lane| lane.notify_one());
        }
    }

    fn remove(&self, to: SocketAddr) {
        self.links.lock().remove(&to);
        self.pausing.lock().remove(&to);
    }
}

/// The link to one address.
#[derive(Debug)]
pub(super) struct Link {
    to: SocketAddr,
    swim: Arc<Queue>,
    state: Arc<Queue>,
    board: Arc<Board>,
    tasks: [tokio::task::AbortHandle; 2],
    /// `Clock::mono` of the last frame.
    pub(super) used: Duration,
}

impl Link {
    /// A link that connects as soon as there is something to send.
    #[expect(clippy::disallowed_methods, reason = "the link owns both tasks and aborts them")]
    pub(super) fn new(to: SocketAddr, dialler: &Arc<Dialler>) -> Self {
        let swim = Arc::new(Queue::new(SWIM));
        let state = Arc::new(Queue::new(STATE));
        let pausing = [Arc::new(Notify::new()), Arc::new(Notify::new())];
        let board = Arc::clone(&dialler.board);
        board.pausing.lock().insert(to, pausing.clone());
        let [swim_called, state_called] = pausing;
        let lanes = [(Lane::Swim, &swim, swim_called), (Lane::State, &state, state_called)];
        let tasks = lanes.map(|(lane, queue, called)| {
            let keeping = keep_connected(Arc::clone(dialler), to, lane, Arc::clone(queue), called);
            tokio::spawn(keeping).abort_handle()
        });
        Self { to, swim, state, board, tasks, used: Duration::ZERO }
    }

    /// Queues a frame. Returns how many older frames were dropped for it.
    pub(super) fn send(&self, lane: Lane, frame: bytes::Bytes) -> u64 {
        self.queue(lane).push(frame)
    }

    /// Whether no frame waits.
    pub(super) fn is_flushed(&self) -> bool {
        self.swim.is_empty() && self.state.is_empty()
    }

    fn queue(&self, lane: Lane) -> &Queue {
        match lane {
            Lane::Swim => &self.swim,
            Lane::State => &self.state,
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.swim.close();
        self.state.close();
        for task in &self.tasks {
            task.abort();
        }
        self.board.remove(self.to);
    }
}

/// Why a connection could not be made, or ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("no connection within {DIAL_TIMEOUT:?}")]
    ConnectTimeout,
    #[error("connected, but no introduction within {DIAL_TIMEOUT:?}")]
    Silent,
    #[error("refused: {0}")]
    Refused(#[from] OpeningError),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("the other side ended the connection")]
    Ended,
}

/// Keeps a connection while there are frames to send.
async fn keep_connected(
    dialler: Arc<Dialler>,
    to: SocketAddr,
    lane: Lane,
    queue: Arc<Queue>,
    called: Arc<Notify>,
) {
    let mut backoff = FIRST_BACKOFF;
    while queue.has_frame().await {
        let began = dialler.clock.mono();
        let Err(error) = run_connection(&dialler, to, lane, &queue).await;
        let now = dialler.clock.mono();
        dialler.metrics.link_failed(lane);
        if let LinkError::Refused(why) = &error {
            dialler.metrics.rejected(why.name());
        }
        let error = error.to_string();
        if dialler.board.went_down(to, lane, now, &error) {
            info!(%to, ?lane, %error, "no connection to a router");
        } else {
            debug!(%to, ?lane, %error, "still no connection to a router");
        }
        if now.saturating_sub(began) >= GOOD {
            backoff = FIRST_BACKOFF;
        }
        #[expect(clippy::disallowed_methods, reason = "a driver of its own: when to dial again")]
        let jitter = rand::rng().random_range(0.75..1.25);
        tokio::select! {
            () = tokio::time::sleep(backoff.mul_f64(jitter)) => {
                backoff = (backoff * 2).min(LONGEST_BACKOFF);
            }
            () = called.notified() => {
                backoff = FIRST_BACKOFF;
                // The pause limits the rate of attempts, however often the other router connects to us.
                tokio::time::sleep(FIRST_BACKOFF.saturating_sub(now.saturating_sub(began))).await;
            }
        }
    }
}

/// Makes one connection, sends frames on it, and returns why it ended.
async fn run_connection(
    dialler: &Dialler,
    to: SocketAddr,
    lane: Lane,
    queue: &Arc<Queue>,
) -> Result<Infallible, LinkError> {
    let security = &dialler.security;
    let (mut client, proven) = dial(dialler, to, lane).await?;
    let me = dialler.me.load_full();
    let ours = {
        let mut opening = wire::opening(&me, None);
        security.open_with(&mut opening);
        opening
    };
    let (open, opened) = oneshot::channel();
    let outbound = Outbound {
        first: Some(wire::opening_envelope(security.conceal(&ours, Side::Caller))),
        opened: Some(opened),
        sealer: None,
        security: Arc::clone(security),
        queue: Arc::clone(queue),
    };
    let introduction = async {
        let call = match lane {
            Lane::Swim => client.swim(outbound).await,
            Lane::State => client.sync(outbound).await,
        };
        let mut inbound = call.map_err(|status| broken(&status))?.into_inner();
        let opening = wire::first(inbound.message().await.map_err(|status| broken(&status))?)?;
        let opening = security.reveal(opening, Side::Called)?;
        let it = wire::introduced(&opening, me.cluster, proven.as_deref())?;
        let sealer = security.sealer(&ours, &opening, &opening, Purpose::Lane(lane))?;
        Ok::<_, LinkError>((it, sealer, inbound))
    };
    let (it, sealer, mut inbound) =
        tokio::time::timeout(DIAL_TIMEOUT, introduction).await.unwrap_or(Err(LinkError::Silent))?;
    debug!(%to, ?lane, node = %it.node, "connected");
    dialler.board.went_up(to, lane, dialler.clock.mono(), it);
    security.warn_if_open(to);
    // The receiver lives as long as the call, so it still exists.
    let _ended = open.send(sealer).is_err();
    loop {
        match inbound.message().await.map_err(|status| broken(&status))? {
            // Later versions of the protocol may send messages here.
            Some(_unknown) => {}
            None => return Err(LinkError::Ended),
        }
    }
}

fn broken(status: &tonic::Status) -> LinkError {
    let mut text = status.message().to_owned();
    // tonic's own message is often only "transport error"; its source has the reason.
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    LinkError::Broken(text)
}

/// A client on a new connection, and the names in the certificate that the other side presented.
async fn dial(
    dialler: &Dialler,
    to: SocketAddr,
    lane: Lane,
) -> Result<(MeshClient<Channel>, Option<Vec<String>>), LinkError> {
    let tls = dialler.security.tls();
    let net = Arc::clone(&dialler.net);
    let proven = Arc::new(Mutex::new(None));
    let names = Arc::clone(&proven);
    let endpoint = Endpoint::from_static("http://mesh")
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    let connector = tower::service_fn(move |_| {
        let (net, tls, names) = (Arc::clone(&net), tls.clone(), Arc::clone(&names));
        async move {
            let stream = net.connect(to, lane).await?;
            let Some(tls) = tls else { return Ok::<_, std::io::Error>(TokioIo::new(stream)) };
            let dialled = ServerName::IpAddress(to.ip().into());
            let connector = TlsConnector::from(Arc::clone(&tls.client));
            let stream = connector.connect(dialled, stream).await?;
            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            *names.lock() = shown.map(names_in);
            Ok(TokioIo::new(Box::new(stream) as Box<dyn Duplex>))
        }
    });
    let connecting = endpoint.connect_with_connector(connector);
    match tokio::time::timeout(DIAL_TIMEOUT, connecting).await {
        Err(_elapsed) => Err(LinkError::ConnectTimeout),
        Ok(Ok(channel)) => {
            let client = MeshClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES);
            let proven = proven.lock().take();
            Ok((client, proven))
        }
        Ok(Err(error)) => {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            if let Some(kind) = cause.downcast_ref().and_then(Kind::of) {
                dialler.shortages.report(kind, "connecting to a router", &cause);
            }
            Err(LinkError::Connect(cause.to_string()))
        }
    }
}

/// The messages that are sent on one connection: our opening at once, frames after the other side has introduced
/// itself.
struct Outbound {
    first: Option<Envelope>,
    /// Resolves with the sealer when the other side has introduced itself; `None` after that.
    opened: Option<oneshot::Receiver<Option<Sealer>>>,
    sealer: Option<Sealer>,
    security: Arc<Security>,
    queue: Arc<Queue>,
}

impl Stream for Outbound {
    type Item = Envelope;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Envelope>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        let this = &mut *self;
        if let Some(opened) = &mut this.opened {
            match ready!(Pin::new(opened).poll(cx)) {
                Ok(sealer) => (this.opened, this.sealer) = (None, sealer),
                Err(_gone) => return Poll::Ready(None),
            }
        }
        let frame = ready!(this.queue.poll_pop(cx));
        Poll::Ready(frame.and_then(|frame| this.security.enclose(this.sealer.as_mut(), frame)))
    }
}

/// Sends a change of keys to one router, and returns its answer.
pub(super) async fn change_keys(
    dialler: &Dialler,
    to: SocketAddr,
    change: KeyChange,
) -> Result<Vec<KeyId>, String> {
    let telling = async {
        let security = &dialler.security;
        let (mut client, proven) = dial(dialler, to, Lane::State).await?;
        let me = dialler.me.load_full();
        let mut ours = wire::opening(&me, None);
        security.open_with(&mut ours);
        // The channel has room for both messages, so neither waits.
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        let concealed = security.conceal(&ours, Side::Caller);
        let _full = sender.try_send(wire::opening_envelope(concealed)).is_err();
        let outbound = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let call = client.keys(outbound).await.map_err(|status| broken(&status))?;
        let mut inbound = call.into_inner();
        let opening = wire::first(inbound.message().await.map_err(|status| broken(&status))?)?;
        let opening = security.reveal(opening, Side::Called)?;
        wire::introduced(&opening, me.cluster, proven.as_deref())?;
        let mut sealer = security.sealer(&ours, &opening, &opening, Purpose::Keys)?;
        let mut opener = security.opener(&ours, &opening, Purpose::KeysAnswer)?;
        let change = keys::change_envelope(security, sealer.as_mut(), &change)
            .ok_or(OpeningError::NoSharedKey)?;
        let _full = sender.try_send(change).is_err();
        let answer = inbound.message().await.map_err(|status| broken(&status))?;
        Ok::<_, LinkError>(keys::read_answer(security, opener.as_mut(), answer))
    };
    match tokio::time::timeout(DIAL_TIMEOUT * 3, telling).await {
        Ok(Ok(answered)) => answered,
        Ok(Err(error)) => Err(error.to_string()),
        Err(_elapsed) => Err("no answer in time".to_owned()),
    }
}
