//! Tests of what the router shows: metrics, errors, request ids, probes, logs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use expect_test::expect_file;

use crate::support::mock::Mock;
use crate::support::router::Router;
use crate::support::worker::Worker;
use crate::support::{client, eventually, within};

const BODY: &str = r#"{"model":"m"}"#;

/// The address on which a part of the router listens, from its log.
fn address(router: &Router, message: &str) -> SocketAddr {
    let log = router.log();
    let mut events = log.lines().filter_map(|line| serde_json::from_str(line).ok());
    let event: serde_json::Value = events
        .find(|event: &serde_json::Value| event["message"] == message)
        .unwrap_or_else(|| panic!("{message:?} is not in\n{log}"));
    event["address"].as_str().unwrap().parse().unwrap()
}

/// The families by name with their help and type. Panics if the text is not a valid exposition.
fn families(text: &str) -> BTreeMap<String, (String, String)> {
    let mut found: BTreeMap<String, (String, String)> = BTreeMap::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a help line has a text");
            let before = found.insert(name.to_owned(), (help.to_owned(), String::new()));
            assert!(before.is_none(), "{name} comes twice");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            kind.clone_into(&mut found.get_mut(name).expect("the help line comes first").1);
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            value.parse::<f64>().unwrap_or_else(|e| panic!("{e}: {line}"));
            let name = series.split('{').next().unwrap();
            let of = |family: &String| {
                name == family
                    || ["_bucket", "_sum", "_count"]
                        .iter()
                        .any(|end| name.strip_suffix(end) == Some(family))
            };
            assert!(found.keys().any(of), "{line} is of no family");
        }
    }
    found
}

/// The groups of the page of metrics, by the beginning of the names. The first that fits applies.
const GROUPS: &[(&str, &[&str])] = &[
    ("Limits", &["smg_limit_"]),
    ("Mesh", &["smg_mesh_", "smg_cluster_"]),
    ("Data folder", &["smg_persist_"]),
    ("Requests of clients", &["smg_http_", "smg_router_", "smg_tokens_"]),
    ("Admission", &["smg_admission_"]),
    ("Workers", &["smg_worker"]),
    ("Routing and caches", &["smg_policy_", "smg_prefix_", "smg_affinity_"]),
    ("The router and its process", &[""]),
];

/// The page of metrics, from the golden list of their names, kinds and helps.
fn metrics_page(list: &str) -> String {
    let mut page = "\
# Metrics

Every metric of `/metrics` (port 29000, `--prometheus-port`, and the clients' port). A test compares this page with a running
router; it is written by `UPDATE_EXPECT=1 cargo test --test it observe`. Names of other routers' metrics:
[migrating.md](migrating.md#metrics). Alerts: [deploy/prometheus/smg-rules.yml](../deploy/prometheus/smg-rules.yml).

A family appears when it has a series, so some appear only after the first event of their kind. Of a counter use `rate()`, of a
histogram the families `_bucket`, `_sum` and `_count`.
"
    .to_owned();
    let lines: Vec<&str> = list.lines().collect();
    let families: Vec<(&str, &str, &str)> = lines
        .chunks(2)
        .map(|pair| {
            let (name, kind) = pair[0].split_once(' ').unwrap();
            (name, kind, pair[1].trim())
        })
        .collect();
    let group_of = |name: &str| {
        GROUPS.iter().position(|(_, starts)| starts.iter().any(|start| name.starts_with(start)))
    };
    for (nth, (group, _)) in GROUPS.iter().enumerate() {
        write!(page, "\n## {group}\n\n| metric | kind | meaning |\n|---|---|---|\n").unwrap();
        for (name, kind, help) in families.iter().filter(|(name, ..)| group_of(name) == Some(nth)) {
            writeln!(page, "| `{name}` | {kind} | {} |", help.replace('|', "\\|")).unwrap();
        }
    }
    page
}

#[tokio::test]
async fn metrics_match_the_golden_files() {
    let worker = Mock::start("w").await;
    let alone = ["--enable-mesh", "--mesh-host", "127.0.0.1", "--mesh-port", "0"];
    let peer = Router::start(&[&alone[..], &["--mesh-server-name", "peer"]].concat()).await;
    let join =
        ["--mesh-server-name", "me", "--mesh-peer-urls", &address(&peer, "mesh").to_string()]
            .map(str::to_owned);
    let join = join.iter().map(String::as_str);
    let folder = tempfile::tempdir().unwrap();
    let folder = ["--data-dir", folder.path().to_str().unwrap()];
    let log = ["--access-log", "text", "--access-log-file", "/dev/null"];
    let flags: Vec<&str> = alone.into_iter().chain(join).chain(folder).chain(log).collect();
    let router = Router::before(&[worker.url()], &flags).await;
    // Some families appear only after an event: an attempt that fails and is retried, and one without an answer.
    worker.faults(r#"{"script":{"status":503},"next":1}"#);
    router.post("/generate", BODY).await;
    worker.faults(r#"{"script":{"cut_before_head":true},"next":1}"#);
    router.post("/generate", BODY).await;
    router.post("/generate", r#"{"model":"other"}"#).await;
    eventually("the link to the peer is measured", || async {
        let text = router.get("/metrics").await.text();
        let measured = ["probe_rtt", "clock_skew", "replication_lag"]
            .iter()
            .all(|what| text.contains(&format!("smg_mesh_{what}_seconds{{peer=\"peer\"}}")));
        if measured { Ok(()) } else { Err(text) }
    })
    .await;
    // Some families appear with the first tick of the task that exports them, which a busy machine delays.
    let reviewed = include_str!("../golden/metrics.txt");
    let list = within(Duration::from_secs(20), || async {
        let mut list = String::new();
        for (name, (help, kind)) in families(&router.get("/metrics").await.text()) {
            assert!(!kind.is_empty() && !help.is_empty(), "{name}");
            writeln!(list, "{name} {kind}\n    {help}").unwrap();
        }
        if list == reviewed { Ok(list) } else { Err(list) }
    })
    .await;
    let list = list.unwrap_or_else(|last| last);
    expect_file!["../golden/metrics.txt"].assert_eq(&list);
    expect_file!["../../docs/metrics.md"].assert_eq(&metrics_page(&list));
    let counted = r#"smg_http_requests_total{route="/generate",status="200"}"#;
    assert_eq!(router.metric(counted).await, 1.0);
}

#[tokio::test]
async fn errors_match_the_golden_files_and_every_answer_has_a_request_id() {
    let worker = Worker::start(|mut talk| async move {
        talk.close();
        talk
    })
    .await;
    let flags = [
        "--api-key",
        "k",
        "--admin-api-key",
        "a",
        "--disable-retries",
        "--max-payload-size",
        "1024",
    ];
    let router = Router::before(&[worker.url()], &flags).await;
    let key = ("x-api-key", "k");
    let large = "x".repeat(1025);
    let asked: [(&str, &str, (&str, &str), &str); 15] = [
        ("POST", "/generate", key, "{"),
        ("POST", "/generate", key, r#"{"model":1}"#),
        ("POST", "/generate", key, r#"{"model":"other"}"#),
        ("POST", "/generate", key, BODY),
        ("POST", "/generate", key, &large),
        ("POST", "/generate", ("x-api-key", "wrong"), BODY),
        ("POST", "/v1/messages", ("x-api-key", "wrong"), BODY),
        ("POST", "/v1/messages", key, r#"{"model":"other"}"#),
        ("GET", "/nowhere", key, ""),
        ("GET", "/v1/batches/batch_1", key, ""),
        ("POST", "/v1/messages/batches", key, "{}"),
        ("GET", "/generate", key, ""),
        ("GET", "/workers", key, ""),
        ("GET", "/liveness", ("host", "another"), ""),
        ("GET", "/workers/w-0000000000000000", ("x-api-key", "a"), ""),
    ];
    let mut list = String::new();
    for (method, path, header, body) in asked {
        let answer =
            router.send(method, path, &[header, ("x-request-id", "mine")], body.as_bytes()).await;
        assert_eq!(answer.header("x-request-id"), Some("mine"), "{method} {path}");
        assert_eq!(
            answer.header("x-smg-error-code"),
            Some(answer.code().as_str()),
            "{method} {path}"
        );
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let shown = if body.len() > 40 { "…" } else { body };
        writeln!(
            list,
            "{method} {path} {} {shown}\n    {} {}",
            header.1,
            answer.status,
            answer.text()
        )
        .unwrap();
    }
    expect_file!["../golden/errors.txt"].assert_eq(&list);
    for path in ["/liveness", "/readiness", "/health", "/metrics", "/openapi.yaml"] {
        assert!(router.get(path).await.header("x-request-id").is_some(), "{path}");
    }
}

#[tokio::test]
async fn probes_answer_with_a_reason() {
    let worker = Worker::plain().await;
    let mut router = Router::start(&["--drain-settle-secs", "60"]).await;
    assert_eq!(
        (router.get("/liveness").await.status, router.get("/health").await.status),
        (200, 200)
    );
    let readiness = router.get("/readiness").await;
    assert_eq!(
        (readiness.status, readiness.json()["reason"].as_str()),
        (503, Some("insufficient healthy workers"))
    );
    router.post("/workers", serde_json::json!({ "url": worker.url() }).to_string()).await;
    router.knows_ready(1).await;
    assert_eq!(router.get("/readiness").await.json()["status"], "ready");
    router.signal("TERM");
    eventually("the router drains", || async {
        let readiness = router.get("/readiness").await;
        if readiness.json()["reason"] == "draining" { Ok(()) } else { Err(readiness.text()) }
    })
    .await;
    let health = router.get("/health").await.json();
    assert_eq!((&health["draining"], &health["status"]), (&true.into(), &"ok".into()));
    let asked_again = std::time::Instant::now();
    router.signal("TERM");
    router.ended().await;
    assert!(asked_again.elapsed().as_secs() < 30, "a second signal ends at once");
}

/// A port that was free a moment ago. The flag takes 0 for "none", so it cannot choose a free one.
fn free_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}

#[tokio::test]
async fn additional_ports_serve_only_probes_and_metrics() {
    let worker = Worker::plain().await;
    let health = free_port();
    let flags = ["--health-check-port", &health, "--header-timeout-secs", "0.3"];
    let router = Router::before(&[worker.url()], &flags).await;
    let probes = address(&router, "probes");
    for path in ["/liveness", "/readiness", "/health", "/metrics"] {
        assert_eq!(client::send(probes, "GET", path, &[], b"").await.status, 200, "{path}");
    }
    for path in ["/workers", "/v1/models"] {
        assert_eq!(client::send(probes, "GET", path, &[], b"").await.status, 404, "{path}");
    }
    // A scraper keeps its connection open for longer than a head may take.
    let tcp = tokio::net::TcpStream::connect(probes).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(tcp);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let request = http::Request::get("/metrics").header("host", "a");
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.expect("the connection is kept");
        assert_eq!(response.status(), 200);
        http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        // An unfinished head is answered after its timeout, so that time has passed here.
        let mut slow = tokio::net::TcpStream::connect(router.address()).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut slow, b"GET / HTTP/1.1\r\n").await.unwrap();
        let mut answer = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut slow, &mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn engine_metrics_are_merged_and_name_their_worker() {
    let page = || {
        Worker::start(|mut talk| async move {
            talk.answer(200, "", b"# HELP e Of the engine.\n# TYPE e gauge\ne{a=\"b\"} 1\n").await;
            talk
        })
    };
    let (one, two) = (page().await, page().await);
    let router = Router::before(&[one.url(), two.url()], &[]).await;
    let text = router.get("/engine_metrics").await.text();
    assert_eq!(families(&text)["e"], ("Of the engine.".to_owned(), "gauge".to_owned()));
    for worker in [&one, &two] {
        let sample = format!(
            "e{{worker_addr=\"{}\",a=\"b\"}} 1",
            worker.url().trim_start_matches("http://")
        );
        assert!(text.lines().any(|line| line == sample), "{sample} is not in\n{text}");
    }
}

#[tokio::test]
async fn decisions_are_shown_if_enabled_and_logs_are_json() {
    let worker = Worker::plain().await;
    let flags = ["--debug-headers", "--policy", "round_robin", "--log-level", "debug"];
    let router = Router::before(&[worker.url()], &flags).await;
    let answer = router.post("/generate", BODY).await;
    let id = router.get("/workers").await.json()["workers"][0]["id"].clone();
    assert_eq!(answer.header("x-smg-worker"), id.as_str());
    assert_eq!(answer.header("x-smg-policy"), Some("round_robin"));
    assert_eq!(answer.header("x-smg-attempts"), Some("1"));
    assert!(answer.header("x-smg-decision").is_some());
    answer.header("x-smg-overhead-ms").unwrap().parse::<f64>().unwrap();
    let name = answer.header("x-request-id").unwrap().to_owned();
    eventually("the request is in the log", || async {
        if router.log().contains(&name) { Ok(()) } else { Err(router.log()) }
    })
    .await;
    for line in router.log().lines() {
        let event: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(event["level"].is_string() && event["message"].is_string(), "{line}");
    }
}
