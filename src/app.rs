//! The composition root: builds the parts bottom-up, starts them top-down, and stops them in reverse. It contains no
//! policy of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::Version;
use anyhow::Context as _;
use prometheus::Registry;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use smg_mesh::{self as mesh, Mesh};
use smg_mock as mock;
use smg_mock::demo::{DemoError, RunningRouter};
use smg_proxy::dispatch;
use smg_proxy::prober;
use smg_proxy::upstream::Client;
use smg_routing::fleet::{self, Fleet};
use smg_routing::limit::{self, Admission};
use smg_routing::policies::{self, Policies};
use smg_routing::prefix;
use smg_runtime::clock::Clock;
use smg_runtime::descriptors::{self, Descriptors};
use smg_runtime::dial::Dialer;
use smg_runtime::resolve::Resolver;
use smg_runtime::shortage::Shortages;
use smg_runtime::tasks::{OnEnd, TasksOwner};
use smg_runtime::telemetry::{self, Log};
use smg_runtime::tls::{self, Live};
use tokio::sync::{Notify, Semaphore, watch};
use tracing::{info, warn};

use crate::bridge::{self, Admin, Bridge};
use crate::config::{self, Config, Loaded, Process, Start};
use crate::http::{self, Lifecycle, LiveKeys, Server, Surface};
use crate::reload::Reload;
use crate::supervisor;

/// A router that has bound its sockets and has not started a task.
#[derive(Debug)]
pub struct App {
    config: Config,
    clock: Clock,
    server: Server,
    surface: Arc<Surface>,
    listener_tls: Option<Arc<Live<tls::ServerConfig>>>,
    worker_tls: Arc<Live<tls::ClientConfig>>,
    mesh: Mesh,
    bridge: Bridge,
    bridge_metrics: bridge::Metrics,
    /// Makes the prober run before its next probe is due.
    wake: Arc<Notify>,
}

/// A running router, with its server, its mesh and its tasks.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    config: http::Config,
    surface: Arc<Surface>,
    server: http::Running,
    mesh: mesh::Running,
    tasks: TasksOwner,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All requests in flight have finished.
    Clean,
    /// A request in flight was aborted, or a needed task had failed.
    Cut,
}

/// The parts that choose workers and send requests to them.
struct Routing {
    fleet: Arc<Fleet>,
    policies: Arc<Policies>,
    dispatch: Arc<dispatch::Shared>,
}

/// Binds the mesh port. `client_endpoint`: the address of the listener for clients, which other routers publish.
///
/// # Errors
/// If the port can't be bound, a key or a certificate can't be used, or a metric is registered already.
fn bind_mesh(
    config: &Config,
    clock: Clock,
    registry: &Registry,
    dialer: &Dialer,
    client_endpoint: mesh::ClientEndpoint,
) -> anyhow::Result<(Mesh, bridge::Metrics)> {
    // `/metrics` shows the metrics of the mesh only if other routers can join.
    let unshown = Registry::new();
    let of_others = if config.mesh.network.is_some() { registry } else { &unshown };
    let metrics = mesh::Metrics::register(registry, of_others)?;
    let bridge_metrics = bridge::Metrics::register(of_others)?;
    let disk_metrics = config.mesh.data.as_ref().map(|_| mesh::DiskMetrics::register(registry));
    let services = mesh::HostServices {
        resolver: dialer.resolver().clone(),
        shortages: dialer.shortages().clone(),
        disk_metrics: disk_metrics.transpose()?,
    };
    let mesh = Mesh::bind(config.mesh.clone(), clock, metrics, client_endpoint, services)?;
    Ok((mesh, bridge_metrics))
}

/// Builds fleet, policies, admission and dispatch, and registers their metrics.
fn routing(config: &Config, registry: &Registry) -> anyhow::Result<Routing> {
    let fleet = Arc::new(Fleet::new(config.fleet.clone(), fleet::Metrics::register(registry)?));
    for spec in &config.workers {
        fleet.register(spec.clone())?;
    }
    let index = Arc::new(prefix::Index::new(&config.prefix));
    prefix::Metrics::register(registry, &index)?;
    let policies_metrics = policies::Metrics::register(registry)?;
    let policies = Arc::new(Policies::new(config.policy.clone(), index, policies_metrics));
    let admission = Admission::new(&config.limit);
    limit::Metrics::register(registry, &admission)?;
    let dispatch = dispatch::Shared::new(
        config.dispatch.clone(),
        Arc::clone(&fleet),
        Arc::clone(&policies),
        admission,
        dispatch::Metrics::register(registry)?,
    );
    let dispatch = Arc::new(dispatch);
    Ok(Routing { fleet, policies, dispatch })
}

/// A client of workers or of other routers.
fn client(
    config: &Config,
    tls: &Arc<Live<tls::ClientConfig>>,
    dialer: &Arc<Dialer>,
    clock: Clock,
) -> Client {
    Client::new(config.upstream.clone(), Some(Arc::clone(tls)), Arc::clone(dialer), clock)
}

/// Connects the cluster node with routing and the limits.
fn bridge(
    config: &Config,
    fleet: &Arc<Fleet>,
    policies: &Arc<Policies>,
    clock: Clock,
    wake: &Arc<Notify>,
    registry: &Registry,
) -> anyhow::Result<Bridge> {
    let limits = bridge::Limits::new(config.limits.engine, config.limits.rules.clone());
    bridge::LimitMetrics::register(registry, &limits)?;
    Ok(Bridge::new(
        config.bridge.clone(),
        Arc::clone(fleet),
        Arc::clone(policies),
        &config.workers,
        clock,
        Arc::clone(wake),
        limits,
    ))
}

impl App {
    /// Reads the certificates, binds the sockets and connects the parts.
    ///
    /// # Errors
    /// If a certificate can't be used or a port can't be bound. The error names the file or the address, and the flag.
    pub fn build(config: Config) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let now = clock.now();
        let listener_tls = config
            .http
            .tls
            .clone()
            .map(|files| Live::read(files, now).map(Arc::new))
            .transpose()?;
        let worker_tls = Arc::new(Live::read(config.upstream.tls.clone(), now)?);
        let server = Server::bind(&config.http)?;
        let own_addresses = server.own_addresses()?;
        for worker in &config.workers {
            own_addresses.check(&worker.url)?;
        }

        let registry = Registry::new();
        telemetry::register_build_info(&registry)?;
        let dialer = Dialer::new(
            Resolver::system(clock),
            Shortages::register(&registry, clock)?,
            Descriptors::new(descriptors::limit()),
        );
        let dialer = Arc::new(dialer.within(config.http.worker_networks.clone()));

        let access_log = config.http.access_log.as_ref();
        let access_log =
            access_log.map(|log| http::AccessLog::open(log, &registry, clock)).transpose()?;
        let Routing { fleet, policies, dispatch } = routing(&config, &registry)?;
        let wake = Arc::new(Notify::new());
        let client_endpoint =
            mesh::ClientEndpoint { listen: server.address()?, secure: config.http.tls.is_some() };
        let (mut mesh, bridge_metrics) =
            bind_mesh(&config, clock, &registry, &dialer, client_endpoint)?;
        let bridge = bridge(&config, &fleet, &policies, clock, &wake, &registry)?;
        mesh.follow(bridge.follower());
        let handle = mesh.handle().clone();
        let hops = http::Hops::new(&handle.view().me.node);
        let surface = Arc::new(Surface {
            keys: LiveKeys::new(&config.http),
            config: config.http.clone(),
            control: client(&config, &worker_tls, &dialer, clock)
                .with_via(hops.entry(Version::HTTP_11).clone()),
            hops,
            own_addresses,
            routers: client(&config, &worker_tls, &dialer, clock),
            settings: http::ShownSettings::default(),
            dialer,
            policies,
            dispatch,
            admin: Admin::new(&bridge, handle.clone()),
            gate: Arc::clone(bridge.gate()),
            waiting_for_rights: Semaphore::new(http::MOST_WAITING),
            estimates: Arc::new(http::Estimates::register(&registry)?),
            metrics: http::Metrics::register(&registry)?,
            pages: http::Pages::default(),
            lifecycle: Lifecycle::default(),
            reloads: http::Reloads::default(),
            access_log,
            registry,
            fleet,
            mesh: handle,
            clock,
        });
        Ok(Self {
            config,
            clock,
            server,
            surface,
            listener_tls,
            worker_tls,
            mesh,
            bridge,
            bridge_metrics,
            wake,
        })
    }

    /// Registers the log's metrics, shows the settings to administrators, and returns the actions of SIGHUP; `loaded` is what this
    /// router was built from.
    ///
    /// # Errors
    /// If the log's metrics are registered already.
    pub fn reload(&self, loaded: &Loaded, log: Log) -> anyhow::Result<Reload> {
        log.register(&self.surface.registry)?;
        loaded.show(&self.surface.settings);
        let (listener_tls, worker_tls) = (self.listener_tls.clone(), Arc::clone(&self.worker_tls));
        Ok(Reload::new(loaded, log, Arc::clone(&self.surface), listener_tls, worker_tls)?)
    }

    /// Starts the tasks and threads on the current runtime.
    ///
    /// # Errors
    /// If the system refuses a thread or a socket.
    #[expect(clippy::disallowed_methods, reason = "chance enters here")]
    pub fn start(self) -> anyhow::Result<Running> {
        let tasks = TasksOwner::new();
        let handle = tasks.handle();
        let address = self.server.address()?;
        if let Some(address) = self.server.metrics_address() {
            info!(%address, "metrics");
        }
        if let Some(address) = self.server.health_address() {
            info!(%address, "probes");
        }
        let client = client(&self.config, &self.worker_tls, &self.surface.dialer, self.clock);
        let via = self.surface.hops.entry(Version::HTTP_11).clone();
        let client = Arc::new(client.with_via(via));
        let probing = prober::run(
            Arc::clone(&self.surface.fleet),
            client,
            self.clock,
            SmallRng::from_rng(&mut rand::rng()),
            self.wake,
        );
        let stopped = handle.clone();
        handle.spawn("prober", OnEnd::Stop, async move {
            tokio::select! {
                ended = probing => ended,
                () = stopped.stopped() => Ok(()),
            }
        });
        let mesh = self.mesh.start(&handle)?;
        let sharing = self.bridge.run(self.surface.mesh.clone(), self.bridge_metrics);
        let stopped = handle.clone();
        handle.spawn("bridge", OnEnd::Stop, async move {
            tokio::select! {
                ended = sharing => ended,
                () = stopped.stopped() => Ok(()),
            }
        });
        let server = self.server.start(
            &self.surface,
            &self.config.upstream,
            &self.worker_tls,
            self.listener_tls.as_ref(),
            &handle,
        )?;
        if self.config.mesh.data.is_none() {
            info!(
                "all state is in memory, and lost when all routers stop: --data-dir keeps it on disk"
            );
        }
        info!(%address, policy = %self.config.policy.kind, workers = self.config.workers.len(), "serving");
        supervisor::report_ready(address);
        Ok(Running {
            address,
            config: self.config.http,
            surface: self.surface,
            server,
            mesh,
            tasks,
        })
    }
}

impl Running {
    /// The address on which clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address on which other routers connect; `None` without a mesh.
    #[must_use]
    pub fn mesh_address(&self) -> Option<SocketAddr> {
        let mesh = &self.surface.mesh;
        mesh.is_networked().then(|| mesh.view().me.address)
    }

    /// The fleet, for programs that embed the router.
    #[must_use]
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.surface.fleet
    }

    /// Runs until `stops` is at least 1 or a needed task fails, then waits until the requests in flight have finished.
    /// As soon as `stops` is at least 2, it aborts them.
    pub async fn run(mut self, mut stops: watch::Receiver<u32>) -> Ending {
        let failed = tokio::select! {
            // An error means that no sender is left which could request the shutdown; we treat it as a request.
            _requested = stops.wait_for(|stops| *stops > 0) => None,
            () = self.surface.lifecycle.asked_to_end() => None,
            part = self.tasks.failed() => Some(part),
        };
        self.stop(failed, stops).await
    }

    async fn stop(self, failed: Option<&'static str>, mut stops: watch::Receiver<u32>) -> Ending {
        let second = async move {
            if stops.wait_for(|stops| *stops > 1).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::pin!(second);
        self.surface.lifecycle.drain();
        supervisor::report_stopping();
        // The members receive the announcement before any part stops, so that they don't take the silence for a crash.
        self.surface.mesh.leave().await;
        info!(open = self.server.open(), "the router drains: it finishes the requests in flight");
        let settle = if failed.is_some() { Duration::ZERO } else { self.config.drain_settle };
        let draining = async {
            // Load balancers need some time to notice; until then the router accepts requests.
            tokio::time::sleep(settle).await;
            self.server.close();
            self.surface.admin.hand_over_rights().await;
            tokio::time::timeout(self.config.shutdown_grace, self.server.drained()).await
        };
        let drained = tokio::select! {
            drained = draining => drained.is_ok(),
            () = &mut second => {
                warn!("second request to shut down: requests in flight are aborted");
                false
            }
        };
        if !drained {
            // Idle connections close by themselves after `close`; only busy ones are aborted.
            self.server.close();
            let _some_are_busy =
                tokio::time::timeout(IDLE_LEAVE, self.server.drained()).await.is_err();
        }
        let left = self.server.open();
        if !drained && left > 0 {
            warn!(connections = left, "open connections are aborted");
        }
        self.server.cut();
        if let Some(log) = &self.surface.access_log {
            log.flush();
        }
        self.tasks.stop(deadline(Duration::from_secs(2))).await;
        self.mesh.depart().await;
        if failed.is_some() || (!drained && left > 0) {
            return Ending::Cut;
        }
        info!("the router has shut down");
        Ending::Clean
    }
}

/// How long the router waits for idle connections to close before it aborts the busy ones.
const IDLE_LEAVE: Duration = Duration::from_millis(100);

#[expect(clippy::disallowed_methods, reason = "a deadline on tokio's clock")]
fn deadline(after: Duration) -> tokio::time::Instant {
    tokio::time::Instant::now() + after
}

/// Runs `smg demo`: a router with its defaults in front of the demo's workers.
///
/// # Errors
/// If a part can't be started, or a request fails in a run that draws no screen.
pub async fn demo(args: mock::demo::Args) -> Result<(), DemoError> {
    let count = args.routers;
    mock::demo::run(args, async move |workers| {
        let mut routers: Vec<Running> = Vec::new();
        for nth in 1..=count {
            // The other routers get the address of the first one only, and find each other through it.
            let first = routers.first().and_then(Running::mesh_address);
            let loaded = demo_config(&workers, nth, count, first)?;
            let app = App::build(loaded.config.clone())?;
            loaded.show(&app.surface.settings);
            routers.push(app.start()?);
        }
        let others = usize::from(count) - 1;
        let is_up = |router: &Running| {
            let peers = router.surface.mesh.view().present().count();
            router.fleet().ready_and_total().0 >= workers.len() && peers >= others
        };
        let ready = async {
            while !routers.iter().all(is_up) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), ready)
            .await
            .context("the routers and workers did not become ready")?;
        let addresses = routers.iter().map(Running::address).collect();
        let (stop, stops) = watch::channel(0);
        let stop = Box::pin(async move {
            stop.send_replace(1);
            for router in routers {
                router.run(stops.clone()).await;
            }
        });
        Ok(RunningRouter { addresses, stop })
    })
    .await
}

/// The configuration of a router of the demo, parsed from the arguments that a user would type.
fn demo_config(
    workers: &[String],
    nth: u8,
    count: u8,
    first: Option<SocketAddr>,
) -> anyhow::Result<Box<Loaded>> {
    let mut arguments: Vec<OsString> = [
        "--host=127.0.0.1",
        "--port=0",
        "--prometheus-port=0",
        "--drain-settle-secs=0",
        "--worker-urls",
    ]
    .into_iter()
    .chain(workers.iter().map(String::as_str))
    .map(Into::into)
    .collect();
    if count > 1 {
        arguments
            .extend(["--enable-mesh", "--mesh-host=127.0.0.1", "--mesh-port=0"].map(Into::into));
        arguments.push(format!("--mesh-server-name=router-{nth}").into());
        arguments.extend(first.map(|address| format!("--mesh-peer-urls={address}").into()));
    }
    let process = Process { arguments, variables: BTreeMap::new(), ..Process::current() };
    let mut mistakes = Vec::new();
    match config::start(&process, &mut std::io::sink(), &mut mistakes) {
        Start::Router(loaded) => Ok(loaded),
        Start::MockWorkers(_)
        | Start::Demo(_)
        | Start::Console(_)
        | Start::Probe(_)
        | Start::Doctor(_)
        | Start::Done(_) => {
            anyhow::bail!("{}", String::from_utf8_lossy(&mistakes))
        }
    }
}

#[cfg(test)]
mod tests;
