//! What the prober reads of a worker besides its health: its models, its description of itself, and whether it sleeps.

use std::collections::HashSet;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::Value;
use smg_routing::fleet::{Cause, Discovered, ModelObjects, Models, Worker};
use smg_types::ids::ModelId;

use crate::upstream::{Client, SendError};

/// Largest response to a probe or read, in bytes.
pub(super) const MOST_BYTES: usize = 4 << 20;
/// Most models of one worker.
const MOST_MODELS: usize = 10_000;

/// What a worker answers to the question whether it sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sleep {
    /// The worker was not asked, or did not answer.
    Unknown,
    /// The engine can't sleep: it has no such route.
    NoRoute,
    Asleep,
    Awake,
}

/// Why a worker's models could not be read.
pub(super) enum LookError {
    /// The response is not a list of models.
    Answer { status: u16, cause: Cause },
    /// There was no response.
    Send(SendError),
}

impl From<SendError> for LookError {
    fn from(error: SendError) -> Self {
        Self::Send(error)
    }
}

/// Asks a worker whether its engine sleeps. vLLM has the route in its development mode; other engines can't sleep.
pub(super) async fn ask_sleep(client: &Client, worker: &Worker, timeout: Duration) -> Sleep {
    let key = worker.spec.api_key.as_ref();
    let asked = client.fetch(&*worker.spec, Method::GET, "/is_sleeping", key, timeout, MOST_BYTES);
    match asked.await {
        Ok((status, body)) => sleep_of(status, &body),
        Err(_) => Sleep::Unknown,
    }
}

fn sleep_of(status: StatusCode, body: &[u8]) -> Sleep {
    if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED {
        return Sleep::Unknown;
    }
    let document = status.is_success().then(|| serde_json::from_slice::<Value>(body).ok());
    match document.flatten().and_then(|document| document.get("is_sleeping")?.as_bool()) {
        Some(true) => Sleep::Asleep,
        Some(false) => Sleep::Awake,
        None => Sleep::NoRoute,
    }
}

/// Reads which models a worker serves. `again`: only the list of models is read, if the worker has one.
///
/// # Errors
/// If the worker does not answer, or not with a list of models.
pub(super) async fn look_at(
    client: &Client,
    worker: &Worker,
    timeout: Duration,
    again: bool,
) -> Result<Discovered, LookError> {
    let key = worker.spec.api_key.as_ref();
    let spec = &*worker.spec;
    let read = async |path| client.fetch(spec, Method::GET, path, key, timeout, MOST_BYTES).await;
    let (status, body) = read("/v1/models").await?;
    let mut info = None;
    let described = !(again && status == StatusCode::OK);
    for path in ["/get_server_info", "/get_model_info"].into_iter().filter(|_| described) {
        match read(path).await {
            Ok((StatusCode::OK, body)) => {
                if let Ok(Value::Object(found)) = serde_json::from_slice::<Value>(&body) {
                    info = Some(told(found));
                    break;
                }
            }
            Err(error) if !error.is_about_the_worker() => return Err(error.into()),
            Ok(_) | Err(_) => {}
        }
    }
    let mut objects = ModelObjects::default();
    let models = match status {
        StatusCode::OK => match listed(&body) {
            Some((models, described)) => {
                objects = described;
                Models::Known(models)
            }
            None => {
                let cause = Cause::NotAList;
                return Err(LookError::Answer { status: status.as_u16(), cause });
            }
        },
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            // There is no list: take SGLang's own name of the model, or else the worker accepts any model.
            let named = info.as_ref().and_then(|info| {
                ["served_model_name", "model_path", "model_id"]
                    .iter()
                    .find_map(|key| info.get(key)?.as_str())
            });
            named.map_or(Models::Any, |name| Models::Known(vec![ModelId::from(name)]))
        }
        _ => {
            let status = status.as_u16();
            let cause = Cause::of_status(status).unwrap_or(Cause::NotAList);
            return Err(LookError::Answer { status, cause });
        }
    };
    Ok(Discovered { models, objects, info })
}

/// The fields of an engine's information that are shown to everybody who may see workers. Engines also return their keys,
/// and figures that change all the time; those are dropped.
const TOLD: [&str; 12] = [
    "version",
    "model_path",
    "model_id",
    "served_model_name",
    "tokenizer_path",
    "is_generation",
    "context_length",
    "max_model_len",
    "max_total_num_tokens",
    "max_running_requests",
    "tp_size",
    "dp_size",
];

fn told(mut info: serde_json::Map<String, Value>) -> Value {
    info.retain(|name, value| {
        TOLD.contains(&name.as_str())
            && (value.is_string() || value.is_number() || value.is_boolean())
    });
    Value::Object(info)
}

/// The ids and objects of a list of models in OpenAI's shape; `None`: the document is no such list.
fn listed(body: &[u8]) -> Option<(Vec<ModelId>, ModelObjects)> {
    let mut document: Value = serde_json::from_slice(body).ok()?;
    let mut models = Vec::new();
    let mut known = HashSet::new();
    let mut objects = ModelObjects::default();
    let Value::Array(entries) = document.get_mut("data")?.take() else { return None };
    for entry in entries.into_iter().take(MOST_MODELS) {
        let Value::Object(object) = entry else { return None };
        let id = ModelId::from(object.get("id")?.as_str()?);
        if known.insert(id.clone()) {
            models.push(id.clone());
            objects.insert(id, object);
        }
    }
    Some((models, objects))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_document_that_says_so_makes_a_worker_sleep() {
        let sleep =
            |status, body: &str| sleep_of(StatusCode::from_u16(status).unwrap(), body.as_bytes());
        assert_eq!(sleep(200, r#"{"is_sleeping": true}"#), Sleep::Asleep);
        assert_eq!(sleep(200, r#"{"is_sleeping": false}"#), Sleep::Awake);
        for (status, body) in
            [(404, ""), (405, ""), (401, ""), (501, ""), (200, "{}"), (200, "<html>")]
        {
            assert_eq!(sleep(status, body), Sleep::NoRoute, "{status} {body}");
        }
        assert_eq!(sleep(503, ""), Sleep::Unknown);
    }

    #[test]
    fn an_engines_keys_are_not_kept() {
        let info = serde_json::json!({"version": "1", "api_key": "k", "admin_api_key": "a", "tp_size": 2, "model_path": {}});
        let Value::Object(info) = info else { unreachable!() };
        assert_eq!(told(info), serde_json::json!({"version": "1", "tp_size": 2}));
    }

    #[test]
    fn a_list_of_models_is_read_and_nothing_else() {
        let ids = |text: &str| {
            listed(text.as_bytes()).map(|(models, _)| {
                models.iter().map(|model| model.as_str().to_owned()).collect::<Vec<_>>()
            })
        };
        let list = r#"{"object":"list","data":[{"id":"a","x":1},{"id":"b"},{"id":"a"}]}"#;
        assert_eq!(ids(list), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(ids(r#"{"data":[]}"#), Some(Vec::new()));
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"data":{}}"#,
            r#"{"data":[{"name":"a"}]}"#,
            r#"{"data":[{"id":1}]}"#,
        ] {
            assert_eq!(ids(wrong), None, "{wrong}");
        }
    }
}
