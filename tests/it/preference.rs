//! Which workers come first, whatever the policy: those of a higher priority, then those near the router. And a sleeping engine
//! gets nothing.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use smg_routing::policy::Kind;

use crate::support::client::{self, Connection};
use crate::support::eventually;
use crate::support::mock::Mock;
use crate::support::router::Router;

/// Registers `mock` with these settings besides its URL, and returns its id.
async fn add(router: &Router, mock: &Mock, settings: &Value) -> String {
    let mut spec = settings.clone();
    spec["url"] = mock.url().into();
    let added = router.post("/workers", spec.to_string()).await;
    assert_eq!(added.status, 202, "{}", added.text());
    added.json()["id"].as_str().unwrap().to_owned()
}

async fn send(router: &Router, method: &str, path: &str, body: &str) {
    let answer = router.send(method, path, &[], body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text());
}

/// The names of the workers that serve some requests, each of another session with another prompt.
async fn served_by(router: &Router) -> BTreeSet<String> {
    let mut connection = Connection::open(router.address()).await.unwrap();
    let mut names = BTreeSet::new();
    for n in 0..16 {
        let words = format!("prompt number {n} ").repeat(20 * (n % 5 + 1));
        let body = json!({
            "model": "m", "max_tokens": 1, "messages": [{ "role": "user", "content": words }],
        });
        let session = format!("s{n}");
        let headers = [("x-session-id", session.as_str())];
        let answer =
            connection.post("/v1/chat/completions", &headers, body.to_string()).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        names.insert(answer.header("x-mock-worker").unwrap().to_owned());
    }
    names
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Makes `kind` the policy of the model.
async fn set_policy(router: &Router, kind: Kind) {
    send(router, "PUT", "/ha/policies/m", &json!({ "policy": kind.name() }).to_string()).await;
}

#[tokio::test]
async fn a_lower_priority_serves_only_while_all_higher_ones_are_out_under_every_policy() {
    let mocks = Mock::several(3).await;
    let router = Router::start(&[]).await;
    let first = add(&router, &mocks[0], &json!({ "priority": 5 })).await;
    let second = add(&router, &mocks[1], &json!({ "priority": 5 })).await;
    add(&router, &mocks[2], &json!({ "priority": -1 })).await;
    router.knows_ready(3).await;
    for kind in Kind::ALL {
        set_policy(&router, kind).await;
        let served = served_by(&router).await;
        assert!(served.is_subset(&names(&["w0", "w1"])), "{kind}: {served:?}");
        send(&router, "POST", &format!("/workers/{first}/drain"), "").await;
        assert_eq!(served_by(&router).await, names(&["w1"]), "{kind}");
        send(&router, "POST", &format!("/workers/{second}/drain"), "").await;
        assert_eq!(served_by(&router).await, names(&["w2"]), "{kind}");
        send(&router, "DELETE", &format!("/workers/{second}/drain"), "").await;
        assert_eq!(served_by(&router).await, names(&["w1"]), "{kind}");
        send(&router, "DELETE", &format!("/workers/{first}/drain"), "").await;
    }
}

/// Opens `n` streams that stay at their workers until they are dropped.
async fn hold(router: &Router, n: usize) -> Vec<client::Stream> {
    let headers = [("x-mock", r#"{"stall_after_chunks":1}"#)];
    let body = br#"{"model":"m","stream":true,"messages":[]}"#;
    let mut streams = Vec::new();
    for _ in 0..n {
        let path = "/v1/chat/completions";
        let stream = client::begin(router.address(), "POST", path, &headers, body).await.unwrap();
        assert_eq!(stream.status, 200);
        streams.push(stream);
    }
    streams
}

#[tokio::test]
async fn a_lower_priority_serves_what_full_workers_of_a_higher_one_can_not_take() {
    let mocks = Mock::several(2).await;
    let router = Router::start(&["--policy", "round_robin"]).await;
    let full = json!({ "priority": 1, "max_concurrent": 2 });
    add(&router, &mocks[0], &full).await;
    add(&router, &mocks[1], &json!({})).await;
    router.knows_ready(2).await;
    let held = hold(&router, 2).await;
    assert_eq!((mocks[0].stats().in_flight, mocks[1].stats().in_flight), (2, 0));
    assert_eq!(served_by(&router).await, names(&["w1"]));
    drop(held);
    eventually("the higher priority serves again", || async {
        let served = served_by(&router).await;
        if served == names(&["w0"]) { Ok(()) } else { Err(format!("{served:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_dies_leaves_its_requests_to_a_lower_priority() {
    let mut mocks = Mock::several(2).await;
    let router = Router::start(&["--policy", "random"]).await;
    add(&router, &mocks[0], &json!({ "priority": 1 })).await;
    add(&router, &mocks[1], &json!({})).await;
    router.knows_ready(2).await;
    assert_eq!(served_by(&router).await, names(&["w0"]));
    mocks[0].kill().await;
    // Each request is retried, the first too.
    assert_eq!(served_by(&router).await, names(&["w1"]));
    mocks[0].restart().await;
    eventually("the higher priority serves again", || async {
        let served = served_by(&router).await;
        if served == names(&["w0"]) { Ok(()) } else { Err(format!("{served:?}")) }
    })
    .await;
}

#[tokio::test]
async fn the_own_zone_then_the_own_region_come_first_under_every_policy() {
    let mocks = Mock::several(4).await;
    let router = Router::start(&["--node-zone", "a", "--node-region", "eu"]).await;
    let mut ids = Vec::new();
    for (mock, place) in mocks.iter().zip([
        json!({ "zone": "a", "region": "eu" }),
        json!({ "zone": "b", "region": "eu" }),
        json!({ "zone": "a", "region": "us" }),
        json!({}),
    ]) {
        ids.push(add(&router, mock, &place).await);
    }
    router.knows_ready(4).await;
    for kind in Kind::ALL {
        set_policy(&router, kind).await;
        assert_eq!(served_by(&router).await, names(&["w0"]), "{kind}");
        send(&router, "POST", &format!("/workers/{}/drain", ids[0]), "").await;
        assert_eq!(served_by(&router).await, names(&["w1"]), "{kind}");
        send(&router, "POST", &format!("/workers/{}/drain", ids[1]), "").await;
        let far = served_by(&router).await;
        assert!(far.is_subset(&names(&["w2", "w3"])), "{kind}: {far:?}");
        for id in &ids[..2] {
            send(&router, "DELETE", &format!("/workers/{id}/drain"), "").await;
        }
    }
}

#[tokio::test]
async fn requests_leave_a_zone_that_is_busier_than_the_balance_bound() {
    let mocks = Mock::several(2).await;
    let flags = ["--node-zone", "a", "--policy", "least_load", "--balance-abs-threshold", "2"];
    let router = Router::start(&flags).await;
    add(&router, &mocks[0], &json!({ "zone": "a" })).await;
    add(&router, &mocks[1], &json!({ "zone": "b" })).await;
    router.knows_ready(2).await;
    // With 0, 1 and 2 in flight the near worker is within the bound, with 3 it is not.
    let held = hold(&router, 3).await;
    assert_eq!((mocks[0].stats().in_flight, mocks[1].stats().in_flight), (3, 0));
    assert_eq!(served_by(&router).await, names(&["w1"]));
    drop(held);
    eventually("the own zone serves again", || async {
        let served = served_by(&router).await;
        if served == names(&["w0"]) { Ok(()) } else { Err(format!("{served:?}")) }
    })
    .await;
}

/// Waits until the worker is in `state`, as `GET /workers` shows it.
async fn is_in(router: &Router, id: &str, state: &str) {
    eventually(&format!("the worker is {state}"), || async {
        let shown = router.get(&format!("/workers/{id}")).await.json();
        if shown["state"] == state { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn a_sleeping_engine_gets_no_requests() {
    let mocks = Mock::several(2).await;
    let router = Router::start(&["--policy", "round_robin"]).await;
    let often = json!({ "health": { "interval_secs": 0.1 } });
    let first = add(&router, &mocks[0], &often).await;
    add(&router, &mocks[1], &json!({})).await;
    router.knows_ready(2).await;
    mocks[0].sleep(true);
    is_in(&router, &first, "sleeping").await;
    router.knows_ready(1).await;
    assert_eq!(served_by(&router).await, names(&["w1"]));
    assert_eq!(router.metric("smg_workers{state=\"sleeping\"}").await, 1.0);
    mocks[0].sleep(false);
    is_in(&router, &first, "ready").await;
    assert_eq!(served_by(&router).await, names(&["w0", "w1"]));
}

#[tokio::test]
async fn engines_that_the_router_puts_to_sleep_are_seen_at_once() {
    let mock = Mock::start("w0").await;
    let router = Router::start(&["--health-check-interval-secs", "3600"]).await;
    let id = add(&router, &mock, &json!({})).await;
    router.knows_ready(1).await;
    send(&router, "POST", "/sleep?level=1", "").await;
    is_in(&router, &id, "sleeping").await;
    send(&router, "POST", "/wake_up", "").await;
    is_in(&router, &id, "ready").await;
}
