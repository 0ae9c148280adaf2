//! Requests wait in the queue of the router while no worker of their model has room: `max_concurrent` of the workers, and
//! `--max-expected-wait`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::admission::{arrived, ask, check_that_leaving_frees_a_place, gated, names, waiting};
use crate::support::client::{self, Answer};
use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::Worker;

/// Registers workers with these settings, and waits until they are ready.
async fn router_before(workers: &[(&Worker, Value)], flags: &[&str]) -> Router {
    let router = Router::start(flags).await;
    for (worker, settings) in workers {
        let mut spec = settings.clone();
        spec["url"] = worker.url().into();
        let added = router.post("/workers", spec.to_string()).await;
        assert_eq!(added.status, 202, "{}", added.text());
    }
    router.knows_ready(workers.len()).await;
    router
}

fn at_most(n: u32) -> Value {
    json!({ "max_concurrent": n })
}

#[tokio::test]
async fn requests_wait_for_a_full_worker_in_the_order_of_their_priority() {
    let gate = Arc::new(Semaphore::new(0));
    let worker = gated(&gate).await;
    let router = router_before(&[(&worker, at_most(1))], &[]).await;
    let mut asked = vec![ask(&router, "first", "bulk")];
    arrived(&worker, 1).await;
    let classes = ["bulk", "default", "interactive"];
    for (at, class) in classes.iter().cycle().take(9).enumerate() {
        asked.push(ask(&router, &format!("{class}-{}", at / 3), class));
        waiting(&router, at + 1).await;
    }
    assert_eq!(router.metric("smg_admission_waiting_for_worker").await, 9.0);
    assert_eq!(worker.seen().len(), 1);
    gate.add_permits(10);
    for asked in asked {
        let answer = asked.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let by_class =
        classes.iter().rev().flat_map(|class| (0..3).map(move |at| format!("{class}-{at}")));
    let expected: Vec<_> = std::iter::once("first".to_owned()).chain(by_class).collect();
    assert_eq!(names(&worker), expected);
    waiting(&router, 0).await;
    assert_eq!(router.metric("smg_admission_abandoned_total").await, 0.0);
}

#[tokio::test]
async fn the_wait_for_a_full_worker_is_bounded_by_the_queue() {
    let gate = Arc::new(Semaphore::new(0));
    let worker = gated(&gate).await;
    let flags = ["--queue-size", "1", "--queue-timeout-secs", "1.5"];
    let router = router_before(&[(&worker, at_most(1))], &flags).await;
    let first = ask(&router, "first", "default");
    arrived(&worker, 1).await;
    let started = Instant::now();
    let second = ask(&router, "second", "default");
    waiting(&router, 1).await;
    let rejected = ask(&router, "third", "system").await.unwrap();
    assert_eq!((rejected.status, rejected.code().as_str()), (429, "too_many_requests"));
    assert!(rejected.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    let late = second.await.unwrap();
    assert_eq!((late.status, late.code().as_str()), (503, "queue_timeout"));
    assert_eq!(late.header("retry-after"), Some("1"));
    assert!(started.elapsed() >= Duration::from_millis(1500));
    waiting(&router, 0).await;
    assert_eq!(router.metric("smg_admission_rejected_total{reason=\"timeout\"}").await, 1.0);
    assert_eq!(router.metric("smg_admission_rejected_total{reason=\"queue_full\"}").await, 1.0);
    check_that_leaving_frees_a_place(&router, &worker, &gate, first).await;
}

#[tokio::test]
async fn requests_for_one_model_do_not_wait_for_the_workers_of_another() {
    let gate = Arc::new(Semaphore::new(0));
    let full = gated(&gate).await;
    let idle = Worker::plain().await;
    let of = |model: &str| json!({ "max_concurrent": 1, "models": [model] });
    let router = router_before(&[(&full, of("m")), (&idle, of("other"))], &[]).await;
    let first = ask(&router, "first", "default");
    arrived(&full, 1).await;
    let second = ask(&router, "second", "system");
    waiting(&router, 1).await;
    for _ in 0..5 {
        let answer = router.post("/generate", r#"{"model":"other"}"#).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!((idle.seen().len(), full.seen().len()), (5, 1));
    gate.add_permits(2);
    for asked in [first, second] {
        assert_eq!(asked.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_retry_waits_for_the_worker_that_was_full() {
    let gate = Arc::new(Semaphore::new(0));
    let good = gated(&gate).await;
    let bad = Worker::start(|mut talk| async move {
        talk.answer(500, "", b"{}").await;
        talk
    })
    .await;
    let router = router_before(&[(&good, at_most(1))], &[]).await;
    let first = ask(&router, "first", "default");
    arrived(&good, 1).await;
    let spec = json!({ "url": bad.url() }).to_string();
    assert_eq!(router.post("/workers", spec).await.status, 202);
    router.knows_ready(2).await;
    let second = ask(&router, "second", "default");
    waiting(&router, 1).await;
    assert_eq!(bad.seen().len(), 1, "it has failed there");
    gate.add_permits(2);
    for asked in [first, second] {
        assert_eq!(asked.await.unwrap().status, 200);
    }
    assert_eq!(names(&good), ["first", "second"]);
}

/// A worker that begins each stream when `gate` has a permit.
async fn slow_to_begin(gate: &Arc<Semaphore>) -> Worker {
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
            talk.begin_stream().await;
            let _router_gone = talk.chunk("data: [DONE]\n\n").await.is_err();
            talk.end_stream().await;
            talk
        }
    })
    .await
}

/// Sends a streamed request with a prompt of this length, and does not wait for its answer.
fn stream(router: &Router, name: &str, priority: &str, prompt_bytes: usize) -> JoinHandle<Answer> {
    let (address, name, priority) = (router.address(), name.to_owned(), priority.to_owned());
    let prompt = format!("{name} ").repeat(prompt_bytes / (name.len() + 1) + 1);
    let body = json!({ "model": "m", "stream": true, "prompt": prompt }).to_string();
    tokio::spawn(async move {
        let headers = [("x-name", name.as_str()), ("x-smg-priority", priority.as_str())];
        client::send(address, "POST", "/generate", &headers, body.as_bytes()).await
    })
}

/// A prompt that takes minutes at the speed that is assumed of a worker that has not answered yet.
const LONG: usize = 4 << 20;

#[tokio::test]
async fn requests_wait_while_the_prompts_on_every_worker_take_longer_than_allowed() {
    let gate = Arc::new(Semaphore::new(0));
    let workers = [slow_to_begin(&gate).await, slow_to_begin(&gate).await];
    let urls = workers.each_ref().map(Worker::url);
    let router = Router::before(&urls, &["--max-expected-wait", "2"]).await;
    let seen = || workers.iter().map(|worker| worker.seen().len()).sum::<usize>();
    let all_seen = async |n: usize| {
        eventually(&format!("{n} requests at the workers"), || async {
            if seen() == n { Ok(()) } else { Err(seen()) }
        })
        .await;
    };
    let explain = async || {
        let body = r#"{"model":"m","stream":true,"prompt":"short"}"#;
        router.post("/ha/explain?path=/generate", body).await.json()
    };
    let mut asked = vec![stream(&router, "a", "default", LONG)];
    all_seen(1).await;
    // The other worker is idle.
    assert_eq!(explain().await["waits"], false);
    asked.push(stream(&router, "b", "default", LONG));
    all_seen(2).await;
    let shown = explain().await;
    assert_eq!((&shown["waits"], &shown["max_expected_wait_seconds"]), (&json!(true), &json!(2.0)));
    assert!(shown["shortest_wait_seconds"].as_f64().unwrap() > 20.0, "{shown}");
    let classes = [("c", "bulk"), ("d", "default"), ("e", "interactive")];
    for (at, (name, class)) in classes.into_iter().enumerate() {
        asked.push(stream(&router, name, class, LONG));
        waiting(&router, at + 1).await;
    }
    assert_eq!(seen(), 2);
    // The first token of a long prompt makes room on its worker for one more.
    let all_names = || workers.iter().flat_map(names).collect::<BTreeSet<_>>();
    for (nth, next) in ["e", "d", "c"].into_iter().enumerate() {
        let before = all_names();
        gate.add_permits(1);
        all_seen(3 + nth).await;
        let come: Vec<_> = all_names().difference(&before).cloned().collect();
        assert_eq!(come, [next]);
    }
    waiting(&router, 0).await;
    gate.add_permits(10);
    for asked in asked {
        assert_eq!(asked.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn without_the_flag_no_expected_wait_is_too_long() {
    let gate = Arc::new(Semaphore::new(0));
    let worker = slow_to_begin(&gate).await;
    let router = Router::before(&[worker.url()], &[]).await;
    let first = stream(&router, "a", "default", LONG);
    arrived(&worker, 1).await;
    let second = stream(&router, "b", "default", 100);
    arrived(&worker, 2).await;
    gate.add_permits(2);
    for asked in [first, second] {
        assert_eq!(asked.await.unwrap().status, 200);
    }
}
