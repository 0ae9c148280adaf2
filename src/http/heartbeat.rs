//! Comments on streams that are silent for long (`--stream-heartbeat-secs`): load balancers close a connection that is
//! silent while a worker computes a long prompt.
//!
//! After a streaming request has had no answer for the period, the client gets 200 `text/event-stream` and a comment,
//! and another comment each period until the worker's first byte. Dispatch continues meanwhile, retries included,
//! because nothing of a worker's answer has reached the client. An error is then sent as an event, because the status
//! has been sent. Dropping the body drops the dispatch, so comments end when the client disconnects.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Body as _;
use serde_json::{Value, json};
use tokio::time::Sleep;

use super::body::{Beat, Beats, Body};
use super::error::ApiError;

/// A comment, which readers of a stream of events ignore (HTML Standard, section 9.2.6).
const COMMENT: &[u8] = b": heartbeat\n\n";

/// The most bytes of a worker's error that are read in order to show it.
const MOST_ERROR: usize = 64 << 10;

/// The paths whose streams are streams of events.
const PATHS: [&str; 4] =
    ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"];

/// A request that is being dispatched.
pub(super) type Answering =
    Pin<Box<dyn Future<Output = Result<Response<Body>, ApiError>> + Send + 'static>>;

/// When comments are sent, and the format of errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rhythm {
    pub(super) period: Duration,
    /// Whether the client uses Anthropic's API.
    pub(super) anthropic: bool,
}

/// A stream before the worker's first byte.
pub(super) struct Heartbeat {
    source: Source,
    rhythm: Rhythm,
    /// Fires when the next comment is due.
    timer: Pin<Box<Sleep>>,
}

enum Source {
    /// There is no answer yet.
    Answering(Answering),
    /// The answer is a stream, of which no byte has arrived.
    Silent(Box<Body>),
    /// The answer is an error, which is being read.
    Failing { status: StatusCode, body: Box<Body>, text: BytesMut },
    /// Everything has been sent.
    Over,
}

/// Whether streams on this path get comments.
pub(super) fn applies_to(path: &str) -> bool {
    PATHS.contains(&path)
}

/// The response to a request that has had no answer within the period.
pub(super) fn begin(answering: Answering, rhythm: Rhythm) -> Response<Body> {
    let heartbeat = Heartbeat {
        source: Source::Answering(answering),
        rhythm,
        timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
    };
    let mut response = Response::new(Body::beats(heartbeat));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// A worker's answer that arrived within the period, with comments until its first byte if it is a stream of events.
pub(super) fn until_first_byte(response: Response<Body>, rhythm: Rhythm) -> Response<Body> {
    if !is_plain_stream(&response) {
        return response;
    }
    response.map(|body| {
        Body::beats(Heartbeat {
            source: Source::Silent(Box::new(body)),
            rhythm,
            timer: Box::pin(tokio::time::sleep(rhythm.period)),
        })
    })
}

/// Whether an answer is a stream of events that is not compressed, so that events can be added and removed.
pub(super) fn is_plain_stream<B>(response: &Response<B>) -> bool {
    let is_events = |headers: &HeaderMap| {
        let kind = headers.get(header::CONTENT_TYPE);
        kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
    };
    response.status().is_success()
        && is_events(response.headers())
        && !response.headers().contains_key(header::CONTENT_ENCODING)
}

impl Beats for Heartbeat {
    fn poll_beat(&mut self, cx: &mut Context<'_>) -> Poll<Beat> {
        loop {
            match &mut self.source {
                Source::Answering(answering) => match answering.as_mut().poll(cx) {
                    Poll::Ready(Ok(response)) => {
                        self.source = Source::of(response);
                        continue;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(self.end_with(&error)),
                    Poll::Pending => {}
                },
                Source::Silent(body) => {
                    if let Poll::Ready(piece) = Pin::new(&mut **body).poll_frame(cx) {
                        let body = std::mem::replace(&mut **body, Body::empty());
                        return Poll::Ready(Beat::Worker(piece, Box::new(body)));
                    }
                }
                Source::Failing { status, body, text } => {
                    match Pin::new(&mut **body).poll_frame(cx) {
                        Poll::Ready(Some(Ok(frame))) if text.len() < MOST_ERROR => {
                            text.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
                            continue;
                        }
                        Poll::Ready(_) => {
                            let event = worker_error(*status, text, self.rhythm.anthropic);
                            self.source = Source::Over;
                            return Poll::Ready(Beat::Own(event));
                        }
                        Poll::Pending => {}
                    }
                }
                Source::Over => return Poll::Ready(Beat::End),
            }
            ready!(self.timer.as_mut().poll(cx));
            self.timer = Box::pin(tokio::time::sleep(self.rhythm.period));
            return Poll::Ready(Beat::Own(Bytes::from_static(COMMENT)));
        }
    }
}

impl Heartbeat {
    fn end_with(&mut self, error: &ApiError) -> Beat {
        self.source = Source::Over;
        Beat::Own(error.to_event(self.rhythm.anthropic))
    }
}

impl Source {
    /// The body of an answer after its head.
    fn of(response: Response<Body>) -> Self {
        if is_plain_stream(&response) {
            return Self::Silent(Box::new(response.into_body()));
        }
        let status = response.status();
        Self::Failing { status, body: Box::new(response.into_body()), text: BytesMut::new() }
    }
}

/// A worker's answer that is not a stream, as an event: the worker's own error if it is JSON.
fn worker_error(status: StatusCode, text: &[u8], anthropic: bool) -> Bytes {
    let document: Value = serde_json::from_slice(text).unwrap_or_default();
    let own = match (&document["error"], &document["message"]) {
        _ if status.is_success() => None,
        (error @ Value::Object(_), _) => Some(error.clone()),
        // vLLM's older format has no object around the error.
        (_, message @ Value::String(_)) => Some(json!({
            "message": message, "type": document["type"], "param": document["param"],
            "code": document["code"],
        })),
        _ => None,
    };
    match own {
        Some(error) => event(&json!({ "error": error }), anthropic),
        None => ApiError::no_stream(status).to_event(anthropic),
    }
}

/// An error as the last event of a stream. `document` has a member `error`.
fn event(document: &Value, anthropic: bool) -> Bytes {
    let error = &document["error"];
    if anthropic {
        let document = json!({ "type": "error", "error": error });
        format!("event: error\ndata: {document}\n\n").into()
    } else {
        format!("data: {}\n\n", json!({ "error": error })).into()
    }
}

impl fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match &self.source {
            Source::Answering(_) => "answering",
            Source::Silent(_) => "silent",
            Source::Failing { .. } => "failing",
            Source::Over => "over",
        };
        f.debug_struct("Heartbeat").field("source", &source).field("rhythm", &self.rhythm).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workers_own_error_is_shown_in_the_shape_of_the_api() {
        let shown = |status: u16, text: &str, anthropic| {
            let status = StatusCode::from_u16(status).unwrap();
            String::from_utf8(worker_error(status, text.as_bytes(), anthropic).to_vec()).unwrap()
        };
        let own = r#"{"error":{"message":"too long","code":"x"}}"#;
        assert_eq!(
            shown(400, own, false),
            format!("data: {}\n\n", r#"{"error":{"code":"x","message":"too long"}}"#)
        );
        let anthropic = shown(400, own, true);
        assert!(anthropic.starts_with("event: error\ndata: {"), "{anthropic}");
        assert!(anthropic.contains(r#""type":"error""#), "{anthropic}");
        let old = r#"{"object":"error","message":"too long","type":"BadRequestError","code":400}"#;
        assert!(shown(400, old, false).contains(r#""code":400,"message":"too long""#));
        for (status, text) in [(500, "not JSON"), (500, ""), (200, r#"{"choices":[]}"#)] {
            let shown = shown(status, text, false);
            assert!(
                shown.contains("upstream_no_stream") && shown.contains(&status.to_string()),
                "{shown}"
            );
        }
    }
}
