//! WebSocket through the router: a tunnel to a worker that is picked as for any request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::support::eventually;
use crate::support::mock::{self, Mock};
use crate::support::router::Router;
use crate::support::worker::{Talk, Worker};

/// A handshake as a browser sends it.
const HANDSHAKE: &str = "GET /v1/realtime?model=m HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\n\
    upgrade: WebSocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n";

type Socket = WebSocketStream<TcpStream>;

/// Connects to a path of the router.
async fn connect(router: &Router, path: &str) -> Result<Socket, Error> {
    let tcp = TcpStream::connect(router.address()).await.unwrap();
    let url = format!("ws://{}{path}", router.address());
    tokio_tungstenite::client_async(url, tcp).await.map(|(socket, _)| socket)
}

/// The status, code of error and header of a handshake that must be refused.
async fn refused(router: &Router, path: &str) -> (u16, String) {
    match connect(router, path).await {
        Err(Error::Http(response)) => {
            let code = response.headers().get("x-smg-error-code");
            let code = code.map_or("", |code| code.to_str().unwrap()).to_owned();
            (response.status().as_u16(), code)
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was accepted"),
    }
}

async fn echoes(socket: &mut Socket, message: Message) {
    socket.send(message.clone()).await.unwrap();
    let back = tokio::time::timeout(Duration::from_secs(10), socket.next()).await;
    assert!(back.expect("no echo").unwrap().unwrap() == message, "another message came back");
}

/// Waits until so many requests are in flight on all workers together, as the router counts them.
async fn in_flight(router: &Router, wanted: u64) {
    eventually(&format!("{wanted} are in flight"), || async {
        let workers = router.get("/workers").await.json();
        let workers = workers["workers"].as_array().unwrap().iter();
        let seen: u64 = workers.map(|worker| worker["in_flight"].as_u64().unwrap()).sum();
        if seen == wanted { Ok(()) } else { Err(seen) }
    })
    .await;
}

async fn ended(router: &Router, how: &str) -> f64 {
    router.metric(&format!("smg_http_tunnels_ended_total{{end=\"{how}\"}}")).await
}

/// Waits until a tunnel has ended in this way.
async fn ends(router: &Router, how: &str) {
    eventually(&format!("a tunnel ends: {how}"), || async {
        let text = router.get("/metrics").await.text();
        if ended(router, how).await >= 1.0 {
            return Ok(());
        }
        Err(text.lines().filter(|line| line.contains("tunnels")).collect::<Vec<_>>().join("\n"))
    })
    .await;
}

/// The answer to a handshake, as bytes.
fn accepts(talk: &Talk) -> String {
    let accept = derive_accept_key(talk.seen.all("sec-websocket-key")[0].as_bytes());
    format!(
        "HTTP/1.1 101 X\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\n\r\n"
    )
}

#[tokio::test]
async fn messages_go_both_ways_and_the_tunnel_counts_on_its_worker() {
    let mocks = Mock::several(2).await;
    let router = Router::before(&mock::urls(&mocks), &["--policy", "round_robin"]).await;
    let mut sockets = Vec::new();
    for nth in 1..=4 {
        let mut socket = connect(&router, "/v1/realtime?model=m").await.unwrap();
        echoes(&mut socket, Message::text("hello")).await;
        echoes(&mut socket, Message::binary(vec![7; 1 << 20])).await;
        sockets.push(socket);
        in_flight(&router, nth).await;
    }
    assert_eq!(router.metric("smg_http_tunnels").await, 4.0);
    assert!(mocks.iter().all(|mock| mock.stats().in_flight == 2), "the policy picks");
    // One leaves in order, one is dropped.
    let mut polite = sockets.pop().unwrap();
    polite.close(None).await.unwrap();
    while let Some(Ok(_message)) = polite.next().await {}
    drop(sockets.pop());
    in_flight(&router, 2).await;
    ends(&router, "worker_left").await;
    ends(&router, "client_left").await;
    eventually("the workers see their connections end", || async {
        let left: u64 = mocks.iter().map(|mock| mock.stats().in_flight).sum();
        if left == 2 { Ok(()) } else { Err(left) }
    })
    .await;
    for socket in &mut sockets {
        echoes(socket, Message::text("still here")).await;
    }
}

#[tokio::test]
async fn the_query_names_the_model_and_the_workers_answer_passes() {
    let mock = Mock::start("w").await;
    let refuses = Worker::serving("n", |mut talk: Talk| async move {
        talk.answer(403, "x-own: 1\r\n", b"{}").await;
        talk
    })
    .await;
    let router = Router::before(&[mock.url(), refuses.url()], &[]).await;
    let mut socket = connect(&router, "/v1/realtime?model=m").await.unwrap();
    echoes(&mut socket, Message::text("x")).await;
    assert_eq!(refused(&router, "/v1/realtime?model=n").await, (403, String::new()));
    let seen = refuses.seen().pop().unwrap();
    assert_eq!(
        (seen.method.as_str(), seen.path.as_str(), seen.all("upgrade"), seen.all("connection")),
        ("GET", "/v1/realtime?model=n", vec!["websocket"], vec!["upgrade"])
    );
    assert_eq!(seen.all("sec-websocket-version"), ["13"]);
    let expected = [("", 400, "model_missing"), ("?model=none", 404, "model_not_found")];
    for (query, status, code) in expected {
        let path = format!("/v1/realtime{query}");
        assert_eq!(refused(&router, &path).await, (status, code.to_owned()));
    }
    let plain = router.get("/v1/realtime?model=m").await;
    assert_eq!((plain.status, plain.code().as_str()), (426, "upgrade_required"));
    assert_eq!(plain.header("upgrade"), Some("websocket"));
    in_flight(&router, 1).await;
}

#[tokio::test]
async fn a_key_is_asked_for_and_a_worker_that_is_not_there_is_replaced() {
    let mock = Mock::start("w").await;
    let spec = |url: &str| {
        json!({ "url": url, "models": ["m"], "health": { "disabled": true } }).to_string()
    };
    let router = Router::start(&["--policy", "round_robin"]).await;
    for url in [mock.url(), "http://127.0.0.1:1".to_owned()] {
        router.post("/workers", spec(&url)).await;
    }
    router.knows_ready(2).await;
    for _ in 0..4 {
        let mut socket = connect(&router, "/v1/realtime?model=m").await.unwrap();
        echoes(&mut socket, Message::text("x")).await;
    }
    let closed = Router::before(&[mock.url()], &["--api-key", "k"]).await;
    assert_eq!(refused(&closed, "/v1/realtime?model=m").await.0, 401);
}

#[tokio::test]
async fn a_page_of_an_origin_that_is_not_allowed_opens_no_tunnel() {
    let mock = Mock::start("w").await;
    let router =
        Router::before(&[mock.url()], &["--cors-allowed-origins", "https://good.test"]).await;
    for (origin, status) in [("https://good.test", 101), ("https://evil.test", 403)] {
        let mut tcp = TcpStream::connect(router.address()).await.unwrap();
        let head = HANDSHAKE.replace("\r\n\r\n", &format!("\r\norigin: {origin}\r\n\r\n"));
        tcp.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        tcp.read_exact(&mut answer).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), format!("HTTP/1.1 {status}"), "{origin}");
    }
}

#[tokio::test]
async fn a_silent_tunnel_is_closed_and_a_busy_one_is_not() {
    let mock = Mock::start("w").await;
    let router = Router::before(&[mock.url()], &["--idle-timeout-secs", "1"]).await;
    let mut busy = connect(&router, "/v1/realtime?model=m").await.unwrap();
    let mut silent = connect(&router, "/v1/realtime?model=m").await.unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        echoes(&mut busy, Message::text("x")).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let end = tokio::time::timeout(Duration::from_secs(10), silent.next()).await.unwrap();
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    assert_eq!(ended(&router, "idle").await, 1.0);
    in_flight(&router, 1).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_worker() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let worker = Worker::start(move |mut talk: Talk| {
        let sent = Arc::clone(&count);
        async move {
            talk.write(accepts(&talk)).await.unwrap();
            let piece = vec![0; 16 << 10];
            while talk.write(&piece).await.is_ok() {
                sent.fetch_add(16 << 10, Ordering::Relaxed);
            }
            talk.close();
            talk
        }
    })
    .await;
    let router = Router::before(&[worker.url()], &[]).await;
    let mut tcp = TcpStream::connect(router.address()).await.unwrap();
    tcp.write_all(HANDSHAKE.as_bytes()).await.unwrap();
    // What the systems of three processes buffer, and no more.
    let mut last = usize::MAX;
    eventually("the worker is stopped", || {
        let now = sent.load(Ordering::Relaxed);
        let stopped = now > 0 && now == std::mem::replace(&mut last, now);
        async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            if stopped { Ok(()) } else { Err(now) }
        }
    })
    .await;
    let stopped = sent.load(Ordering::Relaxed);
    assert!(stopped < 32 << 20, "{stopped} bytes went into the void");
    let mut taken = 0;
    let mut buffer = vec![0; 1 << 16];
    while taken < stopped + (1 << 20) {
        taken += tcp.read(&mut buffer).await.unwrap();
    }
    assert!(sent.load(Ordering::Relaxed) > stopped, "it goes on when the client reads");
    drop(tcp);
    in_flight(&router, 0).await;
}

#[tokio::test]
async fn a_worker_that_is_removed_keeps_a_tunnel_for_the_drain_time() {
    let mock = Mock::start("w").await;
    let router = Router::before(&[mock.url()], &["--drain-timeout-secs", "1"]).await;
    let mut socket = connect(&router, "/v1/realtime?model=m").await.unwrap();
    let id = router.get("/workers").await.json()["workers"][0]["id"].as_str().unwrap().to_owned();
    let began = Instant::now();
    router
        .send("DELETE", &format!("/workers/{id}"), &[("content-type", "application/json")], b"")
        .await;
    echoes(&mut socket, Message::text("still here")).await;
    let end = tokio::time::timeout(Duration::from_secs(10), socket.next()).await.unwrap();
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    assert!(began.elapsed() > Duration::from_millis(800), "{:?}", began.elapsed());
    ends(&router, "removed").await;
}

#[tokio::test]
async fn a_shutdown_refuses_new_tunnels_and_gives_open_ones_the_drain_time() {
    let mock = Mock::start("w").await;
    let flags = ["--drain-settle-secs", "3", "--shutdown-grace-period-secs", "2"];
    let mut router = Router::before(&[mock.url()], &flags).await;
    let mut stays = connect(&router, "/v1/realtime?model=m").await.unwrap();
    let mut leaves = connect(&router, "/v1/realtime?model=m").await.unwrap();
    router.signal("TERM");
    eventually("it drains", || async {
        let reason = router.get("/readiness").await.json()["reason"].clone();
        if reason == "draining" { Ok(()) } else { Err(reason) }
    })
    .await;
    let refusal = refused(&router, "/v1/realtime?model=m").await;
    assert_eq!(refusal, (503, "draining".to_owned()));
    for socket in [&mut stays, &mut leaves] {
        echoes(socket, Message::text("still here")).await;
    }
    leaves.close(None).await.unwrap();
    eventually("it accepts no more", || async {
        match TcpStream::connect(router.address()).await {
            Ok(_) => Err("accepted"),
            Err(_) => Ok(()),
        }
    })
    .await;
    echoes(&mut stays, Message::text("still here")).await;
    assert_eq!(router.ended().await, 1, "the tunnel was cut");
    let end = tokio::time::timeout(Duration::from_secs(10), stays.next()).await.unwrap();
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
}

#[tokio::test]
async fn a_shutdown_ends_with_the_last_tunnel() {
    let mock = Mock::start("w").await;
    let mut router = Router::before(&[mock.url()], &[]).await;
    let mut socket = connect(&router, "/v1/realtime?model=m").await.unwrap();
    router.signal("TERM");
    echoes(&mut socket, Message::text("still here")).await;
    socket.close(None).await.unwrap();
    while let Some(Ok(_message)) = socket.next().await {}
    assert_eq!(router.ended().await, 0, "{}", router.log());
}
