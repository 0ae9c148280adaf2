//! A worker that answers as a test scripts it, byte by byte. (`smg mock-worker` is the realistic one.)
//!
//! It answers `/health` and `/v1/models` by itself, and passes every other request to the test's script as a [`Talk`].

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A request exactly as it arrived.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    /// The headers in order, with repetitions, and with the case of the names as they arrived.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(own, _)| own.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }
}

/// One request and the connection on which to answer it.
pub(crate) struct Talk {
    pub(crate) seen: Seen,
    stream: TcpStream,
    keep: bool,
}

impl Talk {
    /// Writes raw bytes. An error means that the router closed the connection.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await?;
        self.stream.flush().await
    }

    /// Sends a complete answer with a content-length.
    pub(crate) async fn answer(&mut self, status: u16, headers: &str, body: &[u8]) {
        let head =
            format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n", body.len());
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        let _router_gone = self.write(bytes).await.is_err();
    }

    /// Sends the head of a stream of events.
    pub(crate) async fn begin_stream(&mut self) {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let _router_gone = self.write(head).await.is_err();
    }

    /// Sends one chunk of the stream.
    pub(crate) async fn chunk(&mut self, data: &str) -> std::io::Result<()> {
        self.write(format!("{:x}\r\n{data}\r\n", data.len())).await
    }

    /// Sends the end of the stream.
    pub(crate) async fn end_stream(&mut self) {
        let _router_gone = self.write("0\r\n\r\n").await.is_err();
    }

    /// Resolves when the router closes the connection.
    pub(crate) async fn hung_up(&mut self) {
        let mut rest = [0u8; 64];
        loop {
            match self.stream.read(&mut rest).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Makes the worker close the connection after the script has ended.
    pub(crate) fn close(&mut self) {
        self.keep = false;
    }
}

type Script = Arc<dyn Fn(Talk) -> Pin<Box<dyn Future<Output = Talk> + Send>> + Send + Sync>;

/// A running worker. It stops when dropped.
pub(crate) struct Worker {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    listed: Arc<Listed>,
    task: tokio::task::JoinHandle<()>,
}

/// What the worker answers on `/v1/models`, and how often it has.
struct Listed {
    models: Mutex<Value>,
    reads: AtomicUsize,
    stalled: AtomicBool,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Worker {
    /// Starts a worker that serves the model `m` and answers with `script`, which returns the [`Talk`].
    pub(crate) async fn start<F, R>(script: F) -> Self
    where
        F: Fn(Talk) -> R + Send + Sync + 'static,
        R: Future<Output = Talk> + Send + 'static,
    {
        Self::serving("m", script).await
    }

    /// Starts a worker that serves `model` and answers with `script`.
    pub(crate) async fn serving<F, R>(model: &str, script: F) -> Self
    where
        F: Fn(Talk) -> R + Send + Sync + 'static,
        R: Future<Output = Talk> + Send + 'static,
    {
        Self::at("127.0.0.1:0", model, script).await
    }

    /// Starts the worker at an address of this machine.
    async fn at<F, R>(address: &str, model: &str, script: F) -> Self
    where
        F: Fn(Talk) -> R + Send + Sync + 'static,
        R: Future<Output = Talk> + Send + 'static,
    {
        let models = Mutex::new(json!([{ "id": model }]));
        let listed = Arc::new(Listed {
            models,
            reads: AtomicUsize::new(0),
            stalled: AtomicBool::new(false),
        });
        let shown = Arc::clone(&listed);
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let script: Script = Arc::new(move |talk| Box::pin(script(talk)));
        let record = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (script, record) = (Arc::clone(&script), Arc::clone(&record));
                connections.spawn(serve(stream, Arc::clone(&shown), script, record));
            }
        });
        Self { address, seen, listed, task }
    }

    /// Starts a worker that answers every request with `{}`.
    pub(crate) async fn plain() -> Self {
        Self::plain_at("127.0.0.1:0").await
    }

    /// Starts a worker at an address of this machine that answers every request with `{}`.
    pub(crate) async fn plain_at(address: &str) -> Self {
        Self::at(address, "m", |mut talk| async move {
            talk.answer(200, "content-type: application/json\r\n", b"{}").await;
            talk
        })
        .await
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on the worker lists these models.
    pub(crate) fn list(&self, models: Value) {
        *self.listed.models.lock().unwrap() = models;
    }

    /// From now on the worker does not answer when its list of models is read.
    pub(crate) fn stall(&self) {
        self.listed.stalled.store(true, Ordering::Relaxed);
    }

    /// How often its list of models has been read.
    pub(crate) fn reads(&self) -> usize {
        self.listed.reads.load(Ordering::Relaxed)
    }

    /// The requests that the script has received so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    listed: Arc<Listed>,
    script: Script,
    record: Arc<Mutex<Vec<Seen>>>,
) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    while let Some(seen) = read(&mut stream).await {
        let mut talk = Talk { seen: seen.clone(), stream, keep: true };
        match seen.path.as_str() {
            "/health" => talk.answer(200, "", b"").await,
            "/v1/models" => {
                if listed.stalled.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
                listed.reads.fetch_add(1, Ordering::Relaxed);
                let models = listed.models.lock().unwrap().clone();
                let list = json!({ "object": "list", "data": models });
                talk.answer(200, "", list.to_string().as_bytes()).await;
            }
            "/get_server_info" | "/get_model_info" | "/is_sleeping" if seen.method == "GET" => {
                talk.answer(404, "", b"").await;
            }
            _ => {
                record.lock().unwrap().push(seen);
                talk = script(talk).await;
            }
        }
        if !talk.keep {
            return;
        }
        stream = talk.stream;
    }
}

/// Reads one request; `None` if the connection is closed.
async fn read(stream: &mut TcpStream) -> Option<Seen> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(head).unwrap();
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap().split(' ');
    let mut seen = Seen {
        method: words.next().unwrap().to_owned(),
        path: words.next().unwrap().to_owned(),
        ..Seen::default()
    };
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        seen.headers.push((name.to_owned(), value.to_owned()));
    }
    let length = seen.all("content-length").first().map_or(0, |length| length.parse().unwrap());
    seen.body = vec![0; length];
    stream.read_exact(&mut seen.body).await.ok()?;
    Some(seen)
}
