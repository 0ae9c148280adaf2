//! Errors as clients see them: the only file that knows which status a failure has.
//!
//! No worker's URL is ever told; what went wrong inside is in the log.

mod model;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, Version, header};
use serde_json::json;
use smg_limits::admission::Quota;
use smg_proxy::dispatch::DispatchError;
use smg_proxy::upstream::SendError;
use smg_routing::limit::Rejected;

use super::body::Body;
use super::form::FormError;
use super::peek::PeekError;
use super::quota_headers;
use super::routes;

/// The error code's own header.
pub(super) static X_SMG_ERROR_CODE: HeaderName = HeaderName::from_static("x-smg-error-code");

// As OpenAI's clients know them.
static X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
static X_RATELIMIT_REMAINING: HeaderName =
    HeaderName::from_static("x-ratelimit-remaining-requests");

/// A failure as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    /// A name from a closed set.
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) param: Option<&'static str>,
    pub(super) retry_after: Option<Duration>,
    /// The limit that was reached, in requests: told with nothing remaining.
    pub(super) limit: Option<u32>,
    /// The limits that concern the request.
    pub(super) quotas: Vec<Quota>,
    /// A header that says what would have been accepted: `allow` (RFC 9110, 10.2.1), `accept-encoding` (12.5.3) or
    /// `upgrade` (15.5.22).
    pub(super) accepted: Option<Box<(HeaderName, HeaderValue)>>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            param: None,
            retry_after: None,
            limit: None,
            quotas: Vec::new(),
            accepted: None,
        }
    }

    pub(super) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// The request's path names nothing.
    pub(super) fn no_such_route(path: &str) -> Self {
        if let Some(objects) = routes::unsupported(path) {
            let message = format!(
                "{objects} are not supported: the router passes requests on to engines, and engines have no {objects}"
            );
            return Self::new(StatusCode::NOT_FOUND, "not_supported", message);
        }
        let hint = routes::suggestion(path).map(|meant| {
            let base =
                if meant.starts_with("/v1/") { "; a client's base URL ends in /v1" } else { "" };
            format!(" (did you mean {meant}?{base})")
        });
        let path: String = path.chars().take(200).collect();
        let hint = hint.unwrap_or_default();
        Self::new(StatusCode::NOT_FOUND, "route_not_found", format!("no such route: {path}{hint}"))
    }

    pub(super) fn method_not_allowed(allow: String) -> Self {
        let error = Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "the route does not take this method",
        );
        let accepted = HeaderValue::try_from(allow).ok();
        Self { accepted: accepted.map(|allow| Box::new((header::ALLOW, allow))), ..error }
    }

    /// The request names no host, or several (RFC 9112, 3.2).
    pub(super) fn invalid_host() -> Self {
        Self::bad_request(
            "invalid_host",
            "the request must have one `host` header, with a host and perhaps a port",
        )
    }

    /// This router, or one of its cluster, has forwarded the request before.
    pub(super) fn loop_detected() -> Self {
        Self::new(
            StatusCode::LOOP_DETECTED,
            "loop_detected",
            "a router of this cluster has forwarded the request before: a worker's URL leads back to it",
        )
    }

    /// No key, or a wrong one.
    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_api_key", "no valid API key was given")
    }

    /// The caller may not do that.
    pub(super) fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// A write's body is of a type that a page of another site may send without being asked.
    pub(super) fn not_json(kind: &str) -> Self {
        let kind: String = kind.chars().take(64).collect();
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not_json",
            format!("admin writes need `content-type: application/json`; the request says {kind}"),
        )
    }

    /// The body is larger than allowed.
    pub(super) fn too_large(most: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload_too_large",
            format!("the body is larger than the limit of {most} bytes"),
        )
    }

    /// The bodies of other requests leave no room for this one's.
    pub(super) fn no_room() -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no_room_for_body",
                "the router holds as many bytes of requests as it may",
            )
        }
    }

    /// The body's encoding is not decoded here. `decoded`: the encodings that are, as an `accept-encoding` header lists
    /// them; `None`: none is.
    pub(super) fn encoding_refused(encoding: &str, decoded: Option<&'static str>) -> Self {
        let encoding: String = encoding.chars().take(64).collect();
        let message = match decoded {
            Some(decoded) => {
                format!("the body's content-encoding {encoding} is not one of {decoded}")
            }
            None => format!(
                "the body's content-encoding {encoding} is not accepted: send the body as it is \
                 (or start the router with --decompress-requests)"
            ),
        };
        let accepted = HeaderValue::from_static(decoded.unwrap_or("identity"));
        let accepted = (header::ACCEPT_ENCODING, accepted);
        Self {
            accepted: Some(Box::new(accepted)),
            ..Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message)
        }
    }

    /// The body is not what its content-encoding says.
    pub(super) fn bad_encoding(why: &str) -> Self {
        Self::bad_request(
            "invalid_encoding",
            format!("the body is not what its content-encoding says: {why}"),
        )
    }

    /// A worker's answer would send the client to another server.
    pub(super) fn foreign_reference() -> Self {
        Self::new(
            StatusCode::BAD_GATEWAY,
            "upstream_protocol_error",
            "the worker's answer refers to another server",
        )
    }

    /// The path is for WebSocket only.
    pub(super) fn upgrade_required(version: Version) -> Self {
        let over_http1 = version == Version::HTTP_11;
        let message = if over_http1 {
            "the route takes WebSocket only: send `connection: upgrade` and `upgrade: websocket`"
        } else {
            "the route takes WebSocket only, and only over HTTP/1.1: extended CONNECT (RFC 8441) is not offered"
        };
        // HTTP/2 has no such field (RFC 9113, 8.2.2).
        let accepted = (header::UPGRADE, HeaderValue::from_static("websocket"));
        Self {
            accepted: over_http1.then(|| Box::new(accepted)),
            ..Self::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message)
        }
    }

    /// The router ends soon, and takes nothing that may last.
    pub(super) fn draining() -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "draining",
                "the router is about to end: connect again, to another one",
            )
        }
    }

    /// A worker's answer is no stream, and the client reads one already. `status`: the worker's.
    pub(super) fn no_stream(status: StatusCode) -> Self {
        Self::new(
            StatusCode::BAD_GATEWAY,
            "upstream_no_stream",
            format!("the worker answered with status {} and no stream", status.as_u16()),
        )
    }

    /// The body came too slowly.
    pub(super) fn too_slow() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            "the request's body did not arrive in time",
        )
    }

    /// The body broke off or is not framed as HTTP says.
    pub(super) fn body_broken() -> Self {
        Self::bad_request("invalid_body", "the request's body could not be read")
    }

    /// No worker has stored such a response.
    pub(super) fn no_such_response(id: &str) -> Self {
        let id: String = id.chars().take(200).collect();
        Self::new(
            StatusCode::NOT_FOUND,
            "response_not_found",
            format!("no worker has a response {id}"),
        )
    }

    pub(super) fn no_such_worker(id: &str) -> Self {
        let id: String = id.chars().take(64).collect();
        Self::new(StatusCode::NOT_FOUND, "worker_not_found", format!("no such worker: {id}"))
    }

    /// No limit has this id.
    pub(super) fn no_such_rule(id: &str) -> Self {
        let id: String = id.chars().take(128).collect();
        Self::new(StatusCode::NOT_FOUND, "rule_not_found", format!("there is no rule {id:?}"))
    }

    /// OpenAI's name for the class of error.
    fn class(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            503 => "overloaded_error",
            _ => "api_error",
        }
    }

    /// The error as JSON. `anthropic`: with the `type` that its clients look for beside the `error`.
    fn to_json(&self, anthropic: bool) -> Bytes {
        let error = json!({
            "message": self.message, "type": self.class(), "param": self.param, "code": self.code,
        });
        let document = if anthropic {
            json!({ "type": "error", "error": error })
        } else {
            json!({ "error": error })
        };
        serde_json::to_vec(&document).expect("a document of strings is JSON").into()
    }

    /// The error as the last event of a stream.
    pub(super) fn to_event(&self, anthropic: bool) -> Bytes {
        let json = self.to_json(anthropic);
        let name: &[u8] = if anthropic { b"event: error\n" } else { b"" };
        [name, b"data: ", &json, b"\n\n"].concat().into()
    }

    /// The error as a response.
    pub(super) fn into_response(self, anthropic: bool) -> Response<Body> {
        let mut response = Response::new(Body::full(self.to_json(anthropic)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(X_SMG_ERROR_CODE.clone(), HeaderValue::from_static(self.code));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(limit) = self.limit {
            headers.insert(X_RATELIMIT_LIMIT.clone(), HeaderValue::from(limit));
            headers.insert(X_RATELIMIT_REMAINING.clone(), HeaderValue::from(0));
        }
        quota_headers::show(&self.quotas, headers);
        if let Some((name, value)) = self.accepted.map(|accepted| *accepted) {
            headers.insert(name, value);
        }
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response
    }
}

impl axum::response::IntoResponse for ApiError {
    fn into_response(self) -> axum::response::Response {
        // The connection may replace it by the same error in Anthropic's shape.
        let mut response = Self::into_response(self.clone(), false).map(axum::body::Body::new);
        response.extensions_mut().insert(self);
        response
    }
}

impl From<PeekError> for ApiError {
    fn from(error: PeekError) -> Self {
        let param = match error {
            PeekError::WrongType { key, .. } => Some(key),
            PeekError::NotUtf8(_)
            | PeekError::NotAnObject
            | PeekError::Malformed(_)
            | PeekError::TooDeep(_) => None,
        };
        Self { param, ..Self::bad_request("invalid_json", error.to_string()) }
    }
}

impl From<FormError> for ApiError {
    fn from(error: FormError) -> Self {
        Self { param: Some("model"), ..Self::bad_request("invalid_form", error.to_string()) }
    }
}

impl From<DispatchError> for ApiError {
    fn from(error: DispatchError) -> Self {
        let soon = Some(Duration::from_secs(1));
        match error {
            DispatchError::NoSuchModel => Self {
                param: Some("model"),
                ..Self::new(StatusCode::NOT_FOUND, "model_not_found", error.to_string())
            },
            DispatchError::ModelDeparted => Self {
                param: Some("model"),
                // A worker takes longer to load a model than another one to get well.
                retry_after: Some(Duration::from_secs(5)),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "model_has_no_worker",
                    error.to_string(),
                )
            },
            DispatchError::NoneAvailable => Self {
                retry_after: soon,
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "no_available_workers",
                    error.to_string(),
                )
            },
            DispatchError::Rejected(Rejected::QueueFull { max_concurrent, .. }) => Self {
                retry_after: soon,
                limit: Some(max_concurrent),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", error.to_string())
            },
            DispatchError::Rejected(Rejected::WorkersFull { .. }) => Self {
                retry_after: soon,
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", error.to_string())
            },
            // Not a 408: clients and proxies take that for their own slowness, and try again at once.
            DispatchError::QueueTimeout(_) => Self {
                retry_after: soon,
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "queue_timeout", error.to_string())
            },
            DispatchError::Failed { source, .. } => Self::from(source),
        }
    }
}

impl From<SendError> for ApiError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Shortage { .. } => Self {
                retry_after: Some(Duration::from_secs(1)),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "router_out_of_resources",
                    "the router lacks resources of its own to reach a worker",
                )
            },
            SendError::NoSuchName(_)
            | SendError::Connect(_)
            | SendError::ConnectTimeout(_)
            | SendError::Tls(_) => Self::new(
                StatusCode::BAD_GATEWAY,
                "upstream_connection_failed",
                "no connection to a worker",
            ),
            SendError::Lost { .. } => Self::new(
                StatusCode::BAD_GATEWAY,
                "upstream_connection_failed",
                "the worker closed the connection before it answered",
            ),
            SendError::Removed => Self::new(
                StatusCode::BAD_GATEWAY,
                "upstream_connection_failed",
                "the worker was removed before it answered",
            ),
            SendError::Protocol(_) => Self::new(
                StatusCode::BAD_GATEWAY,
                "upstream_protocol_error",
                "the worker's answer is not valid HTTP",
            ),
            SendError::HeadTimeout(_) => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream_timeout",
                "the worker did not answer in time",
            ),
        }
    }
}

/// What a stream of OpenAI's kind ends with when it breaks. It may have broken within a line: the blank lines end that.
pub(super) const BROKEN_OPENAI: &str = "\n\ndata: {\"error\":{\"message\":\"the worker's response broke off\",\
     \"type\":\"api_error\",\"param\":null,\"code\":\"upstream_stream_broken\"}}\n\n";

/// What a stream of Anthropic's kind ends with when it breaks.
pub(super) const BROKEN_ANTHROPIC: &str = "\n\nevent: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\
     \"message\":\"the worker's response broke off\",\"param\":null,\"code\":\"upstream_stream_broken\"}}\n\n";

mod unread;
mod writes;

pub(super) use unread::{new_id, unread};

#[cfg(test)]
mod tests;
