//! Several routers as one, as their users meet them: real processes on loopback, the commands of the document, `/ha/*`.
//!
//! What needs more than one machine (partitions, addresses that change) is in `tests/chaos`.

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

/// 32 bytes each.
const KEYS: [&str; 2] = [
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
];

/// A router of a cluster on loopback, on a mesh port that the system chose.
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

/// Where other routers reach it.
pub(crate) fn mesh_address(router: &Router) -> SocketAddr {
    let log = router.log();
    let event: Value = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .find(|event: &Value| event["message"] == "mesh")
        .unwrap_or_else(|| panic!("no mesh in\n{log}"));
    event["address"].as_str().unwrap().parse().unwrap()
}

/// Three routers: the others are told of the first only.
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

/// Waits until a router lists exactly these.
pub(crate) async fn sees(router: &Router, expected: &[(&str, &str)]) {
    let expected: Vec<_> =
        expected.iter().map(|(name, status)| ((*name).to_owned(), (*status).to_owned())).collect();
    eventually(&format!("it lists {expected:?}"), || async {
        let seen = nodes(router).await;
        if seen == expected { Ok(()) } else { Err(seen) }
    })
    .await;
}

/// What a document looks like: its keys, with the kind of each value.
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

/// Takes from `whole` what `part` names.
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
        eventually("it counts its peers", || async {
            let peers = router.metric("smg_mesh_peers_total").await;
            let connections =
                router.metric("smg_mesh_connections{lane=\"state\",state=\"up\"}").await;
            if peers == 2.0 && connections == 2.0 { Ok(()) } else { Err((peers, connections)) }
        })
        .await;
        let health = router.get("/ha/health").await;
        assert_eq!(health.status, 200);
        assert_eq!(health.json()["status"], "ok", "{}", health.text());
        assert_eq!(router.get("/health").await.json()["ha_mode"], "mesh");
    }
    let list = routers[1].get("/ha/routers").await.json();
    let urls: Vec<_> =
        list["routers"].as_array().unwrap().iter().map(|r| r["url"].clone()).collect();
    let expected: Vec<_> =
        routers.iter().map(|r| json!(format!("http://{}", r.address()))).collect();
    assert_eq!(urls, expected);
}

/// What `smg mesh` says, and its exit status.
async fn console(words: &[&str], router: &Router) -> (Option<i32>, String) {
    let mut command = command();
    command.arg("mesh").args(words).args(["--router", &router.url("")]);
    let done = tokio::time::timeout(Duration::from_secs(20), command.output()).await;
    let done = done.expect("it ends").unwrap();
    let said = [done.stdout, done.stderr].concat();
    (done.status.code(), String::from_utf8(said).unwrap())
}

#[tokio::test]
async fn the_console_shows_a_running_cluster() {
    let mut routers = cluster(&["--min-ready-workers", "0"]).await;
    let worker = Worker::plain().await;
    let spec = json!({ "url": worker.url() }).to_string();
    assert_eq!(routers[0].post("/workers?wait=all", spec).await.status, 202);

    let (code, said) = console(&["status"], &routers[1]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(", as node2 sees it: 3 routers, 3 of them taking part"), "{said}");
    for name in ["node1", "node2", "node3"] {
        assert!(
            said.lines().any(|line| line.starts_with(name) && line.contains("ALIVE")),
            "{said}"
        );
    }
    let workers = said.lines().find(|line| line.starts_with("workers ")).unwrap_or_default();
    assert_eq!(workers.split_whitespace().nth(1), Some("1"), "{said}");

    // What is on its way between two answers is a difference too.
    eventually("the routers are equal", async || {
        let (code, said) = console(&["diff", "--json"], &routers[1]).await;
        let told: Value =
            serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))?;
        let all = told["routers"].as_object().map_or(0, |all| all.len());
        if code == Some(0) && told["equal"] == true && all == 3 { Ok(()) } else { Err(said) }
    })
    .await;

    let mut watching = command();
    watching.args(["mesh", "events", "--router", &routers[0].url("")]);
    let mut watching = watching.spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    // It listens as soon as it has said what is there now.
    let mut told = Vec::new();
    let first = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await;
    told.push(first.expect("it says something").unwrap().unwrap());
    routers.remove(2).signal("KILL");
    while !told.iter().any(|line| line.contains("node3") && line.contains("DOWN")) {
        let line = tokio::time::timeout(Duration::from_secs(15), lines.next_line()).await;
        told.push(line.unwrap_or_else(|_| panic!("no DOWN in {told:?}")).unwrap().unwrap());
    }
    let (code, said) = console(&["diff"], &routers[0]).await;
    assert_eq!(code, Some(1), "one of them can not be asked: {said}");
    assert!(said.contains("node3: DOWN"), "{said}");

    watching.kill().await.unwrap();
    routers[1].signal("TERM");
    assert_eq!(routers[1].ended().await, 0);
    let (code, said) = console(&["status"], &routers[1]).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("no answer"), "{said}");
}

/// The document's JSON, key by key; more keys are allowed.
#[tokio::test]
async fn the_status_has_the_documents_shape() {
    let document: Value = serde_json::from_str(include_str!("../golden/ha-status.json")).unwrap();
    let routers = cluster(&[]).await;
    eventually("all stores were compared once", || async {
        let status = routers[0].get("/ha/status").await.json();
        let seen = shape(&cut(&status, &document));
        if seen == shape(&document) { Ok(()) } else { Err(status) }
    })
    .await;
    let status = routers[0].get("/ha/status").await.json();
    assert_eq!((&status["node_name"], &status["node_count"]), (&json!("node1"), &json!(3)));
    let sync = status["stores"]["workers"]["last_sync"].as_str().unwrap();
    assert!(sync.ends_with('Z') && sync.contains('T'), "{sync}");
}

/// A generation is above 2^53, where JSON readers that hold numbers as doubles round: it is sent as a text of digits.
#[tokio::test]
async fn no_json_reader_rounds_a_generation() {
    let first = router("node1", &[], &[]).await;
    let path = "/ha/events";
    let mut events = client::begin(first.address(), "GET", path, &[], b"").await.unwrap();
    let second = router("node2", &[mesh_address(&first)], &[]).await;
    sees(&first, &[("node1", "ALIVE"), ("node2", "ALIVE")]).await;
    let mut told = String::new();
    while !told.contains("\"name\":\"node2\"") || !told.ends_with("\n\n") {
        let piece = tokio::time::timeout(Duration::from_secs(5), events.next());
        told += &String::from_utf8_lossy(&piece.await.unwrap().unwrap().unwrap());
    }
    let data = told.lines().filter_map(|line| line.strip_prefix("data: "));
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

/// A store to which no router writes is empty, which says nothing about the cluster.
#[tokio::test]
async fn stores_that_no_router_writes_to_are_not_shown() {
    let router = router("node1", &[], &[]).await;
    let status = router.get("/ha/status").await.json();
    let drift = router.get("/ha/drift").await.json();
    let names = |stores: &Value| -> Vec<String> {
        stores.as_object().unwrap().keys().map(ToString::to_string).collect()
    };
    let shown = names(&status["stores"]);
    for (store, is_written) in [("workers", true), ("policies", true), ("sessions", true)]
        .into_iter()
        .chain(["rules", "rights", "usage", "tokens"].map(|store| (store, false)))
    {
        assert_eq!(shown.iter().any(|name| name == store), is_written, "{store} in {status}");
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

/// What each router sees of a worker is told under its own name.
#[tokio::test]
async fn workers_are_told_with_who_sees_them() {
    let worker = Worker::plain().await;
    let router = router("node1", &[], &["--worker-urls", &worker.url()]).await;
    router.knows_ready(1).await;
    let told = router.get("/ha/workers").await.json();
    assert_eq!((&told["total"], &told["node_name"]), (&json!(1), &json!("node1")));
    assert_eq!(told["workers"][0]["observations"]["node1"]["breaker"], "closed", "{told}");
}

#[tokio::test]
async fn alone_the_answers_are_for_the_one_router() {
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
    // Back with the same name, on another port: no ghost, no second row.
    let first = [mesh_address(&routers[0])];
    let _back = router("node2", &first, &[]).await;
    for router in &routers {
        sees(router, &[("node1", "ALIVE"), ("node2", "ALIVE"), ("node3", "ALIVE")]).await;
    }
}

/// By signal and over HTTP: the same.
#[tokio::test]
async fn who_leaves_says_so_and_is_nowhere_listed_after() {
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
        let mut told = String::new();
        while !told.contains("\"to\":\"LEAVING\"") {
            let piece = tokio::time::timeout(Duration::from_secs(5), events.next());
            told += &String::from_utf8_lossy(&piece.await.unwrap().unwrap().unwrap());
        }
        assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
        assert!(told.starts_with("event: routers\n"), "{told}");
        assert_eq!(leaver.ended().await, 0);
        for router in &routers {
            sees(router, &[("node1", "ALIVE"), ("node2", "ALIVE")]).await;
            let metrics = router.get("/metrics").await.text();
            assert!(!metrics.contains("smg_mesh_peer_status{peer=\"node3\"}"));
            assert!(!metrics.contains("to_state=\"DOWN\""), "somebody was paged");
        }
    }
}

#[tokio::test]
async fn a_second_router_of_a_name_is_refused_and_the_first_goes_on() {
    let routers = cluster(&[]).await;
    let first = [mesh_address(&routers[0])];
    let second = router("node2", &first, &[]).await;
    eventually("it is refused", || async {
        let health = second.get("/ha/health").await.json();
        if health["status"] == "refused" { Ok(()) } else { Err(health) }
    })
    .await;
    let health = second.get("/ha/health").await.json();
    let reason = health["reasons"][0].as_str().unwrap();
    assert!(reason.contains("node2") && reason.contains("--mesh-server-name"), "{reason}");
    for contested in [&second, &routers[1]] {
        eventually("somebody is told of it", || async {
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
async fn another_cluster_is_another_cluster() {
    let one = router("node1", &[], &[]).await;
    let other = router("node2", &[mesh_address(&one)], &["--mesh-cluster-id", "other"]).await;
    eventually("it says why it does not come in", || async {
        let health = other.get("/ha/health").await.json();
        let error = health["join"][0]["error"].as_str().unwrap_or_default().to_owned();
        if error.contains("--mesh-cluster-id") { Ok(()) } else { Err(health) }
    })
    .await;
    assert_eq!(other.get("/ha/health").await.json()["status"], "joining");
    sees(&one, &[("node1", "ALIVE")]).await;
}

#[tokio::test]
async fn a_join_address_where_nobody_is_is_named_with_its_error() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let more = ["--mesh-peer-urls", "nowhere.invalid"];
    let router = router("node1", &[address], &more).await;
    eventually("both are named", || async {
        let health = router.get("/ha/health").await.json();
        let errors: Vec<_> =
            health["join"].as_array().unwrap().iter().map(|j| j["error"].clone()).collect();
        let told = errors.len() == 2 && errors.iter().all(Value::is_string);
        if told && health["status"] == "joining" { Ok(()) } else { Err(health) }
    })
    .await;
    // It serves meanwhile.
    assert_eq!(router.get("/liveness").await.status, 200);
}

#[tokio::test]
async fn a_shared_key_keeps_others_out_and_rotates_under_way() {
    let routers = cluster(&["--mesh-encryption-key", KEYS[0]]).await;
    let first = [mesh_address(&routers[0])];
    for (name, more) in [
        ("plain", &[][..]),
        ("wrong", &["--mesh-encryption-key", "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="][..]),
    ] {
        let stranger = router(name, &first, more).await;
        eventually("it is told why", || async {
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
        let told = answer.json();
        assert_eq!(told["nodes"].as_object().unwrap().len(), 3, "{told}");
        told["id"].as_str().unwrap().to_owned()
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
    // A newcomer with the new key only.
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

/// A folder with an authority and certificates for routers.
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

    /// Flags of a router called so.
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
        eventually("it is told why", || async {
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
async fn what_is_no_router_costs_a_counter_and_nothing_else() {
    let routers = cluster(&[]).await;
    let address = mesh_address(&routers[0]);
    let huge = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0xff; 1 << 16]].concat();
    for bytes in [&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], &[0; 4096], &huge] {
        let mut stranger = TcpStream::connect(address).await.unwrap();
        // It may be closed before all is written.
        let _cut = stranger.write_all(bytes).await.is_err();
        let mut answer = Vec::new();
        let ended =
            tokio::time::timeout(Duration::from_secs(20), stranger.read_to_end(&mut answer));
        assert!(ended.await.is_ok(), "the connection stays open for {} bytes", bytes.len());
    }
    eventually("they are counted", || async {
        let seen = routers[0].metric("smg_mesh_rejected_total{reason=\"not_http2\"}").await;
        if seen >= 3.0 { Ok(()) } else { Err(seen) }
    })
    .await;
    sees(&routers[0], &[("node1", "ALIVE"), ("node2", "ALIVE"), ("node3", "ALIVE")]).await;
    let suspected = routers[1].get("/metrics").await.text();
    assert!(!suspected.contains("to_state=\"SUSPECTED\""));
}

#[tokio::test]
async fn only_this_machine_or_an_admin_ends_a_router() {
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
async fn who_was_told_of_others_is_not_ready_before_it_has_learnt_from_them() {
    let worker = Worker::plain().await;
    // Nobody is there.
    let more = ["--mesh-peer-urls", "127.0.0.1:1", "--mesh-join-timeout", "2s", "--worker-urls"];
    let alone = router("node1", &[], &[&more[..], &[&worker.url()]].concat()).await;
    let first = alone.get("/readiness").await;
    assert_eq!((first.status, first.json()["reason"].as_str()), (503, Some("joining")));
    // It serves all the same.
    eventually("it serves", || async {
        let body = json!({ "model": "m", "messages": [] }).to_string();
        let answer = alone.post("/v1/chat/completions", body).await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    eventually("it goes on alone", || async {
        let answer = alone.get("/readiness").await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    let joined = router("node2", &[mesh_address(&alone)], &[]).await;
    eventually("it has learnt the worker and is ready long before its time is over", || async {
        let answer = joined.get("/readiness").await;
        let ready = answer.status == 200 && answer.json()["total_workers"] == 1;
        if ready { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

#[tokio::test]
async fn a_write_waits_for_whom_it_is_told_to_and_says_who_has_it() {
    let routers = cluster(&["--min-ready-workers", "0"]).await;
    let worker = Worker::plain().await;
    let spec = json!({ "url": worker.url() }).to_string();
    let added = routers[0].post("/workers?wait=all&timeout=5s", spec).await;
    assert_eq!(added.status, 202, "{}", added.text());
    let receipt =
        json!({ "applied": ["node1", "node2", "node3"], "pending": [], "complete": true });
    assert_eq!(added.json()["receipt"], receipt);
    let id = added.json()["id"].as_str().unwrap().to_owned();
    for router in &routers {
        assert_eq!(router.get(&format!("/workers/{id}")).await.status, 200, "after the receipt");
    }
    eventually("both confirmations are timed", async || {
        let count = routers[0].metric("smg_mesh_sync_latency_seconds_count").await;
        if count >= 2.0 { Ok(()) } else { Err(count) }
    })
    .await;
    for (query, says) in [
        ("wait=everybody", "wait \"everybody\" is not one of local, quorum, all"),
        ("wait=all&timeout=2h", "timeout \"2h\" is not a time of at most 60s"),
        ("wait=all&timeout=soon", "timeout \"soon\""),
    ] {
        let refused = routers[1].post(&format!("/workers/{id}/drain?{query}"), "").await;
        assert_eq!(refused.status, 400);
        assert!(refused.text().contains(says.replace('"', "\\\"").as_str()), "{}", refused.text());
    }
}
