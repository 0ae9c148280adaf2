//! The admin routes of workers: add, read, change, drain, override, remove.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use smg_routing::fleet::{Models, Override, Worker};
use smg_types::bounds::{OVERRIDE_REASON_BYTES, OVERRIDE_SECONDS};
use smg_types::ids::WorkerId;
use smg_types::now::Now;
use smg_types::spec::{WorkerSpec, WorkerUrl};

use super::Surface;
use super::documents::{invalid, merge, read, seconds};
use super::error::ApiError;
use super::foreign;
use super::wait::WaitQuery;
use super::worker_spec::SpecDocument;

/// A worker as the API shows it, without its key.
fn document(worker: &Worker, surface: &Surface, now: Now) -> Value {
    let models = match &worker.models {
        Models::Unknown => Value::Null,
        Models::Any => json!(["*"]),
        Models::Known(models) => json!(models),
    };
    let verdict = worker.active_override(now).map(|verdict| {
        let seconds_left = verdict.until.map(|until| until.saturating_sub(now.mono).as_secs_f64());
        json!({ "healthy": verdict.healthy, "reason": verdict.reason, "seconds_left": seconds_left })
    });
    let mut document = json!({
        "id": worker.id,
        "state": worker.state().name(),
        "models": models,
        "in_flight": worker.in_flight(),
        "load": worker.load(),
        "breaker": worker.breaker_mode(now, &surface.fleet.config().breaker).name(),
        "head_latency_seconds": worker.latency().map(|latency| latency.as_secs_f64()),
        "override": verdict,
        "has_api_key": worker.spec.api_key.is_some(),
        "spec": SpecDocument::of(&worker.spec),
        "info": worker.info,
        "last_error": last_error(worker),
    });
    if let Value::Object(document) = &mut document {
        document.extend(foreign::fields_of(worker));
    }
    document
}

/// The cause of this router's last failed probe or discovery of a worker; `None` after a success.
pub(super) fn last_error(worker: &Worker) -> Option<Value> {
    let failure = worker.last_failure()?;
    Some(json!({
        "at": smg_mesh::rfc3339(failure.at),
        "path": failure.path,
        "cause": failure.cause.name(),
        "status": failure.status,
        "error": (!failure.detail.is_empty()).then_some(&failure.detail),
        "advice": failure.advice(&worker.spec.url),
    }))
}

/// Requests that arrive here have passed the check of the admin key, if there is one.
fn may_refer(surface: &Surface) -> bool {
    surface.keys.load().have_admins()
}

/// The worker that `id` identifies by its id or its URL.
pub(super) fn find(surface: &Surface, id: &str) -> Result<Arc<Worker>, ApiError> {
    let by_url = || id.parse::<WorkerUrl>().ok().map(|url| url.id());
    let parsed = id.parse::<WorkerId>().ok().or_else(by_url);
    let parsed = parsed.ok_or_else(|| ApiError::no_such_worker(id))?;
    surface.fleet.load().worker(parsed).cloned().ok_or_else(|| ApiError::no_such_worker(id))
}

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    model: Option<String>,
}

/// Answers `GET /workers[?model=]`.
pub(super) async fn list(
    State(surface): State<Arc<Surface>>,
    Query(query): Query<ListQuery>,
) -> Json<Value> {
    let now = surface.clock.now();
    let snapshot = surface.fleet.snapshot();
    let serves = |worker: &Worker| match (&query.model, &worker.models) {
        (None, _) | (Some(_), Models::Any) => true,
        (Some(_), Models::Unknown) => false,
        (Some(wanted), Models::Known(models)) => {
            models.iter().any(|model| model.as_str() == wanted)
        }
    };
    let workers: Vec<Value> = snapshot
        .workers()
        .iter()
        .filter(|worker| serves(worker))
        .map(|worker| document(worker, &surface, now))
        .collect();
    let stats = foreign::stats(workers.len());
    Json(json!({ "workers": workers, "total": workers.len(), "stats": stats }))
}

/// Refuses a worker at an address where none may be.
pub(super) fn check_address(surface: &Surface, url: &WorkerUrl) -> Result<(), ApiError> {
    surface.own_addresses.check(url).map_err(|error| invalid("url", error))?;
    surface.config.worker_networks.check_url(url).map_err(|error| invalid("url", error))
}

/// Answers `POST /workers`. The worker is accepted at once, and used as soon as it is healthy and its models are known.
pub(super) async fn add(
    State(surface): State<Arc<Surface>>,
    Query(wait): Query<WaitQuery>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let wait = wait.read()?;
    let spec = SpecDocument::read(&body)?.into_spec(may_refer(&surface))?;
    let (id, url) = (spec.id(), spec.url.clone());
    check_address(&surface, &url)?;
    let written = surface.admin.add(spec).await?;
    tracing::info!(worker = %id, "worker added");
    let location = format!("/workers/{id}");
    let answer = json!({
        "id": id,
        "state": "pending",
        "location": location,
        "worker_id": id,
        "url": url,
        "status": "accepted",
    });
    let answer = wait.answer(StatusCode::ACCEPTED, written, move || answer).await;
    Ok(([(header::LOCATION, location)], answer).into_response())
}

/// Answers `GET /workers/{id}`.
pub(super) async fn show(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let worker = find(&surface, &id)?;
    Ok(Json(document(&worker, &surface, surface.clock.now())))
}

/// Answers `PUT /workers/{id}`: replaces the spec, for the same URL.
pub(super) async fn replace(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
    Query(wait): Query<WaitQuery>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let worker = find(&surface, &id)?;
    let spec = SpecDocument::read(&body)?.into_spec(may_refer(&surface))?;
    respecify(&surface, &worker, spec, &wait).await
}

/// Answers `PATCH /workers/{id}`: changes parts of the spec (RFC 7396). A key that is not mentioned stays.
pub(super) async fn change(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
    Query(wait): Query<WaitQuery>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let worker = find(&surface, &id)?;
    let mut patch: Value = read(&body)?;
    foreign::read_fields(&mut patch)?;
    let Value::Object(fields) = &patch else {
        return Err(ApiError::bad_request("invalid_json", "the patch is not an object"));
    };
    let keeps_key =
        !["api_key", "api_key_env", "api_key_file"].iter().any(|name| fields.contains_key(*name));
    let mut whole = serde_json::to_value(SpecDocument::of(&worker.spec))
        .map_err(|error| ApiError::bad_request("invalid_worker", error.to_string()))?;
    merge(&mut whole, &patch);
    let document: SpecDocument = serde_json::from_value(whole)
        .map_err(|error| ApiError::bad_request("invalid_worker", error.to_string()))?;
    let mut spec = document.into_spec(may_refer(&surface))?;
    if keeps_key {
        spec.api_key.clone_from(&worker.spec.api_key);
    }
    respecify(&surface, &worker, spec, &wait).await
}

async fn respecify(
    surface: &Surface,
    worker: &Worker,
    spec: WorkerSpec,
    wait: &WaitQuery,
) -> Result<Response, ApiError> {
    if spec.id() != worker.id {
        let message = "the url is the worker's identity: add another worker instead";
        return Err(invalid("url", message));
    }
    let wait = wait.read()?;
    let id = spec.id();
    let written = surface.admin.change(spec).await?;
    tracing::info!(worker = %id, "worker changed");
    Ok(wait.answer(StatusCode::OK, written, || shown(surface, id)).await)
}

/// The current state of a worker.
fn shown(surface: &Surface, id: WorkerId) -> Value {
    let now = surface.clock.now();
    let worker = surface.fleet.load().worker(id).cloned();
    worker.map_or_else(|| json!({ "id": id }), |worker| document(&worker, surface, now))
}

/// Answers `DELETE /workers/{id}`: the worker gets no new requests, those in flight finish, then it is removed.
pub(super) async fn remove(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
    Query(wait): Query<WaitQuery>,
) -> Result<Response, ApiError> {
    let wait = wait.read()?;
    let worker = find(&surface, &id)?;
    let written = surface.admin.remove(worker.id).await?;
    tracing::info!(worker = %worker.id, in_flight = worker.in_flight(), "worker leaves");
    let answer = json!({
        "id": worker.id,
        "state": "draining",
        "in_flight": worker.in_flight(),
        "worker_id": worker.id,
        "status": "accepted",
    });
    Ok(wait.answer(StatusCode::ACCEPTED, written, move || answer).await)
}

/// Answers `POST /workers/{id}/drain`: the worker gets no new requests, and stays registered.
pub(super) async fn drain(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
    Query(wait): Query<WaitQuery>,
) -> Result<Response, ApiError> {
    set_draining(&surface, &id, true, &wait).await
}

/// Answers `DELETE /workers/{id}/drain`: the worker gets requests again.
pub(super) async fn resume(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
    Query(wait): Query<WaitQuery>,
) -> Result<Response, ApiError> {
    set_draining(&surface, &id, false, &wait).await
}

async fn set_draining(
    surface: &Surface,
    id: &str,
    draining: bool,
    wait: &WaitQuery,
) -> Result<Response, ApiError> {
    let wait = wait.read()?;
    let worker = find(surface, id)?;
    let written = surface.admin.cordon(worker.id, draining).await?;
    tracing::info!(worker = %worker.id, draining, "worker cordoned or resumed");
    Ok(wait.answer(StatusCode::OK, written, || shown(surface, worker.id)).await)
}

/// An operator's verdict on a worker.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OverrideDocument {
    healthy: bool,
    reason: String,
    /// The time in seconds after which the verdict expires; without it, the verdict holds until it is removed.
    #[serde(default)]
    ttl_secs: Option<f64>,
}

/// Answers `POST /workers/{id}/override`.
pub(super) async fn override_health(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
    Query(wait): Query<WaitQuery>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let wait = wait.read()?;
    let worker = find(&surface, &id)?;
    let asked: OverrideDocument = read(&body)?;
    let bytes = OVERRIDE_REASON_BYTES;
    if asked.reason.trim().is_empty() || !bytes.contains(&asked.reason.len()) {
        let (low, high) = (bytes.start(), bytes.end());
        let message = format!("a reason of {low} to {high} bytes is needed, for other operators");
        return Err(invalid("reason", message));
    }
    let ttl = seconds("ttl_secs", asked.ttl_secs, &OVERRIDE_SECONDS)?;
    let until = ttl.map(|ttl| surface.clock.mono() + ttl);
    tracing::info!(worker = %worker.id, healthy = asked.healthy, reason = asked.reason, "worker overridden");
    let verdict = Override { healthy: asked.healthy, reason: asked.reason, until };
    let written = surface.admin.override_worker(worker.id, Some(verdict)).await?;
    Ok(wait.answer(StatusCode::OK, written, || shown(&surface, worker.id)).await)
}

/// Answers `DELETE /workers/{id}/override`.
pub(super) async fn lift_override(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
    Query(wait): Query<WaitQuery>,
) -> Result<Response, ApiError> {
    let wait = wait.read()?;
    let worker = find(&surface, &id)?;
    let written = surface.admin.override_worker(worker.id, None).await?;
    tracing::info!(worker = %worker.id, "override lifted");
    Ok(wait.answer(StatusCode::OK, written, || shown(&surface, worker.id)).await)
}
