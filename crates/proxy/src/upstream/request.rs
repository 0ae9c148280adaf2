//! A request as one attempt sends it, and the encoding of its head.
//!
//! The router alone decides how a request is framed: the client's fields about length, coding and connection are not
//! copied.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use smg_types::spec::{Secret, WorkerUrl};

/// A request as one attempt sends it. It borrows its parts, because the next attempt sends the same.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// The method.
    pub method: &'a Method,
    /// Path and query as the client sent them; the path of the worker's URL is put before it.
    pub path_and_query: &'a PathAndQuery,
    /// All headers except `host` and `content-length`.
    pub headers: &'a HeaderMap,
    /// Replaces the client's `authorization`, if it is set.
    pub authorization: Option<HeaderValue>,
    /// The whole body.
    pub body: Bytes,
    /// Whether the response is expected to be a stream, which selects the total timeout.
    pub stream: bool,
    /// Whether the worker is asked to switch to WebSocket (RFC 6455, 4.1).
    pub websocket: bool,
}

/// A request that the router itself sends to a worker.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: &'a str,
    /// The worker's key, if it has one.
    pub key: Option<&'a Secret>,
    /// The body: JSON, or empty.
    pub body: Bytes,
}

/// The value `Bearer KEY`; `None` if the key has characters that are not valid in a header.
#[must_use]
pub fn bearer(key: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The head of a request to `worker`.
pub(super) fn write_head(worker: &WorkerUrl, outgoing: &Outgoing<'_>) -> Bytes {
    let target = outgoing.path_and_query.as_str();
    let values: usize =
        outgoing.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let fixed = 128 + worker.path_prefix().len() + worker.authority().len();
    let mut head = Vec::with_capacity(fixed + target.len() + values);
    let mut put = |pieces: &[&[u8]]| {
        for piece in pieces {
            head.extend_from_slice(piece);
        }
    };
    put(&[outgoing.method.as_str().as_bytes(), b" ", worker.path_prefix().as_bytes()]);
    put(&[target.as_bytes(), b" HTTP/1.1\r\nhost: ", worker.authority().as_bytes(), b"\r\n"]);
    for (name, value) in outgoing.headers {
        let replaced = *name == header::AUTHORIZATION && outgoing.authorization.is_some();
        if !replaced && !is_ours(name) {
            put(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
    }
    if outgoing.websocket {
        put(&[b"connection: upgrade\r\nupgrade: websocket\r\n"]);
    }
    if let Some(authorization) = &outgoing.authorization {
        put(&[b"authorization: ", authorization.as_bytes(), b"\r\n"]);
    }
    // A body may be expected here, and some workers would wait for it without a length.
    let expected = [Method::POST, Method::PUT, Method::PATCH].contains(outgoing.method);
    if expected || !outgoing.body.is_empty() {
        put(&[b"content-length: ", outgoing.body.len().to_string().as_bytes(), b"\r\n"]);
    }
    put(&[b"\r\n"]);
    head.into()
}

/// Whether a field concerns the framing or a single connection, so that it is never copied.
fn is_ours(name: &HeaderName) -> bool {
    const OTHERS: [&str; 2] = ["keep-alive", "proxy-connection"];
    let framing = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
    ];
    framing.contains(name) || OTHERS.contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(method: &Method, url: &str, headers: &HeaderMap, body: &'static str) -> String {
        let outgoing = Outgoing {
            method,
            path_and_query: &"/v1/x?a=%20b".parse().unwrap(),
            headers,
            authorization: headers
                .contains_key("x-own-key")
                .then(|| HeaderValue::from_static("Bearer own")),
            body: Bytes::from_static(body.as_bytes()),
            stream: false,
            websocket: false,
        };
        String::from_utf8(write_head(&url.parse().unwrap(), &outgoing).to_vec()).unwrap()
    }

    #[test]
    fn a_request_is_written_with_its_prefix_and_its_repeated_headers() {
        let mut headers = HeaderMap::new();
        headers.append("accept", HeaderValue::from_static("a"));
        headers.append("accept", HeaderValue::from_static("b"));
        assert_eq!(
            written(&Method::POST, "http://w:8000/deep", &headers, "{}"),
            "POST /deep/v1/x?a=%20b HTTP/1.1\r\nhost: w:8000\r\naccept: a\r\naccept: b\r\n\
             content-length: 2\r\n\r\n"
        );
    }

    #[test]
    fn a_length_is_sent_where_one_is_expected() {
        let none = HeaderMap::new();
        let sends_length = |method, body| {
            written(&method, "http://w:80", &none, body).contains("content-length: ")
        };
        assert!(!sends_length(Method::GET, ""));
        assert!(sends_length(Method::GET, "x"));
        assert!(sends_length(Method::POST, ""));
    }

    #[test]
    fn the_clients_framing_fields_are_not_forwarded() {
        let mut headers = HeaderMap::new();
        for name in [
            "host",
            "content-length",
            "transfer-encoding",
            "connection",
            "te",
            "trailer",
            "upgrade",
            "keep-alive",
            "proxy-connection",
        ] {
            headers.insert(name, HeaderValue::from_static("theirs"));
        }
        headers.insert("authorization", HeaderValue::from_static("theirs"));
        headers.insert("x-own-key", HeaderValue::from_static("1"));
        let head = written(&Method::POST, "http://w:80", &headers, "");
        assert!(!head.contains("theirs"), "{head}");
        assert!(head.contains("authorization: Bearer own\r\n"), "{head}");
    }
}
