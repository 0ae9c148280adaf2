//! One thread of the data path: passes the requests of its connections through the layers, in order: id, route, keys.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
};
use http_body::Body as _;
use hyper::body::Incoming;
use rand::rngs::SmallRng;
use smg_proxy::dispatch::{self, Dispatcher};
use tokio::sync::Notify;
use tower::ServiceExt as _;
use tracing::debug;

use super::access_log::Ticket;
use super::body::Body;
use super::buffered::Held;
use super::error::ApiError;
use super::exchange::State;
use super::forwarded::Hop;
use super::from_worker::EXPOSED;
use super::headers::{self, X_REQUEST_ID};
use super::heartbeat::{self, Answering, Rhythm};
use super::inference::{Inbound, Inference};
use super::metrics::RouteMetrics;
use super::origin::Asked;
use super::pass_through;
use super::routes::{self, Access, Found, PASSED, ROUTES, Route, Serves};
use super::tunnel::{self, Pending, Slot};
use super::upload::{self, Limits};
use super::{Surface, local};

/// The largest body that a route of the router itself reads, in bytes. Documents about workers are small.
const LARGEST_OWN_BODY: usize = 1 << 20;

/// The header that every request of Anthropic's clients has.
static ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");

/// The addresses that a request has come through, as the proxies in front of the router say.
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What is known of a request besides its head.
struct Asks {
    peer: SocketAddr,
    request_id: HeaderValue,
    /// Whether the client asks to switch to WebSocket.
    websocket: bool,
    /// Its line in the access log.
    ticket: Ticket,
}

/// The state that one thread needs to serve requests.
#[derive(Debug)]
pub(super) struct Shard {
    inference: Arc<Inference>,
    local: axum::Router,
    /// The handles by index in the table of routes; the last two are for requests that pass without a route, and for
    /// the rest.
    metrics: Vec<Arc<RouteMetrics>>,
}

impl Shard {
    pub(super) fn new(surface: Arc<Surface>, dispatcher: Dispatcher, rng: SmallRng) -> Self {
        let metrics = ROUTES.iter().map(|route| route.path).chain([PASSED.path, "other"]);
        let metrics = metrics.map(|path| surface.metrics.route(path)).collect();
        let local = local::router(Arc::clone(&surface));
        let inference = Arc::new(Inference::new(surface, dispatcher, rng));
        Self { inference, local, metrics }
    }

    pub(super) fn surface(&self) -> &Arc<Surface> {
        self.inference.surface()
    }

    pub(super) fn dispatcher(&self) -> &Dispatcher {
        self.inference.dispatcher()
    }

    /// Answers one request of a connection of this thread.
    pub(super) async fn handle(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        state: &Arc<State>,
        slot: &Slot,
    ) -> Result<Response<Body>, Infallible> {
        let mut exchange = state.begin();
        let is_http1 = request.version() < Version::HTTP_2;
        state.set_unread_body(!request.body().is_end_stream());
        let request_id = {
            let names = &self.surface().config.request_id_headers;
            headers::request_id(request.headers(), names, &mut self.inference.rng())
        };
        exchange.log_as(self.ticket(&request, peer, &request_id));
        let origin = self.allowed_origin(request.headers());
        // HEAD is GET without the body (RFC 9110, 9.3.2), also where an engine knows only GET.
        let is_head = request.method() == Method::HEAD;
        if is_head {
            *request.method_mut() = Method::GET;
        }
        let is_loop = self.surface().hops.is_loop(request.headers(), &self.surface().mesh);
        let asks_to_switch = !is_head && tunnel::is_websocket(&request);
        let client = asks_to_switch.then(|| hyper::upgrade::on(&mut request));
        let pass = &self.surface().config.pass_through;
        let found = pass_through::find_open(request.method(), request.uri().path(), pass);
        let at = counted_at(found);
        exchange.count_as(Arc::clone(&self.metrics[at]));
        // Anthropic's clients use paths that others use too, such as `/v1/models`.
        let anthropic = request.uri().path().starts_with("/v1/messages")
            || request.headers().contains_key(&ANTHROPIC_VERSION);
        let answer = match found {
            _ if !headers::has_valid_host(request.version(), request.headers()) => {
                exchange.close_after();
                Err(ApiError::invalid_host())
            }
            _ if is_loop => {
                exchange.close_after();
                Err(ApiError::loop_detected())
            }
            Found::Passed | Found::OtherMethod | Found::Nothing
                if origin.is_some() && request.method() == Method::OPTIONS =>
            {
                Ok(preflight(request.headers()))
            }
            // Browsers send no preflight before a WebSocket: only this keeps pages of other origins out.
            Found::At(_) | Found::Passed
                if client.is_some() && self.is_foreign(request.headers(), origin.as_ref()) =>
            {
                Err(ApiError::forbidden("pages of this origin may not open a WebSocket here"))
            }
            Found::At(_) | Found::Passed => {
                let route = ROUTES.get(at).unwrap_or(&PASSED);
                let (websocket, ticket) = (client.is_some(), exchange.ticket().clone());
                let asks = Asks { peer, request_id: request_id.clone(), websocket, ticket };
                self.answer(route, request, asks, state).await
            }
            Found::OtherMethod | Found::Nothing => Err(unrouted(found, request.uri().path())),
        };
        let mut response = answer.unwrap_or_else(|error| {
            let name = headers::text(&request_id);
            debug!(request_id = name, status = %error.status, code = error.code, "refused");
            exchange.ticket().note_error(error.code);
            error.into_response(anthropic)
        });
        if is_head {
            response = without_body(response);
        }
        exchange.answered(response.status().as_u16());
        mark(response.headers_mut(), request_id, origin);
        if is_http1 {
            close_if_needed(response.headers_mut(), state);
        }
        if let (Some(client), Some(worker)) = (client, switched(&mut response)) {
            slot.put(Pending { client, worker, exchange });
            return Ok(response);
        }
        Ok(response.map(|body| body.ending(exchange)))
    }

    /// What workers learn of a request's way; `None`: nothing.
    fn hop(&self, peer: SocketAddr) -> Option<Hop> {
        let config = &self.surface().config;
        let hop = Hop { peer: peer.ip(), is_secure: config.tls.is_some() };
        config.forwarded_headers.then_some(hop)
    }

    /// The line of the access log for a request.
    fn ticket(
        &self,
        request: &Request<Incoming>,
        peer: SocketAddr,
        request_id: &HeaderValue,
    ) -> Ticket {
        let Some(log) = &self.surface().access_log else { return Ticket::default() };
        let forwarded_for = request.headers().get(&X_FORWARDED_FOR);
        log.begin(request.method(), request.uri().path(), peer, forwarded_for, request_id)
    }

    async fn answer(
        &self,
        route: &Route,
        request: Request<Incoming>,
        asks: Asks,
        state: &Arc<State>,
    ) -> Result<Response<Body>, ApiError> {
        let Asks { peer, request_id, websocket, ticket } = asks;
        let keys = self.surface().keys.load();
        let caller = keys.caller(route.access, &Asked::by(&request, peer.ip()))?;
        let anthropic = route.serves == Serves::AnthropicWorker;
        match route.serves {
            Serves::Socket if !websocket => Err(ApiError::upgrade_required(request.version())),
            Serves::Worker | Serves::AnthropicWorker | Serves::AnyWorker | Serves::Socket => {
                if websocket && self.surface().lifecycle.is_draining() {
                    return Err(ApiError::draining());
                }
                let caller = caller.unwrap_or_default();
                ticket.note_tenant(caller.tenant.as_deref());
                debug!(
                    request_id = headers::text(&request_id),
                    route = route.path,
                    tenant = caller.tenant.as_deref(),
                    "inference"
                );
                let config = &self.surface().config;
                let asked = keys.shows_routing(&Asked::by(&request, peer.ip()))?;
                let shows_routing = config.debug_headers || asked;
                let hop = self.hop(peer);
                let inbound = Inbound {
                    request_id,
                    keys,
                    hop,
                    anthropic,
                    any_model: route.serves == Serves::AnyWorker,
                    shows_routing,
                    websocket,
                    route: route.path,
                    caller,
                    stream_begins: None,
                    ticket,
                };
                let period = config.stream_heartbeat;
                if let Some(period) = period.filter(|_| heartbeat::applies_to(route.path)) {
                    return self.infer_with_heartbeat(request, inbound, state, period).await;
                }
                // Boxed, because its state is large, and hyper keeps room for the largest request of a connection while
                // the response streams.
                Box::pin(self.inference.serve(request, &inbound, state)).await
            }
            Serves::AllWorkers | Serves::Local => {
                self.answer_here(route, request, &request_id, state, &ticket).await
            }
        }
    }

    /// Answers a request for a route that the router answers itself.
    async fn answer_here(
        &self,
        route: &Route,
        request: Request<Incoming>,
        request_id: &HeaderValue,
        state: &State,
        ticket: &Ticket,
    ) -> Result<Response<Body>, ApiError> {
        let name = headers::text(request_id);
        debug!(request_id = name, route = route.path, method = %request.method(), "local");
        let surface = self.surface();
        let config = &surface.config;
        let (parts, incoming) = request.into_parts();
        let mut held = Held::new(&surface.metrics, config.max_buffered_bytes);
        // A request that is explained may be as large as one that is sent.
        let is_request = route.access == Access::Inspect;
        let largest = if is_request { usize::MAX } else { LARGEST_OWN_BODY };
        let limits =
            Limits { most: config.max_body_bytes.min(largest), timeout: config.body_timeout };
        let reading = upload::read(incoming, &parts.headers, limits, &mut held);
        let body = Box::pin(reading).await?;
        state.set_unread_body(false);
        ticket.note_body(body.len());
        let request = Request::from_parts(parts, axum::body::Body::from(body));
        let answered = Box::pin(self.local.clone().oneshot(request)).await;
        let mut response = answered.unwrap_or_else(|never| match never {});
        match response.extensions_mut().remove::<ApiError>() {
            Some(error) => Err(error),
            None => Ok(response.map(Body::axum)),
        }
    }

    /// Serves an inference request whose stream gets comments while nothing comes from a worker.
    async fn infer_with_heartbeat(
        &self,
        request: Request<Incoming>,
        inbound: Inbound,
        state: &Arc<State>,
        period: Duration,
    ) -> Result<Response<Body>, ApiError> {
        let rhythm = Rhythm { period, anthropic: inbound.anthropic };
        let begins = Arc::new(Notify::new());
        let inbound = Inbound { stream_begins: Some(Arc::clone(&begins)), ..inbound };
        let (inference, state) = (Arc::clone(&self.inference), Arc::clone(state));
        let mut answering: Answering = Box::pin(async move {
            let answer = inference.serve(request, &inbound, &state).await;
            // The head of the response may have been sent, so that only this line shows the error.
            answer.inspect_err(|error| inbound.ticket.note_error(error.code))
        });
        let due = async {
            begins.notified().await;
            tokio::time::sleep(period).await;
        };
        tokio::select! {
            biased;
            answer = &mut answering => {
                answer.map(|response| heartbeat::until_first_byte(response, rhythm))
            }
            () = due => Ok(heartbeat::begin(answering, rhythm)),
        }
    }

    /// Whether a page of an origin that is not allowed sends the request. `allowed`: the origin, if it is.
    fn is_foreign(&self, headers: &HeaderMap, allowed: Option<&HeaderValue>) -> bool {
        let is_restricted = !self.surface().config.cors_allowed_origins.is_empty();
        is_restricted && allowed.is_none() && headers.contains_key(header::ORIGIN)
    }

    /// The origin to name in the response, if the request has one and it is allowed.
    fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let allowed = &self.surface().config.cors_allowed_origins;
        if allowed.is_empty() {
            return None;
        }
        let origin = headers.get(header::ORIGIN)?;
        allowed
            .iter()
            .any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
            .then(|| origin.clone())
    }
}

/// The index of the metrics under which a request is counted.
const fn counted_at(found: Found) -> usize {
    match found {
        Found::At(at) => at,
        Found::Passed => ROUTES.len(),
        Found::OtherMethod | Found::Nothing => ROUTES.len() + 1,
    }
}

/// The answer to a request without a route.
fn unrouted(found: Found, path: &str) -> ApiError {
    match found {
        Found::OtherMethod => ApiError::method_not_allowed(routes::methods_of(path)),
        Found::At(_) | Found::Passed | Found::Nothing => ApiError::no_such_route(path),
    }
}

/// Closes the connection after the response if the body of the request was not read to its end, because its rest would be taken
/// for the next request. The response says so, or the client would send its next request on a connection that ends
/// (RFC 9112, section 9.6).
fn close_if_needed(headers: &mut HeaderMap, state: &State) {
    if state.has_unread_body() {
        state.close_after();
    }
    if state.must_close() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// What every response says: the request's id, and the origin that may read it.
fn mark(headers: &mut HeaderMap, request_id: HeaderValue, origin: Option<HeaderValue>) {
    headers.insert(X_REQUEST_ID.clone(), request_id);
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED.clone());
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
}

/// The tunnel to a worker that has switched to another protocol.
fn switched(response: &mut Response<Body>) -> Option<dispatch::Tunnel> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return None;
    }
    let worker = response.body_mut().take_tunnel();
    *response.body_mut() = Body::empty();
    worker
}

/// A response to HEAD: as the one to GET, whose length it tells if that is known.
fn without_body(mut response: Response<Body>) -> Response<Body> {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(length.into());
    }
    response.map(|_body| Body::empty())
}

/// Answers the preflight request that a browser sends before a request to another origin (Fetch Standard, section
/// 3.2.2).
fn preflight(headers: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let wanted = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let answers = response.headers_mut();
    answers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE, OPTIONS"),
    );
    answers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        wanted.unwrap_or_else(|| HeaderValue::from_static("*")),
    );
    answers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}
