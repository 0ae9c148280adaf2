//! `/ha/keys`: changes the keys that routers share, on all of them while they run.
//!
//! A rotation installs the new key, uses it, and removes the old one. Each step lists the routers that have applied it,
//! and can be repeated. A key is never shown, only its id.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use smg_mesh::{Handle, KeyChange, KeyId, KeysError, Mode, RingError, SharedKey};

use super::Surface;
use super::error::ApiError;

type Answer = Result<(StatusCode, Json<Value>), ApiError>;

fn mesh(surface: &Surface) -> Result<&Handle, ApiError> {
    if surface.mesh.is_networked() {
        return Ok(&surface.mesh);
    }
    Err(ApiError::new(
        StatusCode::CONFLICT,
        "mesh_disabled",
        "this router is alone: it was started without --enable-mesh",
    ))
}

/// The keys of this router, by id.
pub(super) async fn list(State(surface): State<Arc<Surface>>) -> Result<Json<Value>, ApiError> {
    let (mode, ids) = mesh(&surface)?.keys();
    let mode = match mode {
        Mode::Off => "off",
        Mode::Permissive => "permissive",
        Mode::Required => "required",
    };
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    Ok(Json(json!({ "mode": mode, "in_use": ids.first(), "keys": ids })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Install {
    key: String,
}

/// Adds a key for decryption on all routers.
pub(super) async fn install(State(surface): State<Arc<Surface>>, body: Bytes) -> Answer {
    // The parser's error would show the key.
    let Install { key } = serde_json::from_slice(&body).map_err(|_| {
        ApiError::bad_request("invalid_body", "the body is not {\"key\": \"32 bytes in base64\"}")
    })?;
    let key: SharedKey = key
        .parse()
        .map_err(|error| ApiError::bad_request("invalid_key", format!("the key {error}")))?;
    let id = key.id();
    change(&surface, KeyChange::Install(key), id).await
}

/// Makes a key the encrypting one on all routers.
pub(super) async fn make_first(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
) -> Answer {
    let id = parse(&id)?;
    change(&surface, KeyChange::Use(id), id).await
}

/// Removes a key on all routers.
pub(super) async fn remove(State(surface): State<Arc<Surface>>, Path(id): Path<String>) -> Answer {
    let id = parse(&id)?;
    change(&surface, KeyChange::Remove(id), id).await
}

fn parse(id: &str) -> Result<KeyId, ApiError> {
    let is_id = id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit());
    is_id.then(|| u64::from_str_radix(id, 16).ok()).flatten().map(KeyId).ok_or_else(|| {
        ApiError::bad_request("invalid_key_id", "a key's id is 16 hexadecimal digits")
    })
}

/// 200 if all present routers have applied the change, 206 if some have not.
async fn change(surface: &Surface, change: KeyChange, id: KeyId) -> Answer {
    let receipts = mesh(surface)?.change_keys(change).await.map_err(|error| {
        let (status, code) = match error {
            KeysError::Off => (StatusCode::CONFLICT, "encryption_off"),
            KeysError::NoSecret => (StatusCode::CONFLICT, "no_secret_channel"),
            KeysError::Ring(RingError::Unknown(_)) => (StatusCode::NOT_FOUND, "key_not_found"),
            KeysError::Ring(RingError::InUse(_)) => (StatusCode::CONFLICT, "key_in_use"),
            KeysError::Ring(RingError::Full) => (StatusCode::CONFLICT, "too_many_keys"),
        };
        ApiError::new(status, code, error.to_string())
    })?;
    let complete = receipts.values().all(Result::is_ok);
    let nodes: BTreeMap<_, _> = receipts
        .into_iter()
        .map(|(name, answer)| {
            let shown = match answer {
                Ok(ids) => {
                    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
                    json!({ "ok": true, "keys": ids })
                }
                Err(error) => json!({ "ok": false, "error": error }),
            };
            (name, shown)
        })
        .collect();
    let status = if complete { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
    Ok((status, Json(json!({ "id": id.to_string(), "complete": complete, "nodes": nodes }))))
}
