//! Tests of streams that are silent for long: comments until the worker's first byte, and errors as events after them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::support::client;
use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::{Talk, Worker};

const CHAT: &[u8] = br#"{"model":"m","stream":true,"messages":[]}"#;
const PATHS: [&str; 4] =
    ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"];
const COMMENT: &str = ": heartbeat\n\n";

/// A worker that answers with `then` when `gate` has a permit.
async fn late<R>(gate: &Arc<Semaphore>, then: fn(Talk) -> R) -> Worker
where
    R: Future<Output = Talk> + Send + 'static,
{
    let gate = Arc::clone(gate);
    Worker::start(move |talk: Talk| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            then(talk).await
        }
    })
    .await
}

async fn streams(mut talk: Talk) -> Talk {
    talk.begin_stream().await;
    talk.chunk("data: 1\n\n").await.unwrap();
    talk.chunk("data: [DONE]\n\n").await.unwrap();
    talk.end_stream().await;
    talk
}

async fn before(worker: &Worker, more: &[&str]) -> Router {
    let mut flags = vec!["--stream-heartbeat-secs", "0.1"];
    flags.extend(more);
    Router::before(&[worker.url()], &flags).await
}

/// Reads comments until `count` have arrived. Nothing else may arrive.
async fn comments(stream: &mut client::Stream, count: usize) {
    let mut text = String::new();
    while text.len() < count * COMMENT.len() {
        let piece = stream.next().await.expect("the stream ended").unwrap();
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    assert_eq!(text.replace(COMMENT, ""), "");
}

/// The rest of the stream without comments.
async fn rest(stream: client::Stream) -> String {
    let rest = stream.rest().await.unwrap();
    String::from_utf8(rest.to_vec()).unwrap().replace(COMMENT, "")
}

#[tokio::test]
async fn a_silent_stream_has_comments_until_the_first_byte() {
    let gate = Arc::new(Semaphore::new(0));
    let worker = late(&gate, streams).await;
    let router = before(&worker, &[]).await;
    for path in PATHS {
        let headers = [("accept-encoding", "gzip")];
        let mut stream =
            client::begin(router.address(), "POST", path, &headers, CHAT).await.unwrap();
        assert_eq!(
            (stream.status, &stream.headers["content-type"]),
            (200, &"text/event-stream".parse().unwrap())
        );
        assert!(stream.headers.contains_key("x-request-id"));
        comments(&mut stream, 3).await;
        gate.add_permits(1);
        assert_eq!(rest(stream).await, "data: 1\n\ndata: [DONE]\n\n", "{path}");
        let seen = worker.seen().pop().unwrap();
        assert!(
            seen.all("accept-encoding").is_empty(),
            "a compressed stream can't contain comments"
        );
    }
    assert_eq!(router.get("/workers").await.json()["workers"][0]["in_flight"], 0);
}

#[tokio::test]
async fn a_worker_that_sends_its_head_at_once_and_then_nothing_is_covered_too() {
    let gate = Arc::new(Semaphore::new(0));
    let waits = Arc::clone(&gate);
    let worker = Worker::start(move |mut talk: Talk| {
        let gate = Arc::clone(&waits);
        async move {
            talk.begin_stream().await;
            gate.acquire().await.unwrap().forget();
            talk.chunk("data: 1\n\n").await.unwrap();
            // From here on the stream is the worker's own.
            tokio::time::sleep(Duration::from_millis(500)).await;
            talk.chunk("data: [DONE]\n\n").await.unwrap();
            talk.end_stream().await;
            talk
        }
    })
    .await;
    let router = before(&worker, &["--debug-headers"]).await;
    let path = "/v1/chat/completions";
    let mut stream = client::begin(router.address(), "POST", path, &[], CHAT).await.unwrap();
    assert!(stream.headers.contains_key("x-smg-worker"), "the head is the worker's");
    comments(&mut stream, 2).await;
    gate.add_permits(1);
    let text = String::from_utf8(stream.rest().await.unwrap().to_vec()).unwrap();
    let (_comments, own) = text.split_at(text.find("data").unwrap());
    assert_eq!(own, "data: 1\n\ndata: [DONE]\n\n");
}

#[tokio::test]
async fn without_the_flag_or_a_stream_nothing_changes() {
    let gate = Arc::new(Semaphore::new(0));
    let worker = late(&gate, |mut talk: Talk| async move {
        talk.answer(418, "x-own: 1\r\n", b"{}").await;
        talk
    })
    .await;
    let (with, without) = (before(&worker, &[]).await, Router::before(&[worker.url()], &[]).await);
    let whole: &[u8] = br#"{"model":"m"}"#;
    for (router, path, body) in
        [(&with, PATHS[0], whole), (&with, "/generate", CHAT), (&without, PATHS[0], CHAT)]
    {
        let address = router.address();
        let asked =
            tokio::spawn(async move { client::send(address, "POST", path, &[], body).await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!asked.is_finished(), "{path}");
        gate.add_permits(1);
        let answer = asked.await.unwrap();
        assert_eq!((answer.status, answer.header("x-own")), (418, Some("1")), "{path}");
    }
}

#[tokio::test]
async fn a_failure_after_comments_is_an_event_in_the_format_of_the_api() {
    let gate = Arc::new(Semaphore::new(0));
    let worker = late(&gate, |mut talk: Talk| async move {
        let body = br#"{"error":{"message":"too long","type":"x","code":"context_length"}}"#;
        talk.answer(400, "content-type: application/json\r\n", body).await;
        talk
    })
    .await;
    let router = before(&worker, &[]).await;
    for path in PATHS {
        let mut stream = client::begin(router.address(), "POST", path, &[], CHAT).await.unwrap();
        comments(&mut stream, 1).await;
        gate.add_permits(1);
        let text = rest(stream).await;
        let data = match path {
            "/v1/messages" => text.strip_prefix("event: error\ndata: ").expect(&text),
            _ => text.strip_prefix("data: ").expect(&text),
        };
        let error: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(error["error"]["code"], "context_length", "{path}");
        assert_eq!(error.get("type").is_some(), path == "/v1/messages");
    }
}

#[tokio::test]
async fn after_comments_another_worker_is_tried_and_the_last_failure_is_an_event() {
    let gate = Arc::new(Semaphore::new(0));
    let fails = |mut talk: Talk| async move {
        talk.answer(500, "", b"no").await;
        talk
    };
    let (one, two) = (late(&gate, fails).await, late(&gate, streams).await);
    let flags = ["--policy", "round_robin", "--stream-heartbeat-secs", "0.1"];
    let router = Router::before(&[one.url(), two.url()], &flags).await;
    // In either order, one of the two requests goes to the failing worker first.
    for _ in 0..2 {
        let mut stream =
            client::begin(router.address(), "POST", PATHS[0], &[], CHAT).await.unwrap();
        comments(&mut stream, 1).await;
        gate.add_permits(2);
        assert_eq!(rest(stream).await, "data: 1\n\ndata: [DONE]\n\n");
        let left = gate.available_permits();
        gate.forget_permits(left);
    }
    assert!(!one.seen().is_empty() && two.seen().len() == 2);
    drop(two);
    let mut stream = client::begin(router.address(), "POST", PATHS[0], &[], CHAT).await.unwrap();
    comments(&mut stream, 1).await;
    gate.add_permits(10);
    let text = rest(stream).await;
    assert!(text.starts_with("data: {\"error\"") && text.contains("500"), "{text}");
}

#[tokio::test]
async fn comments_end_when_the_client_leaves() {
    let left = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&left);
    let worker = Worker::start(move |mut talk: Talk| {
        let left = Arc::clone(&count);
        async move {
            talk.hung_up().await;
            left.fetch_add(1, Ordering::Relaxed);
            talk.close();
            talk
        }
    })
    .await;
    let router = before(&worker, &[]).await;
    let mut stream = client::begin(router.address(), "POST", PATHS[0], &[], CHAT).await.unwrap();
    comments(&mut stream, 2).await;
    drop(stream);
    eventually("the worker's connection is closed", || async {
        let in_flight = router.get("/workers").await.json()["workers"][0]["in_flight"].as_u64();
        match (left.load(Ordering::Relaxed), in_flight) {
            (1, Some(0)) => Ok(()),
            other => Err(other),
        }
    })
    .await;
}
