//! What the router answers itself: probes, models, metrics, its own API description, and the admin routes.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post, put};
use axum::{Json, Router};
use http::{StatusCode, header};
use prometheus::TextEncoder;
use serde_json::{Value, json};

use super::error::ApiError;
use super::routes::{ROUTES, Serves};
use super::{
    Surface, engine_metrics, explain, fanout, ha, keys, leader, legacy, models, rate_limits,
    shared, ui, views, workers,
};

/// The routes that the router answers itself. Keys are checked before a request gets here.
pub(super) fn router(surface: Arc<Surface>) -> Router {
    controls()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::show))
        .route("/v1/responses/{id}", get(fanout::response).delete(fanout::response))
        .route("/v1/responses/{id}/cancel", post(fanout::response))
        .route("/engine_metrics", get(engine_metrics::engine_metrics))
        .route("/get_loads", get(fanout::loads))
        .route("/flush_cache", post(fanout::flush_cache))
        .route("/list_workers", get(legacy::list))
        .route("/add_worker", post(legacy::add))
        .route("/remove_worker", post(legacy::remove))
        .route("/workers", get(workers::list).post(workers::add))
        .route(
            "/workers/{id}",
            get(workers::show).put(workers::replace).patch(workers::change).delete(workers::remove),
        )
        .route("/workers/{id}/drain", post(workers::drain).delete(workers::resume))
        .route(
            "/workers/{id}/override",
            post(workers::override_health).delete(workers::lift_override),
        )
        .route("/ha/health", get(ha::health))
        .route("/ha/status", get(ha::status))
        .route("/ha/drift", get(ha::drift))
        .route("/ha/workers", get(shared::workers))
        .route("/ha/workers/{id}", get(shared::worker))
        // The table of routes has its own bound for bodies.
        .route("/ha/explain", post(explain::explain).layer(DefaultBodyLimit::disable()))
        .route("/ha/policies", get(shared::policies))
        .route(
            "/ha/policies/{*model}",
            get(shared::policy).put(shared::set_policy).delete(shared::unset_policy),
        )
        .route("/ha/rate-limits", get(rate_limits::rules))
        .route(
            "/ha/rate-limits/{id}",
            get(rate_limits::rule).put(rate_limits::set_rule).delete(rate_limits::remove_rule),
        )
        .route("/ha/rate-limit", get(rate_limits::short).post(rate_limits::set_short))
        .route("/ha/rate-limit/stats", get(rate_limits::stats))
        .route("/ha/routers", get(ha::routers))
        .route("/ha/events", get(ha::events))
        .route("/ha/view", get(views::view))
        .route("/ha/views", get(views::views))
        .route("/ha/config", get(ha::config))
        .route("/ha/leader", get(leader::leader))
        .route("/ha/leader/transfer", post(leader::transfer))
        .route("/ha/leader/step-down", post(leader::step_down))
        .route("/ha/shutdown", post(ha::shutdown))
        .route("/ha/reload", post(ha::reload))
        .route("/ha/keys", get(keys::list).post(keys::install))
        .route("/ha/keys/{id}", put(keys::make_first).delete(keys::remove))
        .route("/ui", get(ui::page))
        .with_state(Arc::clone(&surface))
        .merge(public(surface))
}

/// The paths that are asked of every worker.
fn controls() -> Router<Arc<Surface>> {
    let paths: BTreeSet<&str> = ROUTES
        .iter()
        .filter(|route| route.serves == Serves::AllWorkers)
        .map(|route| route.path)
        .collect();
    // The table of routes has let only its own methods through.
    paths.into_iter().fold(Router::new(), |router, path| router.route(path, any(fanout::control)))
}

/// Probes, metrics and the API's description: what the further ports serve as well.
pub(super) fn public(surface: Arc<Surface>) -> Router {
    Router::new()
        .route("/liveness", get(async || "OK"))
        .route("/readiness", get(readiness))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.yaml", get(openapi))
        .with_state(surface)
}

/// What the further ports say to everything else.
pub(super) async fn nothing(uri: http::Uri) -> ApiError {
    ApiError::no_such_route(uri.path())
}

/// Whether load balancers should send requests here. Does not depend on any other router.
async fn readiness(State(surface): State<Arc<Surface>>) -> Response {
    let (ready, total) = surface.fleet.ready_and_total();
    let reason = if surface.lifecycle.is_draining() {
        Some("draining")
    } else if !surface.gate.is_ready() {
        Some("joining")
    } else if ready < surface.config.min_ready_workers {
        Some("insufficient healthy workers")
    } else {
        None
    };
    let status = if reason.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let mut document =
        json!({ "status": "ready", "healthy_workers": ready, "total_workers": total });
    if let Some(reason) = reason {
        document["status"] = "not ready".into();
        document["reason"] = reason.into();
    }
    (status, Json(document)).into_response()
}

/// That the process works, and who it is.
async fn health(State(surface): State<Arc<Surface>>) -> Json<Value> {
    let leadership = surface.mesh.leadership();
    Json(json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "node_name": surface.config.node_name,
        "ha_mode": leadership.ha_mode,
        "leader": leadership.leader,
        "quorum": leadership.quorum,
        "draining": surface.lifecycle.is_draining(),
    }))
}

async fn metrics(State(surface): State<Arc<Surface>>) -> Result<Response, ApiError> {
    let make = || {
        surface.fleet.show_metrics();
        TextEncoder::new().encode_to_string(&surface.registry.gather())
    };
    let text = surface.pages.page(surface.clock.mono(), make).map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "metrics_unavailable", error.to_string())
    })?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/yaml")], include_str!("openapi.yaml")).into_response()
}
