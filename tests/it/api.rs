//! Tests of the router's own API: workers, models, loads, caches, CORS, and its OpenAPI description.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::Worker;

/// The methods and paths of the description, found by their indentation.
fn described() -> BTreeSet<(String, String)> {
    let text = include_str!("../../src/http/openapi.yaml");
    let mut found = BTreeSet::new();
    let mut path = String::new();
    let paths = text.lines().skip_while(|line| *line != "paths:").skip(1);
    for line in paths.take_while(|line| line.starts_with(' ')) {
        let indent = line.len() - line.trim_start().len();
        match (indent, line.trim_start().trim_end_matches(':')) {
            (2, key) => key.clone_into(&mut path),
            (4, method @ ("get" | "post" | "put" | "patch" | "delete")) => {
                assert!(
                    found.insert((method.to_uppercase(), path.clone())),
                    "{method} {path} twice"
                );
            }
            (_, _) => {}
        }
    }
    found
}

#[tokio::test]
async fn the_description_has_exactly_the_routes() {
    let routes: BTreeSet<_> = smg::http::ROUTES
        .iter()
        .map(|route| (route.method.to_owned(), route.path.to_owned()))
        .collect();
    assert_eq!(described(), routes);
    let router = Router::start(&[]).await;
    let answer = router.get("/openapi.yaml").await;
    assert_eq!(answer.header("content-type"), Some("application/yaml"));
    assert_eq!(answer.text(), include_str!("../../src/http/openapi.yaml"));
}

#[tokio::test]
async fn a_worker_is_added_changed_and_deleted_through_the_api() {
    let worker = Worker::plain().await;
    let router = Router::start(&[]).await;
    let spec = json!({ "url": worker.url(), "api_key": "secret-key", "labels": { "a": "1", "b": "2" }, "priority": 3 });
    let added = router.post("/workers", spec.to_string()).await;
    assert_eq!(added.status, 202, "{}", added.text());
    let id = added.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/workers/{id}");
    assert_eq!(added.header("location"), Some(path.as_str()));
    let again = router.post("/workers", spec.to_string()).await;
    assert_eq!((again.status, again.code().as_str()), (409, "worker_already_exists"));
    router.knows_ready(1).await;
    let shown = router.get(&path).await;
    assert_eq!(shown.json()["state"], "ready");
    assert_eq!(shown.json()["models"], json!(["m"]), "its models were discovered");
    assert_eq!(shown.json()["has_api_key"], true);

    let patch = json!({ "labels": { "a": null, "c": "3" }, "weight": 2 });
    let patched = router.send("PATCH", &path, &[], patch.to_string().as_bytes()).await;
    assert_eq!(patched.status, 200, "{}", patched.text());
    let spec = &patched.json()["spec"];
    assert_eq!((&spec["labels"], &spec["priority"]), (&json!({ "b": "2", "c": "3" }), &json!(3)));
    assert_eq!(patched.json()["has_api_key"], true, "a key that is not mentioned stays");
    router.post("/generate", r#"{"model":"m"}"#).await;
    assert_eq!(worker.seen().pop().unwrap().all("authorization"), ["Bearer secret-key"]);
    for answer in [router.get("/workers").await, shown, patched, added] {
        assert!(!answer.text().contains("secret-key"), "{}", answer.text());
    }
    assert!(!router.log().contains("secret-key"));

    let replaced =
        router.send("PUT", &path, &[], json!({ "url": worker.url() }).to_string().as_bytes()).await;
    assert_eq!(
        (&replaced.json()["spec"]["labels"], &replaced.json()["has_api_key"]),
        (&json!({}), &json!(false))
    );
    let moved = router.send("PUT", &path, &[], br#"{"url":"http://127.0.0.1:1"}"#).await;
    assert_eq!((moved.status, moved.json()["error"]["param"].as_str()), (400, Some("url")));

    assert_eq!(router.post(&format!("{path}/drain"), "").await.json()["state"], "draining");
    assert_eq!(router.post("/generate", r#"{"model":"m"}"#).await.code(), "no_available_workers");
    assert_eq!(
        router.send("DELETE", &format!("{path}/drain"), &[], b"").await.json()["state"],
        "ready"
    );
    let verdict = json!({ "healthy": false, "reason": "maintenance", "ttl_secs": 60 });
    let overridden = router.post(&format!("{path}/override"), verdict.to_string()).await;
    assert_eq!(overridden.json()["override"]["reason"], "maintenance");
    let refused = router.post("/generate", r#"{"model":"m"}"#).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    router.send("DELETE", &format!("{path}/override"), &[], b"").await;
    assert_eq!(router.post("/generate", r#"{"model":"m"}"#).await.status, 200);

    assert_eq!(router.get("/workers?model=m").await.json()["total"], 1);
    assert_eq!(router.get("/workers?model=other").await.json()["total"], 0);
    assert_eq!(router.send("DELETE", &path, &[], b"").await.status, 202);
    eventually("the worker is gone", || async {
        let answer = router.get(&path).await;
        if answer.status == 404 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    assert_eq!(router.get(&path).await.code(), "worker_not_found");
}

#[tokio::test]
async fn a_registration_can_be_deleted_while_it_is_pending() {
    let router = Router::start(&[]).await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = json!({ "url": format!("http://{}", silent.local_addr().unwrap()) });
    let added = router.post("/workers", spec.to_string()).await.json();
    assert_eq!(added["state"], "pending");
    let path = added["location"].as_str().unwrap().to_owned();
    assert_eq!(router.get(&path).await.json()["state"], "pending");
    assert_eq!(router.send("DELETE", &path, &[], b"").await.status, 202);
    eventually("the worker is gone", || async {
        let answer = router.get(&path).await;
        if answer.status == 404 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

#[tokio::test]
async fn an_invalid_spec_is_refused_with_the_reason() {
    let router = Router::start(&[]).await;
    for (body, reason) in [
        ("{", "EOF"),
        ("{}", "url"),
        (r#"{"url":"nonsense"}"#, "nonsense"),
        (r#"{"url":"http://a","wieght":1}"#, "wieght"),
        (r#"{"url":"http://a","health":{"endpoint":"x"}}"#, "endpoint"),
        (r#"{"url":"http://a","health":{"interval_secs":0}}"#, "interval_secs 0"),
        (r#"{"url":"http://a","labels":{"policy":"best"}}"#, "best"),
        (r#"{"url":"http://a","weight":1001}"#, "weight 1001 is not between 1 and 1000"),
        (r#"{"url":"http://a","priority":1000001}"#, "priority 1000001 is not between"),
        (r#"{"url":"http://a","max_concurrent":1000001}"#, "max_concurrent 1000001"),
        (r#"{"url":"http://a","models":[""]}"#, "models \\\"\\\" is not a model's name"),
        (r#"{"url":"http://a","health":{"timeout_secs":3601}}"#, "health.timeout_secs 3601"),
    ] {
        let answer = router.post("/workers", body).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        assert!(answer.text().contains(reason), "{body}: {}", answer.text());
    }
    for path in ["/workers/nonsense", "/workers/w-0000000000000000"] {
        let answer = router.get(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "worker_not_found"));
    }
    let answer = router.send("DELETE", "/v1/models", &[], b"").await;
    assert_eq!((answer.status, answer.code().as_str()), (405, "method_not_allowed"));
    assert_eq!(router.get("/nowhere").await.code(), "route_not_found");
}

/// The bounds of a schema's property: of its length or of its value.
fn bounds(property: &serde_json::Value) -> [&serde_json::Value; 2] {
    let [by_length, by_size] = [["minLength", "maxLength"], ["minimum", "maximum"]];
    let names = if property.get("maxLength").is_some() { by_length } else { by_size };
    names.map(|name| &property[name])
}

#[test]
fn the_description_has_the_bounds_that_are_enforced() {
    use smg_types::bounds::*;
    let text = include_str!("../../src/http/openapi.yaml");
    let description: serde_json::Value = serde_saphyr::from_str(text).unwrap();
    let schemas = &description["components"]["schemas"];
    let spec = &schemas["WorkerSpec"]["properties"];
    let health = &spec["health"]["properties"];
    let verdict = &schemas["Override"]["properties"];
    let weights = &schemas["Policy"]["properties"]["weights"]["additionalProperties"];
    for (name, property, low, high) in [
        (
            "models",
            &spec["models"]["items"],
            json!(MODEL_NAME_BYTES.start()),
            json!(MODEL_NAME_BYTES.end()),
        ),
        (
            "label",
            &spec["labels"]["propertyNames"],
            json!(LABEL_NAME_BYTES.start()),
            json!(LABEL_NAME_BYTES.end()),
        ),
        ("zone", &spec["zone"], json!(PLACE_BYTES.start()), json!(PLACE_BYTES.end())),
        ("priority", &spec["priority"], json!(PRIORITY.start()), json!(PRIORITY.end())),
        ("weight", &spec["weight"], json!(WEIGHT.start()), json!(WEIGHT.end())),
        ("weights", weights, json!(WEIGHT.start()), json!(WEIGHT.end())),
        (
            "max_concurrent",
            &spec["max_concurrent"],
            json!(MAX_CONCURRENT.start()),
            json!(MAX_CONCURRENT.end()),
        ),
        (
            "endpoint",
            &health["endpoint"],
            json!(PROBE_PATH_BYTES.start()),
            json!(PROBE_PATH_BYTES.end()),
        ),
        (
            "failures",
            &health["failure_threshold"],
            json!(PROBE_THRESHOLD.start()),
            json!(PROBE_THRESHOLD.end()),
        ),
        (
            "reason",
            &verdict["reason"],
            json!(OVERRIDE_REASON_BYTES.start()),
            json!(OVERRIDE_REASON_BYTES.end()),
        ),
    ] {
        assert_eq!(bounds(property), [&low, &high], "{name}");
    }
    for (name, property, bound) in [
        ("interval_secs", &health["interval_secs"], PROBE_INTERVAL_SECONDS),
        ("timeout_secs", &health["timeout_secs"], PROBE_TIMEOUT_SECONDS),
        ("ttl_secs", &verdict["ttl_secs"], OVERRIDE_SECONDS),
    ] {
        let numbers = bounds(property).map(|number| number.as_f64().unwrap());
        assert_eq!(numbers, [*bound.start(), *bound.end()], "{name}");
    }
    assert_eq!(spec["labels"]["maxProperties"], MAX_ENTRIES);
}

#[tokio::test]
async fn the_reason_of_an_override_has_the_length_limit_of_the_cluster() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let id = router.get("/workers").await.json()["workers"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/workers/{id}/override");
    let with = |bytes: usize| json!({ "healthy": true, "reason": "x".repeat(bytes) }).to_string();
    assert_eq!(router.post(&path, with(1024)).await.status, 200);
    let refused = router.post(&path, with(1025)).await;
    assert_eq!((refused.status, refused.json()["error"]["param"].as_str()), (400, Some("reason")));
    assert!(refused.text().contains("1 to 1024 bytes"), "{}", refused.text());
}

#[tokio::test]
async fn models_are_listed_once() {
    let (one, two) = (Worker::plain().await, Worker::plain().await);
    let router = Router::before(&[one.url(), two.url()], &[]).await;
    let expected = json!({ "object": "list", "data": [{ "id": "m", "object": "model", "created": 0, "owned_by": "smg" }] });
    assert_eq!(router.get("/v1/models").await.json(), expected);
}

/// A worker that flushes its cache and reports a load, or fails at both with `status`.
async fn flushing(status: u16) -> Worker {
    Worker::start(move |mut talk| async move {
        talk.answer(status, "content-type: application/json\r\n", b"{\"load\":5}").await;
        talk
    })
    .await
}

#[tokio::test]
async fn caches_are_flushed_everywhere_or_the_failures_are_listed() {
    let (good, bad) = (flushing(200).await, flushing(500).await);
    let mut router = Router::before(&[good.url(), bad.url()], &[]).await;
    let answer = router.post("/flush_cache", "").await;
    assert_eq!(answer.status, 206, "{}", answer.text());
    assert_eq!(answer.json()["flushed"].as_array().unwrap().len(), 1);
    assert_eq!(answer.json()["failed"][0]["error"], "status 500");
    let loads = router.get("/get_loads").await.json();
    let loads = loads["loads"].as_array().unwrap();
    assert_eq!(loads.len(), 2);
    assert!(loads.iter().any(|load| load["reported"] == json!({ "load": 5 })));
    assert!(loads.iter().any(|load| load["reported"].is_null()));
    router = Router::before(&[good.url()], &[]).await;
    assert_eq!(router.post("/flush_cache", "").await.status, 200);
    router = Router::before(&[bad.url()], &[]).await;
    assert_eq!(router.post("/flush_cache", "").await.status, 502);
}

#[tokio::test]
async fn browsers_may_call_from_allowed_origins_only() {
    let router = Router::start(&["--cors-allowed-origins", "https://a.example"]).await;
    let ask =
        [("origin", "https://a.example"), ("access-control-request-headers", "authorization")];
    let allowed = router.send("OPTIONS", "/v1/chat/completions", &ask, b"").await;
    assert_eq!(allowed.status, 204);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://a.example"));
    assert_eq!(allowed.header("access-control-allow-headers"), Some("authorization"));
    let other = router
        .send("OPTIONS", "/v1/chat/completions", &[("origin", "https://b.example")], b"")
        .await;
    assert_eq!((other.status, other.header("access-control-allow-origin")), (405, None));
    let plain = router.send("GET", "/v1/models", &ask[..1], b"").await;
    assert_eq!(plain.header("access-control-allow-origin"), Some("https://a.example"));
}

#[tokio::test]
async fn a_router_can_stand_behind_a_router() {
    let worker = Worker::plain().await;
    let inner = Router::before(&[worker.url()], &[]).await;
    let outer = Router::before(&[inner.url("")], &[]).await;
    let answer =
        outer.send("POST", "/generate", &[("x-request-id", "one")], br#"{"model":"m"}"#).await;
    assert_eq!((answer.status, answer.header("x-request-id")), (200, Some("one")));
    assert_eq!(worker.seen()[0].all("x-request-id"), ["one"]);
}

#[tokio::test]
async fn a_worker_of_the_api_cannot_name_the_routers_files_and_variables_as_its_key() {
    let worker = Worker::plain().await;
    let open = Router::start(&[]).await;
    for reference in [json!({"api_key_env": "PATH"}), json!({"api_key_file": "/etc/hostname"})] {
        let mut spec = json!({"url": worker.url()});
        spec.as_object_mut().unwrap().extend(reference.as_object().unwrap().clone());
        assert_eq!(open.post("/workers", spec.to_string()).await.status, 403, "{spec}");
    }
    let keyed = Router::start(&["--admin-api-key", "root"]).await;
    let headers = [("authorization", "Bearer root"), ("content-type", "application/json")];
    let spec = json!({"url": worker.url(), "api_key_file": "/dev/zero"}).to_string();
    let answer = keyed.send("POST", "/workers", &headers, spec.as_bytes()).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (400, "invalid_worker"),
        "{}",
        answer.text()
    );
}
