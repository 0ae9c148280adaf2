//! Tests of signals: SIGHUP reads files again and ends nothing, SIGQUIT drains, SIGUSR1 and SIGUSR2 have no effect.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::support::client::{self, Stream};
use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::{Talk, Worker};

const BODY: &str = r#"{"model":"m"}"#;
const STREAM: &[u8] = br#"{"model":"m","stream":true}"#;

/// A worker whose streams send one event at once and the second when `gate` has a permit.
pub(crate) async fn gated(gate: &Arc<Semaphore>) -> Worker {
    let gate = Arc::clone(gate);
    Worker::start(move |mut talk: Talk| {
        let gate = Arc::clone(&gate);
        async move {
            talk.begin_stream().await;
            talk.chunk("data: 1\n\n").await.unwrap();
            gate.acquire().await.unwrap().forget();
            talk.chunk("data: [DONE]\n\n").await.unwrap();
            talk.end_stream().await;
            talk
        }
    })
    .await
}

async fn begin_stream(router: &Router) -> Stream {
    let begun = client::begin(router.address(), "POST", "/generate", &[], STREAM).await;
    let mut stream = begun.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "data: 1\n\n");
    stream
}

/// A directory with the files that a test changes.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// Sends SIGHUP and returns the events of level info and above that it caused. The last one is the summary, or the error
/// that lists the mistakes.
pub(crate) async fn reload(router: &Router) -> Vec<serde_json::Value> {
    let before = router.log().lines().count();
    router.signal("HUP");
    eventually("SIGHUP was handled", || async {
        let log = router.log();
        let events: Vec<serde_json::Value> =
            log.lines().skip(before).map(|line| serde_json::from_str(line).unwrap()).collect();
        let events: Vec<_> = events.into_iter().filter(|e| e["cause"] == "SIGHUP").collect();
        let is_last = |event: &serde_json::Value| {
            event["message"] == "the configuration was read again" || !event["mistakes"].is_null()
        };
        if events.last().is_some_and(is_last) { Ok(events) } else { Err(log) }
    })
    .await
}

/// The text with the mistakes for which a reload has changed nothing.
#[track_caller]
pub(crate) fn mistakes(events: &[serde_json::Value]) -> &str {
    let [event] = events else { panic!("not exactly one event: {events:#?}") };
    assert_eq!(event["level"], "ERROR");
    event["error"].as_str().unwrap()
}

/// The only event of a reload, which lists what has changed.
#[track_caller]
pub(crate) fn changed(events: &[serde_json::Value]) -> &str {
    let [event] = events else { panic!("not exactly one event: {events:#?}") };
    assert_eq!(event["level"], "INFO");
    event["changed"].as_str().unwrap()
}

#[tokio::test]
async fn sighup_changes_the_log_level_while_a_stream_runs_to_its_end() {
    let gate = Arc::new(Semaphore::new(0));
    let worker = gated(&gate).await;
    let files = Files::new();
    let config = files.write("smg.toml", "log-level = 'info'");
    let mut router = Router::before(&[worker.url()], &["--config", &config]).await;
    let stream = begin_stream(&router).await;
    assert!(!router.log().contains("\"DEBUG\""));

    assert_eq!(changed(&reload(&router).await), "nothing");
    files.write("smg.toml", "log-level = 'debug'");
    assert_eq!(changed(&reload(&router).await), "log level (debug)");
    assert_eq!(router.post("/nowhere", BODY).await.status, 404);
    eventually("requests are logged", || async {
        if router.log().contains("\"refused\"") { Ok(()) } else { Err(router.log()) }
    })
    .await;
    // The new level hides the level of the summary, so the summary is logged before.
    files.write("smg.toml", "log-level = 'error'");
    assert_eq!(changed(&reload(&router).await), "log level (error)");
    files.write("smg.toml", "log-level = 'info'");
    assert_eq!(changed(&reload(&router).await), "log level (info)");

    gate.add_permits(1);
    assert_eq!(stream.rest().await.unwrap(), "data: [DONE]\n\n");
    router.signal("TERM");
    assert_eq!(router.ended().await, 0);
}

#[tokio::test]
async fn a_file_with_a_mistake_is_refused_as_a_whole() {
    let files = Files::new();
    let config = files.write("smg.toml", "log-level = 'info'\napi-key = 'one'");
    let router = Router::start(&["--config", &config]).await;
    for (text, reason) in [
        ("log-level = 'debug'\napi-key = 'two'\nqueue-size = 'x'", "key queue-size in"),
        ("log-level = 'debug", "smg.toml:1: "),
        (
            "log-level = 'debug'\napi-key = 'two'\nadmin-api-key = 'two'",
            "--admin-api-key is one of",
        ),
    ] {
        files.write("smg.toml", text);
        let events = reload(&router).await;
        let error = mistakes(&events);
        assert!(error.contains(reason), "{error}");
        assert!(!error.contains("two"), "a key is shown: {error}");
        let asked = router.send("GET", "/v1/models", &[("x-api-key", "one")], b"").await;
        assert_eq!(asked.status, 200);
    }
    // The settings that cannot change at run time are read, and the changed ones are named.
    files.write("smg.toml", "log-level = 'debug'\napi-key = 'one'\nqueue-size = 7");
    let events = reload(&router).await;
    let [warning, summary] = &events[..] else { panic!("{events:#?}") };
    assert_eq!(warning["level"], "WARN");
    assert_eq!(warning["settings"], "queue-size: 100 -> 7");
    assert_eq!(summary["changed"], "log level (debug)");
}

#[tokio::test]
async fn sighup_replaces_keys_and_never_removes_the_last_one() {
    let worker = Worker::plain().await;
    let files = Files::new();
    let config = files.write("smg.toml", "api-key = 'one'\nadmin-api-key = 'root'");
    let router = Router::start(&["--config", &config, "--worker-urls", &worker.url()]).await;
    let status = async |path: &str, key: &str| {
        router.send("GET", path, &[("x-api-key", key)], b"").await.status
    };
    assert_eq!((status("/v1/models", "one").await, status("/workers", "root").await), (200, 200));

    files.write("smg.toml", "api-key = ['two', 'three']\nadmin-api-key = 'boss'");
    assert_eq!(changed(&reload(&router).await), "client keys, admin keys");
    for (path, key, expected) in [
        ("/v1/models", "one", 401),
        ("/v1/models", "two", 200),
        ("/v1/models", "three", 200),
        ("/workers", "root", 401),
        ("/workers", "boss", 200),
    ] {
        assert_eq!(status(path, key).await, expected, "{path} {key}");
    }
    for text in ["", "api-key = 'two'"] {
        files.write("smg.toml", text);
        let events = reload(&router).await;
        assert!(mistakes(&events).contains("any more"), "{events:#?}");
        assert_eq!((status("/v1/models", "x").await, status("/workers", "x").await), (401, 401));
        assert_eq!(
            (status("/v1/models", "two").await, status("/workers", "boss").await),
            (200, 200)
        );
    }
}

#[tokio::test]
async fn a_worker_gets_the_new_key_of_its_file() {
    let worker = Worker::plain().await;
    let files = Files::new();
    let key = files.write("key", "one\n");
    let table = format!("[[workers]]\nurl = '{}'\napi-key-file = '{key}'\n", worker.url());
    let config = files.write("smg.toml", &table);
    let router = Router::start(&["--config", &config]).await;
    router.knows_ready(1).await;
    let shown = async || {
        assert_eq!(router.post("/generate", BODY).await.status, 200);
        worker.seen().last().unwrap().all("authorization").join(" ")
    };
    assert_eq!(shown().await, "Bearer one");
    files.write("key", "two\n");
    assert_eq!(changed(&reload(&router).await), format!("key of worker {}", worker.url()));
    assert_eq!(shown().await, "Bearer two");
    assert_eq!(changed(&reload(&router).await), "nothing");
    std::fs::remove_file(key).unwrap();
    let events = reload(&router).await;
    assert!(mistakes(&events).contains("api_key_file"), "{events:#?}");
    assert_eq!(shown().await, "Bearer two");
}

#[tokio::test]
async fn the_mesh_applies_the_keys_of_its_file_and_keeps_those_installed_by_the_api() {
    const KEYS: [&str; 3] = [
        "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
        "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
        "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=",
    ];
    let files = Files::new();
    let file = files.write("keys", KEYS[0]);
    let mesh = ["--enable-mesh", "--mesh-host", "127.0.0.1", "--mesh-port", "0"];
    let router = Router::start(&[&mesh[..], &["--mesh-encryption-key-file", &file]].concat()).await;
    let ids = async || router.get("/ha/keys").await.json()["keys"].clone();
    let first = ids().await[0].clone();
    let body = format!("{{\"key\":\"{}\"}}", KEYS[1]);
    assert_eq!(router.post("/ha/keys", body).await.status, 200);
    // The file has not changed, so the keys that were installed meanwhile stay.
    assert_eq!(changed(&reload(&router).await), "nothing");
    assert_eq!(ids().await.as_array().unwrap().len(), 2);
    // The file has changed: now the keys are those that a restart would load.
    files.write("keys", &format!("{}\n{}\n", KEYS[2], KEYS[0]));
    assert_eq!(changed(&reload(&router).await), "keys of the mesh");
    let now = ids().await;
    assert_eq!((now.as_array().unwrap().len(), &now[1]), (2, &first));
    for wrong in ["", "no key"] {
        files.write("keys", wrong);
        let events = reload(&router).await;
        assert!(mistakes(&events).contains(&file), "{events:#?}");
        assert_eq!(ids().await, now);
    }
}

#[tokio::test]
async fn sigquit_drains_as_sigterm_does() {
    let gate = Arc::new(Semaphore::new(0));
    let worker = gated(&gate).await;
    let mut router = Router::before(&[worker.url()], &[]).await;
    let stream = begin_stream(&router).await;
    router.signal("QUIT");
    eventually("it accepts no more connections", || async {
        match tokio::net::TcpStream::connect(router.address()).await {
            Ok(_) => Err("accepted"),
            Err(_) => Ok(()),
        }
    })
    .await;
    gate.add_permits(1);
    assert_eq!(stream.rest().await.unwrap(), "data: [DONE]\n\n");
    assert_eq!(router.ended().await, 0);
}

#[tokio::test]
async fn sigusr1_and_sigusr2_are_ignored_and_logged() {
    let gate = Arc::new(Semaphore::new(0));
    let worker = gated(&gate).await;
    let router = Router::before(&[worker.url()], &[]).await;
    let stream = begin_stream(&router).await;
    for name in ["USR1", "USR2"] {
        router.signal(name);
        eventually("the signal is logged", || async {
            let wanted = format!("\"signal\":\"SIG{name}\"");
            if router.log().contains(&wanted) { Ok(()) } else { Err(router.log()) }
        })
        .await;
    }
    gate.add_permits(1);
    assert_eq!(stream.rest().await.unwrap(), "data: [DONE]\n\n");
    assert_eq!(router.get("/liveness").await.status, 200);
}
