//! `POST /ha/explain`: which worker an inference request would get from this router, and why. Nothing is sent to a worker.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State};
use http::{HeaderMap, Method};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use serde::Deserialize;
use serde_json::{Value, json};
use smg_proxy::dispatch::{self, Considered, Criteria, Explanation, Standing};
use smg_routing::policy::{Kind, Measure, TimeTerms};
use smg_routing::prefix::BLOCK_BYTES;
use smg_types::ids::ModelId;
use smg_types::now::Now;

use super::Surface;
use super::error::ApiError;
use super::facts::{self, Facts};
use super::pass_through;
use super::routes::{Found, ROUTES, Serves};

/// The path of a request whose path is not given.
const DEFAULT_PATH: &str = "/v1/chat/completions";

/// What is asked besides the request itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// The path that the request would have.
    path: Option<String>,
}

/// Answers `POST /ha/explain[?path=PATH]`, whose body and headers are those of an inference request.
pub(super) async fn explain(
    State(surface): State<Arc<Surface>>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let path = asked.path.as_deref().unwrap_or(DEFAULT_PATH);
    let any_model = concerns_any_model(&surface, path)?;
    let facts = Facts::read(&Method::POST, None, &headers, &body).await?;
    let sole = facts.sole_model(&surface.fleet, any_model)?;
    let peek = &facts.peek;
    let model = peek.model.as_deref().or_else(|| sole.as_ref().map(ModelId::as_str));
    let session_header = facts::session_header(&headers, &surface.config.session_headers);
    let session = session_header.as_ref().map(http::HeaderValue::as_bytes);
    let criteria = Criteria {
        model,
        session: session.or_else(|| peek.session.as_deref().map(str::as_bytes)),
        goes_on_from: peek.goes_on_from.as_deref(),
        prompt: &peek.prompt(&body),
    };
    let now = surface.clock.now();
    let mut rng = SmallRng::seed_from_u64(now.mono_nanos());
    let max_wait = surface.dispatch.config.max_expected_wait;
    let among = (&*surface.fleet, &*surface.policies, max_wait);
    let explanation = dispatch::explain(among, &criteria, now, &mut rng);
    Ok(Json(document(&surface, path, &criteria, &explanation, now)))
}

/// Whether a request for `path` concerns no particular model.
///
/// # Errors
/// If requests for `path` do not go to one worker.
fn concerns_any_model(surface: &Surface, path: &str) -> Result<bool, ApiError> {
    let pass = &surface.config.pass_through;
    let found = [Method::POST, Method::GET].map(|m| pass_through::find_open(&m, path, pass));
    let is_open = |found: &Found| match found {
        Found::At(at) => ROUTES[*at].serves.is_worker(),
        Found::Passed => true,
        Found::OtherMethod | Found::Nothing => false,
    };
    match found.into_iter().find(is_open) {
        Some(Found::At(at)) => Ok(ROUTES[at].serves == Serves::AnyWorker),
        Some(_) => Ok(false),
        None => {
            let path: String = path.chars().take(200).collect();
            let message = format!("path {path:?} is none that this router sends to a worker");
            Err(ApiError { param: Some("path"), ..ApiError::bad_request("invalid_path", message) })
        }
    }
}

fn document(
    surface: &Surface,
    path: &str,
    criteria: &Criteria<'_>,
    explanation: &Explanation,
    now: Now,
) -> Value {
    let Explanation { entry, pick, refusal, must_wait, shortest_wait, .. } = explanation;
    let picked = pick.and_then(|(id, decision)| {
        let found = explanation.workers.iter().find(|considered| considered.worker.id == id)?;
        Some(json!({
            "worker": id,
            "url": found.worker.spec.url,
            "decision": decision.name(),
            "reason": decision.to_string(),
        }))
    });
    let max_wait = surface.dispatch.config.max_expected_wait;
    let workers = explanation.workers.iter();
    json!({
        "node_name": surface.config.node_name,
        "path": path,
        "model": criteria.model,
        "policy": entry.kind().name(),
        "decides_by": decides_by(entry.kind(), entry.config().cache_aware_by),
        "prompt": {
            "bytes": explanation.prompt_bytes,
            "blocks": explanation.blocks,
            "has_session_key": criteria.session.is_some(),
            "goes_on_from": criteria.goes_on_from,
        },
        "pick": picked,
        "waits": must_wait,
        "shortest_wait_seconds": shortest_wait.map(|wait| wait.as_secs_f64()),
        "max_expected_wait_seconds": max_wait.map(|wait| wait.as_secs_f64()),
        "refusal": refusal.as_ref().filter(|_| !must_wait).map(ToString::to_string),
        "workers": workers.map(|worker| worker_document(surface, worker, now)).collect::<Vec<_>>(),
    })
}

fn decides_by(kind: Kind, measure: Measure) -> &'static str {
    match (kind, measure) {
        (Kind::CacheAware, Measure::Requests) => {
            "The worker with the longest cached prefix of the prompt, while it is not much busier than the others"
        }
        _ => kind.summary(),
    }
}

fn worker_document(surface: &Surface, considered: &Considered, now: Now) -> Value {
    let Considered { worker, standing, candidate, terms } = considered;
    let spec = &worker.spec;
    let speed = candidate.speed.map(|speed| {
        json!({
            "overhead_seconds": rounded(speed.overhead),
            "seconds_per_token": speed.per_token,
            "seconds_per_request": rounded(speed.per_request),
        })
    });
    json!({
        "worker": worker.id,
        "url": spec.url,
        "candidate": *standing == Standing::Candidate,
        "standing": standing.name(),
        "because": standing.meaning(),
        "state": worker.state().name(),
        "breaker": worker.breaker_mode(now, &surface.fleet.config().breaker).name(),
        "load": candidate.load,
        "max_concurrent": spec.max_concurrent,
        "weight": candidate.weight,
        "priority": spec.priority,
        "region": spec.region,
        "zone": spec.zone,
        "waiting_tokens": candidate.waiting,
        "tokens_per_byte": candidate.tokens_per_byte,
        "speed": speed,
        "terms": terms.as_ref().map(|terms| terms_document(terms, candidate.tokens_per_byte)),
    })
}

/// The terms of the time by which candidates are compared.
fn terms_document(terms: &TimeTerms, tokens_per_byte: f32) -> Value {
    let tokens = |blocks: u32| (blocks as usize * BLOCK_BYTES) as f32 * tokens_per_byte;
    json!({
        "sent_tokens": tokens(terms.recall.sent).round(),
        "cached_tokens": tokens(terms.recall.held).round(),
        "own_tokens": terms.own_tokens.round(),
        "own_seconds": rounded(terms.own_seconds),
        "own_weight": terms.own_weight,
        "waiting_seconds": rounded(terms.waiting_seconds),
        "crowding_seconds": rounded(terms.crowding_seconds),
        "overhead_seconds": rounded(terms.speed.overhead),
        "seconds_per_token": terms.speed.per_token,
        "share_factor": terms.share_factor,
        "cost_seconds": rounded(terms.cost),
        "within_balance": terms.is_within_balance,
        "alike": terms.is_alike,
    })
}

/// A time with the precision that is worth showing: microseconds.
fn rounded(seconds: f32) -> f64 {
    (f64::from(seconds) * 1e6).round() / 1e6
}
