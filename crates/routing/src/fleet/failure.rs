//! The cause of a worker's last failed probe or discovery, and advice for the operator.

use std::fmt;
use std::time::Duration;

use smg_types::spec::WorkerUrl;

/// The cause of a failed probe or discovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The host of the URL has no address.
    Resolve,
    /// The connection was refused: no process listens on the port.
    Refused,
    /// There is no route to the host.
    Unreachable,
    /// The connection was not established in time.
    ConnectTimeout,
    /// The TLS handshake failed.
    Tls,
    /// The worker closed the connection before it answered.
    Closed,
    /// The connection was established, but no answer came in time.
    Timeout,
    /// The answer is not HTTP.
    NotHttp,
    /// 401 or 403: the worker requires a key that the router did not send.
    Unauthorized,
    /// 404 or 405: the worker has no such path.
    NotFound,
    /// 3xx: the worker redirects to another URL.
    Redirect,
    /// 5xx or another status: the worker can't serve.
    Status,
    /// The answer is not a list of models.
    NotAList,
    /// The worker's list of models is empty.
    NoModels,
}

impl Cause {
    /// All causes, for metrics.
    pub const ALL: [Self; 14] = [
        Self::Resolve,
        Self::Refused,
        Self::Unreachable,
        Self::ConnectTimeout,
        Self::Tls,
        Self::Closed,
        Self::Timeout,
        Self::NotHttp,
        Self::Unauthorized,
        Self::NotFound,
        Self::Redirect,
        Self::Status,
        Self::NotAList,
        Self::NoModels,
    ];

    /// The cause that a status stands for; `None` for 2xx.
    #[must_use]
    pub const fn of_status(status: u16) -> Option<Self> {
        match status {
            200..=299 => None,
            300..=399 => Some(Self::Redirect),
            401 | 403 => Some(Self::Unauthorized),
            404 | 405 => Some(Self::NotFound),
            _ => Some(Self::Status),
        }
    }

    /// The name in logs, in the API and on metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resolve => "name_not_found",
            Self::Refused => "connection_refused",
            Self::Unreachable => "unreachable",
            Self::ConnectTimeout => "connect_timeout",
            Self::Tls => "tls",
            Self::Closed => "connection_closed",
            Self::Timeout => "timeout",
            Self::NotHttp => "not_http",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "path_not_found",
            Self::Redirect => "redirect",
            Self::Status => "status",
            Self::NotAList => "not_a_model_list",
            Self::NoModels => "no_models",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A failed probe or discovery of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Time of the failure since the Unix epoch.
    pub at: Duration,
    /// Whether the worker's models could not be read; otherwise a probe of its health failed.
    pub is_discovery: bool,
    /// The path that the router requested, below that of the worker's URL.
    pub path: String,
    /// The cause, from a closed set.
    pub cause: Cause,
    /// The status of the answer, if there was one.
    pub status: Option<u16>,
    /// The error in full, for people; empty if the status says it all.
    pub detail: String,
}

impl Failure {
    /// Advises an operator on the failure of the worker at `url`.
    #[must_use]
    pub fn advice(&self, url: &WorkerUrl) -> String {
        let host = url.host();
        let port = url.port();
        // The path as the engine sees it.
        let path = format!("{}{}", url.path_prefix(), self.path);
        match self.cause {
            Cause::Resolve => format!(
                "the name {host} has no address: correct the host in the worker's URL, or add the name to DNS or /etc/hosts"
            ),
            Cause::Refused => format!(
                "nothing listens on port {port} of {host}: start the engine, or correct the URL; an engine that listens on \
                 127.0.0.1 only can't be reached from another host or container (start it with --host 0.0.0.0)"
            ),
            Cause::Unreachable => format!(
                "check the address {host}, the route to it, and firewalls between here and there"
            ),
            Cause::ConnectTimeout => format!(
                "check that {host} is up and that no firewall drops packets to port {port}; --connect-timeout-secs bounds \
                 the wait"
            ),
            Cause::Tls => self.advice_on_tls(host, port),
            Cause::Closed if url.is_secure() => {
                "the engine is starting or crashing: see its log".to_owned()
            }
            Cause::Closed => "the engine is starting or crashing (see its log), or it speaks TLS (then use https:// in \
                the URL)"
                .to_owned(),
            Cause::Timeout if url.is_secure() => format!(
                "the engine does not answer {path}: it is overloaded, still loading or hung, see its log, or it does not speak \
                 TLS (then use http:// in the URL); --health-check-timeout-secs bounds the wait"
            ),
            Cause::Timeout => format!(
                "the engine accepts connections and does not answer {path}: it is overloaded, still loading or hung, see its \
                 log; --health-check-timeout-secs bounds the wait"
            ),
            Cause::NotHttp if url.is_secure() => {
                "another kind of server listens on this port: correct the URL".to_owned()
            }
            Cause::NotHttp => "another kind of server listens on this port, or it speaks TLS: \
                correct the URL, or use https://"
                .to_owned(),
            Cause::Unauthorized => "the engine wants a key, or another one than the router sends: give it with \
                --worker-api-key or as the worker's api_key"
                .to_owned(),
            Cause::NotFound if url.path_prefix().ends_with("/v1") => {
                "the worker's URL must not end in /v1: the router adds the path itself".to_owned()
            }
            Cause::NotFound => format!(
                "the server has no {path}: correct the URL if it is not an engine's, or set --health-check-endpoint (or the \
                 worker's health.endpoint) to a path that the engine has, such as /v1/models"
            ),
            Cause::Redirect => format!(
                "the server redirects {path} to another URL: use that one as the worker's URL (curl -I {} shows it)",
                self.asked(url)
            ),
            Cause::Status => self.advice_on_status(url, &path),
            Cause::NotAList => format!(
                "the answer to {path} is no list of models as OpenAI's API has it (curl {} shows it): correct the URL if it is \
                 not an engine's, or name the models yourself, as `models` of the worker",
                self.asked(url)
            ),
            Cause::NoModels => format!(
                "the engine lists no model (curl {} shows it): load one into it, or name the models yourself, as `models` of the \
                 worker",
                self.asked(url)
            ),
        }
    }

    /// The TLS layer reports its errors as text.
    fn advice_on_tls(&self, host: &str, port: u16) -> String {
        let says = |texts: &[&str]| texts.iter().any(|text| self.detail.contains(text));
        if says(&["sha256//"]) {
            "the certificate is not the pinned one: if it was replaced on purpose, put its pin into the worker's tls.pin_sha256"
                .to_owned()
        } else if says(&["UnknownIssuer", "CaUsedAsEndEntity"]) {
            "the certificate is self-signed, or of an authority that this router does not trust: name the file of the \
             certificate or of its authority with --worker-tls-ca, or pin it with the worker's tls.pin_sha256"
                .to_owned()
        } else if says(&["not valid for name", "NotValidForName"]) {
            format!(
                "the certificate is not for {host}: use a name in the worker's URL that the certificate has, or renew it with \
                 this one"
            )
        } else if says(&["expired", "Expired", "not valid yet", "NotValidYet"]) {
            "renew the engine's certificate, and check the clocks of both machines".to_owned()
        } else if says(&["corrupt message"]) {
            format!(
                "what listens on port {port} of {host} does not speak TLS: use http:// in the worker's URL, or correct the port"
            )
        } else if says(&["handshake eof", "not finished within", "reset by peer"]) {
            format!(
                "what listens on port {port} of {host} does not answer to TLS: use http:// in the worker's URL if the engine \
                 speaks plain HTTP; otherwise it is starting, hung or crashing, see its log"
            )
        } else {
            "if the certificate is self-signed, or of an authority of your own, name its file with --worker-tls-ca, or pin it \
             with the worker's tls.pin_sha256; if the engine speaks plain HTTP, use http:// in the URL; otherwise see the \
             engine's log"
                .to_owned()
        }
    }

    fn advice_on_status(&self, url: &WorkerUrl, path: &str) -> String {
        match self.status {
            Some(508) => "the URL leads back to this router, or to another one of its cluster: give the engine's own address"
                .to_owned(),
            Some(400) if !url.is_secure() => format!(
                "the server refuses {path}: see its log; if it speaks TLS, use https:// in the URL"
            ),
            Some(502 | 504) => "a proxy at this URL does not reach the engine behind it: see the logs of both, or use the \
                engine's own address"
                .to_owned(),
            Some(500..) => format!(
                "the engine is still loading, overloaded or broken: see its log; {path} must answer 200"
            ),
            _ => format!("the server refuses {path}, which must answer 200: see its log"),
        }
    }

    /// The URL that the router requested.
    fn asked(&self, url: &WorkerUrl) -> String {
        format!("{url}{}", self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_a_name_and_advice_of_its_own() {
        let url: WorkerUrl = "http://gpu-1:8000".parse().unwrap();
        let mut names = Vec::new();
        let mut advice = Vec::new();
        for cause in Cause::ALL {
            let failure = Failure {
                at: Duration::ZERO,
                is_discovery: false,
                path: "/health".to_owned(),
                cause,
                status: None,
                detail: String::new(),
            };
            names.push(cause.name());
            advice.push(failure.advice(&url));
        }
        for list in [&mut names.iter().map(ToString::to_string).collect(), &mut advice] {
            list.sort();
            list.dedup();
            assert_eq!(list.len(), Cause::ALL.len(), "{list:?}");
        }
    }

    #[test]
    fn advice_names_what_the_engine_sees() {
        let advice = |url: &str, cause, status| {
            let path = if cause == Cause::NoModels { "/v1/models" } else { "/health" }.to_owned();
            let detail = String::new();
            let failure =
                Failure { at: Duration::ZERO, is_discovery: false, path, cause, status, detail };
            failure.advice(&url.parse().unwrap())
        };
        for (url, cause, status, named) in [
            ("http://gpu-1:8000", Cause::Refused, None, "port 8000 of gpu-1"),
            ("http://gpu-1:8000/api", Cause::NotFound, Some(404), "no /api/health"),
            (
                "http://gpu-1:8000/api",
                Cause::Redirect,
                Some(307),
                "curl -I http://gpu-1:8000/api/health",
            ),
            ("http://gpu-1:8000", Cause::Status, Some(400), "https://"),
            ("http://gpu-1:8000", Cause::Status, Some(502), "proxy"),
            ("http://gpu-1:8000", Cause::Status, Some(503), "still loading"),
            ("http://gpu-1:8000", Cause::Status, Some(429), "must answer 200"),
            ("http://gpu-1:8000", Cause::Status, Some(508), "leads back to this router"),
            ("http://gpu-1:8000", Cause::Closed, None, "https://"),
            ("https://gpu-1:8000", Cause::Timeout, None, "http://"),
            ("http://gpu-1:8000", Cause::NoModels, Some(200), "curl http://gpu-1:8000/v1/models"),
        ] {
            let advice = advice(url, cause, status);
            assert!(advice.contains(named), "{url} {cause} {status:?}: {advice}");
        }
    }

    #[test]
    fn advice_on_tls_follows_the_error() {
        let url: WorkerUrl = "https://gpu-1:8000".parse().unwrap();
        for (detail, named) in [
            ("invalid peer certificate: UnknownIssuer", "--worker-tls-ca"),
            ("invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))", "self-signed"),
            ("certificate not valid for name \"gpu-1\"", "not for gpu-1"),
            ("invalid peer certificate: certificate expired: verification time 1", "renew"),
            ("received corrupt message of type InvalidContentType", "use http://"),
            ("tls handshake eof", "use http://"),
            ("the handshake was not finished within 1s", "use http://"),
            ("the certificate has the pin sha256//AAAA=", "tls.pin_sha256"),
            ("received fatal alert: HandshakeFailure", "see the engine's log"),
        ] {
            let failure = Failure {
                at: Duration::ZERO,
                is_discovery: false,
                path: "/health".to_owned(),
                cause: Cause::Tls,
                status: None,
                detail: detail.to_owned(),
            };
            let advice = failure.advice(&url);
            assert!(advice.contains(named), "{detail}: {advice}");
        }
    }

    #[test]
    fn a_status_has_a_cause_unless_it_is_good() {
        let seen = [200, 204, 307, 401, 403, 404, 405, 429, 500, 503].map(Cause::of_status);
        let (unauthorized, missing, other) =
            (Some(Cause::Unauthorized), Some(Cause::NotFound), Some(Cause::Status));
        let wanted = [
            None,
            None,
            Some(Cause::Redirect),
            unauthorized,
            unauthorized,
            missing,
            missing,
            other,
            other,
            other,
        ];
        assert_eq!(seen, wanted);
    }
}
