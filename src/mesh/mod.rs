//! The machinery that connects routers: sockets, clock and tasks around `cluster`, which does the thinking.
//!
//! Everything here runs on a thread and runtime of its own, so that a flood of requests never delays a probe and makes a
//! healthy router look dead. One task, the driver, owns the `cluster::Node`; links carry its frames out, the server brings
//! the others' in, `join` resolves names. The rest of the router holds a [`Handle`]: the newest [`View`], happenings as
//! they happen, and visits to the node.
//!
//! Not here: what any of it means for requests. That is `bridge`'s and `fleet`'s.

mod advertise;
mod driver;
mod join;
mod keys;
mod link;
mod metrics;
mod net;
mod queue;
mod seal;
mod security;
mod server;
mod status;
mod wire;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::RngExt as _;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tracing::{error, info, warn};

pub use advertise::{Source, Wanted};
pub use join::{JoinAddress, ParseJoinAddressError};
pub use link::{LaneStatus, LinkStatus};
pub use metrics::Metrics;
pub use seal::{KeyId, Mode, ParseKeyError, Ring, RingError, SharedKey};
pub use security::{Config as SecurityConfig, KeyChange};
pub use status::{
    ConnectionStatus, Drift, Health, JoinStatus, NodeStatus, PeerStatus, Router, Status,
    StoreStatus, rfc3339,
};

use crate::clock::Clock;
pub use crate::cluster::membership::MemberState;

use crate::cluster::membership::{Identity, MemberView, RefusalReason, Transition, generation_at};
use crate::cluster::state::news::News;
use crate::cluster::{self, Node};
use crate::ids::{NodeId, NodeName};
use crate::now::Now;
use crate::tasks::{OnEnd, Tasks};
use driver::{Command, Driver, Inputs, Outputs};
use join::{Joiner, Resolutions};
use link::{Board, Dialler};
use net::{Listener, Net};
use security::Security;
use server::{Inbox, Service};
use wire::Introduction;

/// The port of the mesh.
pub const DEFAULT_PORT: u16 = 39527;

/// Frames that wait for the driver, on each lane.
const INBOX: usize = 1024;

/// Commands that wait for the driver; who asks waits.
const COMMANDS: usize = 64;

/// Happenings that a slow listener may be behind before it misses some.
const HAPPENINGS: usize = 1024;

/// When each store was last compared with, or changed by, another router: since the Unix epoch.
pub type Synced = std::collections::BTreeMap<cluster::state::StoreId, Duration>;

/// How long the end of the mesh may take: LEAVING was told long before.
const DEPARTURE: Duration = Duration::from_secs(2);

/// What the mesh is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// This router's name.
    pub name: NodeName,
    /// The cluster's name, for people.
    pub cluster_name: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What was said of the address to be reached at.
    pub advertise: Wanted,
    /// Where others may be.
    pub join: Vec<JoinAddress>,
    /// How it is protected.
    pub security: SecurityConfig,
    /// Everything else: timings, bounds, the cluster's id.
    pub node: cluster::Config,
}

/// A mesh that can't begin.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Its port could not be had.
    #[error("cannot listen on {address} (--mesh-host, --mesh-port): {source}")]
    Listen {
        /// What was wanted.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Its certificates can't be used.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsErrors),
    /// Its numbers can't work.
    #[error("the mesh can't work like this: {0}")]
    Config(String),
}

/// A mesh with its port bound and nothing running.
#[derive(Debug)]
pub struct Mesh {
    handle: Handle,
    engine: Engine,
    listener: TcpListener,
    stop: watch::Sender<bool>,
    /// Where others reach it.
    address: SocketAddr,
    source: Source,
}

/// All that runs, without a thread and a port: those of the machine, or simulated ones.
#[derive(Debug)]
struct Engine {
    clock: Clock,
    node: Node,
    inputs: Inputs,
    outputs: Outputs,
    dialler: Arc<Dialler>,
    service: Service,
    joiner: Joiner,
    follower: Option<Box<dyn Follower>>,
}

/// Everybody that this router knows of, as of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// This router.
    pub me: MemberView,
    /// The others that are listed, the dead included, by name.
    pub members: Vec<MemberView>,
    /// Why this router can't join, while it can't.
    pub refused: Option<RefusalReason>,
    /// Grows with each change of the members.
    pub version: u64,
    /// This router has once had all that another had.
    pub warm: bool,
}

impl View {
    /// The others that take part: ALIVE and, since that is only information, SUSPECTED.
    pub fn present(&self) -> impl Iterator<Item = &MemberView> {
        self.members.iter().filter(|member| match member.state {
            MemberState::Alive | MemberState::Suspected => true,
            MemberState::Init | MemberState::Down | MemberState::Leaving => false,
        })
    }

    /// Whether there is anybody else.
    #[must_use]
    pub fn has_others(&self) -> bool {
        self.present().next().is_some()
    }
}

/// Something that happened in the cluster, as seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// Counted from 1 since the start of this router.
    pub number: u64,
    /// When, since the Unix epoch.
    pub at: Duration,
    /// What.
    pub what: What,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Another router's state changed.
    Member {
        /// Whose, and how.
        transition: Transition,
        /// Where it is, while it is listed.
        address: Option<SocketAddr>,
    },
    /// This router's state changed.
    Me {
        /// Before.
        from: MemberState,
        /// After.
        to: MemberState,
    },
    /// This router was declared DOWN while alive, and said so.
    Renewed,
    /// This router goes on as another writer.
    Reborn {
        /// As which.
        is: NodeId,
    },
    /// This router can't join.
    Refused(RefusalReason),
    /// Another live router claims this one's name.
    NameContested(Identity),
}

/// What the rest of the router holds of a running mesh. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    config: Arc<Config>,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Arc<View>>,
    happenings: broadcast::Sender<Arc<Happening>>,
    dialler: Arc<Dialler>,
    resolutions: Resolutions,
}

/// Keeps a picture of the shared state in step, on the mesh's thread: it must be quick and never wait.
pub trait Follower: Send + std::fmt::Debug {
    /// Something has changed: `news` says where, `members` whether others came, left, died or came back. Called before any
    /// other router is told that this one has applied it.
    fn follow(&mut self, node: &mut Node, news: &News, members: bool, now: Now);
}

/// A mesh that runs.
#[derive(Debug)]
pub struct Running {
    handle: Handle,
    stop: watch::Sender<bool>,
    thread: std::thread::JoinHandle<()>,
}

impl Mesh {
    /// Binds the port and finds out where this router is reached. `clients` says how clients reach it, which is told
    /// to the others.
    ///
    /// # Errors
    /// If the port can't be had, or the configuration is one that can't work.
    pub fn bind(
        config: Config,
        clock: Clock,
        metrics: Metrics,
        clients: Clients,
    ) -> Result<Self, BindError> {
        let (listener, bound) = listen(config.listen)
            .map_err(|source| BindError::Listen { address: config.listen, source })?;
        let (ip, source) = advertise::choose(&config.advertise, config.listen.ip(), &config.join);
        let address = SocketAddr::new(ip, bound.port());
        let (handle, engine, stop) =
            assemble(config, clock, metrics, clients, address, Arc::new(net::Tcp))?;
        Ok(Self { handle, engine, listener, stop, address, source })
    }

    /// From the start on, `follower` is told what changes.
    pub fn follow(&mut self, follower: Box<dyn Follower>) {
        self.engine.follower = Some(follower);
    }

    /// Where others reach it.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the rest of the router holds. It answers once the mesh runs.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// If the system refuses a thread or a runtime.
    pub fn start(self, tasks: &Tasks) -> io::Result<Running> {
        let Self { handle, engine, listener, stop, address, source } = self;
        info!(
            node = %engine.node.me().node,
            %address,
            ?source,
            cluster = handle.config.cluster_name,
            "mesh"
        );
        if source == Source::Loopback {
            warn!("only routers of this machine can reach this one: give --mesh-advertise-host");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (ended_tx, ended) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("smg-mesh".to_owned()).spawn(move || {
            // Dropped at the end, also of a panic: whoever watches learns it.
            let _ended = ended_tx;
            runtime.block_on(engine.run(listener));
        })?;
        let stopping = tasks.clone();
        tasks.spawn("mesh", OnEnd::Stop, async move {
            tokio::select! {
                // Never sent, only dropped.
                _dropped = ended => {}
                () = stopping.stopped() => {}
            }
            Ok(())
        });
        Ok(Running { handle, stop, thread })
    }
}

/// Puts a mesh together that is reached at `address` and reaches others by `net`.
#[expect(clippy::disallowed_methods, reason = "chance enters here")]
fn assemble(
    config: Config,
    clock: Clock,
    metrics: Metrics,
    clients: Clients,
    address: SocketAddr,
    net: Arc<dyn Net>,
) -> Result<(Handle, Engine, watch::Sender<bool>), BindError> {
    let now = clock.now();
    let security = Arc::new(Security::new(&config.security, now)?);
    let mut rng = rand::rng();
    let generation = generation_at(now.wall, rng.random());
    let name = config.name.clone();
    let node = Node::try_new(config.node.clone(), name, generation, address, now, &mut rng)
        .map_err(|mistakes| {
            let lines: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
            BindError::Config(lines.join("; "))
        })?;
    let me = Arc::new(ArcSwap::from_pointee(Introduction {
        node: node.me().node,
        address,
        cluster: config.node.cluster,
        client_url: clients.url(address.ip()),
    }));
    let (swim_tx, swim) = mpsc::channel(INBOX);
    let (state_tx, state) = mpsc::channel(INBOX);
    let (commands_tx, commands) = mpsc::channel(COMMANDS);
    let first = View { me: node.me(), members: Vec::new(), refused: None, version: 0, warm: false };
    let (view_tx, view) = watch::channel(Arc::new(first));
    let (happenings, _) = broadcast::channel(HAPPENINGS);
    let (stop, stopping) = watch::channel(false);
    let board = Arc::new(Board::default());
    let dialler = Arc::new(Dialler {
        net,
        me: Arc::clone(&me),
        security: Arc::clone(&security),
        clock,
        metrics: metrics.clone(),
        board: Arc::clone(&board),
    });
    let inbox = Inbox { swim: swim_tx, state: state_tx };
    let handle = Handle {
        config: Arc::new(config),
        commands: commands_tx.clone(),
        view: view.clone(),
        happenings: happenings.clone(),
        dialler: Arc::clone(&dialler),
        resolutions: Resolutions::default(),
    };
    let joiner = Joiner {
        wanted: handle.config.join.clone(),
        resolutions: Arc::clone(&handle.resolutions),
        commands: commands_tx,
        view,
        stopping: stopping.clone(),
    };
    let engine = Engine {
        clock,
        node,
        inputs: Inputs { swim, state, commands },
        outputs: Outputs { view: view_tx, happenings, me: Arc::clone(&me) },
        dialler,
        service: Service {
            me,
            security,
            inbox,
            metrics,
            refusals: Arc::default(),
            board,
            stopping,
        },
        joiner,
        follower: None,
    };
    Ok((handle, engine, stop))
}

impl Engine {
    /// Runs until the node has departed, or everybody who could ask it anything is gone.
    async fn run(self, listener: impl Listener) {
        let Self { clock, node, inputs, outputs, dialler, service, joiner, follower } = self;
        let driver = Driver::new(node, clock, inputs, outputs, dialler, follower);
        let following = Arc::clone(&service.security).follow_files(clock, service.stopping.clone());
        let beside = async {
            tokio::try_join!(server::run(listener, service), joiner.run(), async {
                following.await;
                Ok(())
            })
        };
        tokio::select! {
            biased;
            () = driver.run() => {}
            ended = beside => {
                if let Err(error) = ended {
                    error!(%error, "the mesh port can't be served");
                }
            }
        }
    }
}

/// How clients reach this router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clients {
    /// The port's address, perhaps all addresses.
    pub listen: SocketAddr,
    /// Whether it speaks TLS.
    pub secure: bool,
}

impl Clients {
    /// The URL, with `reached` where the port listens on all addresses.
    #[must_use]
    pub fn url(self, reached: IpAddr) -> String {
        let ip = if self.listen.ip().is_unspecified() { reached } else { self.listen.ip() };
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{}", SocketAddr::new(ip, self.listen.port()))
    }

    /// The URL of a router without a mesh.
    #[must_use]
    pub fn url_alone(self) -> String {
        self.url(advertise::choose(&Wanted::default(), self.listen.ip(), &[]).0)
    }
}

impl Running {
    /// Tells everybody that this router is gone, sends what is queued, and ends the thread.
    pub async fn depart(self) {
        let Self { handle, stop, thread } = self;
        if tokio::time::timeout(DEPARTURE, handle.depart()).await.is_err() {
            warn!("the mesh did not end in time");
        }
        stop.send_replace(true);
        // Joined where waiting is allowed; it has nothing left to do.
        let joined = tokio::task::spawn_blocking(move || thread.join());
        match tokio::time::timeout(DEPARTURE, joined).await {
            Ok(Ok(Ok(()))) => info!("left the mesh"),
            Ok(Ok(Err(_)) | Err(_)) => warn!("the mesh's thread has panicked"),
            Err(_elapsed) => warn!("the mesh's thread did not end in time"),
        }
    }
}

impl Handle {
    /// Who is there, as of now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// The same, with a way to wait for the next.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// What happens from now on. Who is slow misses some, and is told how many.
    #[must_use]
    pub fn happenings(&self) -> broadcast::Receiver<Arc<Happening>> {
        self.happenings.subscribe()
    }

    /// The cluster's name.
    #[must_use]
    pub fn cluster_name(&self) -> &str {
        &self.config.cluster_name
    }

    /// How the ways to the others are, by address.
    #[must_use]
    pub fn links(&self) -> std::collections::BTreeMap<SocketAddr, LinkStatus> {
        self.dialler.board.all()
    }

    /// Looks at the node, on the mesh's thread; `None` if that has ended or does not answer within a second. Not for
    /// the request path.
    pub async fn visit<T: Send + 'static>(
        &self,
        visit: impl FnOnce(&mut Node, &Synced, Now) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let visit = Box::new(move |node: &mut Node, synced: &Synced, now| {
            // Who asked may not wait any more.
            let _unheard = answer.send(visit(node, synced, now)).is_err();
        });
        let asking = async {
            self.commands.send(Command::Visit(visit)).await.ok()?;
            answered.await.ok()
        };
        tokio::time::timeout(VISIT_TIMEOUT, asking).await.ok().flatten()
    }

    /// The shared keys, by name, the one that seals first.
    #[must_use]
    pub fn keys(&self) -> (Mode, Vec<KeyId>) {
        let security = &self.dialler.security;
        (security.mode(), security.ring().ids().collect())
    }

    /// Changes the shared keys of this router, then of all that take part; what became of it, by name.
    ///
    /// # Errors
    /// If this router itself refuses the change, or has nothing that could carry it to the others in secret; nothing has
    /// changed then.
    pub async fn change_keys(&self, change: KeyChange) -> Result<KeyReceipts, KeysError> {
        let security = &self.dialler.security;
        if security.mode() == Mode::Off {
            return Err(KeysError::Off);
        }
        let view = self.view();
        let others: Vec<_> = view.present().map(|m| (m.node.name.to_string(), m.address)).collect();
        if !others.is_empty() && !security.can_carry_keys() {
            return Err(KeysError::NoSecret);
        }
        security.change(&change)?;
        let mut receipts = KeyReceipts::new();
        receipts.insert(view.me.node.name.to_string(), Ok(security.ring().ids().collect()));
        let mut telling = tokio::task::JoinSet::new();
        for (name, address) in others {
            let (dialler, change) = (Arc::clone(&self.dialler), change.clone());
            telling
                .spawn(async move { (name, link::change_keys(&dialler, address, change).await) });
        }
        while let Some(told) = telling.join_next().await {
            if let Ok((name, answer)) = told {
                receipts.insert(name, answer);
            }
        }
        Ok(receipts)
    }

    /// Tells everybody that this router is gone, and waits until that is sent.
    async fn depart(&self) {
        let (done, departed) = oneshot::channel();
        // An error means that the driver has ended already.
        if self.commands.send(Command::Depart(done)).await.is_ok() {
            let _ended = departed.await.is_err();
        }
    }

    /// Tells everybody that this router will go. It stays a member until it departs.
    pub async fn leave(&self) {
        // An error means that the driver has ended: it can't be a member then.
        let _ended = self.commands.send(Command::Leave).await.is_err();
    }
}

/// What became of a change of keys, by router: its keys now, or why it refused.
pub type KeyReceipts = std::collections::BTreeMap<String, Result<Vec<KeyId>, String>>;

/// Why a change of keys was not begun.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// Nothing is sealed.
    #[error("nothing is sealed: start the routers with --mesh-encryption permissive or required")]
    Off,
    /// The change would travel in the open.
    #[error("there is neither a shared key nor TLS that could carry a key to the others in secret")]
    NoSecret,
    /// The ring refuses.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// How long the driver may take to answer.
const VISIT_TIMEOUT: Duration = Duration::from_secs(1);

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

#[cfg(test)]
mod tests;
