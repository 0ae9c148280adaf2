//! Tests of silent connections: they are closed in time on every port, and closed early where places or descriptors run
//! out.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::support::client::{self, Connection};
use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::Worker;

/// A port that was free a moment ago.
fn free_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}

/// An address of this machine with this port.
fn at(port: &str) -> SocketAddr {
    format!("127.0.0.1:{port}").parse().unwrap()
}

async fn silent(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut silent = Vec::new();
    for _ in 0..count {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    silent
}

#[tokio::test]
async fn a_silent_connection_is_closed_after_the_header_timeout_on_every_port() {
    let (health, metrics) = (free_port(), free_port());
    let flags = ["--health-check-port", &health, "--prometheus-host", "127.0.0.1"];
    let mut flags = flags.to_vec();
    flags.extend(["--header-timeout-secs", "1", "--idle-connection-timeout-secs", "60"]);
    flags.extend(["--prometheus-port", &metrics]);
    let router = Router::start(&flags).await;
    for address in [router.address(), at(&health), at(&metrics)] {
        let began = Instant::now();
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(20), silent.read_to_end(&mut answer));
        ended.await.expect("the connection must be closed").unwrap();
        let took = began.elapsed();
        assert!(answer.is_empty() && took > Duration::from_millis(900), "{took:?} {answer:?}");
        // A connection that has had a request is kept for longer.
        let mut kept = Connection::open(address).await.unwrap();
        kept.send("GET", "/liveness", &[], "").await.unwrap();
        tokio::time::timeout(
            Duration::from_secs(20),
            TcpStream::connect(address).await.unwrap().read_to_end(&mut answer),
        )
        .await
        .expect("the connection must be closed")
        .unwrap();
        assert_eq!(kept.send("GET", "/liveness", &[], "").await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn pages_of_metrics_that_nobody_reads_take_little_memory() {
    let router = Router::start(&[]).await;
    let own = router.get("/metrics").await.body.len();
    let before = router.memory();
    let mut held = Vec::new();
    for _ in 0..30 {
        let tcp = TcpStream::connect(router.address()).await.unwrap();
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(0);
        let (sender, connection) = builder.handshake::<_, bytes::Bytes>(tcp).await.unwrap();
        tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        for _ in 0..90 {
            let request = http::Request::get("http://a/metrics").body(()).unwrap();
            let (response, _body) = sender.send_request(request, true).unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            held.push(response);
        }
    }
    let grown = router.memory().saturating_sub(before);
    let all = held.len() * own;
    assert!(grown < 48 << 20, "{} of {} MiB are held", grown >> 20, all >> 20);
    assert!(all > 96 << 20, "all pages are {} MiB", all >> 20);
    // Somebody else gets the page at once.
    assert!(router.get("/metrics").await.text().contains("smg_http_requests_total"));
}

#[tokio::test]
async fn silent_connections_do_not_block_the_health_port() {
    let health = free_port();
    let router = Router::start(&["--health-check-port", &health]).await;
    let address = at(&health);
    let mut attackers = silent(address, 256).await;
    // Connections that made a request and then became silent are treated alike.
    for _ in 0..256 {
        let mut probe = Connection::open(address).await.unwrap();
        if probe.send("GET", "/liveness", &[], "").await.is_ok() {
            attackers.extend(silent(address, 1).await);
        }
    }
    let began = Instant::now();
    eventually("a probe is answered", || async {
        client::try_send(address, "GET", "/liveness", &[], b"")
            .await
            .map(drop)
            .map_err(|e| e.to_string())
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(router.metric("smg_http_connections_closed_idle_total").await >= 1.0);
}

#[tokio::test]
async fn a_client_without_a_request_is_closed_for_one_that_sends_a_request() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &["--max-connections", "10"]).await;
    let address = router.address();
    let mut kept = Connection::open(address).await.unwrap();
    assert_eq!(kept.post("/generate", &[], "{}").await.unwrap().status, 200);
    let _attackers = silent(address, 9).await;
    // They are kept for a second, in which other connections are refused.
    eventually("another client is served", || async {
        match client::try_send(address, "POST", "/generate", &[], b"{}").await {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{:?}", other.map(|answer| answer.status))),
        }
    })
    .await;
    for _ in 0..20 {
        let answer = client::send(address, "POST", "/generate", &[], b"{}").await;
        assert_eq!(answer.status, 200);
    }
    let answer = kept.post("/generate", &[], "{}").await.expect("a served connection must be kept");
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn silent_clients_are_closed_when_descriptors_are_short() {
    let worker = Worker::plain().await;
    let few = ["sh", "-c", "ulimit -n 96 && exec \"$0\" \"$@\""];
    let router = Router::start_in(&few, &["--worker-urls", &worker.url()]).await;
    router.knows_ready(1).await;
    let _attackers = silent(router.address(), 150).await;
    eventually("another client is served", || async {
        let asked = client::try_send(router.address(), "POST", "/generate", &[], b"{}");
        match tokio::time::timeout(Duration::from_secs(5), asked).await {
            Ok(Ok(answer)) if answer.status == 200 => Ok(()),
            other => Err(format!("{:?}", other.map(|answer| answer.map(|a| a.status)))),
        }
    })
    .await;
    assert!(router.metric("smg_http_connections_closed_idle_total").await >= 1.0);
}
