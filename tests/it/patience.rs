//! Tests of timeouts: how long a worker may take for its answer, and a client for its request.

use std::time::{Duration, Instant};

use crate::support::client;
use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::{Talk, Worker};

const CHAT: &[u8] = br#"{"model":"m","stream":true,"messages":[]}"#;

/// A worker that sends nothing until the router closes the connection.
async fn silent() -> Worker {
    Worker::start(|mut talk: Talk| async move {
        talk.hung_up().await;
        talk.close();
        talk
    })
    .await
}

#[tokio::test]
async fn the_total_timeout_includes_the_time_before_the_head() {
    let worker = silent().await;
    let router = Router::before(&[worker.url()], &["--request-timeout-secs", "0.5"]).await;
    let asked = Instant::now();
    let answer = router.post("/v1/chat/completions", r#"{"model":"m"}"#).await;
    assert_eq!((answer.status, answer.code().as_str()), (504, "upstream_timeout"));
    let waited = asked.elapsed();
    assert!(waited > Duration::from_millis(450) && waited < Duration::from_secs(5), "{waited:?}");
    assert_eq!(worker.seen().len(), 1, "it may be generating, so no other worker is tried");
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_disconnected() {
    let worker = Worker::start(|mut talk: Talk| async move {
        talk.begin_stream().await;
        let data = "x".repeat(64 << 10);
        while talk.chunk(&data).await.is_ok() {}
        talk.close();
        talk
    })
    .await;
    let flags = ["--body-timeout-secs", "1", "--header-timeout-secs", "0.5"];
    let router = Router::before(&[worker.url()], &flags).await;
    let _unread =
        client::begin(router.address(), "POST", "/v1/chat/completions", &[], CHAT).await.unwrap();
    eventually("its place is released", || async {
        let in_flight = router.get("/workers").await.json()["workers"][0]["in_flight"].as_u64();
        if in_flight == Some(0) { Ok(()) } else { Err(in_flight) }
    })
    .await;
}

#[tokio::test]
async fn a_body_that_never_ends_is_refused_however_steadily_it_arrives() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &["--body-timeout-secs", "0.3"]).await;
    let mut tcp = tokio::net::TcpStream::connect(router.address()).await.unwrap();
    let head = "POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut tcp, head.as_bytes()).await.unwrap();
    let (mut reading, mut writing) = tcp.into_split();
    let dripping = tokio::spawn(async move {
        while tokio::io::AsyncWriteExt::write_all(&mut writing, b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut answer = vec![0; 12];
    let read = tokio::io::AsyncReadExt::read_exact(&mut reading, &mut answer);
    tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .expect("the router waits for ever")
        .unwrap();
    assert_eq!(answer, b"HTTP/1.1 408");
    dripping.abort();
}

#[tokio::test]
async fn no_request_fails_when_a_worker_dies_with_hundreds_in_flight() {
    let (dies, stays) = (silent().await, Worker::plain().await);
    let router = Router::before(&[dies.url(), stays.url()], &["--policy", "round_robin"]).await;
    let address = router.address();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..600 {
        asking.spawn(async move {
            let body = br#"{"model":"m","messages":[]}"#;
            client::try_send(address, "POST", "/v1/chat/completions", &[], body).await
        });
    }
    eventually("half of the requests wait at the worker", || async {
        let waiting = dies.seen().len();
        if waiting == 300 { Ok(()) } else { Err(waiting) }
    })
    .await;
    drop(dies);
    let mut wrong = Vec::new();
    while let Some(answer) = asking.join_next().await {
        match answer.unwrap() {
            Ok(answer) if answer.status == 200 => {}
            Ok(answer) => wrong.push(format!("{} {}", answer.status, answer.text())),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    assert!(wrong.is_empty(), "{} failed, the first one: {}", wrong.len(), wrong[0]);
}
