//! The JSON documents of the admin routes: how they are parsed, and the errors of their fields.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Value, json};
use smg_types::bounds;

use super::error::ApiError;

/// The error for an invalid field of a document about a worker.
pub(super) fn invalid(param: &'static str, message: impl std::fmt::Display) -> ApiError {
    ApiError { param: Some(param), ..ApiError::bad_request("invalid_worker", message.to_string()) }
}

/// Parses a JSON document of the admin routes.
pub(super) fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request("invalid_json", error.to_string()))
}

/// A time in seconds. It is checked before it becomes a [`Duration`], which can't be negative.
pub(super) fn seconds(
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

/// Merges `patch` into `target`; null removes a member (RFC 7396, section 2).
pub(super) fn merge(target: &mut Value, patch: &Value) {
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
