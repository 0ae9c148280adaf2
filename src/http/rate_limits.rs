//! The rules of the limits for administrators: `/ha/rate-limits`, the short form `/ha/rate-limit`, and what is counted.

use std::cmp::Reverse;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use smg_limits::cell::Cell;
use smg_limits::explain::explain;
use smg_limits::rule::{Meter, Rule, RuleDocument};
use smg_types::now::Now;

use super::Surface;
use super::documents::read;
use super::error::ApiError;
use super::wait::WaitQuery;

/// The id of the rule that the short form sets.
const SHORT: &str = "limit_per_second";

/// The most subjects of one limit that are shown, those with the highest use first.
const MOST_SUBJECTS: usize = 100;

/// Answers `GET /ha/rate-limits`: the rules with what they promise, and the routers among which limits are divided.
pub(super) async fn rules(State(surface): State<Arc<Surface>>) -> Json<Value> {
    let limiter = surface.admin.limits().limiter();
    let rules: Vec<Value> = limiter
        .rules()
        .iter()
        .map(|(rule, admitted, rejected)| rule_document(&surface, rule, *admitted, *rejected))
        .collect();
    Json(json!({
        "node_name": surface.config.node_name,
        "divided_among": surface.admin.limits().division(),
        "rules": rules,
        "total": rules.len(),
    }))
}

fn rule_document(surface: &Surface, rule: &Rule, admitted: u64, rejected: u64) -> Value {
    let size = surface.admin.limits().size();
    let mut document = json!(rule.document());
    document["promises"] = json!(explain(rule, size));
    document["admitted_total"] = admitted.into();
    document["rejected_total"] = rejected.into();
    document
}

fn current_document(surface: &Surface, id: &str) -> Option<Value> {
    let rules = surface.admin.limits().limiter().rules();
    let (rule, admitted, rejected) = rules.iter().find(|(rule, ..)| rule.id == id)?;
    Some(rule_document(surface, rule, *admitted, *rejected))
}

/// Answers `GET /ha/rate-limits/{id}`.
pub(super) async fn rule(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    current_document(&surface, &id).map(Json).ok_or_else(|| ApiError::no_such_rule(&id))
}

/// Answers `PUT /ha/rate-limits/{id}`: sets a rule on all routers.
pub(super) async fn set_rule(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
    Query(wait): Query<WaitQuery>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let mut document: RuleDocument =
        read(&body).map_err(|error| ApiError { code: "invalid_rule", ..error })?;
    if !document.id.is_empty() && document.id != id {
        let message = format!("id: {:?} is not the id in the path, {id:?}", document.id);
        return Err(ApiError {
            param: Some("id"),
            ..ApiError::bad_request("invalid_rule", message)
        });
    }
    document.id = id;
    write_rule(&surface, document, &wait, None).await
}

/// Answers `DELETE /ha/rate-limits/{id}`: removes a rule on all routers.
pub(super) async fn remove_rule(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
    Query(wait): Query<WaitQuery>,
) -> Result<Response, ApiError> {
    let wait = wait.read()?;
    let written = surface.admin.remove_rule(&id).await?;
    tracing::info!(rule = %id, "limit removed");
    Ok(wait.answer(StatusCode::OK, written, || json!({ "id": id, "removed": true })).await)
}

/// The body of `POST /ha/rate-limit`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Short {
    limit_per_second: u64,
}

/// Answers `POST /ha/rate-limit`: limits all requests of the cluster per second; 0 removes the limit.
pub(super) async fn set_short(
    State(surface): State<Arc<Surface>>,
    Query(wait): Query<WaitQuery>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let Short { limit_per_second } =
        read(&body).map_err(|error| ApiError { code: "invalid_rule", ..error })?;
    if limit_per_second == 0 {
        let wait = wait.read()?;
        let written = match current_document(&surface, SHORT) {
            Some(_) => surface.admin.remove_rule(SHORT).await?,
            None => surface.admin.unchanged(),
        };
        tracing::info!(rule = SHORT, "limit removed");
        return Ok(wait.answer(StatusCode::OK, written, || short_document(&surface)).await);
    }
    let document = json!({ "id": SHORT, "requests": limit_per_second, "window": "1s" });
    let document = serde_json::from_value(document)
        .map_err(|error| ApiError::bad_request("invalid_rule", error.to_string()))?;
    write_rule(&surface, document, &wait, Some("limit_per_second")).await
}

async fn write_rule(
    surface: &Surface,
    document: RuleDocument,
    wait: &WaitQuery,
    short: Option<&'static str>,
) -> Result<Response, ApiError> {
    let wait = wait.read()?;
    let rule = Rule::new(document).map_err(|error| ApiError {
        param: Some(short.unwrap_or(error.field)),
        ..ApiError::bad_request("invalid_rule", error.to_string())
    })?;
    let written = surface.admin.set_rule(&rule).await?;
    tracing::info!(rule = %rule.id, "limit set");
    let answer = || match short {
        Some(_) => short_document(surface),
        None => current_document(surface, &rule.id).unwrap_or_else(|| json!(rule.document())),
    };
    Ok(wait.answer(StatusCode::OK, written, answer).await)
}

/// Answers `GET /ha/rate-limit`: the limit per second that the short form has set. `remaining` is −1 without one.
pub(super) async fn short(State(surface): State<Arc<Surface>>) -> Json<Value> {
    Json(short_document(&surface))
}

fn short_document(surface: &Surface) -> Value {
    let limiter = surface.admin.limits().limiter();
    let rules = limiter.rules();
    let Some(meter) =
        rules.iter().find(|(rule, ..)| rule.id == SHORT).and_then(|(rule, ..)| rule.meters.first())
    else {
        return json!({ "limit_per_second": 0, "remaining": -1 });
    };
    let start_ms = |cell: &Cell| cell.key(limiter.cluster_ms(surface.clock.now())).start_ms;
    let window = limiter.cells_of(meter.id).first().and_then(|cell| cell.window(start_ms(cell)));
    let used = window.map_or(0, |window| window.used().saturating_add(window.others));
    json!({ "limit_per_second": meter.limit, "remaining": meter.limit.saturating_sub(used) })
}

/// Answers `GET /ha/rate-limit/stats`: what is counted in the present windows, and the rights of this router.
pub(super) async fn stats(State(surface): State<Arc<Surface>>) -> Json<Value> {
    let limits = surface.admin.limits();
    let limiter = limits.limiter();
    let now = surface.clock.now();
    let rules: Vec<Value> = limiter
        .rules()
        .iter()
        .map(|(rule, admitted, rejected)| {
            let limits: Vec<Value> =
                rule.meters.iter().map(|meter| meter_document(&surface, meter, now)).collect();
            json!({
                "id": rule.id,
                "admitted_total": admitted,
                "rejected_total": rejected,
                "limits": limits,
            })
        })
        .collect();
    let (hot, windows) = limits.exchanged();
    Json(json!({
        "node_name": surface.config.node_name,
        "divided_among": limits.division(),
        "subjects": limiter.subjects(),
        "exchanged_subjects": hot,
        "exchanged_windows": windows,
        "rules": rules,
    }))
}

/// One limit, with the subjects that have used most of it as far as this router knows.
fn meter_document(surface: &Surface, meter: &Meter, now: Now) -> Value {
    let limiter = surface.admin.limits().limiter();
    let cluster_ms = limiter.cluster_ms(now);
    let used = |cell: &Cell| {
        let window = cell.window(cell.key(cluster_ms).start_ms);
        window.map_or(0, |window| window.used().saturating_add(window.others))
    };
    let cells = limiter.cells_of(meter.id).into_iter();
    let mut cells: Vec<_> = cells.map(|cell| (used(&cell), cell)).collect();
    cells.sort_by_key(|(used, _)| Reverse(*used));
    let overshoot = cells.first().map_or(0, |(used, _)| used.saturating_sub(meter.limit));
    let shown = cells.iter().take(MOST_SUBJECTS);
    let subjects: Vec<Value> =
        shown.map(|(_, cell)| subject_document(surface, cell, now)).collect();
    json!({
        "kind": meter.kind,
        "limit": meter.limit,
        "window_ms": meter.window_ms,
        "mode": meter.mode,
        "overshoot": overshoot,
        "subject_count": cells.len(),
        "subjects": subjects,
    })
}

/// The counts of a subject in the present window, with the sum of all routers.
fn subject_document(surface: &Surface, cell: &Cell, now: Now) -> Value {
    let limits = surface.admin.limits();
    let limiter = limits.limiter();
    let key = cell.key(limiter.cluster_ms(now));
    let window = cell.window(key.start_ms);
    let (used, lent, granted) =
        window.as_ref().map_or((0, 0, 0), |window| (window.used(), window.lent, window.granted));
    let elsewhere = limits.used_elsewhere(&key);
    let total = used + elsewhere.values().sum::<u64>();
    json!({
        "subject": cell.label(),
        "window_start_ms": key.start_ms,
        "used": total,
        "used_here": used,
        "used_elsewhere": elsewhere,
        "rights_here": limiter.rights(cell, now),
        "lent": lent,
        "granted": granted,
    })
}
