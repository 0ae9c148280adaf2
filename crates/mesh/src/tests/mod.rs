//! End-to-end tests of the mesh: real gRPC, codec, nodes and tasks, over a simulated network and simulated time.
//!
//! Each router is a turmoil host. Its bytes go over turmoil's streams, which replace TCP; a [`Wire`] on the dialling
//! side of each can be cut in one direction and can record. Turmoil does not repeat bytes that a partition has dropped,
//! so a broken stream is detected only by keep-alive, as with a TCP connection that no longer repeats. Runs are not
//! repeatable exactly, because hash maps in the libraries have random seeds; the assertions must hold for every order.

mod failures;
mod lanes;
mod liars;
mod network;
mod protection;
mod rumours;
mod sockets;
mod strangers;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::Registry;
use smg_cluster::codec::ClusterId;
use smg_cluster::membership::generation_at;
use smg_cluster::membership::{Identity, MemberView, RefusalReason};
use smg_cluster::replication;
use smg_cluster::state::StoreId;
use smg_cluster::state::worker::{WorkerRecord, WorkerWrite};
use smg_cluster::{self as cluster, Lane, Node, membership};
use smg_runtime::clock::Clock;
use smg_runtime::resolve::Resolver;
use smg_runtime::shortage::Shortages;
use smg_types::ids::NodeId;
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use self::network::{Simulated, SimulatedPort, Wire, Wires};
use super::driver::Command;
use super::engine::{Ends, Engine, assemble};
use super::net::{Duplex, IoFuture, Listener, Net};
use super::wire::Introduction;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// The wall clock when a world begins: 2027-01-15.
const BEGIN: Duration = Duration::from_secs(1_800_000_000);

const CLIENT_ENDPOINT: ClientEndpoint = ClientEndpoint {
    listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8000),
    secure: false,
};

/// The configuration of a router in the cluster `cluster` that joins through `join`.
fn config(name: &str, cluster: &str, join: &[IpAddr], security: SecurityConfig) -> Config {
    let join = join.iter().map(|ip| format!("{ip}:{DEFAULT_PORT}").parse().unwrap()).collect();
    Config {
        name: name.parse().unwrap(),
        cluster_name: cluster.to_owned(),
        network: Some(NetworkConfig {
            listen: SocketAddr::from(([0; 4], DEFAULT_PORT)),
            advertise: Wanted::default(),
            join,
            security,
        }),
        data: None,
        node: cluster::Config {
            cluster: ClusterId::of(cluster),
            membership: membership::Config::lan(),
            replication: replication::Config::default(),
        },
    }
}

fn metrics() -> Metrics {
    let registry = Registry::new();
    Metrics::register(&registry, &registry).unwrap()
}

fn services(clock: Clock) -> HostServices {
    HostServices {
        resolver: Resolver::system(clock),
        shortages: Shortages::unregistered(clock),
        disk_metrics: None,
    }
}

fn worker(number: usize) -> WorkerSpec {
    WorkerSpec::new(format!("http://worker-{number}.example:8000").parse().unwrap())
}

fn put(number: usize) -> WorkerWrite {
    WorkerWrite::Put(WorkerRecord::from(&worker(number)))
}

/// How a router of a world is started.
#[derive(Clone)]
struct Plan {
    /// The wall clock of the router when the world begins.
    begin: Duration,
    cluster: &'static str,
    security: Rc<dyn Fn() -> SecurityConfig>,
    alter: Rc<dyn Fn(&mut Engine)>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            begin: BEGIN,
            cluster: "smg",
            security: Rc::new(SecurityConfig::default),
            alter: Rc::new(|_: &mut Engine| {}),
        }
    }
}

impl Plan {
    fn secured(security: SecurityConfig) -> Self {
        Self { security: Rc::new(move || security.clone()), ..Self::default() }
    }
}

/// A running router, as the test accesses it.
struct Router {
    handle: Handle,
    metrics: Metrics,
    stop: watch::Sender<bool>,
    events: broadcast::Receiver<Arc<ClusterEvent>>,
}

type Routers = Rc<RefCell<BTreeMap<&'static str, Router>>>;

/// Routers on a simulated network. Time passes only while a test waits.
struct World {
    sim: turmoil::Sim<'static>,
    routers: Routers,
    wires: Arc<Wires>,
    names: Vec<&'static str>,
}

impl World {
    /// A network without routers. `names` are the routers to come; each of them gets the addresses of all.
    fn of(names: &[&'static str]) -> Self {
        let sim = turmoil::Builder::new()
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(Duration::from_micros(200))
            .max_message_latency(Duration::from_millis(2))
            .simulation_duration(Duration::from_secs(24 * 3600))
            .tcp_capacity(4096)
            .rng_seed(7)
            .build();
        let (routers, wires) = (Routers::default(), Arc::default());
        Self { sim, routers, wires, names: names.to_vec() }
    }

    /// A world in which all routers are started alike and are ALIVE to each other.
    fn formed(names: &[&'static str], plan: &Plan) -> Self {
        let mut world = Self::of(names);
        for name in names {
            world.start(name, plan);
        }
        world.until(SECOND * 5, "the cluster has formed", Self::is_whole);
        world
    }

    fn start(&mut self, name: &'static str, plan: &Plan) {
        let join: Vec<IpAddr> = self.names.iter().map(|name| self.sim.lookup(*name)).collect();
        let (routers, wires, plan) =
            (Rc::clone(&self.routers), Arc::clone(&self.wires), plan.clone());
        self.sim.host(name, move || {
            let (routers, wires, plan) = (Rc::clone(&routers), Arc::clone(&wires), plan.clone());
            let config = config(name, plan.cluster, &join, (plan.security)());
            async move {
                let elapsed = turmoil::sim_elapsed().expect("this is a host");
                let clock = Clock::simulated(plan.begin + elapsed);
                let ip = turmoil::lookup(name);
                let address = SocketAddr::new(ip, DEFAULT_PORT);
                let metrics = metrics();
                let net = Arc::new(Simulated { ip, wires });
                let (handle, mut engine, ends) = assemble(
                    config,
                    clock,
                    metrics.clone(),
                    CLIENT_ENDPOINT,
                    address,
                    net,
                    services(clock),
                )?;
                (plan.alter)(&mut engine);
                let port = (Ipv4Addr::UNSPECIFIED, DEFAULT_PORT);
                let listener = turmoil::net::TcpListener::bind(port).await?;
                let events = handle.events();
                let router = Router { handle, metrics, stop: ends.stop, events };
                routers.borrow_mut().insert(name, router);
                Box::pin(engine.run(Some(SimulatedPort(listener)))).await?;
                Ok(())
            }
        });
    }

    /// Lets simulated time pass.
    fn run_for(&mut self, time: Duration) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            self.sim.step().unwrap();
        }
    }

    /// Lets simulated time pass until a condition holds, and returns how long that took.
    #[track_caller]
    fn until(
        &mut self,
        limit: Duration,
        condition: &str,
        is_so: impl Fn(&mut Self) -> bool,
    ) -> Duration {
        let begin = self.sim.elapsed();
        loop {
            if is_so(self) {
                return self.sim.elapsed() - begin;
            }
            let took = self.sim.elapsed() - begin;
            assert!(took < limit, "not within {limit:?}: {condition}\n{}", self.picture());
            self.run_for(Duration::from_millis(10));
        }
    }

    /// The views of all routers, for failure messages.
    fn picture(&self) -> String {
        let routers = self.routers.borrow();
        let lines = routers.iter().map(|(name, router)| {
            let view = router.handle.view();
            let others: Vec<_> =
                view.members.iter().map(|m| format!("{} {}", m.node.name, m.state)).collect();
            format!("{name} {}: {}; {:?}", view.me.state, others.join(", "), router.handle.links())
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn view(&self, name: &str) -> Arc<View> {
        self.routers.borrow()[name].handle.view()
    }

    fn handle(&self, name: &str) -> Handle {
        self.routers.borrow()[name].handle.clone()
    }

    fn metrics(&self, name: &str) -> Metrics {
        self.routers.borrow()[name].metrics.clone()
    }

    fn rejected(&self, name: &str, reason: &str) -> u64 {
        self.metrics(name).rejected.with_label_values(&[reason]).get()
    }

    /// The state of `other` in the view of `name`; `None` if `name` does not run or does not list it.
    fn state_at(&self, name: &str, other: &str) -> Option<MemberState> {
        let view = self.routers.borrow().get(name)?.handle.view();
        view.members.iter().find(|m| m.node.name.as_str() == other).map(|m| m.state)
    }

    /// Whether all routers that were started are ALIVE to each other.
    fn is_whole(&mut self) -> bool {
        let started: Vec<_> = self.routers.borrow().keys().copied().collect();
        started.iter().all(|name| {
            self.view(name).me.state == MemberState::Alive
                && started.iter().all(|other| {
                    other == name || self.state_at(name, other) == Some(MemberState::Alive)
                })
        }) && started.len() == self.names.len()
    }

    /// The state changes that all routers have reported since the last call.
    fn transitions(&self) -> BTreeSet<(String, MemberState)> {
        let mut changes = BTreeSet::new();
        for router in self.routers.borrow_mut().values_mut() {
            while let Ok(event) = router.events.try_recv() {
                if let ClusterEventKind::Member { transition, .. } = &event.kind
                    && let Some(to) = transition.to
                {
                    changes.insert((transition.node.name.to_string(), to));
                }
            }
        }
        changes
    }

    /// Reads or writes a node.
    fn visit<T: Send + 'static>(
        &mut self,
        name: &str,
        visit: impl FnOnce(&mut Node, Now) -> T + Send + 'static,
    ) -> T {
        let (answer, mut answered) = oneshot::channel();
        let visit = Box::new(move |node: &mut Node, _: &Synced, now: Now| {
            let _timed_out = answer.send(visit(node, now)).is_err();
        });
        self.handle(name).commands.try_send(Command::Visit(visit)).unwrap();
        for _ in 0..1000 {
            self.sim.step().unwrap();
            if let Ok(answer) = answered.try_recv() {
                return answer;
            }
        }
        panic!("{name} does not answer");
    }

    fn write(&mut self, name: &str, writes: impl IntoIterator<Item = usize>) {
        let numbers: Vec<usize> = writes.into_iter().collect();
        self.visit(name, move |node, now| {
            for number in numbers {
                node.update(now, put(number)).unwrap();
            }
        });
    }

    /// Runs a future with the handle on a host of its own, and returns the result.
    fn ask<T: 'static, F>(&mut self, name: &str, question: impl FnOnce(Handle) -> F) -> T
    where
        F: Future<Output = T> + 'static,
    {
        let asking = question(self.handle(name));
        let answer = Rc::new(RefCell::new(None));
        let put = Rc::clone(&answer);
        let client = format!("asks-{}", self.sim.elapsed().as_millis());
        self.sim.client(client, async move {
            *put.borrow_mut() = Some(asking.await);
            Ok(())
        });
        for _ in 0..10_000 {
            self.sim.step().unwrap();
            if let Some(answer) = answer.borrow_mut().take() {
                return answer;
            }
        }
        panic!("no answer from {name}");
    }

    fn workers(&mut self, name: &str) -> usize {
        self.visit(name, |node, _| node.state().workers().count())
    }

    /// The fingerprints of all stores.
    fn digests(&mut self, name: &str) -> Vec<u64> {
        self.visit(name, |node, _| StoreId::ALL.map(|s| node.state().fingerprint(s)).to_vec())
    }

    /// Whether all running routers have equal stores.
    fn agrees(&mut self) -> bool {
        let started: Vec<_> = self.routers.borrow().keys().copied().collect();
        let digests: BTreeSet<_> = started.iter().map(|name| self.digests(name)).collect();
        digests.len() == 1
    }

    /// Kills a process: none of its tasks continues.
    fn kill(&mut self, name: &'static str) {
        self.sim.crash(name);
        self.routers.borrow_mut().remove(name);
    }

    fn restart(&mut self, name: &'static str) {
        self.sim.bounce(name);
    }

    /// Asks a process to shut down.
    fn depart(&mut self, name: &'static str) {
        let router = self.routers.borrow_mut().remove(name).unwrap();
        let (done, mut departed) = oneshot::channel();
        router.handle.commands.try_send(Command::Leave).unwrap();
        router.handle.commands.try_send(Command::Depart(done)).unwrap();
        for _ in 0..2000 {
            self.sim.step().unwrap();
            if departed.try_recv().is_ok() {
                break;
            }
        }
        router.stop.send_replace(true);
        self.run_for(Duration::from_millis(50));
        // Only open connections of the host are left: the process ends.
        self.sim.crash(name);
    }
}
