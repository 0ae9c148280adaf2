//! Tests for users of other routers: their command lines start this router, and their tools manage its workers.

use serde_json::json;

use crate::support::eventually;
use crate::support::router::{Router, command};
use crate::support::worker::Worker;

const BODY: &str = r#"{"model":"m"}"#;

fn encoded(url: &str) -> String {
    url.replace(':', "%3A").replace('/', "%2F")
}

#[tokio::test]
async fn a_launch_command_of_another_router_starts_this_one() {
    let worker = Worker::plain().await;
    let url = worker.url();
    let flags = [
        "--policy",
        "consistent_hash",
        "--enable-igw",
        "--backend",
        "vllm",
        "--intra-node-data-parallel-size",
        "1",
        "--eviction-interval-secs",
        "120",
        "--retry-jitter-factor",
        "0.1",
        "--worker-startup-timeout-secs",
        "600",
        "--request-id-headers",
        "x-trace-id",
        "x-own",
        "--log-level",
        "warning",
        "--worker-urls",
        &url,
    ];
    // The support code finds the address of the router in the line `serving`, which has level INFO.
    let flags: Vec<&str> =
        flags.into_iter().filter(|word| !["--log-level", "warning"].contains(word)).collect();
    let router = Router::start(&flags).await;
    router.knows_ready(1).await;
    let answer = router
        .send("POST", "/generate", &[("x-own", "mine"), ("x-request-id", "no")], BODY.as_bytes())
        .await;
    assert_eq!((answer.status, answer.header("x-request-id")), (200, Some("mine")));
    assert_eq!(worker.seen().pop().unwrap().all("x-request-id"), ["mine"]);
    let log = router.log();
    for flag in [
        "--enable-igw",
        "--backend",
        "--intra-node-data-parallel-size",
        "--eviction-interval-secs",
        "--worker-startup-timeout-secs",
    ] {
        let lines = log.lines().filter(|line| line.contains(&format!("flag {flag} of "))).count();
        assert_eq!(lines, 1, "{flag}: {log}");
    }
}

#[tokio::test]
async fn a_launch_command_that_cannot_start_reports_all_reasons() {
    let started = command()
        .args(["launch", "--pd-disaggregation", "--prefill", "http://p1:30001", "9001"])
        .args(["--prefill", "http://p2:30002", "--decode", "http://d:30011", "--prefill-policy"])
        .args(["cache_aware", "--mcp-config-path", "/mcp.yaml", "--port", "0"])
        .output()
        .await
        .unwrap();
    assert_eq!(started.status.code(), Some(2));
    let errors = String::from_utf8(started.stderr).unwrap();
    let flags =
        ["--pd-disaggregation", "--prefill", "--decode", "--prefill-policy", "--mcp-config-path"];
    assert_eq!(errors.lines().count(), flags.len(), "{errors}");
    for flag in flags {
        assert_eq!(errors.matches(&format!("error: flag {flag} of ")).count(), 1, "{errors}");
    }
}

#[tokio::test]
async fn workers_are_added_and_removed_by_their_urls() {
    let worker = Worker::plain().await;
    let url = worker.url();
    let router = Router::start(&[]).await;
    // In the form that `requests.post(url)` sends: no body, and no content type.
    assert_eq!(router.get("/list_workers").await.json(), json!({ "urls": [] }));
    let added =
        router.send("POST", &format!("/add_worker?url={url}&api_key=its-own"), &[], b"").await;
    assert_eq!((added.status, added.text()), (200, format!("Successfully added worker: {url}")));
    // The worker is ready: a request right after the answer is served.
    assert_eq!(router.post("/generate", BODY).await.status, 200);
    assert_eq!(worker.seen().pop().unwrap().all("authorization"), ["Bearer its-own"]);
    assert_eq!(router.get("/list_workers").await.json(), json!({ "urls": [url] }));
    let again = router.post(&format!("/add_worker?url={}", encoded(&url)), "").await;
    assert_eq!((again.status, again.code().as_str()), (409, "worker_already_exists"));
    let removed = router.send("POST", &format!("/remove_worker?url={url}"), &[], b"").await;
    assert_eq!(
        (removed.status, removed.text()),
        (200, format!("Successfully removed worker: {url}"))
    );
    assert_eq!(router.get("/list_workers").await.json(), json!({ "urls": [] }));
    let twice = router.post(&format!("/remove_worker?url={url}"), "").await;
    assert_eq!((twice.status, twice.text()), (200, format!("Worker {url} is not registered.")));
    for path in [
        "/add_worker",
        "/remove_worker",
        "/add_worker?url=w:8000",
        "/remove_worker?url=",
        "/add_worker?url=grpc://w",
    ] {
        let answer = router.post(path, "").await;
        assert_eq!(
            (answer.status, answer.json()["error"]["param"].as_str()),
            (400, Some("url")),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_worker_that_does_not_answer_yet_is_registered_nevertheless() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let router = Router::start(&[]).await;
    let added = router.post(&format!("/add_worker?url={url}"), "").await;
    assert_eq!(added.status, 202, "{}", added.text());
    assert_eq!(router.get("/list_workers").await.json(), json!({ "urls": [url] }));
    assert_eq!(router.post(&format!("/remove_worker?url={url}"), "").await.status, 200);
}

#[tokio::test]
async fn a_url_may_replace_an_id_in_every_path() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let by_url = format!("/workers/{}", encoded(&worker.url()));
    let shown = router.get(&by_url).await.json();
    let id = shown["id"].as_str().unwrap().to_owned();
    assert_eq!(router.get(&format!("/workers/{id}")).await.json()["url"], shown["url"]);
    let drained = router.post(&format!("{by_url}/drain"), "").await;
    assert_eq!(drained.json()["state"], "draining");
    router.send("DELETE", &format!("{by_url}/drain"), &[], b"").await;
    let patched = router.send("PATCH", &by_url, &[], br#"{"weight":3}"#).await;
    assert_eq!(patched.json()["spec"]["weight"], 3);
    assert_eq!(router.get(&format!("/ha{by_url}")).await.status, 200);
    let other = router.get("/workers/http%3A%2F%2Fw%3A1").await;
    assert_eq!((other.status, other.code().as_str()), (404, "worker_not_found"));
    let removed = router.send("DELETE", &by_url, &[], b"").await;
    assert_eq!((removed.status, removed.json()["worker_id"].as_str()), (202, Some(id.as_str())));
    eventually("the worker is gone", || async {
        let answer = router.get(&by_url).await;
        if answer.status == 404 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

#[tokio::test]
async fn their_tools_read_our_workers() {
    let worker = Worker::plain().await;
    let router = Router::start(&[]).await;
    let spec = json!({
        "url": worker.url(), "model_id": "m", "worker_type": "regular", "runtime": "sglang",
        "connection_mode": "Http", "priority": 10, "cost": 1.0, "labels": { "tier": "gold" },
        "health_check_interval_secs": 3, "disable_health_check": false, "max_connection_attempts": 20
    });
    let added = router.post("/workers", spec.to_string()).await;
    assert_eq!(added.status, 202, "{}", added.text());
    let added = added.json();
    assert_eq!((&added["status"], &added["worker_id"]), (&json!("accepted"), &added["id"]));
    assert_eq!(added["url"], json!(worker.url()));
    router.knows_ready(1).await;
    let list = router.get("/workers").await.json();
    assert_eq!(list["stats"], json!({ "prefill_count": 0, "decode_count": 0, "regular_count": 1 }));
    let shown = &list["workers"][0];
    for (name, value) in [
        ("id", added["id"].clone()),
        ("url", json!(worker.url())),
        ("model_id", json!("m")),
        ("worker_type", json!("regular")),
        ("connection_mode", json!("http")),
        ("priority", json!(10)),
        ("cost", json!(1.0)),
        ("labels", json!({ "tier": "gold" })),
        ("is_healthy", json!(true)),
        ("status", json!("ready")),
        ("load", json!(0)),
        ("disable_health_check", json!(false)),
    ] {
        assert_eq!(shown[name], value, "{name} in {shown}");
    }
    assert_eq!(shown["spec"]["health"]["interval_secs"], 3.0);
    let loads = router.get("/get_loads").await.json();
    assert_eq!(loads["workers"], json!([{ "worker": worker.url(), "load": 0 }]));
    for (field, value) in [
        ("worker_type", json!("prefill")),
        ("bootstrap_port", json!(8998)),
        ("connection_mode", json!("grpc")),
        ("tokenizer_path", json!("/t")),
        ("cost", json!(2.5)),
        ("dp_size", json!(8)),
    ] {
        let refused =
            router.post("/workers", json!({ "url": "http://w:1", field: value }).to_string()).await;
        assert_eq!(
            (refused.status, refused.json()["error"]["param"].as_str()),
            (400, Some(field)),
            "{}",
            refused.text()
        );
        let patch = json!({ field: value }).to_string();
        let refused = router
            .send(
                "PATCH",
                &format!("/workers/{}", added["id"].as_str().unwrap()),
                &[],
                patch.as_bytes(),
            )
            .await;
        assert_eq!(
            (refused.status, refused.json()["error"]["param"].as_str()),
            (400, Some(field)),
            "{}",
            refused.text()
        );
    }
}

#[tokio::test]
async fn an_alias_reaches_every_worker_that_serves_the_model() {
    let worker = Worker::plain().await;
    let router = Router::start(&["--model-alias", "gpt-4=m", "other=absent"]).await;
    // This includes a worker that is added later.
    router.post("/workers", json!({ "url": worker.url() }).to_string()).await;
    router.knows_ready(1).await;
    assert_eq!(router.post("/generate", r#"{"model":"gpt-4","text":"x"}"#).await.status, 200);
    let body = worker.seen().pop().unwrap().body;
    assert_eq!(String::from_utf8(body).unwrap(), r#"{"model":"m","text":"x"}"#);
    assert_eq!(router.post("/generate", r#"{"model":"other"}"#).await.status, 404);
    let models = router.get("/v1/models").await.json();
    assert_eq!(models["data"].as_array().unwrap().len(), 1, "{models}");
}

#[tokio::test]
async fn an_idle_connection_is_kept_as_long_as_asked() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let router = Router::start(&["--idle-connection-timeout-secs", "0.3"]).await;
    let mut client = tokio::net::TcpStream::connect(router.address()).await.unwrap();
    client.write_all(b"GET /liveness HTTP/1.1\r\nhost: r\r\n\r\n").await.unwrap();
    let mut seen = Vec::new();
    let closed =
        tokio::time::timeout(std::time::Duration::from_secs(10), client.read_to_end(&mut seen))
            .await;
    closed.expect("the idle connection is closed long before the default").unwrap();
    assert!(seen.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&seen));
}
