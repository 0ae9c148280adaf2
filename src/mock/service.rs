//! Paths to answers: the route table of a worker and what happens to one request.

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::mock::answer::{self, Dialect, Facts};
use crate::mock::ask::Ask;
use crate::mock::body::{Body, Stream, push_token};
use crate::mock::engine::{Job, pause};
use crate::mock::listed;
use crate::mock::script::{Faults, Script};
use crate::mock::worker::{Cut, Last, Worker};

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
    let mut response = match route(&head) {
        Route::Unknown => not_found(&head),
        Route::WrongMethod(allowed) => wrong_method(&head, allowed),
        Route::Health => health(worker).await,
        Route::Mock(mock) => own(worker, mock, body).await,
        _ if !authorised(worker, &head) => unauthorised(),
        Route::About(about) => self::about(worker, about),
        Route::Infer(kind) => infer(worker, kind, head, body).await?,
    };
    response.headers_mut().insert(WORKER, worker.name_header());
    Ok(response)
}

/// What a path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Infer(Kind),
    About(About),
    Mock(Mock),
    Health,
    WrongMethod(&'static str),
    Unknown,
}

/// Inference, by the answer's making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Generated(Dialect),
    Embeddings,
    Rerank,
    Classify,
    Score,
    Tokenize,
    Detokenize,
    Images,
}

/// What the worker tells of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Models,
    ModelInfo,
    ServerInfo,
    Metrics,
    Loads,
    FlushCache,
}

/// What only a mock has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mock {
    Stats,
    Last,
    LastBody,
    ReadFaults,
    SetFaults,
}

fn route(head: &Parts) -> Route {
    use Dialect::{Chat, Completions, Generate, Messages, Responses, Transcription};
    let (get, post) = (&[Method::GET, Method::HEAD][..], &[Method::POST][..]);
    let both = &[Method::GET, Method::POST][..];
    let (route, methods) = match head.uri.path() {
        "/v1/chat/completions" => (Route::Infer(Kind::Generated(Chat)), post),
        "/v1/completions" => (Route::Infer(Kind::Generated(Completions)), post),
        "/v1/responses" => (Route::Infer(Kind::Generated(Responses)), post),
        "/v1/messages" => (Route::Infer(Kind::Generated(Messages)), post),
        "/generate" => (Route::Infer(Kind::Generated(Generate)), post),
        "/v1/audio/transcriptions" => (Route::Infer(Kind::Generated(Transcription)), post),
        "/v1/embeddings" => (Route::Infer(Kind::Embeddings), post),
        "/v1/rerank" | "/rerank" => (Route::Infer(Kind::Rerank), post),
        "/v1/classify" => (Route::Infer(Kind::Classify), post),
        "/v1/score" => (Route::Infer(Kind::Score), post),
        "/v1/tokenize" => (Route::Infer(Kind::Tokenize), post),
        "/v1/detokenize" => (Route::Infer(Kind::Detokenize), post),
        "/v1/images/generations" => (Route::Infer(Kind::Images), post),
        "/health" | "/health_generate" => (Route::Health, get),
        "/v1/models" => (Route::About(About::Models), get),
        "/get_model_info" => (Route::About(About::ModelInfo), get),
        "/get_server_info" => (Route::About(About::ServerInfo), get),
        "/metrics" => (Route::About(About::Metrics), get),
        "/get_loads" => (Route::About(About::Loads), get),
        "/flush_cache" => (Route::About(About::FlushCache), both),
        "/_mock/stats" => (Route::Mock(Mock::Stats), get),
        "/_mock/last" => (Route::Mock(Mock::Last), get),
        "/_mock/last/body" => (Route::Mock(Mock::LastBody), get),
        "/_mock/faults" if head.method == Method::GET => return Route::Mock(Mock::ReadFaults),
        "/_mock/faults" if head.method == Method::PUT => return Route::Mock(Mock::SetFaults),
        "/_mock/faults" => return Route::WrongMethod("GET, PUT"),
        _ => return Route::Unknown,
    };
    match methods.first() {
        _ if methods.contains(&head.method) => route,
        Some(&Method::POST) => Route::WrongMethod("POST"),
        _ if methods == both => Route::WrongMethod("GET, POST"),
        _ => Route::WrongMethod("GET"),
    }
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

async fn health(worker: &Worker) -> Response<Body> {
    let health = worker.faults().health;
    pause(health.delay()).await;
    match health.status {
        Some(status) => scripted(status, None),
        None => Response::new(Body::full(Bytes::new())),
    }
}

fn about(worker: &Worker, about: About) -> Response<Body> {
    let stats = worker.stats();
    let queued = stats.in_flight.saturating_sub(stats.running);
    let models: Vec<&str> = worker.models().collect();
    match about {
        About::Models => {
            let created = worker.seconds();
            let data: Vec<Value> = models
                .iter()
                .map(|id| {
                    json!({
                        "id": id, "object": "model", "created": created, "owned_by": "mock",
                        "root": id, "max_model_len": MAX_MODEL_TOKENS,
                    })
                })
                .collect();
            json_response(json!({ "object": "list", "data": data }).to_string())
        }
        About::ModelInfo => json_response(
            json!({
                "model_path": models[0], "tokenizer_path": models[0], "served_model_name": models[0],
                "is_generation": true, "has_image_understanding": false, "has_audio_understanding": true,
            })
            .to_string(),
        ),
        About::ServerInfo => json_response(
            json!({
                "model_path": models[0], "served_model_name": models[0], "version": env!("CARGO_PKG_VERSION"),
                "disaggregation_mode": "null", "dp_size": 1, "tp_size": 1, "max_req_input_len": MAX_MODEL_TOKENS,
                "max_running_requests": worker.slots(), "max_total_num_tokens": worker.cache_tokens(),
            })
            .to_string(),
        ),
        About::Metrics => {
            let mut response = Response::new(Body::full(metrics(worker)));
            let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, text);
            response
        }
        About::Loads => json_response(
            json!({ "loads": [{
                "dp_rank": 0, "num_running_reqs": stats.running, "num_waiting_reqs": queued,
                "num_total_reqs": stats.in_flight,
            }] })
            .to_string(),
        ),
        About::FlushCache => {
            worker.engine().flush_cache();
            Response::new(Body::full("Cache flushed.\n"))
        }
    }
}

fn metrics(worker: &Worker) -> String {
    let stats = worker.stats();
    let name = worker.models().next().unwrap_or_default();
    let label: String = name.chars().flat_map(char::escape_default).collect();
    let rows = [
        ("mock_requests_total", "counter", "Inference requests that arrived.", stats.requests),
        (
            "mock_requests_completed_total",
            "counter",
            "Requests answered to the end.",
            stats.completed,
        ),
        (
            "mock_requests_aborted_total",
            "counter",
            "Requests whose client left early.",
            stats.aborted,
        ),
        ("mock_requests_failed_total", "counter", "Requests failed by script.", stats.failed),
        ("mock_requests_running", "gauge", "Requests that have a slot.", stats.running),
        ("mock_requests_in_flight", "gauge", "Requests running or queued.", stats.in_flight),
        ("mock_prompt_tokens_total", "counter", "Tokens in prompts.", stats.prompt_tokens),
        (
            "mock_cached_tokens_total",
            "counter",
            "Prompt tokens found in the cache.",
            stats.cached_tokens,
        ),
        ("mock_completion_tokens_total", "counter", "Tokens generated.", stats.completion_tokens),
        ("mock_cache_blocks", "gauge", "Blocks in the prefix cache.", stats.cache_blocks),
    ];
    rows.into_iter()
        .map(|(metric, kind, help, value)| {
            format!("# HELP {metric} {help}\n# TYPE {metric} {kind}\n{metric}{{model_name=\"{label}\"}} {value}\n")
        })
        .collect()
}

async fn own(worker: &Worker, mock: Mock, body: Incoming) -> Response<Body> {
    match mock {
        Mock::Stats => json_response(json!(worker.stats()).to_string()),
        Mock::ReadFaults => json_response(json!(worker.faults()).to_string()),
        Mock::SetFaults => match collect(body).await.map(|json| Faults::parse(&json)) {
            Ok(Ok(faults)) => {
                worker.set_faults(faults);
                json_response(json!(worker.faults()).to_string())
            }
            Ok(Err(e)) => error(StatusCode::BAD_REQUEST, &format!("faults: {e}")),
            Err(_) => {
                error(StatusCode::PAYLOAD_TOO_LARGE, "faults: the body is too large or broke off")
            }
        },
        Mock::Last | Mock::LastBody => match worker.last() {
            None => error(StatusCode::NOT_FOUND, "no request has arrived yet"),
            Some(last) if mock == Mock::LastBody => {
                let mut response = Response::new(Body::full(last.body));
                let bytes = HeaderValue::from_static("application/octet-stream");
                response.headers_mut().insert(CONTENT_TYPE, bytes);
                response
            }
            Some(Last { head, body }) => {
                let headers: Vec<[String; 2]> = head
                    .headers
                    .iter()
                    .map(|(name, value)| {
                        [name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()]
                    })
                    .collect();
                json_response(
                    json!({
                        "method": head.method.as_str(), "target": head.uri.to_string(),
                        "version": format!("{:?}", head.version), "headers": headers, "body_bytes": body.len(),
                    })
                    .to_string(),
                )
            }
        },
    }
}

enum CollectError {
    TooLarge,
    Gone,
}

/// The whole body; without a copy when it came in one piece.
async fn collect(mut body: Incoming) -> Result<Bytes, CollectError> {
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

/// The two fields of a form that a worker needs, as the JSON that [`Ask`] reads.
struct Multipart {
    json: String,
}

impl Multipart {
    fn read(content_type: Option<&HeaderValue>, body: &[u8]) -> Result<Self, String> {
        let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
        let boundary =
            parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("boundary="));
        let (true, Some(boundary)) = (kind.eq_ignore_ascii_case("multipart/form-data"), boundary)
        else {
            return Err(format!(
                "content-type {content_type:?} is not multipart/form-data with a boundary"
            ));
        };
        let delimiter = format!("--{}", boundary.trim_matches('"'));
        if memchr::memmem::find(body, format!("{delimiter}--").as_bytes()).is_none() {
            return Err(format!("the form does not end with {delimiter}--"));
        }
        let field = |name: &str| {
            let at = memchr::memmem::find(body, format!("name=\"{name}\"").as_bytes())?;
            let value = at + memchr::memmem::find(&body[at..], b"\r\n\r\n")? + 4;
            let end = value + memchr::memmem::find(&body[value..], b"\r\n--")?;
            std::str::from_utf8(&body[value..end]).ok()
        };
        if field("file").is_none() && memchr::memmem::find(body, b"name=\"file\"").is_none() {
            return Err("the form has no file".to_owned());
        }
        let mut json = json!({ "stream": field("stream") == Some("true") });
        if let Some(model) = field("model") {
            json["model"] = json!(model);
        }
        Ok(Self { json: json.to_string() })
    }
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

fn scripted(status: u16, retry_after: Option<u64>) -> Response<Body> {
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

fn error(status: StatusCode, message: &str) -> Response<Body> {
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

fn json_response(body: String) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
