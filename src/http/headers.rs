//! Forwards headers: those of a single connection are removed, and all others are forwarded, with repetitions.

use http::Version;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use rand::RngExt as _;
use rand::rngs::SmallRng;

/// The header with the request's id, in logs, at the worker and at the client.
pub(super) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Headers of a single connection (RFC 9110, section 7.6.1), besides those that `connection` names.
static HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Removes the headers of a single connection.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most values are `keep-alive` or `close`, which name no header.
    let is_usual = |value: &HeaderValue| {
        matches!(value.as_bytes(), b"keep-alive" | b"close" | b"Keep-Alive" | b"Close")
    };
    if !headers.get_all(header::CONNECTION).iter().all(is_usual) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        // `x-forwarded-host` is made of the host, whatever the client says of it.
        for name in named.into_iter().filter(|name| *name != header::HOST) {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The headers for a worker: all of the client's except `host` and the length, which follows from the body. Those of a
/// single connection (`strip_hop_by_hop`) and the router's own keys (`auth::Keys::take_own`) were removed before.
/// `via`: what the router says of itself as a hop; the entries of other proxies stay.
pub(super) fn to_worker(
    headers: &mut HeaderMap,
    request_id: &HeaderValue,
    via: &HeaderValue,
    rng: &mut SmallRng,
) {
    headers.remove(header::HOST);
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::EXPECT);
    headers.insert(X_REQUEST_ID.clone(), request_id.clone());
    headers.append(header::VIA, via.clone());
    if !headers.contains_key(&TRACEPARENT) {
        headers.insert(TRACEPARENT.clone(), traceparent(rng));
    }
}

/// Whether a request names its host as it must: once in HTTP/1.1, at most once in other versions (RFC 9112, 3.2).
pub(super) fn has_valid_host(version: Version, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            host.as_bytes().iter().all(|byte| byte.is_ascii_graphic() && !b"/?#@,\\".contains(byte))
        }
        (None, _) => version != Version::HTTP_11,
        (Some(_), Some(_)) => false,
    }
}

/// The id of the request: the client's id from the first of the headers `names`, if it is valid in a header and a log
/// line, else a new one.
pub(super) fn request_id(
    headers: &HeaderMap,
    names: &[HeaderName],
    rng: &mut SmallRng,
) -> HeaderValue {
    let given = names.iter().find_map(|name| headers.get(name)).filter(|id| {
        let id = id.as_bytes();
        !id.is_empty() && id.len() <= 128 && id.iter().all(u8::is_ascii_graphic)
    });
    given.cloned().unwrap_or_else(|| {
        let mut id = [0u8; 32];
        hex(&rng.random::<[u8; 16]>(), &mut id);
        HeaderValue::from_bytes(&id).expect("hexadecimal digits are a header")
    })
}

/// Makes an id for a request.
pub(super) fn text(request_id: &HeaderValue) -> &str {
    request_id.to_str().unwrap_or_default()
}

/// A new trace with this request as its root, sampled (W3C Trace Context, section 3.2).
fn traceparent(rng: &mut SmallRng) -> HeaderValue {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
    let mut random = rng.random::<[u8; 24]>();
    // An id of zeros would not be valid.
    random[0] |= 1;
    random[16] |= 1;
    hex(&random[..16], &mut text[3..35]);
    hex(&random[16..], &mut text[36..52]);
    HeaderValue::from_bytes(&text).expect("hexadecimal digits are a header")
}

fn hex(bytes: &[u8], out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(out.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// All keys that a caller sends: `Authorization: Bearer …`, and `x-api-key` as Anthropic's clients send it.
pub(super) fn shown_keys(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    [header::AUTHORIZATION, X_API_KEY.clone()].into_iter().flat_map(|name| {
        headers.get_all(&name).into_iter().filter_map(move |value| is_key(&name, value))
    })
}

/// The key in a header, if the header can carry one.
pub(super) fn is_key<'a>(name: &HeaderName, value: &'a HeaderValue) -> Option<&'a [u8]> {
    let value = value.as_bytes();
    if *name != header::AUTHORIZATION {
        return (*name == X_API_KEY).then(|| value.trim_ascii());
    }
    let (scheme, key) = value.split_at_checked(6)?;
    // At least one blank separates both (RFC 9110, section 11.4); some clients send more.
    let blank = key.first().is_some_and(u8::is_ascii_whitespace);
    (scheme.eq_ignore_ascii_case(b"bearer") && blank).then(|| key.trim_ascii())
}

/// The hash by which limits tell keys apart.
pub(super) fn key_hash(key: &[u8]) -> u64 {
    smg_limits::rule::hash(&String::from_utf8_lossy(key))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        map
    }

    fn passed(pairs: &[(&str, &str)]) -> Vec<String> {
        let mut map = headers(pairs);
        let [id, via] = ["id", "1.1 smg-1"].map(HeaderValue::from_static);
        strip_hop_by_hop(&mut map);
        to_worker(&mut map, &id, &via, &mut SmallRng::seed_from_u64(1));
        map.remove(&TRACEPARENT);
        map.remove(&X_REQUEST_ID);
        let mut left: Vec<_> = map.iter().collect();
        // The sort is stable: only the order of headers of the same name has a meaning (RFC 9110, section 5.3).
        left.sort_by_key(|(name, _)| name.as_str());
        left.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    #[test]
    fn what_is_for_one_hop_stays_here() {
        let sent = [
            ("host", "smg"),
            ("connection", "keep-alive, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("accept", "a"),
            ("accept", "b"),
            ("via", "1.0 cdn"),
            ("x-own", "kept"),
        ];
        let kept = ["accept: a", "accept: b", "via: 1.0 cdn", "via: 1.1 smg-1", "x-own: kept"];
        assert_eq!(passed(&sent), kept);
    }

    #[test]
    fn a_request_names_one_host() {
        let valid = |version, values: &[&'static str]| {
            let mut map = HeaderMap::new();
            for value in values {
                map.append(header::HOST, HeaderValue::from_static(value));
            }
            has_valid_host(version, &map)
        };
        for host in ["a", "a:80", "[::1]:80", "A-1.test.", ""] {
            assert!(valid(Version::HTTP_11, &[host]), "{host}");
        }
        for hosts in [&[][..], &["a", "a"], &["a,b"], &["a b"], &["u@a"], &["a/b"]] {
            assert!(!valid(Version::HTTP_11, hosts), "{hosts:?}");
        }
        assert!(valid(Version::HTTP_10, &[]) && valid(Version::HTTP_2, &[]));
        assert!(!valid(Version::HTTP_10, &["a", "b"]));
    }

    #[test]
    fn a_request_keeps_its_name_or_gets_one() {
        let mut rng = SmallRng::seed_from_u64(1);
        let names = ["x-correlation-id", "request-id"].map(HeaderName::from_static);
        let mut of = |pairs: &[(&str, &str)]| request_id(&headers(pairs), &names, &mut rng);
        assert_eq!(of(&[("request-id", "b"), ("x-correlation-id", "a")]), "a");
        assert_eq!(of(&[("x-request-id", "is not asked for")]).len(), 32);
        let long = "x".repeat(129);
        for wrong in ["", "two words", &long] {
            assert_eq!(of(&[("request-id", wrong)]).len(), 32, "{wrong:?} was kept");
        }
        assert_ne!(of(&[]), of(&[]));
    }

    #[test]
    fn a_trace_is_passed_on_or_begun() {
        let mut rng = SmallRng::seed_from_u64(1);
        let id = HeaderValue::from_static("id");
        let mut map = headers(&[("traceparent", "00-theirs")]);
        to_worker(&mut map, &id, &id, &mut rng);
        assert_eq!(map[&TRACEPARENT], "00-theirs");
        let mut map = HeaderMap::new();
        to_worker(&mut map, &id, &id, &mut rng);
        let made = map[&TRACEPARENT].to_str().unwrap();
        let lengths: Vec<usize> = made.split('-').map(str::len).collect();
        assert_eq!(lengths, [2, 32, 16, 2], "{made}");
    }

    #[test]
    fn a_key_is_found_in_both_places() {
        let shown = |pairs: &[(&str, &str)]| -> Vec<String> {
            let map = headers(pairs);
            shown_keys(&map).map(|key| String::from_utf8(key.to_vec()).unwrap()).collect()
        };
        assert_eq!(shown(&[("authorization", "bearer k"), ("x-api-key", "l")]), ["k", "l"]);
        assert_eq!(
            shown(&[("authorization", "Bearer  k "), ("authorization", "Bearer l")]),
            ["k", "l"]
        );
        for none in ["Basic k", "Bearerk", "Bear"] {
            assert!(shown(&[("authorization", none)]).is_empty(), "{none}");
        }
        assert!(shown(&[]).is_empty());
    }
}
