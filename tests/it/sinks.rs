//! Tests of standard error and standard output that are not read, are full, or whose reader is gone. None of that may
//! cost a request, the process, or more than a second of the shutdown.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{PipeReader, Read as _};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};
use tokio::process::Child;

use crate::support::client::{self, Connection};
use crate::support::eventually;
use crate::support::mock::Mock;
use crate::support::router::command;

const CHAT: &str = r#"{"model":"m","max_tokens":2,"messages":[]}"#;

/// How long a router that is not blocked may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A router whose standard error belongs to the test, so that the test cannot read the address from its log.
struct SilentRouter {
    child: Child,
    address: SocketAddr,
}

impl SilentRouter {
    /// Starts a router for `worker` that logs text to `stderr`, and waits until it has a ready worker.
    async fn start(worker: &Mock, stderr: impl Into<Stdio>, flags: &[&str]) -> Self {
        let port = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        };
        let child = command()
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--prometheus-port", "0"])
            .args(["--drain-settle-secs", "0", "--worker-urls", &worker.url()])
            .args(flags)
            .stderr(stderr)
            .spawn()
            .unwrap();
        let router = Self { child, address: SocketAddr::from(([127, 0, 0, 1], port)) };
        eventually("the router is ready", || async {
            let asked = client::try_send(router.address, "GET", "/readiness", &[], b"");
            match tokio::time::timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) if answer.status == 200 => Ok(()),
                Ok(Ok(answer)) => Err(answer.text()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_elapsed) => Err("it hangs".to_owned()),
            }
        })
        .await;
        router
    }

    /// Sends `requests` chats over eight connections, and requests `/liveness` meanwhile.
    async fn serves(&self, requests: usize) {
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let address = self.address;
            clients.spawn(async move {
                let mut connection = Connection::open(address).await.unwrap();
                for nth in 0..requests.div_ceil(8) {
                    let asked = connection.post("/v1/chat/completions", &[], CHAT);
                    let answer = tokio::time::timeout(PATIENCE, asked).await;
                    let answer = answer.unwrap_or_else(|_| panic!("request {nth} hangs")).unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                }
            });
        }
        while !clients.is_empty() {
            let asked = Instant::now();
            let alive = client::try_send(self.address, "GET", "/liveness", &[], b"");
            let alive = tokio::time::timeout(Duration::from_secs(1), alive).await;
            assert_eq!(alive.expect("/liveness answers within a second").unwrap().status, 200);
            assert!(asked.elapsed() < Duration::from_secs(1));
            tokio::select! {
                ended = clients.join_next() => ended.unwrap().unwrap(),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    }

    /// Makes the router log `lines` lines of more than 1 KB, each with a character that a log must escape.
    async fn logs(&self, lines: usize) {
        let model = "%e2%80%ae".repeat(170);
        let mut connection = Connection::open(self.address).await.unwrap();
        let path = format!("/ha/policies/{model}");
        for _ in 0..lines {
            let asked = connection.put(&path, r#"{"policy":"random"}"#);
            let answer =
                tokio::time::timeout(PATIENCE, asked).await.expect("the router hangs").unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }

    async fn dropped(&self, reason: &str) -> u64 {
        let metrics = client::send(self.address, "GET", "/metrics", &[], b"").await.text();
        let series = format!("smg_log_dropped_total{{reason=\"{reason}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&series));
        line.unwrap_or_else(|| panic!("{series} is not in\n{metrics}")).parse().unwrap()
    }

    async fn logs_until_dropped(&self, reason: &str) {
        eventually("a line is lost", || async {
            self.logs(1).await;
            if self.dropped(reason).await > 0 { Ok(()) } else { Err(()) }
        })
        .await;
    }

    /// Stops the router by SIGTERM, and returns how long that took.
    async fn ends_cleanly(mut self) -> Duration {
        let signalled = Instant::now();
        let pid = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").arg(&pid).status().unwrap().success());
        let ended = tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await;
        assert_eq!(ended.expect("the router exits").unwrap().code(), Some(0));
        signalled.elapsed()
    }
}

/// Reads a pipe to its end on a thread. Returns the bytes that have arrived so far.
fn read_all(mut pipe: PipeReader) -> Arc<Mutex<Vec<u8>>> {
    let come = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&come);
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut piece) {
            kept.lock().unwrap().extend_from_slice(&piece[..length]);
        }
    });
    come
}

fn text(come: &Mutex<Vec<u8>>) -> String {
    String::from_utf8_lossy(&come.lock().unwrap()).into_owned()
}

#[tokio::test]
async fn the_reader_of_the_log_may_close_the_pipe() {
    let worker = Mock::start("w").await;
    let (reader, writer) = std::io::pipe().unwrap();
    let router = SilentRouter::start(&worker, writer, &["--log-level", "debug"]).await;
    router.serves(16).await;
    drop(reader);
    router.serves(300).await;
    router.logs_until_dropped("closed").await;
    assert!(router.ends_cleanly().await < Duration::from_secs(5));
}

#[tokio::test]
async fn the_log_may_have_no_reader_from_the_start() {
    let worker = Mock::start("w").await;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let router =
        SilentRouter::start(&worker, writer, &["--log-level", "debug", "--log-json"]).await;
    router.serves(100).await;
    assert!(router.dropped("closed").await > 0);
    router.ends_cleanly().await;
}

#[tokio::test]
async fn a_full_disk_does_not_stop_the_router() {
    let worker = Mock::start("w").await;
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let router = SilentRouter::start(&worker, full, &["--log-level", "debug"]).await;
    router.serves(300).await;
    assert!(router.dropped("no_space").await > 0);
    router.ends_cleanly().await;
}

#[tokio::test]
async fn a_pipe_that_is_not_read_blocks_nothing_and_lost_lines_are_reported() {
    let worker = Mock::start("w").await;
    let (reader, writer) = std::io::pipe().unwrap();
    let router = SilentRouter::start(&worker, writer, &["--log-level", "debug"]).await;
    router.serves(300).await;
    // The pipe holds 64 KiB and the router 1 MiB of lines; further lines are lost.
    router.logs(2000).await;
    router.serves(300).await;
    let lost = router.dropped("queue_full").await;
    assert!(lost > 100, "{lost}");
    let come = read_all(reader);
    eventually("the lost lines are reported", || async {
        let log = text(&come);
        let reported: u64 = log
            .lines()
            .filter(|line| line.contains("ERROR") && line.contains("lines of the log were lost"))
            .map(|line| line.rsplit("lines=").next().unwrap().parse::<u64>().unwrap())
            .sum();
        let lost = router.dropped("queue_full").await;
        if reported == lost { Ok(()) } else { Err((reported, lost)) }
    })
    .await;
    for line in text(&come).lines() {
        assert!(line.starts_with("20"), "no line is torn: {line:?}");
    }
    router.ends_cleanly().await;
}

#[tokio::test]
async fn the_shutdown_waits_at_most_a_second_for_the_log() {
    let worker = Mock::start("w").await;
    let (reader, writer) = std::io::pipe().unwrap();
    let router = SilentRouter::start(&worker, writer, &["--log-level", "debug"]).await;
    router.logs(100).await;
    let took = router.ends_cleanly().await;
    assert!((Duration::from_secs(1)..Duration::from_secs(4)).contains(&took), "{took:?}");
    drop(reader);

    let (reader, writer) = std::io::pipe().unwrap();
    let router = SilentRouter::start(&worker, writer, &["--log-level", "debug"]).await;
    router.logs(100).await;
    let come = read_all(reader);
    router.ends_cleanly().await;
    eventually("the last line has arrived", || async {
        let log = text(&come);
        let last = log.lines().last().unwrap_or_default().to_owned();
        if last.ends_with(": the router has shut down") { Ok(()) } else { Err(last) }
    })
    .await;
    assert_eq!(
        text(&come).matches("policy set").count(),
        100,
        "no line is lost while the pipe is read"
    );
}

#[tokio::test]
async fn a_models_name_can_neither_forge_a_line_nor_control_the_terminal() {
    let worker = Mock::start("w").await;
    let (reader, writer) = std::io::pipe().unwrap();
    let router = SilentRouter::start(&worker, writer, &["--log-level", "debug"]).await;
    let come = read_all(reader);
    let forged = "2027-01-01T00:00:00Z ERROR smg: all is lost";
    let mut connection = Connection::open(router.address).await.unwrap();
    // The API refuses control characters. A line separator and a change of writing direction are no control characters.
    for (before, after, status) in
        [("%0d%0a", "%1b%5b2J%c2%9b", 400), ("%e2%80%a8", "%e2%80%ae", 200)]
    {
        let path = format!("/ha/policies/m{before}{}{after}", forged.replace(' ', "%20"));
        let answer = connection.put(&path, r#"{"policy":"random"}"#).await.unwrap();
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    router.ends_cleanly().await;
    let line = eventually("the line has arrived", || async {
        let log = text(&come);
        let set = log.lines().find(|line| line.contains("policy set")).map(str::to_owned);
        if log.contains(": the router has shut down") {
            Ok(set.expect("it is logged"))
        } else {
            Err(log)
        }
    })
    .await;
    assert!(line.contains(&format!("model=m\\u2028{forged}\\u202e")), "{line:?}");
    let log = text(&come);
    assert!(!log.lines().any(|line| line.starts_with(forged)), "{log}");
    let controls = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{202e}');
    assert!(!log.chars().any(|c| controls(c) && c != '\n'), "{log:?}");
}

/// A JSON document in which no object has a repeated key.
struct Unrepeated;

impl<'de> Deserialize<'de> for Unrepeated {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Unrepeated {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut seen = std::collections::BTreeSet::new();
        while let Some((key, _value)) = map.next_entry::<String, Self>()? {
            if !seen.insert(key.clone()) {
                return Err(serde::de::Error::custom(format!("{key:?} comes twice")));
            }
        }
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }
}

#[tokio::test]
async fn json_lines_repeat_no_key_and_quote_a_request_id_once() {
    let worker = Mock::start("w").await;
    let (reader, writer) = std::io::pipe().unwrap();
    let mesh = ["--enable-mesh", "--mesh-host", "127.0.0.1", "--mesh-port", "0"];
    let flags = [&["--log-level", "debug", "--log-json"][..], &mesh].concat();
    let router = SilentRouter::start(&worker, writer, &flags).await;
    let come = read_all(reader);
    let named = [("x-request-id", "mine-1")];
    for (method, path, status) in
        [("POST", "/v1/chat/completions", 200), ("GET", "/workers", 200), ("GET", "/none", 404)]
    {
        let answer = client::send(router.address, method, path, &named, CHAT.as_bytes()).await;
        assert_eq!(answer.status, status, "{path}");
    }
    // One attempt fails, and one stream breaks off.
    for fault in [r#"{"cut_before_head":true}"#, r#"{"cut_after_chunks":1}"#] {
        worker.faults(&format!("{{\"script\":{fault},\"next\":1}}"));
        let body = br#"{"model":"m","stream":true,"messages":[]}"#;
        let path = "/v1/chat/completions";
        let _cut = client::try_send(router.address, "POST", path, &named, body).await.is_err();
    }
    router.ends_cleanly().await;
    let log = eventually("the last line has arrived", || async {
        let log = text(&come);
        if log.contains("\"the router has shut down\"") { Ok(log) } else { Err(log) }
    })
    .await;
    let mut messages = std::collections::BTreeSet::new();
    for line in log.lines() {
        serde_json::from_str::<Unrepeated>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        if let Some(id) = event["request_id"].as_str().filter(|id| id.contains("mine")) {
            assert_eq!(id, "mine-1", "{line}");
            messages.insert(event["message"].as_str().unwrap().to_owned());
        }
        assert!(event["spans"].is_null(), "{line}");
    }
    let expected = ["attempt failed", "inference", "local", "refused", "response broke off"];
    assert!(messages.iter().eq(expected.iter()), "{messages:?}");
    assert!(log.contains("\"span\":{\"task\":"), "tasks name themselves:\n{log}");
}

#[tokio::test]
async fn commands_survive_a_reader_that_closes_the_pipe() {
    let worker = Mock::start("w").await;
    let router = SilentRouter::start(&worker, Stdio::null(), &[]).await;
    let url = format!("http://{}", router.address);
    for words in [
        &["demo", "--once", "--seconds", "1", "--routers", "1", "--users", "2"][..],
        &["mesh", "status", "--router", &url],
        &["mesh", "events", "--router", &url],
        &["check-config"],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command().args(words).stdout(writer).spawn().unwrap().wait_with_output();
        let output = tokio::time::timeout(Duration::from_secs(30), output).await.unwrap().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*errors), (Some(0), ""), "{words:?}");
    }
    // The mistakes cannot be printed; the exit status reports the failure.
    for words in [&["check-config", "--port", "x"][..], &["--prot"], &["demo", "--users", "0"]] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let status = command().args(words).stderr(full).status().await.unwrap();
        assert_eq!(status.code(), Some(2), "{words:?}");
    }
}
