//! Tests that the tokens of each request are counted once and right, and that a client sees nothing of a usage that only the
//! router asked for.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::support::mock::Mock;
use crate::support::router::Router;
use crate::support::worker::Worker;
use crate::support::{client, eventually};

const CHAT: &str = "/v1/chat/completions";

/// The tokens of a kind that are counted for a tenant and the model `m`.
async fn counted(router: &Router, tenant: &str, kind: &str) -> u64 {
    let series = format!("smg_tokens_total{{kind=\"{kind}\",model=\"m\",tenant=\"{tenant}\"}}");
    router.metric(&series).await as u64
}

/// Waits until the counted tokens of these kinds are `wanted`. A request is counted when its response has ended, which its
/// client may see a little earlier.
async fn counts<const N: usize>(router: &Router, tenant: &str, wanted: [(&str, u64); N]) {
    for (kind, tokens) in wanted {
        eventually(&format!("{tokens} tokens of the kind {kind} are counted"), || async {
            let seen = counted(router, tenant, kind).await;
            if seen == tokens { Ok(()) } else { Err(seen) }
        })
        .await;
    }
}

fn chat(fields: &Value) -> String {
    let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hello" }] });
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body.to_string()
}

#[tokio::test]
async fn tokens_are_counted_by_tenant_for_every_api() {
    let mock = Mock::start("w").await;
    let keys = ["--tenant-api-key", "acme:a", "--tenant-api-key", "zeta:z", "--api-key", "c"];
    let router = Router::before(&[mock.url()], &keys).await;
    let send = async |key: &str, path: &str, body: String| {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str())];
        let answer = router.send("POST", path, &headers, body.as_bytes()).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer
    };
    let usage = |answer: &client::Answer| answer.json()["usage"].clone();
    let number = |value: &Value| value.as_u64().unwrap();
    let (mut input, mut cached) = (0, 0);

    let long = "x".repeat(4000);
    let content = json!([{ "role": "user", "content": long }]);
    for _ in 0..2 {
        let seen =
            usage(&send("a", CHAT, chat(&json!({ "messages": content, "max_tokens": 5 }))).await);
        input += number(&seen["prompt_tokens"]);
        cached += number(&seen["prompt_tokens_details"]["cached_tokens"]);
    }
    let seen = usage(
        &send("a", "/v1/messages", chat(&json!({ "messages": content, "max_tokens": 5 }))).await,
    );
    let read = number(&seen["cache_read_input_tokens"]);
    input += number(&seen["input_tokens"]) + read;
    cached += read;
    assert!(cached > 500, "the prompt is cached: {cached}");
    let body = json!({ "model": "m", "input": "hello", "max_output_tokens": 5 });
    let seen = usage(&send("a", "/v1/responses", body.to_string()).await);
    input += number(&seen["input_tokens"]);
    let body = json!({ "model": "m", "input": ["x", "y"] });
    let seen = usage(&send("a", "/v1/embeddings", body.to_string()).await);
    input += number(&seen["prompt_tokens"]);
    let body = json!({ "model": "m", "text": "hello", "sampling_params": { "max_new_tokens": 5 } });
    let native = send("a", "/generate", body.to_string()).await.json();
    input += number(&native["meta_info"]["prompt_tokens"]);
    counts(&router, "acme", [("input", input), ("cached_input", cached), ("output", 25)]).await;

    // The streams of the APIs that report without being asked.
    for (path, body) in [
        ("/v1/messages", json!({ "max_tokens": 7 })),
        ("/v1/responses", json!({ "input": "hello", "max_output_tokens": 7 })),
        ("/generate", json!({ "text": "hello", "sampling_params": { "max_new_tokens": 7 } })),
        (CHAT, json!({ "max_tokens": 7, "stream_options": { "include_usage": true } })),
    ] {
        let mut body = body;
        body["stream"] = json!(true);
        send("z", path, chat(&body)).await;
    }
    counts(&router, "zeta", [("output", 28), ("output_estimated", 0)]).await;
    send("c", "/v1/tokenize", chat(&json!({ "prompt": "x" }))).await;
    send("c", CHAT, chat(&json!({ "max_tokens": 3 }))).await;
    counts(&router, "", [("output", 3)]).await;
    let all = router.get("/metrics").await.text();
    assert!(!all.contains("kind=\"output_estimated\""), "nothing was estimated: {all}");
}

#[tokio::test]
async fn usage_in_any_form_is_counted_once_and_an_absurd_one_not_at_all() {
    let mock = Mock::start("w").await;
    let router = Router::before(&[mock.url()], &[]).await;
    let mut output = 0;
    for path in [CHAT, "/v1/completions"] {
        for form in ["own_chunk", "last_choice", "continuous"] {
            let fields = json!({
                "prompt": "hello", "max_tokens": 20, "stream": true,
                "stream_options": { "include_usage": true }, "mock": { "usage": form },
            });
            let answer = router.post(path, chat(&fields)).await;
            assert!(
                answer.text().contains("\"completion_tokens\":20"),
                "{path} {form}: the client gets it"
            );
            output += 20;
            counts(&router, "", [("output", output)]).await;
        }
    }
    for stream in [true, false] {
        let fields = json!({
            "max_tokens": 20, "stream": stream,
            "stream_options": { "include_usage": true }, "mock": { "usage": "absurd" },
        });
        assert!(router.post(CHAT, chat(&fields)).await.text().contains("\"prompt_tokens\":-1"));
    }
    eventually("both are counted as unreadable", || async {
        let seen = router.metric("smg_tokens_unreadable_total").await as u64;
        if seen == 2 { Ok(()) } else { Err(seen) }
    })
    .await;
    counts(&router, "", [("output", output)]).await;
}

#[tokio::test]
async fn streams_that_end_without_usage_are_estimated() {
    let mock = Mock::start("w").await;
    let flags = ["--disable-retries"];
    let router = Router::before(&[mock.url()], &flags).await;
    // The client did not ask for usage.
    router.post(CHAT, chat(&json!({ "max_tokens": 50, "stream": true }))).await;
    counts(&router, "", [("output_estimated", 50)]).await;
    // The worker died.
    let cut = json!({ "max_tokens": 50, "stream": true, "mock": { "cut_after_chunks": 20 } });
    let answer = router.post(CHAT, chat(&cut)).await;
    assert!(answer.text().contains("upstream_stream_broken"));
    counts(&router, "", [("output_estimated", 70)]).await;
    // The client left.
    let stall = json!({ "max_tokens": 50, "stream": true, "mock": { "stall_after_chunks": 7 } });
    let body = chat(&stall);
    let mut stream =
        client::begin(router.address(), "POST", CHAT, &[], body.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("w6 ") {
        seen.extend_from_slice(&stream.next().await.unwrap().unwrap());
    }
    drop(stream);
    counts(&router, "", [("output_estimated", 77), ("output", 0)]).await;
    // Of an Anthropic stream the input is known from its first event.
    let before = counted(&router, "", "input_estimated").await;
    router.post("/v1/messages", chat(&cut)).await;
    counts(&router, "", [("output_estimated", 97), ("input_estimated", before)]).await;
    assert!(counted(&router, "", "input").await > 0);
}

#[tokio::test]
async fn a_request_that_is_tried_again_is_counted_once() {
    let mocks = Mock::several(2).await;
    let urls: Vec<String> = mocks.iter().map(Mock::url).collect();
    let router = Router::before(&urls, &["--policy", "round_robin"]).await;
    mocks[0].faults(r#"{"script":{"status":503}}"#);
    for _ in 0..4 {
        let answer = router.post(CHAT, chat(&json!({ "max_tokens": 5 }))).await;
        assert_eq!(answer.status, 200);
    }
    assert!(router.metric("smg_router_retries_total{reason=\"5xx\"}").await > 0.0);
    counts(&router, "", [("output", 20)]).await;
    // A worker's refusal costs nothing.
    mocks[1].faults(r#"{"script":{"status":400}}"#);
    for _ in 0..2 {
        assert_eq!(router.post(CHAT, chat(&json!({ "max_tokens": 5 }))).await.status, 400);
    }
    // One that is counted follows, so that those before it would have been counted.
    mocks[1].faults("{}");
    assert_eq!(router.post(CHAT, chat(&json!({ "max_tokens": 5 }))).await.status, 200);
    counts(&router, "", [("output", 25), ("input_estimated", 0)]).await;
}

/// A worker that reports the usage of a stream as OpenAI documents it: if it is asked for.
async fn openai() -> Worker {
    Worker::start(|mut talk| async move {
        let body: Value = serde_json::from_slice(&talk.seen.body).unwrap();
        let is_asked = body["stream_options"]["include_usage"] == true;
        let form = body["form"].as_str().unwrap_or_default();
        let counts = |n| {
            format!(",\"usage\":{{\"prompt_tokens\":9,\"completion_tokens\":{n},\"total_tokens\":{}}}", 9 + n)
        };
        let null = ",\"usage\":null".to_owned();
        let field = |n, last: bool| match form {
            _ if !is_asked => String::new(),
            "continuous" => counts(n),
            "last_choice" if last => counts(n),
            _ => null.clone(),
        };
        talk.begin_stream().await;
        let mut text = String::from(": hello\n\n");
        for n in 1..=5 {
            text += &format!(
                "data: {{\"id\":\"1\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"\\\"usage\\\":null \u{e4}\"}}}}]{}}}\n\n",
                field(n, n == 5)
            );
        }
        if is_asked && form != "last_choice" {
            text += &format!("data: {{\"id\":\"1\",\"choices\":[]{}}}\n\n", counts(5));
        }
        text += "data: [DONE]\n\n";
        // The pieces have nothing to do with the events.
        let size = body["size"].as_u64().unwrap_or(1_000_000) as usize;
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let mut end = size.min(rest.len());
            while !rest.is_char_boundary(end) {
                end += 1;
            }
            if talk.chunk(&rest[..end]).await.is_err() {
                talk.close();
                return talk;
            }
            rest = &rest[end..];
        }
        talk.end_stream().await;
        talk
    })
    .await
}

#[tokio::test]
async fn the_client_sees_nothing_of_the_usage_that_the_router_asks_for() {
    let worker = openai().await;
    let plain = Router::before(&[worker.url()], &[]).await;
    let metering = Router::before(&[worker.url()], &["--meter-streams"]).await;
    let mut output = 0;
    for path in [CHAT, "/v1/completions"] {
        for form in ["own_chunk", "last_choice", "continuous"] {
            for size in [1_000_000, 1, 7, 100] {
                let body = format!(
                    "\t{{ \"model\":\"m\" ,\"stream\" : true, \"form\":\"{form}\",\"size\":{size},\"x\":[1.0,1e2] }} "
                );
                let wanted = plain.post(path, &body).await;
                assert!(
                    worker.seen().last().unwrap().body == body.as_bytes(),
                    "nothing asked for it"
                );
                let seen = metering.post(path, &body).await;
                assert_eq!(seen.text(), wanted.text(), "{path} {form}, pieces of {size}");
                let asked = body.replacen('{', "{\"stream_options\":{\"include_usage\":true},", 1);
                assert_eq!(String::from_utf8_lossy(&worker.seen().last().unwrap().body), asked);
                output += 5;
            }
        }
    }
    counts(&metering, "", [("output", output), ("input", 9 * output / 5), ("output_estimated", 0)])
        .await;
    counts(&plain, "", [("output", 0)]).await;
}

#[tokio::test]
async fn what_the_client_says_of_usage_itself_is_respected() {
    let worker = openai().await;
    let router = Router::before(&[worker.url()], &["--meter-streams"]).await;
    let send = async |options: &str| {
        let body =
            format!("{{\"model\":\"m\",\"stream\":true,\"stream_options\":{options},\"z\":1}}");
        let answer = router.post(CHAT, &body).await.text();
        (answer, String::from_utf8(worker.seen().pop().unwrap().body).unwrap(), body)
    };
    let (answer, seen, sent) = send("{\"include_usage\": true}").await;
    assert_eq!(seen, sent);
    assert!(answer.contains("\"completion_tokens\":5") && answer.contains(",\"usage\":null}"));
    let (answer, seen, sent) = send("{\"include_usage\": false}").await;
    assert_eq!(seen, sent.replace("false", "true"));
    assert!(!answer.contains(",\"usage\":"), "{answer}");
    let (answer, seen, sent) = send("{\"other\": [1]}").await;
    assert_eq!(seen, sent.replace("{\"other\"", "{\"include_usage\":true,\"other\""));
    assert!(!answer.contains(",\"usage\":"), "{answer}");
    let (answer, seen, sent) = send("\"nonsense\"").await;
    assert_eq!(seen, sent, "the worker must refuse it");
    assert!(!answer.contains(",\"usage\":"), "{answer}");
    // A model that the worker calls by another name lies behind what was inserted.
    let aliased = Router::start(&["--meter-streams"]).await;
    let spec = json!({ "url": worker.url(), "aliases": { "nick": "m" } });
    assert_eq!(aliased.post("/workers", spec.to_string()).await.status, 202);
    aliased.knows_ready(1).await;
    aliased.post(CHAT, r#"{"model":"nick","stream":true,"z":"nick"}"#).await;
    assert_eq!(
        String::from_utf8(worker.seen().pop().unwrap().body).unwrap(),
        r#"{"stream_options":{"include_usage":true},"model":"m","stream":true,"z":"nick"}"#
    );
    // Nothing is asked for where there is no stream.
    let body = r#"{"model":"m","stream":false}"#;
    router.post(CHAT, body).await;
    assert!(worker.seen().pop().unwrap().body == body.as_bytes());
}

#[tokio::test]
async fn an_engine_that_does_not_know_the_option_serves_as_before() {
    let mock = Mock::start("w").await;
    let router = Router::before(&[mock.url()], &["--meter-streams"]).await;
    let fields = json!({ "max_tokens": 30, "stream": true, "mock": { "usage": "absent" } });
    let answer = router.post(CHAT, chat(&fields)).await.text();
    assert!(answer.contains("w29 ") && answer.ends_with("data: [DONE]\n\n"), "{answer}");
    counts(&router, "", [("output_estimated", 30), ("output", 0)]).await;
}

#[tokio::test]
async fn streams_of_a_thousand_tokens_cut_at_random_are_each_counted_once() {
    const STREAMS: usize = 40;
    const TOKENS: u64 = 1000;
    let mock = Mock::start("w").await;
    let router = Router::before(
        &[mock.url()],
        &["--meter-streams", "--disable-retries", "--disable-circuit-breaker"],
    )
    .await;
    let mut rng = StdRng::seed_from_u64(13);
    let (mut reported, mut least, mut most) = (0, 0, 0);
    for nth in 0..STREAMS {
        let cut = rng.random_range(1..TOKENS);
        let mock = match nth % 3 {
            0 => json!({}),
            1 => json!({ "cut_after_chunks": cut }),
            _ => json!({ "stall_after_chunks": cut }),
        };
        let body = chat(&json!({ "max_tokens": TOKENS, "stream": true, "mock": mock }));
        if nth % 3 < 2 {
            let answer = router.post(CHAT, &body).await;
            let events = answer.text().matches("\"content\":\"w").count() as u64;
            if nth % 3 == 0 {
                assert_eq!(events, TOKENS);
                reported += TOKENS;
            } else {
                assert_eq!(events, cut);
                (least, most) = (least + cut, most + cut);
            }
        } else {
            // The client leaves somewhere before the point at which the worker stalls.
            let leaves = rng.random_range(0..cut);
            let last = format!("w{leaves} ");
            let mut stream =
                client::begin(router.address(), "POST", CHAT, &[], body.as_bytes()).await.unwrap();
            let mut seen = String::new();
            while !seen.contains(&last) {
                seen += std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap();
            }
            (least, most) = (least + leaves + 1, most + cut);
        }
    }
    eventually("each request has ended", || async {
        let mut ended = 0.0;
        for outcome in ["complete", "broken", "client_left"] {
            ended += router
                .metric(&format!("smg_router_requests_total{{model=\"m\",outcome=\"{outcome}\"}}"))
                .await;
        }
        if ended as usize == STREAMS { Ok(()) } else { Err(ended) }
    })
    .await;
    counts(&router, "", [("output", reported)]).await;
    let estimated = counted(&router, "", "output_estimated").await;
    assert!((least..=most).contains(&estimated), "{estimated} of {least} to {most}");
}
