//! Tests of a router whose cluster node fails while it runs. The tests make it fail from inside the process; everything
//! else goes through the public port.

use std::time::Duration;

use ::http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use smg_mesh::VisitError;
use smg_mock::server::Bound;
use tokio::net::TcpStream;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(20);

/// Starts a worker that serves the model `m`, and returns its URL.
async fn worker() -> String {
    let config = mock::Config { models: vec!["m".to_owned()], ..mock::Config::default() };
    let bound = Bound::bind(config).await.unwrap();
    let url = format!("http://{}", bound.address());
    #[expect(clippy::disallowed_methods, reason = "it runs as long as the test")]
    tokio::spawn(bound.serve(std::future::pending()));
    url
}

fn router(words: &[&str]) -> Running {
    let usual = ["--host=127.0.0.1", "--port=0", "--prometheus-port=0", "--drain-settle-secs=0"];
    let words = usual.iter().chain(words).map(OsString::from).collect();
    let process = Process { arguments: words, variables: BTreeMap::new(), ..Process::current() };
    let mut mistakes = Vec::new();
    let Start::Router(loaded) = config::start(&process, &mut std::io::sink(), &mut mistakes) else {
        panic!("{}", String::from_utf8_lossy(&mistakes))
    };
    App::build(loaded.config).unwrap().start().unwrap()
}

/// Sends a request over a connection of its own, and returns status and body.
async fn ask(router: &Running, method: &str, path: &str, body: &str) -> (StatusCode, String) {
    let io = TokioIo::new(TcpStream::connect(router.address()).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::<bytes::Bytes>::from(body.to_owned()))
        .unwrap();
    let answer = async {
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    tokio::select! {
        answer = answer => answer,
        _ended = connection => panic!("the router closed the connection"),
    }
}

async fn json_of(router: &Running, path: &str) -> Value {
    serde_json::from_str(&ask(router, "GET", path, "").await.1).unwrap()
}

async fn until(condition: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(TIMEOUT, waiting).await.is_ok(), "not in time: {condition}");
}

async fn has_ready(router: &Running, workers: usize) {
    until("workers are ready", async || router.fleet().ready_and_total().0 == workers).await;
}

/// Makes the thread of the router's cluster node panic, as a defect would.
async fn fail_node(router: &Running) {
    let visit = router.surface.mesh.visit(|_, _, _| panic!("on purpose")).await;
    assert_eq!(visit, Err::<(), _>(VisitError::Ended));
}

const CHAT: &str = r#"{"model":"m","messages":[]}"#;

async fn assert_refuses_writes_and_routes(router: &Running, id: &str) {
    for (method, path, body) in [
        ("POST", "/workers".to_owned(), r#"{"url":"http://127.0.0.1:1"}"#),
        ("DELETE", format!("/workers/{id}"), ""),
        ("POST", format!("/workers/{id}/drain"), ""),
        ("PUT", "/ha/policies/m".to_owned(), r#"{"policy":"random"}"#),
    ] {
        let (status, text) = ask(router, method, &path, body).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{method} {path}: {text}");
        assert!(text.contains("node_failed") && text.contains("restart"), "{text}");
    }
    let (status, text) = ask(router, "POST", "/v1/chat/completions", CHAT).await;
    assert_eq!(status, StatusCode::OK, "{text}");
}

#[tokio::test]
async fn a_router_whose_node_has_failed_routes_on_and_reports_the_failure() {
    let url = worker().await;
    for words in [
        &["--worker-urls", &url][..],
        &["--worker-urls", &url, "--enable-mesh", "--mesh-host=127.0.0.1", "--mesh-port=0"],
    ] {
        let router = router(words);
        has_ready(&router, 1).await;
        let id = router.fleet().load().workers()[0].id.to_string();
        fail_node(&router).await;
        let health = json_of(&router, "/ha/health").await;
        assert_eq!(
            (&health["status"], &health["node"]["status"]),
            (&json!("failed"), &json!("DOWN"))
        );
        assert!(health["reasons"][0].as_str().unwrap().contains("restart"), "{health}");
        until("the metric shows the failure", async || {
            ask(&router, "GET", "/metrics", "").await.1.contains("smg_cluster_node_up 0")
        })
        .await;
        assert_refuses_writes_and_routes(&router, &id).await;
        let (status, text) = ask(&router, "GET", "/readiness", "").await;
        assert_eq!(status, StatusCode::OK, "{text}");
        let workers = json_of(&router, "/ha/workers").await;
        assert_eq!(
            workers["workers"][0]["observations"].as_object().unwrap().len(),
            1,
            "{workers}"
        );
        assert_eq!(ask(&router, "GET", "/ha/status", "").await.0, StatusCode::SERVICE_UNAVAILABLE);
        // The shutdown is clean nevertheless.
        let (stop, stops) = watch::channel(1);
        let ending = tokio::time::timeout(TIMEOUT, router.run(stops)).await.unwrap();
        assert_eq!(ending, Ending::Clean);
        drop(stop);
    }
}

/// A router does not probe a worker that other routers probe. It must probe when their reports stop.
#[tokio::test]
async fn a_router_whose_node_has_failed_probes_its_workers_itself() {
    let url = worker().await;
    let mesh = ["--enable-mesh", "--mesh-host=127.0.0.1", "--mesh-port=0", "--health-probers=1"];
    let one = router(&[&mesh[..], &["--mesh-server-name=one", "--worker-urls", &url]].concat());
    let join = format!("--mesh-peer-urls={}", one.mesh_address().unwrap());
    let other = router(&[&mesh[..], &["--mesh-server-name=other", &join]].concat());
    for router in [&one, &other] {
        has_ready(router, 1).await;
    }
    let is_probed_here = |router: &Running| router.fleet().load().workers()[0].is_probed_here();
    until("exactly one router probes", async || is_probed_here(&one) != is_probed_here(&other))
        .await;
    let spared = if is_probed_here(&one) { &other } else { &one };
    fail_node(spared).await;
    until("the other router probes, too", async || is_probed_here(spared)).await;
}
