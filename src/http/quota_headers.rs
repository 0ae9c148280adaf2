//! The headers that say of an answer which limits concern its request and what is left of them.

use http::{HeaderMap, HeaderName, HeaderValue};
use smg_limits::admission::Quota;
use smg_limits::rule::Kind;

static POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The headers that OpenAI's clients know, by kind: limit, remaining, reset.
static OPENAI: [[HeaderName; 3]; 2] = [
    [
        HeaderName::from_static("x-ratelimit-limit-requests"),
        HeaderName::from_static("x-ratelimit-remaining-requests"),
        HeaderName::from_static("x-ratelimit-reset-requests"),
    ],
    [
        HeaderName::from_static("x-ratelimit-limit-tokens"),
        HeaderName::from_static("x-ratelimit-remaining-tokens"),
        HeaderName::from_static("x-ratelimit-reset-tokens"),
    ],
];

/// Adds what an answer says of the limits: the headers that OpenAI's clients know, of the limit of each kind with the least
/// left, and the fields of draft-ietf-httpapi-ratelimit-headers-10 of all limits.
pub(super) fn show(quotas: &[Quota], headers: &mut HeaderMap) {
    if quotas.is_empty() {
        return;
    }
    for (kind, names) in [Kind::Requests, Kind::Tokens].into_iter().zip(&OPENAI) {
        let own = quotas.iter().filter(|quota| quota.kind == kind);
        if let Some(quota) = own.min_by_key(|quota| quota.remaining) {
            let reset = HeaderValue::try_from(span(quota.reset_ms));
            headers.insert(names[0].clone(), HeaderValue::from(quota.limit));
            headers.insert(names[1].clone(), HeaderValue::from(quota.remaining));
            if let Ok(reset) = reset {
                headers.insert(names[2].clone(), reset);
            }
        }
    }
    let name = |quota: &Quota| {
        // A structured string (RFC 9651) holds visible ASCII only.
        let rule = quota
            .rule
            .chars()
            .map(|c| if matches!(c, ' '..='~') && c != '"' && c != '\\' { c } else { '_' });
        format!("\"{}-{}\"", rule.collect::<String>(), quota.kind.as_str())
    };
    let policies: Vec<String> = quotas
        .iter()
        .map(|quota| {
            let unit = if quota.kind == Kind::Tokens { ";qu=\"tokens\"" } else { "" };
            let window = quota.window_ms.div_ceil(1_000);
            format!("{};q={};w={window}{unit}", name(quota), quota.limit)
        })
        .collect();
    let states: Vec<String> = quotas
        .iter()
        .map(|quota| {
            format!("{};r={};t={}", name(quota), quota.remaining, quota.reset_ms.div_ceil(1_000))
        })
        .collect();
    for (name, values) in [(&POLICY, policies), (&RATELIMIT, states)] {
        if let Ok(value) = HeaderValue::try_from(values.join(", ")) {
            headers.insert(name.clone(), value);
        }
    }
}

/// A span of time as OpenAI's API writes it, such as `1s`, `6m0s` or `250ms`.
fn span(ms: u64) -> String {
    if ms < 1_000 {
        return format!("{ms}ms");
    }
    let seconds = ms.div_ceil(1_000);
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(kind: Kind, remaining: u64) -> Quota {
        let (limit, window_ms, reset_ms) = (100, 60_000, 59_500);
        Quota { rule: "per \"tenant\"".into(), kind, limit, window_ms, remaining, reset_ms }
    }

    #[test]
    fn an_answer_names_the_limit_with_the_least_left() {
        let mut headers = HeaderMap::new();
        show(
            &[quota(Kind::Requests, 9), quota(Kind::Requests, 3), quota(Kind::Tokens, 50)],
            &mut headers,
        );
        assert_eq!(headers["x-ratelimit-remaining-requests"], "3");
        assert_eq!(headers["x-ratelimit-reset-tokens"], "1m0s");
        let policy = headers["ratelimit-policy"].to_str().unwrap();
        assert!(policy.starts_with("\"per _tenant_-requests\";q=100;w=60, "), "{policy}");
        assert!(policy.ends_with("\"per _tenant_-tokens\";q=100;w=60;qu=\"tokens\""), "{policy}");
        assert!(headers["ratelimit"].to_str().unwrap().ends_with(";r=50;t=60"));
    }

    #[test]
    fn spans_read_as_those_of_openai() {
        for (ms, text) in [(250, "250ms"), (1_000, "1s"), (360_000, "6m0s"), (3_661_000, "1h1m1s")]
        {
            assert_eq!(span(ms), text);
        }
    }
}
