//! Where the next request of a conversation goes, and where many that begin alike go.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use serde_json::json;

use crate::affinity::{two_routers, worker};
use crate::support::client::Answer;
use crate::support::eventually;
use crate::support::mock::Mock;
use crate::support::router::Router;
use smg_mock::Config;

/// Rounds of a conversation.
const FOLLOW_UPS: usize = 12;

async fn respond(router: &Router, previous: Option<&str>, stream: bool) -> Answer {
    let mut body =
        json!({ "model": "m", "input": "hello", "max_output_tokens": 2, "stream": stream });
    if let Some(previous) = previous {
        body["previous_response_id"] = json!(previous);
    }
    let answer = router.post("/v1/responses", body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

/// The id of the response in an answer that is a stream or not.
fn id(answer: &Answer) -> String {
    let text = answer.text();
    let from = text.find("\"resp_").unwrap() + 1;
    text[from..].split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_response_that_goes_on_is_sent_to_the_worker_that_holds_it_under_every_policy() {
    let mocks = Mock::several(4).await;
    let urls: Vec<_> = mocks.iter().map(Mock::url).collect();
    for policy in [
        "cache_aware",
        "round_robin",
        "random",
        "power_of_two",
        "least_load",
        "consistent_hashing",
        "prefix_hash",
        "manual",
        "bucket",
    ] {
        let router = Router::before(&urls, &["--policy", policy]).await;
        for stream in [false, true] {
            let first = respond(&router, None, stream).await;
            let (holder, mut previous) = (worker(&first), id(&first));
            for round in 0..FOLLOW_UPS {
                let next = respond(&router, Some(&previous), stream).await;
                assert_eq!(worker(&next), holder, "{policy}, stream {stream}, round {round}");
                previous = id(&next);
            }
        }
    }
}

#[tokio::test]
async fn a_response_that_goes_on_at_another_router_is_sent_to_the_worker_that_holds_it() {
    let mocks = Mock::several(4).await;
    let [first, second] = two_routers(&mocks, "round_robin").await;
    let begun = respond(&first, None, false).await;
    let (holder, previous) = (worker(&begun), id(&begun));
    eventually("the other router knows which worker holds the response", || async {
        let status = second.get("/ha/status").await.json();
        let known = status["stores"]["sessions"]["entry_count"].as_u64();
        if known == Some(1) { Ok(()) } else { Err(known) }
    })
    .await;
    for round in 0..FOLLOW_UPS {
        let next = respond(&second, Some(&previous), false).await;
        assert_eq!(worker(&next), holder, "round {round}");
    }
}

/// Idle workers that compute prompts slowly.
async fn slow_workers(count: usize) -> Vec<Mock> {
    let config = || Config {
        prefill: "20000".parse().unwrap(),
        block_tokens: NonZeroUsize::new(16).unwrap(),
        ..Config::default()
    };
    let mut mocks = Vec::new();
    for at in 0..count {
        mocks.push(Mock::with(Config { name: Some(format!("w{at}")), ..config() }).await);
    }
    mocks
}

async fn chat(router: &Router, text: &str) -> String {
    let body = json!({
        "model": "m", "max_tokens": 1, "stream": true,
        "messages": [{ "role": "user", "content": text }],
    });
    let answer = router.post("/v1/chat/completions", body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    worker(&answer)
}

#[tokio::test]
async fn prompts_with_one_head_that_come_at_once_spread_over_idle_workers() {
    let mocks = slow_workers(4).await;
    let urls: Vec<_> = mocks.iter().map(Mock::url).collect();
    let router = Router::before(&urls, &[]).await;
    let head = "all agents have this system prompt. ".repeat(290);
    let texts: Vec<_> = (0..24).map(|n| format!("{head} and this is number {n}")).collect();
    let answers =
        futures_util::future::join_all(texts.iter().map(|text| chat(&router, text))).await;
    let mut counts = BTreeMap::<_, usize>::new();
    answers.into_iter().for_each(|name| *counts.entry(name).or_default() += 1);
    assert!(counts.values().all(|count| *count <= 8), "{counts:?}");
}

#[tokio::test]
async fn conversations_that_share_a_long_head_spread_and_stay() {
    let mocks = slow_workers(4).await;
    let urls: Vec<_> = mocks.iter().map(Mock::url).collect();
    let router = Router::before(&urls, &[]).await;
    let head = "a document of two hundred kilobytes. ".repeat(5500);
    let begin = |n: usize| format!("{head} {}", format!("conversation {n} asks. ").repeat(60));
    let mut talks: Vec<_> = (0..8).map(begin).collect();
    let first = futures_util::future::join_all(talks.iter().map(|text| chat(&router, text))).await;
    let mut counts = BTreeMap::<_, usize>::new();
    first.iter().for_each(|name| *counts.entry(name.clone()).or_default() += 1);
    assert!(counts.len() > 1, "they spread: {counts:?}");
    for round in 0..3 {
        for (talk, home) in talks.iter_mut().zip(&first) {
            talk.push_str(&format!("answer and question {round}. ").repeat(40));
            assert_eq!(chat(&router, talk).await, *home, "round {round}");
        }
    }
}
