//! Tests of how much of a request a worker may have read when its connection was lost, and of what the client does
//! then.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::fake::{Fake, request, request_head};
use super::*;

/// A worker that answers the first request of a connection, and closes it after it has read all of the second.
async fn closing_the_second(method_of_closing: fn(TcpStream)) -> Fake {
    Fake::start(move |nth, mut stream| async move {
        while request(&mut stream).await.is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            if nth == 0 {
                request(&mut stream).await;
                return method_of_closing(stream);
            }
        }
    })
    .await
}

/// Closes the connection with a reset, as a process does that has unread data.
fn abort(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

#[tokio::test]
async fn a_request_read_whole_on_a_kept_connection_is_not_sent_again() {
    for close in [drop::<TcpStream>, abort] {
        let worker = closing_the_second(close).await;
        let client = client();
        assert_eq!(ask(&client, &worker.url()).await, (200, Bytes::from("ok")));
        let error = send(&client, &worker.url(), Method::POST, "ask").await.unwrap_err();
        assert!(
            matches!(error, SendError::Lost { delivery: Delivery::PerhapsAll, gone: false }),
            "{error:?}"
        );
        // The second connection checks whether the worker still listens, and carries the next request.
        assert_eq!(ask(&client, &worker.url()).await, (200, Bytes::from("ok")));
        assert_eq!(worker.connections(), 2);
    }
}

#[tokio::test]
async fn an_idempotent_request_is_sent_again() {
    let worker = closing_the_second(drop).await;
    let client = client();
    for _ in 0..3 {
        let response = send(&client, &worker.url(), Method::GET, "").await.unwrap();
        assert_eq!(rest(response).await.unwrap(), "ok");
    }
    assert_eq!(worker.connections(), 2);
}

/// Sends a POST over a connection whose other end is `script`. Returns how much was delivered before it was lost.
async fn delivered<F, R>(body: Vec<u8>, script: F) -> Delivery
where
    F: Fn(usize, TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let worker = Fake::start(script).await;
    let client = client();
    let mut connection = client.connect(Target::from(&worker.url()), LONG).await.unwrap();
    // The worker's first actions are complete before the request is sent.
    settled().await;
    let outgoing = Outgoing {
        method: &Method::POST,
        path_and_query: &PathAndQuery::from_static("/x"),
        headers: &HeaderMap::new(),
        authorization: None,
        body: body.into(),
        stream: true,
        websocket: false,
    };
    let request =
        Request::new(request::write_head(&worker.url(), &outgoing), outgoing.body.clone());
    let exchange = client.exchange(&mut connection, request, &outgoing, LONG);
    let answer = tokio::time::timeout(LONG, exchange).await.expect("the client hangs");
    answer.unwrap().unwrap_err()
}

#[tokio::test]
async fn how_much_was_delivered_is_known_from_how_the_connection_was_lost() {
    let small = || b"ask".to_vec();
    // The request was sent on a connection that had been closed, so the worker cannot have read it.
    assert_eq!(delivered(small(), |_, stream| async { drop(stream) }).await, Delivery::Part);
    // Half of a large request was read.
    let large = vec![0; 16 << 20];
    let half = |_, mut stream: TcpStream| async move {
        request_head(&mut stream).await.unwrap();
        stream.read_exact(&mut vec![0; 100_000]).await.unwrap();
    };
    assert_eq!(delivered(large, half).await, Delivery::Part);
    // All of it was read, or may have been, however the connection was closed.
    for close in [drop::<TcpStream>, abort] {
        let read = move |_, mut stream: TcpStream| async move {
            request(&mut stream).await.unwrap();
            close(stream);
        };
        assert_eq!(delivered(small(), read).await, Delivery::PerhapsAll);
    }
    let begin = |_, mut stream: TcpStream| async move {
        request_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 2").await.unwrap();
    };
    assert_eq!(delivered(small(), begin).await, Delivery::PerhapsAll);
}

#[tokio::test]
async fn a_worker_that_stops_during_a_request_is_gone() {
    // The whole worker, with its listener, stops after it has read the second request.
    let (read, mut has_read) = mpsc::channel::<()>(1);
    let worker = Fake::start(move |_, mut stream| {
        let read = read.clone();
        async move {
            request(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            request(&mut stream).await;
            read.send(()).await.unwrap();
            std::future::pending::<()>().await;
        }
    })
    .await;
    let client = client();
    let url = worker.url();
    assert_eq!(ask(&client, &url).await, (200, Bytes::from("ok")));
    let ends = async move {
        has_read.recv().await.unwrap();
        drop(worker);
    };
    let (lost, ()) = tokio::join!(send(&client, &url, Method::POST, "ask"), ends);
    let error = lost.unwrap_err();
    assert!(
        matches!(error, SendError::Lost { delivery: Delivery::PerhapsAll, gone: true }),
        "{error:?}"
    );
    // The worker no longer exists.
    let error = send(&client, &url, Method::POST, "ask").await.unwrap_err();
    assert!(matches!(&error, SendError::Connect(_)) && error.is_gone(), "{error:?}");
}

#[tokio::test]
async fn bytes_on_an_idle_connection_are_noticed_before_the_runtime_polls() {
    for stray in [&b""[..], b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url: WorkerUrl = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let worker = std::thread::Builder::new().spawn(move || {
            use std::io::{Read as _, Write as _};
            let (mut stream, _) = listener.accept().unwrap();
            let read = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
            gate.recv().unwrap();
            stream.write_all(stray).unwrap();
            if stray.is_empty() {
                drop(stream);
                done.send(()).unwrap();
            } else {
                done.send(()).unwrap();
                let _until_the_end = stream.read(&mut [0; 1]);
            }
            read
        });
        let client = client();
        assert_eq!(ask(&client, &url).await, (200, Bytes::from("ok")));
        // This thread waits without giving the runtime a chance to poll.
        go.send(()).unwrap();
        is_done.recv().unwrap();
        assert!(
            client.pool.take(Target::from(&url).place(), client.clock.mono()).is_none(),
            "{stray:?}"
        );
        assert!(worker.unwrap().join().unwrap() > 0);
    }
}
