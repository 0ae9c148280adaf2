//! A worker that follows a script for each connection.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use smg_types::spec::WorkerUrl;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// A worker that stops when this is dropped.
pub(super) struct Fake {
    pub(super) address: SocketAddr,
    /// The number of connections that were made to it.
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    /// Passes each connection to `script`, with the number of previous ones.
    pub(super) async fn start<F, R>(script: F) -> Self
    where
        F: Fn(usize, TcpStream) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut talks = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                talks.spawn(script(count.fetch_add(1, Ordering::SeqCst), stream));
            }
        });
        Self { address, connections, task }
    }

    /// Answers every request with these pieces, each in its own write, and keeps the connection open.
    pub(super) async fn answering(pieces: &'static [&'static [u8]]) -> Self {
        Self::start(move |_, mut stream| async move {
            while request(&mut stream).await.is_some() {
                for piece in pieces {
                    stream.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        })
        .await
    }

    pub(super) fn url(&self) -> WorkerUrl {
        format!("http://{}", self.address).parse().unwrap()
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Reads a request; `None` if the client has closed the connection.
pub(super) async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let head = request_head(stream).await?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, body))
}

pub(super) async fn request_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// A worker that answers a request with `answer` and reports when the client has closed the connection.
pub(super) async fn noticing(answer: &'static [u8]) -> (Fake, mpsc::Receiver<()>) {
    let (closed, reports) = mpsc::channel(1);
    let worker = Fake::start(move |_, mut stream| {
        let closed = closed.clone();
        async move {
            request(&mut stream).await;
            stream.write_all(answer).await.unwrap();
            let _gone = stream.read_u8().await.is_err();
            closed.send(()).await.unwrap();
        }
    })
    .await;
    (worker, reports)
}
