//! The limits on the way of an inference request: what it takes before it is dispatched, and what its answer says of it.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use smg_limits::admission::{Admission, Quota, Refusal};
use smg_limits::limiter::Limiter;
use smg_limits::rule::{TokenCount, Who};
use smg_proxy::usage::{Origin, Settlement, TokenUsage, Work};
use smg_runtime::clock::Clock;
use smg_types::ids::ModelId;
use tokio::sync::Semaphore;

use super::Surface;
use super::error::ApiError;
use super::estimates::Estimates;
use super::metering::Settle;
use super::peek::Peek;

/// How long a request waits for rights that another router may lend.
const WAIT: Duration = Duration::from_millis(50);

/// The first pause of a wait; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// How long nobody waits for a subject after a wait was in vain.
const IN_VAIN_MS: u64 = 200;

/// The most requests that wait for rights at once.
pub const MOST_WAITING: usize = 256;

/// A window of this length or longer is a quota, which a client should not simply wait for.
const QUOTA_WINDOW_MS: u32 = 24 * 3600 * 1000;

/// Takes what the request needs from every limit that concerns it. If this router lacks rights that others may have, it waits
/// for them for a moment.
///
/// # Errors
/// A limit is used up.
async fn admit(
    limiter: &Limiter,
    clock: Clock,
    waiting: &Semaphore,
    who: &Who<'_>,
    estimate: &TokenCount,
) -> Result<Admission, ApiError> {
    let mut refusal = match limiter.check(who, estimate, clock.now()) {
        Ok(admission) => return Ok(admission),
        Err(refusal) => refusal,
    };
    if refusal.is_hopeful
        && let Ok(_place) = waiting.try_acquire()
    {
        let deadline = clock.mono() + WAIT;
        let mut pause = FIRST_PAUSE;
        while refusal.is_hopeful && clock.mono() < deadline {
            // Nothing notifies this request of a grant: many grants come for subjects that nobody waits for.
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
    who: &Who<'_>,
    route: &str,
    peek: &Peek<'_>,
) -> Result<Option<Reservation>, ApiError> {
    let limiter = surface.admin.limits().limiter();
    if limiter.is_idle() {
        return Ok(None);
    }
    let (mut estimate, mut model_id) = (TokenCount::default(), None);
    if limiter.counts_tokens(who) {
        model_id = who.model.map(ModelId::new);
        let most_output = match Work::of(route) {
            Work::Generate => peek.most_output,
            Work::Read | Work::Other => Some(0),
        };
        estimate = surface.estimates.of(model_id.as_ref(), peek.prompt_bytes(), most_output);
    }
    let admission =
        admit(limiter, surface.clock, &surface.waiting_for_rights, who, &estimate).await?;
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

#[cfg(test)]
mod tests {
    use smg_limits::admission::Quota;
    use smg_limits::rule::Kind;

    use super::*;

    fn hour() -> Quota {
        Quota {
            rule: "r".into(),
            kind: Kind::Requests,
            limit: 100,
            window_ms: 3_600_000,
            remaining: 0,
            reset_ms: 59_500,
        }
    }

    #[test]
    fn a_quota_of_a_day_is_not_a_rate() {
        let day = Quota { window_ms: QUOTA_WINDOW_MS, ..hour() };
        for (quota, code) in [(day, "insufficient_quota"), (hour(), "rate_limit_exceeded")] {
            let quotas = vec![quota.clone()];
            let refusal =
                Refusal { quota, quotas, needed: 1, is_too_large: false, is_hopeful: false };
            let error = ApiError::limited(&refusal);
            assert_eq!((error.code, error.retry_after), (code, Some(Duration::from_secs(60))));
        }
    }
}
