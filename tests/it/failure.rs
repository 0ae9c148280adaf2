//! Tests of failures: workers that die, fail, hang, break connections, are added, are removed, and restart with an
//! empty cache.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::support::client::{self, Answer};
use crate::support::eventually;
use crate::support::load::Load;
use crate::support::mock::{self, Mock, Process};
use crate::support::router::Router;
use crate::support::worker::{Talk, Worker};

const CHAT: &str = r#"{"model":"m","max_tokens":2,"messages":[{"role":"user","content":"hello"}]}"#;
const JSON: &str = "content-type: application/json\r\n";

/// The retry budget is large, so that no request fails because of it. The tests count where requests go.
const MANY_RETRIES: [&str; 4] = ["--retry-budget-floor", "1000", "--retry-initial-backoff-ms", "1"];

async fn chat(router: &Router) -> Answer {
    router.post("/v1/chat/completions", CHAT).await
}

/// A worker as the API shows it.
async fn shown(router: &Router, url: &str) -> serde_json::Value {
    let all = router.get("/workers").await.json();
    let workers = all["workers"].as_array().unwrap();
    let is = |worker: &&serde_json::Value| {
        worker["spec"]["url"].as_str().unwrap().trim_end_matches('/') == url
    };
    workers.iter().find(is).cloned().unwrap_or_default()
}

async fn id_of(router: &Router, url: &str) -> String {
    shown(router, url).await["id"].as_str().unwrap().to_owned()
}

/// A worker whose answers the test switches between 200 and 500.
async fn switched() -> (Worker, Arc<AtomicBool>) {
    let bad = Arc::new(AtomicBool::new(true));
    let is_bad = Arc::clone(&bad);
    let worker = Worker::start(move |mut talk| {
        let status = if is_bad.load(Ordering::Relaxed) { 500 } else { 200 };
        async move {
            talk.answer(status, JSON, b"{\"mine\":1}").await;
            talk
        }
    })
    .await;
    (worker, bad)
}

#[tokio::test]
async fn no_request_fails_when_a_worker_is_killed_under_load() {
    let mut workers = Vec::new();
    for _ in 0..4 {
        // Two tokens take 10 ms, so that some requests are at the worker when it dies.
        workers.push(Process::start(&["--decode-tokens-per-second", "200"]).await);
    }
    let urls: Vec<String> = workers.iter().map(|worker| worker.url.clone()).collect();
    let router = Router::before(&urls, &["--policy", "round_robin"]).await;
    let load = Load::start(router.address(), 16, 500, CHAT);
    load.answers(300).await;
    workers[1].kill().await;
    load.answers(500).await;
    workers[3].kill().await;
    load.answers(300).await;
    assert_eq!(load.stop().await, Vec::<String>::new());
    assert!(router.log().contains("attempt failed"), "no request was sent to the dead worker");
}

#[tokio::test]
async fn no_request_fails_when_the_worker_with_the_prefix_is_dead() {
    let mut workers = Mock::several(3).await;
    let router = Router::before(&mock::urls(&workers), &["--debug-headers"]).await;
    let first = chat(&router).await;
    for _ in 0..5 {
        let next = chat(&router).await;
        assert_eq!(next.header("x-smg-decision"), Some("hit 1.00"));
        assert_eq!(next.header("x-mock-worker"), first.header("x-mock-worker"));
    }
    let affine = first.header("x-mock-worker").unwrap();
    workers.iter_mut().find(|worker| worker.name() == affine).unwrap().kill().await;
    let after = chat(&router).await;
    assert_eq!(after.status, 200, "{}", after.text());
    assert_eq!(after.header("x-smg-attempts"), Some("2"));
    let heir = after.header("x-mock-worker").unwrap();
    assert_ne!(heir, affine);
    for _ in 0..5 {
        assert_eq!(chat(&router).await.header("x-mock-worker"), Some(heir));
    }
}

#[tokio::test]
async fn a_failing_worker_is_ejected() {
    let (bad, _) = switched().await;
    let good = Worker::plain().await;
    let flags = ["--policy", "round_robin", "--cb-failure-threshold", "3"];
    let router =
        Router::before(&[bad.url(), good.url()], &[&flags[..], &MANY_RETRIES].concat()).await;
    for _ in 0..30 {
        assert_eq!(chat(&router).await.status, 200);
    }
    assert_eq!((bad.seen().len(), good.seen().len()), (3, 30));
    assert_eq!(shown(&router, &bad.url()).await["breaker"], "open");
}

#[tokio::test]
async fn a_half_open_breaker_admits_one_request_at_a_time_and_success_closes_it() {
    // The worker fails at first. Then it holds each request until the test releases it.
    let failing = Arc::new(AtomicBool::new(true));
    let (gate, arrived) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let parts = (Arc::clone(&failing), Arc::clone(&gate), Arc::clone(&arrived));
    let tried = Worker::start(move |mut talk| {
        let (failing, gate, arrived) = parts.clone();
        async move {
            if failing.load(Ordering::Relaxed) {
                talk.answer(500, "", b"").await;
                return talk;
            }
            arrived.fetch_add(1, Ordering::Relaxed);
            gate.acquire().await.unwrap().forget();
            talk.answer(200, JSON, b"{}").await;
            talk
        }
    })
    .await;
    let good = Worker::plain().await;
    let flags = [
        "--policy",
        "round_robin",
        "--cb-failure-threshold",
        "2",
        "--cb-timeout-duration-secs",
        "0.5",
        "--cb-success-threshold",
        "2",
    ];
    let router = Arc::new(
        Router::before(&[tried.url(), good.url()], &[&flags[..], &MANY_RETRIES].concat()).await,
    );
    while shown(&router, &tried.url()).await["breaker"] != "open" {
        assert_eq!(chat(&router).await.status, 200);
    }
    failing.store(false, Ordering::Relaxed);
    for probe in 1..=2 {
        // The worker holds one request. All others go to the other worker meanwhile.
        let held = {
            let router = Arc::clone(&router);
            let arrived = Arc::clone(&arrived);
            tokio::spawn(async move {
                while arrived.load(Ordering::Relaxed) < probe {
                    assert_eq!(chat(&router).await.status, 200);
                }
            })
        };
        let address = router.address();
        eventually("the trial request is at the worker", || {
            let seen = arrived.load(Ordering::Relaxed);
            async move { if seen == probe { Ok(()) } else { Err(seen) } }
        })
        .await;
        let before = good.seen().len();
        let others = (0..20).map(|_| {
            tokio::spawn(client::send(
                address,
                "POST",
                "/v1/chat/completions",
                &[],
                CHAT.as_bytes(),
            ))
        });
        for other in others.collect::<Vec<_>>() {
            assert_eq!(other.await.unwrap().status, 200);
        }
        assert_eq!(arrived.load(Ordering::Relaxed), probe, "one at a time");
        assert_eq!(good.seen().len(), before + 20);
        gate.add_permits(1);
        held.await.unwrap();
    }
    assert_eq!(shown(&router, &tried.url()).await["breaker"], "closed");
}

#[tokio::test]
async fn not_all_workers_are_ejected() {
    let (worker, bad) = switched().await;
    let flags = ["--disable-retries", "--cb-failure-threshold", "2"];
    let router = Router::before(&[worker.url()], &flags).await;
    for _ in 0..6 {
        let answer = chat(&router).await;
        assert_eq!((answer.status, answer.text().as_str()), (500, "{\"mine\":1}"));
    }
    assert_eq!(shown(&router, &worker.url()).await["breaker"], "open");
    bad.store(false, Ordering::Relaxed);
    for _ in 0..4 {
        assert_eq!(chat(&router).await.status, 200, "its breaker would be open for a minute");
    }
    assert_eq!(shown(&router, &worker.url()).await["breaker"], "closed");
}

#[tokio::test]
async fn retry_after_is_honoured_up_to_the_longest_back_off() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let times = Arc::clone(&asked);
    let worker = Worker::start(move |mut talk| {
        let nth = {
            let mut times = times.lock().unwrap();
            times.push(Instant::now());
            times.len()
        };
        async move {
            match nth {
                1 => talk.answer(503, "retry-after: 1\r\n", b"").await,
                2 => talk.answer(200, JSON, b"{}").await,
                _ => talk.answer(503, "retry-after: 100\r\n", b"busy").await,
            }
            talk
        }
    })
    .await;
    let router = Router::before(&[worker.url()], &["--retry-max-backoff-ms", "2000"]).await;
    assert_eq!(chat(&router).await.status, 200);
    let waited = {
        let times = asked.lock().unwrap();
        times[1] - times[0]
    };
    assert!(waited >= Duration::from_secs(1), "asked again after {waited:?}");
    // The router does not wait for 100 s: it forwards the worker's answer.
    let answer = chat(&router).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("100")));
    assert_eq!(worker.seen().len(), 3);
    // Another worker can be tried without waiting.
    let other = Worker::plain().await;
    add(&router, json!({ "url": other.url() })).await;
    router.knows_ready(2).await;
    for _ in 0..4 {
        let started = Instant::now();
        assert_eq!(chat(&router).await.status, 200);
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    }
}

/// Registers a worker and returns its id.
async fn add(router: &Router, spec: serde_json::Value) -> String {
    let answer = router.post("/workers", spec.to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_retry_goes_to_an_untried_worker_and_never_back_to_one_that_just_failed() {
    let asked: Arc<Mutex<Vec<usize>>> = Arc::default();
    let mut workers = Vec::new();
    for at in 0..3 {
        let asked = Arc::clone(&asked);
        workers.push(
            Worker::start(move |mut talk| {
                asked.lock().unwrap().push(at);
                async move {
                    talk.answer(500, JSON, b"{}").await;
                    talk
                }
            })
            .await,
        );
    }
    let urls: Vec<_> = workers.iter().map(Worker::url).collect();
    let flags = ["--retry-max-retries", "6", "--disable-circuit-breaker", "--policy", "random"];
    let flags = [&flags[..], &MANY_RETRIES, &["--retry-max-backoff-ms", "1"]].concat();
    let router = Router::before(&urls, &flags).await;
    for _ in 0..20 {
        assert_eq!(chat(&router).await.status, 500);
        let asked = std::mem::take(&mut *asked.lock().unwrap());
        assert_eq!(asked.len(), 7, "{asked:?}");
        assert_eq!(asked[..3].iter().collect::<BTreeSet<_>>().len(), 3, "{asked:?}");
        assert!(asked.windows(2).all(|pair| pair[0] != pair[1]), "{asked:?}");
    }
}

#[tokio::test]
async fn a_retry_waits_for_a_full_worker_instead_of_going_back() {
    let (failing, _) = switched().await;
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let full = Worker::start(move |mut talk| {
        let gate = Arc::clone(&opened);
        async move {
            gate.acquire().await.unwrap().forget();
            talk.answer(200, JSON, b"{}").await;
            talk
        }
    })
    .await;
    let flags = ["--no-worker-wait-secs", "10", "--disable-circuit-breaker"];
    let router = Router::before(&[failing.url()], &[&flags[..], &MANY_RETRIES].concat()).await;
    add(&router, json!({ "url": full.url(), "max_concurrent": 1 })).await;
    let elsewhere = Worker::serving("other", |mut talk| async move {
        talk.answer(500, JSON, b"{}").await;
        talk
    })
    .await;
    add(&router, json!({ "url": elsewhere.url() })).await;
    router.knows_ready(3).await;
    let address = router.address();
    let ask = || tokio::spawn(client::send(address, "POST", "/generate", &[], br#"{"model":"m"}"#));
    let first = ask();
    eventually("one request is at the worker, which is then full", || async {
        if full.seen().len() == 1 { Ok(()) } else { Err(failing.seen().len()) }
    })
    .await;
    let before = failing.seen().len();
    let second = ask();
    eventually("the second request has failed", || async {
        let seen = failing.seen().len();
        if seen == before + 1 { Ok(()) } else { Err(seen) }
    })
    .await;
    // Meanwhile a request that fails elsewhere makes all its retries, which is enough time for the second one to go
    // back.
    let other = client::send(address, "POST", "/generate", &[], br#"{"model":"other"}"#).await;
    assert_eq!((other.status, elsewhere.seen().len()), (500, 4));
    gate.add_permits(2);
    assert_eq!((first.await.unwrap().status, second.await.unwrap().status), (200, 200));
    assert_eq!(failing.seen().len(), before + 1);
}

#[tokio::test]
async fn retries_have_a_budget() {
    let (worker, _) = switched().await;
    let flags = ["--retry-budget-floor", "0", "--retry-budget-ratio", "0.2"];
    let flags = [&flags[..], &["--retry-max-backoff-ms", "0", "--retry-initial-backoff-ms", "0"]];
    let router = Router::before(&[worker.url()], &flags.concat()).await;
    for _ in 0..100 {
        assert_eq!(chat(&router).await.status, 500);
    }
    // The budget starts with ten retries, and grows by a fifth of the hundred requests.
    let seen = worker.seen().len();
    assert!((125..=130).contains(&seen), "100 requests became {seen}");
}

/// Sends a request that allows the connection to be kept open, and reads until the router closes it.
async fn until_closed(router: &Router, path: &str, body: &str) -> String {
    let mut tcp = TcpStream::connect(router.address()).await.unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    tcp.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice()).await.unwrap();
    let mut all = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), tcp.read_to_end(&mut all))
        .await
        .expect("the connection stays open")
        .unwrap();
    String::from_utf8(all).unwrap()
}

/// A worker whose stream ends after its first event, in the way that `how` implements.
async fn breaking<F, R>(how: F) -> Worker
where
    F: Fn(Talk) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Talk> + Send + 'static,
{
    Worker::start(move |mut talk| {
        let how = how.clone();
        async move {
            talk.begin_stream().await;
            talk.chunk("data: {\"n\":1}\n\n").await.unwrap();
            let mut talk = how(talk).await;
            talk.close();
            talk
        }
    })
    .await
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_an_error_and_is_not_retried() {
    let cut = breaking(|talk| async { talk }).await;
    let garbage = breaking(|mut talk| async {
        talk.write("no chunk\r\n").await.unwrap();
        talk
    })
    .await;
    let stalled = breaking(|mut talk| async {
        talk.hung_up().await;
        talk
    })
    .await;
    for broken in [cut, garbage, stalled] {
        // A second worker is available, and must not be tried.
        let good = Worker::plain().await;
        let flags = ["--idle-timeout-secs", "0.3", "--policy", "manual"];
        let router = Router::before(&[broken.url()], &flags).await;
        let body = r#"{"model":"m","stream":true,"user":"me"}"#;
        let openai = until_closed(&router, "/v1/chat/completions", body).await;
        add(&router, json!({ "url": good.url() })).await;
        router.knows_ready(2).await;
        let anthropic = until_closed(&router, "/v1/messages", body).await;
        assert_eq!((broken.seen().len(), good.seen().len()), (2, 0));
        for (text, is_anthropic) in [(&openai, false), (&anthropic, true)] {
            assert!(text.contains("data: {\"n\":1}\n\n"), "{text}");
            assert!(!text.contains("[DONE]"), "{text}");
            assert_eq!(text.contains("event: error\n"), is_anthropic, "{text}");
            let data = text.lines().rev().find_map(|line| line.strip_prefix("data: ")).unwrap();
            let event: serde_json::Value = serde_json::from_str(data).unwrap();
            assert_eq!(event["error"]["code"], "upstream_stream_broken");
            assert_eq!(event["type"] == "error", is_anthropic);
            assert!(
                text.ends_with("\n\n\r\n0\r\n\r\n"),
                "the stream's own end is missing: {text:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_broken_body_closes_the_clients_connection() {
    let worker = Worker::start(|mut talk| async move {
        talk.write("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789").await.unwrap();
        talk.close();
        talk
    })
    .await;
    let other = Worker::plain().await;
    let router = Router::before(&[worker.url()], &["--policy", "manual"]).await;
    let body = r#"{"model":"m","user":"me"}"#;
    let text = until_closed(&router, "/generate", body).await;
    assert!(
        text.contains("content-length: 100\r\n") && text.ends_with("\r\n\r\n0123456789"),
        "{text}"
    );
    add(&router, json!({ "url": other.url() })).await;
    router.knows_ready(2).await;
    let sent = client::try_send(router.address(), "POST", "/generate", &[], body.as_bytes()).await;
    assert!(sent.is_err(), "the client takes it for whole");
    assert_eq!((worker.seen().len(), other.seen().len()), (2, 0), "it was retried");
}

#[tokio::test]
async fn a_request_that_may_have_started_is_not_retried() {
    let mut workers = Vec::new();
    for _ in 0..2 {
        workers.push(
            Worker::start(|mut talk| async move {
                talk.hung_up().await;
                talk.close();
                talk
            })
            .await,
        );
    }
    let urls: Vec<_> = workers.iter().map(Worker::url).collect();
    let router = Router::before(&urls, &["--response-head-timeout-secs", "0.3"]).await;
    let answer = chat(&router).await;
    assert_eq!((answer.status, answer.code().as_str()), (504, "upstream_timeout"));
    assert_eq!(workers.iter().map(|worker| worker.seen().len()).sum::<usize>(), 1);
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_a_protocol_error() {
    let worker = Worker::start(|mut talk| async move {
        talk.write("\x16\x03\x01 no answer\r\n\r\n").await.unwrap();
        talk.close();
        talk
    })
    .await;
    let router = Router::before(&[worker.url()], &[]).await;
    let answer = chat(&router).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_protocol_error"));
    assert_eq!(answer.header("x-smg-error-code"), Some("upstream_protocol_error"));
    assert_eq!(worker.seen().len(), 1, "it may have started, so it is not retried");
}

#[tokio::test]
async fn without_any_worker_the_error_codes_give_the_reason() {
    let mut workers = Mock::several(2).await;
    let flags = ["--health-check-interval-secs", "0.3", "--health-failure-threshold", "3"];
    let router = Router::before(&mock::urls(&workers), &flags).await;
    for worker in &mut workers {
        worker.kill().await;
    }
    // Requests fail before the probes do.
    let answer = chat(&router).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_connection_failed"));
    for worker in &workers {
        assert!(!answer.text().contains(worker.url().trim_start_matches("http://")));
    }
    eventually("the probes have failed", || async {
        let answer = chat(&router).await;
        match (answer.status, answer.code().as_str()) {
            (503, "no_available_workers") if answer.header("retry-after").is_some() => Ok(()),
            _ => Err(answer),
        }
    })
    .await;
    let unknown = router.post("/v1/chat/completions", r#"{"model":"other"}"#).await;
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "model_not_found"));
    let readiness = router.get("/readiness").await;
    assert_eq!(readiness.status, 503);
    assert_eq!(readiness.json()["reason"], "insufficient healthy workers");
    for worker in &mut workers {
        worker.restart().await;
    }
    router.knows_ready(2).await;
    assert_eq!(chat(&router).await.status, 200);
}

#[tokio::test]
async fn workers_are_added_and_removed_under_load_and_no_request_fails() {
    const DECODE: f64 = 200.0;
    let config = || smg_mock::Config {
        decode: smg_mock::config::Rate::new(DECODE).unwrap(),
        ..smg_mock::Config::default()
    };
    let mut workers = vec![Mock::with(config()).await, Mock::with(config()).await];
    let router = Router::before(&mock::urls(&workers), &["--policy", "round_robin"]).await;
    let load = Load::start(router.address(), 8, 200, CHAT);
    for _ in 0..5 {
        let newcomer = Mock::with(config()).await;
        add(&router, json!({ "url": newcomer.url() })).await;
        router.knows_ready(3).await;
        load.answers(20).await;
        assert!(newcomer.stats().requests > 0, "the newcomer gets nothing");
        workers.push(newcomer);
        let leaver = workers.remove(0);
        let path = format!("/workers/{}", id_of(&router, &leaver.url()).await);
        assert_eq!(router.send("DELETE", &path, &[], b"").await.status, 202);
        eventually("the worker is gone", || async {
            let shown = router.get(&path).await;
            if shown.status == 404 { Ok(()) } else { Err(shown.text()) }
        })
        .await;
        assert_eq!(leaver.stats().in_flight, 0, "it was removed before its requests had ended");
    }
    assert_eq!(load.stop().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_deleted_worker_finishes_what_is_in_flight() {
    let (first, second) = (Worker::start(gated_stream).await, Worker::plain().await);
    let router = Router::before(&[first.url()], &[]).await;
    let body = br#"{"model":"m","stream":true}"#;
    let mut stream = client::begin(router.address(), "POST", "/generate", &[], body).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "data: 1\n\n");
    add(&router, json!({ "url": second.url() })).await;
    router.knows_ready(2).await;
    let path = format!("/workers/{}", id_of(&router, &first.url()).await);
    let deleted = router.send("DELETE", &path, &[], b"").await;
    assert_eq!((deleted.status, deleted.json()["in_flight"].clone()), (202, json!(1)));
    assert_eq!(shown(&router, &first.url()).await["state"], "draining");
    for _ in 0..10 {
        assert_eq!(chat(&router).await.status, 200);
    }
    assert_eq!((first.seen().len(), second.seen().len()), (1, 10));
    // The worker continues the stream when this request arrives, which the test sends to it directly.
    let go = first.url().trim_start_matches("http://").parse().unwrap();
    client::send(go, "POST", "/go", &[], b"").await;
    assert_eq!(stream.rest().await.unwrap(), "data: 2\n\n");
    eventually("the worker is gone", || async {
        let shown = router.get(&path).await;
        if shown.status == 404 { Ok(()) } else { Err(shown.text()) }
    })
    .await;
}

static GO: Semaphore = Semaphore::const_new(0);

/// Streams one event, and the second one after `/go` was requested.
async fn gated_stream(mut talk: Talk) -> Talk {
    if talk.seen.path == "/go" {
        GO.add_permits(1);
        talk.answer(200, "", b"").await;
        return talk;
    }
    talk.begin_stream().await;
    talk.chunk("data: 1\n\n").await.unwrap();
    GO.acquire().await.unwrap().forget();
    talk.chunk("data: 2\n\n").await.unwrap();
    talk.end_stream().await;
    talk
}

#[tokio::test]
async fn a_worker_that_restarts_with_an_empty_cache_loses_its_prefix_entries() {
    let mut workers = Mock::several(2).await;
    let flags = ["--debug-headers", "--health-check-interval-secs", "0.2"];
    let router = Router::before(&mock::urls(&workers), &flags).await;
    let first = chat(&router).await;
    assert_eq!(first.header("x-smg-decision"), Some("miss"));
    assert_eq!(chat(&router).await.header("x-smg-decision"), Some("hit 1.00"));
    let affine = first.header("x-mock-worker").unwrap();
    let worker = workers.iter_mut().find(|worker| worker.name() == affine).unwrap();
    worker.kill().await;
    router.knows_ready(1).await;
    worker.restart().await;
    router.knows_ready(2).await;
    let back = chat(&router).await;
    assert_eq!(
        back.header("x-smg-decision"),
        Some("miss"),
        "by {:?}",
        back.header("x-mock-worker")
    );
}

#[tokio::test]
async fn a_worker_never_exceeds_its_own_limit() {
    let workers = Mock::several(2).await;
    let router = Router::before(&mock::urls(&workers), &["--no-worker-wait-secs", "10"]).await;
    for worker in &workers {
        let path = format!("/workers/{}", id_of(&router, &worker.url()).await);
        let patched = router.send("PATCH", &path, &[], br#"{"max_concurrent":2}"#).await;
        assert_eq!(patched.json()["spec"]["max_concurrent"], 2);
        worker.faults(r#"{"script":{"delay_ms":20}}"#);
    }
    let address = router.address();
    let clients = (0..40).map(|_| {
        tokio::spawn(client::send(address, "POST", "/v1/chat/completions", &[], CHAT.as_bytes()))
    });
    for client in clients.collect::<Vec<_>>() {
        assert_eq!(client.await.unwrap().status, 200);
    }
    for worker in &workers {
        let stats = worker.stats();
        assert_eq!(stats.max_in_flight, 2, "{stats:?}");
    }
}

#[tokio::test]
async fn a_drained_worker_gets_nothing_until_it_is_resumed() {
    let workers = Mock::several(2).await;
    let router = Router::before(&mock::urls(&workers), &["--policy", "round_robin"]).await;
    let path = format!("/workers/{}/drain", id_of(&router, &workers[0].url()).await);
    let counts = async || {
        for _ in 0..10 {
            assert_eq!(chat(&router).await.status, 200);
        }
        (workers[0].stats().requests, workers[1].stats().requests)
    };
    assert_eq!(router.send("POST", &path, &[], b"").await.json()["state"], "draining");
    assert_eq!(counts().await, (0, 10));
    assert_eq!(router.send("DELETE", &path, &[], b"").await.json()["state"], "ready");
    assert_eq!(counts().await, (5, 15));
}

#[tokio::test]
async fn an_operators_override_takes_precedence_over_probes_and_traffic() {
    let workers = Mock::several(2).await;
    let flags = ["--policy", "round_robin", "--health-check-interval-secs", "0.2"];
    let router = Router::before(&mock::urls(&workers), &flags).await;
    let path = format!("/workers/{}/override", id_of(&router, &workers[0].url()).await);
    let override_worker = async |document: &str| {
        let answer = router.send("POST", &path, &[], document.as_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    let ten = async || {
        let before = workers[0].stats().requests;
        for _ in 0..10 {
            assert_eq!(chat(&router).await.status, 200);
        }
        workers[0].stats().requests - before
    };
    override_worker(r#"{"healthy":false,"reason":"disk is full"}"#).await;
    assert_eq!(ten().await, 0);
    assert_eq!(router.send("DELETE", &path, &[], b"").await.status, 200);
    assert_eq!(ten().await, 5);
    // An override with an expiry.
    override_worker(r#"{"healthy":false,"reason":"a look at it","ttl_secs":0.5}"#).await;
    assert_eq!(ten().await, 0);
    eventually("the override expires", || async {
        if ten().await == 5 { Ok(()) } else { Err(()) }
    })
    .await;
    // The probes fail, but the operator declares the worker healthy.
    workers[0].faults(r#"{"health":{"status":500}}"#);
    router.knows_ready(1).await;
    assert_eq!(ten().await, 0);
    override_worker(r#"{"healthy":true,"reason":"the probe is wrong"}"#).await;
    assert_eq!(ten().await, 5);
}

#[tokio::test]
async fn only_the_alias_in_a_body_is_rewritten() {
    let worker = Worker::plain().await;
    let router = Router::start(&[]).await;
    add(&router, json!({ "url": worker.url(), "aliases": { "pretty \u{e9}": "m" } })).await;
    router.knows_ready(1).await;
    let with = |model: &str| {
        format!(
            "\t{{ \"x\" : [1e2, \"model\"],\r\n\"model\" :  {model} ,\"z\":\"\\u00e9 pretty \u{e9}\"}} \n"
        )
    };
    for (sent, got) in [
        (with("\"pretty \u{e9}\""), with("\"m\"")),
        (with("\"pretty \\u00e9\""), with("\"m\"")),
        (with("\"m\""), with("\"m\"")),
    ] {
        assert_eq!(router.post("/v1/chat/completions", &sent).await.status, 200);
        let seen = worker.seen().pop().unwrap();
        assert_eq!(String::from_utf8(seen.body.clone()).unwrap(), got);
        assert_eq!(seen.all("content-length"), [got.len().to_string()]);
    }
}

#[tokio::test]
async fn the_key_of_a_worker_replaces_that_of_the_client() {
    let worker = Worker::plain().await;
    let router = Router::start(&[]).await;
    let id = add(&router, json!({ "url": worker.url(), "api_key": "key-1" })).await;
    router.knows_ready(1).await;
    let headers = [("authorization", "Bearer theirs"), ("authorization", "Basic more")];
    let sees = async || {
        let answer = router.send("POST", "/generate", &headers, br#"{"model":"m"}"#).await;
        assert_eq!(answer.status, 200);
        let seen = worker.seen().pop().unwrap();
        seen.all("authorization").into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(sees().await, ["Bearer key-1"]);
    let path = format!("/workers/{id}");
    let patched = router.send("PATCH", &path, &[], br#"{"api_key":"key-2"}"#).await;
    assert_eq!(sees().await, ["Bearer key-2"]);
    let shown = router.get(&path).await;
    for text in [patched.text(), shown.text()] {
        assert!(text.contains("\"has_api_key\":true") && !text.contains("key-2"), "{text}");
    }
}
