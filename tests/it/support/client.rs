//! An HTTP client for tests: it shows headers and bytes as they arrive, and its connection can be dropped.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A complete answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {:?}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The code of an error that has the router's format.
    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// An answer whose body is still arriving.
pub(crate) struct Stream {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    body: hyper::body::Incoming,
    connection: tokio::task::JoinHandle<()>,
}

impl Stream {
    /// The next piece of the body; `None` at its end, an error if the connection broke.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The rest of the body.
    pub(crate) async fn rest(mut self) -> Result<Bytes, hyper::Error> {
        let mut whole = Vec::new();
        while let Some(piece) = self.next().await {
            whole.extend_from_slice(&piece?);
        }
        Ok(whole.into())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The socket closes when the task that owns it is aborted.
        self.connection.abort();
    }
}

/// Sends a request on a connection of its own and returns when the head of the answer has arrived.
pub(crate) async fn begin(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Stream, Box<dyn std::error::Error + Send + Sync>> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await?;
    let connection = tokio::spawn(async move {
        let _ended = connection.await;
    });
    let mut request =
        http::Request::builder().method(method).uri(path).header("host", address.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if !body.is_empty()
        && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"))
    {
        request = request.header("content-type", "application/json");
    }
    // Dropping the caller's future closes the connection, too.
    let guard = Abort(Some(connection));
    let response =
        sender.send_request(request.body(Full::new(Bytes::copy_from_slice(body)))?).await?;
    let (parts, body) = response.into_parts();
    let connection = guard.keep();
    Ok(Stream { status: parts.status.as_u16(), headers: parts.headers, body, connection })
}

/// A connection that is kept open between requests, as clients in production keep it.
pub(crate) struct Connection {
    address: SocketAddr,
    sender: http1::SendRequest<Full<Bytes>>,
    _connection: Abort,
}

impl Connection {
    pub(crate) async fn open(
        address: SocketAddr,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(tcp)).await?;
        let connection = tokio::spawn(async move {
            let _ended = connection.await;
        });
        Ok(Self { address, sender, _connection: Abort(Some(connection)) })
    }

    /// Posts a body and waits for the complete answer.
    pub(crate) async fn post(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        self.send("POST", path, headers, body).await
    }

    /// Sends a request and waits for the complete answer.
    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.exchange(request, body.into()).await
    }

    /// Puts a JSON document and waits for the complete answer.
    pub(crate) async fn put(
        &mut self,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let request = http::Request::builder()
            .method("PUT")
            .uri(path)
            .header("host", self.address.to_string())
            .header("content-type", "application/json");
        self.exchange(request, body.into()).await
    }

    async fn exchange(
        &mut self,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        self.sender.ready().await?;
        let response = self.sender.send_request(request.body(Full::new(body))?).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }
}

struct Abort(Option<tokio::task::JoinHandle<()>>);

impl Abort {
    fn keep(mut self) -> tokio::task::JoinHandle<()> {
        self.0.take().unwrap()
    }
}

impl Drop for Abort {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

/// Sends a request on a connection of its own and waits for the complete answer.
pub(crate) async fn try_send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let stream = begin(address, method, path, headers, body).await?;
    let (status, headers) = (stream.status, stream.headers.clone());
    Ok(Answer { status, headers, body: stream.rest().await? })
}

/// Calls [`try_send`], and panics if it fails.
pub(crate) async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    try_send(address, method, path, headers, body)
        .await
        .unwrap_or_else(|e| panic!("{method} {path}: {e}"))
}
