//! The worker API of older routers, which identifies workers by their URLs. Training loops and scripts for
//! sglang-router and vllm-router use it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use smg_routing::fleet;
use smg_types::ids::WorkerId;
use smg_types::spec::{WorkerSpec, WorkerUrl};

use super::Surface;
use super::documents::invalid;
use super::error::ApiError;
use super::worker_spec::write_key;
use super::workers::check_address;

/// How long `/add_worker` waits until the worker is ready, because its callers send requests right after the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The time between two checks whether the worker is ready.
const LOOK: Duration = Duration::from_millis(20);

/// The worker that the query names.
#[derive(Debug, Deserialize)]
pub(super) struct WorkerQuery {
    url: Option<String>,
    api_key: Option<String>,
}

impl WorkerQuery {
    fn url(&self) -> Result<WorkerUrl, ApiError> {
        let text = self.url.as_deref().ok_or_else(|| invalid("url", "the query has no url"))?;
        let url: WorkerUrl = text.parse().map_err(|error| invalid("url", error))?;
        url.check_path().map_err(|error| invalid("url", error))?;
        Ok(url)
    }
}

/// Answers `GET /list_workers`.
pub(super) async fn list(State(surface): State<Arc<Surface>>) -> Json<Value> {
    let snapshot = surface.fleet.snapshot();
    let stays = snapshot.workers().iter().filter(|worker| worker.drain_deadline.is_none());
    let urls: Vec<&str> = stays.map(|worker| worker.spec.url.as_str()).collect();
    Json(json!({ "urls": urls }))
}

/// Answers `POST /add_worker?url=…[&api_key=…]`: 200 if the worker is ready, 202 if it is registered and does not
/// answer yet.
pub(super) async fn add(
    State(surface): State<Arc<Surface>>,
    Query(query): Query<WorkerQuery>,
) -> Result<Response, ApiError> {
    let url = query.url()?;
    check_address(&surface, &url)?;
    let api_key = query.api_key.as_deref().map(write_key).transpose()?;
    let spec = WorkerSpec { api_key, ..WorkerSpec::new(url.clone()) };
    let id = spec.id();
    // This route does not wait for other routers; `POST /workers?wait=…` does.
    let _written = surface.admin.add(spec).await?;
    tracing::info!(worker = %id, %url, "worker added");
    let ready = async {
        while !is_ready(&surface, id) {
            tokio::time::sleep(LOOK).await;
        }
    };
    Ok(match tokio::time::timeout(PATIENCE, ready).await {
        Ok(()) => format!("Successfully added worker: {url}").into_response(),
        Err(_elapsed) => {
            let text = format!("Worker {url} is registered; it serves as soon as it answers.");
            (StatusCode::ACCEPTED, text).into_response()
        }
    })
}

fn is_ready(surface: &Surface, id: WorkerId) -> bool {
    let snapshot = surface.fleet.load();
    snapshot.worker(id).is_some_and(|worker| worker.state() == fleet::WorkerState::Ready)
}

/// Answers `POST /remove_worker?url=…`: 200 also if there is no such worker, for callers that clean up twice.
pub(super) async fn remove(
    State(surface): State<Arc<Surface>>,
    Query(query): Query<WorkerQuery>,
) -> Result<Response, ApiError> {
    let url = query.url()?;
    let worker = surface.fleet.load().worker(url.id()).cloned();
    let Some(worker) = worker.filter(|worker| worker.drain_deadline.is_none()) else {
        return Ok(format!("Worker {url} is not registered.").into_response());
    };
    let _written = surface.admin.remove(worker.id).await?;
    tracing::info!(worker = %worker.id, %url, in_flight = worker.in_flight(), "worker leaves");
    Ok(format!("Successfully removed worker: {url}").into_response())
}
