//! The leader of a cluster: who it is, how it hands over, and what other routers refuse. `tests/chaos/test_lease.py` kills it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::mesh::{mesh_address, router, sees};
use crate::support::router::Router;
use crate::support::within;

async fn leader(router: &Router) -> Value {
    router.get("/ha/leader").await.json()
}

/// Waits until all routers know one leader; its place and its term.
async fn leads(routers: &[Router]) -> (usize, u64) {
    let found = within(Duration::from_secs(30), || async {
        let mut answers = Vec::new();
        for router in routers {
            answers.push(leader(router).await);
        }
        let is_leader = |answer: &Value| answer["ha_mode"] == "leader";
        let place = answers.iter().position(is_leader);
        let is_agreed = answers.iter().all(|answer| answer["leader"] == answers[0]["leader"]);
        match place {
            Some(place) if is_agreed && answers[place]["leader"] == answers[0]["leader"] => {
                Ok((place, answers[place]["term"].as_u64().unwrap()))
            }
            _ => Err(answers),
        }
    });
    found.await.unwrap()
}

#[tokio::test]
async fn a_leader_hands_over_and_the_others_refuse() {
    let more = ["--mesh-expected-replicas", "3"];
    let mut routers = vec![router("node1", &[], &more).await];
    let first = [mesh_address(&routers[0])];
    for name in ["node2", "node3"] {
        routers.push(router(name, &first, &more).await);
    }
    for router in &routers {
        sees(router, &[("node1", "ALIVE"), ("node2", "ALIVE"), ("node3", "ALIVE")]).await;
    }
    let (from, term) = leads(&routers).await;
    let document = leader(&routers[from]).await;
    assert_eq!(document["leader_url"], format!("http://{}", routers[from].address()));
    assert_eq!((&document["quorum"], &document["majority"]), (&json!(true), &json!(2)));
    assert_eq!(document["voters"], json!(["node1", "node2", "node3"]));
    assert_eq!(routers[from].metric("smg_mesh_is_leader").await, 1.0);
    let to = (from + 1) % 3;
    let name = format!("node{}", to + 1);
    let body = json!({ "to": name }).to_string();
    let refused = routers[to].post("/ha/leader/transfer", &body).await;
    assert_eq!((refused.status, refused.code()), (503, "not_leader".to_owned()));
    let url = refused.header("x-smg-leader-url").unwrap_or_default();
    assert_eq!(url, format!("http://{}", routers[from].address()));
    let unknown = routers[from].post("/ha/leader/transfer", r#"{"to": "node9"}"#).await;
    assert_eq!((unknown.status, unknown.code()), (409, "not_ready_to_lead".to_owned()));
    let done = routers[from].post("/ha/leader/transfer", &body).await;
    assert_eq!((done.status, &done.json()["leader"]), (200, &json!(name)), "{}", done.text());
    let (now, later) = leads(&routers).await;
    assert!(now == to && later > term, "{now} {later}");
    assert_eq!(routers[to].get("/ha/status").await.json()["leader"], name);
}

/// Starts three routers with data folders. Returns also when the second one was started.
async fn with_folders(folders: &[tempfile::TempDir]) -> (Vec<Router>, Instant) {
    let (mut routers, mut second) = (Vec::new(), Instant::now());
    for (at, folder) in folders.iter().enumerate() {
        let folder = folder.path().display().to_string();
        let more = ["--mesh-expected-replicas", "3", "--data-dir", &folder];
        let first: Vec<_> = routers.first().map(mesh_address).into_iter().collect();
        if at == 1 {
            second = Instant::now();
        }
        routers.push(router(&format!("node{}", at + 1), &first, &more).await);
    }
    (routers, second)
}

#[tokio::test]
async fn routers_that_were_all_killed_remember_their_votes_and_need_not_abstain() {
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let (mut routers, _) = with_folders(&folders).await;
    let (_, mut term) = leads(&routers).await;
    // On a busy machine the processes themselves may take some seconds to start.
    let mut all = Vec::new();
    for _ in 0..5 {
        for router in &routers {
            router.signal("KILL");
        }
        for router in &mut routers {
            router.ended().await;
        }
        let second;
        (routers, second) = with_folders(&folders).await;
        let (_, later) = leads(&routers).await;
        let took = second.elapsed();
        assert!(later > term, "{later} {term}");
        term = later;
        for router in &routers {
            assert!(router.log().contains("this router remembers its votes"), "{}", router.log());
        }
        // Routers that abstain vote 6 s after their start, and two of three must vote.
        if took < Duration::from_secs(6) {
            return;
        }
        all.push(took);
    }
    panic!("a leader was there only {all:?} after the start of the second router");
}

#[tokio::test]
async fn a_router_alone_leads_in_term_0() {
    let router = Router::start(&[]).await;
    let document = leader(&router).await;
    assert_eq!((&document["ha_mode"], &document["term"]), (&json!("standalone"), &json!(0)));
    assert_eq!(document["leader_url"], format!("http://{}", router.address()));
    let refused = router.post("/ha/leader/step-down", "").await;
    assert_eq!((refused.status, refused.code()), (409, "mesh_disabled".to_owned()));
}

#[tokio::test]
async fn a_router_without_a_majority_refuses_writes_if_it_is_to() {
    let more = ["--mesh-expected-replicas", "3", "--mesh-minority-writes", "reject"];
    let router = router("node1", &[], &more).await;
    let health = router.get("/health").await.json();
    assert_eq!((&health["ha_mode"], &health["quorum"]), (&json!("read_only"), &json!(false)));
    let refused = router.post("/workers", r#"{"url": "http://127.0.0.1:9"}"#).await;
    assert_eq!((refused.status, refused.code()), (503, "no_quorum".to_owned()));
}
