//! Serves one request: from its path to its answer.

use std::borrow::Cow;

use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::about;
use crate::answer::{self, Dialect, Facts};
use crate::ask::Ask;
use crate::body::{Body, Stream, push_token};
use crate::engine::{Job, pause};
use crate::form::Multipart;
use crate::listed;
use crate::realtime::{self, Switched};
use crate::receive::{CollectError, MAX_BODY_BYTES, collect};
use crate::reply::{error, json_response, scripted};
use crate::route::{self, Kind, Route};
use crate::script::Script;
use crate::stored;
use crate::worker::{Last, Worker};

/// The header with the worker's name.
const WORKER: HeaderName = HeaderName::from_static("x-mock-worker");
/// The header with a script.
const SCRIPT: HeaderName = HeaderName::from_static("x-mock");
/// The most tokens in one answer.
const MAX_OUTPUT_TOKENS: u32 = 1_000_000;
/// The largest answer that is generated as one body, in bytes.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// How a connection ends if its request gets no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Cut {
    /// The connection is closed.
    #[error("cut")]
    Plain,
    /// Bytes that are not HTTP are sent, then the connection is closed.
    #[error("cut with garbage")]
    Garbage,
}

/// The error for a request that can't be served.
struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    /// The error as an answer. Counts the job as completed.
    fn answer(self, job: Job) -> Response<Body> {
        job.complete();
        error(self.status, &self.message)
    }
}

/// Answers one request, or returns how its connection is to be closed. `switched`: what the connection becomes after the answer.
pub(super) async fn serve(
    worker: &Worker,
    request: Request<Incoming>,
    switched: &Switched,
) -> Result<Response<Body>, Cut> {
    let (head, body) = request.into_parts();
    let mut response = match route::route(&head) {
        Route::Unknown => not_found(&head),
        Route::WrongMethod(allowed) => wrong_method(&head, allowed),
        Route::Health => about::health(worker).await,
        Route::Mock(mock) => about::own(worker, mock, body).await,
        _ if !authorised(worker, &head) => unauthorised(),
        Route::Realtime => realtime::accept(worker, head, switched),
        Route::About(about) => about::about(worker, about),
        Route::Stored(action) => stored::answer(worker.responses(), worker.mono(), action, &head),
        Route::Infer(kind) => infer(worker, kind, head, body).await?,
    };
    response.headers_mut().insert(WORKER, worker.name_header());
    Ok(response)
}

/// Reads an inference request, applies its script, and answers it.
async fn infer(
    worker: &Worker,
    kind: Kind,
    head: Parts,
    body: Incoming,
) -> Result<Response<Body>, Cut> {
    let job = worker.engine().begin();
    let script_header = head.headers.get(SCRIPT).cloned();
    let content_type = head.headers.get(CONTENT_TYPE).cloned();
    let body = match collect(body).await {
        Ok(body) => body,
        Err(CollectError::TooLarge) => {
            let message = format!("the body exceeds {MAX_BODY_BYTES} bytes");
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            return Ok(Refusal { status, message }.answer(job));
        }
        // The client is gone, so nothing is answered. Dropping the job counts it as aborted.
        Err(CollectError::Gone) => return Err(Cut::Plain),
    };
    worker.remember(Last { head, body: body.clone() });
    let read = script_of(script_header.as_ref())
        .and_then(|script| Ok((script, json_of(kind, content_type.as_ref(), &body)?)));
    let (header_script, json) = match read {
        Ok(read) => read,
        Err(refusal) => return Ok(refusal.answer(job)),
    };
    let (body_script, ask) = match ask_of(&json) {
        Ok(read) => read,
        Err(refusal) => return Ok(refusal.answer(job)),
    };
    let script = header_script.or(body_script).or_else(|| worker.strike()).unwrap_or_default();
    pause(script.delay()).await;
    if script.garbage || script.cut_before_head {
        job.fail();
        return Err(if script.garbage { Cut::Garbage } else { Cut::Plain });
    }
    if let Some(status) = script.status {
        job.fail();
        return Ok(scripted(status, script.retry_after));
    }
    let prompt = if kind.is_form() { body.as_ref().into() } else { ask.prompt_bytes() };
    Ok(answer(worker, job, kind, &ask, &prompt, &script).await)
}

/// Parses the script in a request's header.
fn script_of(header: Option<&HeaderValue>) -> Result<Option<Script>, Refusal> {
    header
        .map(|script| Script::parse(script.as_bytes()))
        .transpose()
        .map_err(|e| Refusal::bad_request(format!("x-mock: {e}")))
}

/// The JSON of a request: its body, or the fields of its form.
fn json_of<'a>(
    kind: Kind,
    content_type: Option<&HeaderValue>,
    body: &'a [u8],
) -> Result<Cow<'a, [u8]>, Refusal> {
    if !kind.is_form() {
        return Ok(Cow::Borrowed(body));
    }
    let multipart = Multipart::read(content_type, body).map_err(Refusal::bad_request)?;
    Ok(Cow::Owned(multipart.json.into_bytes()))
}

/// Parses the fields of a request, and the script in its body.
fn ask_of(json: &[u8]) -> Result<(Option<Script>, Ask<'_>), Refusal> {
    let mut ask = Ask::parse(json)
        .map_err(|e| Refusal::bad_request(format!("the body is no request: {e}")))?;
    let script = ask.mock.take();
    if let Some(script) = &script {
        script.validate().map_err(|e| Refusal::bad_request(format!("mock: {e}")))?;
    }
    Ok((script, ask))
}

/// Prefills the prompt and makes the answer.
async fn answer(
    worker: &Worker,
    mut job: Job,
    kind: Kind,
    ask: &Ask<'_>,
    prompt: &[u8],
    script: &Script,
) -> Response<Body> {
    let Some(model) = worker.model(ask.model()) else {
        let model = ask.model().unwrap_or_default();
        let message = format!("the model {model} does not exist");
        return Refusal { status: StatusCode::NOT_FOUND, message }.answer(job);
    };
    let usage = if kind == Kind::CountTokens {
        Job::count(prompt)
    } else {
        job.prefill(prompt, model.seed).await
    };
    let mut facts = Facts {
        id: worker.next_id(),
        created: worker.seconds(),
        model: &model.json,
        usage,
        at_limit: ask.max_tokens().is_some(),
        include_usage: ask.includes_usage(),
        usage_form: script.usage,
    };
    let listed = match kind {
        Kind::Generated(dialect) => {
            let asked = script.output_tokens.or_else(|| ask.max_tokens());
            let tokens = asked.unwrap_or_else(|| worker.output_tokens()).min(MAX_OUTPUT_TOKENS);
            facts.usage.completion = tokens;
            return generate(worker, job, dialect, &facts, ask, script).await;
        }
        Kind::Embeddings => listed::embeddings(ask, &facts),
        Kind::Rerank => listed::rerank(ask, &facts),
        Kind::Classify => listed::classify(ask, &facts),
        Kind::Score => listed::score(ask, &facts),
        Kind::Tokenize => listed::tokenize(ask),
        Kind::Detokenize => listed::detokenize(ask),
        Kind::Images | Kind::ImageForm => listed::images(ask, &facts),
        Kind::Moderations => listed::moderations(ask, &facts),
        Kind::CountTokens => Ok(listed::count_tokens(&facts)),
        Kind::Speech => match listed::speech(ask) {
            Ok(sound) => {
                job.complete();
                return sound_response(sound);
            }
            Err(message) => Err(message),
        },
    };
    match listed {
        Ok(value) => {
            job.complete();
            json_response(value.to_string())
        }
        Err(message) => Refusal::bad_request(message).answer(job),
    }
}

fn sound_response(sound: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::full(sound));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("audio/mpeg"));
    response
}

async fn generate(
    worker: &Worker,
    job: Job,
    dialect: Dialect,
    facts: &Facts<'_>,
    ask: &Ask<'_>,
    script: &Script,
) -> Response<Body> {
    let streamed = ask.stream.unwrap_or(false);
    let tokens = facts.usage.completion;
    let chunk_bytes = script.chunk_bytes.map_or(0, |bytes| bytes as usize);
    let whole_text = !streamed || answer::repeats_text(dialect);
    if whole_text && (tokens as usize).saturating_mul(chunk_bytes.max(8)) > MAX_ANSWER_BYTES {
        let message =
            format!("{tokens} tokens of {chunk_bytes} bytes exceed {MAX_ANSWER_BYTES} bytes");
        return Refusal::bad_request(message).answer(job);
    }
    let mut text = String::new();
    if whole_text {
        (0..tokens).for_each(|nth| push_token(&mut text, nth, chunk_bytes));
    }
    let is_stored = dialect == Dialect::Responses && ask.store.unwrap_or(true);
    let in_background = dialect == Dialect::Responses && ask.background.unwrap_or(false);
    if in_background && !is_stored {
        return Refusal::bad_request("background needs store").answer(job);
    }
    let decode_time = job.decode_time(tokens);
    if is_stored {
        let stalls = in_background && script.stall_after_chunks.is_some();
        let ready = (!stalls).then(|| worker.mono() + decode_time);
        worker.responses().store(facts, &text, ready, in_background);
    }
    if in_background && !streamed {
        job.generated(tokens);
        job.complete();
        return json_response(answer::with_status(facts, "queued", &text));
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
    pause(decode_time).await;
    job.generated(tokens);
    job.complete();
    json_response(answer::whole(dialect, facts, &text))
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
