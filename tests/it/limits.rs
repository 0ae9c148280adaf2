//! Tests of limits on a router alone: what rules match, what they count, what clients and administrators see of them.

use serde_json::{Value, json};

use crate::support::client::{self, Answer};
use crate::support::eventually;
use crate::support::mock::Mock;
use crate::support::router::Router;

const CHAT: &str = r#"{"model":"m","max_tokens":4,"messages":[{"role":"user","content":"hello"}]}"#;

/// Windows of a day, so that no test crosses the edge of one unless it runs at midnight.
const DAY: &str = "1d";

async fn chat(router: &Router, headers: &[(&str, &str)]) -> Answer {
    client::send(router.address(), "POST", "/v1/chat/completions", headers, CHAT.as_bytes()).await
}

async fn set(router: &Router, id: &str, rule: &Value) -> Answer {
    let headers = [("content-type", "application/json")];
    let body = rule.to_string();
    client::send(
        router.address(),
        "PUT",
        &format!("/ha/rate-limits/{id}"),
        &headers,
        body.as_bytes(),
    )
    .await
}

/// What is counted for each subject of the first limit of a rule.
async fn used(router: &Router, id: &str, kind: &str) -> Vec<(String, u64)> {
    let stats = router.get("/ha/rate-limit/stats").await.json();
    let rules = stats["rules"].as_array().unwrap();
    let rule = rules.iter().find(|rule| rule["id"] == id).unwrap();
    let limit =
        rule["limits"].as_array().unwrap().iter().find(|limit| limit["kind"] == kind).unwrap();
    let subjects = limit["subjects"].as_array().unwrap().iter();
    let mut all: Vec<(String, u64)> = subjects
        .map(|subject| {
            (subject["subject"].as_str().unwrap().to_owned(), subject["used"].as_u64().unwrap())
        })
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn a_rule_admits_its_limit_and_says_so_on_every_answer() {
    let mock = Mock::start("w").await;
    let router = Router::before(&[mock.url()], &[]).await;
    let answer = set(&router, "few", &json!({ "requests": 3, "window": DAY })).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let document = answer.json();
    assert_eq!((&document["id"], &document["mode"]), (&json!("few"), &json!("bounded")));
    assert_eq!(document["promises"][0]["bound"], 3);
    assert_eq!(document["receipt"]["complete"], true);
    for left in [2, 1, 0] {
        let answer = chat(&router, &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("3"));
        assert_eq!(
            answer.header("x-ratelimit-remaining-requests"),
            Some(left.to_string().as_str())
        );
        assert_eq!(answer.header("ratelimit-policy"), Some("\"few-requests\";q=3;w=86400"));
    }
    let refused = chat(&router, &[]).await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "insufficient_quota"));
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), Some("0"));
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=86_400).contains(&wait), "{wait}");
    assert!(refused.text().contains("few"), "{}", refused.text());
    assert_eq!(mock.stats().requests, 3, "the worker has seen no refused request");
    assert_eq!(used(&router, "few", "requests").await, [("global".to_owned(), 3)]);
    assert_eq!(router.metric("smg_limit_rejected_total{rule=\"few\"}").await, 1.0);

    let removed = client::send(router.address(), "DELETE", "/ha/rate-limits/few", &[], b"").await;
    assert_eq!(removed.status, 200, "{}", removed.text());
    let free = chat(&router, &[]).await;
    assert_eq!((free.status, free.header("x-ratelimit-limit-requests")), (200, None));
    let again = client::send(router.address(), "DELETE", "/ha/rate-limits/few", &[], b"").await;
    assert_eq!((again.status, again.code().as_str()), (404, "rule_not_found"));
    assert_eq!(router.get("/ha/rate-limits/few").await.status, 404);
}

#[tokio::test]
async fn tenants_count_separately_and_learn_nothing_of_each_other() {
    let mock = Mock::start("w").await;
    let flags = ["--tenant-api-key", "acme:key-a", "--tenant-api-key", "umbrella:key-u"];
    let router = Router::before(&[mock.url()], &flags).await;
    let answer =
        set(&router, "each", &json!({ "match": "tenant", "requests": 1, "window": DAY })).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let (acme, umbrella) = ([("x-api-key", "key-a")], [("x-api-key", "key-u")]);
    assert_eq!(chat(&router, &acme).await.status, 200);
    let refused = chat(&router, &acme).await;
    assert_eq!(refused.status, 429);
    assert!(!refused.text().contains("umbrella"));
    assert_eq!(chat(&router, &umbrella).await.status, 200);
    let counted = used(&router, "each", "requests").await;
    assert_eq!(counted, [("tenant=acme".to_owned(), 1), ("tenant=umbrella".to_owned(), 1)]);
}

#[tokio::test]
async fn keys_count_separately_and_a_second_key_gives_no_second_quota() {
    let mock = Mock::start("w").await;
    let router = Router::before(&[mock.url()], &["--api-key", "one", "--api-key", "two"]).await;
    let headers = [("authorization", "Bearer one"), ("content-type", "application/json")];
    let rule = json!({ "match": "api_key", "requests": 1, "window": DAY }).to_string();
    let set =
        client::send(router.address(), "PUT", "/ha/rate-limits/k", &headers, rule.as_bytes()).await;
    assert_eq!(set.status, 200, "{}", set.text());
    assert_eq!(chat(&router, &[("authorization", "Bearer one")]).await.status, 200);
    let dressed = [("authorization", "Bearer stranger"), ("x-api-key", "one")];
    assert_eq!(chat(&router, &dressed).await.status, 429);
    assert_eq!(chat(&router, &[("authorization", "Bearer two")]).await.status, 200);
}

#[tokio::test]
async fn tokens_are_reserved_and_settled() {
    let mock = Mock::start("w").await;
    let router = Router::before(&[mock.url()], &[]).await;
    let rule = json!({ "tokens": 100_000, "window": DAY, "match": "model" });
    assert_eq!(set(&router, "t", &rule).await.status, 200);
    let answer = chat(&router, &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let total = answer.json()["usage"]["total_tokens"].as_u64().unwrap();
    assert!(total > 0);
    let is_settled = |expected: u64| {
        let router = &router;
        move || async move {
            let seen = used(router, "t", "tokens").await;
            if seen == [("model=m".to_owned(), expected)] { Ok(()) } else { Err(seen) }
        }
    };
    eventually("the answer's tokens are counted", is_settled(total)).await;
    // A stream whose client does not ask for usage: it is asked for upstream, and not shown.
    let stream = CHAT.replace("\"max_tokens\":4", "\"max_tokens\":4,\"stream\":true");
    let streamed =
        client::send(router.address(), "POST", "/v1/chat/completions", &[], stream.as_bytes())
            .await;
    assert_eq!(streamed.status, 200);
    assert!(!streamed.text().contains("\"usage\""), "{}", streamed.text());
    assert!(streamed.text().contains("[DONE]"));
    eventually("the stream's tokens are counted", is_settled(2 * total)).await;

    let large = CHAT.replace("\"max_tokens\":4", "\"max_tokens\":200000");
    let refused =
        client::send(router.address(), "POST", "/v1/chat/completions", &[], large.as_bytes()).await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "request_too_large_for_limit"));
    assert_eq!(refused.header("x-ratelimit-limit-tokens"), Some("100000"));
}

#[tokio::test]
async fn a_shadow_rule_counts_and_rejects_nothing() {
    let mock = Mock::start("w").await;
    let router = Router::before(&[mock.url()], &[]).await;
    assert_eq!(
        set(&router, "s", &json!({ "requests": 1, "window": DAY, "shadow": true })).await.status,
        200
    );
    for _ in 0..3 {
        let answer = chat(&router, &[]).await;
        assert_eq!((answer.status, answer.header("x-ratelimit-limit-requests")), (200, None));
    }
    assert_eq!(used(&router, "s", "requests").await, [("global".to_owned(), 3)]);
    assert_eq!(router.metric("smg_limit_rejected_total{rule=\"s\"}").await, 2.0);
    assert_eq!(router.metric("smg_limit_admitted_total{rule=\"s\"}").await, 1.0);
}

#[tokio::test]
async fn bad_rules_are_refused_with_the_name_of_the_field() {
    let router = Router::start(&["--min-ready-workers", "0"]).await;
    for (rule, field) in [
        (json!({ "window": "1m" }), "requests"),
        (json!({ "requests": 1 }), "window"),
        (json!({ "requests": 0, "window": "1m" }), "requests"),
        (json!({ "requests": 1, "window": "8d" }), "window"),
        (json!({ "requests": 1, "window": "1m", "rate": "1/s" }), "requests"),
        (json!({ "rate": "fast" }), "rate"),
        (json!({ "requests": 1, "window": "1m", "burst": 2 }), "burst"),
        (json!({ "requests": 5, "window": "1m", "burst": 2, "mode": "soft" }), "burst"),
        (json!({ "requests": 1, "window": "1m", "cost": { "input": 1 } }), "cost"),
        (json!({ "tokens": 1, "window": "1m", "cost": { "input": -1 } }), "cost"),
        (json!({ "requests": 1, "window": "1m", "match": "planet" }), "match"),
        (json!({ "requests": 1, "window": "1m", "match": { "api_key": "sk-secret" } }), "match"),
        (json!({ "requests": 1, "window": "1m", "id": "other" }), "id"),
    ] {
        let answer = set(&router, "r", &rule).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "invalid_rule"),
            "{rule}: {}",
            answer.text()
        );
        let error = answer.json();
        assert_eq!(error["error"]["param"], field, "{rule}: {error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(field), "{rule}: {error}");
    }
    for (unknown, name) in [
        (json!({ "request": 1 }), "request"),
        (json!({ "requests": 1, "window": "1m", "mode": "lax" }), "lax"),
    ] {
        let answer = set(&router, "r", &unknown).await;
        assert_eq!(answer.status, 400, "{unknown}");
        assert!(answer.text().contains(name), "{}", answer.text());
    }
    assert_eq!(router.get("/ha/rate-limits").await.json()["total"], 0);
}

#[tokio::test]
async fn the_short_form_is_one_rule_per_second() {
    let mock = Mock::start("w").await;
    let router = Router::before(&[mock.url()], &[]).await;
    let off = json!({ "limit_per_second": 0, "remaining": -1 });
    assert_eq!(router.get("/ha/rate-limit").await.json(), off);
    let json_type = [("content-type", "application/json")];
    let post = async |body: &str| {
        client::send(router.address(), "POST", "/ha/rate-limit", &json_type, body.as_bytes()).await
    };
    let set = post(r#"{"limit_per_second":5}"#).await;
    assert_eq!((set.status, &set.json()["limit_per_second"]), (200, &json!(5)), "{}", set.text());
    let mut statuses = Vec::new();
    for _ in 0..30 {
        statuses.push(chat(&router, &[]).await.status);
    }
    assert!(statuses.contains(&429) && statuses.contains(&200), "{statuses:?}");
    let bad = post(r#"{"limit_per_second":-1}"#).await;
    assert_eq!((bad.status, bad.code().as_str()), (400, "invalid_rule"));
    assert_eq!(post(r#"{"limit_per_second":0}"#).await.status, 200);
    assert_eq!(router.get("/ha/rate-limit").await.json(), off);
    assert_eq!(post(r#"{"limit_per_second":0}"#).await.status, 200, "twice does no harm");
}

#[tokio::test]
async fn flags_and_the_file_set_rules() {
    let mock = Mock::start("w").await;
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    let text = "[[rate_limits]]\nid = \"file\"\nmatch = { model = \"m\" }\nrate = \"7/h\"\n";
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let flags = ["--config", &path, "--rate-limit-requests-per-minute", "1000"];
    let router = Router::before(&[mock.url()], &flags).await;
    let rules = eventually("the rules are in force", || async {
        let seen = router.get("/ha/rate-limits").await.json();
        if seen["total"] == 2 { Ok(seen) } else { Err(seen) }
    })
    .await;
    let ids: Vec<&str> = rules["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["file", "requests_per_minute"]);
    assert_eq!(chat(&router, &[]).await.header("x-ratelimit-limit-requests"), Some("7"));
}
