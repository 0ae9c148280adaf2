//! Tests of the cluster page and of the routes that exist for it. `tests/page` drives the page in a browser.

use std::time::Duration;

use serde_json::{Value, json};

use crate::mesh::{KEYS, mesh_address, router};
use crate::support::client;
use crate::support::router::Router;
use crate::support::worker::{Talk, Worker};
use crate::support::{eventually, within};

/// The most bytes of the page.
const MOST_BYTES: usize = 150_000;

#[tokio::test]
async fn the_page_is_one_small_document_for_everybody_that_runs_nothing_but_its_own_script() {
    let router = Router::start(&["--api-key", "client", "--admin-api-key", "admin"]).await;
    let page = router.get("/ui").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let text = page.text();
    assert!(text.len() < MOST_BYTES, "{} bytes", text.len());
    for (name, value) in [
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cache-control", "no-cache"),
    ] {
        assert_eq!(page.header(name), Some(value), "{name}");
    }
    let policy = page.header("content-security-policy").unwrap();
    for part in [
        "default-src 'none'",
        "script-src 'sha256-",
        "style-src 'sha256-",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(policy.contains(part), "{part} is not in {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    // A page behind a prefix has only relative addresses, and one without assets none of other hosts.
    for forbidden in [
        "http://",
        "https://",
        "src=",
        "href=\"/",
        "url(",
        "@import",
        "import(",
        "innerHTML",
        "outerHTML",
        "eval(",
        "document.write",
        "insertAdjacentHTML",
        "onclick",
        "onload",
        "fetch(\"/",
        "localStorage",
        "\"/ha",
        "\"/workers",
    ] {
        assert!(!text.contains(forbidden), "the page contains {forbidden}");
    }
    let tag = page.header("etag").unwrap();
    let again = router.send("GET", "/ui", &[("if-none-match", tag)], b"").await;
    assert_eq!((again.status, again.text().as_str()), (304, ""));
    assert_eq!(again.header("content-security-policy"), Some(policy));
    let head = router.send("HEAD", "/ui", &[], b"").await;
    assert_eq!((head.status, head.header("etag")), (200, Some(tag)));
    assert_eq!(router.send("POST", "/ui", &[], b"").await.status, 405);
}

#[tokio::test]
async fn the_page_is_on_the_main_port_only() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let port = free.port().to_string();
    let router = Router::start(&["--health-check-port", &port]).await;
    assert_eq!(router.get("/ui").await.status, 200);
    assert_eq!(client::send(free, "GET", "/openapi.yaml", &[], b"").await.status, 200);
    assert_eq!(client::send(free, "GET", "/ui", &[], b"").await.status, 404);
}

#[tokio::test]
async fn administrators_read_events_and_routers_although_clients_have_keys() {
    let router = Router::start(&["--api-key", "client", "--admin-api-key", "1:a:user:reads"]).await;
    for key in ["client", "reads"] {
        let headers = [("x-api-key", key)];
        assert_eq!(router.send("GET", "/ha/routers", &headers, b"").await.status, 200, "{key}");
        let stream =
            client::begin(router.address(), "GET", "/ha/events", &headers, b"").await.unwrap();
        assert_eq!(stream.status, 200, "{key}");
    }
    for headers in [&[][..], &[("x-api-key", "wrong")]] {
        assert_eq!(router.send("GET", "/ha/routers", headers, b"").await.status, 401);
    }
    // The keys of tenants alone keep others out too.
    let router = Router::start(&["--tenant-api-key", "acme:secret"]).await;
    for path in ["/ha/routers", "/ha/events"] {
        for headers in [&[][..], &[("x-api-key", "wrong")]] {
            assert_eq!(router.send("GET", path, headers, b"").await.status, 401, "{path}");
        }
    }
    let tenant = [("x-api-key", "secret")];
    assert_eq!(router.send("GET", "/ha/routers", &tenant, b"").await.status, 200);
}

#[tokio::test]
async fn the_effective_configuration_shows_sources_and_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("smg.toml");
    let text = "retry_max_retries = 4\n[[workers]]\nurl = \"http://127.0.0.1:9\"\napi_key = \"secret-of-the-worker\"\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let flags =
        ["--config", file, "--admin-api-key", "secret-of-admins", "--api-key", "secret-of-clients"];
    let router = Router::start(&flags).await;
    assert_eq!(router.get("/ha/config").await.status, 401);
    let shown = router.send("GET", "/ha/config", &[("x-api-key", "secret-of-admins")], b"").await;
    assert_eq!(shown.status, 200, "{}", shown.text());
    assert!(!shown.text().contains("secret-of"), "{}", shown.text());
    let document = shown.json();
    let setting = |name: &str| {
        let all = document["settings"].as_array().unwrap();
        all.iter().find(|setting| setting["name"] == name).cloned().unwrap_or_default()
    };
    let cases = [
        ("admin-api-key", json!(["***"]), "flag --admin-api-key".to_owned()),
        ("host", json!("127.0.0.1"), "flag --host".to_owned()),
        ("worker-urls", json!([]), "default".to_owned()),
        ("retry-max-retries", json!(4), format!("file {file}")),
        ("worker-api-key", Value::Null, "default".to_owned()),
    ];
    for (name, value, source) in cases {
        let found = setting(name);
        assert_eq!((&found["value"], &found["source"]), (&value, &json!(source)), "{name}");
    }
    let worker = &document["workers"][0];
    assert_eq!((&worker["url"], &worker["api_key"]), (&json!("http://127.0.0.1:9"), &json!("***")));
}

/// The views that a router shows with a key.
async fn views(router: &Router, key: &str) -> Value {
    router.send("GET", "/ha/views", &[("x-api-key", key)], b"").await.json()["views"].clone()
}

#[tokio::test]
async fn each_router_shows_how_every_router_sees_the_others_and_why_a_worker_fails() {
    let gone = "http://127.0.0.1:9";
    let more = [
        "--mesh-encryption-key",
        KEYS[0],
        "--admin-api-key",
        "1:a:user:key",
        "--worker-urls",
        gone,
    ];
    let first = router("node1", &[], &more).await;
    let second = router("node2", &[mesh_address(&first)], &more).await;
    eventually("each router shows the view of both", || async {
        for router in [&first, &second] {
            let views = views(router, "key").await;
            for (observer, observed) in [("node1", "node2"), ("node2", "node1")] {
                let view = &views[observer]["view"];
                let peer = &view["health"]["peers"][0];
                if peer["name"] != observed || peer["status"] != "ALIVE" {
                    return Err(views);
                }
                let failure = view["failures"].as_object().and_then(|all| all.values().next());
                if failure.is_none_or(|failure| failure["cause"] != "connection_refused") {
                    return Err(views);
                }
            }
        }
        Ok(())
    })
    .await;
    drop(second);
    let missing = within(Duration::from_secs(30), || async {
        let views = views(&first, "key").await;
        let (one, two) = (&views["node1"]["view"], &views["node2"]);
        let is_down = one["health"]["peers"][0]["status"] == "DOWN" && two["error"] == "is DOWN";
        if is_down { Ok(()) } else { Err(views) }
    });
    let missing = missing.await;
    assert_eq!(missing, Ok(()), "the view of a killed router is missing, with a reason");
}

#[tokio::test]
async fn a_key_is_not_sent_to_routers_that_anybody_can_imitate() {
    let more = ["--admin-api-key", "key"];
    let first = router("node1", &[], &more).await;
    let _second = router("node2", &[mesh_address(&first)], &more).await;
    eventually("the other router was asked without the key", || async {
        let views = views(&first, "key").await;
        let error = views["node2"]["error"].as_str().unwrap_or_default();
        if error.contains("keys are not sent to other routers") { Ok(()) } else { Err(views) }
    })
    .await;
}

#[tokio::test]
async fn a_worker_shows_the_tokens_that_it_had_cached() {
    let worker = Worker::start(|mut talk: Talk| async move {
        let usage = br#"{"usage":{"prompt_tokens":100,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":60}}}"#;
        talk.answer(200, "content-type: application/json\r\n", usage).await;
        talk
    })
    .await;
    let router = Router::before(&[worker.url()], &[]).await;
    for _ in 0..2 {
        let body = r#"{"model":"m","messages":[{"role":"user","content":"Hello"}]}"#;
        assert_eq!(router.post("/v1/chat/completions", body).await.status, 200);
    }
    // An answer is counted when it has ended here, which its client may see earlier.
    eventually("both answers are counted", || async {
        let seen = router.get("/ha/workers").await.json()["workers"][0].clone();
        let counts = ["prompt_tokens", "cached_tokens", "waiting_tokens", "expected_wait_seconds"];
        let counts = counts.map(|name| seen[name].clone());
        if counts == [json!(200), json!(120), json!(0), Value::Null] { Ok(()) } else { Err(seen) }
    })
    .await;
}
