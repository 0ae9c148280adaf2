//! Tests of the reports to systemd (`NOTIFY_SOCKET`) and of its unit file.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::sync::Semaphore;

use crate::support::client;
use crate::support::router::{self, Router};
use crate::support::worker::{Talk, Worker};

const STREAM: &[u8] = br#"{"model":"m","stream":true}"#;

/// The next report: one datagram.
async fn report(supervisor: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let received =
        tokio::time::timeout(Duration::from_secs(20), supervisor.recv(&mut buffer)).await;
    let length = received.expect("a report within 20 s").unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[tokio::test]
async fn a_supervisor_learns_when_the_router_serves_and_when_it_drains() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let supervisor = UnixDatagram::bind(&path).unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let worker = Worker::start(move |mut talk: Talk| {
        let gate = Arc::clone(&opened);
        async move {
            talk.begin_stream().await;
            talk.chunk("data: 1\n\n").await.unwrap();
            gate.acquire().await.unwrap().forget();
            talk.end_stream().await;
            talk
        }
    })
    .await;

    let variable = format!("NOTIFY_SOCKET={}", path.display());
    let flags = ["--worker-urls", &worker.url()];
    let mut router = Router::start_in(&["env", &variable], &flags).await;
    let ready = report(&supervisor).await;
    assert_eq!(ready, format!("READY=1\nSTATUS=serving on {}\n", router.address()));
    router.knows_ready(1).await;

    let mut stream =
        client::begin(router.address(), "POST", "/generate", &[], STREAM).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "data: 1\n\n");
    router.signal("TERM");
    // The router reports that it stops when it begins to drain, and not when it has ended: the stream is still open.
    assert_eq!(report(&supervisor).await, "STOPPING=1\nSTATUS=draining\n");
    gate.add_permits(1);
    assert!(stream.next().await.is_none());
    assert_eq!(router.ended().await, 0);
    let further = supervisor.try_recv(&mut [0; 16]).map_err(|e| e.kind());
    assert_eq!(further, Err(std::io::ErrorKind::WouldBlock), "no further report");
}

#[tokio::test]
async fn a_router_serves_although_its_supervisor_does_not_listen() {
    let directory = tempfile::tempdir().unwrap();
    let variable = format!("NOTIFY_SOCKET={}", directory.path().join("absent").display());
    let mut router = Router::start_in(&["env", &variable], &[]).await;
    assert_eq!(router.get("/liveness").await.status, 200);
    assert!(router.log().contains("NOTIFY_SOCKET"), "{}", router.log());
    router.signal("TERM");
    assert_eq!(router.ended().await, 0);
}

/// The values of a setting in the unit file, in order.
fn unit(setting: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd/smg.service");
    let unit = std::fs::read_to_string(path).unwrap();
    let values = unit.lines().filter_map(|line| line.split_once('='));
    values.filter(|(name, _)| *name == setting).map(|(_, value)| value.to_owned()).collect()
}

#[tokio::test]
async fn the_unit_file_agrees_with_the_defaults() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd/smg.toml");
    let output = router::command().arg("check-config").arg("--config").arg(shipped).output().await;
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let config: toml::Table = String::from_utf8(output.stdout).unwrap().parse().unwrap();
    let number = |key: &str| config[key].as_integer().unwrap();

    assert_eq!(unit("Type"), ["notify"]);
    let stop: i64 = unit("TimeoutStopSec")[0].parse().unwrap();
    let needed = number("drain-settle-secs") + number("shutdown-grace-period-secs");
    assert!(stop >= needed + 10, "{stop} s are too short for {needed} s of draining");
    let descriptors: i64 = unit("LimitNOFILE")[0].parse().unwrap();
    assert!(descriptors > 2 * number("max-connections"), "{descriptors}");
    assert_eq!(unit("ExecReload").last().unwrap(), "/bin/kill -HUP $MAINPID");
}
