//! Tests that bytes are forwarded unchanged and streams without delay, and that a client's disconnect stops its worker.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::support::client;
use crate::support::router::Router;
use crate::support::worker::{Talk, Worker};

const INFERENCE: [&str; 14] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/rerank",
    "/rerank",
    "/v1/classify",
    "/v1/responses",
    "/v1/messages",
    "/v1/audio/transcriptions",
    "/generate",
    "/v1/tokenize",
    "/v1/detokenize",
    "/v1/score",
    "/v1/images/generations",
];

/// A worker that answers with the body that it received.
async fn echo() -> Worker {
    Worker::start(|mut talk| async move {
        let body = talk.seen.body.clone();
        talk.answer(200, "x-twice: a\r\nx-twice: b\r\ncontent-type: application/json\r\n", &body)
            .await;
        talk
    })
    .await
}

#[tokio::test]
async fn the_worker_receives_what_the_client_sent() {
    let worker = echo().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let odd = "\t{ \"model\" : \"m\",\r\n \"x\":[1.0,1e2,-0],\"\\u00e9\":\"\\ud83d\\ude00 \u{e9}\", \"model_\":null }\n ";
    let big = format!("{{\"model\":\"m\",\"messages\":\"{}\"}}", "x\\n\u{fc}".repeat(2 << 20));
    assert!(big.len() >= 8 << 20);
    for path in INFERENCE {
        for body in [odd, &big] {
            let answer = router.post(&format!("{path}?a=%20b&a"), body).await;
            assert_eq!(
                answer.status,
                200,
                "{path}: {}",
                answer.text().chars().take(200).collect::<String>()
            );
            assert!(answer.body == body.as_bytes(), "{path}: the answer's bytes differ");
            let seen = worker.seen().pop().unwrap();
            assert!(seen.body == body.as_bytes(), "{path}: the body at the worker differs");
            assert_eq!(seen.path, format!("{path}?a=%20b&a"));
            assert_eq!(seen.all("content-length"), [body.len().to_string()]);
        }
    }
}

#[tokio::test]
async fn a_form_is_forwarded_unchanged() {
    let worker = echo().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let mut form = b"--X\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--X\r\n\
                     Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n"
        .to_vec();
    form.extend((0..=255).cycle().take(100_000));
    form.extend_from_slice(b"\r\n--X--\r\n");
    let headers = [("content-type", "multipart/form-data; boundary=X")];
    let answer = router.send("POST", "/v1/audio/transcriptions", &headers, &form).await;
    assert_eq!((answer.status, answer.body == form), (200, true));
    assert!(worker.seen()[0].body == form);
}

#[tokio::test]
async fn headers_are_forwarded_both_ways_with_repetitions() {
    let worker = echo().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let headers = [
        ("accept", "a"),
        ("accept", "b"),
        ("authorization", "Bearer theirs"),
        ("x-own", "\u{e4}"),
        ("connection", "keep-alive, x-hop"),
        ("x-hop", "1"),
        ("te", "trailers"),
        ("x-correlation-id", "my-id"),
    ];
    let answer = router.send("POST", "/generate", &headers, b"{\"model\":\"m\"}").await;
    let twice: Vec<_> = answer.headers.get_all("x-twice").iter().collect();
    assert_eq!(twice, ["a", "b"]);
    assert_eq!(answer.header("x-request-id"), Some("my-id"));
    assert_eq!(answer.header("x-smg-worker"), None, "internal headers are off by default");
    let seen = worker.seen().pop().unwrap();
    assert_eq!(seen.all("accept"), ["a", "b"]);
    assert_eq!(seen.all("authorization"), ["Bearer theirs"]);
    assert_eq!(seen.all("x-own"), ["\u{e4}"]);
    assert_eq!(seen.all("x-request-id"), ["my-id"]);
    assert_eq!(seen.all("traceparent").len(), 1);
    assert_eq!(seen.all("host"), [worker.url().trim_start_matches("http://")]);
    for gone in ["x-hop", "te", "connection"] {
        assert_eq!(seen.all(gone), Vec::<&str>::new(), "{gone} applies to one connection only");
    }
}

#[tokio::test]
async fn a_workers_own_error_is_forwarded_unchanged() {
    let worker = Worker::start(|mut talk| async move {
        let status: u16 = talk.seen.all("x-want")[0].parse().unwrap();
        talk.answer(status, "x-own: 1\r\n", b"{\"detail\": \"mine\" }").await;
        talk
    })
    .await;
    let router = Router::before(&[worker.url()], &["--disable-retries"]).await;
    for status in ["400", "401", "404", "422", "429", "500", "503"] {
        let answer =
            router.send("POST", "/generate", &[("x-want", status)], b"{\"model\":\"m\"}").await;
        assert_eq!(
            (answer.status.to_string().as_str(), answer.text().as_str()),
            (status, "{\"detail\": \"mine\" }")
        );
        assert_eq!(answer.header("x-own"), Some("1"));
    }
}

/// A worker that streams the pieces that the test sends it, and reports when the router closed the connection.
async fn scripted_stream() -> (Worker, mpsc::Sender<&'static str>, oneshot::Receiver<Instant>) {
    let (pieces, received) = mpsc::channel::<&'static str>(8);
    let (gone, hung_up) = oneshot::channel();
    let parts = Arc::new(Mutex::new(Some((received, gone))));
    let worker = Worker::start(move |mut talk: Talk| {
        let parts = parts.lock().unwrap().take();
        async move {
            let (mut received, gone) = parts.expect("one request only");
            let mut begun = false;
            loop {
                tokio::select! {
                    next = received.recv() => match next {
                        Some(_) if !begun => {
                            begun = true;
                            talk.begin_stream().await;
                        }
                        Some(data) => talk.chunk(data).await.unwrap(),
                        None => {
                            talk.end_stream().await;
                            return talk;
                        }
                    },
                    () = talk.hung_up() => {
                        let _test_gone = gone.send(Instant::now()).is_err();
                        talk.close();
                        return talk;
                    }
                }
            }
        }
    })
    .await;
    (worker, pieces, hung_up)
}

const CHAT: &[u8] = br#"{"model":"m","stream":true,"messages":[]}"#;

#[tokio::test]
async fn the_first_chunk_arrives_before_the_second_is_sent() {
    let (worker, pieces, _) = scripted_stream().await;
    let router = Router::before(&[worker.url()], &[]).await;
    pieces.send("head").await.unwrap();
    let mut stream =
        client::begin(router.address(), "POST", "/v1/chat/completions", &[], CHAT).await.unwrap();
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    for data in ["data: 1\n\n", "data: 2\n\n"] {
        pieces.send(data).await.unwrap();
        let piece = tokio::time::timeout(Duration::from_secs(5), stream.next())
            .await
            .expect("the chunk was held back");
        assert_eq!(piece.unwrap().unwrap(), data);
    }
    drop(pieces);
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_disconnect_during_the_stream_stops_the_worker() {
    let (worker, pieces, hung_up) = scripted_stream().await;
    let router = Router::before(&[worker.url()], &[]).await;
    pieces.send("head").await.unwrap();
    let mut stream =
        client::begin(router.address(), "POST", "/v1/chat/completions", &[], CHAT).await.unwrap();
    pieces.send("data: 1\n\n").await.unwrap();
    stream.next().await.unwrap().unwrap();
    let left = Instant::now();
    drop(stream);
    let seen = tokio::time::timeout(Duration::from_secs(5), hung_up)
        .await
        .expect("the worker did not notice it")
        .unwrap();
    assert!(
        seen - left < Duration::from_millis(100),
        "the worker noticed it after {:?}",
        seen - left
    );
}

#[tokio::test]
async fn a_disconnect_before_the_first_byte_stops_the_worker() {
    let (worker, _pieces, hung_up) = scripted_stream().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let address = router.address();
    let waiting = tokio::spawn(async move {
        client::begin(address, "POST", "/v1/chat/completions", &[], CHAT).await.map(drop)
    });
    crate::support::eventually("the worker has the request", || async {
        if worker.seen().len() == 1 { Ok(()) } else { Err(worker.seen().len()) }
    })
    .await;
    let left = Instant::now();
    waiting.abort();
    let seen = tokio::time::timeout(Duration::from_secs(5), hung_up)
        .await
        .expect("the worker did not notice it")
        .unwrap();
    assert!(
        seen - left < Duration::from_millis(100),
        "the worker noticed it after {:?}",
        seen - left
    );
    crate::support::eventually("its slot is released", || async {
        let in_flight = router.get("/workers").await.json()["workers"][0]["in_flight"].as_u64();
        if in_flight == Some(0) { Ok(()) } else { Err(in_flight) }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_costs_no_memory() {
    const CHUNK: usize = 64 << 10;
    const ALL: usize = 100 << 20;
    let written = Arc::new(Mutex::new(0usize));
    let count = Arc::clone(&written);
    let worker = Worker::start(move |mut talk| {
        let count = Arc::clone(&count);
        async move {
            talk.begin_stream().await;
            let data = "x".repeat(CHUNK);
            while *count.lock().unwrap() < ALL {
                if talk.chunk(&data).await.is_err() {
                    talk.close();
                    return talk;
                }
                *count.lock().unwrap() += CHUNK;
            }
            talk.end_stream().await;
            talk
        }
    })
    .await;
    let router = Router::before(&[worker.url()], &[]).await;
    // The memory that the first request allocates once is not measured.
    router.post("/v1/tokenize", b"{}").await;
    *written.lock().unwrap() = 0;
    let before = router.memory();
    let mut stream =
        client::begin(router.address(), "POST", "/v1/chat/completions", &[], CHAT).await.unwrap();
    // If two readings a second apart are equal, every buffer between worker and client is full.
    let mut seen = (0, Instant::now());
    crate::support::eventually("the worker can send no more", || {
        let sent = *written.lock().unwrap();
        if sent != seen.0 {
            seen = (sent, Instant::now());
        }
        let still = sent > 0 && seen.1.elapsed() > Duration::from_secs(1);
        async move { if still { Ok(()) } else { Err(sent) } }
    })
    .await;
    let after = router.memory();
    let sent = *written.lock().unwrap();
    assert!(sent < ALL / 2, "the worker was not slowed down: it sent {sent} bytes");
    let grown = after.saturating_sub(before);
    assert!(grown < 8 << 20, "the router grew by {grown} bytes while the worker sent {sent}");
    let mut got = 0;
    while let Some(piece) = stream.next().await {
        got += piece.unwrap().len();
    }
    assert_eq!(got, ALL, "everything arrived once the client read on");
}

#[tokio::test]
async fn a_workers_url_never_reaches_a_client() {
    for status in [200, 201, 307, 308, 400] {
        let worker = Worker::start(move |mut talk| async move {
            let own = talk.seen.all("host")[0].to_owned();
            let headers = match talk.seen.path.as_str() {
                "/v1/completions" => format!(
                    "location: http://{own}/v1/x?y\r\ncontent-location: //{own}/z\r\n\
                     refresh: 1; url=http://{own}/r\r\nlink: <http://{own}/l>; rel=next\r\n"
                ),
                _ => "location: http://127.0.0.9:1/elsewhere\r\n".to_owned(),
            };
            talk.answer(status, &headers, b"{}").await;
            talk
        })
        .await;
        let router = Router::before(&[worker.url()], &["--disable-retries"]).await;
        let answer = router.post("/v1/completions", r#"{"model":"m"}"#).await;
        let seen =
            ["location", "content-location", "refresh", "link"].map(|name| answer.header(name));
        let wanted = ["/v1/x?y", "/z", "1; url=/r", "</l>; rel=next"].map(Some);
        assert_eq!((answer.status, seen), (status, wanted));
        let answer = router.post("/generate", r#"{"model":"m"}"#).await;
        assert_eq!((answer.status, answer.header("location")), (502, None), "after a {status}");
        assert_eq!(answer.code(), "upstream_protocol_error");
    }
}

#[tokio::test]
async fn only_the_routers_cors_headers_are_sent_where_cors_is_configured() {
    let worker = Worker::start(|mut talk| async move {
        let headers =
            "access-control-allow-origin: *\r\naccess-control-allow-credentials: true\r\n";
        talk.answer(200, headers, b"{}").await;
        talk
    })
    .await;
    let flags = ["--cors-allowed-origins", "https://good.test"];
    let router = Router::before(&[worker.url()], &flags).await;
    let ask = async |origin| {
        let headers = [("origin", origin), ("content-type", "application/json")];
        let answer = router.send("POST", "/generate", &headers, br#"{"model":"m"}"#).await;
        let names = ["access-control-allow-origin", "access-control-allow-credentials"];
        let exposed = answer.header("access-control-expose-headers").unwrap_or_default().to_owned();
        (names.map(|name| answer.header(name).map(str::to_owned)), exposed)
    };
    let (headers, exposed) = ask("https://good.test").await;
    assert_eq!(headers, [Some("https://good.test".to_owned()), None]);
    for name in ["x-request-id", "retry-after", "x-ratelimit-remaining-requests"] {
        assert!(exposed.contains(name), "{exposed}");
    }
    assert_eq!(ask("https://evil.test").await, ([None, None], String::new()));
    let without = Router::before(&[worker.url()], &[]).await;
    let answer = without.post("/generate", r#"{"model":"m"}"#).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "the worker's, unchanged");
}
