//! Tests over real TCP, with each mesh on a thread of its own. They check that the machine's network is used correctly.

use smg_runtime::tasks::TasksOwner;

use super::*;
use crate::net::{Duplex, IoFuture, Listener};

#[tokio::test]
async fn two_routers_join_over_tcp_and_one_departs() {
    let owner = TasksOwner::new();
    let bind = |name: &str, join: Option<SocketAddr>| {
        let mut config = config(name, "smg", &[], SecurityConfig::default());
        let network = config.network.as_mut().unwrap();
        network.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        network.join =
            join.map(|address| address.to_string().parse().unwrap()).into_iter().collect();
        let clock = Clock::start();
        Mesh::bind(config, clock, metrics(), CLIENT_ENDPOINT, services(clock)).unwrap()
    };
    let a = bind("a", None);
    let b = bind("b", Some(a.handle().view().me.address));
    let [a, b] = [a, b].map(|mesh| mesh.start(&owner.handle()).unwrap());
    let mut views = a.handle.views();
    let sees_b = |view: &Arc<View>| {
        view.members.iter().any(|m| m.node.name.as_str() == "b" && m.state == MemberState::Alive)
    };
    let limit = SECOND * 10;
    tokio::time::timeout(limit, views.wait_for(sees_b)).await.unwrap().unwrap();
    b.handle.visit(|node, _, now| node.update(now, put(0)).unwrap()).await.unwrap();
    let arrived = async {
        while a.handle.visit(|node, _, _| node.state().workers().count()).await != Ok(1) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(limit, arrived).await.unwrap();
    b.depart().await;
    let is_alone = |view: &Arc<View>| view.members.is_empty();
    tokio::time::timeout(limit, views.wait_for(is_alone)).await.unwrap().unwrap();
    drop(views);
    a.depart().await;
}

/// A node without a network, with its tasks.
fn lone_node() -> (TasksOwner, Running, Metrics) {
    let owner = TasksOwner::new();
    let config = Config { network: None, ..config("lone", "smg", &[], SecurityConfig::default()) };
    let metrics = metrics();
    let clients = ClientEndpoint { listen: SocketAddr::from(([127, 0, 0, 1], 8000)), secure: true };
    let mesh =
        Mesh::bind(config, Clock::start(), metrics.clone(), clients, services(Clock::start()))
            .unwrap();
    let running = mesh.start(&owner.handle()).unwrap();
    (owner, running, metrics)
}

#[tokio::test]
async fn a_node_without_a_network_is_alive_and_can_be_written_to() {
    let (_owner, lone, metrics) = lone_node();
    let view = lone.handle.view();
    assert_eq!((view.me.state, view.members.len()), (MemberState::Alive, 0));
    assert_eq!(view.me.address, SocketAddr::from(([127, 0, 0, 1], 8000)), "that of clients");
    lone.handle.visit(|node, _, now| node.update(now, put(0)).unwrap()).await.unwrap();
    let status = lone.handle.status().await.unwrap();
    assert_eq!((status.ha_mode, status.cluster), ("standalone", None));
    assert_eq!(status.stores["workers"].entry_count, 1);
    let (_, routers) = lone.handle.routers();
    assert_eq!(routers[0].url.as_deref(), Some("https://127.0.0.1:8000"));
    let health = lone.handle.health().await.unwrap();
    assert_eq!((health.status, health.node.status), ("ok", "ALIVE"));
    assert_eq!(metrics.node_up.get(), 1);
    let clock = Clock::start();
    lone.depart().await;
    assert!(clock.mono() < SECOND, "{:?}", clock.mono());
    assert_eq!(metrics.node_up.get(), 1, "an end that was asked for is no failure");
}

/// A port on which no connection arrives.
struct NoConnections;

impl Listener for NoConnections {
    fn accept(&mut self) -> IoFuture<'_, (Box<dyn Duplex>, SocketAddr)> {
        Box::pin(std::future::pending())
    }
}

/// Under simulated time, an hour takes a moment.
#[tokio::test(start_paused = true)]
async fn a_lone_idle_node_does_not_wake_up() {
    for is_networked in [false, true] {
        let mut config = config("lone", "smg", &[], SecurityConfig::default());
        config.network = config.network.filter(|_| is_networked);
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let (metrics, net) = (metrics(), Arc::new(net::Tcp));
        let clock = Clock::simulated(BEGIN);
        let assembled = assemble(
            config,
            clock,
            metrics.clone(),
            CLIENT_ENDPOINT,
            address,
            net,
            services(clock),
        );
        let (handle, engine, _ends) = assembled.unwrap();
        let hour = async {
            tokio::time::sleep(SECOND * 60).await;
            let begun = metrics.turn.get_sample_count();
            tokio::time::sleep(SECOND * 3600).await;
            assert_eq!(metrics.turn.get_sample_count(), begun, "networked: {is_networked}");
            handle.visit(|node, _, now| node.update(now, put(0)).unwrap()).await.unwrap();
            tokio::time::sleep(SECOND * 3600).await;
            // The write itself, and the full check a moment later.
            let turns = metrics.turn.get_sample_count() - begun;
            assert!((1..=3).contains(&turns), "{turns} turns, networked: {is_networked}");
            let rows = metrics.store_entries.with_label_values(&["workers"]).get();
            assert_eq!(rows, 1, "metrics show it");
        };
        tokio::select! {
            ended = engine.run(Some(NoConnections)) => panic!("the engine has ended: {ended:?}"),
            () = hour => {}
        }
    }
}

#[tokio::test]
async fn a_node_that_fails_is_reported_and_stops_nothing_else() {
    let (mut owner, lone, metrics) = lone_node();
    let visit = lone.handle.visit(|_, _, _| panic!("on purpose")).await;
    assert_eq!(visit, Err::<(), _>(VisitError::Ended));
    tokio::time::timeout(SECOND * 10, lone.handle.failed())
        .await
        .expect("the failure must be reported");
    assert_eq!(metrics.node_up.get(), 0);
    let health = lone.handle.health().await.unwrap();
    assert_eq!((health.status, health.node.status), ("failed", "DOWN"));
    assert!(health.reasons[0].contains("restart"), "{:?}", health.reasons);
    assert_eq!(lone.handle.status().await, Err(VisitError::Ended));
    let ended = tokio::time::timeout(Duration::from_millis(50), owner.failed()).await;
    assert!(ended.is_err(), "the process ends because of {ended:?}");
    lone.depart().await;
}
