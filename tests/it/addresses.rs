//! Tests with names that have several addresses, and with a name server that does not answer.
//!
//! The router has a hosts file or a name server of its own, in its own mount namespace. Where the system does not allow
//! that, these tests print so and pass; unit tests of `dial`, `resolve` and `join` check the same with an injected
//! resolver.

#![expect(clippy::print_stderr, reason = "a test that cannot run here prints so")]

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::Worker;

/// Far less than a connect timeout, a probe's timeout, or the time that the system waits for a name server.
const SOON: Duration = Duration::from_secs(3);

/// A temporary file, which is deleted when dropped.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("smg-{}-{name}", std::process::id()));
        fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.0).is_err();
    }
}

/// The start of a command that runs another program with `file` mounted at `path`; `None` if the system does not allow
/// that.
fn with(file: &File, path: &str) -> Option<Vec<String>> {
    let script = format!("mount --bind {} {path} && exec \"$0\" \"$@\"", file.0.display());
    let wrapper = ["unshare", "--map-root-user", "--mount", "sh", "-c", &script].map(str::to_owned);
    let tried = std::process::Command::new(&wrapper[0]).args(&wrapper[1..]).arg("true").output();
    if tried.is_ok_and(|tried| tried.status.success()) {
        return Some(wrapper.to_vec());
    }
    eprintln!("not tested: this system does not allow a private mount namespace");
    None
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// A listener whose queue is full: a connection to it is neither accepted nor refused.
struct BlackHole {
    _listener: socket2::Socket,
    _waiting: Vec<socket2::Socket>,
}

impl BlackHole {
    fn at(address: SocketAddr) -> Self {
        let socket = || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let socket = socket.unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let listener = socket();
        listener.bind(&address.into()).unwrap();
        listener.listen(0).unwrap();
        // These connections fill the queue of the listener.
        let waiting = (0..4).map(|_| {
            let socket = socket();
            let _begun = socket.connect(&address.into()).is_err();
            socket
        });
        Self { _waiting: waiting.collect(), _listener: listener }
    }
}

/// A hosts file that gives `name` a dead first address and a live second one.
fn hosts(name: &str) -> File {
    // The system puts the address first that is closer to its own.
    File::new(name, &format!("127.0.0.1 localhost\n127.0.0.1 {name}\n127.0.0.2 {name}\n"))
}

#[tokio::test]
async fn a_worker_with_a_dead_first_address_becomes_ready_quickly() {
    let file = hosts("worker.test");
    let Some(wrapper) = with(&file, "/etc/hosts") else { return };
    let worker = Worker::plain_at("127.0.0.2:0").await;
    let port = worker.url().rsplit(':').next().unwrap().parse::<u16>().unwrap();
    let _dead = BlackHole::at(SocketAddr::from(([127, 0, 0, 1], port)));
    let url = format!("http://worker.test:{port}");
    let began = Instant::now();
    let router = Router::start_in(&strs(&wrapper), &["--worker-urls", &url]).await;
    router.knows_ready(1).await;
    assert!(began.elapsed() < SOON, "ready after {:?}", began.elapsed());
    // The prober has remembered which address answers, and requests use that, too.
    for _ in 0..4 {
        let began = Instant::now();
        assert_eq!(router.post("/generate", r#"{"model":"m"}"#).await.status, 200);
        assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
    }
}

/// The address of a router's mesh port, from its log.
fn mesh_address(router: &Router) -> SocketAddr {
    let log = router.log();
    let mut events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let event = events.find(|event| event["message"] == "mesh").unwrap();
    event["address"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_peer_with_a_dead_first_address_is_joined_quickly() {
    let file = hosts("peer.test");
    let Some(wrapper) = with(&file, "/etc/hosts") else { return };
    let mesh = ["--enable-mesh", "--mesh-port", "0"];
    let first = ["--mesh-server-name", "first", "--mesh-host", "127.0.0.2"];
    let first = Router::start(&[&mesh[..], &first].concat()).await;
    let port = mesh_address(&first).port();
    let _dead = BlackHole::at(SocketAddr::from(([127, 0, 0, 1], port)));
    let peer = format!("peer.test:{port}");
    let second = ["--mesh-server-name", "second", "--mesh-host", "127.0.0.3"];
    let second = [&mesh[..], &second, &["--mesh-peer-urls", &peer]].concat();
    let began = Instant::now();
    let second = Router::start_in(&strs(&wrapper), &second).await;
    eventually("the routers have joined", || async {
        let peers = first.get("/ha/status").await.json();
        let health = second.get("/ha/health").await.json();
        if health["status"] == "ok" { Ok(()) } else { Err((health, peers)) }
    })
    .await;
    assert!(began.elapsed() < SOON, "met after {:?}", began.elapsed());
}

#[tokio::test]
async fn a_silent_name_server_neither_delays_the_start_nor_counts_against_workers() {
    let file = File::new("silent", "nameserver 127.0.0.77\n");
    let Some(wrapper) = with(&file, "/etc/resolv.conf") else { return };
    let Ok(_name_server) = UdpSocket::bind("127.0.0.77:53") else {
        eprintln!("not tested: the port of name servers is not for everyone here");
        return;
    };
    let good = Worker::plain().await;
    let flags = [
        "--enable-mesh",
        "--mesh-host",
        "0.0.0.0",
        "--mesh-port",
        "0",
        "--mesh-join-timeout",
        "1s",
        "--mesh-peer-urls",
        "one.test:1,two.test:1,three.test:1",
        "--health-check-interval-secs",
        "0.2",
        "--health-check-timeout-secs",
        "0.5",
        "--health-failure-threshold",
        "1",
        "--worker-urls",
        "http://worker.test:1",
        &good.url(),
    ];
    let began = Instant::now();
    let router = Router::start_in(&strs(&wrapper), &flags).await;
    assert!(began.elapsed() < SOON, "it served after {:?}", began.elapsed());
    let shortages = r#"smg_own_shortages_total{kind="resolver"}"#;
    eventually("several look-ups have failed", || async {
        let met = router.metric(shortages).await;
        if met >= 3.0 { Ok(()) } else { Err(met) }
    })
    .await;
    let all = router.get("/workers").await.json();
    let workers = all["workers"].as_array().unwrap().iter();
    let states: Vec<_> = workers
        .map(|worker| {
            let url = worker["spec"]["url"].as_str().unwrap();
            (url.contains("worker.test"), worker["state"].clone(), worker["breaker"].clone())
        })
        .collect();
    assert!(states.contains(&(true, "pending".into(), "closed".into())), "{states:?}");
    assert!(states.contains(&(false, "ready".into(), "closed".into())), "{states:?}");
    assert_eq!(router.post("/generate", r#"{"model":"m"}"#).await.status, 200);
    let log = router.log();
    let lines = log.lines().filter(|line| line.contains("\"kind\":\"resolver\"")).count();
    assert!((1..=2).contains(&lines), "{log}");
    assert!(log.contains("/etc/resolv.conf"), "{log}");
}
