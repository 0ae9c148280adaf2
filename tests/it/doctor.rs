//! Tests of `smg doctor` and `smg check-config --probe` with real routers and workers.

use serde_json::Value;

use crate::support::eventually;
use crate::support::router::{self, Router};
use crate::support::worker::Worker;

/// Runs a command, and returns its exit status, standard output and standard error.
async fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = router::command().args(arguments).output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The checks that have a finding, with their severity, in order.
fn found(json: &str) -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(json).unwrap();
    let findings = document["findings"].as_array().unwrap().iter().map(|finding| {
        for field in ["subject", "what", "why", "advice"] {
            assert!(!finding[field].as_str().unwrap().is_empty(), "{field} of {finding}");
        }
        let field = |name: &str| finding[name].as_str().unwrap().to_owned();
        (field("severity"), field("check"))
    });
    let mut found: Vec<_> = findings.collect();
    found.dedup();
    found
}

fn expected(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(severity, check)| ((*severity).to_owned(), (*check).to_owned())).collect()
}

#[tokio::test]
async fn a_configuration_is_examined() {
    // A limit that is enough on every machine.
    let common = ["doctor", "--max-connections", "10"];
    let good = ["--worker-urls", "http://a,http://b"];
    let (status, out, err) = run(&[&common[..], &good].concat()).await;
    assert_eq!((status, out.as_str()), (0, "0 errors, 0 warnings, 0 notes\n"), "{err}");

    let folder = tempfile::NamedTempFile::new().unwrap();
    let bad = [
        "--json",
        "--worker-urls",
        "http://a",
        "--enable-mesh",
        "--mesh-expected-replicas",
        "4",
        "--data-dir",
        folder.path().to_str().unwrap(),
    ];
    let (status, out, err) = run(&[&common[..], &bad].concat()).await;
    assert_eq!(status, 1, "{err}");
    assert_eq!(
        found(&out),
        expected(&[
            ("error", "mesh_unprotected"),
            ("error", "data_folder"),
            ("warning", "single_worker"),
            ("warning", "alone"),
            ("warning", "even_voters"),
        ]),
        "{out}"
    );
    let (_, text, _) = run(&[&common[..], &bad[1..]].concat()).await;
    assert!(text.contains("warning: http://a:80: it is the only configured worker"), "{text}");
    assert!(text.ends_with("2 errors, 3 warnings, 0 notes\n"), "{text}");

    let open = ["--json", "--admin-open", "--worker-urls", "http://a,http://b"];
    let many = ["doctor", "--max-connections", "1000000"];
    let (status, out, _) = run(&[&many[..], &open].concat()).await;
    assert_eq!(status, 1);
    let findings = found(&out);
    assert!(findings.contains(&("error".to_owned(), "admin_open".to_owned())), "{out}");
    // A machine may have no limit at all.
    assert!(findings.len() == 1 || findings[1].1 == "open_files", "{out}");

    let (status, _, err) = run(&["doctor", "--worker-urls", "http://a/v1"]).await;
    assert!(status == 2 && err.contains("ends in /v1"), "{err}");
}

#[tokio::test]
async fn places_for_fewer_requests_than_are_admitted_are_found() {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    let text = "max-concurrent-requests = 20\nmax-connections = 10\n\
                [[workers]]\nurl = 'http://a'\nmax_concurrent = 8\n\
                [[workers]]\nurl = 'http://b'\nmax_concurrent = 16\n";
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_str().unwrap();
    let (status, out, _) = run(&["doctor", "--json", "--config", path]).await;
    assert_eq!((status, found(&out)), (1, expected(&[("warning", "headroom")])), "{out}");
    assert!(out.contains("places for 8 requests"), "{out}");
}

#[tokio::test]
async fn a_running_cluster_is_examined() {
    let worker = Worker::plain().await;
    let mesh = ["--enable-mesh", "--mesh-host", "127.0.0.1", "--mesh-port", "0"];
    let keys = ["--admin-api-key", "root"];
    let first = Router::start(
        &[&mesh[..], &keys, &["--mesh-server-name", "one", "--worker-urls", &worker.url()]]
            .concat(),
    )
    .await;
    let admin = [("x-api-key", "root")];
    let health = first.send("GET", "/ha/health", &admin, b"").await.json();
    let address = health["node"]["address"].as_str().unwrap().to_owned();
    let join = ["--mesh-server-name", "two", "--mesh-peer-urls", &address];
    let second = Router::start(&[&mesh[..], &keys, &join].concat()).await;
    second.knows_ready(1).await;
    let url = first.url("");
    // No configuration is given, so that only the cluster is examined. Two routers are an even number, they have one worker,
    // and nothing is on disk.
    let command = ["doctor", "--url", &url, "--admin-api-key", "root", "--json"];
    let wanted = expected(&[
        ("warning", "even_voters"),
        ("warning", "no_data_folder"),
        ("warning", "headroom"),
    ]);
    eventually("the findings are those of two routers", || async {
        let (status, out, err) = run(&command).await;
        let mut seen = found(&out);
        // For a moment after they have met, both may lead, or none.
        seen.retain(|(_, check)| !matches!(&**check, "stale_lease" | "no_leader" | "no_quorum"));
        if (status, &seen) == (1, &wanted) { Ok(()) } else { Err((status, out, err)) }
    })
    .await;

    // The second router is killed: the first one notices.
    second.signal("KILL");
    eventually("a router is down", || async {
        let (_, out, _) = run(&command).await;
        let seen = found(&out);
        let is_seen = |check: &str| seen.iter().any(|(_, found)| found == check);
        if is_seen("router_down") { Ok(()) } else { Err(out) }
    })
    .await;

    // Without a key, the list of routers is open, and the rest is not.
    let (status, out, _) = run(&["doctor", "--url", &url, "--json"]).await;
    let refused = ("error".to_owned(), "router_reached".to_owned());
    assert!(status == 1 && found(&out).contains(&refused) && out.contains("answered 401"), "{out}");
    let (status, out, _) = run(&["doctor", "--url", "http://127.0.0.1:1", "--json"]).await;
    assert_eq!((status, found(&out)), (1, vec![refused]), "{out}");
}

#[tokio::test]
async fn check_config_reaches_workers_and_routers_if_asked() {
    let worker = Worker::plain().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let open = listener.local_addr().unwrap().to_string();
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let good = ["--worker-urls", &worker.url(), "--enable-mesh", "--mesh-peer-urls", &open];
    let (status, out, err) = run(&[&["check-config", "--probe"][..], &good].concat()).await;
    assert_eq!(status, 0, "{err}");
    assert!(out.contains("worker-urls = ") && !out.contains("worker_reached"), "{out}");
    assert!(err.contains(&format!("info: {}: ", worker.url())), "{err}");
    assert!(err.contains(&format!("info: {open}: its mesh port accepts")), "{err}");

    let gone = format!("http://{closed}");
    let bad = ["--worker-urls", &gone, "--enable-mesh", "--mesh-peer-urls", &closed];
    let (status, out, err) = run(&[&["check-config", "--probe"][..], &bad].concat()).await;
    assert_eq!(status, 1, "{err}");
    assert!(out.contains("worker-urls = "), "{out}");
    assert!(err.contains(&format!("error: {gone}: no answer")), "{err}");
    assert!(err.contains(&format!("error: {closed}: its mesh port can't be reached")), "{err}");
    // Without the flag nothing is reached.
    let (status, _, _) = run(&[&["check-config"][..], &bad].concat()).await;
    assert_eq!(status, 0);
}
