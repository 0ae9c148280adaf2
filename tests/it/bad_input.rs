//! Tests that invalid input gets a clear answer or a closed connection, and never causes a panic, a hang or a growth of
//! memory.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::router::{Router, command};
use crate::support::worker::Worker;
use crate::support::{client, eventually};

const PATIENCE: Duration = Duration::from_secs(5);

/// Writes raw bytes and returns all that comes back until the router closes the connection, for at most `PATIENCE`.
async fn raw(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The router may close the connection before it has read everything.
    let _hung_up = stream.write_all(bytes.as_ref()).await.is_err();
    rest(&mut stream).await
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let reading = async {
        let mut piece = [0u8; 4096];
        while let Ok(read @ 1..) = stream.read(&mut piece).await {
            answer.extend_from_slice(&piece[..read]);
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("neither an answer's end nor a close");
    String::from_utf8_lossy(&answer).into_owned()
}

/// A chat request after whose answer the connection closes.
fn chat(headers: &str, body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n{body}"
    )
}

/// Checks that an error has a code, and a body that clients can parse.
fn is_in_shape(answer: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("\r\nx-request-id: "), "{answer}");
    let document: serde_json::Value = serde_json::from_str(body).unwrap();
    let code = document["error"]["code"].as_str().unwrap();
    assert!(head.contains(&format!("\r\nx-smg-error-code: {code}\r\n")), "{answer}");
}

#[tokio::test]
async fn a_client_that_is_refused_while_it_sends_can_read_the_reason() {
    let worker = Worker::plain().await;
    let flags = ["--api-key", "right", "--max-payload-size", "2048"];
    let router = Router::before(&[worker.url()], &flags).await;
    for (key, status) in [("wrong", "401"), ("right", "413")] {
        // Sent as a whole before anything is read, as many clients do. A reset in the meantime would lose the answer.
        for _ in 0..20 {
            let head = format!(
                "POST /generate HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-length: 700000\r\n\r\n"
            );
            let mut stream = TcpStream::connect(router.address()).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            for _ in 0..70 {
                stream
                    .write_all(&[b' '; 10_000])
                    .await
                    .expect("the router has reset the connection");
                tokio::task::yield_now().await;
            }
            let answer = rest(&mut stream).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer:?}");
        }
    }
    // A client that sends for ever is disconnected.
    let mut endless = TcpStream::connect(router.address()).await.unwrap();
    let head = "POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 7000000000\r\n\r\n";
    endless.write_all(head.as_bytes()).await.unwrap();
    let sending = async { while endless.write_all(&[b' '; 10_000]).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, sending).await.expect("the router reads for ever");
}

#[tokio::test]
async fn bodies_are_bounded_together_as_well() {
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let opened = std::sync::Arc::clone(&gate);
    let worker = Worker::start(move |mut talk| {
        let opened = std::sync::Arc::clone(&opened);
        async move {
            if talk.seen.body.len() > 1000 {
                opened.acquire().await.unwrap().forget();
            }
            talk.answer(200, "", b"{}").await;
            talk
        }
    })
    .await;
    let router = Router::before(&[worker.url()], &["--max-buffered-bytes", "20000"]).await;
    let large = format!("{{\"model\":\"m\",\"x\":\"{}\"}}", "y".repeat(15_000));
    let (address, body) = (router.address(), large.clone().into_bytes());
    let first =
        tokio::spawn(
            async move { client::send(address, "POST", "/generate", &[], &body).await.status },
        );
    eventually("the first request is at the worker", || async {
        if worker.seen().len() == 1 { Ok(()) } else { Err(()) }
    })
    .await;
    assert!(router.metric("smg_http_buffered_bytes").await >= 15_000.0);
    let refused = router.post("/generate", &large).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "no_room_for_body"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(router.metric("smg_http_buffered_refused_total").await, 1.0);
    still_serves(&router).await;
    gate.add_permits(2);
    assert_eq!(first.await.unwrap(), 200);
    assert_eq!(router.post("/generate", &large).await.status, 200);
    assert_eq!(router.metric("smg_http_buffered_bytes").await, 0.0);
}

async fn still_serves(router: &Router) {
    assert_eq!(router.post("/generate", r#"{"model":"m"}"#).await.status, 200);
    assert!(!router.log().contains("panicked"), "{}", router.log());
}

#[tokio::test]
async fn an_invalid_body_is_answered_400_with_a_reason() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let deep = format!(r#"{{"model":"m","x":{}"#, "[".repeat(1_000_000));
    let bodies: [&[u8]; 13] = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\"m\"",
        b"{\"model\":\"m\"",
        b"{\"model\":\"m\"} x",
        b"{'model':'m'}",
        b"{\"model\":7}",
        b"{\"model\":{}}",
        b"{\"model\":\"m\",\"x\":\"\xff\xfe\"}",
        b"\xef\xbb\xbf\x00\x01",
        deep.as_bytes(),
    ];
    for body in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        for path in ["/v1/chat/completions", "/v1/messages"] {
            let answer = router.post(path, body).await;
            assert_eq!(answer.status, 400, "{shown:?} at {path}: {}", answer.text());
            assert_eq!(answer.code(), "invalid_json", "{shown:?}");
            assert!(!answer.json()["error"]["message"].as_str().unwrap().is_empty());
        }
    }
    assert!(worker.seen().is_empty(), "the worker must receive nothing of it");
    still_serves(&router).await;
}

#[tokio::test]
async fn a_body_one_byte_above_the_limit_is_answered_413_and_one_at_the_limit_is_not() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &["--max-payload-size", "2048"]).await;
    let body = |length: usize| format!("{{\"x\":\"{}\"}}", "y".repeat(length - 8));
    assert_eq!(router.post("/generate", body(2048)).await.status, 200);
    let answer = router.post("/generate", body(2049)).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "payload_too_large"));
    let chunked = |length: usize| {
        let body = body(length);
        chat("transfer-encoding: chunked\r\n", &format!("{length:x}\r\n{body}\r\n0\r\n\r\n"))
    };
    let answer = raw(router.address(), chunked(2048)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = raw(router.address(), chunked(2049)).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let answer = router.post("/workers", body(2049)).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "payload_too_large"));
}

#[tokio::test]
async fn a_client_that_sends_too_slowly_is_answered_408() {
    let worker = Worker::plain().await;
    let limits = ["--header-timeout-secs", "0.5", "--body-timeout-secs", "0.5"];
    let router = Router::before(&[worker.url()], &limits).await;
    for path in ["/v1/chat/completions", "/workers"] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{{"
        );
        let began = Instant::now();
        let answer = raw(router.address(), head).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "a slow body to {path}: {answer:?}");
        assert!(began.elapsed() > Duration::from_millis(450), "it had no time at all");
    }
    // Single bytes with pauses do not extend the deadline of the head.
    let (mut reading, mut writing) =
        TcpStream::connect(router.address()).await.unwrap().into_split();
    let dripping = tokio::spawn(async move {
        let mut drops =
            b"GET /health HTTP/1.1\r\nhost: a\r\nx: ".iter().chain(std::iter::repeat(&b'x'));
        while let Some(drop) = drops.next()
            && writing.write_all(&[*drop]).await.is_ok()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut answer = Vec::new();
    let _reset = tokio::time::timeout(PATIENCE, reading.read_to_end(&mut answer))
        .await
        .expect("a client that sends single bytes was not disconnected")
        .is_err();
    dripping.abort();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer:?}");
    is_in_shape(&answer);
    still_serves(&router).await;
}

#[tokio::test]
async fn what_is_not_http_is_refused() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let bomb = format!("GET /health HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(1000));
    let long = format!("GET /health HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let body = r#"{"model":"m"}"#;
    let refused = [
        ("\x16\x03\x01\x02\x00\x01\x00\x01\n\n\r\n\r\n".to_owned(), "400"),
        ("\0\0\0\0 no HTTP at all\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), "400"),
        (bomb, "431"),
        (long, "431"),
        (chat("content-length: -1\r\n", body), "400"),
        (chat("content-length: 13\r\ncontent-length: 14\r\n", body), "400"),
        (chat("content-length: 99999999999999999999999\r\n", body), "400"),
        (chat("transfer-encoding: chunked\r\n", "zz\r\n\r\n"), "400"),
        (chat("transfer-encoding: chunked\r\n", "ffffffffffffffffff\r\n"), "400"),
        (chat("transfer-encoding: gzip\r\n", body), "400"),
    ];
    for (bytes, status) in refused {
        let shown = bytes.chars().take(120).collect::<String>();
        let answer = raw(router.address(), &bytes).await;
        assert!(
            answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{shown:?}: {answer:?}"
        );
        if !answer.is_empty() {
            is_in_shape(&answer);
        }
    }
    assert!(worker.seen().is_empty(), "the worker must receive nothing of it");
    still_serves(&router).await;
}

#[tokio::test]
async fn unusual_but_valid_http_is_served() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let body = r#"{"model":"m"}"#;
    let one = format!("POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: 13\r\n\r\n{body}");
    let pipelined = format!("{one}{one}{}", chat("content-length: 13\r\n", body));
    let answer = raw(router.address(), pipelined).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 3, "{answer}");
    let old = format!("POST /generate HTTP/1.0\r\ncontent-length: 13\r\n\r\n{body}");
    let answer = raw(router.address(), old).await;
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    let mut patient = TcpStream::connect(router.address()).await.unwrap();
    let head = chat("content-length: 13\r\nexpect: 100-continue\r\n", "");
    patient.write_all(head.as_bytes()).await.unwrap();
    let mut go = [0u8; 25];
    tokio::time::timeout(PATIENCE, patient.read_exact(&mut go))
        .await
        .expect("the router answers 100 Continue")
        .unwrap();
    assert_eq!(&go, b"HTTP/1.1 100 Continue\r\n\r\n");
    patient.write_all(body.as_bytes()).await.unwrap();
    assert!(rest(&mut patient).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_half_closed_client_counts_as_disconnected() {
    // The worker never answers, so only the client's close can free the place.
    let worker = Worker::start(|mut talk| async move {
        talk.hung_up().await;
        talk.close();
        talk
    })
    .await;
    let router = Router::before(&[worker.url()], &[]).await;
    let mut half = TcpStream::connect(router.address()).await.unwrap();
    let body = r#"{"model":"m"}"#;
    half.write_all(chat("content-length: 13\r\n", body).as_bytes()).await.unwrap();
    eventually("the worker has the request", || async {
        if worker.seen().len() == 1 { Ok(()) } else { Err(worker.seen().len()) }
    })
    .await;
    half.shutdown().await.unwrap();
    assert_eq!(rest(&mut half).await, "");
    eventually("the place of the request is free", || async {
        let in_flight = router.get("/workers").await.json()["workers"][0]["in_flight"].as_u64();
        if in_flight == Some(0) { Ok(()) } else { Err(in_flight) }
    })
    .await;
    assert!(!router.log().contains("panicked"), "{}", router.log());
}

#[tokio::test]
async fn bad_requests_leak_nothing() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let burst = async |count: usize| {
        for nth in 0..count {
            let answer = match nth % 4 {
                0 => raw(router.address(), chat("content-length: 3\r\n", "{x}")).await,
                1 => raw(router.address(), "nonsense\r\n\r\n").await,
                2 => raw(router.address(), format!("GET /{nth} HTTP/1.0\r\n\r\n")).await,
                _ => {
                    raw(router.address(), chat("content-length: 13\r\n", r#"{"model": 123}"#)).await
                }
            };
            assert!(answer.starts_with("HTTP/1."), "{answer:?}");
        }
    };
    burst(400).await;
    let before = router.memory();
    burst(4000).await;
    let grown = router.memory().saturating_sub(before);
    assert!(grown < 2 << 20, "4000 bad requests cost {grown} bytes");
    still_serves(&router).await;
}

/// Runs the binary until it exits, and returns its status and standard error.
async fn run(arguments: &[&str]) -> (i32, String) {
    let running = command().args(arguments).output();
    let output = tokio::time::timeout(Duration::from_secs(20), running).await;
    let output = output.expect("it ends").unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn the_error_of_a_port_in_use_names_the_flag_and_the_port() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (status, errors) =
        run(&["--host", "127.0.0.1", "--port", &port, "--prometheus-port", "0"]).await;
    assert_eq!(status, 1, "{errors}");
    assert!(errors.contains("--port") && errors.contains(&port), "{errors}");
    let (status, errors) = run(&[
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--prometheus-host",
        "127.0.0.1",
        "--prometheus-port",
        &port,
    ])
    .await;
    assert_eq!(status, 1, "{errors}");
    assert!(errors.contains("--prometheus-port") && errors.contains(&port), "{errors}");
}

#[tokio::test]
async fn all_mistakes_are_reported_together() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.pem");
    std::fs::write(&bad, "no certificate").unwrap();
    let bad = bad.to_str().unwrap();
    let missing = dir.path().join("missing.pem");
    let missing = missing.to_str().unwrap();
    let (status, errors) = run(&[
        "--port",
        "99999",
        "--policy",
        "best",
        "--worker-urls",
        "ftp://a",
        "--retry-max-retries",
        "-5",
        "--tls-cert-path",
        bad,
        "--tls-key-path",
        missing,
    ])
    .await;
    assert_eq!(status, 2, "{errors}");
    let named = [
        "--port",
        "99999",
        "--policy",
        "best",
        "--worker-urls",
        "ftp://a",
        "--retry-max-retries",
        "--tls-cert-path",
        bad,
        "--tls-key-path",
        missing,
    ];
    for name in named {
        assert!(errors.contains(name), "{name} is not named in:\n{errors}");
    }
}

#[tokio::test]
async fn the_error_of_an_unreadable_configuration_names_the_flag_and_the_file() {
    for path in ["/no/such/file.toml", "/"] {
        let (status, errors) = run(&["--config", path]).await;
        assert_eq!(status, 2, "{errors}");
        assert!(errors.contains("--config") && errors.contains(path), "{errors}");
    }
}

#[tokio::test]
async fn a_request_names_its_host_once() {
    let router = Router::start(&[]).await;
    for (head, status) in [
        ("GET /liveness HTTP/1.1\r\n", 400),
        ("GET /liveness HTTP/1.1\r\nhost: a\r\nhost: a\r\n", 400),
        ("GET /liveness HTTP/1.1\r\nhost: a\r\nHost: b\r\n", 400),
        ("GET /liveness HTTP/1.1\r\nhost: a, b\r\n", 400),
        ("GET /liveness HTTP/1.0\r\nhost: a\r\nhost: a\r\n", 400),
        ("GET /liveness HTTP/1.1\r\nhost: a:80\r\n", 200),
        ("GET /liveness HTTP/1.0\r\n", 200),
    ] {
        let answer = raw(router.address(), format!("{head}connection: close\r\n\r\n")).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} "))
                || answer.starts_with(&format!("HTTP/1.0 {status} ")),
            "{head}: {answer}"
        );
        if status == 400 {
            assert!(answer.contains("invalid_host"), "{answer}");
        }
    }
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let worker = Worker::start(|mut talk| async move {
        // As engines do, which know no HEAD.
        match talk.seen.method.as_str() {
            "GET" => talk.answer(200, "content-type: application/json\r\n", b"{\"a\":1}").await,
            _ => talk.answer(405, "", b"").await,
        }
        talk
    })
    .await;
    let router = Router::before(&[worker.url()], &[]).await;
    let paths = [
        "/health",
        "/v1/models",
        "/v1/models/m",
        "/v1/models/none",
        "/nowhere",
        "/version",
        "/props",
        "/tokenizer_info",
        "/workers",
        "/server_info",
        "/openapi.yaml",
        "/ha/health",
    ];
    for path in paths {
        let get = router.get(path).await;
        let head = router.send("HEAD", path, &[], b"").await;
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        // The age of a fact may have got another digit.
        let length = |answer: &client::Answer| {
            answer.header("content-length").unwrap_or("none").parse::<usize>().ok()
        };
        let (of_head, of_get) = (length(&head), length(&get));
        let differs = of_head.zip(of_get).map(|(a, b)| a.abs_diff(b));
        assert!(differs.is_some_and(|by| by <= 8), "{path}: {of_head:?} and {of_get:?}");
    }
}

#[tokio::test]
async fn links_and_metadata_services_are_no_workers() {
    let router = Router::start(&["--allow-worker-cidr", "169.254.7.0/24"]).await;
    for host in [
        "169.254.169.254",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "metadata.google.internal",
        "[::ffff:a9fe:a9fe]",
    ] {
        let url = format!("http://{host}:80");
        let answer = router.post("/workers", json!({ "url": url }).to_string()).await;
        assert_eq!(answer.status, 400, "{host}: {}", answer.text());
        assert!(answer.text().contains("metadata service"), "{}", answer.text());
    }
    let answer = router.post("/workers", r#"{"url":"http://169.254.7.1:80"}"#).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let (status, errors) = run(&["--worker-urls", "http://169.254.169.254"]).await;
    assert!(status == 2 && errors.contains("--allow-worker-cidr"), "{errors}");
}
