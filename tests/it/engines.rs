//! Tests of the paths of engines: which of them one worker answers, which are sent to all workers, and the answers for
//! wrong paths.

use serde_json::{Value, json};
use smg::http::{Access, ROUTES};

use crate::support::router::Router;
use crate::support::worker::{Talk, Worker};

const JSON: (&str, &str) = ("content-type", "application/json");

/// Answers with the method, path and body of the request.
async fn mirror(mut talk: Talk) -> Talk {
    let request = json!({
        "method": talk.seen.method, "path": talk.seen.path,
        "body": String::from_utf8(talk.seen.body.clone()).unwrap(),
    });
    if talk.seen.body.windows(13).any(|part| part == b"\"stream\":true") {
        talk.begin_stream().await;
        for piece in ["data: {}\n\n", "data: [DONE]\n\n"] {
            talk.chunk(piece).await.unwrap();
        }
        talk.end_stream().await;
    } else {
        talk.answer(200, "content-type: application/json\r\n", request.to_string().as_bytes())
            .await;
    }
    talk
}

/// The methods and paths that clients may use and that the router does not answer itself.
fn forwarded() -> Vec<(&'static str, &'static str)> {
    let own = ["/v1/models", "/v1/models/{model}", "/v1/realtime"];
    let routes = ROUTES.iter().filter(|route| route.access == Access::Client);
    let routes = routes.map(|route| (route.method, route.path));
    routes.filter(|(_, path)| !own.contains(path) && !path.contains("{id}")).collect()
}

#[tokio::test]
async fn each_inference_path_forwards_json_forms_and_streams() {
    let worker = Worker::start(mirror).await;
    let router = Router::before(&[worker.url()], &[]).await;
    let json = r#"{"model":"m","input":"x"}"#;
    let form = "--X\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--X--\r\n";
    for (method, path) in forwarded() {
        if method == "GET" {
            // The scripted worker has no such path.
            if path != "/get_model_info" {
                let answer = router.get(&format!("{path}?model=m")).await;
                assert_eq!(answer.json()["path"], format!("{path}?model=m"), "{path}");
            }
            continue;
        }
        for (kind, body) in [("application/json", json), ("multipart/form-data; boundary=X", form)]
        {
            let answer =
                router.send(method, path, &[("content-type", kind)], body.as_bytes()).await;
            let wanted = json!({ "method": method, "path": path, "body": body });
            assert_eq!((answer.status, answer.json()), (200, wanted), "{path} {kind}");
        }
        let answer = router.post(path, r#"{"model":"m","stream":true}"#).await;
        assert_eq!(answer.text(), "data: {}\n\ndata: [DONE]\n\n", "{path}");
    }
}

#[tokio::test]
async fn a_path_with_additional_slashes_is_forwarded_to_the_engine() {
    let worker = Worker::start(mirror).await;
    let router = Router::before(&[worker.url()], &[]).await;
    for path in ["/v1/chat/completions/", "//v1/chat/completions", "/v1//completions"] {
        let answer = router.post(path, r#"{"model":"m"}"#).await;
        assert_eq!((answer.status, answer.json()["path"].as_str()), (200, Some(path)));
    }
}

#[tokio::test]
async fn the_answer_for_a_wrong_path_names_the_right_one() {
    let router = Router::start(&[]).await;
    for (path, hint) in [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/embeddings", "/v1/embeddings"),
        ("/v1/generate", "/generate"),
    ] {
        let answer = router.post(path, "{}").await;
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(answer.status, 404);
        assert!(message.contains(&format!("did you mean {hint}?")), "{message}");
    }
    let message = router.post("/nowhere", "{}").await.text();
    assert!(!message.contains("did you mean"), "{message}");
    for path in ["/v1/messages", "/v1/messages/count_tokens"] {
        let answer = router.post(path, r#"{"model":"nobody"}"#).await.json();
        assert_eq!(answer["type"], "error", "{path} speaks Anthropic's shape: {answer}");
    }
    let version = ("anthropic-version", "2023-06-01");
    for path in ["/v1/models/nobody", "/v1/files", "/nowhere", "/generate", "/v1/responses/resp_1"]
    {
        for (headers, shape) in [(&[version][..], json!("error")), (&[][..], Value::Null)] {
            let answer = router.send("GET", path, headers, b"").await;
            assert_eq!(answer.json()["type"], shape, "{path}: {}", answer.text());
            assert_eq!(answer.header("x-smg-error-code"), Some(answer.code().as_str()), "{path}");
        }
    }
}

#[tokio::test]
async fn a_path_that_changes_engines_goes_to_all_of_them_and_is_never_open_to_clients() {
    let (one, two) = (Worker::start(mirror).await, Worker::start(mirror).await);
    let refusing = Worker::start(|mut talk| async move {
        talk.answer(500, "", b"no").await;
        talk
    })
    .await;
    let flags = ["--api-key", "client", "--admin-api-key", "admin"];
    let router = Router::before(&[one.url(), two.url()], &flags).await;
    let admin = [JSON, ("x-api-key", "admin")];
    let control = [
        ("POST", "/v1/load_lora_adapter", r#"{"lora_name":"a","lora_path":"/a"}"#),
        ("POST", "/sleep?level=1", ""),
        ("POST", "/update_weights_from_disk", r#"{"model_path":"x"}"#),
        ("GET", "/slots", ""),
    ];
    for (method, path, body) in control {
        let client = router.send(method, path, &[JSON, ("x-api-key", "client")], body.as_bytes());
        assert_eq!(client.await.status, 403, "{path}");
        let answer = router.send(method, path, &admin, body.as_bytes()).await;
        let document = answer.json();
        assert_eq!((answer.status, document["failed"].clone()), (200, json!([])), "{path}");
        let done = document["done"].as_array().unwrap();
        assert_eq!(done.len(), 2);
        for entry in done {
            let wanted = json!({ "method": method, "path": path, "body": body });
            assert_eq!((&entry["status"], &entry["answer"]), (&json!(200), &wanted));
            assert!([one.url(), two.url()].contains(&entry["url"].as_str().unwrap().to_owned()));
        }
    }
    let spec = json!({ "url": refusing.url() }).to_string();
    router.send("POST", "/workers", &admin, spec.as_bytes()).await;
    let answer = router.send("POST", "/wake_up", &admin, b"").await;
    let failed: Vec<Value> = answer.json()["failed"].as_array().unwrap().clone();
    assert_eq!((answer.status, failed.len(), &failed[0]["status"]), (206, 1, &json!(500)));
}

#[tokio::test]
async fn what_passes_is_what_the_operator_lets_through() {
    let worker = Worker::start(mirror).await;
    let only = Router::before(&[worker.url()], &["--pass-through", "/v1/own"]).await;
    let both = Router::before(&[worker.url()], &["--pass-through", "documented", "/v1/own"]).await;
    let default = Router::before(&[worker.url()], &[]).await;
    let body = r#"{"model":"m"}"#;
    for (router, own, documented) in [(&only, 200, 404), (&both, 200, 200), (&default, 404, 200)] {
        for path in ["/v1/own", "/v1/own/a?b=c"] {
            let answer = router.post(path, body).await;
            assert_eq!(answer.status, own, "{path}");
            if own == 200 {
                assert_eq!(answer.json()["path"], path);
                for method in ["GET", "PUT", "DELETE"] {
                    let answer = router.send(method, path, &[], b"").await;
                    assert_eq!((answer.status, &answer.json()["method"]), (200, &json!(method)));
                }
            }
        }
        assert_eq!(router.post("/v1/chat/completions", body).await.status, documented);
        assert_eq!(router.post("/v1/owner", body).await.status, 404);
        assert_eq!(router.get("/v1/models").await.status, 200);
    }
    let series = "smg_http_requests_total{route=\"pass_through\",status=\"200\"}";
    assert_eq!(only.metric(series).await, 8.0);
}

#[tokio::test]
async fn no_prefix_opens_what_changes_an_engine() {
    let worker = Worker::start(mirror).await;
    let flags = ["--api-key", "client", "--admin-api-key", "admin", "--pass-through", "/"];
    let router = Router::before(&[worker.url()], &flags).await;
    let headers = [JSON, ("x-api-key", "client")];
    assert_eq!(router.send("POST", "/anything", &headers, b"{}").await.status, 200);
    for path in [
        "/v1/load_lora_adapter",
        "/v1/%6coad_lora_adapter",
        "/V1/LOAD_LORA_ADAPTER",
        "//sleep",
        "/v1/sleep",
        "/x/../sleep",
        "/collective_rpc",
        "/slots/0",
        "/workers/x/y",
        "/ha/x",
        "/update_weights_from_tensor",
        "/metrics/x",
    ] {
        for method in ["GET", "POST", "PUT"] {
            let status = router.send(method, path, &headers, b"{}").await.status;
            assert!([403, 404, 405].contains(&status), "{method} {path}: {status}");
        }
    }
    assert!(worker.seen().iter().all(|seen| seen.path == "/anything"), "{:?}", worker.seen());
}

#[tokio::test]
async fn a_stored_response_is_found_at_the_worker_that_has_it() {
    let empty = async |mut talk: Talk| {
        talk.answer(404, "", b"{}").await;
        talk
    };
    let (has, other) = (Worker::start(mirror).await, Worker::start(empty).await);
    let router = Router::before(&[other.url(), has.url()], &[]).await;
    for (method, path) in [
        ("GET", "/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
    ] {
        let answer = router.send(method, path, &[], b"").await;
        let forwarded = (answer.json()["method"].clone(), answer.json()["path"].clone());
        assert_eq!((answer.status, forwarded), (200, (json!(method), json!(path))));
    }
    let lonely = Router::before(&[other.url()], &[]).await;
    let answer = lonely.get("/v1/responses/resp_1").await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "response_not_found"));
    // A proxy in front of an engine may resolve dots and encoded slashes: such a path would lead elsewhere.
    let before = has.seen().len();
    for id in [
        "..%2f..%2fflush_cache",
        "%2e%2e%2f%2e%2e%2fflush_cache",
        "%2E%2E",
        "resp_1%2F..%2F..%2Fsleep",
        "..%5cflush_cache",
        "resp_1%3Fx=1",
        "resp_1%23",
        "resp_1;a",
        "a%00",
        "%25%32%65",
    ] {
        for (method, path) in [
            ("GET", format!("/v1/responses/{id}")),
            ("DELETE", format!("/v1/responses/{id}")),
            ("POST", format!("/v1/responses/{id}/cancel")),
        ] {
            let answer = router.send(method, &path, &[], b"").await;
            assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text());
        }
    }
    assert_eq!(has.seen().len(), before, "{:?}", has.seen().pop());
}

#[tokio::test]
async fn a_single_model_can_be_requested() {
    let worker = Worker::serving("org/model", mirror).await;
    let router = Router::before(&[worker.url()], &[]).await;
    let answer = router.get("/v1/models/org/model").await;
    assert_eq!((answer.status, &answer.json()["id"]), (200, &json!("org/model")));
    let answer = router.get("/v1/models/other").await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "model_not_found"));
}

#[test]
fn every_path_of_an_engine_is_documented() {
    let text = include_str!("../../docs/engines.md");
    let own = ["/liveness", "/readiness", "/openapi.yaml", "/ui", "/engine_metrics", "/get_loads"];
    for route in ROUTES {
        let is_own = own.contains(&route.path)
            || route.path.starts_with("/ha/")
            || route.path.starts_with("/workers")
            || route.path.ends_with("_worker")
            || route.path.ends_with("_workers");
        let named = text.contains(&format!("{}`", route.path));
        assert!(is_own || named, "{} is not in docs/engines.md", route.path);
    }
}
