//! The admin routes of workers: add, read, change, drain, override, remove.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smg_routing::fleet::{Models, Override, Worker};
use smg_types::bounds::{
    self, OVERRIDE_REASON_BYTES, OVERRIDE_SECONDS, PROBE_INTERVAL_SECONDS, PROBE_TIMEOUT_SECONDS,
};
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;
use smg_types::spec::{HealthSpec, Secret, Weight, WorkerKind, WorkerSpec, WorkerUrl};

use super::Surface;
use super::error::ApiError;
use super::foreign;
use super::wait::WaitQuery;

/// A worker's spec as the API speaks it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SpecDocument {
    url: WorkerUrl,
    #[serde(default, alias = "model_ids")]
    models: Vec<ModelId>,
    #[serde(default, alias = "model", skip_serializing)]
    model_id: Option<ModelId>,
    #[serde(default)]
    aliases: BTreeMap<ModelId, ModelId>,
    #[serde(default)]
    worker_type: WorkerKind,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    region: Option<String>,
    #[serde(default)]
    zone: Option<String>,
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    weight: Weight,
    /// Write-only.
    #[serde(default, skip_serializing)]
    api_key: Option<String>,
    /// Variable of the router's environment that holds the key.
    #[serde(default, skip_serializing)]
    api_key_env: Option<String>,
    /// File on the router's machine that holds the key.
    #[serde(default, skip_serializing)]
    api_key_file: Option<String>,
    #[serde(default)]
    health: HealthDocument,
    #[serde(default)]
    max_concurrent: Option<NonZeroU32>,
    #[serde(default)]
    bootstrap_port: Option<u16>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthDocument {
    #[serde(default)]
    endpoint: Option<String>,
    #[serde(default)]
    interval_secs: Option<f64>,
    #[serde(default)]
    timeout_secs: Option<f64>,
    #[serde(default)]
    failure_threshold: Option<NonZeroU32>,
    #[serde(default)]
    success_threshold: Option<NonZeroU32>,
    #[serde(default)]
    disabled: bool,
}

impl SpecDocument {
    fn of(spec: &WorkerSpec) -> Self {
        Self {
            url: spec.url.clone(),
            models: spec.models.clone(),
            model_id: None,
            aliases: spec.aliases.clone(),
            worker_type: spec.kind,
            labels: spec.labels.clone(),
            region: spec.region.clone(),
            zone: spec.zone.clone(),
            priority: spec.priority,
            weight: spec.weight,
            api_key: None,
            api_key_env: None,
            api_key_file: None,
            health: HealthDocument {
                endpoint: spec.health.endpoint.clone(),
                interval_secs: spec.health.interval.map(|interval| interval.as_secs_f64()),
                timeout_secs: spec.health.timeout.map(|timeout| timeout.as_secs_f64()),
                failure_threshold: spec.health.failure_threshold,
                success_threshold: spec.health.success_threshold,
                disabled: spec.health.disabled,
            },
            max_concurrent: spec.max_concurrent,
            bootstrap_port: spec.bootstrap_port,
        }
    }

    /// Reads a body, with the fields of other routers.
    fn read(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields: Value = read(body)?;
        foreign::read_fields(&mut fields)?;
        if let Some(Value::Object(health)) = fields.get_mut("health") {
            health.retain(|_, value| !value.is_null());
        }
        serde_json::from_value(fields)
            .map_err(|error| ApiError::bad_request("invalid_json", error.to_string()))
    }

    /// `may_refer`: variables and files of the router's may be named, for an administrator has proven to be one.
    fn into_spec(self, may_refer: bool) -> Result<WorkerSpec, ApiError> {
        let api_key = self.key(may_refer)?;
        self.url.check_path().map_err(|error| invalid("url", error))?;
        if let Some(policy) = self.labels.get("policy")
            && let Err(error) = policy.parse::<smg_routing::policy::Kind>()
        {
            return Err(invalid("labels", error));
        }
        let mut models = self.models;
        models.extend(self.model_id);
        let interval =
            seconds("health.interval_secs", self.health.interval_secs, &PROBE_INTERVAL_SECONDS)?;
        let timeout =
            seconds("health.timeout_secs", self.health.timeout_secs, &PROBE_TIMEOUT_SECONDS)?;
        let spec = WorkerSpec {
            url: self.url,
            models,
            aliases: self.aliases,
            kind: self.worker_type,
            labels: self.labels,
            region: self.region,
            zone: self.zone,
            priority: self.priority,
            weight: self.weight,
            api_key,
            health: HealthSpec {
                endpoint: self.health.endpoint,
                interval,
                timeout,
                failure_threshold: self.health.failure_threshold,
                success_threshold: self.health.success_threshold,
                disabled: self.health.disabled,
            },
            max_concurrent: self.max_concurrent,
            bootstrap_port: self.bootstrap_port,
        };
        spec.check().map_err(|error| {
            let param = error.field.split('.').next().unwrap_or(error.field);
            invalid(param, error)
        })?;
        Ok(spec)
    }

    fn key(&self, may_refer: bool) -> Result<Option<Secret>, ApiError> {
        let refers = self.api_key_env.is_some() || self.api_key_file.is_some();
        if refers && !may_refer {
            // What they hold is sent to the worker: without an admin key anybody could have any of it sent anywhere.
            let message = "api_key_env and api_key_file need a router with --admin-api-key";
            return Err(ApiError { param: Some("api_key_env"), ..ApiError::forbidden(message) });
        }
        let key = match (&self.api_key, &self.api_key_env, &self.api_key_file) {
            (None, None, None) => return Ok(None),
            (Some(key), None, None) => key.clone(),
            (None, Some(name), None) => std::env::var(name).map_err(|_| {
                invalid("api_key_env", format!("variable {name:?} is not set or not text"))
            })?,
            (None, None, Some(path)) => read_key_file(path).map_err(|error| {
                invalid("api_key_file", format!("cannot read {path:?}: {error}"))
            })?,
            _ => {
                return Err(invalid(
                    "api_key",
                    "give one of api_key, api_key_env and api_key_file",
                ));
            }
        };
        write_key(&key).map(Some)
    }
}

/// A worker's key as a text of the API gives it.
pub(super) fn write_key(text: &str) -> Result<Secret, ApiError> {
    let key = Secret::new(text.trim());
    if key.expose().is_empty() || smg_proxy::upstream::bearer(&key).is_none() {
        return Err(invalid("api_key", "the key is empty or has characters that no header has"));
    }
    Ok(key)
}

/// Reads a small regular file: a pipe would block the thread, a device fill the memory.
fn read_key_file(path: &str) -> std::io::Result<String> {
    let about = std::fs::metadata(path)?;
    if !about.is_file() || about.len() > 64 << 10 {
        return Err(std::io::Error::other("it is not a regular file of at most 64 KiB"));
    }
    std::fs::read_to_string(path)
}

/// A time in seconds. It is checked before it becomes a [`Duration`], which holds no negative number.
fn seconds(
    name: &'static str,
    value: Option<f64>,
    bounds: &RangeInclusive<f64>,
) -> Result<Option<Duration>, ApiError> {
    let Some(value) = value else { return Ok(None) };
    let param = name.split('.').next().unwrap_or(name);
    bounds::number(&value, bounds)
        .map_err(|why| invalid(param, format!("{name} {value} {why}")))?;
    Ok(Some(Duration::from_secs_f64(value)))
}

pub(super) fn invalid(param: &'static str, message: impl std::fmt::Display) -> ApiError {
    ApiError { param: Some(param), ..ApiError::bad_request("invalid_worker", message.to_string()) }
}

pub(super) fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request("invalid_json", error.to_string()))
}

/// A worker as the API shows it. Its key is never among it.
fn document(worker: &Worker, surface: &Surface, now: Now) -> Value {
    let models = match &worker.models {
        Models::Unknown => Value::Null,
        Models::Any => json!(["*"]),
        Models::Known(models) => json!(models),
    };
    let verdict = worker.verdict_at(now).map(|verdict| {
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
        "last_error": worker.last_failure().map(|failure| {
            json!({
                "at": smg_mesh::rfc3339(failure.at),
                "path": failure.path,
                "cause": failure.cause.name(),
                "status": failure.status,
                "error": (!failure.detail.is_empty()).then_some(&failure.detail),
                "advice": failure.advice(&worker.spec.url),
            })
        }),
    });
    if let Value::Object(document) = &mut document {
        document.extend(foreign::fields_of(worker));
    }
    document
}

/// Whoever got here has shown the admin key, if there is one.
fn may_refer(surface: &Surface) -> bool {
    surface.keys.load().have_admins()
}

/// The worker that `id` names: its id, or its URL.
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

/// `GET /workers[?model=]`
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

/// `POST /workers`: accepted at once, used as soon as it is found healthy and its models are known.
pub(super) async fn add(
    State(surface): State<Arc<Surface>>,
    Query(wait): Query<WaitQuery>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let wait = wait.read()?;
    let spec = SpecDocument::read(&body)?.into_spec(may_refer(&surface))?;
    let (id, url) = (spec.id(), spec.url.clone());
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

/// `GET /workers/{id}`
pub(super) async fn show(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let worker = find(&surface, &id)?;
    Ok(Json(document(&worker, &surface, surface.clock.now())))
}

/// `PUT /workers/{id}`: another spec for the same URL.
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

/// `PATCH /workers/{id}`: parts of the spec (RFC 7396). A key that is not mentioned stays.
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

/// A worker as it is now.
fn shown(surface: &Surface, id: WorkerId) -> Value {
    let now = surface.clock.now();
    let worker = surface.fleet.load().worker(id).cloned();
    worker.map_or_else(|| json!({ "id": id }), |worker| document(&worker, surface, now))
}

/// Merges `patch` into `target`; null takes a member away (RFC 7396, 2).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(target) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            merge(target.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

/// `DELETE /workers/{id}`: no new requests, those in flight finish, then it is gone.
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

/// `POST /workers/{id}/drain`: no new requests, without removing it.
pub(super) async fn drain(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
    Query(wait): Query<WaitQuery>,
) -> Result<Response, ApiError> {
    set_draining(&surface, &id, true, &wait).await
}

/// `DELETE /workers/{id}/drain`: takes it back.
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

/// An operator's verdict.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OverrideDocument {
    healthy: bool,
    reason: String,
    /// Seconds after which it lapses; without: it holds until it is lifted.
    #[serde(default)]
    ttl_secs: Option<f64>,
}

/// `POST /workers/{id}/override`
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

/// `DELETE /workers/{id}/override`
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
