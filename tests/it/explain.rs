//! `POST /ha/explain` and the header `x-smg-debug`: which worker a request gets and why, without sending anything.

use serde_json::{Value, json};
use smg_routing::policy::Kind;

use crate::support::client::{self, Answer};
use crate::support::eventually;
use crate::support::mock::{self, Mock};
use crate::support::router::Router;
use crate::support::worker::Worker;

const JSON: (&str, &str) = ("content-type", "application/json");

/// A chat whose prompt begins with `head`, repeated to some thousand bytes.
fn chat(head: &str) -> String {
    let words = format!("{head} and so on. ").repeat(200);
    json!({ "model": "m", "max_tokens": 1, "messages": [{ "role": "user", "content": words }] })
        .to_string()
}

async fn explain(router: &Router, body: &str, headers: &[(&str, &str)]) -> Value {
    let headers = [&[JSON], headers].concat();
    let answer = router.send("POST", "/ha/explain", &headers, body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

async fn ask(router: &Router, body: &str, headers: &[(&str, &str)]) -> Answer {
    let answer = router.send("POST", "/v1/chat/completions", headers, body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

/// What an explanation says of the worker at `url`.
fn of<'a>(explanation: &'a Value, url: &str) -> &'a Value {
    let is = |worker: &&Value| worker["url"].as_str().unwrap().trim_end_matches('/') == url;
    let found = explanation["workers"].as_array().unwrap().iter().find(is);
    found.unwrap_or_else(|| panic!("{url} is missing in {explanation}"))
}

/// What could differ if an explanation left a trace: the metrics of routing, without those of the explanation's own request.
async fn traces(router: &Router) -> Vec<String> {
    let text = router.get("/metrics").await.text();
    let families = [
        "smg_policy_",
        "smg_prefix_",
        "smg_affinity_",
        "smg_router_",
        "smg_admission_",
        "smg_worker_",
    ];
    let is_trace = |line: &&str| families.iter().any(|family| line.starts_with(family));
    // Probes go on meanwhile.
    let is_probe = |line: &str| line.contains("probe") || line.contains("seconds");
    text.lines().filter(is_trace).filter(|line| !is_probe(line)).map(str::to_owned).collect()
}

#[tokio::test]
async fn an_explanation_leaves_no_trace_under_any_policy() {
    let mocks = Mock::several(3).await;
    let router = Router::before(&mock::urls(&mocks), &["--debug-headers"]).await;
    let session = [("x-session-id", "s")];
    for (nth, kind) in Kind::ALL.into_iter().enumerate() {
        let set = json!({ "policy": kind.name() }).to_string();
        let set = router.send("PUT", "/ha/policies/m", &[JSON], set.as_bytes()).await;
        assert_eq!(set.status, 200, "{}", set.text());
        // So that there is something to change.
        ask(&router, &chat(kind.name()), &session).await;
        eventually("the request is counted", || async {
            let series = r#"smg_router_requests_total{model="m",outcome="complete"}"#;
            let counted = router.metric(series).await;
            if counted == (nth + 1) as f64 { Ok(()) } else { Err(counted) }
        })
        .await;
        let before = traces(&router).await;
        let sent: u64 = mocks.iter().map(|mock| mock.stats().completed).sum();
        for n in 0..5 {
            let shown = explain(&router, &chat(&format!("{kind} {n}")), &session).await;
            assert_eq!(shown["policy"], kind.name());
            assert!(shown["decides_by"].as_str().is_some_and(|by| !by.is_empty()), "{shown}");
            assert_eq!(shown["workers"].as_array().unwrap().len(), 3);
            assert!(shown["pick"]["worker"].is_string(), "{shown}");
            let has_terms = of(&shown, &mocks[0].url())["terms"].is_object();
            assert_eq!(has_terms, kind == Kind::CacheAware, "{shown}");
        }
        assert_eq!(traces(&router).await, before, "{kind}");
        assert_eq!(mocks.iter().map(|mock| mock.stats().completed).sum::<u64>(), sent, "{kind}");
    }
}

#[tokio::test]
async fn the_explanation_of_a_turn_in_the_cycle_does_not_use_it_up() {
    let mocks = Mock::several(3).await;
    let flags = ["--debug-headers", "--policy", "round_robin"];
    let router = Router::before(&mock::urls(&mocks), &flags).await;
    // The first turns are drawn by lot.
    ask(&router, &chat("x"), &[]).await;
    for turn in 0..9 {
        let first = explain(&router, &chat("x"), &[]).await["pick"].clone();
        let second = explain(&router, &chat("x"), &[]).await["pick"].clone();
        let served = ask(&router, &chat("x"), &[]).await;
        assert_eq!(first, second, "turn {turn}");
        assert_eq!(first["worker"].as_str(), served.header("x-smg-worker"), "turn {turn}");
    }
}

#[tokio::test]
async fn the_terms_show_why_a_conversation_stays_with_its_worker() {
    let mocks = Mock::several(3).await;
    let router = Router::before(&mock::urls(&mocks), &["--debug-headers"]).await;
    let first = ask(&router, &chat("a conversation"), &[]).await;
    let id = first.header("x-smg-worker").unwrap().to_owned();
    let shown = explain(&router, &chat("a conversation"), &[]).await;
    assert_eq!((&shown["pick"]["worker"], &shown["pick"]["decision"]), (&json!(id), &json!("hit")));
    assert_eq!((&shown["waits"], &shown["refusal"]), (&json!(false), &Value::Null));
    for worker in shown["workers"].as_array().unwrap() {
        assert_eq!(worker["standing"], "candidate");
        let terms = &worker["terms"];
        let number = |name: &str| terms[name].as_f64().unwrap_or_else(|| panic!("{name}: {terms}"));
        let time = number("overhead_seconds")
            + number("waiting_seconds")
            + number("own_weight") * number("own_seconds")
            + number("crowding_seconds");
        let cost = number("cost_seconds");
        assert!((time * number("share_factor") - cost).abs() < 1e-4, "{terms}");
        let is_picked = worker["worker"] == id.as_str();
        assert_eq!(number("cached_tokens") > 500.0, is_picked, "{worker}");
        assert_eq!(terms["alike"], is_picked, "{worker}");
    }
    // The next turn gets what was explained.
    for _ in 0..5 {
        let served = ask(&router, &chat("a conversation"), &[]).await;
        assert_eq!(served.header("x-smg-worker"), Some(id.as_str()));
    }
}

/// Registers a worker, and returns its id.
async fn add(router: &Router, url: String, settings: Value) -> String {
    let mut spec = settings;
    spec["url"] = url.into();
    let added = router.post("/workers", spec.to_string()).await;
    assert_eq!(added.status, 202, "{}", added.text());
    added.json()["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_worker_that_is_no_candidate_has_its_reason() {
    let mut mocks = Mock::several(9).await;
    let flags = [
        "--node-zone",
        "here",
        "--cb-failure-threshold",
        "1",
        "--disable-retries",
        "--health-check-interval-secs",
        "0.2",
        "--health-failure-threshold",
        "1",
    ];
    let router = Router::start(&flags).await;
    let near = json!({ "priority": 5, "zone": "here" });
    let urls = mock::urls(&mocks);
    // One request fails at the only worker.
    add(&router, urls[0].clone(), near.clone()).await;
    router.knows_ready(1).await;
    mocks[0].faults(r#"{"script":{"status":500}}"#);
    assert_eq!(router.post("/v1/chat/completions", chat("x")).await.status, 500);
    // One stream fills the next one.
    let full = json!({ "priority": 5, "zone": "here", "max_concurrent": 1 });
    add(&router, urls[1].clone(), full).await;
    router.knows_ready(2).await;
    let headers = [("x-mock", r#"{"stall_after_chunks":1}"#)];
    let body = br#"{"model":"m","stream":true,"messages":[]}"#;
    let path = "/v1/chat/completions";
    let _held = client::begin(router.address(), "POST", path, &headers, body).await.unwrap();
    add(&router, urls[2].clone(), near.clone()).await;
    add(&router, urls[3].clone(), json!({ "priority": 5, "zone": "there" })).await;
    add(&router, urls[4].clone(), json!({ "priority": 4, "zone": "here" })).await;
    add(&router, urls[5].clone(), json!({ "priority": 5, "models": ["other"] })).await;
    let draining = add(&router, urls[6].clone(), near.clone()).await;
    let overridden = add(&router, urls[7].clone(), near.clone()).await;
    add(&router, urls[8].clone(), near).await;
    router.knows_ready(9).await;
    mocks[8].kill().await;
    let drain = router.post(&format!("/workers/{draining}/drain"), "{}").await;
    assert_eq!(drain.status, 200, "{}", drain.text());
    let verdict = r#"{"healthy":false,"reason":"a test"}"#;
    let set = router.post(&format!("/workers/{overridden}/override"), verdict).await;
    assert_eq!(set.status, 200, "{}", set.text());
    let expected = [
        "breaker_open",
        "full",
        "candidate",
        "farther_away",
        "lower_priority",
        "other_model",
        "draining",
        "overridden",
        "down",
    ];
    eventually("the explanation has all reasons", || async {
        let shown = explain(&router, &chat("x"), &[]).await;
        let standings: Vec<_> = urls
            .iter()
            .map(|url| of(&shown, url)["standing"].as_str().unwrap().to_owned())
            .collect();
        if standings == expected { Ok(()) } else { Err(standings) }
    })
    .await;
    let shown = explain(&router, &chat("x"), &[]).await;
    assert_eq!(shown["pick"]["url"].as_str().unwrap().trim_end_matches('/'), urls[2]);
    for url in &urls {
        let worker = of(&shown, url);
        assert_eq!(worker["candidate"], worker["standing"] == "candidate");
        assert!(worker["because"].as_str().is_some_and(|why| why.len() > 8), "{worker}");
    }
    assert_eq!(ask(&router, &chat("x"), &[]).await.header("x-mock-worker"), Some(mocks[2].name()));
}

#[tokio::test]
async fn what_can_not_be_served_is_explained_and_what_is_no_request_is_refused() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let shown = explain(&router, r#"{"model":"unknown"}"#, &[]).await;
    assert_eq!(shown["pick"], Value::Null);
    assert!(shown["refusal"].as_str().unwrap().contains("does not exist"), "{shown}");
    assert_eq!(of(&shown, &worker.url())["standing"], "other_model");
    // Without a model, the only one is meant. The body may be as large as that of a request.
    let large = json!({ "prompt": "x".repeat(3 << 20) }).to_string();
    let answer = router.post("/ha/explain?path=/generate", large).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let shown = answer.json();
    assert_eq!((&shown["model"], &shown["path"]), (&json!("m"), &json!("/generate")));
    assert!(shown["prompt"]["blocks"].as_u64().unwrap() > 10_000, "{}", shown["prompt"]);
    for (path, body, code, param) in [
        ("/ha/explain?path=/workers", "{}", "invalid_path", json!("path")),
        ("/ha/explain?path=/nowhere", "{}", "invalid_path", json!("path")),
        ("/ha/explain", "{", "invalid_json", Value::Null),
        ("/ha/explain", r#"{"model":7}"#, "invalid_json", json!("model")),
    ] {
        let refused = router.post(path, body).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, code), "{path} {body}");
        assert_eq!(refused.json()["error"]["param"], param, "{path} {body}");
    }
    assert!(worker.seen().is_empty());
}

#[tokio::test]
async fn who_may_read_the_workers_gets_the_decision_of_a_single_request() {
    let worker = Worker::plain().await;
    let flags = ["--api-key", "client", "--admin-api-key", "1:a:user:reads"];
    let router = Router::before(&[worker.url()], &flags).await;
    let client = ("authorization", "Bearer client");
    let admin = ("x-api-key", "reads");
    let body = br#"{"model":"m"}"#;
    let post =
        async |headers: &[(&str, &str)]| router.send("POST", "/generate", headers, body).await;
    let plain = post(&[client]).await;
    assert_eq!((plain.status, plain.header("x-smg-worker")), (200, None));
    let refused = post(&[client, ("x-smg-debug", "true")]).await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "forbidden"));
    let wrong = post(&[client, admin, ("x-smg-debug", "yes")]).await;
    assert_eq!((wrong.status, wrong.code().as_str()), (400, "invalid_header"));
    assert_eq!(worker.seen().len(), 1, "nothing else was sent");
    let shown = post(&[client, admin, ("x-smg-debug", "true")]).await;
    let id = router.send("GET", "/workers", &[admin], b"").await.json()["workers"][0]["id"].clone();
    assert_eq!((shown.status, shown.header("x-smg-worker")), (200, id.as_str()));
    assert_eq!(shown.header("x-smg-policy"), Some("cache_aware"));
    assert_eq!(shown.header("x-smg-decision"), Some("no_key"));
    let port = worker.url().rsplit(':').next().unwrap().to_owned();
    for (name, value) in &shown.headers {
        assert!(!value.to_str().unwrap().contains(&port), "{name} shows the worker's URL");
    }
    let seen = worker.seen().pop().unwrap();
    assert_eq!(seen.all("x-smg-debug"), Vec::<&str>::new());
    let off = post(&[client, ("x-smg-debug", "false")]).await;
    assert_eq!((off.status, off.header("x-smg-worker")), (200, None));
}
