//! Connects the parts that run on the mesh's thread: the driver, the links, the server, the joiner.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use rand::RngExt as _;
use smg_cluster::Node;
use smg_cluster::membership::generation_at;
use smg_lease::{Forgetful, Votes};
use smg_runtime::clock::Clock;
use smg_types::ids::Generation;
use smg_types::now::Now;
use tokio::sync::{broadcast, mpsc, watch};

use crate::config::{BindError, ClientEndpoint, Config, HostServices};
use crate::driver::{Driver, Inputs, Outputs};
use crate::durability::Data;
use crate::handle::Handle;
use crate::join::{Joiner, Resolutions};
use crate::lease_view::{LEADER, LeaseView};
use crate::link::{Board, Dialler};
use crate::metrics::Metrics;
use crate::net::{Listener, Net};
use crate::security::{Config as SecurityConfig, Security};
use crate::server;
use crate::service::{Inbox, Service};
use crate::view::{Follower, View};
use crate::wire::Introduction;

/// The most frames that wait for the driver, per lane.
const INBOX: usize = 1024;

/// The most commands that wait for the driver. Further senders wait.
const COMMANDS: usize = 64;

/// The most events that a slow subscriber may be behind before it misses some.
const EVENTS: usize = 1024;

/// Everything that runs on the mesh's thread. The caller provides the listener and the network: those of the machine,
/// or simulated ones.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) clock: Clock,
    pub(super) node: Node,
    pub(super) inputs: Inputs,
    pub(super) outputs: Outputs,
    pub(super) dialler: Arc<Dialler>,
    /// `None` if this router is a cluster of one.
    pub(super) network: Option<Network>,
    pub(super) follower: Option<Box<dyn Follower>>,
    /// The data folder, until its thread has it.
    pub(super) data: Option<Data>,
    pub(super) client_endpoint: ClientEndpoint,
}

/// The parts that run beside the driver if other routers may join: the server of the mesh port, and the resolver of
/// join addresses.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) service: Service,
    pub(super) joiner: Joiner,
}

/// The sending halves of the flags that request and report the end of a node.
#[derive(Debug)]
pub(super) struct Ends {
    /// Set to request the end of the tasks beside the driver.
    pub(super) stop: watch::Sender<bool>,
    /// Set when the node's thread has ended without a request.
    pub(super) failed: watch::Sender<bool>,
}

/// Connects the parts of a node that other routers reach at `address`, and that reaches others through `net`.
pub(super) fn assemble(
    config: Config,
    clock: Clock,
    metrics: Metrics,
    client_endpoint: ClientEndpoint,
    address: SocketAddr,
    net: Arc<dyn Net>,
    services: HostServices,
) -> Result<(Handle, Engine, Ends), BindError> {
    let now = clock.now();
    let (mut data, security) = open_data(&config, now)?;
    let join = config.network.as_ref().map(|network| network.join.clone()).unwrap_or_default();
    let node = new_node(&config, address, now, join.is_empty(), data.as_mut())?;
    let (join_addresses, wanted) = watch::channel(join);
    let me = Arc::new(ArcSwap::from_pointee(introduction(&node, &config, client_endpoint)));
    let (swim_tx, swim) = mpsc::channel(INBOX);
    let (state_tx, state) = mpsc::channel(INBOX);
    let (commands_tx, commands) = mpsc::channel(COMMANDS);
    let first = View { me: node.me(), members: Vec::new(), refused: None, version: 0, warm: false };
    let (view_tx, view) = watch::channel(Arc::new(first));
    let (leases_tx, leases) = watch::channel(Arc::new(LeaseView::default()));
    let (events, _) = broadcast::channel(EVENTS);
    let (stop, stopping) = watch::channel(false);
    let (failed_tx, failed) = watch::channel(false);
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
    let is_networked = config.network.is_some();
    let handle = Handle {
        config: Arc::new(config),
        commands: commands_tx.clone(),
        view: view.clone(),
        events: events.clone(),
        leases,
        dialler: Arc::clone(&dialler),
        disk: data.as_ref().map(|data| data.handle.clone()),
        is_restored: data.as_ref().is_some_and(Data::has_state),
        resolutions: Resolutions::default(),
        join_addresses: Arc::new(join_addresses),
        failed,
    };
    // Without a network the senders of the frame channels are dropped here: the driver receives only commands.
    let network = is_networked.then(|| Network {
        joiner: Joiner {
            wanted,
            provisional: None,
            services,
            resolutions: Arc::clone(&handle.resolutions),
            commands: commands_tx,
            view,
            stopping: stopping.clone(),
        },
        service: Service {
            me: Arc::clone(&me),
            security,
            inbox: Inbox { swim: swim_tx, state: state_tx },
            metrics,
            refusals: Arc::default(),
            board,
            shortages,
            stopping,
        },
    });
    let disk = handle.disk.clone();
    let outputs = Outputs { view: view_tx, events, leases: leases_tx, me, disk };
    let inputs = Inputs { swim, state, commands };
    let follower = None;
    let engine =
        Engine { clock, node, inputs, outputs, dialler, network, follower, data, client_endpoint };
    Ok((handle, engine, Ends { stop, failed: failed_tx }))
}

/// Opens the data folder, if there is one, and the protection of the mesh with the keys that are saved there.
fn open_data(config: &Config, now: Now) -> Result<(Option<Data>, Arc<Security>), BindError> {
    let alone = SecurityConfig::default();
    let security = config.network.as_ref().map_or(&alone, |network| &network.security);
    let data = config.data.as_ref();
    let data = data.map(|data| Data::open(data, &config.name, &security.keys, now)).transpose()?;
    let saved = data.as_ref().map(|data| (data.ring.clone(), data.handle.clone()));
    let security = Security::new(security, now, saved)?;
    Ok((data, Arc::new(security)))
}

/// The introduction of a node that has just been created.
fn introduction(node: &Node, config: &Config, client_endpoint: ClientEndpoint) -> Introduction {
    let me = node.me();
    Introduction {
        node: me.node,
        address: me.address,
        cluster: config.node.cluster,
        client_url: client_endpoint.url(me.address.ip()),
    }
}

/// Creates the node. It is ALIVE from the start if there are no join addresses.
#[expect(clippy::disallowed_methods, reason = "chance enters here")]
fn new_node(
    config: &Config,
    address: SocketAddr,
    now: Now,
    is_alone: bool,
    mut data: Option<&mut Data>,
) -> Result<Node, BindError> {
    let mut rng = rand::rng();
    let mut generation = generation_at(now.wall, rng.random());
    if let Some(Generation(before)) = data.as_ref().and_then(|data| data.generation(&config.name)) {
        // The clock may have been set back.
        generation = generation.max(Generation(before.saturating_add(1)));
    }
    let name = config.name.clone();
    let mut node = Node::try_new(config.node.clone(), name, generation, address, now, &mut rng)
        .map_err(|mistakes| {
            let lines: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
            BindError::Config(lines.join("; "))
        })?;
    if let Some(data) = &mut data {
        // The follower must learn of all that is loaded.
        node.track_changed_keys();
        data.restore(&mut node, now);
    }
    if config.network.is_some() {
        let me = node.me().node;
        let votes: Box<dyn Votes> = match &data {
            Some(data) => Box::new(data.votes(me)),
            None => Box::new(Forgetful),
        };
        node.start_leases(now, [LEADER.clone()], votes);
    }
    if is_alone {
        node.join(now, &[]);
    }
    Ok(node)
}

impl Engine {
    /// Makes `follower` apply all changes, and at once those that were loaded from disk.
    pub(super) fn follow(&mut self, mut follower: Box<dyn Follower>) {
        let changed = self.node.take_changed_keys();
        if !changed.is_empty() {
            let now = self.node.cluster_time(self.clock.now());
            follower.apply(&mut self.node, &changed, false, now);
        }
        self.follower = Some(follower);
    }

    /// Runs until the node has departed, or until all handles are dropped. `listener` accepts other routers if the node
    /// has a network.
    ///
    /// # Errors
    /// If the mesh port can't be served.
    pub(super) async fn run(self, listener: Option<impl Listener>) -> anyhow::Result<()> {
        let Self {
            clock, node, inputs, outputs, dialler, network, follower, client_endpoint, ..
        } = self;
        let driver = Driver::new(node, clock, inputs, outputs, dialler, follower, client_endpoint);
        let (Some(Network { service, joiner }), Some(listener)) = (network, listener) else {
            // Boxed, because its state is large.
            Box::pin(driver.run()).await;
            return Ok(());
        };
        let following = Arc::clone(&service.security).follow_files(clock, service.stopping.clone());
        let beside = async {
            tokio::try_join!(server::run(listener, service), joiner.run(), async {
                following.await;
                Ok(())
            })
        };
        tokio::select! {
            biased;
            () = driver.run() => Ok(()),
            ended = beside => ended.map(|_| ()).context("the mesh port can't be served"),
        }
    }
}
