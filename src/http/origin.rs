//! Where a request to the admin surface comes from: this machine, a proxy on it, or a page that another site served.

use std::net::IpAddr;

use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Version, header};

use super::error::ApiError;

/// The headers that proxies add. With one of these, the address of the connection is a proxy's, not the caller's.
pub(super) static FORWARDED: [HeaderName; 15] = [
    header::FORWARDED,
    header::VIA,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("cf-connecting-ip"),
    HeaderName::from_static("cdn-loop"),
    HeaderName::from_static("true-client-ip"),
    HeaderName::from_static("x-client-ip"),
    HeaderName::from_static("x-cluster-client-ip"),
    HeaderName::from_static("x-envoy-external-address"),
    HeaderName::from_static("x-forwarded"),
    HeaderName::from_static("x-original-forwarded-for"),
];

/// What decides whether a request to the admin surface is admitted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
    pub(super) version: Version,
    /// The authority of the URL, which HTTP/2 has in place of `host`.
    pub(super) authority: Option<&'a Authority>,
    /// The other side of the connection.
    pub(super) peer: IpAddr,
}

impl<'a> Asked<'a> {
    pub(super) fn by<B>(request: &'a Request<B>, peer: IpAddr) -> Self {
        Self {
            method: request.method(),
            headers: request.headers(),
            version: request.version(),
            authority: request.uri().authority(),
            peer,
        }
    }

    /// The host that the client has named; `None`: none, or one that can't be parsed.
    fn host(&self) -> Option<Authority> {
        match self.headers.get(header::HOST) {
            Some(host) => host.to_str().ok()?.parse().ok(),
            None => self.authority.cloned(),
        }
    }
}

/// Whether an authority names this machine wherever it is used.
fn is_local(authority: &Authority) -> bool {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let ip = || host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
    host.eq_ignore_ascii_case("localhost")
        || ip().is_some_and(|ip| ip.is_loopback() || ip.is_unspecified())
}

/// Admits what a program on this machine sends. A proxy on this machine has a loopback address as well, and its clients may
/// be anywhere: it is recognised by the headers that proxies add, by the host of its clients that it passes on (HAProxy adds
/// no header unless told to), and by HTTP/1.0 (nginx, which by default passes on no host).
pub(super) fn own_machine(asked: &Asked<'_>) -> Result<(), ApiError> {
    let headers = asked.headers;
    if !asked.peer.to_canonical().is_loopback() {
        return Err(ApiError::forbidden(
            "without an admin key this is for the router's own machine only: set --admin-api-key \
             (or --admin-open, which lets everybody)",
        ));
    }
    let is_old = asked.version < Version::HTTP_11;
    if is_old || FORWARDED.iter().any(|name| headers.contains_key(name)) {
        return Err(ApiError::forbidden(
            "without an admin key this is for the router's own machine only, and the request came \
             through a proxy: set --admin-api-key",
        ));
    }
    // A page can reach a server on its reader's machine under a host name of its own that it resolves to loopback.
    match Page::of(headers) {
        Page::At(authority) if !is_local(&authority) => {
            Err(ApiError::forbidden("this is not for pages of other sites"))
        }
        Page::Opaque => Err(ApiError::forbidden("this is not for pages of other sites")),
        Page::At(_) | Page::None if !asked.host().is_some_and(|host| is_local(&host)) => {
            Err(ApiError::forbidden(
                "without an admin key this is for the router's own machine only, and the request \
                 names another host, as through a proxy: use localhost or 127.0.0.1 in its URL, or \
                 set --admin-api-key",
            ))
        }
        Page::At(_) | Page::None => Ok(()),
    }
}

/// The page that caused a browser to send a request.
enum Page {
    /// No page, or the browser does not name it.
    None,
    /// A page with this host and port.
    At(Authority),
    /// A page that the browser does not name, or names in a way that can't be parsed.
    Opaque,
}

impl Page {
    fn of(headers: &HeaderMap) -> Self {
        let Some(origin) = headers.get(header::ORIGIN) else { return Self::None };
        let origin = origin.to_str().unwrap_or_default();
        let authority = origin.split_once("://").and_then(|(_, authority)| authority.parse().ok());
        authority.map_or(Self::Opaque, Self::At)
    }
}

/// Refuses requests that a page of another site can make a browser send: the site of the request is another one, or the
/// body has a type that needs no preflight (Fetch Standard, CORS-safelisted request headers).
pub(super) fn refuse_cross_site(headers: &HeaderMap) -> Result<(), ApiError> {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    let other_site = site.is_some_and(|site| site != b"same-origin" && site != b"none");
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let other_origin = match Page::of(headers) {
        Page::None => false,
        Page::At(page) => host.is_none_or(|host| !page.as_str().eq_ignore_ascii_case(host)),
        Page::Opaque => true,
    };
    if other_site || other_origin {
        return Err(ApiError::forbidden(
            "a page of another site sent this request; admin writes are for the router's own",
        ));
    }
    let Some(kind) = headers.get(header::CONTENT_TYPE) else {
        let has_body = headers.contains_key(header::TRANSFER_ENCODING)
            || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
        return if has_body { Err(ApiError::not_json("nothing")) } else { Ok(()) };
    };
    let kind = kind.to_str().unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let is_json = essence.eq_ignore_ascii_case("application/json")
        || essence.eq_ignore_ascii_case("application/merge-patch+json");
    if is_json { Ok(()) } else { Err(ApiError::not_json(essence)) }
}
