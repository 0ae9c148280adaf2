//! The client of one data-path thread.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use smg_runtime::clock::Clock;
use smg_types::spec::{Secret, WorkerUrl};

use super::body::{self, ResponseBody};
use super::config::Config;
use super::connection::{Connection, NoAnswer, Request, Scratch};
use super::error::SendError;
use super::head::Answer;
use super::pool::Pool;
use super::request::{self, Outgoing, Question, bearer};

/// Sends requests to workers, from one thread.
#[derive(Debug)]
pub struct Client {
    config: Config,
    clock: Clock,
    tls: Option<Arc<rustls::ClientConfig>>,
    pool: Arc<Pool>,
    scratch: Arc<Scratch>,
}

impl Client {
    /// A client without connections. `tls` is what `https` workers are checked against.
    #[must_use]
    pub fn new(config: Config, tls: Option<Arc<rustls::ClientConfig>>, clock: Clock) -> Self {
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
        let request = Request::new(request::write_head(worker, outgoing), outgoing.body.clone());
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

    /// Asks `question` and reads the whole answer, within `timeout`.
    ///
    /// # Errors
    /// As [`Client::send`]. An answer that breaks off or is larger than `most` bytes is a [`SendError::Reset`], and one that
    /// takes too long a [`SendError::HeadTimeout`].
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
        let connecting = Connection::open(worker, self.tls.as_ref(), &self.scratch);
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

#[cfg(test)]
mod tests;
