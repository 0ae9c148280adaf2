//! Tests of `--data-dir`: what a router keeps over a `kill -9`, and what it says about the folder.

use std::path::Path;

use serde_json::json;

use crate::support::eventually;
use crate::support::router::{Router, command};
use crate::support::worker::Worker;

async fn start(folder: &Path, more: &[&str]) -> Router {
    let folder = folder.display().to_string();
    Router::start(&[&["--data-dir", &folder, "--min-ready-workers", "0"], more].concat()).await
}

/// The durability in `/ha/health`, once it is `state`.
async fn durability(router: &Router, state: &str) -> serde_json::Value {
    eventually(&format!("the durability is {state}"), || async {
        let health = router.get("/ha/health").await.json();
        if health["durability"]["state"] == state { Ok(()) } else { Err(health.to_string()) }
    })
    .await;
    router.get("/ha/health").await.json()["durability"].clone()
}

async fn killed(mut router: Router) {
    router.signal("KILL");
    router.ended().await;
}

#[tokio::test]
async fn a_router_without_a_data_folder_says_that_all_is_in_memory() {
    let router = Router::start(&[]).await;
    assert_eq!(durability(&router, "memory").await, json!({ "state": "memory" }));
    let said = router.log().matches("all state is in memory").count();
    assert_eq!(said, 1);
    assert!(!router.get("/metrics").await.text().contains("smg_persist"));
}

#[tokio::test]
async fn a_killed_router_has_its_workers_removals_and_policies_again() {
    let (configured, added) = (Worker::plain().await, Worker::plain().await);
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--worker-urls", &configured.url(), "--persist-fsync", "always"];
    let router = start(folder.path(), &flags).await;
    let spec = json!({ "url": added.url(), "priority": 7 }).to_string();
    assert_eq!(router.post("/workers", spec).await.status, 202);
    let listed = router.get("/ha/workers").await.json();
    let removed = listed["workers"].as_array().unwrap();
    let removed = removed.iter().find(|worker| worker["url"] == configured.url()).unwrap();
    let path = format!("/workers/{}", removed["id"].as_str().unwrap());
    let json_type = [("content-type", "application/json")];
    assert!(router.send("DELETE", &path, &json_type, b"").await.status < 300);
    let policy = br#"{"policy":"round_robin"}"#;
    assert_eq!(router.send("PUT", "/ha/policies/m", &json_type, policy).await.status, 200);
    // With `always`, what is answered is on disk.
    killed(router).await;

    let router = start(folder.path(), &flags).await;
    let workers = router.get("/workers").await.json();
    assert_eq!(workers["total"], 1, "{workers}");
    let kept = &workers["workers"][0];
    assert_eq!((&kept["url"], &kept["priority"]), (&json!(added.url()), &json!(7)));
    assert_eq!(router.get("/ha/policies/m").await.json()["set"]["policy"], "round_robin");
    router.knows_ready(1).await;
    let shown = durability(&router, "ok").await;
    assert_eq!(shown["folder"], folder.path().display().to_string());
    assert_eq!(router.metric("smg_persist_degraded").await, 0.0);
}

#[tokio::test]
async fn the_files_are_sealed_with_the_shared_key_and_a_router_without_it_leaves_them_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = ["--enable-mesh", "--mesh-host", "127.0.0.1", "--mesh-port", "0"];
    let key = ["--mesh-encryption-key", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="];
    let sealed = [&mesh[..], &key, &["--persist-fsync", "always"]].concat();
    let router = start(folder.path(), &sealed).await;
    let worker = Worker::plain().await;
    let spec = json!({ "url": worker.url(), "api_key": "very-secret-key" }).to_string();
    assert_eq!(router.post("/workers", spec).await.status, 202);
    killed(router).await;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap().path();
        let bytes = std::fs::read(&entry).unwrap();
        for secret in ["very-secret-key", &worker.url()] {
            let is_shown = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!is_shown, "{}", entry.display());
        }
    }

    let router = start(folder.path(), &mesh).await;
    let shown = durability(&router, "degraded").await;
    assert!(shown["cause"].as_str().unwrap().contains("shared keys opens it"), "{shown}");
    assert_eq!(router.get("/ha/workers").await.json()["workers"], json!([]));
    assert_eq!(router.metric("smg_persist_degraded").await, 1.0);
    killed(router).await;

    let router = start(folder.path(), &sealed).await;
    assert_eq!(router.get("/ha/workers").await.json()["workers"][0]["url"], worker.url());
}

#[tokio::test]
async fn a_second_router_on_the_folder_and_a_file_as_a_folder_end_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let router = start(folder.path(), &[]).await;
    let file = folder.path().join("LOCK");
    for (path, expected) in [
        (folder.path(), format!("(pid {})", router.pid())),
        (file.as_path(), "is not a folder".to_owned()),
    ] {
        let mut second = command();
        second.args(["--host", "127.0.0.1", "--port", "0", "--data-dir"]).arg(path);
        let output = second.output().await.unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(&expected) && said.contains("--data-dir"), "{said}");
    }
}
