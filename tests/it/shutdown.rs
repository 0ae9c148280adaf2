//! Tests of the shutdown: requests in flight finish, new ones are refused after the settle time, and idle connections
//! delay nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::support::client::{self, Connection, Stream};
use crate::support::eventually;
use crate::support::load::Load;
use crate::support::mock::Mock;
use crate::support::router::Router;
use crate::support::worker::{Talk, Worker};

const STREAM: &[u8] = br#"{"model":"m","stream":true}"#;
const CHAT: &str = r#"{"model":"m","max_tokens":2,"messages":[]}"#;

/// A worker that sends one event of each stream at once, and the second when `gate` has a permit.
async fn gated(gate: &Arc<Semaphore>) -> Worker {
    let gate = Arc::clone(gate);
    Worker::start(move |talk: Talk| gated_stream(talk, Arc::clone(&gate))).await
}

async fn gated_stream(mut talk: Talk, gate: Arc<Semaphore>) -> Talk {
    talk.begin_stream().await;
    talk.chunk("data: 1\n\n").await.unwrap();
    tokio::select! {
        permit = gate.acquire() => permit.unwrap().forget(),
        () = talk.hung_up() => {
            talk.close();
            return talk;
        }
    }
    talk.chunk("data: [DONE]\n\n").await.unwrap();
    talk.end_stream().await;
    talk
}

/// Begins `n` streams and reads the first event of each.
async fn streams(router: &Router, n: usize) -> Vec<Stream> {
    let mut streams = Vec::new();
    for _ in 0..n {
        let mut stream =
            client::begin(router.address(), "POST", "/generate", &[], STREAM).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "data: 1\n\n");
        streams.push(stream);
    }
    streams
}

/// Waits until the router refuses connections.
async fn refuses(router: &Router) {
    eventually("it accepts no more connections", || async {
        match tokio::net::TcpStream::connect(router.address()).await {
            Ok(_) => Err("accepted"),
            Err(_) => Ok(()),
        }
    })
    .await;
}

#[tokio::test]
async fn under_load_all_streams_finish_and_the_exit_is_clean() {
    let gate = Arc::new(Semaphore::new(0));
    let streaming = gated(&gate).await;
    let router_flags = ["--drain-settle-secs", "1"];
    let mut router = Router::before(&[streaming.url()], &router_flags).await;
    let streams = streams(&router, 20).await;
    // In addition, short requests go through a worker of their own.
    let other = Mock::start("other").await;
    let drained = router.post("/workers", format!(r#"{{"url":"{}"}}"#, other.url())).await;
    assert_eq!(drained.status, 202);
    router.knows_ready(2).await;
    let listed = router.get("/workers").await.json();
    let first =
        listed["workers"].as_array().unwrap().iter().find(|w| w["in_flight"] == 20).unwrap();
    let path = format!("/workers/{}/drain", first["id"].as_str().unwrap());
    router.send("POST", &path, &[], b"").await;
    let load = Load::start(router.address(), 8, 200, CHAT);
    load.answers(50).await;

    let signalled = Instant::now();
    router.signal("TERM");
    eventually("readiness reports it", || async {
        let answer = router.get("/readiness").await;
        if answer.status == 503 { Ok(answer) } else { Err(answer.status) }
    })
    .await;
    assert!(
        signalled.elapsed() < Duration::from_millis(500),
        "not at once: {:?}",
        signalled.elapsed()
    );
    let readiness = router.get("/readiness").await;
    assert_eq!((readiness.status, &readiness.json()["reason"]), (503, &"draining".into()));
    assert_eq!(router.get("/health").await.json()["draining"], true);
    // Load balancers have not noticed the shutdown yet, so new connections and requests are accepted.
    load.answers(50).await;
    assert_eq!(router.post("/v1/chat/completions", CHAT).await.status, 200);
    assert!(signalled.elapsed() < Duration::from_secs(1), "the machine is too slow for this test");
    // The router closes each connection at the end of an exchange, so the clients stop.
    assert_eq!(load.stop().await, Vec::<String>::new());

    refuses(&router).await;
    assert!(signalled.elapsed() >= Duration::from_secs(1), "{:?}", signalled.elapsed());
    gate.add_permits(20);
    for stream in streams {
        assert_eq!(stream.rest().await.unwrap(), "data: [DONE]\n\n");
    }
    assert_eq!(router.ended().await, 0, "{}", router.log());
}

#[tokio::test]
async fn a_second_signal_aborts_at_once() {
    let gate = Arc::new(Semaphore::new(0));
    let worker = gated(&gate).await;
    let mut router = Router::before(&[worker.url()], &[]).await;
    let streams = streams(&router, 3).await;
    router.signal("TERM");
    refuses(&router).await;
    let signalled = Instant::now();
    router.signal("INT");
    assert_eq!(router.ended().await, 1);
    assert!(signalled.elapsed() < Duration::from_secs(2), "{:?}", signalled.elapsed());
    for stream in streams {
        assert!(stream.rest().await.is_err(), "a stream that was cut looks whole");
    }
}

#[tokio::test]
async fn a_second_signal_with_nothing_in_flight_exits_cleanly() {
    let mut router = Router::start(&["--drain-settle-secs", "30"]).await;
    router.signal("TERM");
    eventually("the router drains", || async {
        let status = router.get("/readiness").await.json()["reason"].clone();
        if status == "draining" { Ok(()) } else { Err(status) }
    })
    .await;
    router.signal("TERM");
    let signalled = Instant::now();
    assert_eq!(router.ended().await, 0);
    assert!(signalled.elapsed() < Duration::from_secs(2), "{:?}", signalled.elapsed());
}

#[tokio::test]
async fn streams_that_exceed_the_grace_period_are_aborted() {
    let gate = Arc::new(Semaphore::new(0));
    let worker = gated(&gate).await;
    let mut router =
        Router::before(&[worker.url()], &["--shutdown-grace-period-secs", "0.5"]).await;
    let streams = streams(&router, 2).await;
    let signalled = Instant::now();
    router.signal("TERM");
    assert_eq!(router.ended().await, 1);
    let took = signalled.elapsed();
    assert!((Duration::from_millis(500)..Duration::from_secs(3)).contains(&took), "{took:?}");
    for stream in streams {
        assert!(stream.rest().await.is_err(), "a stream that was cut looks whole");
    }
}

#[tokio::test]
async fn idle_connections_do_not_delay_the_shutdown() {
    let worker = Worker::plain().await;
    let mut router = Router::before(&[worker.url()], &[]).await;
    let mut kept = Vec::new();
    for _ in 0..10 {
        let mut connection = Connection::open(router.address()).await.unwrap();
        assert_eq!(connection.post("/generate", &[], CHAT).await.unwrap().status, 200);
        kept.push(connection);
        // One more connection never sent anything.
        kept.push(Connection::open(router.address()).await.unwrap());
    }
    let signalled = Instant::now();
    router.signal("TERM");
    assert_eq!(router.ended().await, 0);
    assert!(signalled.elapsed() < Duration::from_secs(2), "{:?}", signalled.elapsed());
}

#[tokio::test]
async fn with_nothing_in_flight_the_shutdown_is_quick() {
    for signal in ["TERM", "INT"] {
        let mut router = Router::start(&[]).await;
        let signalled = Instant::now();
        router.signal(signal);
        assert_eq!(router.ended().await, 0);
        assert!(signalled.elapsed() < Duration::from_secs(1), "{:?}", signalled.elapsed());
    }
}

#[tokio::test]
async fn a_request_that_waits_for_its_worker_finishes() {
    let mock = Mock::start("w").await;
    let mut router = Router::before(&[mock.url()], &[]).await;
    mock.faults(r#"{"script":{"delay_ms":500}}"#);
    let address = router.address();
    let asked =
        tokio::spawn(client::send(address, "POST", "/v1/chat/completions", &[], CHAT.as_bytes()));
    eventually("the request is at the worker", || async {
        let stats = mock.stats();
        if stats.in_flight == 1 { Ok(()) } else { Err(stats) }
    })
    .await;
    router.signal("TERM");
    let answer = asked.await.unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(router.ended().await, 0);
}

#[tokio::test]
async fn a_health_port_does_not_delay_the_shutdown() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    drop(listener);
    let mut router = Router::start(&["--health-check-port", &port]).await;
    router.signal("TERM");
    let ended = tokio::time::timeout(Duration::from_secs(10), router.ended()).await;
    assert_eq!(ended.expect("the router hangs"), 0);
}
