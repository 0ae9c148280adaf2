//! Tests of a router without `--enable-mesh`, and of one that has not joined another yet: a cluster of one.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::client::{self, Connection};
use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::Worker;

/// The TCP ports on which a process listens.
fn listening(pid: u32) -> BTreeSet<u16> {
    let sockets: BTreeSet<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|target| {
            let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let mut ports = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        let table = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // State 0A means that the socket listens.
            if fields[3] == "0A" && sockets.contains(fields[9]) {
                let (_, port) = fields[1].rsplit_once(':').unwrap();
                ports.insert(u16::from_str_radix(port, 16).unwrap());
            }
        }
    }
    ports
}

#[tokio::test]
async fn a_router_alone_has_no_mesh_port_and_no_mesh_metrics() {
    let router = Router::start(&[]).await;
    assert_eq!(listening(router.pid()), BTreeSet::from([router.address().port()]));
    let metrics = router.get("/metrics").await.text();
    assert!(!metrics.contains("smg_mesh_") && !metrics.contains("smg_cluster_requests"));
    assert_eq!(router.metric("smg_cluster_node_up").await, 1.0);
    let status = router.get("/ha/status").await.json();
    assert_eq!(status["nodes"][0]["address"], router.address().to_string());
    assert_eq!(status.get("cluster"), None);
    let list = router.get("/ha/routers").await.json();
    assert_eq!(list["routers"][0]["url"], router.url(""));
}

#[tokio::test]
async fn a_router_alone_answers_writes_with_a_receipt_and_shows_its_observations() {
    let worker = Worker::plain().await;
    let router = Router::start(&[]).await;
    let name = router.get("/health").await.json()["node_name"].as_str().unwrap().to_owned();
    let spec = json!({ "url": worker.url() }).to_string();
    let added = router.post("/workers?wait=all", spec).await;
    assert_eq!(added.status, 202);
    let receipt = json!({ "applied": [name], "pending": [], "not_applied": [], "complete": true });
    assert_eq!(added.json()["receipt"], receipt);
    router.knows_ready(1).await;
    let observed = router.get("/ha/workers").await.json()["workers"][0]["observations"].clone();
    assert_eq!(
        (&observed[&name]["health"], &observed[&name]["breaker"]),
        (&json!("healthy"), &json!("closed"))
    );
    assert_eq!(router.get("/ha/status").await.json()["stores"]["workers"]["entry_count"], 1);
}

#[tokio::test]
async fn a_write_beyond_the_bound_of_the_shared_state_is_no_fault_of_the_client() {
    let router = Router::start(&[]).await;
    let mut connection = Connection::open(router.address()).await.unwrap();
    let mut set = async |at: usize| {
        let path = format!("/ha/policies/m{at}");
        connection.put(&path, r#"{"policy":"random"}"#.to_owned()).await.unwrap()
    };
    for at in 0..2048 {
        assert_eq!(set(at).await.status, 200, "policy {at}");
    }
    let refused = set(2048).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "shared_state_full"));
    let text = refused.text();
    assert!(text.contains("2048 policies") && text.contains("remove some"), "{text}");
    // An entry that is there may change, and a removed one makes room.
    assert_eq!(set(7).await.status, 200);
    assert_eq!(router.send("DELETE", "/ha/policies/m7", &[], b"").await.status, 200);
    assert_eq!(set(2048).await.status, 200);
    // A body out of bounds remains the client's fault.
    let wrong = router.send("PUT", "/ha/policies/m9", &[], br#"{"policy":"none"}"#).await;
    assert_eq!(wrong.status, 400);
}

#[tokio::test]
async fn of_two_simultaneous_registrations_of_a_worker_one_fails_as_duplicate() {
    let worker = Worker::plain().await;
    let router = Router::start(&[]).await;
    for _ in 0..20 {
        let spec = json!({ "url": worker.url() }).to_string();
        let (one, other) =
            tokio::join!(router.post("/workers", &spec), router.post("/workers", &spec));
        let statuses = BTreeSet::from([one.status, other.status]);
        assert_eq!(statuses, BTreeSet::from([202, 409]), "{} {}", one.text(), other.text());
        let path = format!("/workers/{}", json!(first_id(&router).await).as_str().unwrap());
        assert_eq!(router.send("DELETE", &path, &[], b"").await.status, 202);
        eventually("the worker is gone", || async {
            let answer = router.get(&path).await;
            if answer.status == 404 { Ok(()) } else { Err(answer.text()) }
        })
        .await;
    }
}

async fn first_id(router: &Router) -> String {
    let all = router.get("/workers").await.json();
    all["workers"][0]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_worker_that_is_added_again_while_it_drains_stays() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let worker = Worker::start(move |mut talk| {
        let opened = Arc::clone(&opened);
        async move {
            talk.begin_stream().await;
            talk.chunk("data: 1\n\n").await.unwrap();
            opened.acquire().await.unwrap().forget();
            talk.end_stream().await;
            talk
        }
    })
    .await;
    let router = Router::before(&[worker.url()], &[]).await;
    let body = br#"{"model":"m","stream":true}"#;
    let mut stream = client::begin(router.address(), "POST", "/generate", &[], body).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "data: 1\n\n");
    let path = format!("/workers/{}", first_id(&router).await);
    assert_eq!(router.send("DELETE", &path, &[], b"").await.status, 202);
    assert_eq!(router.get(&path).await.json()["state"], "draining");
    // A request without effect is refused.
    let patch = router.send("PATCH", &path, &[], br#"{"weight":2}"#).await;
    assert_eq!((patch.status, patch.code().as_str()), (404, "worker_not_found"));
    let spec = json!({ "url": worker.url() }).to_string();
    assert_eq!(router.post("/workers", spec).await.status, 202);
    assert_eq!(router.get(&path).await.json()["state"], "ready");
    gate.add_permits(1);
    stream.rest().await.unwrap();
    assert_eq!(router.get(&path).await.json()["state"], "ready", "it is there to stay");
}

/// A router that has not joined another yet has not published the workers of its configuration. They are its own all
/// the same, and the API can change them.
#[tokio::test]
async fn a_write_is_refused_while_the_router_lacks_the_state_of_the_others() {
    let worker = Worker::plain().await;
    let arguments = [
        "--enable-mesh",
        "--mesh-server-name=node1",
        "--mesh-host=127.0.0.1",
        "--mesh-port=0",
        "--mesh-peer-urls=127.0.0.1:1",
        "--mesh-join-timeout=300s",
    ];
    let router = Router::before(&[worker.url()], &arguments).await;
    let spec = json!({ "url": "http://127.0.0.1:9" }).to_string();
    let refused = router.post("/workers", spec).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(refused.json()["error"]["code"], "state_incomplete");
    assert_eq!(refused.header("retry-after"), Some("1"));
    let listed = router.get("/workers").await.json()["workers"].as_array().unwrap().len();
    assert_eq!(listed, 1, "nothing was added");
}

#[tokio::test]
async fn a_change_of_a_configured_worker_waits_until_the_router_has_stopped_waiting_for_others() {
    let workers = [Worker::plain().await, Worker::plain().await];
    let urls: Vec<String> = workers.iter().map(Worker::url).collect();
    let arguments = [
        "--enable-mesh",
        "--mesh-server-name=node1",
        "--mesh-host=127.0.0.1",
        "--mesh-port=0",
        "--mesh-peer-urls=127.0.0.1:1",
        "--mesh-join-timeout=3s",
    ];
    let router = Router::before(&urls, &arguments).await;
    assert_eq!(router.get("/readiness").await.json()["reason"], "joining");
    let all = router.get("/workers").await.json();
    let id_of = |url: &str| {
        let all = all["workers"].as_array().unwrap();
        let worker =
            all.iter().find(|worker: &&Value| worker["spec"]["url"].as_str().unwrap() == url);
        worker.unwrap()["id"].as_str().unwrap().to_owned()
    };
    let [removed, drained] = [0, 1].map(|at| format!("/workers/{}", id_of(&urls[at])));
    let drain = router.post(&format!("{drained}/drain"), "{}").await;
    assert_eq!(
        (drain.status, &drain.json()["state"]),
        (200, &json!("draining")),
        "{}",
        drain.text()
    );
    assert_eq!(router.send("DELETE", &removed, &[], b"").await.status, 202);
    assert_ne!(router.get("/readiness").await.json()["reason"], "joining", "it has waited");
    eventually("it has stopped waiting for others and has published its workers", || async {
        let log = router.log();
        if log.contains("wrote the configured workers") { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(router.get(&removed).await.status, 404, "it stays removed");
    assert_eq!(router.get(&drained).await.json()["state"], "draining");
}
