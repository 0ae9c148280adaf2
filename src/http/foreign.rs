//! Workers as other routers describe them: the fields that their tools write, read as ours, and those that their tools
//! read, beside ours.
//!
//! A field of theirs has its effect, says what is always so, or is refused with what to use instead. Nothing is taken
//! and forgotten.

use serde_json::{Map, Value, json};
use smg_routing::fleet::{Models, Worker, WorkerState};
use smg_types::spec::{NO_DISAGGREGATION, REGULAR_WORKER};

use super::documents::invalid;
use super::error::ApiError;

/// Engines that other routers tell apart. Here each that speaks HTTP is treated alike.
const RUNTIMES: [&str; 8] =
    ["unspecified", "sglang", "vllm", "trtllm", "mlx", "tokenspeed", "external", "openai"];

/// Fields of theirs that ask for something that is not done here, each with what to use instead. `null`, an empty text, an
/// empty list and an empty object ask for nothing.
const REFUSED: &[(&str, &str)] = &[
    ("bootstrap_port", NO_DISAGGREGATION),
    ("bootstrap_host", NO_DISAGGREGATION),
    ("kv_connector", NO_DISAGGREGATION),
    ("kv_role", NO_DISAGGREGATION),
    ("kv_block_size", "KV events of workers are not read"),
    ("dp_base_url", RANKS),
    ("dp_rank", RANKS),
    ("dp_size", RANKS),
    ("dp_aware", RANKS),
    ("provider", "requests and responses pass unchanged"),
    ("tokenizer_path", ENGINE),
    ("chat_template", ENGINE),
    ("reasoning_parser", ENGINE),
    ("tool_parser", ENGINE),
    ("http_pool", "set --connect-timeout-secs and --worker-keep-alive-secs for all workers"),
    ("resilience", "set --retry-* and --cb-* for all workers"),
    ("load_monitor_interval_secs", "load is the number of requests in flight"),
];

const RANKS: &str = "data-parallel ranks are not addressed: register each engine by its URL";
const ENGINE: &str = "the engine tokenizes and parses: give it to the engine";

/// Names of theirs for fields of `health`, at the top level and in `health` itself.
const HEALTH: &[(&str, &str)] = &[
    ("health_check_timeout_secs", "timeout_secs"),
    ("health_check_interval_secs", "interval_secs"),
    ("health_success_threshold", "success_threshold"),
    ("health_failure_threshold", "failure_threshold"),
    ("disable_health_check", "disabled"),
];

/// Reads their fields of a worker's description, whole or a patch, as ours.
pub(super) fn read_fields(description: &mut Value) -> Result<(), ApiError> {
    let Value::Object(fields) = description else { return Ok(()) };
    for (name, instead) in REFUSED {
        if let Some(value) = fields.remove(*name).filter(|value| !asks_for_nothing(value)) {
            return Err(refused(name, &value, instead));
        }
    }
    drop_if(fields, "runtime", |value| is_one_of(value, &RUNTIMES), RUNTIME)?;
    drop_if(fields, "runtime_type", |value| is_one_of(value, &RUNTIMES), RUNTIME)?;
    drop_if(
        fields,
        "connection_mode",
        |value| is_one_of(value, &["http"]),
        "workers are spoken to over HTTP",
    )?;
    drop_if(
        fields,
        "cost",
        |value| value.as_f64() == Some(1.0),
        "only 1 is accepted; weight shares traffic",
    )?;
    drop_if(
        fields,
        "max_connection_attempts",
        |value| value.as_u64() == Some(20),
        "only 20 is accepted; a worker is probed until it answers",
    )?;
    drop_if(fields, "worker_type", |value| is_one_of(value, &[REGULAR_WORKER]), NO_DISAGGREGATION)?;
    read_health(fields)?;
    read_models(fields)
}

const RUNTIME: &str = "it is no engine that is known to speak HTTP";

/// `value` is shortened, because a client may send any JSON.
fn refused(name: &'static str, value: &Value, instead: &str) -> ApiError {
    let shown: String = value.to_string().chars().take(64).collect();
    invalid(name, format!("{name} {shown} is refused: {instead}"))
}

fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.values().all(Value::is_null),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

fn is_one_of(value: &Value, known: &[&str]) -> bool {
    value.is_null()
        || value.as_str().is_some_and(|text| known.iter().any(|k| text.eq_ignore_ascii_case(k)))
}

/// Takes a field away that says what is always so.
fn drop_if(
    fields: &mut Map<String, Value>,
    name: &'static str,
    is_so: impl Fn(&Value) -> bool,
    instead: &str,
) -> Result<(), ApiError> {
    match fields.remove(name) {
        Some(value) if !value.is_null() && !is_so(&value) => Err(refused(name, &value, instead)),
        Some(_) | None => Ok(()),
    }
}

fn read_health(fields: &mut Map<String, Value>) -> Result<(), ApiError> {
    let mut read = Map::new();
    for (theirs, ours) in HEALTH {
        if let Some(value) = fields.remove(*theirs) {
            read.insert((*ours).to_owned(), value);
        }
    }
    if let Some(Value::Object(health)) = fields.get_mut("health") {
        for (theirs, ours) in
            [("check_interval_secs", "interval_secs"), ("disable_health_check", "disabled")]
        {
            if let Some(value) = health.remove(theirs) {
                read.insert(ours.to_owned(), value);
            }
        }
    }
    if read.is_empty() {
        return Ok(());
    }
    let Value::Object(health) = fields.entry("health").or_insert_with(|| json!({})) else {
        return Err(invalid("health", "health is not an object"));
    };
    for (name, value) in read {
        if health.get(&name).is_some_and(|there| *there != value) {
            return Err(invalid("health", format!("health.{name} is given twice")));
        }
        health.insert(name, value);
    }
    Ok(())
}

/// Models as objects with an `id`, and perhaps `aliases`.
fn read_models(fields: &mut Map<String, Value>) -> Result<(), ApiError> {
    let mut aliases = Vec::new();
    if let Some(Value::Array(models)) = fields.get_mut("models") {
        for model in models {
            let Value::Object(card) = model else { continue };
            let Some(id) = card.remove("id") else {
                return Err(invalid("models", "a model has no id"));
            };
            let others = card.remove("aliases").unwrap_or(Value::Null);
            if let Some((name, _)) = card.iter().find(|(_, value)| !asks_for_nothing(value)) {
                let message =
                    format!("{name} of model {id} is refused: the worker is asked for it");
                return Err(invalid("models", message));
            }
            if let Value::Array(others) = others {
                aliases.extend(others.into_iter().map(|alias| (alias, id.clone())));
            }
            *model = id;
        }
    }
    for (alias, id) in aliases {
        let Value::String(alias) = alias else {
            return Err(invalid("models", format!("alias {alias} is not a text")));
        };
        let Value::Object(known) = fields.entry("aliases").or_insert_with(|| json!({})) else {
            return Err(invalid("aliases", "aliases is not an object"));
        };
        known.insert(alias, id);
    }
    Ok(())
}

/// What their tools read of a worker at its top level.
pub(super) fn fields_of(worker: &Worker) -> Map<String, Value> {
    let state = worker.state();
    let model = match &worker.models {
        Models::Known(models) => models.first().map(|model| model.as_str()),
        Models::Unknown => worker.spec.models.first().map(|model| model.as_str()),
        Models::Any => None,
    };
    let fields = json!({
        "url": worker.spec.url,
        "model_id": model,
        "worker_type": REGULAR_WORKER,
        "connection_mode": "http",
        "priority": worker.spec.priority,
        "cost": 1.0,
        "labels": worker.spec.labels,
        "is_healthy": state == WorkerState::Ready,
        "status": state.name(),
        "disable_health_check": worker.spec.health.disabled,
    });
    match fields {
        Value::Object(fields) => fields,
        _ => unreachable!("it is written as an object"),
    }
}

/// The `stats` of a list of workers.
pub(super) fn stats(regular: usize) -> Value {
    json!({ "prefill_count": 0, "decode_count": 0, "regular_count": regular })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(description: Value) -> Result<Value, String> {
        let mut read = description;
        match read_fields(&mut read) {
            Ok(()) => Ok(read),
            Err(error) => Err(format!("{}: {}", error.param.unwrap_or("none"), error.message)),
        }
    }

    #[track_caller]
    fn check(theirs: Value, ours: Value) {
        assert_eq!(read(theirs), Ok(ours));
    }

    #[track_caller]
    fn check_refused(theirs: Value, param: &str, says: &str) {
        let error = read(theirs).unwrap_err();
        assert!(error.starts_with(&format!("{param}: ")) && error.contains(says), "{error}");
    }

    #[test]
    fn what_other_routers_write_is_read_as_ours() {
        check(
            json!({
                "url": "http://w", "model_id": "m", "worker_type": "regular", "runtime": "sglang",
                "connection_mode": "Http", "priority": 50, "cost": 1.0, "labels": { "a": "b" },
                "max_connection_attempts": 20, "bootstrap_port": null, "http_pool": {}
            }),
            json!({
                "url": "http://w", "model_id": "m", "priority": 50,
                "labels": { "a": "b" }
            }),
        );
        check(
            json!({
                "health_check_timeout_secs": 3, "health_check_interval_secs": 7,
                "health_success_threshold": 1, "health_failure_threshold": 2,
                "disable_health_check": true, "health": { "endpoint": "/h" }
            }),
            json!({ "health": {
                "endpoint": "/h", "timeout_secs": 3, "interval_secs": 7, "success_threshold": 1,
                "failure_threshold": 2, "disabled": true
            } }),
        );
        check(
            json!({ "health": { "check_interval_secs": 5, "disable_health_check": false } }),
            json!({ "health": { "interval_secs": 5, "disabled": false } }),
        );
        check(
            json!({ "models": [{ "id": "m", "aliases": ["a"] }, "n"] }),
            json!({ "models": ["m", "n"], "aliases": { "a": "m" } }),
        );
    }

    #[test]
    fn what_has_no_effect_here_is_refused() {
        for (name, instead) in REFUSED {
            check_refused(json!({ *name: 7 }), name, instead);
            check_refused(json!({ *name: { "x": 1 } }), name, instead);
            check(json!({ *name: null }), json!({}));
        }
        check_refused(json!({ "worker_type": "prefill" }), "worker_type", "\"prefill\" is refused");
        check_refused(
            json!({ "worker_type": "encode" }),
            "worker_type",
            "disaggregated prefill is not",
        );
        check_refused(json!({ "connection_mode": "grpc" }), "connection_mode", "over HTTP");
        check_refused(json!({ "runtime": "abacus" }), "runtime", "abacus");
        check_refused(json!({ "cost": 2 }), "cost", "weight");
        check_refused(json!({ "max_connection_attempts": 3 }), "max_connection_attempts", "probed");
        check_refused(
            json!({ "models": [{ "id": "m", "context_length": 4096 }] }),
            "models",
            "context_length",
        );
        check_refused(
            json!({ "disable_health_check": true, "health": { "disabled": false } }),
            "health",
            "given twice",
        );
    }
}
