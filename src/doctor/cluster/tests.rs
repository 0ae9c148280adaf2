//! Tests of the judgement: each defect is found, and a healthy cluster has none.

use serde_json::json;

use super::*;

/// A cluster of three routers in which nothing is wrong.
fn healthy() -> Seen {
    let names = ["a", "b", "c"];
    let worker = |n: u8| {
        json!({
            "state": "ready", "models": ["m"], "load": 1,
            "spec": { "url": format!("http://w{n}"), "max_concurrent": 4 },
        })
    };
    let answers = |name: &str| {
        let peer = |peer: &&&str| {
            let up = json!({ "up": true, "seconds": 1, "error": null });
            json!({
                "name": peer, "status": "ALIVE", "rtt_ms": 0.4, "clock_ahead_ms": -3,
                "connections": { "swim": up, "state": up },
            })
        };
        let peers: Vec<Value> =
            names.iter().filter(|other| **other != name).map(|p| peer(&p)).collect();
        Answers {
            about: json!({ "version": "1.0.0" }),
            health: json!({
                "ha_mode": "follower", "peers": peers, "durability": { "state": "ok" },
                "join": [{ "address": "b:1", "reached": true }],
            }),
            leader: json!({ "ha_mode": "follower", "leader": "a", "term": 3, "quorum": true }),
            workers: json!({ "workers": [worker(1), worker(2)] }),
        }
    };
    Seen {
        statuses: names.iter().map(|n| ((*n).to_owned(), "ALIVE".to_owned())).collect(),
        answers: names.iter().map(|n| ((*n).to_owned(), Ok(answers(n)))).collect(),
    }
}

fn found(change: impl FnOnce(&mut Seen)) -> Vec<(&'static str, String)> {
    let mut seen = healthy();
    change(&mut seen);
    judge(&seen).into_iter().map(|finding| (finding.check, finding.subject)).collect()
}

fn of<'a>(seen: &'a mut Seen, name: &str) -> &'a mut Answers {
    seen.answers.get_mut(name).unwrap().as_mut().unwrap()
}

#[test]
fn a_healthy_cluster_has_no_finding() {
    assert_eq!(found(|_| {}), []);
}

#[test]
fn each_defect_is_found_once() {
    type Change = fn(&mut Seen);
    let cases: [(&str, &str, Change); 15] = [
        ("router_down", "b", |s| drop(s.statuses.insert("b".into(), "DOWN".into()))),
        ("router_reached", "c", |s| drop(s.answers.insert("c".into(), Err("refused".into())))),
        ("alone", "a", |s| of(s, "a").health["peers"] = json!([])),
        ("join_address", "a", |s| of(s, "a").health["join"][0]["reached"] = json!(false)),
        ("data_folder", "b", |s| of(s, "b").health["durability"]["state"] = json!("degraded")),
        ("no_data_folder", "b", |s| of(s, "b").health["durability"]["state"] = json!("memory")),
        ("clock_skew", "a to b", |s| {
            of(s, "a").health["peers"][0]["clock_ahead_ms"] = json!(-600);
        }),
        ("round_trip", "a to b", |s| of(s, "a").health["peers"][0]["rtt_ms"] = json!(120.5)),
        ("connection_down", "a to b", |s| {
            of(s, "a").health["peers"][0]["connections"]["state"]["up"] = json!(false);
        }),
        ("mixed_versions", "the cluster", |s| of(s, "c").about["version"] = json!("1.1.0")),
        ("no_quorum", "c", |s| of(s, "c").leader["quorum"] = json!(false)),
        ("no_leader", "c", |s| of(s, "c").leader["leader"] = json!(null)),
        ("stale_lease", "the cluster", |s| of(s, "c").leader["term"] = json!(2)),
        ("worker_url", "http://w/v1", |s| {
            of(s, "a").workers["workers"][0]["spec"]["url"] = json!("http://w/v1");
        }),
        ("headroom", "model m", |s| of(s, "a").workers["workers"][0]["load"] = json!(5)),
    ];
    for (check, subject, change) in cases {
        assert_eq!(found(change), [(check, subject.to_owned())], "{check}");
    }
    // These have two findings, because one follows from the other.
    let gone = found(|s| {
        of(s, "a").workers["workers"][0]["state"] = json!("down");
    });
    assert_eq!(
        gone.iter().map(|(check, _)| *check).collect::<Vec<_>>(),
        ["worker_down", "headroom"]
    );
    let fourth = found(|s| drop(s.statuses.insert("d".into(), "LEAVING".into())));
    assert_eq!(fourth, [], "a router that leaves does not count");
    let fourth = found(|s| drop(s.statuses.insert("d".into(), "DOWN".into())));
    assert_eq!(
        fourth.iter().map(|(check, _)| *check).collect::<Vec<_>>(),
        ["even_voters", "router_down"]
    );
    let leader = found(|s| {
        for name in ["a", "b", "c"] {
            of(s, name).leader["leader"] = json!("z");
        }
    });
    assert_eq!(leader.iter().filter(|(check, _)| *check == "stale_lease").count(), 3);
}
