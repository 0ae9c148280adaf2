//! Tests of clusters as users see them: real processes on loopback, the commands of the document, `/ha/*`.
//!
//! Failures that need more than one machine (partitions, addresses that change) are tested in `tests/chaos`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::support::client;
use crate::support::eventually;
use crate::support::router::{Router, command};
use crate::support::worker::Worker;

/// Two shared keys of 32 bytes each, in base64.
pub(crate) const KEYS: [&str; 2] = [
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
];

/// Starts a router of a cluster on loopback, on a mesh port that the system chose.
pub(crate) async fn router(name: &str, peers: &[SocketAddr], more: &[&str]) -> Router {
    let peers: Vec<_> = peers.iter().map(ToString::to_string).collect();
    let mut arguments = vec!["--enable-mesh", "--mesh-server-name", name, "--mesh-port", "0"];
    arguments.extend(["--mesh-host", "127.0.0.1"]);
    if !peers.is_empty() {
        arguments.push("--mesh-peer-urls");
        arguments.extend(peers.iter().map(String::as_str));
    }
    arguments.extend(more);
    Router::start(&arguments).await
}

/// The address of a router for other routers, from its log.
pub(crate) fn mesh_address(router: &Router) -> SocketAddr {
    let log = router.log();
    let event: Value = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .find(|event: &Value| event["message"] == "mesh")
        .unwrap_or_else(|| panic!("no mesh in\n{log}"));
    event["address"].as_str().unwrap().parse().unwrap()
}

/// Starts three routers. The second and the third get only the address of the first one.
async fn cluster(more: &[&str]) -> Vec<Router> {
    let mut routers = vec![router("node1", &[], more).await];
    let first = [mesh_address(&routers[0])];
    for name in ["node2", "node3"] {
        routers.push(router(name, &first, more).await);
    }
    for router in &routers {
        sees(router, &[("node1", "ALIVE"), ("node2", "ALIVE"), ("node3", "ALIVE")]).await;
    }
    routers
}

async fn nodes(router: &Router) -> Vec<(String, String)> {
    let status = router.get("/ha/status").await.json();
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    nodes.iter().map(|node| (text(&node["name"]), text(&node["status"]))).collect()
}

/// Waits until a router lists exactly these routers.
pub(crate) async fn sees(router: &Router, expected: &[(&str, &str)]) {
    let expected: Vec<_> =
        expected.iter().map(|(name, status)| ((*name).to_owned(), (*status).to_owned())).collect();
    eventually(&format!("the router lists {expected:?}"), || async {
        let listed = nodes(router).await;
        if listed == expected { Ok(()) } else { Err(listed) }
    })
    .await;
}

/// The structure of a document: its keys, with the type of each value.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect()
        }
        Value::Array(items) => items.first().map_or_else(|| json!([]), |item| json!([shape(item)])),
        Value::String(_) => json!("text"),
        Value::Number(_) => json!("number"),
        Value::Bool(_) => json!("yes or no"),
        Value::Null => json!(null),
    }
}

/// The parts of `whole` whose keys are in `part`.
fn cut(whole: &Value, part: &Value) -> Value {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part
            .iter()
            .filter_map(|(name, part)| Some((name.clone(), cut(whole.get(name)?, part))))
            .collect(),
        (Value::Array(whole), Value::Array(part)) => part
            .first()
            .map_or_else(|| json!([]), |part| whole.iter().map(|item| cut(item, part)).collect()),
        (whole, _) => whole.clone(),
    }
}

#[tokio::test]
async fn three_routers_find_each_other_through_one() {
    let routers = cluster(&[]).await;
    for router in &routers {
        eventually("the router counts its peers", || async {
            let peers = router.metric("smg_mesh_peers_total").await;
            let connections =
                router.metric("smg_mesh_connections{lane=\"state\",state=\"up\"}").await;
            if peers == 2.0 && connections == 2.0 { Ok(()) } else { Err((peers, connections)) }
        })
        .await;
        let health = router.get("/ha/health").await;
        assert_eq!(health.status, 200);
        assert_eq!(health.json()["status"], "ok", "{}", health.text());
        let health = router.get("/health").await.json();
        let modes = ["leader", "follower", "read_only"];
        assert!(modes.iter().any(|mode| health["ha_mode"] == *mode), "{health}");
    }
    let list = routers[1].get("/ha/routers").await.json();
    let urls: Vec<_> =
        list["routers"].as_array().unwrap().iter().map(|r| r["url"].clone()).collect();
    let expected: Vec<_> =
        routers.iter().map(|r| json!(format!("http://{}", r.address()))).collect();
    assert_eq!(urls, expected);
}

/// Runs `smg mesh`. Returns its exit status and its output.
async fn console(words: &[&str], router: &Router) -> (Option<i32>, String) {
    let mut command = command();
    command.arg("mesh").args(words).args(["--router", &router.url("")]);
    let done = tokio::time::timeout(Duration::from_secs(20), command.output()).await;
    let done = done.expect("the command ends").unwrap();
    let output = [done.stdout, done.stderr].concat();
    (done.status.code(), String::from_utf8(output).unwrap())
}

#[tokio::test]
async fn the_console_shows_a_running_cluster() {
    let mut routers = cluster(&["--min-ready-workers", "0"]).await;
    let worker = Worker::plain().await;
    let spec = json!({ "url": worker.url() }).to_string();
    assert_eq!(routers[0].post("/workers?wait=all", spec).await.status, 202);

    let (code, output) = console(&["status"], &routers[1]).await;
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains(", as node2 sees it: 3 routers, 3 of them taking part"), "{output}");
    for name in ["node1", "node2", "node3"] {
        assert!(
            output.lines().any(|line| line.starts_with(name) && line.contains("ALIVE")),
            "{output}"
        );
    }
    let workers = output.lines().find(|line| line.starts_with("workers ")).unwrap_or_default();
    assert_eq!(workers.split_whitespace().nth(1), Some("1"), "{output}");

    // A write that is replicated between two answers is a difference, too.
    eventually("the routers are equal", async || {
        let (code, output) = console(&["diff", "--json"], &routers[1]).await;
        let answer: Value =
            serde_json::from_str(&output).map_err(|error| format!("{error}: {output}"))?;
        let all = answer["routers"].as_object().map_or(0, |all| all.len());
        if code == Some(0) && answer["equal"] == true && all == 3 { Ok(()) } else { Err(output) }
    })
    .await;

    let mut watching = command();
    watching.args(["mesh", "events", "--router", &routers[0].url("")]);
    let mut watching = watching.spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    // The command receives events from the moment on when it has printed the current state.
    let mut printed = Vec::new();
    let first = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await;
    printed.push(first.expect("the command prints something").unwrap().unwrap());
    routers.remove(2).signal("KILL");
    while !printed.iter().any(|line| line.contains("node3") && line.contains("DOWN")) {
        let line = tokio::time::timeout(Duration::from_secs(15), lines.next_line()).await;
        printed.push(line.unwrap_or_else(|_| panic!("no DOWN in {printed:?}")).unwrap().unwrap());
    }
    let (code, output) = console(&["diff"], &routers[0]).await;
    assert_eq!(code, Some(1), "one of them can not be asked: {output}");
    assert!(output.contains("node3: DOWN"), "{output}");

    watching.kill().await.unwrap();
    routers[1].signal("TERM");
    assert_eq!(routers[1].ended().await, 0);
    let (code, output) = console(&["status"], &routers[1]).await;
    assert_eq!(code, Some(1));
    assert!(output.contains("no answer"), "{output}");
}

/// Compares the status with the document's JSON, key by key. Additional keys are allowed.
#[tokio::test]
async fn the_status_has_the_documents_shape() {
    let document: Value = serde_json::from_str(include_str!("../golden/ha-status.json")).unwrap();
    let routers = cluster(&[]).await;
    eventually("all stores were compared at least once", || async {
        let status = routers[0].get("/ha/status").await.json();
        let shown = shape(&cut(&status, &document));
        if shown == shape(&document) { Ok(()) } else { Err(status) }
    })
    .await;
    let status = routers[0].get("/ha/status").await.json();
    assert_eq!((&status["node_name"], &status["node_count"]), (&json!("node1"), &json!(3)));
    let sync = status["stores"]["workers"]["last_sync"].as_str().unwrap();
    assert!(sync.ends_with('Z') && sync.contains('T'), "{sync}");
}

/// A generation is above 2^53, where JSON readers that use doubles for numbers round. So it is sent as a text of
/// digits.
#[tokio::test]
async fn no_json_reader_rounds_a_generation() {
    let first = router("node1", &[], &[]).await;
    let path = "/ha/events";
    let mut events = client::begin(first.address(), "GET", path, &[], b"").await.unwrap();
    let second = router("node2", &[mesh_address(&first)], &[]).await;
    sees(&first, &[("node1", "ALIVE"), ("node2", "ALIVE")]).await;
    let mut text = String::new();
    while !text.contains("\"name\":\"node2\"") || !text.ends_with("\n\n") {
        let piece = tokio::time::timeout(Duration::from_secs(5), events.next());
        text += &String::from_utf8_lossy(&piece.await.unwrap().unwrap().unwrap());
    }
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let of_event = data
        .filter_map(|data| serde_json::from_str::<Value>(data).ok())
        .find(|event| event["name"] == "node2")
        .unwrap();
    let (health, status) = (first.get("/ha/health").await, first.get("/ha/status").await);
    let of_second = second.get("/ha/health").await.json()["node"]["generation"].clone();
    for generation in [
        &of_event["generation"],
        &health.json()["peers"][0]["generation"],
        &status.json()["nodes"][1]["generation"],
    ] {
        assert_eq!(*generation, of_second);
        let digits = generation.as_str().unwrap();
        assert!(digits.parse::<u64>().unwrap() > 1 << 53, "{digits}");
    }
    let alone = Router::start(&[]).await.get("/ha/health").await.json();
    assert!(alone["node"]["generation"].is_string(), "{alone}");
}

#[tokio::test]
async fn status_drift_and_metrics_name_the_same_stores() {
    let router = router("node1", &[], &[]).await;
    let status = router.get("/ha/status").await.json();
    let drift = router.get("/ha/drift").await.json();
    let names = |stores: &Value| -> Vec<String> {
        stores.as_object().unwrap().keys().map(ToString::to_string).collect()
    };
    let shown = names(&status["stores"]);
    for store in
        ["workers", "policies", "sessions", "rules", "rights", "usage", "tokens", "rosters"]
    {
        assert!(shown.iter().any(|name| name == store), "{store} in {status}");
    }
    assert_eq!(names(&drift["digests"]), shown);
    for metric in ["store_entries", "store_bytes", "tombstones", "state_digest"] {
        let prefix = format!("smg_mesh_{metric}{{store=\"");
        eventually(&format!("{metric} names the stores of /ha/status"), || async {
            let text = router.get("/metrics").await.text();
            let series =
                text.lines().filter_map(|line| line.strip_prefix(&prefix)?.split('"').next());
            if series.eq(shown.iter().map(String::as_str)) { Ok(()) } else { Err(text) }
        })
        .await;
    }
}

/// Each router's observations of a worker are listed under its own name.
#[tokio::test]
async fn workers_are_listed_with_the_observations_of_each_router() {
    let worker = Worker::plain().await;
    let router = router("node1", &[], &["--worker-urls", &worker.url()]).await;
    router.knows_ready(1).await;
    let document = router.get("/ha/workers").await.json();
    assert_eq!((&document["total"], &document["node_name"]), (&json!(1), &json!("node1")));
    assert_eq!(document["workers"][0]["observations"]["node1"]["breaker"], "closed", "{document}");
}

#[tokio::test]
async fn a_router_alone_answers_for_itself() {
    let router = Router::start(&[]).await;
    let status = router.get("/ha/status").await.json();
    assert_eq!((&status["node_count"], &status["ha_mode"]), (&json!(1), &json!("standalone")));
    assert_eq!(status["nodes"][0]["status"], "ALIVE");
    for path in ["/ha/health", "/ha/drift", "/ha/routers", "/ha/workers"] {
        assert_eq!(router.get(path).await.status, 200, "{path}");
    }
    assert_eq!(router.get("/ha/policies").await.json()["default"], "cache_aware");
    assert_eq!(router.get("/ha/keys").await.code(), "mesh_disabled");
    assert!(!router.log().contains("39527"));
}

#[tokio::test]
async fn a_dead_router_is_down_and_stays_listed() {
    let mut routers = cluster(&[]).await;
    let killed = Instant::now();
    let dead = routers.remove(1);
    dead.signal("KILL");
    for router in &routers {
        sees(router, &[("node1", "ALIVE"), ("node2", "DOWN"), ("node3", "ALIVE")]).await;
        let status = router.metric("smg_mesh_peer_status{peer=\"node2\"}").await;
        assert_eq!((status, router.metric("smg_mesh_peers_total").await), (0.0, 1.0));
        let transitions = "smg_mesh_state_transitions_total";
        let suspected =
            format!("{transitions}{{from_state=\"ALIVE\",peer=\"node2\",to_state=\"SUSPECTED\"}}");
        assert!(router.metric(&suspected).await >= 1.0, "DOWN came without SUSPECTED");
    }
    assert!(killed.elapsed() < Duration::from_secs(9), "{:?}", killed.elapsed());
    let health = routers[0].get("/ha/health").await.json();
    assert_eq!(health["status"], "degraded");
    assert_eq!(health["reasons"][0], "node2 is DOWN");
    // The router returns with the same name on another port. It must be listed once.
    let first = [mesh_address(&routers[0])];
    let _back = router("node2", &first, &[]).await;
    for router in &routers {
        sees(router, &[("node1", "ALIVE"), ("node2", "ALIVE"), ("node3", "ALIVE")]).await;
    }
}

/// A signal and the HTTP route have the same effect.
#[tokio::test]
async fn a_router_that_leaves_announces_it_and_is_listed_nowhere_afterwards() {
    for over_http in [false, true] {
        let mut routers = cluster(&["--drain-settle-secs", "1"]).await;
        let mut events =
            client::begin(routers[0].address(), "GET", "/ha/events", &[], b"").await.unwrap();
        let mut leaver = routers.remove(2);
        let begun = Instant::now();
        if over_http {
            assert_eq!(leaver.post("/ha/shutdown", "").await.status, 202);
        } else {
            leaver.signal("TERM");
        }
        let mut text = String::new();
        while !text.contains("\"to\":\"LEAVING\"") {
            let piece = tokio::time::timeout(Duration::from_secs(5), events.next());
            text += &String::from_utf8_lossy(&piece.await.unwrap().unwrap().unwrap());
        }
        assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
        assert!(text.starts_with("event: routers\n"), "{text}");
        assert_eq!(leaver.ended().await, 0);
        for router in &routers {
            sees(router, &[("node1", "ALIVE"), ("node2", "ALIVE")]).await;
            let metrics = router.get("/metrics").await.text();
            assert!(!metrics.contains("smg_mesh_peer_status{peer=\"node3\"}"));
            assert!(
                !metrics.contains("to_state=\"DOWN\""),
                "the departure must not look like a failure"
            );
        }
    }
}

#[tokio::test]
async fn a_second_router_of_a_name_is_refused_and_the_first_stays_a_member() {
    let routers = cluster(&[]).await;
    let first = [mesh_address(&routers[0])];
    let second = router("node2", &first, &[]).await;
    eventually("the second router is refused", || async {
        let health = second.get("/ha/health").await.json();
        if health["status"] == "refused" { Ok(()) } else { Err(health) }
    })
    .await;
    let health = second.get("/ha/health").await.json();
    let reason = health["reasons"][0].as_str().unwrap();
    assert!(reason.contains("node2") && reason.contains("--mesh-server-name"), "{reason}");
    for contested in [&second, &routers[1]] {
        eventually("another router reports the conflict", || async {
            let conflict = contested.metric("smg_mesh_name_conflict").await;
            if conflict == 1.0 { Ok(()) } else { Err(conflict) }
        })
        .await;
    }
    for router in &routers {
        sees(router, &[("node1", "ALIVE"), ("node2", "ALIVE"), ("node3", "ALIVE")]).await;
    }
}

#[tokio::test]
async fn routers_of_another_cluster_are_refused() {
    let one = router("node1", &[], &[]).await;
    let other = router("node2", &[mesh_address(&one)], &["--mesh-cluster-id", "other"]).await;
    eventually("it shows why it is refused", || async {
        let health = other.get("/ha/health").await.json();
        let error = health["join"][0]["error"].as_str().unwrap_or_default().to_owned();
        if error.contains("--mesh-cluster-id") { Ok(()) } else { Err(health) }
    })
    .await;
    assert_eq!(other.get("/ha/health").await.json()["status"], "joining");
    sees(&one, &[("node1", "ALIVE")]).await;
}

#[tokio::test]
async fn a_join_address_without_a_router_is_shown_with_its_error() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let more = ["--mesh-peer-urls", "nowhere.invalid"];
    let router = router("node1", &[address], &more).await;
    eventually("both join addresses are shown", || async {
        let health = router.get("/ha/health").await.json();
        let errors: Vec<_> =
            health["join"].as_array().unwrap().iter().map(|j| j["error"].clone()).collect();
        let all_shown = errors.len() == 2 && errors.iter().all(Value::is_string);
        if all_shown && health["status"] == "joining" { Ok(()) } else { Err(health) }
    })
    .await;
    // The router serves requests meanwhile.
    assert_eq!(router.get("/liveness").await.status, 200);
}

#[tokio::test]
async fn a_shared_key_keeps_others_out_and_rotates_at_run_time() {
    let routers = cluster(&["--mesh-encryption-key", KEYS[0]]).await;
    let first = [mesh_address(&routers[0])];
    for (name, more) in [
        ("plain", &[][..]),
        ("wrong", &["--mesh-encryption-key", "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="][..]),
    ] {
        let stranger = router(name, &first, more).await;
        eventually("it shows the reason", || async {
            let health = stranger.get("/ha/health").await.json();
            let error = health["join"][0]["error"].as_str().unwrap_or_default().to_owned();
            if error.contains("key") { Ok(()) } else { Err(health) }
        })
        .await;
    }
    sees(&routers[0], &[("node1", "ALIVE"), ("node2", "ALIVE"), ("node3", "ALIVE")]).await;
    let refused = "smg_mesh_rejected_total{reason=\"no_shared_key\"}";
    assert!(routers[0].metric(refused).await >= 1.0);

    let all_took = |answer: &client::Answer| {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answered = answer.json();
        assert_eq!(answered["nodes"].as_object().unwrap().len(), 3, "{answered}");
        answered["id"].as_str().unwrap().to_owned()
    };
    let installed = routers[1].post("/ha/keys", json!({ "key": KEYS[1] }).to_string()).await;
    let new = all_took(&installed);
    let keys = routers[2].get("/ha/keys").await.json();
    let old = keys["in_use"].as_str().unwrap().to_owned();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 2);
    assert!(!keys.to_string().contains(KEYS[1]));
    let in_use = routers[2].send("DELETE", &format!("/ha/keys/{old}"), &[], b"").await;
    assert_eq!((in_use.status, in_use.code().as_str()), (409, "key_in_use"));
    all_took(&routers[2].send("PUT", &format!("/ha/keys/{new}"), &[], b"").await);
    all_took(&routers[0].send("DELETE", &format!("/ha/keys/{old}"), &[], b"").await);
    // Another router has only the new key.
    let _newcomer = router("node4", &first, &["--mesh-encryption-key", KEYS[1]]).await;
    for router in &routers {
        sees(
            router,
            &[("node1", "ALIVE"), ("node2", "ALIVE"), ("node3", "ALIVE"), ("node4", "ALIVE")],
        )
        .await;
        let lost = router.get("/metrics").await.text();
        assert!(!lost.contains("to_state=\"SUSPECTED\""), "a rotation cost a suspicion");
    }
}

/// A directory with an authority and certificates for routers.
struct Certificates {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    /// The flags of the router with this name.
    fn flags(&self, name: &str) -> Vec<String> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |kind: &str| self.dir.path().join(format!("{name}.{kind}"));
        std::fs::write(path("pem"), certificate.pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        let ca = self.dir.path().join("ca.pem");
        vec![
            format!("--mesh-tls-cert={}", path("pem").display()),
            format!("--mesh-tls-key={}", path("key").display()),
            format!("--mesh-tls-ca={}", ca.display()),
        ]
    }
}

async fn secured(name: &str, peers: &[SocketAddr], flags: &[String]) -> Router {
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    router(name, peers, &flags).await
}

#[tokio::test]
async fn mutual_tls_binds_names_to_certificates() {
    let ours = Certificates::new();
    let one = secured("node1", &[], &ours.flags("node1")).await;
    let first = [mesh_address(&one)];
    let two = secured("node2", &first, &ours.flags("node2")).await;
    for router in [&one, &two] {
        sees(router, &[("node1", "ALIVE"), ("node2", "ALIVE")]).await;
    }
    let thief = secured("node1x", &first, &ours.flags("node3")).await;
    let foreign = secured("node4", &first, &Certificates::new().flags("node4")).await;
    let plain = router("node5", &first, &[]).await;
    for stranger in [&thief, &foreign, &plain] {
        eventually("it shows the reason", || async {
            let health = stranger.get("/ha/health").await.json();
            if health["join"][0]["error"].is_string() { Ok(()) } else { Err(health) }
        })
        .await;
    }
    assert!(one.metric("smg_mesh_rejected_total{reason=\"name\"}").await >= 1.0);
    assert!(one.metric("smg_mesh_rejected_total{reason=\"tls\"}").await >= 1.0);
    sees(&one, &[("node1", "ALIVE"), ("node2", "ALIVE")]).await;
}

#[tokio::test]
async fn connections_that_are_not_from_routers_are_counted_and_change_nothing() {
    let routers = cluster(&[]).await;
    let address = mesh_address(&routers[0]);
    let huge = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0xff; 1 << 16]].concat();
    for bytes in [&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], &[0; 4096], &huge] {
        let mut stranger = TcpStream::connect(address).await.unwrap();
        // The connection may be closed before all is written.
        let _cut = stranger.write_all(bytes).await.is_err();
        let mut answer = Vec::new();
        let ended =
            tokio::time::timeout(Duration::from_secs(20), stranger.read_to_end(&mut answer));
        assert!(ended.await.is_ok(), "the connection stays open for {} bytes", bytes.len());
    }
    eventually("the connections are counted", || async {
        let counted = routers[0].metric("smg_mesh_rejected_total{reason=\"not_http2\"}").await;
        if counted >= 3.0 { Ok(()) } else { Err(counted) }
    })
    .await;
    sees(&routers[0], &[("node1", "ALIVE"), ("node2", "ALIVE"), ("node3", "ALIVE")]).await;
    let suspected = routers[1].get("/metrics").await.text();
    assert!(!suspected.contains("to_state=\"SUSPECTED\""));
}

#[tokio::test]
async fn only_this_machine_or_an_admin_shuts_a_router_down() {
    let mut open = Router::start(&[]).await;
    assert_eq!(open.post("/ha/shutdown", "").await.status, 202);
    assert_eq!(open.ended().await, 0);
    let mut keyed = Router::start(&["--admin-api-key", "k"]).await;
    assert_eq!(keyed.post("/ha/shutdown", "").await.status, 401);
    let admin = [("authorization", "Bearer k")];
    assert_eq!(keyed.send("POST", "/ha/shutdown", &admin, b"").await.status, 202);
    assert_eq!(keyed.ended().await, 0);
}

#[tokio::test]
async fn a_router_with_join_addresses_is_not_ready_before_it_has_loaded_the_state() {
    let worker = Worker::plain().await;
    // No router listens at this address.
    let more = ["--mesh-peer-urls", "127.0.0.1:1", "--mesh-join-timeout", "2s", "--worker-urls"];
    let alone = router("node1", &[], &[&more[..], &[&worker.url()]].concat()).await;
    let first = alone.get("/readiness").await;
    assert_eq!((first.status, first.json()["reason"].as_str()), (503, Some("joining")));
    // The router serves requests nevertheless.
    eventually("the router serves", || async {
        let body = json!({ "model": "m", "messages": [] }).to_string();
        let answer = alone.post("/v1/chat/completions", body).await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    eventually("it is ready without others after the timeout", || async {
        let answer = alone.get("/readiness").await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    let joined = router("node2", &[mesh_address(&alone)], &[]).await;
    eventually("it has loaded the worker and is ready long before the timeout", || async {
        let answer = joined.get("/readiness").await;
        let ready = answer.status == 200 && answer.json()["total_workers"] == 1;
        if ready { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

#[tokio::test]
async fn a_write_waits_for_the_requested_routers_and_lists_those_that_applied_it() {
    let routers = cluster(&["--min-ready-workers", "0"]).await;
    let worker = Worker::plain().await;
    let spec = json!({ "url": worker.url() }).to_string();
    let added = routers[0].post("/workers?wait=all&timeout=5s", spec).await;
    assert_eq!(added.status, 202, "{}", added.text());
    let receipt = json!({
        "applied": ["node1", "node2", "node3"], "pending": [], "not_applied": [], "complete": true
    });
    assert_eq!(added.json()["receipt"], receipt);
    let id = added.json()["id"].as_str().unwrap().to_owned();
    for router in &routers {
        assert_eq!(router.get(&format!("/workers/{id}")).await.status, 200, "after the receipt");
    }
    eventually("both acknowledgements are timed", async || {
        let count = routers[0].metric("smg_mesh_sync_latency_seconds_count").await;
        if count >= 2.0 { Ok(()) } else { Err(count) }
    })
    .await;
    for (query, reason) in [
        ("wait=everybody", "wait \"everybody\" is not one of local, quorum, all"),
        ("wait=all&timeout=2h", "timeout \"2h\" is not a time of at most 60s"),
        ("wait=all&timeout=soon", "timeout \"soon\""),
    ] {
        let refused = routers[1].post(&format!("/workers/{id}/drain?{query}"), "").await;
        assert_eq!(refused.status, 400);
        assert!(
            refused.text().contains(reason.replace('"', "\\\"").as_str()),
            "{}",
            refused.text()
        );
    }
}
