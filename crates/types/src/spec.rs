//! What one is told about a worker: by a flag, by an administrator, by another router.
//!
//! A [`WorkerSpec`] that exists is right: its URL is normalised, its numbers are inside their bounds. What a worker
//! turns out to be (its models, its health) is kept apart, in `fleet`.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::{ModelId, WorkerId};

/// Everything one is told about a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerSpec {
    /// Where it listens, normalised: the worker's identity.
    pub url: WorkerUrl,
    /// The models it serves; empty: ask the worker.
    pub models: Vec<ModelId>,
    /// Other names for its models: a request for the key is sent as one for the value.
    pub aliases: BTreeMap<ModelId, ModelId>,
    /// Its part in disaggregated serving.
    pub kind: WorkerKind,
    /// Free labels; `policy` names the policy of its models.
    pub labels: BTreeMap<String, String>,
    /// Where it stands, for people and for zone-aware routing.
    pub region: Option<String>,
    /// Where it stands within the region.
    pub zone: Option<String>,
    /// Workers of a higher priority are preferred by nothing yet but shown; kept so that a spec survives a round trip.
    pub priority: i32,
    /// Its share of traffic relative to other workers, 1..=1000.
    pub weight: Weight,
    /// Sent as `authorization: Bearer …` in place of the client's.
    pub api_key: Option<Secret>,
    /// How it is probed.
    pub health: HealthSpec,
    /// Never more requests than this at once on the worker, counted by this router.
    pub max_concurrent: Option<NonZeroU32>,
    /// SGLang's port for handing a prefill over.
    pub bootstrap_port: Option<u16>,
}

impl WorkerSpec {
    /// A worker of which nothing is known but its URL.
    #[must_use]
    pub fn new(url: WorkerUrl) -> Self {
        Self {
            url,
            models: Vec::new(),
            aliases: BTreeMap::new(),
            kind: WorkerKind::Regular,
            labels: BTreeMap::new(),
            region: None,
            zone: None,
            priority: 0,
            weight: Weight::ONE,
            api_key: None,
            health: HealthSpec::default(),
            max_concurrent: None,
            bootstrap_port: None,
        }
    }

    /// The worker's id: derived from its URL and nothing else.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        self.url.id()
    }
}

/// A worker's part in disaggregated serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerKind {
    /// Does prefill and decode.
    #[default]
    Regular,
    /// Does prefill only.
    Prefill,
    /// Does decode only.
    Decode,
}

/// A share of traffic relative to other workers: a whole number from 1 to 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Weight(u16);

impl Weight {
    /// The weight of a worker of which nothing is said.
    pub const ONE: Self = Self(1);

    /// The weight as a number, at least 1.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0 as u32
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::ONE
    }
}

/// A number that is no weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("weight {0} is not between 1 and 1000")]
pub struct WeightError(u32);

impl TryFrom<u32> for Weight {
    type Error = WeightError;

    fn try_from(weight: u32) -> Result<Self, Self::Error> {
        match u16::try_from(weight) {
            Ok(w @ 1..=1000) => Ok(Self(w)),
            Ok(_) | Err(_) => Err(WeightError(weight)),
        }
    }
}

impl From<Weight> for u32 {
    fn from(weight: Weight) -> Self {
        weight.get()
    }
}

/// How a worker is probed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealthSpec {
    /// Path that answers 2xx while the worker can serve.
    pub endpoint: Option<String>,
    /// Time between probes; `None`: the router's default.
    pub interval: Option<Duration>,
    /// Time after which a probe failed; `None`: the router's default.
    pub timeout: Option<Duration>,
    /// Failed probes in a row that take it out; `None`: the router's default.
    pub failure_threshold: Option<NonZeroU32>,
    /// Good probes in a row that bring it back; `None`: the router's default.
    pub success_threshold: Option<NonZeroU32>,
    /// Never probed: always taken for healthy.
    pub disabled: bool,
}

impl HealthSpec {
    /// Whether `endpoint` can be the path of a request: it begins with a slash and is visible ASCII of at most 1,024 bytes.
    ///
    /// # Errors
    /// What is wrong with it, to follow the text itself.
    pub fn check_endpoint(endpoint: &str) -> Result<(), &'static str> {
        if !endpoint.starts_with('/') {
            Err("does not begin with a slash")
        } else if endpoint.len() > 1024 {
            Err("is longer than 1024 bytes")
        } else if !endpoint.bytes().all(|b| b.is_ascii_graphic()) {
            Err("has a blank, a control character or a character that is not ASCII")
        } else {
            Ok(())
        }
    }
}

/// A worker's URL in one spelling: lower-case scheme and host, explicit port, no trailing slash, no credentials, no
/// query. A path is kept: it goes before the path of each request.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct WorkerUrl {
    text: Arc<str>,
    secure: bool,
    /// Length of `scheme://`.
    scheme_len: u8,
    /// Where the path begins (= length when there is none).
    path_at: u16,
    port: u16,
}

impl WorkerUrl {
    /// The id of the worker that listens here.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        WorkerId::of_url(&self.text)
    }

    /// Whether requests go over TLS.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Host and port as they stand in a `host` header.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.text[self.scheme_len as usize..self.path_at as usize]
    }

    /// The host alone, an IPv6 address without its brackets.
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

    /// What goes before the path of each request: empty, or `/something` without a slash at its end.
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

/// Why a text is no worker URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkerUrlError {
    /// Neither `http://` nor `https://`.
    #[error("worker url {0:?} does not begin with http:// or https://")]
    Scheme(String),
    /// No host between the scheme and the port or path.
    #[error("worker url {0:?} has no host")]
    NoHost(String),
    /// The host has a character that no host has.
    #[error("worker url {0:?} has a host that is neither a name nor an address")]
    BadHost(String),
    /// Not a number from 1 to 65535.
    #[error("worker url {0:?} has a port that is not a number from 1 to 65535")]
    BadPort(String),
    /// `user:password@`.
    #[error("worker url has credentials in it: give them as the worker's api key")]
    Credentials,
    /// A query or a fragment.
    #[error("worker url {0:?} has a query or a fragment")]
    Query(String),
    /// A path with characters that do not belong into one.
    #[error("worker url {0:?} has a path with a blank or a character that is not ASCII")]
    BadPath(String),
    /// It ends in `/v1`.
    #[error("worker url {url} ends in /v1, which the router adds itself: use {right}")]
    EndsInV1 {
        /// The URL that was given.
        url: String,
        /// The URL without `/v1`.
        right: String,
    },
    /// Longer than 2048 bytes.
    #[error("worker url is {0} bytes long, the limit is 2048")]
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
        if text.len() > 2048 {
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

/// Host (with brackets, if it has them) and the digits after its port's colon.
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

/// One spelling for a host: names in lower case, IPv6 addresses compressed and in brackets.
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

/// A text that is never shown: not by `Debug`, not by an API, not in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Keeps `text`.
    #[must_use]
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends or compares it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `other` is the same text, in time that depends on the lengths only.
    #[must_use]
    pub fn matches(&self, other: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let difference = own.iter().zip(other).fold(0u8, |seen, (a, b)| seen | (a ^ b));
        own.len() == other.len() && difference == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> String {
        match text.parse::<WorkerUrl>() {
            Ok(url) => url.to_string(),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn one_worker_has_one_spelling() {
        for spelling in ["http://a:80", "http://A", "HTTP://a/", " http://a:80// "] {
            assert_eq!(normal(spelling), "http://a:80", "{spelling:?}");
        }
        assert_eq!(normal("https://h/v/"), "https://h:443/v");
        assert_eq!(normal("http://[0:0::1]:9"), "http://[::1]:9");
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
    fn what_is_no_url_says_why() {
        for (wrong, says) in [
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
            let said = normal(wrong);
            assert!(said.starts_with("error: ") && said.contains(says), "{wrong:?} said {said:?}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "***");
        assert!(
            secret.matches(b"hunter2")
                && !secret.matches(b"hunter3")
                && !secret.matches(b"hunter22")
        );
    }
}
