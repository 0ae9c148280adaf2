//! Tests of admission: which requests go to the workers, which wait, in which order, and which are rejected.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::support::client::{self, Answer};
use crate::support::eventually;
use crate::support::mock::Mock;
use crate::support::router::Router;
use crate::support::worker::Worker;

const CHAT: &str = r#"{"model":"m","max_tokens":2,"messages":[]}"#;
const STREAM: &[u8] = br#"{"model":"m","stream":true}"#;

/// A worker that answers each request when `gate` has a permit. The header `x-name` identifies the requests.
pub(crate) async fn gated(gate: &Arc<Semaphore>) -> Worker {
    let gate = Arc::clone(gate);
    Worker::start(move |mut talk| {
        let gate = Arc::clone(&gate);
        async move {
            tokio::select! {
                permit = gate.acquire() => permit.unwrap().forget(),
                () = talk.hung_up() => {
                    talk.close();
                    return talk;
                }
            }
            talk.answer(200, "", b"{}").await;
            talk
        }
    })
    .await
}

pub(crate) fn names(worker: &Worker) -> Vec<String> {
    worker.seen().iter().map(|seen| seen.all("x-name").concat()).collect()
}

/// Sends a request with the given name, and does not wait for its answer.
pub(crate) fn ask(router: &Router, name: &str, priority: &str) -> JoinHandle<Answer> {
    let (address, name, priority) = (router.address(), name.to_owned(), priority.to_owned());
    tokio::spawn(async move {
        let headers = [("x-name", name.as_str()), ("x-smg-priority", priority.as_str())];
        client::send(address, "POST", "/generate", &headers, CHAT.as_bytes()).await
    })
}

/// Waits until exactly `n` requests are in the queue.
pub(crate) async fn waiting(router: &Router, n: usize) {
    eventually(&format!("{n} requests wait"), || async {
        let seen = router.metric("smg_admission_waiting").await;
        if seen == n as f64 { Ok(()) } else { Err(seen) }
    })
    .await;
}

/// Waits until the worker has received exactly `n` requests.
pub(crate) async fn arrived(worker: &Worker, n: usize) {
    eventually(&format!("{n} requests at the worker"), || async {
        let seen = worker.seen().len();
        if seen == n { Ok(()) } else { Err(seen) }
    })
    .await;
}

#[tokio::test]
async fn never_more_than_the_limit_are_at_the_workers() {
    const N: usize = 8;
    let mock = Mock::start("w").await;
    let flags = ["--max-concurrent-requests", "8", "--queue-size", "1000"];
    let router = Router::before(&[mock.url()], &flags).await;
    mock.faults(r#"{"script":{"delay_ms":5}}"#);
    let clients = (0..5 * N).map(|_| {
        let address = router.address();
        tokio::spawn(async move {
            let mut connection = client::Connection::open(address).await.unwrap();
            for _ in 0..10 {
                let answer = connection.post("/v1/chat/completions", &[], CHAT).await.unwrap();
                assert_eq!(answer.status, 200);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let stats = mock.stats();
    assert_eq!((stats.completed, stats.max_in_flight), (10 * 5 * N as u64, N as u64), "{stats:?}");
}

#[tokio::test]
async fn a_full_queue_rejects_further_requests() {
    let gate = Arc::new(Semaphore::new(0));
    let worker = gated(&gate).await;
    let flags = ["--max-concurrent-requests", "2", "--queue-size", "3"];
    let router = Router::before(&[worker.url()], &flags).await;
    let asked: Vec<_> = (0..30).map(|at| ask(&router, &at.to_string(), "default")).collect();
    waiting(&router, 3).await;
    eventually("the rejected requests are answered", || async {
        let done = asked.iter().filter(|asked| asked.is_finished()).count();
        if done == 25 { Ok(()) } else { Err(done) }
    })
    .await;
    assert_eq!(worker.seen().len(), 2);
    gate.add_permits(5);
    let (mut good, mut rejected) = (0, 0);
    for asked in asked {
        let answer = asked.await.unwrap();
        if answer.status == 200 {
            good += 1;
            continue;
        }
        rejected += 1;
        assert_eq!((answer.status, answer.code().as_str()), (429, "too_many_requests"));
        assert_eq!(answer.header("x-smg-error-code"), Some("too_many_requests"));
        assert!(answer.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
        assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("2"));
        assert_eq!(answer.header("x-ratelimit-remaining-requests"), Some("0"));
    }
    assert_eq!((good, rejected, worker.seen().len()), (5, 25, 5));
    waiting(&router, 0).await;
}

#[tokio::test]
async fn the_queue_is_first_in_first_out_within_a_class_and_by_class_otherwise() {
    let gate = Arc::new(Semaphore::new(0));
    let worker = gated(&gate).await;
    let mut flags = vec!["--max-concurrent-requests", "1", "--queue-size", "100"];
    flags.extend(["--max-client-priority", "system"]);
    let router = Router::before(&[worker.url()], &flags).await;
    let mut asked = vec![ask(&router, "first", "bulk")];
    arrived(&worker, 1).await;
    let classes = ["bulk", "default", "interactive", "system"];
    for (at, class) in classes.iter().cycle().take(12).enumerate() {
        asked.push(ask(&router, &format!("{class}-{}", at / 4), class));
        waiting(&router, at + 1).await;
    }
    for _ in 0..13 {
        gate.add_permits(1);
    }
    for asked in asked {
        assert_eq!(asked.await.unwrap().status, 200);
    }
    let by_class =
        classes.iter().rev().flat_map(|class| (0..3).map(move |at| format!("{class}-{at}")));
    let expected: Vec<_> = std::iter::once("first".to_owned()).chain(by_class).collect();
    assert_eq!(names(&worker), expected);
    let wrong = ask(&router, "x", "urgent").await.unwrap();
    assert_eq!((wrong.status, wrong.code().as_str()), (400, "invalid_priority"));
}

#[tokio::test]
async fn a_client_gets_no_more_urgent_class_than_it_may_claim() {
    for (flags, order) in [
        (&[][..], ["first", "one", "two", "three"]),
        (&["--max-client-priority", "default"], ["first", "one", "two", "three"]),
        (&["--max-client-priority", "system"], ["first", "two", "one", "three"]),
    ] {
        let gate = Arc::new(Semaphore::new(0));
        let worker = gated(&gate).await;
        let mut all = vec!["--max-concurrent-requests", "1"];
        all.extend(flags);
        let router = Router::before(&[worker.url()], &all).await;
        let mut asked = vec![ask(&router, "first", "bulk")];
        arrived(&worker, 1).await;
        let claims = [("one", "interactive"), ("two", "system"), ("three", "interactive")];
        for (at, (name, class)) in claims.into_iter().enumerate() {
            asked.push(ask(&router, name, class));
            waiting(&router, at + 1).await;
        }
        gate.add_permits(4);
        for asked in asked {
            assert_eq!(asked.await.unwrap().status, 200);
        }
        assert_eq!(names(&worker), order, "{flags:?}");
    }
}

#[tokio::test]
async fn a_request_that_waits_too_long_is_answered() {
    let gate = Arc::new(Semaphore::new(0));
    let worker = gated(&gate).await;
    let flags = ["--max-concurrent-requests", "1", "--queue-timeout-secs", "0.3"];
    let router = Router::before(&[worker.url()], &flags).await;
    let first = ask(&router, "first", "default");
    arrived(&worker, 1).await;
    let started = Instant::now();
    let second = ask(&router, "second", "default").await.unwrap();
    assert_eq!((second.status, second.code().as_str()), (503, "queue_timeout"));
    assert_eq!(second.header("retry-after"), Some("1"));
    let waited = started.elapsed();
    assert!((Duration::from_millis(300)..Duration::from_secs(3)).contains(&waited), "{waited:?}");
    waiting(&router, 0).await;
    gate.add_permits(2);
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(ask(&router, "third", "default").await.unwrap().status, 200);
    assert_eq!(names(&worker), ["first", "third"]);
}

/// Checks that a client that leaves the queue frees its place there. `first`: the request that is at the worker.
pub(crate) async fn check_that_leaving_frees_a_place(
    router: &Router,
    worker: &Worker,
    gate: &Semaphore,
    first: JoinHandle<Answer>,
) {
    let leaver = ask(router, "leaver", "default");
    waiting(router, 1).await;
    leaver.abort();
    waiting(router, 0).await;
    // Its place in the queue is free again.
    let next = ask(router, "next", "default");
    waiting(router, 1).await;
    gate.add_permits(2);
    for asked in [first, next] {
        assert_eq!(asked.await.unwrap().status, 200);
    }
    assert_eq!(names(worker), ["first", "next"]);
}

#[tokio::test]
async fn a_client_that_disconnects_frees_its_place_in_the_queue() {
    let gate = Arc::new(Semaphore::new(0));
    let worker = gated(&gate).await;
    let flags = ["--max-concurrent-requests", "1", "--queue-size", "1"];
    let router = Router::before(&[worker.url()], &flags).await;
    let first = ask(&router, "first", "default");
    arrived(&worker, 1).await;
    check_that_leaving_frees_a_place(&router, &worker, &gate, first).await;
}

#[tokio::test]
async fn a_stream_keeps_its_place_until_it_ends_or_is_dropped() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let worker = Worker::start(move |mut talk| {
        let gate = Arc::clone(&opened);
        async move {
            talk.begin_stream().await;
            talk.chunk("data: 1\n\n").await.unwrap();
            tokio::select! {
                permit = gate.acquire() => permit.unwrap().forget(),
                () = talk.hung_up() => {
                    talk.close();
                    return talk;
                }
            }
            talk.end_stream().await;
            talk
        }
    })
    .await;
    let flags = ["--max-concurrent-requests", "1", "--queue-size", "0"];
    let router = Router::before(&[worker.url()], &flags).await;
    let begin = || client::begin(router.address(), "POST", "/generate", &[], STREAM);
    let taken = async || {
        let other = begin().await.unwrap();
        assert_eq!(other.status, 429, "there was a place while the stream went on");
    };
    // When the first request ends in either way, its place becomes free.
    let free = async || {
        eventually("the place is free", || async {
            let stream = begin().await.unwrap();
            if stream.status == 200 { Ok(stream) } else { Err(stream.status) }
        })
        .await
    };
    let mut first = begin().await.unwrap();
    assert_eq!(first.next().await.unwrap().unwrap(), "data: 1\n\n");
    taken().await;
    gate.add_permits(1);
    assert_eq!(first.rest().await.unwrap(), "");
    let mut second = free().await;
    assert_eq!(second.next().await.unwrap().unwrap(), "data: 1\n\n");
    taken().await;
    drop(second);
    free().await;
}

#[tokio::test]
async fn without_a_worker_a_request_waits_for_the_configured_time() {
    let mut mock = Mock::start("w").await;
    let flags = ["--no-worker-wait-secs", "1", "--health-check-interval-secs", "0.2"];
    let router = Router::before(&[mock.url()], &flags).await;
    mock.kill().await;
    router.knows_ready(0).await;
    let started = Instant::now();
    let answer = ask(&router, "x", "default").await.unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (503, "no_available_workers"));
    let waited = started.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(4)).contains(&waited), "{waited:?}");
    // The worker returns while a request waits.
    let waits = ask(&router, "y", "default");
    mock.restart().await;
    assert_eq!(waits.await.unwrap().status, 200);
}
