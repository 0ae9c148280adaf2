//! Routes that show a worker's own state: for routers (models, loads, metrics, health) and for tests (counts, the last
//! request, faults).

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::body::Body;
use crate::config::MAX_MODEL_TOKENS;
use crate::engine::pause;
use crate::receive::collect;
use crate::reply::{error, json_response, scripted};
use crate::route::{About, Mock};
use crate::script::Faults;
use crate::worker::{Last, Worker};

/// Answers `/health`, as the faults require.
pub(super) async fn health(worker: &Worker) -> Response<Body> {
    worker.count_probe();
    let health = worker.faults().health;
    pause(health.delay()).await;
    match health.status {
        Some(status) => scripted(status, None),
        None => Response::new(Body::full(Bytes::new())),
    }
}

/// Answers a router's questions about the worker.
pub(super) fn about(worker: &Worker, about: About) -> Response<Body> {
    let stats = worker.stats();
    let queued = stats.in_flight.saturating_sub(stats.running);
    let models: Vec<&str> = worker.models().collect();
    match about {
        About::Models => {
            let created = worker.seconds();
            let data: Vec<Value> = models
                .iter()
                .map(|id| {
                    json!({
                        "id": id, "object": "model", "created": created, "owned_by": "mock",
                        "root": id, "max_model_len": MAX_MODEL_TOKENS,
                    })
                })
                .collect();
            json_response(json!({ "object": "list", "data": data }).to_string())
        }
        About::ModelInfo => json_response(
            json!({
                "model_path": models[0], "tokenizer_path": models[0], "served_model_name": models[0],
                "is_generation": true, "has_image_understanding": false, "has_audio_understanding": true,
            })
            .to_string(),
        ),
        About::ServerInfo => json_response(
            json!({
                "model_path": models[0], "served_model_name": models[0], "version": env!("CARGO_PKG_VERSION"),
                "disaggregation_mode": "null", "dp_size": 1, "tp_size": 1, "max_req_input_len": MAX_MODEL_TOKENS,
                "max_running_requests": worker.slots(), "max_total_num_tokens": worker.cache_tokens(),
            })
            .to_string(),
        ),
        About::Metrics => {
            let mut response = Response::new(Body::full(metrics(worker)));
            let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, text);
            response
        }
        About::Loads => json_response(
            json!({ "loads": [{
                "dp_rank": 0, "num_running_reqs": stats.running, "num_waiting_reqs": queued,
                "num_total_reqs": stats.in_flight,
            }] })
            .to_string(),
        ),
        About::FlushCache => {
            worker.engine().flush_cache();
            Response::new(Body::full("Cache flushed.\n"))
        }
        About::IsSleeping => {
            json_response(json!({ "is_sleeping": worker.is_sleeping() }).to_string())
        }
        About::Sleep => {
            worker.engine().flush_cache();
            worker.set_sleeping(true);
            Response::new(Body::full(Bytes::new()))
        }
        About::WakeUp => {
            worker.set_sleeping(false);
            Response::new(Body::full(Bytes::new()))
        }
    }
}

fn metrics(worker: &Worker) -> String {
    let stats = worker.stats();
    let name = worker.models().next().unwrap_or_default();
    let label: String = name.chars().flat_map(char::escape_default).collect();
    let rows = [
        ("mock_requests_total", "counter", "Inference requests that arrived.", stats.requests),
        (
            "mock_requests_completed_total",
            "counter",
            "Requests answered to the end.",
            stats.completed,
        ),
        (
            "mock_requests_aborted_total",
            "counter",
            "Requests whose client left early.",
            stats.aborted,
        ),
        ("mock_requests_failed_total", "counter", "Requests failed by script.", stats.failed),
        ("mock_requests_running", "gauge", "Requests that have a slot.", stats.running),
        ("mock_requests_in_flight", "gauge", "Requests running or queued.", stats.in_flight),
        ("mock_prompt_tokens_total", "counter", "Tokens in prompts.", stats.prompt_tokens),
        (
            "mock_cached_tokens_total",
            "counter",
            "Prompt tokens found in the cache.",
            stats.cached_tokens,
        ),
        ("mock_completion_tokens_total", "counter", "Tokens generated.", stats.completion_tokens),
        ("mock_cache_blocks", "gauge", "Blocks in the prefix cache.", stats.cache_blocks),
    ];
    rows.into_iter()
        .map(|(metric, kind, help, value)| {
            format!("# HELP {metric} {help}\n# TYPE {metric} {kind}\n{metric}{{model_name=\"{label}\"}} {value}\n")
        })
        .collect()
}

/// Answers the routes that only a mock worker has.
pub(super) async fn own(worker: &Worker, mock: Mock, body: Incoming) -> Response<Body> {
    match mock {
        Mock::Stats => json_response(json!(worker.stats()).to_string()),
        Mock::ReadFaults => json_response(json!(worker.faults()).to_string()),
        Mock::SetFaults => match collect(body).await.map(|json| Faults::parse(&json)) {
            Ok(Ok(faults)) => {
                worker.set_faults(faults);
                json_response(json!(worker.faults()).to_string())
            }
            Ok(Err(e)) => error(StatusCode::BAD_REQUEST, &format!("faults: {e}")),
            Err(_) => {
                error(StatusCode::PAYLOAD_TOO_LARGE, "faults: the body is too large or broke off")
            }
        },
        Mock::Last | Mock::LastBody => match worker.last() {
            None => error(StatusCode::NOT_FOUND, "no request has arrived yet"),
            Some(last) if mock == Mock::LastBody => {
                let mut response = Response::new(Body::full(last.body));
                let bytes = HeaderValue::from_static("application/octet-stream");
                response.headers_mut().insert(CONTENT_TYPE, bytes);
                response
            }
            Some(Last { head, body }) => {
                let headers: Vec<[String; 2]> = head
                    .headers
                    .iter()
                    .map(|(name, value)| {
                        [name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()]
                    })
                    .collect();
                json_response(
                    json!({
                        "method": head.method.as_str(), "target": head.uri.to_string(),
                        "version": format!("{:?}", head.version), "headers": headers, "body_bytes": body.len(),
                    })
                    .to_string(),
                )
            }
        },
    }
}
