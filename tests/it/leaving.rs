//! Workers that leave, and what becomes of the requests that they had.

use std::time::Duration;

use serde_json::json;

use crate::support::client;
use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::Worker;

const STREAM: &[u8] = br#"{"model":"m","stream":true,"messages":[]}"#;

#[tokio::test]
async fn what_outlasts_a_deleted_workers_time_is_cut() {
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
    eventually("both are at the worker", || async {
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
    eventually("the log says whose response broke off", || async {
        let log = router.log();
        let told = |line: &str| line.contains("response broke off") && line.contains("cut-1");
        if log.lines().any(told) { Ok(()) } else { Err(log) }
    })
    .await;
}
