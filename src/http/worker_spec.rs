//! A worker's spec as the API reads and shows it.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use smg_types::bounds::{PROBE_INTERVAL_SECONDS, PROBE_TIMEOUT_SECONDS};
use smg_types::ids::ModelId;
use smg_types::spec::{HealthSpec, Secret, Weight, WorkerSpec, WorkerTls, WorkerUrl};

use super::documents::{invalid, read, seconds};
use super::error::ApiError;
use super::foreign;

/// A worker's spec as the API speaks it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpecDocument {
    url: WorkerUrl,
    #[serde(default, alias = "model_ids")]
    models: Vec<ModelId>,
    #[serde(default, alias = "model", skip_serializing)]
    model_id: Option<ModelId>,
    #[serde(default)]
    aliases: BTreeMap<ModelId, ModelId>,
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
    tls: TlsDocument,
    #[serde(default)]
    health: HealthDocument,
    #[serde(default)]
    max_concurrent: Option<NonZeroU32>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsDocument {
    /// SHA-256 of the public key or the certificate; several are separated by semicolons.
    #[serde(default)]
    pin_sha256: Option<String>,
    #[serde(default)]
    insecure_skip_verify: bool,
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
    pub(super) fn of(spec: &WorkerSpec) -> Self {
        Self {
            url: spec.url.clone(),
            models: spec.models.clone(),
            model_id: None,
            aliases: spec.aliases.clone(),
            labels: spec.labels.clone(),
            region: spec.region.clone(),
            zone: spec.zone.clone(),
            priority: spec.priority,
            weight: spec.weight,
            api_key: None,
            api_key_env: None,
            api_key_file: None,
            tls: TlsDocument {
                pin_sha256: spec.tls.pins(),
                insecure_skip_verify: spec.tls.is_unchecked(),
            },
            health: HealthDocument {
                endpoint: spec.health.endpoint.clone(),
                interval_secs: spec.health.interval.map(|interval| interval.as_secs_f64()),
                timeout_secs: spec.health.timeout.map(|timeout| timeout.as_secs_f64()),
                failure_threshold: spec.health.failure_threshold,
                success_threshold: spec.health.success_threshold,
                disabled: spec.health.disabled,
            },
            max_concurrent: spec.max_concurrent,
        }
    }

    /// Reads a body, with the fields of other routers.
    pub(super) fn read(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields: Value = read(body)?;
        foreign::read_fields(&mut fields)?;
        for name in ["health", "tls"] {
            if let Some(Value::Object(part)) = fields.get_mut(name) {
                part.retain(|_, value| !value.is_null());
            }
        }
        serde_json::from_value(fields)
            .map_err(|error| ApiError::bad_request("invalid_json", error.to_string()))
    }

    /// `may_refer`: variables and files of the router's may be named, for an administrator has proven to be one.
    pub(super) fn into_spec(self, may_refer: bool) -> Result<WorkerSpec, ApiError> {
        let api_key = self.key(may_refer)?;
        self.url.check_path().map_err(|error| invalid("url", error))?;
        if let Some(policy) = self.labels.get("policy")
            && let Err(error) = policy.parse::<smg_routing::policy::Kind>()
        {
            return Err(invalid("labels", error));
        }
        let tls = WorkerTls::of(self.tls.pin_sha256.as_deref(), self.tls.insecure_skip_verify)
            .map_err(|why| invalid("tls", format!("tls: {why}")))?;
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
            labels: self.labels,
            region: self.region,
            zone: self.zone,
            priority: self.priority,
            weight: self.weight,
            api_key,
            tls,
            health: HealthSpec {
                endpoint: self.health.endpoint,
                interval,
                timeout,
                failure_threshold: self.health.failure_threshold,
                success_threshold: self.health.success_threshold,
                disabled: self.health.disabled,
            },
            max_concurrent: self.max_concurrent,
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
