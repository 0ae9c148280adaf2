//! `/ha/view` and `/ha/views`: how this router, and each router of the cluster, sees the others and the workers.
//!
//! What a router sees of the others differs while links are cut, so no router knows it of another one. `/ha/views` asks each
//! present router for its `/ha/view`, at its URL for clients.
//!
//! The caller's key goes along only if it can't reach a stranger: members of the cluster must have shown a shared key or a
//! certificate, and a key that arrived over TLS leaves over TLS. Otherwise the other routers are asked without a key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use smg_mesh::Router;
use smg_types::spec::{Secret, WorkerUrl};
use tokio::task::JoinSet;

use super::Surface;
use super::error::ApiError;
use super::headers::shown_keys;
use super::workers::last_error;

/// The path that every router is asked for.
const PATH: &str = "/ha/view";

/// How long another router may take to answer.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// The longest answer of another router, in bytes.
const MOST_BYTES: usize = 4 << 20;

/// Answers `GET /ha/view`: the state of this router, what it sees of the others, the digests of its stores, and the failures of
/// workers.
pub(super) async fn view(State(surface): State<Arc<Surface>>) -> Result<Json<Value>, ApiError> {
    Ok(Json(own_view(&surface).await?))
}

async fn own_view(surface: &Surface) -> Result<Value, ApiError> {
    let health = surface.mesh.health().await?;
    // A node that has failed has no stores any more.
    let drift = surface.mesh.drift().await.ok();
    let snapshot = surface.fleet.snapshot();
    let failures: BTreeMap<String, Value> = snapshot
        .workers()
        .iter()
        .filter_map(|worker| Some((worker.id.to_string(), last_error(worker)?)))
        .collect();
    Ok(json!({
        "node_name": surface.config.node_name,
        "version": env!("CARGO_PKG_VERSION"),
        "draining": surface.lifecycle.is_draining(),
        "health": health,
        "drift": drift,
        "failures": failures,
    }))
}

/// Answers `GET /ha/views`: the views of all routers that answer, and why the others have none.
pub(super) async fn views(
    State(surface): State<Arc<Surface>>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let key = shown_keys(&headers).find_map(|key| std::str::from_utf8(key).ok()).map(Secret::new);
    let (_, routers) = surface.mesh.routers();
    let mut asking = JoinSet::new();
    for router in routers.into_iter().filter(|router| !router.is_self) {
        let (surface, key) = (Arc::clone(&surface), key.clone());
        asking.spawn(async move {
            let view = ask(&surface, &router, key.as_ref()).await;
            (router, view)
        });
    }
    let mut views = BTreeMap::new();
    views.insert(surface.config.node_name.clone(), json!({ "view": own_view(&surface).await? }));
    while let Some(asked) = asking.join_next().await {
        let Ok((router, view)) = asked else { continue };
        let document = match view {
            Ok(view) => json!({ "url": router.url, "view": view }),
            Err(error) => json!({ "url": router.url, "error": error }),
        };
        views.insert(router.name, document);
    }
    Ok(Json(json!({ "node_name": surface.config.node_name, "views": views })))
}

/// The view of another router, or why there is none.
async fn ask(surface: &Surface, router: &Router, key: Option<&Secret>) -> Result<Value, String> {
    if !matches!(router.status, "ALIVE" | "SUSPECTED" | "LEAVING") {
        return Err(format!("is {}", router.status));
    }
    let url = router.url.as_deref().ok_or("its URL for clients is not known")?;
    let url = url.parse::<WorkerUrl>().map_err(|error| format!("{url}: {error}"))?;
    let sends_key = surface.mesh.members_are_authenticated()
        && (url.is_secure() || surface.config.tls.is_none());
    let shown = key.filter(|_| sends_key);
    let asked = surface.routers.fetch(&url, Method::GET, PATH, shown, TIMEOUT, MOST_BYTES).await;
    let (status, body) = asked.map_err(|error| format!("{url}: {}", reason(&error)))?;
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if key.is_some() && !sends_key => {
            return Err(format!(
                "{url} asks for a key, and keys are not sent to other routers here: that needs a shared key or TLS for \
                 the mesh, and https on all routers if this one has it"
            ));
        }
        status if !status.is_success() => return Err(format!("{url} answered {status}")),
        _ => {}
    }
    let view: Value = serde_json::from_slice(&body).map_err(|error| format!("{url}: {error}"))?;
    match view["node_name"].as_str() {
        Some(name) if name == router.name => Ok(view),
        other => Err(format!("{url} leads to {}", other.unwrap_or("no router"))),
    }
}

/// The cause of an error. The error's own text would call the router a worker.
fn reason(error: &smg_proxy::upstream::SendError) -> String {
    std::error::Error::source(error).map_or_else(|| error.name().to_owned(), ToString::to_string)
}
