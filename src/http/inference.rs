//! The inference endpoints: one generic pass-through for JSON and multipart, streaming or not.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use smg_proxy::dispatch::{self, Dispatched, ModelPlace, StreamEnd};
use smg_routing::fleet::{Listed, Worker};
use smg_routing::limit::Priority;
use smg_types::ids::ModelId;
use tracing::warn;

use super::body::Body;
use super::buffered::Held;
use super::connection::Exchange;
use super::encoding;
use super::error::{ApiError, BROKEN_ANTHROPIC, BROKEN_OPENAI};
use super::form;
use super::from_worker;
use super::headers;
use super::peek::{self, Peek};
use super::shard::{Inbound, Shard};

static X_SMG_ROUTING_KEY: HeaderName = HeaderName::from_static("x-smg-routing-key");
static X_SMG_PRIORITY: HeaderName = HeaderName::from_static("x-smg-priority");

/// Serves one inference request.
pub(super) async fn serve(
    shard: &Shard,
    request: Request<Incoming>,
    inbound: &Inbound,
    exchange: &Exchange,
) -> Result<Response<Body>, ApiError> {
    let config = &shard.surface().config;
    let (mut parts, incoming) = request.into_parts();
    let path_and_query =
        parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut headers = std::mem::take(&mut parts.headers);
    // What is left of a body that was not read would be taken for the next request.
    let mut held = Held::new(&shard.surface().metrics, config.max_buffered_bytes);
    let limits = Limits { most: config.max_body_bytes, timeout: config.body_timeout };
    let body = read(incoming, &headers, limits, &mut held)
        .await
        .inspect_err(|_| exchange.close_after())?;
    let body = encoding::decoded(
        body,
        &mut headers,
        config.decompress_requests,
        config.max_body_bytes,
        &mut held,
    )
    .await?;
    let facts = facts(&parts, &headers, &body).await?;
    let peek = facts.peek;
    let sole = match (&peek.model, shard.surface().fleet.load().listed()) {
        (Some(_), _) | (None, Listed::None) => None,
        (None, Listed::One(model)) => Some(model.clone()),
        // A probe of the engine is about no model; everything else would go to a worker of the wrong one.
        (None, Listed::Several) if inbound.any_model => None,
        (None, Listed::Several) => return Err(ApiError::model_missing(facts.form_defect)),
    };
    let model = peek.model.as_deref().or_else(|| sole.as_ref().map(ModelId::as_str));
    let priority = match headers.get(&X_SMG_PRIORITY) {
        // A small question about a worker, asked by what watches it: it does not wait behind the traffic.
        None if parts.method == Method::GET => Priority::System,
        None => Priority::Default,
        Some(value) => value.to_str().unwrap_or_default().parse().map_err(|error| ApiError {
            param: Some("x-smg-priority"),
            ..ApiError::bad_request("invalid_priority", format!("{error}"))
        })?,
    };
    // What the client says for routing, else a session's header, else what the body says.
    let session_header = std::iter::once(&X_SMG_ROUTING_KEY)
        .chain(&config.session_headers)
        .find_map(|name| headers.get(name).filter(|key| !key.is_empty()))
        .cloned();
    let session = session_header.as_ref().map(HeaderValue::as_bytes);
    shard.keys().take_own(&mut headers);
    headers::to_worker(&mut headers, &inbound.request_id, &mut shard.rng());
    let request = dispatch::Request {
        request_id: &inbound.request_id,
        method: parts.method,
        path_and_query,
        headers,
        body: body.clone(),
        model,
        model_at: facts.model_at,
        stream: peek.stream,
        stream_end: StreamEnd::Event(if inbound.anthropic {
            BROKEN_ANTHROPIC
        } else {
            BROKEN_OPENAI
        }),
        session: session.or_else(|| peek.session.as_deref().map(str::as_bytes)),
        prompt: &peek.prompt,
        priority,
    };
    let Dispatched { response, trace } = shard
        .dispatcher()
        .dispatch(&request)
        .await
        .map_err(|error| ApiError::from(error).about_model(model))?;
    let mut response = response.map(Body::worker);
    if response.headers().contains_key(header::TRANSFER_ENCODING) {
        // Of a worker that gives both, the length does not count (RFC 9112, 6.3).
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    headers::strip_hop_by_hop(response.headers_mut());
    hide_worker(shard, &trace, response.headers_mut())?;
    if config.debug_headers {
        show(&trace, response.headers_mut());
    }
    Ok(response)
}

/// How large a body may be, and how slow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// In bytes.
    pub(super) most: usize,
    /// Between two pieces.
    pub(super) timeout: Duration,
}

/// Reads a request's body whole: it may have to be sent more than once, and routing looks into it. `held` is to live as
/// long as the body.
pub(super) async fn read(
    mut incoming: Incoming,
    headers: &HeaderMap,
    limits: Limits,
    held: &mut Held,
) -> Result<Bytes, ApiError> {
    let Limits { most, timeout } = limits;
    let told = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<usize>().ok());
    if told.is_some_and(|told| told > most) {
        return Err(ApiError::too_large(most));
    }
    let Some(first) = piece(&mut incoming, timeout).await? else {
        return Ok(Bytes::new());
    };
    held.grow(first.len())?;
    if Pin::new(&incoming).is_end_stream() && first.len() <= most {
        // The usual case: one piece, and no copy of it.
        return Ok(first);
    }
    // However small its pieces are: a byte a minute does not keep a request open for ever.
    tokio::time::timeout(timeout * PATIENCE, rest(incoming, first, told, limits, held))
        .await
        .map_err(|_elapsed| ApiError::too_slow())?
}

/// A whole body may take this many times as long as one pause in it.
const PATIENCE: u32 = 10;

/// Reads the body on from its first piece.
async fn rest(
    mut incoming: Incoming,
    first: Bytes,
    told: Option<usize>,
    limits: Limits,
    held: &mut Held,
) -> Result<Bytes, ApiError> {
    let Limits { most, timeout } = limits;
    // What a client announces is not reserved before it comes.
    let mut whole = BytesMut::with_capacity(told.unwrap_or(0).min(1 << 20).max(first.len()));
    let mut next = Some(first);
    while let Some(data) = next {
        if whole.len() + data.len() > most {
            return Err(ApiError::too_large(most));
        }
        whole.extend_from_slice(&data);
        next = piece(&mut incoming, timeout).await?;
        held.grow(next.as_ref().map_or(0, Bytes::len))?;
    }
    Ok(whole.freeze())
}

/// The next piece of the body; trailers are passed over.
async fn piece(incoming: &mut Incoming, timeout: Duration) -> Result<Option<Bytes>, ApiError> {
    loop {
        let frame = tokio::time::timeout(timeout, incoming.frame())
            .await
            .map_err(|_elapsed| ApiError::too_slow())?;
        match frame {
            None => return Ok(None),
            Some(Err(_broken)) => return Err(ApiError::body_broken()),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(_trailers) => {}
            },
        }
    }
}

/// What routing knows of a request.
#[derive(Default)]
struct Facts<'a> {
    peek: Peek<'a>,
    model_at: Option<ModelPlace>,
    /// Why a form could not be read to its end.
    form_defect: Option<String>,
}

/// Reads what routing needs: from a form, from the query of a request without a body, else from JSON.
async fn facts<'a>(
    parts: &Parts,
    headers: &HeaderMap,
    body: &'a Bytes,
) -> Result<Facts<'a>, ApiError> {
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if form::is_form(content_type) {
        let form = form::read(body, content_type).await?;
        let peek =
            Peek { model: form.model.map(Into::into), stream: form.stream, ..Peek::default() };
        let model_at = form.model_at.map(ModelPlace::Text);
        return Ok(Facts { peek, model_at, form_defect: form.defect });
    }
    if body.is_empty() && parts.method == Method::GET {
        let model = model_of_query(parts.uri.query());
        return Ok(Facts { peek: Peek { model, ..Peek::default() }, ..Facts::default() });
    }
    let mut peek = peek::peek(body)?;
    // An empty name says as little as none.
    peek.model = peek.model.filter(|name| !name.is_empty());
    let model_at = peek.model_at.take().map(ModelPlace::Json);
    Ok(Facts { peek, model_at, form_defect: None })
}

/// The value of the parameter `model`.
fn model_of_query(query: Option<&str>) -> Option<Cow<'static, str>> {
    let pairs: Vec<(String, String)> =
        axum::extract::Query::try_from_uri(&format!("/?{}", query?).parse().ok()?).ok()?.0;
    let model = pairs.into_iter().find(|(name, _)| name == "model")?.1;
    (!model.is_empty()).then_some(Cow::Owned(model))
}

/// Keeps the worker's URL, and its CORS headers where the router has its own, from the client.
fn hide_worker(
    shard: &Shard,
    trace: &dispatch::Trace,
    headers: &mut HeaderMap,
) -> Result<(), ApiError> {
    let surface = shard.surface();
    if !surface.config.cors_allowed_origins.is_empty() {
        from_worker::strip_cors(headers);
    }
    if !from_worker::may_refer(headers) {
        return Ok(());
    }
    let fleet = surface.fleet.load();
    let Some(worker) = fleet.worker(trace.worker) else {
        // It was removed meanwhile, and nobody can say any more what its references mean.
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

/// Tells the client how its response came to be.
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
