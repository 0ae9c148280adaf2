//! How a request came here: what workers learn of the client, and HTTP/2 without TLS.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::router::Router;
use crate::support::worker::{Seen, Worker};

const BODY: &[u8] = br#"{"model":"m"}"#;
const JSON: (&str, &str) = ("content-type", "application/json");

fn forwarded(seen: &Seen) -> [Vec<&str>; 3] {
    ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"].map(|name| seen.all(name))
}

#[tokio::test]
async fn a_worker_learns_of_the_client_and_of_the_proxies_before() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    router.send("POST", "/generate", &[JSON], BODY).await;
    let proxied = [
        JSON,
        ("x-forwarded-for", "203.0.113.7, 10.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "api.example.com"),
    ];
    router.send("POST", "/generate", &proxied, BODY).await;
    let seen = worker.seen();
    let host = router.address().to_string();
    assert_eq!(forwarded(&seen[0]), [vec!["127.0.0.1"], vec!["http"], vec![host.as_str()]]);
    let chain = "203.0.113.7, 10.0.0.1, 127.0.0.1";
    assert_eq!(forwarded(&seen[1]), [vec![chain], vec!["https"], vec!["api.example.com"]]);
    // What a client declares to be for one hop does not remove what the router says.
    let names =
        "x-forwarded-for, x-forwarded-proto, X-Forwarded-Host, host, via, x-request-id, x-own";
    let hides = [JSON, ("connection", names), ("x-forwarded-for", "203.0.113.7"), ("x-own", "1")];
    router.send("POST", "/generate", &hides, BODY).await;
    let seen = worker.seen().pop().unwrap();
    assert_eq!(forwarded(&seen), [vec!["127.0.0.1"], vec!["http"], vec![host.as_str()]]);
    assert_eq!((seen.all("via").len(), seen.all("x-request-id").len()), (1, 1));
    assert_eq!(seen.all("x-own"), Vec::<&str>::new());
}

#[tokio::test]
async fn a_worker_learns_nothing_where_that_is_off() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &["--disable-forwarded-headers"]).await;
    router.send("POST", "/generate", &[JSON], BODY).await;
    router.send("POST", "/generate", &[JSON, ("x-forwarded-for", "203.0.113.7")], BODY).await;
    let seen = worker.seen();
    assert_eq!(forwarded(&seen[0]), [vec![], vec![], vec![]] as [Vec<&str>; 3]);
    assert_eq!(forwarded(&seen[1])[0], ["203.0.113.7"], "what the client says passes");
}

#[tokio::test]
async fn clients_speak_http_2_without_tls_by_prior_knowledge() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let tcp = TcpStream::connect(router.address()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let request = http::Request::post("http://smg.test/generate")
            .header("content-type", "application/json")
            .body(Full::new(bytes::Bytes::from_static(BODY)))
            .unwrap();
        asked.spawn(sender.send_request(request));
    }
    for response in asked.join_all().await {
        let response = response.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, http::Version::HTTP_2));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "{}");
    }
    let seen = worker.seen();
    assert_eq!(seen.len(), 20);
    let host = ["127.0.0.1", "http", "smg.test"].map(|value| vec![value]);
    assert_eq!(forwarded(&seen[0]), host, "HTTP/2 has no host header");
}

/// The first bytes of a connection may come one by one.
#[tokio::test]
async fn a_request_that_begins_slowly_is_read_by_its_protocol() {
    let router = Router::start(&[]).await;
    for (begin, rest, answer) in [
        ("P", "OST /liveness HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "HTTP/1.1 405 "),
        ("PR", "I /liveness HTTP/1.1\r\nhost: x\r\n\r\n", ""),
        ("G", "ET /liveness HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "HTTP/1.1 200 "),
    ] {
        let mut tcp = TcpStream::connect(router.address()).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.write_all(begin.as_bytes()).await.unwrap();
        // The rest comes when the system has given the beginning to the router: it then waits for more.
        tokio::task::yield_now().await;
        tcp.write_all(rest.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), tcp.read_to_end(&mut text)).await;
        assert!(read.is_ok(), "{begin}: the connection ends");
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(text.starts_with(answer), "{begin}: {text}");
    }
}

/// A connection that says nothing keeps neither a thread nor the end of the router.
#[tokio::test]
async fn a_silent_connection_is_closed_in_time_and_at_the_end() {
    let mut router = Router::start(&["--header-timeout-secs", "0.5"]).await;
    let mut silent = TcpStream::connect(router.address()).await.unwrap();
    let mut byte = [0];
    let closed = tokio::time::timeout(Duration::from_secs(20), silent.read(&mut byte)).await;
    assert_eq!(closed.expect("it is closed").unwrap_or(0), 0);
    let _open = TcpStream::connect(router.address()).await.unwrap();
    router.signal("TERM");
    assert_eq!(router.ended().await, 0);
}
