//! What a worker learns of the client: `x-forwarded-for`, `x-forwarded-proto` and `x-forwarded-host`.
//!
//! The address of the client's connection is appended to `x-forwarded-for`, as nginx, Envoy and HAProxy do: the last address is
//! the one that this router has seen, and those before it are what the client, or the proxy in front of the router, said.
//! `x-forwarded-proto` and `x-forwarded-host` are set only where the request has none: a proxy in front that ends TLS knows
//! what its client used, and this router does not. No header is proof of anything but its last address.

use std::net::IpAddr;

use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, header};

static FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// How a request came to this router.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hop {
    /// The address of the client, or of the proxy in front.
    pub(super) peer: IpAddr,
    /// Whether it spoke TLS.
    pub(super) is_secure: bool,
}

/// Adds the hop to the headers of a request. `authority`: that of the request's URL, which HTTP/2 has in place of `host`.
pub(super) fn add(headers: &mut HeaderMap, hop: Hop, authority: Option<&Authority>) {
    let peer = hop.peer.to_canonical().to_string();
    let mut chain: Vec<u8> = Vec::new();
    for value in headers.get_all(&FOR) {
        if !value.as_bytes().trim_ascii().is_empty() {
            chain.extend_from_slice(value.as_bytes().trim_ascii());
            chain.extend_from_slice(b", ");
        }
    }
    chain.extend_from_slice(peer.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&chain) {
        headers.insert(FOR.clone(), value);
    }
    if !headers.contains_key(&PROTO) {
        let proto = if hop.is_secure { "https" } else { "http" };
        headers.insert(PROTO.clone(), HeaderValue::from_static(proto));
    }
    let of_url = || HeaderValue::try_from(authority?.as_str()).ok();
    if !headers.contains_key(&HOST)
        && let Some(host) = headers.get(header::HOST).cloned().or_else(of_url)
    {
        headers.insert(HOST.clone(), host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(sent: &[(&'static str, &'static str)], peer: &str, is_secure: bool) -> [String; 3] {
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let authority = Authority::from_static("smg.test");
        add(&mut headers, Hop { peer: peer.parse().unwrap(), is_secure }, Some(&authority));
        [&FOR, &PROTO, &HOST].map(|name| {
            let values: Vec<_> =
                headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect();
            values.join("|")
        })
    }

    #[test]
    fn the_hop_is_added_to_those_before() {
        assert_eq!(added(&[], "10.0.0.1", true), ["10.0.0.1", "https", "smg.test"]);
        let host = [("host", "api.test:8000")];
        assert_eq!(added(&host, "::ffff:10.0.0.1", false), ["10.0.0.1", "http", "api.test:8000"]);
        let proxied = [
            ("host", "smg"),
            ("x-forwarded-for", "1.1.1.1, 2.2.2.2"),
            ("x-forwarded-for", " "),
            ("x-forwarded-for", "3.3.3.3"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "api.test"),
        ];
        let expected = ["1.1.1.1, 2.2.2.2, 3.3.3.3, fe80::1", "https", "api.test"];
        assert_eq!(added(&proxied, "fe80::1", false), expected);
    }
}
