//! Tests that a reload of the configuration applies each part under traffic without a failed request or a cut stream, that a
//! file with mistakes changes nothing, and that the workers of the file follow the rules of a start.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::signals::{Files, gated, mistakes, reload};
use crate::support::load::Load;
use crate::support::router::Router;
use crate::support::worker::Worker;
use crate::support::{client, eventually};
use crate::tls::Authority;

const BODY: &str = r#"{"model":"m"}"#;
const STREAM: &[u8] = br#"{"model":"streams","stream":true}"#;
const LOAD_KEY: &[(&str, &str)] = &[("x-api-key", "load")];

/// Sends `POST /ha/reload` and returns the answer, which must be a success.
async fn apply(router: &Router) -> Value {
    let admin = [("x-api-key", "root"), ("content-type", "application/json")];
    let answer = router.send("POST", "/ha/reload", &admin, b"").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    assert_eq!(answer["failed"], json!([]), "{answer}");
    answer
}

/// The list of changes of an answer.
fn changes(answer: &Value) -> Vec<&str> {
    answer["changed"].as_array().unwrap().iter().map(|part| part.as_str().unwrap()).collect()
}

/// The file of the first test: the parts that change, after those that stay.
fn configuration(steady: &[&str], top: &str, tables: &str) -> String {
    let workers: String =
        steady.iter().map(|url| format!("[[workers]]\nurl = '{url}'\n")).collect();
    format!("admin-api-key = 'root'\n{top}\n{workers}{tables}")
}

async fn status(router: &Router, key: &str, body: &str) -> u16 {
    let headers = [("x-api-key", key), ("content-type", "application/json")];
    router.send("POST", "/v1/chat/completions", &headers, body.as_bytes()).await.status
}

/// The admin API's list of workers, as URLs with the weight of each.
async fn workers(router: &Router) -> Vec<(String, u64)> {
    let list = router.send("GET", "/workers", &[("x-api-key", "root")], b"").await.json();
    let workers = list["workers"].as_array().unwrap().iter().map(|worker| {
        let url = worker["url"].as_str().unwrap().to_owned();
        (url, worker["spec"]["weight"].as_u64().unwrap())
    });
    workers.collect()
}

#[tokio::test]
async fn each_part_changes_under_requests_and_a_stream() {
    let gate = Arc::new(Semaphore::new(0));
    let streams = gated(&gate).await;
    streams.list(json!([{ "id": "streams" }]));
    let (first, second) = (Worker::plain().await, Worker::plain().await);
    let mesh = ["--enable-mesh", "--mesh-host", "127.0.0.1", "--mesh-port", "0"];
    let peer = Router::start(&[&mesh[..], &["--mesh-server-name", "peer"]].concat()).await;
    let peer = peer.get("/ha/health").await.json()["node"]["address"].as_str().unwrap().to_owned();

    let files = Files::new();
    let (own, other) = (Authority::new(), Authority::new());
    let (streams_url, first_url, second_url) = (streams.url(), first.url(), second.url());
    let steady = [&*streams_url, &*first_url];
    let write = |top: &str, tables: &str| {
        files.write("smg.toml", &configuration(&steady, top, tables));
    };
    write("api-key = 'load'", "");
    let config = files.write("smg.toml", &configuration(&steady, "api-key = 'load'", ""));
    let name = ["--mesh-server-name", "me", "--config", &config];
    let router = Router::start(&[&mesh[..], &name].concat()).await;
    router.knows_ready(2).await;

    let load = Load::with_headers(router.address(), 6, 300, LOAD_KEY, BODY);
    let begun = client::begin(router.address(), "POST", "/generate", LOAD_KEY, STREAM).await;
    let mut stream = begun.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "data: 1\n\n");
    load.answers(50).await;

    // Each step keeps the parts of the steps before it.
    let mut top = "api-key = ['load', 'second']".to_owned();
    assert_eq!(status(&router, "second", BODY).await, 401);
    write(&top, "");
    assert_eq!(changes(&apply(&router).await), ["client keys"]);
    assert_eq!(status(&router, "second", BODY).await, 200);

    top += "\ntenant-api-key = 'acme:tenant'\nlog-level = 'warn'";
    write(&top, "");
    assert_eq!(changes(&apply(&router).await), ["tenant keys", "log level (warn)"]);
    assert_eq!(status(&router, "tenant", BODY).await, 200);

    let mut tables = format!("[[workers]]\nurl = '{second_url}'\n");
    write(&top, &tables);
    assert_eq!(changes(&apply(&router).await), [format!("worker {second_url} added")]);
    router.knows_ready(3).await;
    load.answers(50).await;
    assert!(!second.seen().is_empty(), "the new worker gets requests");

    tables += "weight = 7\n";
    write(&top, &tables);
    assert_eq!(changes(&apply(&router).await), [format!("worker {second_url} changed")]);
    assert!(workers(&router).await.contains(&(second_url.clone(), 7)));

    tables += "api_key = 'worker-key'\n";
    write(&top, &tables);
    assert_eq!(changes(&apply(&router).await), [format!("key of worker {second_url}")]);
    eventually("the worker gets its key", || async {
        let seen = second.seen().last().unwrap().all("authorization").join(" ");
        if seen == "Bearer worker-key" { Ok(()) } else { Err(seen) }
    })
    .await;

    write(&top, "");
    assert_eq!(changes(&apply(&router).await), [format!("worker {second_url} removed")]);
    router.knows_ready(2).await;

    top += "\nmodel-alias = 'nick=m'";
    assert_eq!(status(&router, "load", r#"{"model":"nick"}"#).await, 404);
    write(&top, "");
    assert_eq!(changes(&apply(&router).await), ["model aliases"]);
    assert_eq!(status(&router, "load", r#"{"model":"nick"}"#).await, 200);

    top += "\npolicy = 'random'";
    write(&top, "");
    assert_eq!(changes(&apply(&router).await), ["default policy (random)"]);
    let policies = router.send("GET", "/ha/policies", &[("x-api-key", "root")], b"").await.json();
    assert_eq!(
        (&policies["default"], &policies["models"]["m"]),
        (&"random".into(), &"random".into())
    );

    let rule = |requests: u8| {
        format!(
            "[[rate_limits]]\nid = 'of-acme'\nmatch = {{ tenant = 'acme' }}\n\
             requests = {requests}\nwindow = '1h'\n"
        )
    };
    for (text, change) in [(rule(1), "added"), (rule(2), "changed"), (String::new(), "removed")] {
        write(&top, &text);
        assert_eq!(changes(&apply(&router).await), [format!("rule of-acme {change}")]);
        let limits =
            router.send("GET", "/ha/rate-limits", &[("x-api-key", "root")], b"").await.json();
        assert_eq!(limits["total"], u64::from(change != "removed"), "{limits}");
    }

    write(&format!("{top}\nmesh-peer-urls = ['{peer}']"), "");
    assert_eq!(changes(&apply(&router).await), ["addresses of other routers"]);
    eventually("the other router is a member", || async {
        let seen = router.send("GET", "/ha/routers", &[("x-api-key", "load")], b"").await.json();
        if seen["routers"].as_array().unwrap().len() == 2 { Ok(()) } else { Err(seen) }
    })
    .await;
    top += &format!("\nmesh-peer-urls = ['{peer}']");

    for (authority, change) in [(&own, true), (&other, true), (&other, false)] {
        let ca = files.write("ca.pem", &std::fs::read_to_string(authority.text("ca.pem")).unwrap());
        write(&format!("{top}\nworker-tls-ca = '{ca}'"), "");
        let expected: &[&str] = if change { &["worker TLS"] } else { &[] };
        assert_eq!(changes(&apply(&router).await), expected);
    }

    load.answers(50).await;
    gate.add_permits(1);
    assert_eq!(stream.rest().await.unwrap(), "data: [DONE]\n\n");
    assert_eq!(load.stop().await, [""; 0]);
    assert_eq!(router.metric("smg_config_reload_total{result=\"invalid\"}").await, 0.0);
    assert!(router.metric("smg_config_reload_total{result=\"applied\"}").await > 10.0);
}

#[tokio::test]
async fn a_certificate_of_another_path_is_used_while_a_connection_stays_open() {
    let (first, second) = (Authority::new(), Authority::new());
    let files = Files::new();
    let text = |authority: &Authority| {
        let (cert, key) = (authority.text("own.pem"), authority.text("own.key"));
        format!("tls-cert-path = '{cert}'\ntls-key-path = '{key}'")
    };
    let config = files.write("smg.toml", &text(&first));
    let router = Router::start(&["--config", &config]).await;
    let mut open = crate::tls::open(router.address(), &first).await.expect("the first is trusted");
    assert!(crate::tls::open(router.address(), &second).await.is_none());
    files.write("smg.toml", &text(&second));
    let events = reload(&router).await;
    assert_eq!(events.last().unwrap()["changed"], "listener TLS", "{events:#?}");
    assert!(crate::tls::open(router.address(), &second).await.is_some());
    assert!(crate::tls::open(router.address(), &first).await.is_none());
    assert_eq!(crate::tls::liveness(&mut open).await, 200, "the open connection goes on");
    // Whether there is TLS at all is decided at the start.
    files.write("smg.toml", "");
    let events = reload(&router).await;
    let waiting = events[0]["settings"].as_str().unwrap();
    assert!(
        waiting.starts_with("tls-cert-path: /") && waiting.contains(" -> not set"),
        "{waiting}"
    );
    assert!(crate::tls::open(router.address(), &second).await.is_some());
}

/// Files of which each has a mistake, and a part of the line that names it.
fn bad_files(router: &Router, files: &Files) -> Vec<(String, &'static str)> {
    let cert = files.write("broken.pem", "-----BEGIN CERTIFICATE-----\nnothing\n");
    let own = router.address();
    let good = "admin-api-key = 'root'\napi-key = 'new'\n";
    let with = |text: &str| format!("{good}{text}");
    vec![
        ("api-key = 'new".to_owned(), "smg.toml:1: "),
        (with("no-such-key = 1"), "no-such-key in"),
        (with("queue-size = 'x'"), "key queue-size in"),
        (with("queue-size = 1000001"), "key queue-size in"),
        (with("api-key = 'again'"), "smg.toml:3: "),
        ("admin-api-key = 'root'\napi-key = 'root'".to_owned(), "--admin-api-key is one of"),
        (with("worker-urls = ['ftp://w']"), "worker url"),
        (
            with("[[workers]]\nurl = 'http://a'\n[[workers]]\nurl = 'http://a'"),
            "workers[0] already",
        ),
        (with("[[workers]]\nurl = 'http://a'\napi_key_file = '/absent'"), "api_key_file"),
        (with("[[rate_limits]]\nid = 'r'\nrate = 'often'"), "rate_limits[0]"),
        (with(&format!("worker-tls-ca = '{cert}'")), "broken.pem"),
        (with("model-alias = ['a=b', 'b=c']"), "alias"),
        (with(&format!("worker-urls = ['http://{own}']")), "this router"),
        ("api-key = 'new'".to_owned(), "no key for administrators any more"),
        ("admin-api-key = 'root'".to_owned(), "no key for clients any more"),
    ]
}

#[tokio::test]
async fn a_file_with_mistakes_changes_nothing_and_lists_all_of_them() {
    let worker = Worker::plain().await;
    let files = Files::new();
    let good = format!(
        "admin-api-key = 'root'\napi-key = 'old'\n[[workers]]\nurl = '{}'\nweight = 3\n",
        worker.url()
    );
    let config = files.write("smg.toml", &good);
    let router = Router::start(&["--config", &config]).await;
    router.knows_ready(1).await;
    let stays = async |what: &str| {
        assert_eq!(status(&router, "old", BODY).await, 200, "{what}");
        assert_eq!(status(&router, "new", BODY).await, 401, "{what}");
        assert_eq!(workers(&router).await, [(worker.url(), 3)], "{what}");
    };
    let admin = [("x-api-key", "root"), ("content-type", "application/json")];
    let bad = bad_files(&router, &files);
    for (text, expected) in &bad {
        files.write("smg.toml", text);
        let answer = router.send("POST", "/ha/reload", &admin, b"").await;
        assert_eq!((answer.status, answer.code()), (400, "invalid_configuration".to_owned()));
        assert!(answer.text().contains(expected), "{text}: {}", answer.text());
        let events = reload(&router).await;
        assert!(mistakes(&events).contains(expected), "{text}: {events:#?}");
        stays(text).await;
    }
    // Two mistakes are both in the one line.
    files.write(
        "smg.toml",
        &format!("{good}[[rate_limits]]\nid = 'r'\n\n[[workers]]\nurl = 'ftp://x'"),
    );
    let events = reload(&router).await;
    assert_eq!(events[0]["mistakes"], 2, "{events:#?}");
    assert!(mistakes(&events).contains("rate_limits[0]"), "{events:#?}");
    assert!(mistakes(&events).contains("workers[1]"), "{events:#?}");
    stays("two mistakes").await;
    std::fs::remove_file(&config).unwrap();
    assert!(mistakes(&reload(&router).await).contains("can't be read"));
    stays("no file").await;

    let count = 2 * bad.len() + 2;
    let metric = async |name: &str| router.metric(name).await;
    assert_eq!(metric("smg_config_reload_total{result=\"invalid\"}").await, count as f64);
    assert_eq!(metric("smg_config_last_reload_successful").await, 0.0);
    let before = metric("smg_config_last_reload_success_timestamp_seconds").await;
    files.write("smg.toml", &good);
    apply(&router).await;
    assert_eq!(metric("smg_config_reload_total{result=\"unchanged\"}").await, 1.0);
    assert_eq!(metric("smg_config_last_reload_successful").await, 1.0);
    assert!(metric("smg_config_last_reload_success_timestamp_seconds").await > before);
}

#[tokio::test]
async fn a_setting_that_needs_a_restart_is_named_with_both_values_and_without_secrets() {
    let files = Files::new();
    let config = files.write("smg.toml", "admin-api-key = 'root'\nqueue-size = 5");
    let router = Router::start(&["--config", &config]).await;
    let secret = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    files.write(
        "smg.toml",
        &format!(
            "admin-api-key = 'root'\nqueue-size = 6\nenable-mesh = true\n\
             mesh-encryption-key = '{secret}'\ndata-dir = '/nowhere'"
        ),
    );
    let answer = apply(&router).await;
    assert_eq!(answer["changed"], json!([]));
    let expected = json!([
        { "setting": "data-dir", "running": "not set", "configured": "/nowhere" },
        { "setting": "enable-mesh", "running": "false", "configured": "true" },
        { "setting": "mesh-encryption-key", "running": "not set", "configured": "***" },
        { "setting": "queue-size", "running": "5", "configured": "6" },
    ]);
    assert_eq!(answer["needs_restart"], expected);
    let events = reload(&router).await;
    let settings = events[0]["settings"].as_str().unwrap();
    assert!(
        settings.contains("queue-size: 5 -> 6") && !router.log().contains(secret),
        "{settings}"
    );
}

#[tokio::test]
async fn workers_of_the_file_follow_the_rules_of_a_start() {
    let files = Files::new();
    let (a, b, c) = (Worker::plain().await, Worker::plain().await, Worker::plain().await);
    let (a, b, c) = (a.url(), b.url(), c.url());
    let write = |urls: &[&str]| {
        let text: String = urls.iter().map(|url| format!("[[workers]]\nurl = '{url}'\n")).collect();
        files.write("smg.toml", &format!("admin-api-key = 'root'\n{text}"))
    };
    let config = write(&[&a, &b]);
    let router = Router::start(&["--config", &config]).await;
    router.knows_ready(2).await;
    let admin = [("x-api-key", "root"), ("content-type", "application/json")];
    let id = async |url: &str| {
        let list = router.send("GET", "/workers", &admin, b"").await.json();
        let workers = list["workers"].as_array().unwrap();
        let found = workers.iter().find(|worker| worker["url"] == url).unwrap();
        found["id"].as_str().unwrap().to_owned()
    };
    // An administrator removes one, registers another, and changes a third.
    let path = format!("/workers/{}", id(&b).await);
    assert_eq!(router.send("DELETE", &path, &admin, b"").await.status, 202);
    let spec = json!({ "url": c }).to_string();
    assert_eq!(router.send("POST", "/workers", &admin, spec.as_bytes()).await.status, 202);
    let path = format!("/workers/{}", id(&a).await);
    assert_eq!(router.send("PATCH", &path, &admin, br#"{"weight":9}"#).await.status, 200);
    let seen = async |expected: &[(&str, u64)]| {
        let mut expected: Vec<(String, u64)> =
            expected.iter().map(|(url, weight)| ((*url).to_owned(), *weight)).collect();
        expected.sort();
        eventually("the workers are as expected", || async {
            let mut seen = workers(&router).await;
            seen.sort();
            if seen == expected { Ok(()) } else { Err(seen) }
        })
        .await;
    };
    seen(&[(&a, 9), (&c, 1)]).await;
    // The file has not changed: neither has the fleet.
    assert_eq!(changes(&apply(&router).await), [""; 0]);
    seen(&[(&a, 9), (&c, 1)]).await;

    // The removed worker changes in the file and stays removed.
    files.write(
        "smg.toml",
        &format!(
            "admin-api-key = 'root'\n[[workers]]\nurl = '{a}'\n[[workers]]\nurl = '{b}'\nweight = 2"
        ),
    );
    let answer = apply(&router).await;
    assert_eq!(answer["kept"][0]["part"], format!("worker {b}"), "{answer}");
    seen(&[(&a, 9), (&c, 1)]).await;

    // The file names the registered one, then no longer: it stays as it was registered.
    write(&[&a, &b, &c]);
    apply(&router).await;
    write(&[&a, &b]);
    assert_eq!(apply(&router).await["kept"][0]["part"], format!("worker {c}"));
    seen(&[(&a, 9), (&c, 1)]).await;

    // The file drops the worker that it declared itself, and takes it back.
    write(&[]);
    assert_eq!(changes(&apply(&router).await), [format!("worker {a} removed")]);
    seen(&[(&c, 1)]).await;
    write(&[&a]);
    assert_eq!(changes(&apply(&router).await), [format!("worker {a} added")]);
    seen(&[(&a, 1), (&c, 1)]).await;
}

#[tokio::test]
async fn a_reload_adds_hundreds_of_workers_at_once() {
    let files = Files::new();
    let list = |count: usize| {
        let urls: Vec<String> = (0..count).map(|n| format!("'http://127.0.0.1:9/{n}'")).collect();
        format!("admin-api-key = 'root'\nworker-urls = [{}]", urls.join(", "))
    };
    let config = files.write("smg.toml", &list(0));
    let router = Router::start(&["--config", &config]).await;
    files.write("smg.toml", &list(200));
    assert_eq!(changes(&apply(&router).await).len(), 200);
    let events = reload(&router).await;
    assert_eq!(events.last().unwrap()["changed"], "nothing");
}
