//! Loop detection: a request names each router that has forwarded it, in `via` (RFC 9110, section 7.6.3), and a router
//! refuses requests that it or another router of its cluster has forwarded before.
//!
//! A worker's URL may lead back to a router through a name, a load balancer or another router. Without this check one
//! request would be forwarded until connections run out.

use http::{HeaderMap, HeaderValue, Version, header};
use smg_mesh::Handle;
use smg_types::ids::NodeId;
use xxhash_rust::xxh3::xxh3_64;

/// The common prefix of the routers' pseudonyms.
const PREFIX: &str = "smg-";

/// This router's name in requests to the next hop.
#[derive(Debug)]
pub struct Hops {
    own: String,
    /// The entries in `via` for requests that arrived over HTTP/1.0, HTTP/1.1 and HTTP/2.
    entries: [HeaderValue; 3],
}

impl Hops {
    /// The entries for the router `me`.
    ///
    /// # Panics
    /// Never: a pseudonym is a header.
    #[must_use]
    pub fn new(me: &NodeId) -> Self {
        let own = pseudonym(me);
        let entries = ["1.0", "1.1", "2"].map(|version| {
            HeaderValue::try_from(format!("{version} {own}")).expect("a pseudonym is a header")
        });
        Self { own, entries }
    }

    /// The entry in `via` for a request that arrived over `version`.
    #[must_use]
    pub fn entry(&self, version: Version) -> &HeaderValue {
        match version {
            Version::HTTP_09 | Version::HTTP_10 => &self.entries[0],
            Version::HTTP_2 | Version::HTTP_3 => &self.entries[2],
            _ => &self.entries[1],
        }
    }

    /// Whether this router, or a present one of its cluster, has forwarded the request before.
    pub(super) fn is_loop(&self, headers: &HeaderMap, mesh: &Handle) -> bool {
        // The usual case: no router has forwarded the request.
        if !headers.contains_key(header::VIA) {
            return false;
        }
        let routers: Vec<&str> = routers(headers).collect();
        !routers.is_empty()
            && (routers.contains(&self.own.as_str())
                || mesh.view().present().any(|peer| {
                    let pseudonym = pseudonym(&peer.node);
                    routers.contains(&pseudonym.as_str())
                }))
    }
}

/// A router's pseudonym. It does not reveal the name, because workers and other routers see it.
fn pseudonym(node: &NodeId) -> String {
    format!("{PREFIX}{:016x}", xxh3_64(node.to_string().as_bytes()))
}

/// The pseudonyms of routers in `via`.
fn routers(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::VIA)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|entry| entry.split_ascii_whitespace().nth(1))
        .filter(|received_by| received_by.starts_with(PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routers_are_found_among_other_proxies() {
        let mut headers = HeaderMap::new();
        for value in
            ["1.1 cdn.test (x, smg-1), 2 smg-aa", "1.0 fred,1.1 smg-bb (comment)", "smg-cc"]
        {
            headers.append(header::VIA, HeaderValue::from_static(value));
        }
        let found: Vec<&str> = routers(&headers).collect();
        assert_eq!(found, ["smg-aa", "smg-bb"]);
    }
}
