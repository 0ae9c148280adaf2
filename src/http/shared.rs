//! What all routers of a cluster agree on, as administrators see and change it: policies, and what each router sees of
//! each worker. Without a mesh the answers speak of this one router.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use smg_proxy::dispatch::Setting;
use smg_routing::fleet::Worker;
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;

use super::Surface;
use super::error::ApiError;
use super::workers::{find, invalid, read};
use crate::bridge::{Observed, PolicyDocument, Wait, Written};

/// Longest that a write may wait for others.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Whom a write waits for, as the query says it.
#[derive(Debug, Deserialize)]
pub(super) struct WaitQuery {
    wait: Option<String>,
    timeout: Option<String>,
}

/// Whom a write waits for, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    wait: Wait,
    timeout: Duration,
}

impl WaitQuery {
    /// `?wait=local|quorum|all&timeout=5s`
    pub(super) fn read(&self) -> Result<Waits, ApiError> {
        let wait = match self.wait.as_deref() {
            None | Some("local") => Wait::Local,
            Some("quorum") => Wait::Quorum,
            Some("all") => Wait::All,
            Some(other) => {
                let message = format!("wait {other:?} is not one of local, quorum, all");
                return Err(ApiError {
                    param: Some("wait"),
                    ..ApiError::bad_request("invalid_wait", message)
                });
            }
        };
        let timeout = match &self.timeout {
            None => Duration::from_secs(5),
            Some(text) => humantime::parse_duration(text)
                .ok()
                .or_else(|| text.parse().ok().map(Duration::from_secs))
                .filter(|timeout| *timeout <= MAX_WAIT)
                .ok_or_else(|| ApiError {
                    param: Some("timeout"),
                    ..ApiError::bad_request(
                        "invalid_wait",
                        format!(
                            "timeout {text:?} is not a time of at most 60s, such as 5s or 250ms"
                        ),
                    )
                })?,
        };
        Ok(Waits { wait, timeout })
    }
}

impl Waits {
    /// Waits, and answers with the receipt in the document. What is not confirmed in time is 202: it goes on being sent.
    pub(super) async fn answer(
        self,
        status: StatusCode,
        written: Written<'_>,
        document: impl FnOnce() -> Value,
    ) -> Response {
        let receipt = written.receipt(self.wait, self.timeout).await;
        // Made now, so that it shows what was written.
        let mut document = document();
        let complete = receipt.as_ref().is_ok_and(|receipt| receipt.complete);
        if let Ok(receipt) = receipt {
            document["receipt"] = json!(receipt);
        }
        let status = if complete { status } else { StatusCode::ACCEPTED };
        (status, Json(document)).into_response()
    }
}

fn worker_document(
    surface: &Surface,
    worker: &Worker,
    observed: &BTreeMap<WorkerId, Observed>,
    now: Now,
) -> Value {
    let breaker = worker.breaker_mode(now, &surface.fleet.config().breaker);
    json!({
        "id": worker.id,
        "url": worker.spec.url,
        "state": worker.state().name(),
        "routed": worker.is_routed(now, &surface.fleet.config().breaker),
        "breaker": breaker.name(),
        "load": worker.load(),
        "override": worker.verdict_at(now).map(|verdict| verdict.healthy),
        "observations": observed.get(&worker.id).cloned().unwrap_or_default(),
    })
}

/// `GET /ha/workers`: this router's verdict on each worker, and what each router sees of it.
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

/// `GET /ha/workers/{id}`
pub(super) async fn worker(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let worker = find(&surface, &id)?;
    let observed = surface.admin.observed().await?;
    Ok(Json(worker_document(&surface, &worker, &observed, surface.clock.now())))
}

/// `GET /ha/policies`: which policy picks for which model, and what was set by hand.
pub(super) async fn policies(State(surface): State<Arc<Surface>>) -> Json<Value> {
    let snapshot = surface.fleet.snapshot();
    let policies = &surface.dispatch.policies;
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
    let policies = &surface.dispatch.policies;
    let (default, models) = policies.in_use(&surface.fleet.snapshot());
    let in_use = models.get(model).copied().unwrap_or(default);
    let set = policies.settings().get(model).map(setting_document);
    json!({ "model": model, "in_use": in_use.to_string(), "set": set })
}

/// `GET /ha/policies/{model}`
pub(super) async fn policy(
    State(surface): State<Arc<Surface>>,
    Path(model): Path<String>,
) -> Json<Value> {
    Json(policy_document(&surface, &ModelId::new(model)))
}

/// `PUT /ha/policies/{model}`: from now on this policy picks for the model, on all routers.
pub(super) async fn set_policy(
    State(surface): State<Arc<Surface>>,
    Path(model): Path<String>,
    Query(wait): Query<WaitQuery>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let document: PolicyDocument = read(&body)?;
    change_policy(&surface, model, Some(document), &wait).await
}

/// `DELETE /ha/policies/{model}`: what labels and the default say, again.
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
    if model.len() > 512 {
        return Err(invalid("model", "the name of the model is longer than 512 bytes"));
    }
    let model = ModelId::new(model);
    let policy = document.as_ref().map(|document| document.policy.clone());
    let written = surface.admin.set_policy(model.clone(), document).await?;
    tracing::info!(%model, ?policy, "policy set");
    Ok(wait.answer(StatusCode::OK, written, || policy_document(surface, &model)).await)
}
