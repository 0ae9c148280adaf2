//! All that runs of a mesh, put together: the driver, the links, the server, the joiner.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rand::RngExt as _;
use smg_cluster::Node;
use smg_cluster::membership::generation_at;
use smg_runtime::clock::Clock;
use tokio::sync::{broadcast, mpsc, watch};
use tracing::error;

use super::driver::{Driver, Inputs, Outputs};
use super::join::{Joiner, Resolutions};
use super::link::{Board, Dialler};
use super::net::{Listener, Net};
use super::security::Security;
use super::server::{self, Inbox, Service};
use super::wire::Introduction;
use super::{BindError, Clients, Config, Follower, Handle, HostServices, Metrics, View};

/// Frames that wait for the driver, on each lane.
const INBOX: usize = 1024;

/// Commands that wait for the driver; who asks waits.
const COMMANDS: usize = 64;

/// Happenings that a slow listener may be behind before it misses some.
const HAPPENINGS: usize = 1024;

/// All that runs, without a thread and a port: those of the machine, or simulated ones.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) clock: Clock,
    pub(super) node: Node,
    pub(super) inputs: Inputs,
    pub(super) outputs: Outputs,
    pub(super) dialler: Arc<Dialler>,
    pub(super) service: Service,
    pub(super) joiner: Joiner,
    pub(super) follower: Option<Box<dyn Follower>>,
    pub(super) clients: Clients,
}

/// Puts a mesh together that is reached at `address` and reaches others by `net`.
#[expect(clippy::disallowed_methods, reason = "chance enters here")]
pub(super) fn assemble(
    config: Config,
    clock: Clock,
    metrics: Metrics,
    clients: Clients,
    address: SocketAddr,
    net: Arc<dyn Net>,
    services: HostServices,
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
    let shortages = services.shortages.clone();
    let dialler = Arc::new(Dialler {
        net,
        me: Arc::clone(&me),
        security: Arc::clone(&security),
        clock,
        metrics: metrics.clone(),
        board: Arc::clone(&board),
        shortages: shortages.clone(),
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
        provisional: None,
        services,
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
            shortages,
            stopping,
        },
        joiner,
        follower: None,
        clients,
    };
    Ok((handle, engine, stop))
}

impl Engine {
    /// Runs until the node has departed, or everybody who could ask it anything is gone.
    pub(super) async fn run(self, listener: impl Listener) {
        let Self { clock, node, inputs, outputs, dialler, service, joiner, follower, clients } =
            self;
        let driver = Driver::new(node, clock, inputs, outputs, dialler, follower, clients);
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
