//! What clients learn of models: the workers' own objects, adapters that an engine loads while it runs, and models whose last
//! worker has gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::mesh::{mesh_address, router as member, sees};
use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::Worker;

const PROMPT: &str = r#"{"model":"M","prompt":"x"}"#;

async fn ask(router: &Router, model: &str) -> (u16, Value) {
    let answer = router.post("/v1/completions", PROMPT.replace('M', model)).await;
    (answer.status, answer.json()["error"]["code"].clone())
}

/// Waits until the models of `router` are as `is` wants them.
async fn shows(router: &Router, is: impl Fn(&Value) -> bool) -> Value {
    eventually("/v1/models shows the workers' objects", || async {
        let models = router.get("/v1/models").await.json()["data"].clone();
        if is(&models) { Ok(models) } else { Err(models.to_string()) }
    })
    .await
}

#[tokio::test]
async fn the_objects_of_workers_are_passed_on_merged() {
    let (a, b) = (Worker::plain().await, Worker::plain().await);
    let object = |created: u64, most: u64, url: String| {
        json!([{ "id": "org/m", "object": "model", "created": created, "owned_by": "vllm", "root": "/models/m",
            "parent": null, "max_model_len": most, "permission": [{ "id": "p", "allow_view": true }], "endpoint": url }])
    };
    a.list(object(1_700_000_009, 8192, a.url()));
    b.list(object(1_700_000_005, 4096, format!("{}/v1", b.url())));
    let router = Router::before(&[a.url(), b.url()], &[]).await;
    let models = shows(&router, |models| models[0]["max_model_len"] == 4096).await;
    let expected = json!({ "id": "org/m", "object": "model", "created": 1_700_000_005, "owned_by": "vllm",
        "root": "/models/m", "parent": null, "max_model_len": 4096, "permission": [{ "id": "p", "allow_view": true }] });
    assert_eq!(models, json!([expected]));
    let one = router.get("/v1/models/org/m").await;
    assert_eq!((one.status, one.json()), (200, expected));
}

#[tokio::test]
async fn an_adapter_that_was_loaded_just_now_is_served() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let before = worker.reads();
    worker.list(json!([{ "id": "m" }, { "id": "lora", "parent": "m" }]));
    let router = Arc::new(router);
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let router = Arc::clone(&router);
        asked.spawn(async move { ask(&router, "lora").await });
    }
    for (status, error) in asked.join_all().await {
        assert_eq!(status, 200, "{error}");
    }
    assert_eq!(worker.reads() - before, 1, "all requests share one read");
    assert_eq!(router.get("/v1/models/lora").await.json()["parent"], "m");
}

#[tokio::test]
async fn an_adapter_can_be_retrieved_as_soon_as_it_is_loaded() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    worker.list(json!([{ "id": "m" }, { "id": "lora", "parent": "m" }]));
    assert_eq!(router.get("/v1/models/lora").await.json()["parent"], "m");
}

#[tokio::test]
async fn wrong_names_cost_the_workers_few_reads() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let (before, began) = (worker.reads(), Instant::now());
    for number in 0..100 {
        let (status, code) = ask(&router, &format!("wrong{number}")).await;
        assert_eq!((status, code.as_str()), (404, Some("model_not_found")));
    }
    let most = 1 + began.elapsed().as_secs() / 2;
    let reads = (worker.reads() - before) as u64;
    assert!((1..=most).contains(&reads), "{reads} reads in {:?}", began.elapsed());
}

/// A worker whose list of models never comes delays a request for an unknown model, but not for long.
#[tokio::test]
async fn the_wait_for_a_slow_worker_is_bounded() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    // Another worker is as ready, and does not answer from now on.
    let stuck = Worker::plain().await;
    let spec = json!({ "url": stuck.url() });
    assert_eq!(router.post("/workers", spec.to_string()).await.status, 202);
    router.knows_ready(2).await;
    stuck.stall();
    let began = Instant::now();
    assert_eq!(ask(&router, "wrong").await.0, 404);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

async fn remove(router: &Router, worker: &Worker) {
    let workers = router.get("/workers").await.json();
    let all = workers["workers"].as_array().unwrap().clone();
    let found = all.iter().find(|shown| shown["url"] == worker.url()).unwrap();
    let path = format!("/workers/{}", found["id"].as_str().unwrap());
    assert_eq!(router.send("DELETE", &path, &[], b"").await.status, 202);
}

#[tokio::test]
async fn a_model_whose_last_worker_left_is_unavailable_and_not_unknown() {
    let (worker, other) =
        (Worker::plain().await, Worker::serving("other", |talk| async { talk }).await);
    let router = Router::before(&[worker.url(), other.url()], &["--model-memory-secs", "4"]).await;
    let began = Instant::now();
    remove(&router, &worker).await;
    let answer = router.post("/v1/completions", PROMPT.replace('M', "m")).await;
    let error = answer.json()["error"].clone();
    assert_eq!(
        (answer.status, error["code"].as_str()),
        (503, Some("model_has_no_worker")),
        "{error}"
    );
    assert!(answer.header("retry-after").is_some());
    assert!(error["message"].as_str().unwrap().contains("model m "), "{error}");
    let one = router.get("/v1/models/m").await;
    assert_eq!((one.status, one.header("retry-after").is_some()), (503, true));
    assert_eq!(ask(&router, "never").await.0, 404);
    eventually("the model is forgotten", || async {
        let (status, code) = ask(&router, "m").await;
        if status == 404 { Ok(()) } else { Err(format!("{status} {code}")) }
    })
    .await;
    assert!(began.elapsed() >= Duration::from_secs(4), "after {:?}", began.elapsed());
}

#[tokio::test]
async fn a_model_is_not_remembered_where_the_memory_is_off() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &["--model-memory-secs", "0"]).await;
    remove(&router, &worker).await;
    assert_eq!(ask(&router, "m").await.0, 404);
}

#[tokio::test]
async fn a_request_waits_for_a_new_worker_of_a_departed_model() {
    let (old, new) = (Worker::plain().await, Worker::plain().await);
    let router = Router::before(&[old.url()], &["--no-worker-wait-secs", "30"]).await;
    remove(&router, &old).await;
    let spec = json!({ "url": new.url() }).to_string();
    let register = async {
        // The request is at the router before the worker is.
        eventually("a request waits", || async {
            let waiting = router.metric("smg_admission_in_use").await;
            if waiting >= 1.0 { Ok(()) } else { Err(waiting.to_string()) }
        })
        .await;
        router.post("/workers", spec).await
    };
    let (asked, registered) = tokio::join!(ask(&router, "m"), register);
    assert_eq!((asked.0, registered.status), (200, 202), "{}", asked.1);
}

#[tokio::test]
async fn routers_of_a_cluster_remember_a_model_that_they_never_saw() {
    let worker = Worker::plain().await;
    let first = member("node1", &[], &["--worker-urls", &worker.url()]).await;
    first.knows_ready(1).await;
    remove(&first, &worker).await;
    assert_eq!(ask(&first, "m").await.0, 503);
    let peer = [mesh_address(&first)];
    let second = member("node2", &peer, &[]).await;
    sees(&second, &[("node1", "ALIVE"), ("node2", "ALIVE")]).await;
    let none = member("node3", &peer, &["--model-memory-secs", "0"]).await;
    eventually("the new router knows the model", || async {
        let (status, code) = ask(&second, "m").await;
        if status == 503 && code == "model_has_no_worker" {
            Ok(())
        } else {
            Err(format!("{status} {code}"))
        }
    })
    .await;
    sees(&none, &[("node1", "ALIVE"), ("node2", "ALIVE"), ("node3", "ALIVE")]).await;
    assert_eq!(ask(&none, "m").await.0, 404);
    // A worker serves it again, and then unloads it: all routers forget it.
    let back = Worker::plain().await;
    assert_eq!(second.post("/workers", json!({ "url": back.url() }).to_string()).await.status, 202);
    for router in [&first, &second] {
        eventually("the model is served again", || async {
            let (status, code) = ask(router, "m").await;
            if status == 200 { Ok(()) } else { Err(format!("{status} {code}")) }
        })
        .await;
    }
    back.list(json!([{ "id": "other" }]));
    for router in [&first, &second] {
        eventually("the model is forgotten", || async {
            // A wrong name makes the router read the list again.
            let (_, _) = ask(router, "wrong").await;
            let (status, code) = ask(router, "m").await;
            if status == 404 { Ok(()) } else { Err(format!("{status} {code}")) }
        })
        .await;
    }
}
