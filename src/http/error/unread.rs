//! The answer to a request that could not be read, and the id of a request that has none.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use super::ApiError;
use crate::http::headers;

/// The answer, as bytes, to a request that could not be read: it is not HTTP, or too long, or took too long. The
/// connection is closed behind it.
pub(in crate::http) fn unread(status: u16, request_id: &HeaderValue) -> Bytes {
    let (status, code, message) = match status {
        408 => (408, "request_timeout", "the request's head did not arrive in time"),
        414 => (414, "uri_too_long", "the request's target is too long"),
        431 => (431, "headers_too_large", "the request's headers are too many or too long"),
        _ => (400, "invalid_request", "the request is not valid HTTP/1.1"),
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    let body = ApiError::new(status, code, message).to_json(false);
    let head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/json\r\nx-smg-error-code: {code}\r\nx-request-id: {}\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n",
        status.as_str(),
        status.canonical_reason().unwrap_or_default(),
        request_id.to_str().unwrap_or_default(),
        body.len(),
    );
    [head.as_bytes(), &body].concat().into()
}

/// A name for a request that brought none, or that was not read so far.
pub(in crate::http) fn new_id() -> HeaderValue {
    headers::request_id(&HeaderMap::new(), &[], &mut SmallRng::from_rng(&mut own_chance()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "requests outside of any thread of the data path, which has a generator"
)]
fn own_chance() -> rand::rngs::ThreadRng {
    rand::rng()
}
