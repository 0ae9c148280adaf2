//! The inference endpoints: one generic path for JSON and multipart requests, streaming or not.

use std::sync::Arc;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use parking_lot::{Mutex, MutexGuard};
use rand::rngs::SmallRng;
use smg_limits::admission::Quota;
use smg_limits::rule::Who;
use smg_proxy::dispatch::{self, Criteria, Dispatched, Dispatcher, ModelPlace, StreamEnd};
use smg_proxy::usage::Strip;
use smg_routing::fleet::Worker;
use smg_routing::limit::Priority;
use smg_types::ids::ModelId;
use tokio::sync::Notify;
use tracing::warn;

use super::Surface;
use super::access_log::Ticket;
use super::auth::{Caller, Keys, X_SMG_DEBUG};
use super::body::Body;
use super::buffered::Held;
use super::encoding;
use super::error::{ApiError, BROKEN_ANTHROPIC, BROKEN_OPENAI};
use super::exchange::State;
use super::facts::{self, Facts};
use super::forwarded::{self, Hop};
use super::from_worker;
use super::headers;
use super::heartbeat::is_plain_stream;
use super::metered::Metered;
use super::metering::Meter;
use super::peek::Peek;
use super::quota::{self, Reservation};
use super::quota_headers;
use super::stream_options;
use super::tunnel;
use super::upload::{self, Limits};

static X_SMG_PRIORITY: HeaderName = HeaderName::from_static("x-smg-priority");

/// The state that one thread of the data path needs to serve inference requests.
#[derive(Debug)]
pub(super) struct Inference {
    surface: Arc<Surface>,
    dispatcher: Dispatcher,
    // Only one thread uses the lock, so it is never contended.
    rng: Mutex<SmallRng>,
}

/// The properties of a request that are known before its body is read.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) request_id: HeaderValue,
    /// The keys against which the request was checked.
    pub(super) keys: Arc<Keys>,
    /// How the request came to this router; `None` if workers must not learn it.
    pub(super) hop: Option<Hop>,
    /// Whether the client uses Anthropic's API.
    pub(super) anthropic: bool,
    /// Whether the client asks to switch to WebSocket.
    pub(super) websocket: bool,
    /// The route, in the spelling of the table.
    pub(super) route: &'static str,
    /// Whose key the request had.
    pub(super) caller: Caller,
    /// Told once the request is known to be one for a stream; `None`: its stream gets no comments.
    pub(super) stream_begins: Option<Arc<Notify>>,
    /// Whether the route concerns no particular model, so that any worker may answer.
    pub(super) any_model: bool,
    /// Whether the response shows how it was routed.
    pub(super) shows_routing: bool,
    /// The line of the request in the access log.
    pub(super) ticket: Ticket,
}

impl Inbound {
    /// How a stream that breaks ends.
    fn stream_end(&self) -> StreamEnd {
        StreamEnd::Event(if self.anthropic { BROKEN_ANTHROPIC } else { BROKEN_OPENAI })
    }
}

impl Inference {
    pub(super) fn new(surface: Arc<Surface>, dispatcher: Dispatcher, rng: SmallRng) -> Self {
        Self { surface, dispatcher, rng: Mutex::new(rng) }
    }

    pub(super) fn surface(&self) -> &Arc<Surface> {
        &self.surface
    }

    pub(super) fn dispatcher(&self) -> &Dispatcher {
        &self.dispatcher
    }

    pub(super) fn rng(&self) -> MutexGuard<'_, SmallRng> {
        self.rng.lock()
    }

    /// Serves one inference request.
    pub(super) async fn serve(
        &self,
        request: Request<Incoming>,
        inbound: &Inbound,
        state: &State,
    ) -> Result<Response<Body>, ApiError> {
        let config = &self.surface.config;
        let (mut parts, incoming) = request.into_parts();
        let path_and_query =
            parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut headers = std::mem::take(&mut parts.headers);
        let mut held = Held::new(&self.surface.metrics, config.max_buffered_bytes);
        let body = self.read(incoming, &mut headers, &mut held, state, inbound).await?;
        let mut facts = Facts::read(&parts.method, parts.uri.query(), &headers, &body).await?;
        let sole = facts.sole_model(&self.surface.fleet, inbound.any_model)?;
        let named = facts.peek.model.as_deref().or_else(|| sole.as_ref().map(ModelId::as_str));
        let (mut meter, quotas, needs_usage) =
            self.limit(&parts.method, inbound, named, &facts.peek).await?;
        let (body, strip) = match ask_for_usage(needs_usage, inbound.route, &mut facts, &body) {
            None => (body, None),
            Some(asking) => {
                drop(body);
                (asking, Some(Box::<Strip>::default()))
            }
        };
        let peek = facts.peek;
        let model = peek.model.as_deref().or_else(|| sole.as_ref().map(ModelId::as_str));
        let priority =
            priority(&parts.method, inbound.websocket, &headers, config.max_client_priority)?;
        let session_header = facts::session_header(&headers, &config.session_headers);
        let session = session_header.as_ref().map(HeaderValue::as_bytes);
        take_ours(&inbound.keys, &mut headers);
        if let Some(hop) = inbound.hop {
            forwarded::add(&mut headers, hop, parts.uri.authority());
        }
        let via = self.surface.hops.entry(parts.version);
        headers::to_worker(&mut headers, &inbound.request_id, via, &mut self.rng());
        let begins = inbound.stream_begins.as_ref().filter(|_| peek.stream);
        if needs_usage || begins.is_some() {
            // A compressed answer has no place for comments, and its usage can't be read.
            headers.remove(header::ACCEPT_ENCODING);
        }
        if let Some(begins) = begins {
            begins.notify_one();
        }
        let request = dispatch::Request {
            request_id: &inbound.request_id,
            method: parts.method,
            path_and_query,
            headers,
            body: body.clone(),
            criteria: Criteria {
                model,
                session: session.or_else(|| peek.session.as_deref().map(str::as_bytes)),
                goes_on_from: peek.goes_on_from.as_deref(),
                prompt: &peek.prompt(&body),
            },
            model_at: facts.model_at,
            stream: peek.stream || inbound.websocket,
            websocket: inbound.websocket,
            stream_end: inbound.stream_end(),
            priority,
            sent: meter.sent(),
            observer: inbound.ticket.observer(),
        };
        match self.dispatcher.dispatch(&request).await {
            Ok(dispatched) => {
                let response = self.respond(dispatched, meter, strip, inbound.shows_routing);
                let mut response =
                    response.map_err(|error| ApiError { quotas: quotas.clone(), ..error })?;
                quota_headers::show(&quotas, response.headers_mut());
                Ok(response)
            }
            Err(error) => {
                meter.refuse();
                Err(ApiError { quotas, ..ApiError::from(error).about_model(model) })
            }
        }
    }

    /// Checks the request against the limits. Returns its meter, what its answer says of the limits, and whether the usage of
    /// its answer must be known.
    async fn limit(
        &self,
        method: &Method,
        inbound: &Inbound,
        model: Option<&str>,
        peek: &Peek<'_>,
    ) -> Result<(Meter, Vec<Quota>, bool), ApiError> {
        inbound.ticket.note_model(model);
        let tenant = inbound.caller.tenant.as_deref();
        let who = Who { api_key: inbound.caller.key, tenant, model };
        let reserved = match *method == Method::POST || inbound.websocket {
            true => quota::reserve(&self.surface, &who, inbound.route, peek).await?,
            false => None,
        };
        let quotas = reserved.as_ref().map(Reservation::quotas).unwrap_or_default();
        let mut meter =
            Meter::new(inbound.route, inbound.caller.tenant.clone(), peek.prompt_bytes());
        if let Some(listener) = inbound.ticket.listener() {
            meter.add_listener(listener);
        }
        // Usage is counted from every answer that has it; only what needs the usage of each request asks for it.
        let counts_tokens = reserved.as_ref().is_some_and(Reservation::counts_tokens);
        if let Some(reserved) = reserved.filter(|_| counts_tokens) {
            meter.add_listener(Box::new(reserved));
        }
        Ok((meter, quotas, self.surface.config.meter_streams || counts_tokens))
    }

    /// Reads the body, and decodes it if it is compressed.
    async fn read(
        &self,
        incoming: Incoming,
        headers: &mut HeaderMap,
        held: &mut Held,
        state: &State,
        inbound: &Inbound,
    ) -> Result<Bytes, ApiError> {
        let config = &self.surface.config;
        let limits = Limits { most: config.max_body_bytes, timeout: config.body_timeout };
        let body = upload::read(incoming, headers, limits, held).await?;
        state.set_unread_body(false);
        inbound.ticket.note_body(body.len());
        let (decode, most) = (config.decompress_requests, config.max_body_bytes);
        encoding::decoded(body, headers, decode, most, held).await
    }

    /// Prepares a worker's response for the client.
    fn respond(
        &self,
        dispatched: Dispatched,
        mut meter: Meter,
        strip: Option<Box<Strip>>,
        shows_routing: bool,
    ) -> Result<Response<Body>, ApiError> {
        let Dispatched { response, trace, entry } = dispatched;
        meter.answer(&response, entry);
        let strip = strip.filter(|_| is_plain_stream(&response));
        let is_stripped = strip.is_some();
        let mut response = response.map(|body| Body::worker(Metered::new(body, meter, strip)));
        let status = response.status();
        let headers = response.headers_mut();
        if is_stripped {
            headers.remove(header::CONTENT_LENGTH);
        }
        if headers.contains_key(header::TRANSFER_ENCODING) {
            // If a worker sends both, the length does not apply (RFC 9112, section 6.3).
            headers.remove(header::CONTENT_LENGTH);
        }
        headers::strip_hop_by_hop(headers);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            tunnel::confirm(headers);
        }
        self.hide_worker(&trace, headers)?;
        if shows_routing {
            show(&trace, headers);
        }
        Ok(response)
    }

    /// Removes the worker's URL, and its CORS headers where the router has its own.
    fn hide_worker(
        &self,
        trace: &dispatch::Trace,
        headers: &mut HeaderMap,
    ) -> Result<(), ApiError> {
        let surface = &*self.surface;
        if !surface.config.cors_allowed_origins.is_empty() {
            from_worker::strip_cors(headers);
        }
        if !from_worker::may_refer(headers) {
            return Ok(());
        }
        let fleet = surface.fleet.load();
        let Some(worker) = fleet.worker(trace.worker) else {
            // The worker was removed meanwhile, so the targets of its references are unknown.
            from_worker::drop_references(headers);
            return Ok(());
        };
        let is_worker = |host: &str, port| {
            let url = |worker: &Arc<Worker>| worker.spec.url.clone();
            fleet
                .workers()
                .iter()
                .map(url)
                .any(|url| url.host().eq_ignore_ascii_case(host) && url.port() == port)
        };
        from_worker::hide_worker(headers, &worker.spec.url, is_worker).map_err(|error| {
            warn!(worker = %worker.spec.url, %error, "a worker's response was not passed on");
            ApiError::foreign_reference()
        })
    }
}

/// Removes the router's own keys and what is for this hop only. That comes before the router adds headers of its own:
/// otherwise a client could name these in `connection`.
fn take_ours(keys: &Keys, headers: &mut HeaderMap) {
    keys.take_own(headers);
    headers.remove(&X_SMG_DEBUG);
    headers::strip_hop_by_hop(headers);
}

/// The class in the queue of a request. A client that claims more than `most` gets that.
fn priority(
    method: &Method,
    websocket: bool,
    headers: &HeaderMap,
    most: Priority,
) -> Result<Priority, ApiError> {
    match headers.get(&X_SMG_PRIORITY) {
        // A small request about a worker, sent by monitoring. It must not wait behind other requests.
        None if *method == Method::GET && !websocket => Ok(Priority::System),
        None => Ok(Priority::Default),
        Some(value) => {
            let claimed = value.to_str().unwrap_or_default().parse::<Priority>();
            // The most urgent class compares lowest.
            claimed.map(|claimed| claimed.max(most)).map_err(|error| ApiError {
                param: Some("x-smg-priority"),
                ..ApiError::bad_request("invalid_priority", format!("{error}"))
            })
        }
    }
}

/// Asks for the usage of a stream whose client has not asked for it. Returns the changed body; `None`: nothing changes.
fn ask_for_usage(needs_usage: bool, route: &str, facts: &mut Facts, body: &[u8]) -> Option<Bytes> {
    let peek = &mut facts.peek;
    if !needs_usage || !peek.stream {
        return None;
    }
    let edit = stream_options::edit(route, body, peek.stream_options_at.as_ref())?;
    if let Some(ModelPlace::Json(at)) = &mut facts.model_at {
        edit.shift(at);
    }
    peek.prompt_at.iter_mut().for_each(|at| edit.shift(at));
    Some(edit.apply(body))
}

/// Adds the headers that show how the response was routed.
fn show(trace: &dispatch::Trace, headers: &mut HeaderMap) {
    let shown = [
        ("x-smg-worker", trace.worker.to_string()),
        ("x-smg-policy", trace.policy.to_owned()),
        ("x-smg-decision", trace.decision.to_string()),
        ("x-smg-attempts", trace.attempts.to_string()),
        ("x-smg-overhead-ms", format!("{:.3}", trace.overhead.as_secs_f64() * 1000.0)),
    ];
    for (name, value) in shown {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}
