//! Tests of streams over HTTP/2: if a client reads nothing of one, its place at the worker is released, and no other
//! stream is affected.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::{Talk, Worker};
use crate::tls::{Authority, connector};

/// A worker that streams without end, and counts the connections that the router has closed.
async fn endless(ended: &Arc<AtomicUsize>) -> Worker {
    let ended = Arc::clone(ended);
    Worker::start(move |mut talk: Talk| {
        let ended = Arc::clone(&ended);
        async move {
            talk.begin_stream().await;
            let data = "x".repeat(64 << 10);
            while talk.chunk(&data).await.is_ok() {}
            ended.fetch_add(1, Ordering::Relaxed);
            talk.close();
            talk
        }
    })
    .await
}

/// A router with TLS for `worker`.
async fn with_tls(worker: &Worker, authority: &Authority, flags: &[&str]) -> Router {
    let (cert, key) = (authority.text("own.pem"), authority.text("own.key"));
    let url = worker.url();
    let mut all = vec!["--worker-urls", &url, "--tls-cert-path", &cert, "--tls-key-path", &key];
    all.extend(flags);
    let router = Router::start(&all).await;
    eventually("the worker is up", || async {
        let log = router.log();
        if log.contains("worker is up") { Ok(()) } else { Err(log) }
    })
    .await;
    router
}

/// A connection over HTTP/2 whose streams may send `window` bytes before their client reads some.
async fn connect(router: &Router, authority: &Authority, window: u32) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(router.address()).await.unwrap();
    let connector = connector(authority, None, &[b"h2"]);
    let tls = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window);
    let (sender, connection) = builder.handshake::<_, Bytes>(tls).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

/// Begins a stream and returns the response, whose body is not read.
async fn begin(sender: &mut SendRequest<Bytes>) -> http::Response<h2::RecvStream> {
    let request = http::Request::post("https://localhost/v1/chat/completions").body(()).unwrap();
    let (response, mut body) = sender.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(br#"{"model":"m","stream":true}"#), true).unwrap();
    response.await.unwrap()
}

/// Requests a document over a connection of its own.
async fn get(router: &Router, authority: &Authority, path: &str) -> serde_json::Value {
    let mut sender = connect(router, authority, 1 << 20).await;
    let request = http::Request::get(format!("https://localhost{path}")).body(()).unwrap();
    let (response, _body) = sender.send_request(request, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let mut whole = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
        whole.extend_from_slice(&piece);
    }
    serde_json::from_slice(&whole).unwrap()
}

async fn in_flight(router: &Router, authority: &Authority) -> u64 {
    get(router, authority, "/workers").await["workers"][0]["in_flight"].as_u64().unwrap()
}

#[tokio::test]
async fn a_stream_over_http_2_whose_client_reads_nothing_is_reset() {
    let authority = Authority::new();
    let ended = Arc::new(AtomicUsize::new(0));
    let worker = endless(&ended).await;
    let router = with_tls(&worker, &authority, &["--body-timeout-secs", "1"]).await;
    // One client never opens a window, and one stops after the first piece.
    for (nth, window) in [0, 100].into_iter().enumerate() {
        let mut sender = connect(&router, &authority, window).await;
        let began = Instant::now();
        let response = begin(&mut sender).await;
        assert_eq!(response.status(), 200);
        assert_eq!(in_flight(&router, &authority).await, 1);
        eventually("its place is released", || async {
            match (in_flight(&router, &authority).await, ended.load(Ordering::Relaxed)) {
                (0, workers) if workers == nth + 1 => Ok(()),
                other => Err(other),
            }
        })
        .await;
        assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
        let mut body = response.into_body();
        let error = loop {
            match body.data().await.expect("a stream that was reset must not look complete") {
                Ok(_piece) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL), "{error}");
    }
}

#[tokio::test]
async fn a_stream_that_is_read_continues_beside_one_that_is_not() {
    let authority = Authority::new();
    let ended = Arc::new(AtomicUsize::new(0));
    let worker = endless(&ended).await;
    let router = with_tls(&worker, &authority, &["--body-timeout-secs", "1"]).await;
    let mut sender = connect(&router, &authority, 100).await;
    let unread = begin(&mut sender).await;
    let mut read = begin(&mut sender).await.into_body();
    let (until, mut bytes) = (Instant::now() + Duration::from_secs(3), 0);
    while Instant::now() < until {
        let piece = read.data().await.expect("the stream ended").expect("the stream was reset");
        read.flow_control().release_capacity(piece.len()).unwrap();
        bytes += piece.len();
    }
    assert!(bytes > 1000, "{bytes}");
    assert_eq!(ended.load(Ordering::Relaxed), 1, "the other stream was cut");
    drop(unread);
}

#[tokio::test]
async fn a_websocket_over_http_2_is_told_that_it_takes_http_1() {
    let authority = Authority::new();
    let worker = Worker::plain().await;
    let router = with_tls(&worker, &authority, &[]).await;
    let answer = get(&router, &authority, "/v1/realtime?model=m").await;
    assert_eq!(answer["error"]["code"], "upgrade_required");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("only over HTTP/1.1"), "{message}");
}
