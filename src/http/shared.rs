//! The shared state of a cluster for administrators: policies, and what each router observes of each worker. Also the
//! query parameters with which a write waits for a receipt.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use smg_routing::fleet::Worker;
use smg_routing::policies::Setting;
use smg_types::bounds;
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;

use super::Surface;
use super::documents::read;
use super::error::ApiError;
use super::wait::WaitQuery;
use super::workers::find;
use crate::bridge::{Observed, PolicyDocument};

fn worker_document(
    surface: &Surface,
    worker: &Worker,
    observed: &BTreeMap<WorkerId, Observed>,
    now: Now,
) -> Value {
    let breaker = worker.breaker_mode(now, &surface.fleet.config().breaker);
    let cached = worker.cached_tokens();
    json!({
        "id": worker.id,
        "url": worker.spec.url,
        "state": worker.state().name(),
        "routed": worker.is_routed(now, &surface.fleet.config().breaker),
        "breaker": breaker.name(),
        "load": worker.load(),
        "waiting_tokens": worker.waiting_tokens(now),
        "expected_wait_seconds": worker.expected_wait(now),
        "prompt_tokens": cached.all,
        "cached_tokens": cached.cached,
        "override": worker.active_override(now).map(|verdict| verdict.healthy),
        "observations": observed.get(&worker.id).cloned().unwrap_or_default(),
    })
}

/// Answers `GET /ha/workers`: this router's verdict on each worker, and what each router observes of it.
pub(super) async fn workers(State(surface): State<Arc<Surface>>) -> Result<Json<Value>, ApiError> {
    let observed = surface.admin.observed().await?;
    let now = surface.clock.now();
    let snapshot = surface.fleet.snapshot();
    let workers: Vec<Value> = snapshot
        .workers()
        .iter()
        .map(|worker| worker_document(&surface, worker, &observed, now))
        .collect();
    Ok(Json(json!({
        "node_name": surface.config.node_name,
        "workers": workers,
        "total": workers.len(),
    })))
}

/// Answers `GET /ha/workers/{id}`.
pub(super) async fn worker(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let worker = find(&surface, &id)?;
    let observed = surface.admin.observed().await?;
    Ok(Json(worker_document(&surface, &worker, &observed, surface.clock.now())))
}

/// Answers `GET /ha/policies`: the policy of each model, and the policies that administrators have set.
pub(super) async fn policies(State(surface): State<Arc<Surface>>) -> Json<Value> {
    let snapshot = surface.fleet.snapshot();
    let policies = &surface.policies;
    let (default, models) = policies.in_use(&snapshot);
    let models: BTreeMap<_, _> =
        models.iter().map(|(model, kind)| (model.as_str(), kind.to_string())).collect();
    let set: BTreeMap<_, _> = policies
        .settings()
        .iter()
        .map(|(model, setting)| (model.to_string(), setting_document(setting)))
        .collect();
    Json(json!({
        "node_name": surface.config.node_name,
        "default": default.to_string(),
        "models": models,
        "set": set,
    }))
}

fn setting_document(setting: &Setting) -> Value {
    json!({
        "policy": setting.kind.to_string(),
        "parameters": {
            "cache_threshold": setting.config.cache_threshold,
            "balance_abs_threshold": setting.config.balance_abs_threshold,
            "balance_rel_threshold": setting.config.balance_rel_threshold,
        },
        "weights": setting.weights,
    })
}

fn policy_document(surface: &Surface, model: &ModelId) -> Value {
    let policies = &surface.policies;
    let (default, models) = policies.in_use(&surface.fleet.snapshot());
    let in_use = models.get(model).copied().unwrap_or(default);
    let set = policies.settings().get(model).map(setting_document);
    json!({ "model": model, "in_use": in_use.to_string(), "set": set })
}

/// Answers `GET /ha/policies/{model}`.
pub(super) async fn policy(
    State(surface): State<Arc<Surface>>,
    Path(model): Path<String>,
) -> Json<Value> {
    Json(policy_document(&surface, &ModelId::new(model)))
}

/// Answers `PUT /ha/policies/{model}`: sets the policy of the model on all routers.
pub(super) async fn set_policy(
    State(surface): State<Arc<Surface>>,
    Path(model): Path<String>,
    Query(wait): Query<WaitQuery>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let document: PolicyDocument = read(&body)?;
    change_policy(&surface, model, Some(document), &wait).await
}

/// Answers `DELETE /ha/policies/{model}`: removes the policy, so that labels and the default decide again.
pub(super) async fn unset_policy(
    State(surface): State<Arc<Surface>>,
    Path(model): Path<String>,
    Query(wait): Query<WaitQuery>,
) -> Result<Response, ApiError> {
    change_policy(&surface, model, None, &wait).await
}

async fn change_policy(
    surface: &Surface,
    model: String,
    document: Option<PolicyDocument>,
    wait: &WaitQuery,
) -> Result<Response, ApiError> {
    let wait = wait.read()?;
    bounds::model_name(&model).map_err(|why| ApiError::invalid_model(&model, &why))?;
    let model = ModelId::new(model);
    let policy = document.as_ref().map(|document| document.policy.clone());
    let written = surface.admin.set_policy(model.clone(), document).await?;
    tracing::info!(%model, ?policy, "policy set");
    Ok(wait.answer(StatusCode::OK, written, || policy_document(surface, &model)).await)
}
