//! Toward workers: connections, timeouts by phase, the body that gives its connection back.
//!
//! One [`Client`] per data-path thread: its idle connections belong to that thread, so that a request, its connection
//! and its response never cross from one core to another. It speaks HTTP/1.1 by itself, for exactly this use: a
//! connection has one owner, the request or its response, and neither a task nor buffers of its own, so that thousands
//! of open streams cost little. Dropping it, in whatever state, closes the socket, which is how a worker learns that its
//! client left. `head` and `decode` are the protocol as plain code; `connection` and `body` are the sockets and timers.

mod body;
mod connection;
mod decode;
mod head;
mod pool;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt as _;

pub use body::{BodyError, ResponseBody};
use connection::{Connection, NoAnswer, Request, Scratch};
pub use decode::FramingError;
use head::Answer;
pub use head::ProtocolError;
use pool::Pool;

use smg_runtime::clock::Clock;
use smg_runtime::tls::{self, Live};
use smg_types::spec::{Secret, WorkerUrl};

/// How long each phase of an attempt may take, and how many connections are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// TCP and TLS handshake.
    pub connect_timeout: Duration,
    /// From the request's last byte to the response's head.
    pub head_timeout: Duration,
    /// Between two chunks of a response.
    pub idle_timeout: Duration,
    /// From the first byte sent to the last received, for responses that are not streams; `None`: no limit.
    pub total_timeout: Option<Duration>,
    /// The same for streams; `None`: no limit.
    pub stream_timeout: Option<Duration>,
    /// Idle connections that are kept per worker and data-path thread.
    pub max_idle: usize,
    /// How long an idle connection is kept.
    pub keep_alive: Duration,
    /// TLS towards workers.
    pub tls: tls::ClientConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(600),
            idle_timeout: Duration::from_secs(300),
            total_timeout: Some(Duration::from_secs(1800)),
            stream_timeout: None,
            max_idle: 512,
            keep_alive: Duration::from_secs(50),
            tls: tls::ClientConfig::default(),
        }
    }
}

/// Why a request got no response head.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The host has no address.
    #[error("cannot resolve the worker's host")]
    Resolve(#[source] io::Error),
    /// No connection: nobody listens, or no route.
    #[error("cannot connect to the worker")]
    Connect(#[source] io::Error),
    /// No connection in time.
    #[error("no connection to the worker within {0:?}")]
    ConnectTimeout(Duration),
    /// The TLS handshake failed, or the worker wants TLS and there is no configuration for it.
    #[error("cannot agree on TLS with the worker")]
    Tls(#[source] io::Error),
    /// The connection broke before a byte of the response.
    #[error("the worker closed the connection before it answered")]
    Reset {
        /// Nobody listens there any more, so that nothing can be generating.
        dead: bool,
    },
    /// No response head in time: the worker may be generating.
    #[error("no answer from the worker within {0:?}")]
    HeadTimeout(Duration),
    /// The worker answered with something that is not HTTP.
    #[error("the worker's answer is not HTTP")]
    Protocol(#[source] ProtocolError),
}

impl SendError {
    /// Whether the worker can't have started on the request, so that another one may be asked.
    #[must_use]
    pub fn is_safe_to_retry(&self) -> bool {
        match self {
            Self::Resolve(_)
            | Self::Connect(_)
            | Self::ConnectTimeout(_)
            | Self::Tls(_)
            | Self::Reset { dead: true } => true,
            Self::Reset { dead: false } | Self::HeadTimeout(_) | Self::Protocol(_) => false,
        }
    }

    /// Whether nobody listens there any more: the process that did is gone, and what it had in memory with it.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Connect(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
            ),
            Self::Reset { dead } => *dead,
            Self::Resolve(_)
            | Self::ConnectTimeout(_)
            | Self::Tls(_)
            | Self::HeadTimeout(_)
            | Self::Protocol(_) => false,
        }
    }

    /// Whether no connection came about, for whatever reason that is not our own.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Connect(error) | Self::Resolve(error) if is_our_own(error) => false,
            Self::Resolve(_)
            | Self::Connect(_)
            | Self::ConnectTimeout(_)
            | Self::Reset { dead: true } => true,
            Self::Tls(_)
            | Self::Reset { dead: false }
            | Self::HeadTimeout(_)
            | Self::Protocol(_) => false,
        }
    }

    /// A name from a closed set, for metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Resolve(_) => "resolve",
            Self::Connect(_) => "connect",
            Self::ConnectTimeout(_) => "connect_timeout",
            Self::Tls(_) => "tls",
            Self::Reset { .. } => "reset",
            Self::HeadTimeout(_) => "head_timeout",
            Self::Protocol(_) => "protocol",
        }
    }
}

/// Whether the router has run out of something, which says nothing of the worker: file descriptors (its own or the
/// machine's) or local ports.
fn is_our_own(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    error.kind() == io::ErrorKind::AddrNotAvailable
        || matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

/// What the router itself asks of a worker.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: &'a str,
    /// The worker's key, if it has one.
    pub key: Option<&'a Secret>,
    /// The body, JSON unless empty.
    pub body: Bytes,
}

/// A request as one attempt sends it. Borrowed: the next attempt sends the same.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// The method.
    pub method: &'a Method,
    /// Path and query as the client sent them; the worker's own path goes before it.
    pub path_and_query: &'a PathAndQuery,
    /// All headers but `host` and `content-length`.
    pub headers: &'a HeaderMap,
    /// Sent in place of the client's `authorization`, if any.
    pub authorization: Option<HeaderValue>,
    /// The whole body.
    pub body: Bytes,
    /// Whether the response is expected to be a stream: decides which total timeout holds.
    pub stream: bool,
}

/// Sends requests to workers, from one thread.
#[derive(Debug)]
pub struct Client {
    config: Config,
    clock: Clock,
    tls: Option<Arc<Live<tls::ClientConfig>>>,
    pool: Arc<Pool>,
    scratch: Arc<Scratch>,
}

impl Client {
    /// A client without connections. `tls` is for workers behind `https`; each new connection takes it as it is then.
    #[must_use]
    pub fn new(config: Config, tls: Option<Arc<Live<tls::ClientConfig>>>, clock: Clock) -> Self {
        let pool = Arc::new(Pool::new(config.max_idle, config.keep_alive));
        Self { config, clock, tls, pool, scratch: Arc::default() }
    }

    /// Sends a request and waits for the head of its response. Dropping the future, or the body that it returns,
    /// closes the connection.
    ///
    /// A connection that was kept open may have been closed by the worker meanwhile: then the request goes over a new
    /// one, for it was not read. See RFC 9112, 9.3.1 and 9.6.
    ///
    /// # Errors
    /// If there is no response head; the error says whether the worker may have started on the request.
    pub async fn send(
        &self,
        worker: &WorkerUrl,
        outgoing: &Outgoing<'_>,
    ) -> Result<Response<ResponseBody>, SendError> {
        let started = self.clock.mono();
        let request = Request::new(head::write(worker, outgoing), outgoing.body.clone());
        while let Some(mut connection) = self.pool.take(worker.id(), started) {
            match self.exchange(&mut connection, request.clone(), outgoing).await? {
                Ok(answer) => {
                    return Ok(self.respond(worker, connection, answer, started, outgoing.stream));
                }
                // The next one may be open.
                Err(Lost::Unsent) => {}
                Err(Lost::Closed) => break,
            }
        }
        let mut connection = self.connect(worker).await?;
        match self.exchange(&mut connection, request, outgoing).await? {
            Ok(answer) => Ok(self.respond(worker, connection, answer, started, outgoing.stream)),
            Err(Lost::Unsent | Lost::Closed) => {
                drop(connection);
                // Is anybody still there? A worker that is gone is not generating.
                let dead = match self.connect(worker).await {
                    Ok(connection) => {
                        self.pool.put(worker.id(), connection, self.clock.mono());
                        false
                    }
                    Err(error) => error.is_gone(),
                };
                Err(SendError::Reset { dead })
            }
        }
    }

    /// Asks a worker for a small document, within `timeout`.
    ///
    /// # Errors
    /// As [`Client::send`]; a body that breaks or is larger than `most` bytes is a [`SendError::Reset`].
    pub async fn fetch(
        &self,
        worker: &WorkerUrl,
        method: Method,
        path: &str,
        key: Option<&Secret>,
        timeout: Duration,
        most: usize,
    ) -> Result<(StatusCode, Bytes), SendError> {
        let question = Question { method, path, key, body: Bytes::new() };
        self.ask(worker, question, timeout, most).await
    }

    /// Asks `question` and reads the whole answer, within `timeout` and at most `most` bytes.
    ///
    /// # Errors
    /// As [`Client::send`]; an answer that is too long or breaks off is a reset, one that takes too long a head time-out.
    pub async fn ask(
        &self,
        worker: &WorkerUrl,
        question: Question<'_>,
        timeout: Duration,
        most: usize,
    ) -> Result<(StatusCode, Bytes), SendError> {
        let Question { method, path, key, body } = question;
        let path_and_query = path.parse().unwrap_or_else(|_| PathAndQuery::from_static("/"));
        let mut headers = HeaderMap::new();
        if !body.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let outgoing = Outgoing {
            method: &method,
            path_and_query: &path_and_query,
            headers: &headers,
            authorization: key.and_then(bearer),
            body,
            stream: false,
        };
        let whole = async {
            let response = self.send(worker, &outgoing).await?;
            let status = response.status();
            let mut body = response.into_body();
            let mut text = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_| SendError::Reset { dead: false })?;
                if let Ok(data) = frame.into_data() {
                    if text.len() + data.len() > most {
                        return Err(SendError::Reset { dead: false });
                    }
                    text.extend_from_slice(&data);
                }
            }
            Ok((status, text.freeze()))
        };
        tokio::time::timeout(timeout, whole).await.unwrap_or(Err(SendError::HeadTimeout(timeout)))
    }

    /// Closes connections that have been idle for too long. Called now and then by the thread that owns this client.
    pub fn evict(&self) {
        self.pool.evict(self.clock.mono());
    }

    /// How long an exchange may take as a whole.
    fn total(&self, stream: bool) -> Option<Duration> {
        if stream { self.config.stream_timeout } else { self.config.total_timeout }
    }

    async fn connect(&self, worker: &WorkerUrl) -> Result<Connection, SendError> {
        let timeout = self.config.connect_timeout;
        let connecting = Connection::open(worker, self.tls.as_deref(), &self.scratch);
        tokio::time::timeout(timeout, connecting)
            .await
            .unwrap_or(Err(SendError::ConnectTimeout(timeout)))
    }

    /// One request over one connection, up to the body of its answer.
    async fn exchange(
        &self,
        connection: &mut Connection,
        request: Request,
        outgoing: &Outgoing<'_>,
    ) -> Result<Result<Answer, Lost>, SendError> {
        // An answer that is no stream takes most of its time before its head: the total holds here as well.
        let timeout = self
            .total(outgoing.stream)
            .map_or(self.config.head_timeout, |t| t.min(self.config.head_timeout));
        match tokio::time::timeout(timeout, connection.exchange(request, outgoing.method)).await {
            Err(_elapsed) => Err(SendError::HeadTimeout(timeout)),
            Ok(Ok(answer)) => Ok(Ok(answer)),
            Ok(Err(NoAnswer::Unsent)) => Ok(Err(Lost::Unsent)),
            Ok(Err(NoAnswer::Closed)) => Ok(Err(Lost::Closed)),
            Ok(Err(NoAnswer::Protocol(error))) => Err(SendError::Protocol(error)),
        }
    }

    fn respond(
        &self,
        worker: &WorkerUrl,
        connection: Connection,
        answer: Answer,
        started: Duration,
        stream: bool,
    ) -> Response<ResponseBody> {
        let Answer { status, headers, incoming, keeps } = answer;
        let home = keeps.then(|| (Arc::clone(&self.pool), worker.id()));
        let limits = body::Limits {
            idle: self.config.idle_timeout,
            deadline: self.total(stream).map(|total| started + total),
            stream,
        };
        let body = ResponseBody::new(incoming, connection, home, self.clock, limits);
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

/// Why a connection gave no answer, where another one may.
enum Lost {
    /// Not a byte was sent.
    Unsent,
    /// Closed before a byte of the answer.
    Closed,
}

/// `Bearer key`; `None` if the key has characters that no header has.
#[must_use]
pub fn bearer(key: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests;
