//! The same over real TCP, each mesh on a thread of its own: that the machine's network is put together right.

use smg_runtime::tasks::TasksOwner;

use super::*;

#[tokio::test]
async fn two_meet_over_tcp_and_one_departs() {
    let owner = TasksOwner::new();
    let bind = |name: &str, join: Option<SocketAddr>| {
        let mut config = config(name, "smg", &[], SecurityConfig::default());
        config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config.join =
            join.map(|address| address.to_string().parse().unwrap()).into_iter().collect();
        let clock = Clock::start();
        Mesh::bind(config, clock, metrics(), CLIENTS, services(clock)).unwrap()
    };
    let a = bind("a", None);
    let b = bind("b", Some(a.address()));
    let [a, b] = [a, b].map(|mesh| mesh.start(&owner.handle()).unwrap());
    let mut views = a.handle.views();
    let sees_b = |view: &Arc<View>| {
        view.members.iter().any(|m| m.node.name.as_str() == "b" && m.state == MemberState::Alive)
    };
    let limit = SECOND * 10;
    tokio::time::timeout(limit, views.wait_for(sees_b)).await.unwrap().unwrap();
    b.handle.visit(|node, _, now| node.update(now, put(0)).unwrap()).await.unwrap();
    let arrived = async {
        while a.handle.visit(|node, _, _| node.state().workers().count()).await != Some(1) {
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
