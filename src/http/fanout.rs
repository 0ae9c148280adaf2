//! Requests that go to all workers: their loads, flushing their caches, changes of an engine, a stored
//! response.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{Method, StatusCode, Uri, header};
use serde_json::{Value, json};
use smg_proxy::dispatch::DispatchError;
use smg_proxy::upstream::Question;
use smg_routing::fleet::Worker;
use tokio::task::JoinSet;

use super::Surface;
use super::error::ApiError;

/// How long one worker may take to answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer of a worker, in bytes.
const MOST_BYTES: usize = 16 << 20;
/// How long one worker may take for a change, such as loading an adapter or weights.
const PATIENCE: Duration = Duration::from_secs(120);
/// The most workers that are asked at the same time.
const AT_ONCE: usize = 32;

/// A worker with its answer, or why there is none.
type Answer = (Arc<Worker>, Result<Bytes, String>);

/// Asks every worker for the first of `paths` that it has. Returns the answers in the order of the workers.
async fn ask_all(
    surface: &Arc<Surface>,
    method: Method,
    paths: &'static [&'static str],
) -> Vec<Answer> {
    each_worker(surface, |surface, worker| ask(surface, worker, method.clone(), paths)).await
}

/// Runs `ask` for every worker, a bounded number at the same time. Returns the answers in the order of the workers.
pub(super) async fn each_worker<T: Send + 'static, F>(
    surface: &Arc<Surface>,
    ask: impl Fn(Arc<Surface>, Arc<Worker>) -> F,
) -> Vec<(Arc<Worker>, T)>
where
    F: Future<Output = (Arc<Worker>, T)> + Send + 'static,
{
    let mut workers = surface.fleet.snapshot().workers().to_vec().into_iter();
    let mut asking = JoinSet::new();
    let mut answers = Vec::new();
    loop {
        while asking.len() < AT_ONCE
            && let Some(worker) = workers.next()
        {
            asking.spawn(ask(Arc::clone(surface), worker));
        }
        match asking.join_next().await {
            None => break,
            Some(Ok(answer)) => answers.push(answer),
            Some(Err(_panicked)) => {}
        }
    }
    answers.sort_by_key(|(worker, _)| worker.id);
    answers
}

async fn ask(
    surface: Arc<Surface>,
    worker: Arc<Worker>,
    method: Method,
    paths: &'static [&'static str],
) -> Answer {
    let mut answer = Err("no answer".to_owned());
    for path in paths {
        let key = worker.spec.api_key.as_ref();
        answer = match surface
            .control
            .fetch(&*worker.spec, method.clone(), path, key, TIMEOUT, MOST_BYTES)
            .await
        {
            Ok((status, body)) if status.is_success() => return (worker, Ok(body)),
            Ok((status, _)) => Err(format!("status {}", status.as_u16())),
            Err(error) => Err(error.to_string()),
        };
    }
    (worker, answer)
}

/// Answers `POST /flush_cache`: 200 if all workers flushed, 206 if some did, 502 if none did.
pub(super) async fn flush_cache(State(surface): State<Arc<Surface>>) -> Response {
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for (worker, answer) in ask_all(&surface, Method::POST, &["/flush_cache"]).await {
        match answer {
            Ok(_) => {
                surface.fleet.mark_cold(worker.id);
                done.push(json!({ "id": worker.id }));
            }
            Err(error) => failed.push(json!({ "id": worker.id, "error": error })),
        }
    }
    let status = status_of(&done, &failed);
    (status, Json(json!({ "flushed": done, "failed": failed }))).into_response()
}

/// Forwards a request that changes an engine or shows its internals to every worker. 200 if all succeeded, 206 if some
/// did, 502 if none did; the body lists each worker's answer.
pub(super) async fn control(
    State(surface): State<Arc<Surface>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for (worker, answer) in ask_each(&surface, &method, &uri, &body).await {
        let mut entry = json!({ "id": worker.id, "url": worker.spec.url.to_string() });
        match answer {
            Ok((status, text)) => {
                entry["status"] = status.as_u16().into();
                entry["answer"] = serde_json::from_slice(&text)
                    .unwrap_or_else(|_no_json| String::from_utf8_lossy(&text).into());
                if status.is_success() { &mut done } else { &mut failed }.push(entry);
            }
            Err(error) => {
                entry["error"] = error.into();
                failed.push(entry);
            }
        }
    }
    if ["/sleep", "/wake_up"].contains(&uri.path()) {
        // The next probe asks whether the engine sleeps.
        surface.fleet.load().workers().iter().for_each(|worker| worker.request_probe());
    }
    (status_of(&done, &failed), Json(json!({ "done": done, "failed": failed }))).into_response()
}

/// Answers `GET`, `DELETE` and cancel of a stored response with the answer of the worker that has it.
pub(super) async fn response(
    State(surface): State<Arc<Surface>>,
    Path(id): Path<String>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Result<Response, ApiError> {
    if !is_plain_id(&id) {
        return Err(ApiError::no_such_response(&id));
    }
    let answers = ask_each(&surface, &method, &uri, &body).await;
    let unreachable = answers.iter().any(|(_, answer)| answer.is_err());
    let found = answers.into_iter().find_map(|(_, answer)| {
        let (status, body) = answer.ok()?;
        // Engines without this path answer 404 or 405, and those without the response 404.
        (!matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED))
            .then_some((status, body))
    });
    match found {
        Some((status, body)) => {
            Ok((status, [(header::CONTENT_TYPE, "application/json")], body).into_response())
        }
        None if unreachable => Err(ApiError::from(DispatchError::NoneAvailable)),
        None => Err(ApiError::no_such_response(&id)),
    }
}

/// Whether an id, decoded, is one segment of a path and nothing else, however a worker or a proxy in front of it reads the
/// path. Otherwise an id such as `..%2f..%2fflush_cache` would lead to a path that is closed to clients.
fn is_plain_id(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"/\\;?#%".contains(&byte);
    !matches!(id, "." | "..") && id.bytes().all(is_plain)
}

type Each = (Arc<Worker>, Result<(StatusCode, Bytes), String>);

/// Sends the same request to every worker. Returns the answers in the order of the workers.
async fn ask_each(surface: &Arc<Surface>, method: &Method, uri: &Uri, body: &Bytes) -> Vec<Each> {
    let path = uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string);
    each_worker(surface, |surface, worker| {
        let (method, path, body) = (method.clone(), path.clone(), body.clone());
        async move {
            let key = worker.spec.api_key.as_ref();
            let question = Question { method, path: &path, key, body };
            let asked = surface.control.ask(&*worker.spec, question, PATIENCE, MOST_BYTES);
            let answer = asked.await.map_err(|error| error.to_string());
            (worker, answer)
        }
    })
    .await
}

fn status_of(done: &[Value], failed: &[Value]) -> StatusCode {
    match (done.is_empty(), failed.is_empty()) {
        (_, true) => StatusCode::OK,
        (false, false) => StatusCode::PARTIAL_CONTENT,
        (true, false) => StatusCode::BAD_GATEWAY,
    }
}

/// Answers `GET /get_loads`: the requests that this router has in flight, and the loads that the workers report.
pub(super) async fn loads(State(surface): State<Arc<Surface>>) -> Json<Value> {
    let answers = ask_all(&surface, Method::GET, &["/get_loads", "/get_load"]).await;
    let workers: Vec<Value> = answers
        .iter()
        .map(|(worker, _)| json!({ "worker": worker.spec.url, "load": worker.load() }))
        .collect();
    let loads: Vec<Value> = answers
        .into_iter()
        .map(|(worker, answer)| {
            let reported = answer.ok().and_then(|body| serde_json::from_slice::<Value>(&body).ok());
            json!({ "id": worker.id, "in_flight": worker.in_flight(), "reported": reported })
        })
        .collect();
    Json(json!({ "loads": loads, "workers": workers }))
}
