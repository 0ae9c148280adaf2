//! The headers of a worker's response for the client: a worker's URL is never shown, and the router replaces the
//! worker's CORS headers if it has its own.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use smg_types::spec::WorkerUrl;

static REFRESH: HeaderName = HeaderName::from_static("refresh");

/// The headers that a page of an allowed origin may read, besides the safelisted ones.
pub(super) static EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-request-id, retry-after, x-smg-error-code, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, \
     x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, \
     ratelimit, ratelimit-policy",
);

/// A worker's response refers to another server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the worker's header {header} refers to another server")]
pub(super) struct ForeignReference {
    header: HeaderName,
}

/// Rewrites references to the worker so that they refer to the router. `is_worker` returns whether a host and port
/// belong to a worker of the fleet.
///
/// # Errors
/// If `location`, `content-location` or `refresh` refers to another server, to which the client must not be sent.
pub(super) fn hide_worker(
    headers: &mut HeaderMap,
    own: &WorkerUrl,
    is_worker: impl Fn(&str, u16) -> bool,
) -> Result<(), ForeignReference> {
    for name in [&header::LOCATION, &header::CONTENT_LOCATION, &REFRESH] {
        each(headers, name, |text| {
            let (before, url, after) =
                if *name == REFRESH { refresh(text) } else { ("", text, "") };
            match Target::of(url, own) {
                Target::Here => Some(text.to_owned()),
                Target::Own(path) => Some(format!("{before}{path}{after}")),
                Target::Elsewhere(..) => None,
            }
        })?;
    }
    each(headers, &header::LINK, |text| {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, found)) = rest.split_once('<') {
            let (url, after) = found.split_once('>')?;
            out.push_str(before);
            let url = match Target::of(url, own) {
                Target::Here => url.to_owned(),
                Target::Own(path) => path,
                Target::Elsewhere(host, port) if is_worker(&host, port) => return None,
                Target::Elsewhere(..) => url.to_owned(),
            };
            out.push('<');
            out.push_str(&url);
            out.push('>');
            rest = after;
        }
        out.push_str(rest);
        Some(out)
    })
}

/// Whether a response has a header that may refer to a server.
pub(super) fn may_refer(headers: &HeaderMap) -> bool {
    references().any(|name| headers.contains_key(name))
}

/// Removes the headers that may refer to a server.
pub(super) fn drop_references(headers: &mut HeaderMap) {
    for name in references() {
        headers.remove(name);
    }
}

fn references() -> impl Iterator<Item = &'static HeaderName> {
    [&header::LOCATION, &header::CONTENT_LOCATION, &REFRESH, &header::LINK].into_iter()
}

/// Removes the worker's own CORS headers.
pub(super) fn strip_cors(headers: &mut HeaderMap) {
    for name in [
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        header::ACCESS_CONTROL_ALLOW_METHODS,
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        header::ACCESS_CONTROL_MAX_AGE,
    ] {
        headers.remove(name);
    }
}

/// Replaces each value of a header. If `change` returns `None`, the reference must not be forwarded.
fn each(
    headers: &mut HeaderMap,
    name: &HeaderName,
    change: impl Fn(&str) -> Option<String>,
) -> Result<(), ForeignReference> {
    // The usual case: the response has no such header.
    if !headers.contains_key(name) {
        return Ok(());
    }
    let foreign = || ForeignReference { header: name.clone() };
    let mut values = Vec::new();
    for value in headers.get_all(name) {
        let text = std::str::from_utf8(value.as_bytes()).map_err(|_| foreign())?;
        let changed = change(text).ok_or_else(foreign)?;
        values.push(HeaderValue::try_from(changed).map_err(|_| foreign())?);
    }
    headers.remove(name);
    for value in values {
        headers.append(name.clone(), value);
    }
    Ok(())
}

/// The URL in a `refresh` header, with the text before and after it.
fn refresh(text: &str) -> (&str, &str, &str) {
    let lower = text.to_ascii_lowercase();
    let Some(at) = lower.find("url").filter(|at| lower[at + 3..].trim_start().starts_with('='))
    else {
        return (text, "", "");
    };
    let begin = at + lower[at..].find('=').expect("it was found") + 1;
    let url = text[begin..].trim_start();
    let quote = url.chars().next().filter(|c| matches!(c, '"' | '\''));
    let begin = text.len() - url.len() + usize::from(quote.is_some());
    let url = &text[begin..];
    let end = quote.and_then(|quote| url.find(quote)).unwrap_or_else(|| url.trim_end().len());
    (&text[..begin], &url[..end], &url[end..])
}

/// The target of a reference.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// A relative reference, which leads to the router.
    Here,
    /// The worker itself: the same target as a path of the router.
    Own(String),
    /// Another server, with its host and port.
    Elsewhere(String, u16),
}

impl Target {
    fn of(url: &str, own: &WorkerUrl) -> Self {
        // Browsers treat a backslash as a slash, and skip blanks before a URL (URL Standard, section 4.4).
        let url = url.trim().replace('\\', "/");
        let (scheme, rest) = match url.split_once("://") {
            Some((scheme, rest))
                if scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) =>
            {
                (scheme.to_ascii_lowercase(), rest)
            }
            Some(_) | None => match url.strip_prefix("//") {
                Some(rest) => (if own.is_secure() { "https" } else { "http" }.to_owned(), rest),
                None => return Self::Here,
            },
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority = authority.rsplit_once('@').map_or(authority, |(_user, host)| host);
        let default = if scheme == "https" { 443 } else { 80 };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().unwrap_or(default)),
            Some(_) | None => (authority, default),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if !host.eq_ignore_ascii_case(own.host()) || port != own.port() {
            return Self::Elsewhere(host.to_owned(), port);
        }
        let path = path.strip_prefix(own.path_prefix()).unwrap_or(path);
        Self::Own(if path.starts_with('/') { path.to_owned() } else { format!("/{path}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(name: &'static str, value: &str) -> Result<String, ForeignReference> {
        let own: WorkerUrl = "http://gpu-1:8000/engine".parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        let is_worker = |host: &str, port| (host, port) == ("gpu-2", 8000);
        hide_worker(&mut headers, &own, is_worker)?;
        Ok(headers[name].to_str().unwrap().to_owned())
    }

    #[test]
    fn what_leads_to_the_worker_leads_to_the_router() {
        for (sent, seen) in [
            ("http://gpu-1:8000/engine/v1/files/1?a=b#c", "/v1/files/1?a=b#c"),
            ("http://GPU-1:8000/other", "/other"),
            ("//gpu-1:8000/engine/x", "/x"),
            ("\\\\gpu-1:8000\\engine\\x", "/x"),
            ("http://user:secret@gpu-1:8000/engine/x", "/x"),
            ("http://gpu-1:8000", "/"),
            ("https://gpu-1:8000?q", "/?q"),
            ("/v1/files/1", "/v1/files/1"),
            ("files/1?u=http://gpu-1:8000", "files/1?u=http://gpu-1:8000"),
        ] {
            assert_eq!(hidden("location", sent).as_deref(), Ok(seen), "{sent}");
            assert_eq!(hidden("content-location", sent).as_deref(), Ok(seen), "{sent}");
        }
    }

    #[test]
    fn what_leads_elsewhere_does_not_pass() {
        for sent in ["http://gpu-2:8000/x", "http://gpu-1:9000/x", "//evil.test", "https://gpu-1/x"]
        {
            for name in ["location", "content-location"] {
                assert!(hidden(name, sent).is_err(), "{name}: {sent}");
            }
            assert!(hidden("refresh", &format!("0; url={sent}")).is_err(), "{sent}");
        }
    }

    #[test]
    fn a_refresh_keeps_its_time() {
        let seen = |text| hidden("refresh", text);
        assert_eq!(seen("5; url=http://gpu-1:8000/engine/x").as_deref(), Ok("5; url=/x"));
        assert_eq!(seen("5; URL = 'http://gpu-1:8000/x'").as_deref(), Ok("5; URL = '/x'"));
        assert_eq!(seen("5").as_deref(), Ok("5"));
    }

    #[test]
    fn links_are_rewritten_one_by_one() {
        let sent = "<http://gpu-1:8000/engine/a>; rel=next, <https://docs.test/b>; rel=help, </c>; rel=prev";
        let seen = "</a>; rel=next, <https://docs.test/b>; rel=help, </c>; rel=prev";
        assert_eq!(hidden("link", sent).as_deref(), Ok(seen));
        assert!(hidden("link", "<http://gpu-2:8000/a>; rel=next").is_err());
    }
}
