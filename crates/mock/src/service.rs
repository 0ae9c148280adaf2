//! What happens to one request: from its path to its answer.

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;

use crate::about;
use crate::answer::{self, Dialect, Facts};
use crate::ask::Ask;
use crate::body::{Body, Stream, push_token};
use crate::engine::{Job, pause};
use crate::form::Multipart;
use crate::listed;
use crate::route::{self, Kind, Route};
use crate::script::Script;
use crate::worker::{Cut, Last, Worker};

/// Who answered.
const WORKER: HeaderName = HeaderName::from_static("x-mock-worker");
/// What to do wrong.
const SCRIPT: HeaderName = HeaderName::from_static("x-mock");
/// Tokens that the model claims to hold.
pub(super) const MAX_MODEL_TOKENS: u32 = 131_072;
/// Largest request body.
const MAX_BODY_BYTES: usize = 64 << 20;
/// Most tokens in one answer.
const MAX_OUTPUT_TOKENS: u32 = 1_000_000;
/// Largest answer that is made as a whole.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Answers one request, or says how to cut its connection.
pub(super) async fn serve(
    worker: &Worker,
    request: Request<Incoming>,
) -> Result<Response<Body>, Cut> {
    let (head, body) = request.into_parts();
    let mut response = match route::route(&head) {
        Route::Unknown => not_found(&head),
        Route::WrongMethod(allowed) => wrong_method(&head, allowed),
        Route::Health => about::health(worker).await,
        Route::Mock(mock) => about::own(worker, mock, body).await,
        _ if !authorised(worker, &head) => unauthorised(),
        Route::About(about) => about::about(worker, about),
        Route::Infer(kind) => infer(worker, kind, head, body).await?,
    };
    response.headers_mut().insert(WORKER, worker.name_header());
    Ok(response)
}

async fn infer(
    worker: &Worker,
    kind: Kind,
    head: Parts,
    body: Incoming,
) -> Result<Response<Body>, Cut> {
    let mut job = worker.engine().begin();
    let own_script = head.headers.get(SCRIPT).cloned();
    let content_type = head.headers.get(CONTENT_TYPE).cloned();
    let body = match collect(body).await {
        Ok(body) => body,
        Err(CollectError::TooLarge) => {
            job.complete();
            let message = format!("the body exceeds {MAX_BODY_BYTES} bytes");
            return Ok(error(StatusCode::PAYLOAD_TOO_LARGE, &message));
        }
        // The client is gone: there is nobody to answer, and the dropped job counts as aborted.
        Err(CollectError::Gone) => return Err(Cut::Plain),
    };
    worker.remember(Last { head, body: body.clone() });

    let script = match own_script.map(|json| Script::parse(json.as_bytes())).transpose() {
        Ok(script) => script,
        Err(e) => return Ok(refuse(job, StatusCode::BAD_REQUEST, &format!("x-mock: {e}"))),
    };
    let multipart;
    let asked = if kind == Kind::Generated(Dialect::Transcription) {
        multipart = match Multipart::read(content_type.as_ref(), &body) {
            Ok(multipart) => multipart,
            Err(message) => return Ok(refuse(job, StatusCode::BAD_REQUEST, &message)),
        };
        Ask::parse(multipart.json.as_bytes())
    } else {
        Ask::parse(&body)
    };
    let mut ask = match asked {
        Ok(ask) => ask,
        Err(e) => {
            return Ok(refuse(
                job,
                StatusCode::BAD_REQUEST,
                &format!("the body is no request: {e}"),
            ));
        }
    };
    let in_body = ask.mock.take();
    if let Some(Err(e)) = in_body.as_ref().map(Script::validate) {
        return Ok(refuse(job, StatusCode::BAD_REQUEST, &format!("mock: {e}")));
    }
    let script = script.or(in_body).or_else(|| worker.strike()).unwrap_or_default();
    pause(script.delay()).await;
    if script.garbage || script.cut_before_head {
        job.fail();
        return Err(if script.garbage { Cut::Garbage } else { Cut::Plain });
    }
    if let Some(status) = script.status {
        job.fail();
        return Ok(scripted(status, script.retry_after));
    }
    let Some(model) = worker.model(ask.model()) else {
        let model = ask.model().unwrap_or_default();
        return Ok(refuse(
            job,
            StatusCode::NOT_FOUND,
            &format!("the model {model} does not exist"),
        ));
    };
    let prompt = if kind == Kind::Generated(Dialect::Transcription) {
        body.as_ref().into()
    } else {
        ask.prompt_bytes()
    };
    let usage = job.prefill(&prompt, model.seed).await;
    let mut facts = Facts {
        id: worker.next_id(),
        created: worker.seconds(),
        model: &model.json,
        usage,
        at_limit: ask.max_tokens().is_some(),
        include_usage: ask.includes_usage(),
    };
    let listed = match kind {
        Kind::Generated(dialect) => {
            let asked = script.output_tokens.or_else(|| ask.max_tokens());
            let tokens = asked.unwrap_or_else(|| worker.output_tokens()).min(MAX_OUTPUT_TOKENS);
            facts.usage.completion = tokens;
            return Ok(generate(job, dialect, &facts, ask.stream.unwrap_or(false), &script).await);
        }
        Kind::Embeddings => listed::embeddings(&ask, &facts),
        Kind::Rerank => listed::rerank(&ask, &facts),
        Kind::Classify => listed::classify(&ask, &facts),
        Kind::Score => listed::score(&ask, &facts),
        Kind::Tokenize => listed::tokenize(&ask),
        Kind::Detokenize => listed::detokenize(&ask),
        Kind::Images => listed::images(&ask, &facts),
    };
    job.complete();
    Ok(match listed {
        Ok(value) => json_response(value.to_string()),
        Err(message) => error(StatusCode::BAD_REQUEST, &message),
    })
}

async fn generate(
    job: Job,
    dialect: Dialect,
    facts: &Facts<'_>,
    streamed: bool,
    script: &Script,
) -> Response<Body> {
    let tokens = facts.usage.completion;
    let chunk_bytes = script.chunk_bytes.map_or(0, |bytes| bytes as usize);
    let whole_text = !streamed || answer::repeats_text(dialect);
    if whole_text && (tokens as usize).saturating_mul(chunk_bytes.max(8)) > MAX_ANSWER_BYTES {
        let message =
            format!("{tokens} tokens of {chunk_bytes} bytes exceed {MAX_ANSWER_BYTES} bytes");
        return refuse(job, StatusCode::BAD_REQUEST, &message);
    }
    let mut text = String::new();
    if whole_text {
        (0..tokens).for_each(|nth| push_token(&mut text, nth, chunk_bytes));
    }
    if streamed {
        let shape = answer::stream(dialect, facts, &text);
        let mut response =
            Response::new(Body::Stream(Box::new(Stream::new(job, shape, tokens, script))));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert("cache-control", HeaderValue::from_static("no-cache"));
        return response;
    }
    job.decode(tokens).await;
    job.generated(tokens);
    job.complete();
    json_response(answer::whole(dialect, facts, &text))
}

/// Why there is no whole body.
pub(super) enum CollectError {
    TooLarge,
    Gone,
}

/// The whole body; without a copy when it came in one piece.
pub(super) async fn collect(mut body: Incoming) -> Result<Bytes, CollectError> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| CollectError::Gone)?.into_data() else { continue };
        if first.len() + rest.len() + data.len() > MAX_BODY_BYTES {
            return Err(CollectError::TooLarge);
        }
        if first.is_empty() && rest.is_empty() {
            first = data;
            continue;
        }
        if rest.is_empty() {
            rest.extend_from_slice(&std::mem::take(&mut first));
        }
        rest.extend_from_slice(&data);
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

fn authorised(worker: &Worker, head: &Parts) -> bool {
    let Some(key) = worker.api_key() else { return true };
    let bearer =
        head.headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let plain = head.headers.get("x-api-key").map(HeaderValue::as_bytes);
    bearer == Some(key.as_bytes()) || plain == Some(key.as_bytes())
}

fn unauthorised() -> Response<Body> {
    let mut response = error(StatusCode::UNAUTHORIZED, "the api key is missing or wrong");
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

fn not_found(head: &Parts) -> Response<Body> {
    error(StatusCode::NOT_FOUND, &format!("no route for {} {}", head.method, head.uri.path()))
}

fn wrong_method(head: &Parts, allowed: &'static str) -> Response<Body> {
    let message = format!("{} does not take {}", head.uri.path(), head.method);
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, &message);
    response.headers_mut().insert("allow", HeaderValue::from_static(allowed));
    response
}

pub(super) fn scripted(status: u16, retry_after: Option<u64>) -> Response<Body> {
    let status = StatusCode::from_u16(status).expect("a script's status was checked");
    let mut response = error(status, "failed by script");
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// An answer that says no; for the engine the request is over.
fn refuse(job: Job, status: StatusCode, message: &str) -> Response<Body> {
    job.complete();
    error(status, message)
}

pub(super) fn error(status: StatusCode, message: &str) -> Response<Body> {
    let kind = match status.as_u16() {
        401 => "authentication_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    };
    let body = json!({ "error": { "message": message, "type": kind, "param": null, "code": status.as_u16() } });
    let mut response = json_response(body.to_string());
    *response.status_mut() = status;
    response
}

pub(super) fn json_response(body: String) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
