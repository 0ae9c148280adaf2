//! Tests of the access log: one line per request, whatever becomes of the request, with what it took and without what is
//! secret.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::signals::gated;
use crate::support::client;
use crate::support::eventually;
use crate::support::mock::Mock;
use crate::support::router::{self, Router};
use crate::support::worker::{Talk, Worker};

const CHAT: &str = "/v1/chat/completions";

/// A folder with the file of the access log.
struct Log(tempfile::TempDir);

impl Log {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> String {
        self.0.path().join("access.log").to_str().unwrap().to_owned()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap_or_default()
    }

    /// The line of the request with this id, once it is there.
    async fn line(&self, id: &str) -> Value {
        let of_id = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            (line["request_id"] == id).then_some(line)
        };
        eventually(&format!("{id} is logged"), || async {
            self.text().lines().find_map(of_id).ok_or_else(|| self.text())
        })
        .await
    }

    /// Starts a router that logs requests as JSON to the file.
    async fn router(&self, workers: &[String], flags: &[&str]) -> Router {
        let path = self.path();
        let log = ["--access-log", "json", "--access-log-file", &path];
        Router::before(workers, &[&log[..], flags].concat()).await
    }
}

fn headers<'a>(id: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[("x-request-id", id)][..], more].concat()
}

#[tokio::test]
async fn a_request_is_one_line_with_its_worker_times_bytes_and_tokens() {
    let (log, mock) = (Log::new(), Mock::start("w").await);
    let keys = ["--tenant-api-key", "acme:tenant-secret", "--admin-api-key", "admin-secret"];
    let router = log.router(&[mock.url()], &keys).await;
    let body = json!({
        "model": "m", "max_tokens": 5,
        "messages": [{ "role": "user", "content": "a private prompt" }],
    });
    let key = [("authorization", "Bearer tenant-secret"), ("x-forwarded-for", "192.0.2.7")];
    let path = format!("{CHAT}?key=query-secret");
    let answer =
        router.send("POST", &path, &headers("r-1", &key), body.to_string().as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let usage = answer.json()["usage"].clone();
    let line = log.line("r-1").await;
    for (field, expected) in [
        ("client", json!("127.0.0.1")),
        ("forwarded_for", json!("192.0.2.7")),
        ("method", json!("POST")),
        ("path", json!(CHAT)),
        ("status", json!(200)),
        ("end", json!("complete")),
        ("error", json!(null)),
        ("tenant", json!("acme")),
        ("model", json!("m")),
        ("worker", json!(mock.url())),
        ("attempts", json!(1)),
        ("bytes_in", json!(body.to_string().len())),
        ("bytes_out", json!(answer.body.len())),
        ("prompt_tokens", usage["prompt_tokens"].clone()),
        ("output_tokens", usage["completion_tokens"].clone()),
        ("tokens_estimated", json!(false)),
    ] {
        assert_eq!(line[field], expected, "{field}: {line}");
    }
    let millis = |field: &str| line[field].as_f64().unwrap();
    assert!(line["worker_id"].as_str().unwrap().starts_with("w-"), "{line}");
    assert!(millis("queue_ms") <= millis("first_byte_ms"), "{line}");
    assert!(millis("first_byte_ms") <= millis("total_ms"), "{line}");
    assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");

    // A stream, and a route that the router answers itself.
    let stream = json!({ "model": "m", "max_tokens": 5, "stream": true, "messages": [] });
    let answer =
        router.send("POST", CHAT, &headers("r-2", &key), stream.to_string().as_bytes()).await;
    let line = log.line("r-2").await;
    assert_eq!((&line["end"], &line["output_tokens"]), (&json!("complete"), &json!(5)), "{line}");
    assert_eq!(line["bytes_out"], answer.body.len());
    let admin = [("x-api-key", "admin-secret")];
    let answer = router.send("GET", "/workers", &headers("r-3", &admin), b"").await;
    let line = log.line("r-3").await;
    assert_eq!((&line["status"], &line["end"]), (&json!(200), &json!("complete")), "{line}");
    assert_eq!((&line["worker"], &line["bytes_out"]), (&json!(null), &json!(answer.body.len())));

    let all = log.text();
    for secret in ["secret", "private prompt", "Bearer"] {
        assert!(!all.contains(secret), "{secret} in {all}");
    }
}

#[tokio::test]
async fn a_request_that_fails_in_the_router_is_logged_with_the_code_of_its_error() {
    let (log, worker) = (Log::new(), Worker::plain().await);
    let router = log.router(&[worker.url()], &["--api-key", "key"]).await;
    let key = [("x-api-key", "key")];
    for (id, method, path, given, body, status, error) in [
        ("no-key", "POST", CHAT, &[][..], r#"{"model":"m"}"#, 401, "invalid_api_key"),
        ("no-route", "GET", "/nowhere", &key, "", 404, "route_not_found"),
        ("no-method", "PUT", CHAT, &key, "", 405, "method_not_allowed"),
        ("no-model", "POST", CHAT, &key, r#"{"model":"other"}"#, 404, "model_not_found"),
        ("no-json", "POST", CHAT, &key, "{", 400, "invalid_json"),
    ] {
        let answer = router.send(method, path, &headers(id, given), body.as_bytes()).await;
        let line = log.line(id).await;
        assert_eq!((answer.status, &line["status"]), (status, &json!(status)), "{line}");
        assert_eq!(line["error"], answer.code(), "{line}");
        assert_eq!(line["error"], error, "{line}");
        assert_eq!((&line["attempts"], &line["end"]), (&json!(0), &json!("complete")), "{line}");
        assert_eq!(line["output_tokens"], json!(null), "{line}");
    }
}

#[tokio::test]
async fn attempts_at_several_workers_are_one_line_that_names_the_last() {
    let (log, good) = (Log::new(), Mock::start("good").await);
    let bad = Mock::start("bad").await;
    let flags = ["--policy", "round_robin", "--retry-initial-backoff-ms", "1"];
    let router = log.router(&[good.url(), bad.url()], &flags).await;
    bad.faults(r#"{"script":{"status":503},"next":100}"#);
    let body = json!({ "model": "m", "messages": [] }).to_string();
    let mut retried = Vec::new();
    for n in 0..4 {
        let id = format!("r-{n}");
        let answer = router.send("POST", CHAT, &headers(&id, &[]), body.as_bytes()).await;
        assert_eq!(answer.status, 200);
        let line = log.line(&id).await;
        assert_eq!(line["worker"], good.url(), "{line}");
        retried.extend((line["attempts"] == 2).then_some(id));
    }
    assert!(!retried.is_empty(), "at least one request was retried: {}", log.text());
    // All workers fail: the line names the last one that was tried.
    good.faults(r#"{"script":{"cut_before_head":true},"next":100}"#);
    let answer = router.send("POST", CHAT, &headers("failed", &[]), body.as_bytes()).await;
    let line = log.line("failed").await;
    assert_eq!(line["status"], answer.status, "{line}");
    assert!(line["attempts"].as_u64().unwrap() >= 1 && !line["worker"].is_null(), "{line}");
}

#[tokio::test]
async fn a_client_that_leaves_is_logged_as_such() {
    let (log, gate) = (Log::new(), Arc::new(Semaphore::new(0)));
    let streaming = gated(&gate).await;
    let router = log.router(&[streaming.url()], &[]).await;
    let body = br#"{"model":"m","stream":true}"#;
    let with_id = headers("left", &[]);
    let begun = client::begin(router.address(), "POST", "/generate", &with_id, body).await;
    let mut stream = begun.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    drop(stream);
    let line = log.line("left").await;
    assert_eq!((&line["end"], &line["status"]), (&json!("client_left"), &json!(200)), "{line}");
    assert_eq!((&line["bytes_out"], &line["attempts"]), (&json!(first.len()), &json!(1)), "{line}");

    // Before the answer: the status is 499, as in the metrics.
    let silent = Worker::start(|mut talk: Talk| async move {
        talk.hung_up().await;
        talk
    })
    .await;
    let other = Log::new();
    let router = other.router(&[silent.url()], &[]).await;
    let with_id = headers("early", &[]);
    let asking = client::begin(router.address(), "POST", "/generate", &with_id, body);
    let patience = async {
        eventually("the worker has the request", || async {
            if silent.seen().is_empty() { Err(()) } else { Ok(()) }
        })
        .await;
    };
    tokio::select! {
        _ = asking => panic!("the worker does not answer"),
        () = patience => {}
    }
    let line = other.line("early").await;
    assert_eq!((&line["end"], &line["status"]), (&json!("client_left"), &json!(499)), "{line}");
    assert_eq!((&line["worker"], &line["first_byte_ms"]), (&json!(silent.url()), &json!(null)));
}

#[tokio::test]
async fn a_stream_that_its_worker_breaks_is_logged_as_such() {
    let log = Log::new();
    let broken = Worker::start(|mut talk: Talk| async move {
        talk.begin_stream().await;
        talk.chunk("data: 1\n\n").await.unwrap();
        talk.close();
        talk
    })
    .await;
    let router = log.router(&[broken.url()], &[]).await;
    let (with_id, body) = (headers("broken", &[]), br#"{"model":"m","stream":true}"#);
    assert_eq!(router.send("POST", "/generate", &with_id, body).await.status, 200);
    let line = log.line("broken").await;
    assert_eq!((&line["end"], &line["worker"]), (&json!("worker_failed"), &json!(broken.url())));
}

#[tokio::test]
async fn a_request_that_waits_in_the_queue_shows_how_long() {
    let (log, gate) = (Log::new(), Arc::new(Semaphore::new(0)));
    let streaming = gated(&gate).await;
    let router = log.router(&[streaming.url()], &["--max-concurrent-requests", "1"]).await;
    let body = br#"{"model":"m","stream":true}"#;
    let first = client::begin(router.address(), "POST", "/generate", &[], body).await.unwrap();
    let headers = headers("queued", &[]);
    let second = async {
        client::begin(router.address(), "POST", "/generate", &headers, body)
            .await
            .unwrap()
            .rest()
            .await
    };
    let begun = std::time::Instant::now();
    let release = async {
        eventually("the second request waits", || async {
            let waiting = router.metric("smg_admission_waiting").await;
            let seen = begun.elapsed() >= Duration::from_millis(50) && waiting == 1.0;
            if seen { Ok(()) } else { Err(waiting) }
        })
        .await;
        gate.add_permits(2);
        first.rest().await.unwrap();
    };
    let (rest, ()) = tokio::join!(second, release);
    rest.unwrap();
    let line = log.line("queued").await;
    let (queued, first_byte) =
        (line["queue_ms"].as_f64().unwrap(), line["first_byte_ms"].as_f64().unwrap());
    assert!(queued > 5.0 && queued <= first_byte, "{line}");
}

#[tokio::test]
async fn a_text_of_a_client_can_neither_end_its_line_nor_a_field() {
    let (log, worker) = (Log::new(), Worker::plain().await);
    let path = log.path();
    let flags = ["--access-log", "text", "--access-log-file", &path];
    let router = Router::before(&[worker.url()], &flags).await;
    let forged = "\"x\" status=200\\n2026-01-01 forged";
    let body = json!({ "model": format!("m\n{forged}\u{9b}") }).to_string();
    let forwarded = [("x-forwarded-for", "1.2.3.4 status=200")];
    router.send("POST", CHAT, &headers("text", &forwarded), body.as_bytes()).await;
    let line = eventually("the request is logged", || async {
        let text = log.text();
        text.lines().find(|line| line.contains("request_id=text ")).map(str::to_owned).ok_or(text)
    })
    .await;
    assert!(line.contains(" status=40") && !line.contains('\u{9b}'), "{line}");
    assert!(line.contains(r#" forwarded_for="1.2.3.4 status=200" "#), "{line}");
    assert!(line.contains(r#" model="m\n\"x\" status=200\\n2026-01-01 forged\u009b""#), "{line}");
    assert!(log.text().lines().all(|line| line.starts_with("20") && line.contains(" total_ms=")));
}

#[tokio::test]
async fn a_file_that_was_moved_away_is_made_again_on_sighup() {
    let (log, worker) = (Log::new(), Worker::plain().await);
    let router = log.router(&[worker.url()], &[]).await;
    let liveness = async |id: &str| router.send("GET", "/liveness", &headers(id, &[]), b"").await;
    liveness("before").await;
    log.line("before").await;
    std::fs::rename(log.path(), log.path() + ".1").unwrap();
    crate::signals::reload(&router).await;
    liveness("after").await;
    log.line("after").await;
    assert!(!log.text().contains("before"));
}

#[tokio::test]
async fn standard_output_has_the_lines_without_a_file_and_the_last_ones_are_not_lost() {
    let worker = Worker::plain().await;
    let mut child = router::command()
        .args(["--host", "127.0.0.1", "--port", "0", "--prometheus-port", "0", "--log-json"])
        .args(["--drain-settle-secs", "0", "--access-log", "json", "--worker-urls", &worker.url()])
        .spawn()
        .unwrap();
    let mut lines =
        tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stderr.take().unwrap()));
    let address = loop {
        let line = lines.next_line().await.unwrap().expect("the router serves");
        let event: Value = serde_json::from_str(&line).unwrap();
        if event["message"] == "serving" {
            break event["address"].as_str().unwrap().parse().unwrap();
        }
    };
    let draining = tokio::spawn(async move { while lines.next_line().await.unwrap().is_some() {} });
    client::send(address, "GET", "/liveness", &headers("out", &[]), b"").await;
    let status = std::process::Command::new("kill").arg(child.id().unwrap().to_string()).status();
    assert!(status.unwrap().success());
    let output = child.wait_with_output().await.unwrap();
    draining.await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line: Value = serde_json::from_str(text.lines().next().expect("a line")).unwrap();
    assert_eq!(
        (&line["request_id"], &line["path"]),
        (&json!("out"), &json!("/liveness")),
        "{text}"
    );
}

#[tokio::test]
async fn a_file_that_can_not_be_opened_and_a_file_without_a_format_are_refused() {
    let started = router::command()
        .args(["--port", "0", "--access-log", "text", "--access-log-file", "/absent/access.log"])
        .output()
        .await
        .unwrap();
    let error = String::from_utf8(started.stderr).unwrap();
    assert!(!started.status.success() && error.contains("--access-log-file"), "{error}");
    let checked = router::command()
        .args(["check-config", "--access-log-file", "/absent/access.log"])
        .output()
        .await
        .unwrap();
    let error = String::from_utf8(checked.stderr).unwrap();
    assert_eq!(checked.status.code(), Some(2));
    assert!(error.contains("--access-log-file needs --access-log"), "{error}");
}
