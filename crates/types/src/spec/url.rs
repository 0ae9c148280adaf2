//! A worker's URL in its one spelling, from which the worker's id is derived.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::bounds;
use crate::ids::WorkerId;

/// A worker's URL in its normalised spelling: lower-case scheme and host, explicit port, no trailing slash, no credentials, no
/// query. A path is kept and precedes the path of each request.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct WorkerUrl {
    text: Arc<str>,
    secure: bool,
    /// Length of `scheme://` in bytes.
    scheme_len: u8,
    /// Offset of the path in bytes; the length of the text if there is none.
    path_at: u16,
    port: u16,
}

impl WorkerUrl {
    /// The id of the worker with this URL.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        WorkerId::of_url(&self.text)
    }

    /// Whether the scheme is `https`.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Host and port, as a `host` header has them.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.text[self.scheme_len as usize..self.path_at as usize]
    }

    /// The host without the port; an IPv6 address has no brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        let authority = self.authority();
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
    }

    /// The port, explicit or implied by the scheme.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The path that precedes the path of each request: empty, or with a leading slash and without a trailing one.
    #[must_use]
    pub fn path_prefix(&self) -> &str {
        &self.text[self.path_at as usize..]
    }

    /// The URL as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for WorkerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for WorkerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The reason why a text is not a worker URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkerUrlError {
    /// The text begins neither with `http://` nor with `https://`.
    #[error("worker url {0:?} does not begin with http:// or https://")]
    Scheme(String),
    /// There is no host between the scheme and the port or path.
    #[error("worker url {0:?} has no host")]
    NoHost(String),
    /// The host contains a character that no host name or address has.
    #[error("worker url {0:?} has a host that is neither a name nor an address")]
    BadHost(String),
    /// The port is not a number from 1 to 65535.
    #[error("worker url {0:?} has a port that is not a number from 1 to 65535")]
    BadPort(String),
    /// The URL contains `user:password@`. The error does not repeat it.
    #[error("worker url has credentials in it: give them as the worker's api key")]
    Credentials,
    /// The URL has a query or a fragment.
    #[error("worker url {0:?} has a query or a fragment")]
    Query(String),
    /// The path contains a blank, a quote, a backslash, or a character that is not ASCII.
    #[error(
        "worker url {0:?} has a path with a blank, a quote, a backslash or a character that is not ASCII"
    )]
    BadPath(String),
    /// The URL ends in `/v1`.
    #[error("worker url {url} ends in /v1, which the router adds itself: use {right}")]
    EndsInV1 {
        /// The URL that was given.
        url: String,
        /// The URL without `/v1`.
        right: String,
    },
    /// Longer than [`bounds::WORKER_URL_BYTES`].
    #[error("worker url is {0} bytes long, the limit is {max}", max = bounds::WORKER_URL_BYTES.end())]
    TooLong(usize),
}

impl WorkerUrl {
    /// Refuses a URL that ends in `/v1`, which is a client's base URL: the router adds the path of each request itself.
    ///
    /// # Errors
    /// [`WorkerUrlError::EndsInV1`], which names the URL without it.
    pub fn check_path(&self) -> Result<(), WorkerUrlError> {
        match self.text.strip_suffix("/v1") {
            Some(right) => Err(WorkerUrlError::EndsInV1 {
                url: self.text.to_string(),
                right: right.to_owned(),
            }),
            None => Ok(()),
        }
    }
}

impl FromStr for WorkerUrl {
    type Err = WorkerUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > *bounds::WORKER_URL_BYTES.end() {
            return Err(WorkerUrlError::TooLong(text.len()));
        }
        let trimmed = text.trim();
        let lower = trimmed.to_ascii_lowercase();
        let (scheme, secure) = if lower.starts_with("http://") {
            ("http://", false)
        } else if lower.starts_with("https://") {
            ("https://", true)
        } else {
            return Err(WorkerUrlError::Scheme(text.to_owned()));
        };
        let rest = &trimmed[scheme.len()..];
        if rest.contains(['?', '#']) {
            return Err(WorkerUrlError::Query(text.to_owned()));
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(WorkerUrlError::Credentials);
        }
        let (host, port) =
            split_authority(authority).ok_or_else(|| WorkerUrlError::BadHost(text.to_owned()))?;
        if host.is_empty() {
            return Err(WorkerUrlError::NoHost(text.to_owned()));
        }
        let port = match port {
            None => {
                if secure {
                    443
                } else {
                    80
                }
            }
            Some(digits) => digits
                .parse::<u16>()
                .ok()
                .filter(|port| *port != 0 && digits.bytes().all(|b| b.is_ascii_digit()))
                .ok_or_else(|| WorkerUrlError::BadPort(text.to_owned()))?,
        };
        let path = path.trim_end_matches('/');
        if !path.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\') {
            return Err(WorkerUrlError::BadPath(text.to_owned()));
        }
        let host = normalise_host(host).ok_or_else(|| WorkerUrlError::BadHost(text.to_owned()))?;
        let authority = format!("{scheme}{host}:{port}");
        let path_at = u16::try_from(authority.len()).expect("a url of at most 2048 bytes fits");
        Ok(Self {
            text: format!("{authority}{path}").into(),
            secure,
            scheme_len: if secure { 8 } else { 7 },
            path_at,
            port,
        })
    }
}

/// Splits an authority into the host, with its brackets if it has them, and the text after the port's colon.
fn split_authority(authority: &str) -> Option<(&str, Option<&str>)> {
    if authority.starts_with('[') {
        let end = authority.find(']')? + 1;
        return match &authority[end..] {
            "" => Some((&authority[..end], None)),
            port => Some((&authority[..end], Some(port.strip_prefix(':')?))),
        };
    }
    match authority.split_once(':') {
        None => Some((authority, None)),
        Some((_, port)) if port.contains(':') => None,
        Some((host, port)) => Some((host, Some(port))),
    }
}

/// Normalises a host: names in lower case, IPv6 addresses compressed and in brackets.
fn normalise_host(host: &str) -> Option<String> {
    if let Some(inner) = host.strip_prefix('[') {
        let address: std::net::Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some(format!("[{address}]"));
    }
    let is_name =
        host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    is_name.then(|| host.to_ascii_lowercase())
}

impl Serialize for WorkerUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for WorkerUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalised(text: &str) -> String {
        match text.parse::<WorkerUrl>() {
            Ok(url) => url.to_string(),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn equivalent_urls_are_normalised_to_one_spelling() {
        for spelling in ["http://a:80", "http://A", "HTTP://a/", " http://a:80// "] {
            assert_eq!(normalised(spelling), "http://a:80", "{spelling:?}");
        }
        assert_eq!(normalised("https://h/v/"), "https://h:443/v");
        assert_eq!(normalised("http://[0:0::1]:9"), "http://[::1]:9");
    }

    #[test]
    fn the_parts_of_a_url_can_be_read() {
        let url: WorkerUrl = "https://[::1]:8443/base".parse().unwrap();
        assert_eq!((url.host(), url.port(), url.authority()), ("::1", 8443, "[::1]:8443"));
        assert_eq!((url.path_prefix(), url.is_secure()), ("/base", true));
        let url: WorkerUrl = "http://worker-1".parse().unwrap();
        assert_eq!((url.host(), url.port(), url.path_prefix()), ("worker-1", 80, ""));
    }

    #[test]
    fn an_invalid_url_is_refused_with_the_reason() {
        for (wrong, reason) in [
            ("ftp://a", "does not begin with"),
            ("a:8000", "does not begin with"),
            ("http://", "has no host"),
            ("http://:80", "has no host"),
            ("http://a:0", "port"),
            ("http://a:+80", "port"),
            ("http://a:99999", "port"),
            ("http://a:80:90", "neither a name"),
            ("http://[::1", "neither a name"),
            ("http://[zz]", "neither a name"),
            ("http://a b", "neither a name"),
            ("http://u:p@a", "credentials"),
            ("http://a/?x=1", "query"),
            ("http://a/\u{e9}", "path"),
        ] {
            let error = normalised(wrong);
            assert!(error.starts_with("error: ") && error.contains(reason), "{wrong:?}: {error:?}");
        }
    }
}
