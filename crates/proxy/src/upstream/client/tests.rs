//! Tests of the client with workers that follow a script, byte by byte: which connections are used again, which answers
//! are valid, and which errors a broken one causes.

#![expect(clippy::disallowed_methods, reason = "the workers are tasks that end with their test")]

mod delivery;
mod fake;

use std::task::Poll;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use fake::{Fake, noticing, request, request_head};

use smg_types::spec::WorkerUrl;

use super::*;
use crate::upstream::BodyError;

const LONG: Duration = Duration::from_secs(20);

fn client() -> Client {
    with(Config::default())
}

fn with(config: Config) -> Client {
    let clock = Clock::start();
    Client::new(config, None, Dialer::simple(clock), clock)
}

async fn send(
    client: &Client,
    url: &WorkerUrl,
    method: Method,
    body: impl Into<Bytes>,
) -> Result<Response<ResponseBody>, SendError> {
    let outgoing = Outgoing {
        method: &method,
        path_and_query: &PathAndQuery::from_static("/x"),
        headers: &HeaderMap::new(),
        authorization: None,
        body: body.into(),
        stream: true,
        websocket: false,
    };
    tokio::time::timeout(LONG, client.send(url, &outgoing)).await.expect("the client hangs")
}

async fn rest(response: Response<ResponseBody>) -> Result<Bytes, BodyError> {
    let collected = tokio::time::timeout(LONG, response.into_body().collect()).await;
    collected.expect("the body hangs").map(http_body_util::Collected::to_bytes)
}

/// Sends a request and reads the whole answer.
async fn ask(client: &Client, url: &WorkerUrl) -> (u16, Bytes) {
    let response = send(client, url, Method::POST, "ask").await.unwrap();
    (response.status().as_u16(), rest(response).await.unwrap())
}

/// Waits until the worker's last action has had its effect here.
async fn settled() {
    tokio::time::sleep(Duration::from_millis(30)).await;
}

#[tokio::test]
async fn a_connection_is_used_again_after_a_whole_answer() {
    let cases: [&[&[u8]]; 6] = [
        &[b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"],
        &[b"HTTP/1.1 200 OK\r\ncontent-", b"length: 2\r\n\r\n", b"o", b"k"],
        &[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"],
        &[
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no",
            b"\r\n1\r\nk\r\n",
            b"0\r\nt: 1\r\n",
            b"\r\n",
        ],
        &[b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"],
        &[b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok"],
    ];
    for pieces in cases {
        let worker = Fake::answering(pieces).await;
        let client = client();
        for _ in 0..5 {
            assert_eq!(ask(&client, &worker.url()).await, (200, Bytes::from("ok")));
        }
        assert_eq!(worker.connections(), 1, "{:?}", String::from_utf8_lossy(&pieces.concat()));
    }
}

#[tokio::test]
async fn a_connection_is_not_used_again_when_the_end_of_its_answer_is_in_doubt() {
    let cases: [&[&[u8]]; 6] = [
        &[b"HTTP/1.1 200 OK\r\nconnection: x, Close\r\ncontent-length: 2\r\n\r\nok"],
        &[b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"],
        &[b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n"],
        &[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n\r\n"],
        &[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n"],
        // Late bytes are noticed before the next request.
        &[b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", b"x"],
    ];
    for pieces in cases {
        let worker = Fake::answering(pieces).await;
        let client = client();
        for nth in 1..4 {
            assert_eq!(ask(&client, &worker.url()).await, (200, Bytes::from("ok")));
            settled().await;
            let shown = String::from_utf8_lossy(&pieces.concat()).into_owned();
            assert_eq!(worker.connections(), nth, "{shown:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_without_a_body_keeps_the_connection_usable() {
    let worker =
        Fake::answering(&[b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: 1\r\nX: 2\r\n\r\n"]).await;
    let client = client();
    for _ in 0..3 {
        let response = send(&client, &worker.url(), Method::HEAD, "").await.unwrap();
        assert!(http_body::Body::is_end_stream(response.body()));
        assert_eq!(response.headers()["content-length"], "2");
        assert_eq!(response.headers().get_all("x").iter().collect::<Vec<_>>(), ["1", "2"]);
    }
    assert_eq!(worker.connections(), 1);
}

#[tokio::test]
async fn a_body_without_a_length_lasts_until_the_worker_closes() {
    let worker = Fake::start(|_, mut stream| async move {
        request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nsome").await.unwrap();
        settled().await;
        stream.write_all(b" more").await.unwrap();
    })
    .await;
    assert_eq!(ask(&client(), &worker.url()).await, (200, Bytes::from("some more")));
}

#[tokio::test]
async fn a_connection_that_the_worker_closed_meanwhile_costs_no_request() {
    for half_open in [false, true] {
        let worker = Fake::start(move |_, mut stream| async move {
            request(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            if half_open {
                stream.shutdown().await.unwrap();
                std::future::pending::<()>().await;
            }
        })
        .await;
        let client = client();
        for _ in 0..3 {
            assert_eq!(ask(&client, &worker.url()).await, (200, Bytes::from("ok")));
            settled().await;
        }
        assert_eq!(worker.connections(), 3);
        client.evict();
        assert!(
            client.pool.take(Target::from(&worker.url()).place(), client.clock.mono()).is_none()
        );
    }
}

#[tokio::test]
async fn a_new_connection_that_is_closed_without_an_answer_is_a_reset() {
    for sent in [&b""[..], b"HTTP/1.1 200", b"HTTP/1.1 100 Continue\r\n\r\n"] {
        let worker = Fake::start(move |_, mut stream| async move {
            request(&mut stream).await;
            stream.write_all(sent).await.unwrap();
        })
        .await;
        let error = send(&client(), &worker.url(), Method::POST, "x").await.unwrap_err();
        assert!(
            matches!(error, SendError::Lost { delivery: Delivery::PerhapsAll, gone: false }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_a_protocol_error() {
    for sent in [&b"SSH-2.0-x\r\n"[..], b"HTTP/1.1 101 X\r\n\r\n", b"\0\0\0"] {
        let worker = Fake::start(move |_, mut stream| async move {
            stream.write_all(sent).await.unwrap();
            request(&mut stream).await;
            std::future::pending::<()>().await;
        })
        .await;
        let error = send(&client(), &worker.url(), Method::POST, "x").await.unwrap_err();
        assert!(matches!(error, SendError::Protocol(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_body_that_ends_early_is_broken() {
    for sent in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nsome"[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nsome",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nsome\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nsome\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nsomeX",
    ] {
        let worker = Fake::start(move |_, mut stream| async move {
            request(&mut stream).await;
            stream.write_all(sent).await.unwrap();
        })
        .await;
        let mut body = send(&client(), &worker.url(), Method::POST, "x").await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "some");
        let error = body.frame().await.unwrap().unwrap_err();
        assert!(matches!(error, BodyError::Broken(_) | BodyError::Framing(_)), "{error:?}");
    }
}

#[tokio::test]
async fn received_bytes_can_be_forwarded_before_the_error_is_returned() {
    let worker = Fake::start(|_, mut stream| async move {
        request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nsome").await.unwrap();
    })
    .await;
    let response = send(&client(), &worker.url(), Method::POST, "x").await.unwrap();
    settled().await;
    let mut body = std::pin::pin!(response.into_body());
    let mut polls = Vec::new();
    std::future::poll_fn(|cx| {
        let polled = http_body::Body::poll_frame(body.as_mut(), cx);
        polls.push(match &polled {
            Poll::Pending => "wait",
            Poll::Ready(Some(Ok(_))) => "piece",
            Poll::Ready(Some(Err(_))) => "error",
            Poll::Ready(None) => "end",
        });
        match polled {
            Poll::Ready(Some(Ok(_))) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => Poll::Ready(()),
        }
    })
    .await;
    assert_eq!(polls, ["piece", "wait", "error"]);
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_is_valid() {
    // The worker reads only the head, answers, and closes the connection with most of the request unread, which causes
    // a reset.
    let worker = Fake::start(|_, mut stream| async move {
        request_head(&mut stream).await.unwrap();
        stream
            .write_all(
                b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig",
            )
            .await
            .unwrap();
        settled().await;
    })
    .await;
    let response = send(&client(), &worker.url(), Method::POST, vec![0u8; 16 << 20]).await.unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(rest(response).await.unwrap(), "big");
}

#[tokio::test]
async fn the_request_is_sent_while_the_answer_is_received() {
    // The worker returns what it reads while it reads it.
    const ALL: usize = 16 << 20;
    let worker = Fake::start(|_, mut stream| async move {
        request_head(&mut stream).await.unwrap();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {ALL}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut reading, mut writing) = stream.split();
        let echoed = tokio::io::copy(&mut (&mut reading).take(ALL as u64), &mut writing).await;
        assert_eq!(echoed.unwrap(), ALL as u64);
    })
    .await;
    let sent: Vec<u8> = (0..ALL).map(|at| ((at * 31) >> 5) as u8).collect();
    let response = send(&client(), &worker.url(), Method::POST, sent.clone()).await.unwrap();
    assert!(rest(response).await.unwrap() == sent);
}

#[tokio::test]
async fn a_worker_that_answers_much_and_reads_nothing_causes_no_deadlock() {
    let worker = Fake::start(|_, mut stream| async move {
        request_head(&mut stream).await.unwrap();
        let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 16 << 20);
        answer.push_str(&"y".repeat(16 << 20));
        stream.write_all(answer.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let client = client();
    let response = send(&client, &worker.url(), Method::POST, vec![0u8; 16 << 20]).await.unwrap();
    assert_eq!(rest(response).await.unwrap().len(), 16 << 20);
    // Half of the request has not been read.
    assert!(client.pool.take(Target::from(&worker.url()).place(), client.clock.mono()).is_none());
}

#[tokio::test]
async fn large_bodies_arrive_unchanged() {
    let sent: Arc<Vec<u8>> = Arc::new((0..24_000_000u32).map(|at| ((at * 7) >> 3) as u8).collect());
    let bytes = Arc::clone(&sent);
    let worker = Fake::start(move |_, mut stream| {
        let bytes = Arc::clone(&bytes);
        async move {
            let mut nth = 0;
            while request(&mut stream).await.is_some() {
                nth += 1;
                if nth == 1 {
                    let head =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", bytes.len());
                    stream.write_all(head.as_bytes()).await.unwrap();
                    stream.write_all(&bytes).await.unwrap();
                    continue;
                }
                let mut answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
                // Chunks of one byte, of some bytes, and of many.
                let mut left = &bytes[..];
                for size in [1, 3, 70_000, 5000, 17, 2048].into_iter().cycle() {
                    let (chunk, after) = left.split_at(size.min(left.len()));
                    left = after;
                    answer.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    answer.extend_from_slice(chunk);
                    answer.extend_from_slice(b"\r\n");
                    if chunk.is_empty() {
                        break;
                    }
                }
                stream.write_all(&answer).await.unwrap();
            }
        }
    })
    .await;
    let client = client();
    for _ in 0..2 {
        let (status, body) = ask(&client, &worker.url()).await;
        assert!(status == 200 && body == sent[..]);
    }
    assert_eq!(worker.connections(), 1);
}

#[tokio::test]
async fn dropping_the_request_or_the_body_closes_the_connection() {
    let (worker, mut hung_up) = noticing(b"").await;
    let client = client();
    let url = worker.url();
    tokio::select! {
        answer = send(&client, &url, Method::POST, "x") => panic!("{answer:?}"),
        () = settled() => {}
    }
    tokio::time::timeout(LONG, hung_up.recv())
        .await
        .expect("the worker did not notice it")
        .unwrap();

    let (worker, mut hung_up) =
        noticing(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n").await;
    let mut body = send(&client, &worker.url(), Method::POST, "x").await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
    drop(body);
    tokio::time::timeout(LONG, hung_up.recv())
        .await
        .expect("the worker did not notice it")
        .unwrap();
}

#[tokio::test]
async fn each_phase_has_its_timeout() {
    let short = Duration::from_millis(50);
    let (silent, _told) = noticing(b"").await;
    let client = with(Config { head_timeout: short, ..Config::default() });
    let error = send(&client, &silent.url(), Method::POST, "x").await.unwrap_err();
    assert!(matches!(error, SendError::HeadTimeout(time) if time == short), "{error:?}");

    let (begun, mut hung_up) = noticing(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na").await;
    for (config, total) in [
        (Config { idle_timeout: short, ..Config::default() }, false),
        (Config { stream_timeout: Some(short), ..Config::default() }, true),
    ] {
        let response = send(&with(config), &begun.url(), Method::POST, "x").await.unwrap();
        let mut body = response.into_body();
        body.frame().await.unwrap().unwrap();
        let error = body.frame().await.unwrap().unwrap_err();
        let as_expected = match error {
            BodyError::Idle(_) => !total,
            BodyError::Total => total,
            BodyError::Broken(_) | BodyError::Framing(_) => false,
        };
        assert!(as_expected, "{error:?}");
        // The connection closes at once, not when the body is dropped.
        tokio::time::timeout(LONG, hung_up.recv())
            .await
            .expect("the worker did not notice it")
            .unwrap();
    }
}

#[tokio::test]
async fn requests_and_answers_pass_through_tls() {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = key.cert.der().clone();
    let secret =
        rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], secret)
        .unwrap();
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), key.cert.pem()).unwrap();
    let files = tls::ClientConfig { ca: Some(ca.path().to_owned()), identity: None };
    let clock = Clock::start();
    let trusting = Live::read(files, clock.now()).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let worker = Fake::start(move |nth, stream| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            // The worker returns what it reads; its first connection closes after two answers.
            for _ in 0..if nth == 0 { 2 } else { 9 } {
                let Some((_, body)) = request(&mut stream).await else { return };
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(&body).await.unwrap();
                stream.flush().await.unwrap();
            }
            stream.shutdown().await.unwrap();
        }
    })
    .await;
    let url: WorkerUrl = format!("https://localhost:{}", worker.address.port()).parse().unwrap();
    let dialer = Dialer::simple(clock);
    let client = Client::new(Config::default(), Some(Arc::new(trusting)), dialer, clock);
    let sent: Vec<u8> = (0..3_000_000u32).map(|at| (at >> 4) as u8).collect();
    for nth in 0..5 {
        let response = send(&client, &url, Method::POST, sent.clone()).await.unwrap();
        assert!(rest(response).await.unwrap() == sent);
        if nth == 1 {
            settled().await;
        }
    }
    assert_eq!(worker.connections(), 2);
}
