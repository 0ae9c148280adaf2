//! Tests that each policy keeps its promises, as observed at the workers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use serde_json::json;
use smg_mock::traffic::{Chats, Session};

use crate::support::client::{self, Answer, Connection};
use crate::support::eventually;
use crate::support::mock::{self, Mock};
use crate::support::router::Router;
use crate::support::worker::Worker;

const CHAT: &str = r#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hello"}]}"#;

/// Starts a router for `mocks` with one policy, and with headers that show its decisions.
async fn router(mocks: &[Mock], policy: &str, flags: &[&str]) -> Router {
    let flags = [&["--debug-headers", "--policy", policy], flags].concat();
    Router::before(&mock::urls(mocks), &flags).await
}

/// Opens a connection to the router that is kept between requests.
async fn connect(router: &Router) -> Connection {
    Connection::open(router.address()).await.unwrap()
}

async fn ask(connection: &mut Connection, headers: &[(&str, &str)], body: &str) -> Answer {
    let answer = connection.post("/v1/chat/completions", headers, body.to_owned()).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

/// The name of the worker that served an answer.
fn worker(answer: &Answer) -> String {
    answer.header("x-mock-worker").unwrap().to_owned()
}

/// Sends `n` equal requests, one after the other. Returns how many each worker received, by its name.
async fn shares(router: &Router, n: usize) -> BTreeMap<String, usize> {
    let mut connection = connect(router).await;
    let mut shares = BTreeMap::new();
    for _ in 0..n {
        *shares.entry(worker(&ask(&mut connection, &[], CHAT).await)).or_default() += 1;
    }
    shares
}

fn named(shares: &[(&str, usize)]) -> BTreeMap<String, usize> {
    shares.iter().map(|(name, share)| ((*name).to_owned(), *share)).collect()
}

/// The id of the worker at `url`.
async fn id_of(router: &Router, url: &str) -> String {
    let all = router.get("/workers").await.json();
    let is = |worker: &&serde_json::Value| {
        worker["spec"]["url"].as_str().unwrap().trim_end_matches('/') == url
    };
    let found =
        all["workers"].as_array().unwrap().iter().find(is).expect("the worker is registered");
    found["id"].as_str().unwrap().to_owned()
}

/// Fails unless each worker received its share of `total`, within `tolerance` of that share.
fn spread(shares: &BTreeMap<String, usize>, workers: usize, tolerance: f64) {
    let total: usize = shares.values().sum();
    let fair = total as f64 / workers as f64;
    assert_eq!(shares.len(), workers, "{shares:?}");
    for share in shares.values() {
        assert!((*share as f64 - fair).abs() <= fair * tolerance, "{shares:?}");
    }
}

/// Requests that are held at their worker until this is dropped. None is answered.
struct Busy(Vec<client::Stream>);

/// Opens `n` streams at `worker` while the other workers are out of use, and then puts those into use again.
async fn keep_busy(router: &Router, mocks: &[Mock], worker: usize, n: usize) -> Busy {
    let mut others = Vec::new();
    for other in mocks.iter().filter(|other| other.name() != mocks[worker].name()) {
        others.push(format!("/workers/{}/drain", id_of(router, &other.url()).await));
    }
    for path in &others {
        assert_eq!(router.send("POST", path, &[], b"").await.status, 200);
    }
    let headers = [("x-mock", r#"{"stall_after_chunks":1}"#)];
    let body = br#"{"model":"m","stream":true,"messages":[]}"#;
    let mut streams = Vec::new();
    for _ in 0..n {
        let path = "/v1/chat/completions";
        let stream = client::begin(router.address(), "POST", path, &headers, body).await.unwrap();
        assert_eq!(stream.status, 200);
        streams.push(stream);
    }
    for path in &others {
        assert_eq!(router.send("DELETE", path, &[], b"").await.status, 200);
    }
    assert_eq!(mocks[worker].stats().in_flight, n as u64);
    Busy(streams)
}

#[tokio::test]
async fn round_robin_gives_shares_by_weight() {
    let mocks = Mock::several(3).await;
    // The weight from the file.
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for (mock, weight) in mocks.iter().zip([1, 2, 3]) {
        writeln!(file, "[[workers]]\nurl = \"{}\"\nweight = {weight}", mock.url()).unwrap();
    }
    let path = file.path().to_str().unwrap();
    let router = Router::start(&["--config", path, "--policy", "round_robin"]).await;
    router.knows_ready(3).await;
    assert_eq!(shares(&router, 60).await, named(&[("w0", 10), ("w1", 20), ("w2", 30)]));
    // The weight from the API.
    let url = mocks[0].url();
    let path = format!("/workers/{}", id_of(&router, &url).await);
    let spec = json!({ "url": url, "weight": 5 }).to_string();
    assert_eq!(router.send("PUT", &path, &[], spec.as_bytes()).await.status, 200);
    let shares = shares(&router, 100).await;
    // The round that was in progress when the weight changed may shift one request.
    for (name, share) in [("w0", 50_usize), ("w1", 20), ("w2", 30)] {
        assert!(shares[name].abs_diff(share) <= 2, "{shares:?}");
    }
}

#[tokio::test]
async fn round_robin_takes_turns() {
    let mocks = Mock::several(4).await;
    let router = router(&mocks, "round_robin", &["--threads", "2"]).await;
    // The requests go over several connections, which several threads serve.
    for _ in 0..5 {
        assert_eq!(shares(&router, 8).await, named(&[("w0", 2), ("w1", 2), ("w2", 2), ("w3", 2)]));
    }
}

#[tokio::test]
async fn least_load_avoids_the_busy_one() {
    let mocks = Mock::several(3).await;
    let router = router(&mocks, "least_load", &[]).await;
    let busy = keep_busy(&router, &mocks, 1, 1).await;
    let shares = shares(&router, 100).await;
    // The choice is random among equal workers: 50 each, with a standard deviation of 5.
    assert!(!shares.contains_key("w1") && shares["w0"].abs_diff(50) <= 30, "{shares:?}");
    assert_eq!(busy.0.len(), 1);
}

#[tokio::test]
async fn power_of_two_spreads_and_avoids_the_busy_one() {
    let mocks = Mock::several(4).await;
    let router = router(&mocks, "power_of_two", &[]).await;
    spread(&shares(&router, 400).await, 4, 0.5);
    let _busy = keep_busy(&router, &mocks, 2, 5).await;
    // The busy worker loses against each one that it is compared with.
    assert!(!shares(&router, 100).await.contains_key("w2"));
}

#[tokio::test]
async fn random_spreads_by_weight() {
    let mocks = Mock::several(4).await;
    let router = router(&mocks, "random", &[]).await;
    spread(&shares(&router, 400).await, 4, 0.5);
    let path = format!("/workers/{}", id_of(&router, &mocks[0].url()).await);
    assert_eq!(router.send("PATCH", &path, &[], br#"{"weight":9}"#).await.status, 200);
    let shares = shares(&router, 400).await;
    // The expectation is 300, nine twelfths, with a standard deviation of 9.
    assert!((250..350).contains(&shares["w0"]), "{shares:?}");
}

/// The worker to which each of `n` keys goes.
async fn owners(router: &Router, n: usize) -> Vec<String> {
    let mut connection = connect(router).await;
    let mut owners = Vec::new();
    for key in 0..n {
        let key = format!("session-{key}");
        owners.push(worker(&ask(&mut connection, &[("x-session-id", &key)], CHAT).await));
    }
    owners
}

fn moved(before: &[String], after: &[String]) -> usize {
    before.iter().zip(after).filter(|(before, after)| before != after).count()
}

fn counts(owners: &[String]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for owner in owners {
        *counts.entry(owner.clone()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn consistent_hashing_moves_few_keys() {
    let mut mocks = Mock::several(4).await;
    let router = router(&mocks, "consistent_hashing", &[]).await;
    let before = owners(&router, 200).await;
    // 50 each, with a standard deviation of 6.
    spread(&counts(&before), 4, 0.6);
    assert_eq!(owners(&router, 200).await, before, "keys move though nothing has changed");
    // An additional worker takes its share, and no other key moves.
    mocks.push(Mock::start("w4").await);
    let spec = json!({ "url": mocks[4].url() }).to_string();
    assert_eq!(router.post("/workers", spec).await.status, 202);
    router.knows_ready(5).await;
    let more = owners(&router, 200).await;
    assert!((10..=80).contains(&moved(&before, &more)), "{} of 200 moved", moved(&before, &more));
    assert!(before.iter().zip(&more).all(|(before, more)| before == more || more == "w4"));
    // After its removal, all keys return to their previous workers.
    let path = format!("/workers/{}", id_of(&router, &mocks[4].url()).await);
    assert_eq!(router.send("DELETE", &path, &[], b"").await.status, 202);
    router.knows_ready(4).await;
    assert_eq!(owners(&router, 200).await, before);
}

#[tokio::test]
async fn consistent_hashing_reads_the_key_from_every_place() {
    let mocks = Mock::several(4).await;
    let router = router(&mocks, "consistent_hashing", &["--session-header", "x-chat"]).await;
    let mut connection = connect(&router).await;
    let mut owner = async |headers: &[(&str, &str)], body: &str| {
        worker(&ask(&mut connection, headers, body).await)
    };
    let user = |key: &str| format!(r#"{{"model":"m","user":"{key}"}}"#);
    let cache_key = |key: &str| format!(r#"{{"user":"u","model":"m","prompt_cache_key":"{key}"}}"#);
    let other = r#"{"model":"m","user":"other","prompt_cache_key":"another"}"#;
    let mut owners_seen = BTreeSet::new();
    for key in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let here = owner(&[("x-smg-routing-key", key)], CHAT).await;
        assert_eq!(owner(&[("x-smg-routing-key", key), ("x-chat", "z")], other).await, here);
        assert_eq!(owner(&[("x-chat", key)], other).await, here);
        assert_eq!(owner(&[], &cache_key(key)).await, here);
        assert_eq!(owner(&[], &user(key)).await, here);
        owners_seen.insert(here);
    }
    assert!(owners_seen.len() > 1, "all keys go to {owners_seen:?}");
}

#[tokio::test]
async fn consistent_hashing_spills_above_its_bound() {
    let mocks = Mock::several(4).await;
    let router = router(&mocks, "consistent_hashing", &[]).await;
    // All requests have the same session and come at once. One worker may have 1.25 times a quarter of them.
    let headers = [("x-session-id", "one"), ("x-mock", r#"{"stall_after_chunks":1}"#)];
    let body = br#"{"model":"m","stream":true,"messages":[]}"#;
    let mut streams = Vec::new();
    for _ in 0..40 {
        let path = "/v1/chat/completions";
        streams.push(client::begin(router.address(), "POST", path, &headers, body).await.unwrap());
    }
    let loads: Vec<_> = mocks.iter().map(|mock| mock.stats().in_flight).collect();
    assert_eq!(loads.iter().sum::<u64>(), 40);
    assert!(loads.iter().max() <= Some(&13), "{loads:?}");
    let decisions: BTreeSet<_> =
        streams.iter().map(|stream| stream.headers["x-smg-decision"].to_str().unwrap()).collect();
    assert_eq!(decisions, BTreeSet::from(["spill", "sticky"]));
}

#[tokio::test]
async fn manual_keeps_a_session_on_its_first_worker() {
    let mut mocks = Mock::several(3).await;
    let router = router(&mocks, "manual", &[]).await;
    let before = owners(&router, 60).await;
    spread(&counts(&before), 3, 0.8);
    // Unlike with a hash, an additional worker takes no session away.
    mocks.push(Mock::start("w3").await);
    let spec = json!({ "url": mocks[3].url() }).to_string();
    assert_eq!(router.post("/workers", spec).await.status, 202);
    router.knows_ready(4).await;
    assert_eq!(owners(&router, 60).await, before);
    // The sessions of a removed worker get another one and stay there.
    let gone = before[0].clone();
    let leaver = mocks.iter().find(|mock| mock.name() == gone).unwrap();
    let path = format!("/workers/{}", id_of(&router, &leaver.url()).await);
    assert_eq!(router.send("DELETE", &path, &[], b"").await.status, 202);
    router.knows_ready(3).await;
    let after = owners(&router, 60).await;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before == after, *before != gone);
    }
    assert_eq!(owners(&router, 60).await, after);
}

/// A prompt whose first `same` KiB are equal for one `topic`, and whose end is different for each `question`.
fn prompt(topic: usize, same: usize, question: usize) -> String {
    let head = format!("topic {topic} ").repeat(same * 1024 / 8);
    json!({ "model": "m", "max_tokens": 1, "messages": [{ "role": "user", "content": format!("{head} question {question}") }] })
        .to_string()
}

#[tokio::test]
async fn prefix_hash_sends_equal_heads_to_the_same_worker() {
    let mocks = Mock::several(4).await;
    let router = router(&mocks, "prefix_hash", &[]).await;
    let mut connection = connect(&router).await;
    let mut owners = Vec::new();
    for topic in 0..80 {
        let mut of_topic = BTreeSet::new();
        for question in 0..3 {
            of_topic.insert(worker(&ask(&mut connection, &[], &prompt(topic, 2, question)).await));
        }
        assert_eq!(of_topic.len(), 1, "topic {topic} is spread over {of_topic:?}");
        owners.extend(of_topic);
    }
    // 20 each, with a standard deviation of 3.9.
    spread(&counts(&owners), 4, 0.9);
}

#[tokio::test]
async fn bucket_separates_long_prompts_from_short_ones_from_the_first_prompts_on() {
    // In turns, one long prompt after some short ones, and all short ones first.
    for (short, long, is_long) in [
        (30, 6000, (|nth| nth % 2 == 1) as fn(usize) -> bool),
        (1000, 16_000, |nth| nth % 17 == 16),
        (30, 6000, |nth| nth >= 30),
    ] {
        let mocks = Mock::several(2).await;
        let router = router(&mocks, "bucket", &[]).await;
        let mut connection = connect(&router).await;
        let content = |length| "x".repeat(length);
        let mut workers = [BTreeSet::new(), BTreeSet::new()];
        for nth in 0..100 {
            let length = if is_long(nth) { long } else { short };
            let body = json!({
                "model": "m", "max_tokens": 1,
                "messages": [{ "role": "user", "content": content(length) }],
            });
            let name = worker(&ask(&mut connection, &[], &body.to_string()).await);
            // While there is only one kind of prompts, both workers serve it.
            if nth > 40 {
                workers[usize::from(is_long(nth))].insert(name);
            }
        }
        let [short, long] = workers;
        assert!(long.is_disjoint(&short), "long ones: {long:?}, short ones: {short:?}");
    }
}

#[tokio::test]
async fn conversations_stay_on_the_worker_with_their_cache() {
    const CHATS: u64 = 24;
    const TURNS: u32 = 6;
    let mocks = Mock::several(4).await;
    let router = router(&mocks, "cache_aware", &[]).await;
    let chats = Chats {
        model: "m".to_owned(),
        system_prompts: 0,
        turn_bytes: 600,
        turns: TURNS,
        max_tokens: 8,
        stream: false,
        ..Chats::default()
    };
    let mut sessions: Vec<_> = (0..CHATS).map(|seed| Session::start(&chats, seed)).collect();
    // All conversations run at the same time, turn by turn, each on a connection of its own.
    let mut last: Vec<Option<String>> = vec![None; sessions.len()];
    let (mut same, mut turns) = (0, 0);
    for _ in 0..TURNS {
        let asked: Vec<_> = sessions
            .iter_mut()
            .map(|session| {
                let (body, address) = (session.ask().unwrap(), router.address());
                tokio::spawn(async move {
                    let mut connection = Connection::open(address).await.unwrap();
                    ask(&mut connection, &[], &body).await
                })
            })
            .collect();
        for (at, asked) in asked.into_iter().enumerate() {
            let answer = asked.await.unwrap();
            let completion =
                answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
            sessions[at].answered(&completion);
            let now = worker(&answer);
            if let Some(before) = last[at].replace(now.clone()) {
                turns += 1;
                same += usize::from(before == now);
            }
        }
    }
    assert_eq!(turns, (TURNS as usize - 1) * sessions.len());
    assert!(same * 100 >= turns * 95, "{same} of {turns} turns stayed with their worker");
    let used: BTreeSet<_> = last.into_iter().flatten().collect();
    assert_eq!(used.len(), 4, "only {used:?} were used");
    // The workers' own caches confirm it: most of the prompt of a later turn is cached.
    let (cached, all) = mocks.iter().fold((0, 0), |(cached, all), mock| {
        let stats = mock.stats();
        (cached + stats.cached_tokens, all + stats.prompt_tokens)
    });
    assert!(cached * 100 >= all * 60, "{cached} of {all} prompt tokens were cached");
}

#[tokio::test]
async fn distinct_prefixes_are_spread_evenly_over_idle_workers() {
    let mocks = Mock::several(4).await;
    let router = router(&mocks, "cache_aware", &[]).await;
    let mut connection = connect(&router).await;
    let mut shares = BTreeMap::<String, usize>::new();
    for topic in 0..200 {
        // The requests come one after the other, so the load never distinguishes the workers.
        let answer = ask(&mut connection, &[], &prompt(topic, 1, 0)).await;
        assert_eq!(answer.header("x-smg-decision"), Some("miss"), "topic {topic}");
        *shares.entry(worker(&answer)).or_default() += 1;
    }
    let most = shares.values().max().unwrap();
    // The mean is 50, the standard deviation 6.
    assert!(shares.len() == 4 && *most <= 80, "{shares:?}");
}

#[tokio::test]
async fn an_overloaded_worker_loses_its_prefix_to_another() {
    let mocks = Mock::several(3).await;
    let flags = ["--balance-abs-threshold", "4", "--balance-rel-threshold", "1.5"];
    let router = router(&mocks, "cache_aware", &flags).await;
    let mut connection = connect(&router).await;
    let affine = worker(&ask(&mut connection, &[], &prompt(0, 2, 0)).await);
    let at = mocks.iter().position(|mock| mock.name() == affine).unwrap();
    // Within the bound, requests stay at the worker.
    let busy = keep_busy(&router, &mocks, at, 4).await;
    for question in 1..5 {
        let answer = ask(&mut connection, &[], &prompt(0, 2, question)).await;
        assert!(answer.header("x-smg-decision").unwrap().starts_with("hit"));
        assert_eq!(worker(&answer), affine);
    }
    // Above the bound another worker serves the request, and then has the prefix, too.
    drop(busy);
    eventually("the worker is idle", || async {
        let in_flight = mocks[at].stats().in_flight;
        if in_flight == 0 { Ok(()) } else { Err(in_flight) }
    })
    .await;
    let _busy = keep_busy(&router, &mocks, at, 6).await;
    let answer = ask(&mut connection, &[], &prompt(0, 2, 6)).await;
    assert_eq!(answer.header("x-smg-decision"), Some("balance"));
    let heir = worker(&answer);
    assert_ne!(heir, affine);
    for question in 7..12 {
        let answer = ask(&mut connection, &[], &prompt(0, 2, question)).await;
        assert!(answer.header("x-smg-decision").unwrap().starts_with("hit"));
        assert_eq!(worker(&answer), heir);
    }
}

#[tokio::test]
async fn a_workers_label_sets_its_models_policy() {
    let workers = [Worker::plain().await, Worker::plain().await, Worker::plain().await];
    let router = Router::start(&["--debug-headers", "--policy", "random"]).await;
    for (worker, (model, labels)) in
        workers.iter().zip([("one", json!({ "policy": "manual" })), ("two", json!({}))])
    {
        let spec = json!({ "url": worker.url(), "models": [model], "labels": labels });
        assert_eq!(router.post("/workers", spec.to_string()).await.status, 202);
    }
    router.knows_ready(2).await;
    for (model, policy) in [("one", "manual"), ("two", "random")] {
        let answer = router.post("/generate", json!({ "model": model }).to_string()).await;
        assert_eq!((answer.status, answer.header("x-smg-policy")), (200, Some(policy)));
    }
    let spec = json!({ "url": workers[2].url(), "labels": { "policy": "best" } }).to_string();
    let wrong = router.post("/workers", spec).await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.text().contains("best"), "{}", wrong.text());
}

#[tokio::test]
async fn a_router_alone_can_set_and_unset_the_policy_of_a_model() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let model = router.get("/v1/models").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/ha/policies/{model}");
    let put = async |document: &str| router.send("PUT", &path, &[], document.as_bytes()).await;
    let set = put(r#"{"policy":"cache_aware","parameters":{"cache_threshold":0.75}}"#).await;
    assert_eq!(set.status, 200, "{}", set.text());
    let shown = router.get(&path).await.json();
    assert_eq!(shown["in_use"], "cache_aware");
    assert_eq!(shown["set"]["parameters"]["cache_threshold"], 0.75);
    assert_eq!(put(r#"{"policy":"least_load"}"#).await.json()["in_use"], "least_load");
    assert_eq!(router.get("/ha/policies").await.json()["models"][&model], "least_load");
    for (wrong, reason) in [
        (r#"{"policy":"fastest"}"#, "fastest"),
        (r#"{"policy":"random","parameters":{"speed":1}}"#, "speed"),
        (r#"{"policy":"random","parameters":{"cache_threshold":2}}"#, "cache_threshold"),
        (r#"{"policy":"random","weights":{"w-0000000000000001":1001}}"#, "between 1 and 1000"),
        ("{", "EOF"),
    ] {
        let refused = put(wrong).await;
        assert_eq!(refused.status, 400, "{wrong}");
        assert!(refused.text().contains(reason), "{wrong}: {}", refused.text());
    }
    assert_eq!(router.get(&path).await.json()["in_use"], "least_load", "nothing was lost");
    for wrong in ["x".repeat(513), "%0A".to_owned()] {
        let path = format!("/ha/policies/{wrong}");
        let refused = router.send("PUT", &path, &[], br#"{"policy":"random"}"#).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "invalid_model"));
        assert_eq!(refused.json()["error"]["param"], "model");
        assert!(refused.text().contains("1 to 512 bytes"), "{}", refused.text());
    }
    let unset = router.send("DELETE", &path, &[], b"").await;
    assert_eq!((unset.status, unset.json()["in_use"].as_str()), (200, Some("cache_aware")));
}
