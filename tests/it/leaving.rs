//! Tests of workers that are removed, and of the requests that were in flight at them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::Semaphore;

use crate::support::client;
use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::Worker;

const STREAM: &[u8] = br#"{"model":"m","stream":true,"messages":[]}"#;

#[tokio::test]
async fn requests_that_exceed_the_drain_time_of_a_deleted_worker_are_aborted() {
    let worker = Worker::start(|mut talk| async move {
        if talk.seen.path == "/v1/chat/completions" {
            talk.begin_stream().await;
            talk.chunk("data: 1\n\n").await.unwrap();
        }
        talk.hung_up().await;
        talk.close();
        talk
    })
    .await;
    let router = Router::before(&[worker.url()], &["--drain-timeout-secs", "1"]).await;
    let address = router.address();
    let named = [("x-request-id", "cut-1")];
    let mut stream =
        client::begin(address, "POST", "/v1/chat/completions", &named, STREAM).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "data: 1\n\n");
    let silent = tokio::spawn(client::send(address, "POST", "/generate", &[], br#"{"model":"m"}"#));
    eventually("both requests are at the worker", || async {
        if worker.seen().len() == 2 { Ok(()) } else { Err(worker.seen().len()) }
    })
    .await;
    let all = router.get("/workers").await.json();
    let path = format!("/workers/{}", all["workers"][0]["id"].as_str().unwrap());
    assert_eq!(router.send("DELETE", &path, &[], b"").await.status, 202);
    assert_eq!(router.get(&path).await.json()["in_flight"], json!(2), "they have their time");
    let rest = tokio::time::timeout(Duration::from_secs(10), stream.rest()).await;
    let rest = rest.expect("the stream goes on").unwrap();
    assert!(String::from_utf8_lossy(&rest).contains("upstream_stream_broken"), "{rest:?}");
    let silent = tokio::time::timeout(Duration::from_secs(10), silent).await;
    assert_eq!(silent.expect("the request goes on").unwrap().status, 502);
    assert_eq!(router.get(&path).await.status, 404);
    eventually("the log names the request whose response broke off", || async {
        let log = router.log();
        let names_it = |line: &str| line.contains("response broke off") && line.contains("cut-1");
        if log.lines().any(names_it) { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test]
async fn the_answer_of_a_failed_attempt_is_kept_when_no_worker_is_left_to_retry() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let worker = Worker::start(move |mut talk| {
        let opened = Arc::clone(&opened);
        async move {
            opened.acquire().await.unwrap().forget();
            talk.answer(500, "x-own: 1\r\n", b"mine").await;
            talk
        }
    })
    .await;
    let router = Router::before(&[worker.url()], &[]).await;
    let asked =
        tokio::spawn(client::send(router.address(), "POST", "/generate", &[], br#"{"model":"m"}"#));
    eventually("the worker has the request", || async {
        if worker.seen().len() == 1 { Ok(()) } else { Err(()) }
    })
    .await;
    let all = router.get("/workers").await.json();
    let path = format!("/workers/{}/drain", all["workers"][0]["id"].as_str().unwrap());
    assert_eq!(router.send("POST", &path, &[], b"").await.status, 200);
    gate.add_permits(10);
    let answer = asked.await.unwrap();
    assert_eq!((answer.status, answer.header("x-own")), (500, Some("1")), "{}", answer.text());
    assert_eq!(answer.body, "mine");
    assert_eq!(worker.seen().len(), 1);
    eventually("its slot is released", || async {
        let all = router.get("/workers").await.json();
        if all["workers"][0]["in_flight"] == json!(0) { Ok(()) } else { Err(all) }
    })
    .await;
}

#[tokio::test]
async fn a_model_that_no_worker_serves_is_unknown_even_if_one_worker_does_not_list_its_models() {
    let plain = Worker::plain().await;
    let router = Router::before(&[plain.url()], &[]).await;
    // No process listens at this address.
    let dead = json!({ "url": "http://127.0.0.1:9" }).to_string();
    assert_eq!(router.post("/workers", dead).await.status, 202);
    let ask = async || router.post("/generate", r#"{"model":"typo"}"#).await;
    let first = ask().await;
    assert!(first.status == 503 || first.status == 404, "{}", first.text());
    eventually("the router no longer waits for that worker's models", || async {
        let answer = ask().await;
        if answer.status == 404 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    assert_eq!(router.post("/generate", r#"{"model":"m"}"#).await.status, 200);
}
