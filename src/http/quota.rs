//! The limits on the way of an inference request: what it takes before it is dispatched, and what its answer says of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use smg_limits::admission::{Admission, Quota, Refusal};
use smg_limits::limiter::Limiter;
use smg_limits::rule::{Kind, TokenCount, Who};
use smg_proxy::usage::{Origin, Settlement, TokenUsage, Work};
use smg_runtime::clock::Clock;
use smg_types::ids::ModelId;

use super::Surface;
use super::error::ApiError;
use super::estimates::Estimates;
use super::inference::Inbound;
use super::metering::Settle;
use super::peek::Peek;

/// How long a request waits for rights that another router may lend.
const WAIT: Duration = Duration::from_millis(50);

/// The first pause of a wait; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// How long nobody waits for a subject after a wait was in vain.
const IN_VAIN_MS: u64 = 200;

/// The most requests that wait for rights at once.
const MOST_WAITING: usize = 256;

/// A window of this length or longer is a quota, which a client should not simply wait for.
const QUOTA_WINDOW_MS: u32 = 24 * 3600 * 1000;

/// The requests that wait for rights at present.
static WAITING: AtomicUsize = AtomicUsize::new(0);

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

/// Takes what the request needs from every limit that concerns it. If this router lacks rights that others may have, it waits
/// for them for a moment.
///
/// # Errors
/// A limit is used up.
async fn admit(
    limiter: &Limiter,
    clock: Clock,
    who: &Who<'_>,
    estimate: &TokenCount,
) -> Result<Admission, ApiError> {
    let mut refusal = match limiter.check(who, estimate, clock.now()) {
        Ok(admission) => return Ok(admission),
        Err(refusal) => refusal,
    };
    if refusal.is_hopeful
        && let Some(_place) = Place::take()
    {
        let deadline = clock.mono() + WAIT;
        let mut pause = FIRST_PAUSE;
        while refusal.is_hopeful && clock.mono() < deadline {
            tokio::time::sleep(pause).await;
            pause *= 2;
            refusal = match limiter.check(who, estimate, clock.now()) {
                Ok(admission) => return Ok(admission),
                Err(refusal) => refusal,
            };
        }
        limiter.waited_in_vain(who, &refusal, IN_VAIN_MS, clock.now());
    }
    Err(ApiError::limited(&refusal))
}

/// What limits have taken for a request.
#[derive(Debug)]
pub(super) struct Reservation {
    admission: Admission,
    estimates: Arc<Estimates>,
    model: Option<ModelId>,
    prompt_bytes: usize,
    estimate: TokenCount,
}

/// Takes what a request needs from every limit that concerns it; `None`: there are no limits.
///
/// # Errors
/// A limit is used up.
pub(super) async fn reserve(
    surface: &Surface,
    inbound: &Inbound,
    model: Option<&str>,
    peek: &Peek<'_>,
) -> Result<Option<Reservation>, ApiError> {
    let limiter = surface.admin.limits().limiter();
    if limiter.is_idle() {
        return Ok(None);
    }
    let who = Who { api_key: inbound.key, tenant: inbound.tenant.as_deref(), model };
    let (mut estimate, mut model_id) = (TokenCount::default(), None);
    if limiter.counts_tokens(&who) {
        model_id = model.map(ModelId::new);
        let most_output = match Work::of(inbound.route) {
            Work::Generate => peek.most_output,
            Work::Read | Work::Other => Some(0),
        };
        estimate = surface.estimates.of(model_id.as_ref(), peek.prompt_bytes(), most_output);
    }
    let admission = admit(limiter, surface.clock, &who, &estimate).await?;
    let estimates = Arc::clone(&surface.estimates);
    let prompt_bytes = peek.prompt_bytes();
    Ok(Some(Reservation { admission, estimates, model: model_id, prompt_bytes, estimate }))
}

impl Reservation {
    /// What the answer says of each limit.
    pub(super) fn quotas(&self) -> Vec<Quota> {
        self.admission.quotas.clone()
    }

    /// Whether the tokens of the answer must be counted.
    pub(super) fn counts_tokens(&self) -> bool {
        self.admission.counts_tokens()
    }
}

impl Settle for Reservation {
    fn settle(self: Box<Self>, settlement: &Settlement) {
        let TokenUsage { input, cached_input, output, .. } = settlement.tokens;
        let used = TokenCount { input, cached_input, output };
        if settlement.origin == Origin::Reported {
            let reserved = self.estimate.input.saturating_add(self.estimate.output);
            self.estimates.learn(self.model.as_ref(), self.prompt_bytes, reserved, &used);
        }
        self.admission.settle(&used);
    }
}

/// A place among the requests that wait.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        if WAITING.fetch_add(1, Ordering::Relaxed) < MOST_WAITING {
            return Some(Self);
        }
        WAITING.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ApiError {
    /// A limit is used up.
    fn limited(refusal: &Refusal) -> Self {
        let Refusal { quota, needed, is_too_large, .. } = refusal;
        let (rule, kind, limit) = (&quota.rule, quota.kind.as_str(), quota.limit);
        let seconds = f64::from(quota.window_ms) / 1_000.0;
        let reset = Duration::from_millis(quota.reset_ms);
        if *is_too_large {
            let message = format!(
                "the request may use {needed} {kind}, and rule {rule:?} allows {limit} in {seconds} s: shorten the prompt or \
                 lower the most tokens that the answer may have"
            );
            return Self {
                quotas: refusal.quotas.clone(),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "request_too_large_for_limit", message)
            };
        }
        let code = if quota.window_ms >= QUOTA_WINDOW_MS {
            "insufficient_quota"
        } else {
            "rate_limit_exceeded"
        };
        let message = format!(
            "rule {rule:?} allows {limit} {kind} in {seconds} s, and they are used up; the next window begins in {:.1} s",
            reset.as_secs_f64()
        );
        // A client that comes a moment too early would be refused again.
        let wait = Duration::from_secs(quota.reset_ms.div_ceil(1_000).max(1));
        Self {
            retry_after: Some(wait),
            quotas: refusal.quotas.clone(),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, code, message)
        }
    }
}

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

    #[test]
    fn a_quota_of_a_day_is_not_a_rate() {
        let day = Quota { window_ms: QUOTA_WINDOW_MS, ..quota(Kind::Requests, 0) };
        for (quota, code) in
            [(day, "insufficient_quota"), (quota(Kind::Requests, 0), "rate_limit_exceeded")]
        {
            let quotas = vec![quota.clone()];
            let refusal =
                Refusal { quota, quotas, needed: 1, is_too_large: false, is_hopeful: false };
            let error = ApiError::limited(&refusal);
            assert_eq!((error.code, error.retry_after), (code, Some(Duration::from_secs(60))));
        }
    }
}
