//! Tests of loops: a router that is among its own workers, by its address or through a relay.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::mesh;
use crate::support::eventually;
use crate::support::router::{Router, command};
use crate::support::worker::Worker;

const CHAT: &str = r#"{"model":"m","messages":[]}"#;

/// Forwards bytes to another address, as a load balancer does.
struct Relay {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            while let Ok((mut inward, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                running.spawn(async move {
                    let mut outward = TcpStream::connect(target).await.unwrap();
                    let _ended = tokio::io::copy_bidirectional(&mut inward, &mut outward).await;
                });
            }
        });
        Self { address, connections, task }
    }

    /// The spec of a worker that leads there and is never probed.
    fn unprobed(&self) -> String {
        json!({ "url": format!("http://{}", self.address), "models": ["m"], "health": { "disabled": true } })
            .to_string()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn a_router_refuses_its_own_address_as_a_worker() {
    let router = Router::start(&[]).await;
    let port = router.address().port();
    for host in ["127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"] {
        let url = format!("http://{host}:{port}");
        for answer in [
            router.post("/workers", json!({ "url": url }).to_string()).await,
            router.post(&format!("/add_worker?url={url}"), "{}").await,
        ] {
            assert_eq!(answer.status, 400, "{host}: {}", answer.text());
            assert!(answer.text().contains("is this router itself"), "{}", answer.text());
        }
    }
    assert_eq!(router.get("/workers").await.json()["total"], 0);
}

#[tokio::test]
async fn a_router_does_not_start_with_its_own_address_among_its_workers() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port().to_string()
    };
    let url = format!("http://127.0.0.1:{port}");
    let ended = command()
        .args(["--port", &port, "--prometheus-port", "0", "--worker-urls", &url])
        .stdout(Stdio::piped())
        .output();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), ended).await;
    let ended = ended.expect("the router must not start").unwrap();
    let log = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && log.contains("is this router itself"), "{log}");
}

#[tokio::test]
async fn a_request_that_returns_is_refused_and_goes_to_another_worker() {
    let router = Router::start(&["--policy", "round_robin"]).await;
    let relay = Relay::to(router.address()).await;
    assert_eq!(router.post("/workers", relay.unprobed()).await.status, 202);
    router.knows_ready(1).await;
    let answer = router.post("/v1/chat/completions", CHAT).await;
    assert_eq!((answer.status, answer.code().as_str()), (508, "loop_detected"));
    let worker = Worker::plain().await;
    let spec = json!({ "url": worker.url() }).to_string();
    assert_eq!(router.post("/workers", spec).await.status, 202);
    router.knows_ready(2).await;
    for _ in 0..20 {
        assert_eq!(router.post("/v1/chat/completions", CHAT).await.status, 200);
    }
    // A request to all workers returns once, and is not forwarded again.
    router.send("POST", "/flush_cache", &[("content-type", "application/json")], b"{}").await;
    let connections = relay.connections.load(Ordering::Relaxed);
    assert!(connections < 40, "{connections} connections for 22 requests");
}

#[tokio::test]
async fn a_worker_that_leads_back_is_never_ready_and_shows_the_reason() {
    let router = Router::start(&["--health-check-interval-secs", "0.1"]).await;
    let relay = Relay::to(router.address()).await;
    let spec = json!({ "url": format!("http://{}", relay.address) }).to_string();
    assert_eq!(router.post("/workers", spec).await.status, 202);
    eventually("the probe finds the loop", || async {
        let worker = router.get("/workers").await.json()["workers"][0].clone();
        let advice = worker["last_error"]["advice"].as_str().unwrap_or_default().to_owned();
        if worker["last_error"]["status"] == 508 && advice.contains("leads back to this router") {
            Ok(())
        } else {
            Err(worker)
        }
    })
    .await;
    assert_eq!(router.get("/readiness").await.json()["healthy_workers"], 0);
}

#[tokio::test]
async fn a_router_of_the_same_cluster_is_no_worker_and_one_of_another_is() {
    let one = mesh::router("one", &[], &[]).await;
    let two = mesh::router("two", &[mesh::mesh_address(&one)], &[]).await;
    for router in [&one, &two] {
        mesh::sees(router, &[("one", "ALIVE"), ("two", "ALIVE")]).await;
    }
    let spec = |router: &Router| {
        let url = format!("http://{}", router.address());
        json!({ "url": url, "models": ["m"], "health": { "disabled": true } }).to_string()
    };
    assert_eq!(one.post("/workers", spec(&two)).await.status, 202);
    one.knows_ready(1).await;
    let answer = one.post("/v1/chat/completions", CHAT).await;
    assert_eq!((answer.status, answer.code().as_str()), (508, "loop_detected"));
    // A router in front of other routers is not a loop.
    let worker = Worker::plain().await;
    let inner = Router::before(&[worker.url()], &[]).await;
    let outer = Router::before(&[format!("http://{}", inner.address())], &[]).await;
    let headers = [("content-type", "application/json"), ("via", "1.0 cdn.test (x, y)")];
    let path = "/v1/chat/completions";
    let answer = outer.send("POST", path, &headers, CHAT.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = worker.seen().pop().unwrap();
    let via = seen.all("via");
    assert_eq!((via.len(), via[0]), (3, "1.0 cdn.test (x, y)"), "{via:?}");
    let routers: Vec<_> = via[1..].iter().filter_map(|via| via.strip_prefix("1.1 smg-")).collect();
    assert!(routers.len() == 2 && routers[0] != routers[1], "{via:?}");
}
