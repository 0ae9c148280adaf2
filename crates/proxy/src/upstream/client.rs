//! The client of one data-path thread.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use smg_runtime::clock::Clock;
use smg_runtime::dial::Dialer;
use smg_runtime::shortage::{Kind, Shortage};
use smg_runtime::tls::{self, Live};
use smg_types::spec::Secret;

use super::body::{self, BodyError, ResponseBody};
use super::config::Config;
use super::connection::{self, Connection, NoAnswer, Request};
use super::error::{Delivery, SendError};
use super::head::Answer;
use super::pool::Pool;
use super::request::{self, Outgoing, Question, bearer};
use super::target::Target;

/// Sends requests to workers. Used by one thread.
#[derive(Debug)]
pub struct Client {
    config: Config,
    clock: Clock,
    tls: Option<Arc<Live<tls::ClientConfig>>>,
    dialer: Arc<Dialer>,
    pool: Arc<Pool>,
    connections: Arc<connection::Shared>,
    /// The entry in `via` for the router's own requests.
    via: Option<HeaderValue>,
}

/// Of the length that a worker announces for an answer, at most this is reserved before it comes, in bytes.
const RESERVED_BYTES: u64 = 16 << 20;

/// How long the check may take whether a worker that has closed a connection still listens.
const CHECK: Duration = Duration::from_secs(1);

/// How long a new connection must stay open before its worker counts as alive. The system completes handshakes for a
/// process that is ending, and resets them a moment later.
const SETTLE: Duration = Duration::from_millis(50);

impl Client {
    /// A client without connections. `tls` is for workers behind `https`; each new connection uses its current value.
    #[must_use]
    pub fn new(
        config: Config,
        tls: Option<Arc<Live<tls::ClientConfig>>>,
        dialer: Arc<Dialer>,
        clock: Clock,
    ) -> Self {
        let descriptors = Arc::clone(dialer.descriptors());
        let pool = Arc::new(Pool::new(config.max_idle, config.keep_alive, descriptors));
        let connections = Arc::new(connection::Shared::new(dialer.shortages().clone()));
        Self { config, clock, tls, dialer, pool, connections, via: None }
    }

    /// The same client, whose own requests ([`Client::ask`]) say in `via` which router they come from, so that a router
    /// knows them if a worker's URL leads back to it.
    #[must_use]
    pub fn with_via(self, via: HeaderValue) -> Self {
        Self { via: Some(via), ..self }
    }

    /// Sends a request and waits for the head of its response. Dropping the future, or the body that it returns,
    /// closes the connection.
    ///
    /// A worker may close a kept connection at the very moment at which a request is sent on it. The client sends the
    /// request again, to the same worker over a new connection, if the worker provably did not read all of it or if its
    /// method is idempotent (RFC 9110, section 9.2.2; RFC 9112, section 9.3.1).
    ///
    /// # Errors
    /// If there is no response head; the error states how much of the request the worker may have read.
    pub async fn send(
        &self,
        worker: impl Into<Target<'_>>,
        outgoing: &Outgoing<'_>,
    ) -> Result<Response<ResponseBody>, SendError> {
        self.send_within(worker.into(), outgoing, Duration::MAX).await
    }

    /// Sends a request with `timeout` for each phase.
    async fn send_within(
        &self,
        worker: Target<'_>,
        outgoing: &Outgoing<'_>,
        timeout: Duration,
    ) -> Result<Response<ResponseBody>, SendError> {
        let started = self.clock.mono();
        let request =
            Request::new(request::write_head(worker.url, outgoing), outgoing.body.clone());
        let mut delivered = Delivery::Nothing;
        // A connection that is to switch is a new one: a worker that closes it may have read the request.
        let take = || self.pool.take(worker.place(), started).filter(|_| !outgoing.websocket);
        while let Some(mut connection) = take() {
            match self.exchange(&mut connection, request.clone(), outgoing, timeout).await? {
                Ok(answer) => {
                    return Ok(self.respond(worker, connection, answer, started, outgoing.stream));
                }
                // The next idle connection may be open.
                Err(Delivery::Nothing) => {}
                Err(delivery) => {
                    drop(connection);
                    if delivery == Delivery::PerhapsAll && !outgoing.method.is_idempotent() {
                        return Err(self.lost(worker, delivery).await);
                    }
                    delivered = delivery;
                    break;
                }
            }
        }
        let mut connection = match self.connect(worker, timeout).await {
            Ok(connection) => connection,
            // What the worker may have read on the previous connection counts, although nothing was sent this time.
            Err(error) if error.is_gone() && delivered != Delivery::Nothing => {
                return Err(SendError::Lost { delivery: delivered, gone: true });
            }
            Err(error) => return Err(error),
        };
        match self.exchange(&mut connection, request, outgoing, timeout).await? {
            Ok(answer) => Ok(self.respond(worker, connection, answer, started, outgoing.stream)),
            Err(delivery) => {
                drop(connection);
                Err(self.lost(worker, delivery.max(delivered)).await)
            }
        }
    }

    /// Fetches a small document from a worker, within `timeout`.
    ///
    /// # Errors
    /// The same errors as [`Client::ask`].
    pub async fn fetch(
        &self,
        worker: impl Into<Target<'_>>,
        method: Method,
        path: &str,
        key: Option<&Secret>,
        timeout: Duration,
        most: usize,
    ) -> Result<(StatusCode, Bytes), SendError> {
        let question = Question { method, path, key, body: Bytes::new() };
        self.ask(worker, question, timeout, most).await
    }

    /// Sends `question` and reads the whole answer, within `timeout` and at most `most` bytes.
    ///
    /// # Errors
    /// The same errors as [`Client::send`]. An answer that is too long or breaks off is [`SendError::Lost`], and one
    /// that takes too long is [`SendError::HeadTimeout`].
    pub async fn ask(
        &self,
        worker: impl Into<Target<'_>>,
        question: Question<'_>,
        timeout: Duration,
        most: usize,
    ) -> Result<(StatusCode, Bytes), SendError> {
        let mut room = most;
        let mut grow = |bytes: usize| {
            let fits = bytes <= room;
            room = room.saturating_sub(bytes);
            fits
        };
        self.ask_within(worker, question, timeout, &mut grow).await
    }

    /// The same, where `grow` is called with the length of each piece of the answer and says whether there is room for it.
    ///
    /// # Errors
    /// As [`Client::ask`]; an answer without room is [`SendError::Lost`].
    pub async fn ask_within(
        &self,
        worker: impl Into<Target<'_>>,
        question: Question<'_>,
        timeout: Duration,
        grow: &mut (dyn FnMut(usize) -> bool + Send),
    ) -> Result<(StatusCode, Bytes), SendError> {
        let worker = worker.into();
        let Question { method, path, key, body } = question;
        let path_and_query = path.parse().unwrap_or_else(|_| PathAndQuery::from_static("/"));
        let mut headers = HeaderMap::new();
        if !body.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(via) = &self.via {
            headers.insert(header::VIA, via.clone());
        }
        let outgoing = Outgoing {
            method: &method,
            path_and_query: &path_and_query,
            headers: &headers,
            authorization: key.and_then(bearer),
            body,
            stream: false,
            websocket: false,
        };
        let whole = async {
            let response = self.send_within(worker, &outgoing, timeout).await?;
            let status = response.status();
            let mut body = response.into_body();
            let mut text = Vec::new();
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame.map_err(unread)?.into_data() {
                    if !grow(data.len()) {
                        return Err(SendError::Lost {
                            delivery: Delivery::PerhapsAll,
                            gone: false,
                        });
                    }
                    let announced = body.size_hint().exact().unwrap_or(0).min(RESERVED_BYTES);
                    if text.capacity() == 0 {
                        text.reserve_exact(data.len() + usize::try_from(announced).unwrap_or(0));
                    }
                    text.extend_from_slice(&data);
                }
            }
            Ok((status, Bytes::from(text)))
        };
        // A little longer than the timeout of the phases, so that the error names the phase that took too long.
        let timeout_in_all = timeout + Duration::from_millis(50);
        tokio::time::timeout(timeout_in_all, whole)
            .await
            .unwrap_or(Err(SendError::HeadTimeout(timeout)))
    }

    /// Closes connections that have been idle for too long. The thread that owns this client calls it regularly.
    pub fn evict(&self) {
        self.pool.evict(self.clock.mono());
    }

    /// How long an exchange may take as a whole; `None` means no limit.
    fn total(&self, stream: bool) -> Option<Duration> {
        if stream { self.config.stream_timeout } else { self.config.total_timeout }
    }

    async fn connect(
        &self,
        worker: Target<'_>,
        timeout: Duration,
    ) -> Result<Connection, SendError> {
        let timeout = timeout.min(self.config.connect_timeout);
        let open = || {
            let tls = self.tls.as_deref();
            Connection::open(worker, &self.dialer, timeout, tls, &self.connections, self.clock)
        };
        match open().await {
            Err(SendError::Shortage { shortage, .. })
                if shortage.kind == Kind::Descriptors && self.pool.give_up_one() =>
            {
                open().await
            }
            opened => opened,
        }
    }

    /// The error for a request that was lost on a connection that is closed now.
    async fn lost(&self, worker: Target<'_>, delivery: Delivery) -> SendError {
        SendError::Lost { delivery, gone: self.is_gone(worker).await }
    }

    /// Whether the worker no longer listens, so that it cannot be generating.
    async fn is_gone(&self, worker: Target<'_>) -> bool {
        for _ in 0..3 {
            match self.connect(worker, CHECK).await {
                Err(error) => return error.is_gone(),
                Ok(mut connection) => {
                    if connection.stays_open(SETTLE).await {
                        self.pool.put(worker.place(), connection, self.clock.mono());
                        return false;
                    }
                }
            }
        }
        false
    }

    /// Sends one request on one connection, and reads up to the body of the answer. The inner `Err` holds how much of
    /// the request was delivered before the connection was lost.
    async fn exchange(
        &self,
        connection: &mut Connection,
        request: Request,
        outgoing: &Outgoing<'_>,
        timeout: Duration,
    ) -> Result<Result<Answer, Delivery>, SendError> {
        // An answer that is not a stream takes most of its time before its head, so the total timeout applies here,
        // too.
        let timeout = self
            .total(outgoing.stream)
            .map_or(self.config.head_timeout, |t| t.min(self.config.head_timeout))
            .min(timeout);
        match tokio::time::timeout(
            timeout,
            connection.exchange(request, outgoing.method, outgoing.websocket),
        )
        .await
        {
            Err(_elapsed) => Err(SendError::HeadTimeout(timeout)),
            Ok(Ok(answer)) => Ok(Ok(answer)),
            Ok(Err(NoAnswer::Lost(delivery))) => Ok(Err(delivery)),
            Ok(Err(NoAnswer::Protocol(error))) => Err(SendError::Protocol(error)),
            Ok(Err(NoAnswer::Shortage(shortage, delivery))) => {
                Err(SendError::Shortage { shortage, delivery })
            }
        }
    }

    fn respond(
        &self,
        worker: Target<'_>,
        connection: Connection,
        answer: Answer,
        started: Duration,
        stream: bool,
    ) -> Response<ResponseBody> {
        let Answer { status, headers, incoming, keeps } = answer;
        let home = keeps.then(|| (Arc::clone(&self.pool), worker.place()));
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

/// The error for a document whose body broke off.
fn unread(error: BodyError) -> SendError {
    let lost = SendError::Lost { delivery: Delivery::PerhapsAll, gone: false };
    match error {
        BodyError::Broken(error) => Shortage::try_from_error(error).map_or(lost, |shortage| {
            SendError::Shortage { shortage, delivery: Delivery::PerhapsAll }
        }),
        BodyError::Framing(_) | BodyError::Idle(_) | BodyError::Total => lost,
    }
}

#[cfg(test)]
mod tests;
