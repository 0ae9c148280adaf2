//! The models of all workers, as `/v1/models` shows them.
//!
//! A model is shown by the objects of the workers that list it, merged field by field, because clients read what engines
//! say there (`max_model_len`, `root`, `parent`, `meta`). Where workers differ, a number is the least of theirs: what a client
//! may rely on whichever worker gets its request, and for `created` the earliest. Any other value is that of the worker with
//! the lowest id that has one. Objects within objects are merged in the same way. A text that contains a worker's URL, or the
//! worker's own host and port, is left out.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use http::uri::Authority;
use serde_json::{Map, Value, json};
use smg_proxy::dispatch::{self, DispatchError};
use smg_routing::fleet::{Model, Models, Snapshot};
use smg_types::ids::ModelId;
use smg_types::spec::WorkerUrl;

use super::Surface;
use super::error::ApiError;

/// `GET /v1/models`: the models that workers list, aliases apart.
pub(super) async fn list(State(surface): State<Arc<Surface>>) -> Json<Value> {
    let snapshot = surface.fleet.snapshot();
    let listed: BTreeMap<&ModelId, &Model> = snapshot.models().collect();
    let data: Vec<Value> =
        listed.into_iter().filter_map(|(id, model)| object(&snapshot, id, model)).collect();
    Json(json!({ "object": "list", "data": data }))
}

/// `GET /v1/models/{model}`. An unknown name makes the router read the workers' models again.
pub(super) async fn show(
    State(surface): State<Arc<Surface>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let id = ModelId::new(name);
    let shown = |snapshot: &Snapshot| object(snapshot, &id, snapshot.model(id.as_str())?);
    if let Some(object) = shown(&surface.fleet.snapshot()) {
        return Ok(Json(object));
    }
    dispatch::discover(&surface.fleet, surface.clock, id.as_str()).await;
    if let Some(object) = shown(&surface.fleet.snapshot()) {
        return Ok(Json(object));
    }
    Err(if surface.fleet.has_departed(id.as_str(), surface.clock.now()) {
        ApiError::from(DispatchError::ModelDeparted).about_model(Some(id.as_str()))
    } else {
        ApiError::no_such_model(id.as_str())
    })
}

/// The merged object of a model; `None`: no worker lists a model of this name, so it is an alias.
fn object(snapshot: &Snapshot, id: &ModelId, model: &Model) -> Option<Value> {
    let mut merged: Option<Map<String, Value>> = None;
    for member in &model.members {
        let worker = &member.worker;
        let lists = matches!(&worker.models, Models::Known(own) if own.contains(id));
        if member.renamed.is_some() || !lists {
            continue;
        }
        let into = merged.get_or_insert_default();
        if let Some(object) = worker.model_objects().of(id) {
            let mut object = object.clone();
            let own = &worker.spec.url;
            hide_workers(&mut object, &|text| names_worker(text, own, snapshot));
            merge(into, object);
        }
    }
    let mut object = merged?;
    object.insert("id".to_owned(), json!(id));
    for (name, value) in
        [("object", json!("model")), ("created", json!(0)), ("owned_by", json!("smg"))]
    {
        let field = object.entry(name).or_insert(Value::Null);
        if field.is_null() {
            *field = value;
        }
    }
    Some(Value::Object(object))
}

/// Adds what `other` says to `into`.
fn merge(into: &mut Map<String, Value>, other: Map<String, Value>) {
    for (name, value) in other {
        match (into.get_mut(&name), value) {
            (None, value) => drop(into.insert(name, value)),
            (Some(known @ Value::Null), value) => *known = value,
            (Some(Value::Object(known)), Value::Object(value)) => merge(known, value),
            (Some(Value::Number(known)), Value::Number(value)) => {
                if is_less(&value, known) {
                    *known = value;
                }
            }
            (Some(_), _) => {}
        }
    }
}

fn is_less(one: &serde_json::Number, other: &serde_json::Number) -> bool {
    match (one.as_i64(), other.as_i64()) {
        (Some(one), Some(other)) => one < other,
        _ => one.as_f64() < other.as_f64(),
    }
}

/// Removes every field and element that is, or contains as a name of a field, a text for which `names_worker` holds.
fn hide_workers(object: &mut Map<String, Value>, names_worker: &impl Fn(&str) -> bool) {
    object.retain(|name, value| !names_worker(name) && stays(value, names_worker));
}

fn stays(value: &mut Value, names_worker: &impl Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => return !names_worker(text),
        Value::Array(elements) => elements.retain_mut(|element| stays(element, names_worker)),
        Value::Object(object) => hide_workers(object, names_worker),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    true
}

/// Whether a text contains the host and port of the worker `own`, or a URL of any worker.
fn names_worker(text: &str, own: &WorkerUrl, snapshot: &Snapshot) -> bool {
    let text = text.to_ascii_lowercase();
    if text.contains(own.authority()) {
        return true;
    }
    let mut pieces = text.split("://");
    let Some(mut before) = pieces.next() else { return false };
    pieces.any(|piece| {
        let default = if before.ends_with("https") { 443 } else { 80 };
        before = piece;
        let end = piece.find(|c: char| !c.is_ascii_alphanumeric() && !".-_:[]@%".contains(c));
        let authority = piece[..end.unwrap_or(piece.len())].trim_end_matches(['.', ':']);
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        let (host, port) = (authority.host(), authority.port_u16().unwrap_or(default));
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_named = |url: &WorkerUrl| url.host() == host && url.port() == port;
        snapshot.workers().iter().any(|worker| is_named(&worker.spec.url))
    })
}

#[cfg(test)]
mod tests {
    use smg_routing::fleet::{Config, Discovered, Fleet, Metrics, ModelObjects};
    use smg_types::spec::WorkerSpec;

    use super::*;

    /// What is shown of the model `m`, which one worker after the other describes.
    fn shown(described: &[Value]) -> Value {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let fleet = Fleet::new(Config::default(), metrics);
        let mut urls: Vec<WorkerUrl> = (0..described.len())
            .map(|number| format!("http://gpu-{number}:8000").parse().unwrap())
            .collect();
        urls.sort_by_key(WorkerUrl::id);
        for (url, object) in urls.into_iter().zip(described) {
            let id = fleet.register(WorkerSpec::new(url)).unwrap();
            let mut objects = ModelObjects::default();
            objects.insert("m".into(), object.as_object().unwrap().clone());
            let models = Models::Known(vec!["m".into()]);
            fleet.report_discovered(id, Discovered { models, objects, info: None });
        }
        let snapshot = fleet.snapshot();
        object(&snapshot, &"m".into(), snapshot.model("m").unwrap()).unwrap()
    }

    #[test]
    fn objects_are_merged_field_by_field() {
        let a = json!({ "id": "m", "created": 9, "owned_by": "vllm", "max_model_len": 8192, "root": "/a", "parent": null });
        let b = json!({ "id": "m", "created": 5, "owned_by": "x", "max_model_len": 4096, "root": "/b", "parent": "base",
            "meta": { "n_ctx": 4096.5, "tags": ["b"] } });
        let c = json!({ "id": "m", "max_model_len": null, "meta": { "n_ctx": 4096, "n_vocab": 7, "tags": ["c"] }, "new": true });
        let expected = json!({ "id": "m", "object": "model", "created": 5, "owned_by": "vllm", "max_model_len": 4096,
            "root": "/a", "parent": "base", "meta": { "n_ctx": 4096, "n_vocab": 7, "tags": ["b"] }, "new": true });
        assert_eq!(shown(&[a, b, c]), expected);
    }

    #[test]
    fn a_bare_object_gets_what_clients_need() {
        let expected = json!({ "id": "m", "object": "model", "created": 0, "owned_by": "smg" });
        assert_eq!(shown(&[json!({ "id": "m" })]), expected);
        assert_eq!(shown(&[json!({ "id": "m", "object": null, "created": null })]), expected);
    }

    #[test]
    fn no_url_of_a_worker_is_shown() {
        let own = json!({ "id": "m", "docs": "https://docs.test/gpu-0", "root": "gpu-0/m", "a": "see http://GPU-0:8000/x.",
            "b": ["gpu-0:8000", "kept"], "c": { "d": "http://user:x@gpu-0:8000", "http://gpu-0:8000": 1, "kept": 1 } });
        let expected = json!({ "id": "m", "object": "model", "created": 0, "owned_by": "smg", "docs": "https://docs.test/gpu-0",
            "root": "gpu-0/m", "b": ["kept"], "c": { "kept": 1 } });
        assert_eq!(shown(&[own]), expected);
        let of_others = json!({ "id": "m", "e": "http://gpu-0:8000/x and http://gpu-1:8000/x", "f": "http://gpu-1/x" });
        let seen = shown(&[of_others, json!({ "id": "m" })]);
        assert_eq!((&seen["e"], &seen["f"]), (&Value::Null, &json!("http://gpu-1/x")));
    }
}
