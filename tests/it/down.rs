//! Tests of the reasons why a worker is down: for each cause, the log has the worker, the cause and an advice, and the
//! API shows them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::Worker;

/// Starts a server that answers every connection with `bytes`.
async fn server_sending(bytes: &'static [u8]) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _gone = tokio::io::AsyncReadExt::read(&mut stream, &mut request).await.is_err();
            let _gone = stream.write_all(bytes).await.is_err();
        }
    });
    (url, serving)
}

/// Waits for the log line about `url`.
async fn line(router: &Router, url: &str) -> Value {
    eventually(&format!("the log has the reason why {url} is down"), || async {
        let log = router.log();
        let mut events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found = events.find(|event| event["level"] == "WARN" && event["url"] == *url);
        found.ok_or(log)
    })
    .await
}

/// Registers a worker and checks the reported cause, status and advice.
async fn check(url: &str, cause: &str, status: Option<u16>, advice: &str) {
    let flags = [
        "--health-failure-threshold",
        "1",
        "--connect-timeout-secs",
        "0.5",
        "--health-check-timeout-secs",
        "2",
        "--worker-urls",
        url,
    ];
    let router = Router::start(&flags).await;
    let event = line(&router, url).await;
    assert_eq!(event["cause"], cause, "{event}");
    assert_eq!(event["status"].as_u64(), status.map(u64::from), "{event}");
    assert!(event["advice"].as_str().unwrap().contains(advice), "{event}");
    let shown = router.get("/workers").await.json()["workers"][0]["last_error"].clone();
    assert_eq!((&shown["cause"], &shown["advice"]), (&event["cause"], &event["advice"]));
    assert!(shown["at"].as_str().unwrap().ends_with('Z'), "{shown}");
    let id = router.get("/workers").await.json()["workers"][0]["id"].as_str().unwrap().to_owned();
    let series = format!("smg_worker_failed_probes_total{{cause=\"{cause}\",worker=\"{id}\"}}");
    assert!(router.metric(&series).await >= 1.0, "{series}");
}

#[tokio::test]
async fn each_status_of_a_probe_has_its_cause() {
    for (answer, cause, status, advice) in [
        (
            &b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n"[..],
            "path_not_found",
            404,
            "--health-check-endpoint",
        ),
        (b"HTTP/1.1 401 X\r\ncontent-length: 0\r\n\r\n", "unauthorized", 401, "--worker-api-key"),
        (b"HTTP/1.1 403 X\r\ncontent-length: 0\r\n\r\n", "unauthorized", 403, "--worker-api-key"),
        (b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n", "status", 503, "see its log"),
        (b"HTTP/1.1 307 X\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", "redirect", 307, "URL"),
    ] {
        let (url, serving) = server_sending(answer).await;
        check(&url, cause, Some(status), advice).await;
        serving.abort();
    }
}

#[tokio::test]
async fn each_failure_of_a_connection_has_its_cause() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    check(&closed, "connection_refused", None, "start the engine").await;
    let (url, serving) = server_sending(b"SSH-2.0-OpenSSH_9\r\n\r\n").await;
    check(&url, "not_http", None, "another kind of server").await;
    check(&url.replace("http://", "https://"), "tls", None, "does not speak TLS").await;
    serving.abort();
    check("http://no-such-host.invalid:8000", "name_not_found", None, "no-such-host.invalid").await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    check(&url, "timeout", None, "overloaded").await;
    check(&url.replace("http://", "https://"), "tls", None, "does not answer to TLS").await;
}

#[tokio::test]
async fn a_worker_without_models_is_reported() {
    let answer = b"HTTP/1.1 200 X\r\ncontent-length: 27\r\n\r\n{\"object\":\"list\",\"data\":[]}";
    let (url, serving) = server_sending(answer).await;
    check(&url, "no_models", Some(200), "load one into it").await;
    serving.abort();
}

#[tokio::test]
async fn an_invalid_list_of_models_is_reported_although_the_probe_succeeds() {
    let (url, serving) = server_sending(b"HTTP/1.1 200 X\r\ncontent-length: 5\r\n\r\nhello").await;
    check(&url, "not_a_model_list", Some(200), "models").await;
    serving.abort();
}

#[tokio::test]
async fn an_invalid_list_of_models_is_logged_once_and_shown_until_it_is_valid() {
    let (url, serving) = server_sending(b"HTTP/1.1 200 X\r\ncontent-length: 5\r\n\r\nhello").await;
    let flags = ["--health-check-interval-secs", "1", "--worker-urls", url.as_str()];
    let router = Router::start(&flags).await;
    let first = line(&router, &url).await;
    assert_eq!(first["message"], "the worker gets no requests, because its models can't be read");
    let reads = "smg_worker_failed_probes_total{cause=\"not_a_model_list\",worker=\"";
    let id = router.get("/workers").await.json()["workers"][0]["id"].as_str().unwrap().to_owned();
    let series = format!("{reads}{id}\"}}");
    eventually("the models are read several times", || async {
        let shown =
            router.get("/workers").await.json()["workers"][0]["last_error"]["cause"].clone();
        assert_eq!(shown, "not_a_model_list");
        let count = router.metric(&series).await;
        if count >= 3.0 { Ok(()) } else { Err(count) }
    })
    .await;
    let log = router.log();
    assert_eq!(log.matches("models can't be read").count(), 1, "{log}");
    serving.abort();
}

#[tokio::test]
async fn each_reason_why_a_worker_stays_down_is_logged_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let phase = Arc::new(AtomicUsize::new(0));
    let answers = [
        &b""[..],
        b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 401 X\r\ncontent-length: 0\r\n\r\n",
    ];
    let current = Arc::clone(&phase);
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _gone = tokio::io::AsyncReadExt::read(&mut stream, &mut request).await.is_err();
            let answer = answers[current.load(Ordering::Relaxed)];
            let _gone = stream.write_all(answer).await.is_err();
        }
    });
    let flags = ["--health-failure-threshold", "1", "--worker-urls", url.as_str()];
    let router = Router::start(&flags).await;
    let lines = |log: &str| -> Vec<(String, String)> {
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let warnings = events.filter(|event| event["level"] == "WARN" && event["url"] == *url);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        warnings.map(|event| (text(&event["message"]), text(&event["cause"]))).collect()
    };
    for (nth, cause) in ["connection_closed", "status", "unauthorized"].iter().enumerate() {
        phase.store(nth, Ordering::Relaxed);
        eventually(&format!("the log has {cause}"), || async {
            let log = router.log();
            let found = lines(&log).iter().any(|(_, found)| found == cause);
            if found { Ok(()) } else { Err(log) }
        })
        .await;
    }
    // The first reason again, for several probes: the log has it.
    phase.store(0, Ordering::Relaxed);
    let id = router.get("/workers").await.json()["workers"][0]["id"].as_str().unwrap().to_owned();
    let series =
        format!("smg_worker_failed_probes_total{{cause=\"connection_closed\",worker=\"{id}\"}}");
    let before = router.metric(&series).await;
    eventually("it fails for the first reason again", || async {
        let count = router.metric(&series).await;
        if count >= before + 2.0 { Ok(()) } else { Err(count) }
    })
    .await;
    let log = router.log();
    let mut reasons = lines(&log);
    // After ten times as many failures as take a worker down there is one more line.
    reasons.retain(|(message, _)| !message.contains("has failed"));
    let down = "worker is down".to_owned();
    let still = "worker is still down, for another reason";
    let expected = [
        (down, "connection_closed".to_owned()),
        (still.to_owned(), "status".to_owned()),
        (still.to_owned(), "unauthorized".to_owned()),
    ];
    assert_eq!(reasons, expected, "{log}");
    serving.abort();
}

#[tokio::test]
async fn a_ready_worker_shows_no_error() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let shown = router.get("/workers").await.json()["workers"][0].clone();
    assert_eq!((&shown["state"], &shown["last_error"]), (&json!("ready"), &Value::Null));
}

#[tokio::test]
async fn a_clients_base_url_is_refused_with_the_right_url() {
    let router = Router::start(&[]).await;
    for url in ["http://gpu-1:8000/v1", "http://gpu-1:8000/v1/"] {
        let answer = router.post("/workers", json!({ "url": url }).to_string()).await;
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (400, Some("url")));
        assert!(message.contains("use http://gpu-1:8000"), "{message}");
        let checked = crate::support::router::command()
            .args(["check-config", "--worker-urls", url])
            .output()
            .await
            .unwrap();
        let errors = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert_eq!(checked.status.code(), Some(2), "{errors}");
        assert!(errors.contains("use http://gpu-1:8000"), "{errors}");
    }
    for endpoint in ["health", "/a b", "/x\r\nhost: evil"] {
        let spec = json!({ "url": "http://gpu-1:8000", "health": { "endpoint": endpoint } });
        let answer = router.post("/workers", spec.to_string()).await;
        assert_eq!(answer.status, 400, "{endpoint:?}: {}", answer.text());
    }
}
