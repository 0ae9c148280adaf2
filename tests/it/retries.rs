//! Tests of which requests are sent twice and which are not, and of the effect of a worker's push-back statuses.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::Worker;

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;
const POISON: &str = r#"{"model":"m","messages":[{"role":"user","content":"poison"}]}"#;
const JSON: &str = "content-type: application/json\r\n";

/// Workers that stop when they have read a poisonous request, as crashing processes do: their connections and listeners
/// are closed.
struct CrashingWorkers {
    alive: Arc<Mutex<Vec<Option<Worker>>>>,
    urls: Vec<String>,
}

impl CrashingWorkers {
    async fn start(count: usize) -> Self {
        let (dies, mut dying) = mpsc::channel::<usize>(count);
        let alive: Arc<Mutex<Vec<Option<Worker>>>> = Arc::default();
        let mut urls = Vec::new();
        for nth in 0..count {
            let dies = dies.clone();
            let worker = Worker::start(move |mut talk| {
                let dies = dies.clone();
                async move {
                    if talk.seen.body.windows(6).any(|bytes| bytes == b"poison") {
                        dies.send(nth).await.unwrap();
                        std::future::pending::<()>().await;
                    }
                    talk.answer(200, JSON, b"{}").await;
                    talk
                }
            })
            .await;
            urls.push(worker.url());
            alive.lock().unwrap().push(Some(worker));
        }
        let killed = Arc::clone(&alive);
        tokio::spawn(async move {
            while let Some(nth) = dying.recv().await {
                drop(killed.lock().unwrap()[nth].take());
            }
        });
        Self { alive, urls }
    }

    fn dead(&self) -> usize {
        self.alive.lock().unwrap().iter().filter(|worker| worker.is_none()).count()
    }
}

#[tokio::test]
async fn a_poisonous_request_stops_at_most_two_workers() {
    for warm in [true, false] {
        let workers = CrashingWorkers::start(8).await;
        // As many attempts as there are workers, with short pauses.
        let flags = ["--policy", "round_robin", "--threads", "1", "--retry-max-retries", "20"];
        let router = Router::before(&workers.urls, &flags).await;
        for _ in 0..if warm { 32 } else { 0 } {
            assert_eq!(router.post("/v1/chat/completions", CHAT).await.status, 200);
        }
        let answer = router.post("/v1/chat/completions", POISON).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, "upstream_connection_failed"),
            "warm: {warm}"
        );
        assert_eq!(workers.dead(), 2, "warm: {warm}");
        // The other workers still serve.
        for _ in 0..16 {
            assert_eq!(router.post("/v1/chat/completions", CHAT).await.status, 200);
        }
        assert_eq!(workers.dead(), 2);
    }
}

#[tokio::test]
async fn a_post_that_was_read_on_a_reused_connection_does_not_run_twice() {
    // After it was instructed, the worker reads a whole request and closes the connection without an answer.
    let closes = Arc::new(AtomicBool::new(false));
    let closing = Arc::clone(&closes);
    let script = move |mut talk: crate::support::worker::Talk| {
        let closes = closing.load(Ordering::Relaxed);
        async move {
            if closes {
                talk.close();
            } else {
                talk.answer(200, JSON, b"{}").await;
            }
            talk
        }
    };
    let workers = [Worker::start(script.clone()).await, Worker::start(script).await];
    let urls: Vec<_> = workers.iter().map(Worker::url).collect();
    let received = || workers.iter().map(|worker| worker.seen().len()).sum::<usize>();
    let router = Router::before(&urls, &["--policy", "round_robin", "--threads", "1"]).await;
    for _ in 0..8 {
        assert_eq!(router.post("/v1/chat/completions", CHAT).await.status, 200);
    }
    closes.store(true, Ordering::Relaxed);
    let answer = router.post("/v1/chat/completions", CHAT).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_connection_failed"));
    assert_eq!(received(), 9, "the request ran more than once");
}

/// The state of a worker's breaker, as the API shows it.
async fn breaker(router: &Router, url: &str) -> String {
    let all = router.get("/workers").await.json();
    let workers = all["workers"].as_array().unwrap();
    let worker = workers
        .iter()
        .find(|worker| worker["spec"]["url"].as_str().unwrap().trim_end_matches('/') == url);
    worker.unwrap()["breaker"].as_str().unwrap().to_owned()
}

/// A worker that answers everything with a status.
async fn answering(status: u16, headers: &'static str) -> Worker {
    Worker::start(move |mut talk| async move {
        talk.answer(status, headers, b"{\"mine\":1}").await;
        talk
    })
    .await
}

#[tokio::test]
async fn push_back_opens_no_breaker() {
    for status in [429, 503] {
        let worker = answering(status, JSON).await;
        let flags = ["--disable-retries", "--cb-failure-threshold", "2"];
        let router = Router::before(&[worker.url()], &flags).await;
        for _ in 0..10 {
            let answer = router.post("/v1/chat/completions", CHAT).await;
            assert_eq!((answer.status, answer.text().as_str()), (status, "{\"mine\":1}"));
        }
        assert_eq!(worker.seen().len(), 10, "a lone worker gets the requests nevertheless");
        assert_eq!(breaker(&router, &worker.url()).await, "closed", "{status}");
    }
}

#[tokio::test]
async fn a_worker_that_pushes_back_gets_no_requests_until_its_retry_after() {
    let busy = Arc::new(AtomicBool::new(true));
    let is_busy = Arc::clone(&busy);
    let worker = Worker::start(move |mut talk| {
        let (status, headers) =
            if is_busy.load(Ordering::Relaxed) { (503, "retry-after: 2\r\n") } else { (200, JSON) };
        async move {
            talk.answer(status, headers, b"{}").await;
            talk
        }
    })
    .await;
    let other = Worker::plain().await;
    let flags = ["--policy", "round_robin", "--threads", "1"];
    let router = Router::before(&[worker.url(), other.url()], &flags).await;
    // The requests take less time than the two seconds of its Retry-After.
    for _ in 0..40 {
        assert_eq!(router.post("/v1/chat/completions", CHAT).await.status, 200);
    }
    assert_eq!(worker.seen().len(), 1);
    assert_eq!(breaker(&router, &worker.url()).await, "closed");
    busy.store(false, Ordering::Relaxed);
    eventually("it gets requests again", || async {
        assert_eq!(router.post("/v1/chat/completions", CHAT).await.status, 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let received = worker.seen().len();
        if received > 1 { Ok(()) } else { Err(received) }
    })
    .await;
}

#[tokio::test]
async fn the_push_back_statuses_are_configurable() {
    let worker = answering(503, JSON).await;
    let flags = ["--disable-retries", "--cb-failure-threshold", "2", "--push-back-statuses", "529"];
    let router = Router::before(&[worker.url()], &flags).await;
    for _ in 0..4 {
        assert_eq!(router.post("/v1/chat/completions", CHAT).await.status, 503);
    }
    assert_eq!(breaker(&router, &worker.url()).await, "open");
    // A configured status is retried at another worker, although the router does not do that by default.
    let (full, free) = (answering(529, JSON).await, Worker::plain().await);
    let flags = ["--policy", "round_robin", "--push-back-statuses", "529"];
    let router = Router::before(&[full.url(), free.url()], &flags).await;
    for _ in 0..4 {
        assert_eq!(router.post("/v1/chat/completions", CHAT).await.status, 200);
    }
    assert_eq!(breaker(&router, &full.url()).await, "closed");
    assert_eq!(full.seen().len(), 1);
}

#[tokio::test]
async fn a_conversation_leaves_its_worker_only_for_an_error_that_the_log_names() {
    // After it was instructed, a worker answers the next request with 500, as an engine does that can't parse what its
    // model has produced.
    let fails = Arc::new(AtomicBool::new(false));
    let failing = Arc::clone(&fails);
    let script = move |mut talk: crate::support::worker::Talk| {
        let status = if failing.swap(false, Ordering::Relaxed) { 500 } else { 200 };
        async move {
            talk.answer(status, JSON, b"{}").await;
            talk
        }
    };
    let workers = [Worker::start(script.clone()).await, Worker::start(script).await];
    let urls: Vec<_> = workers.iter().map(Worker::url).collect();
    let flags = ["--debug-headers", "--policy", "consistent_hashing"];
    let router = Router::before(&urls, &flags).await;
    let headers = [("x-smg-routing-key", "a conversation")];
    let mut homes = Vec::new();
    for turn in 0..10 {
        fails.store(turn == 5, Ordering::Relaxed);
        let answer = router.send("POST", "/v1/chat/completions", &headers, CHAT.as_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-smg-attempts"), Some(if turn == 5 { "2" } else { "1" }));
        homes.push(answer.header("x-smg-worker").unwrap().to_owned());
    }
    let elsewhere = homes.remove(5);
    assert!(elsewhere != homes[0] && homes.iter().all(|home| *home == homes[0]), "{homes:?}");
    let log = router.log();
    let lines: Vec<_> =
        log.lines().filter(|line| line.contains("answered with an error")).collect();
    let [line] = lines[..] else { panic!("not one line about the error: {log}") };
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!((line["level"].as_str(), line["worker"].as_str()), (Some("WARN"), Some(&*homes[0])));
    assert_eq!(line["status"], "500 Internal Server Error");
    assert!(urls.iter().any(|url| line["url"].as_str() == Some(url)), "{line}");
    assert!(!line["request_id"].as_str().unwrap().is_empty(), "{line}");
}

#[tokio::test]
async fn by_default_the_router_closes_an_idle_connection_after_seconds() {
    // Engines close connections that are idle for five seconds; the table of settings has the exact time.
    let (sender, mut idle) = mpsc::channel(8);
    let worker = Worker::start(move |mut talk| {
        let sender = sender.clone();
        async move {
            talk.answer(200, JSON, b"{}").await;
            let answered = std::time::Instant::now();
            talk.hung_up().await;
            let _gone = sender.send(answered.elapsed()).await.is_err();
            talk
        }
    })
    .await;
    let router = Router::before(&[worker.url()], &[]).await;
    assert_eq!(router.post("/v1/chat/completions", CHAT).await.status, 200);
    let idle = tokio::time::timeout(Duration::from_secs(30), idle.recv()).await.unwrap().unwrap();
    assert!(idle >= Duration::from_secs(2), "too short to be reused: {idle:?}");
}
