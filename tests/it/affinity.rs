//! What routers have learnt of a worker ends with its registration: a worker that is removed and added again has an empty cache.

use serde_json::{Value, json};

use crate::support::client::Answer;
use crate::support::eventually;
use crate::support::mock::Mock;
use crate::support::router::{Router, command};
use crate::support::worker::Worker;

/// As many conversations as it takes for both workers to get some.
const CONVERSATIONS: usize = 14;

async fn say(router: &Router, conversation: usize) -> Answer {
    let words = format!("conversation {conversation} begins like this. ").repeat(40);
    let body = json!({
        "model": "m", "max_tokens": 1, "messages": [{ "role": "user", "content": words }],
    });
    let session = format!("s{conversation}");
    let headers = [("content-type", "application/json"), ("x-session-id", session.as_str())];
    let body = body.to_string();
    let answer = router.send("POST", "/v1/chat/completions", &headers, body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

pub(crate) fn decision(answer: &Answer) -> String {
    answer.header("x-smg-decision").unwrap().split(' ').next().unwrap().to_owned()
}

pub(crate) fn worker(answer: &Answer) -> String {
    answer.header("x-mock-worker").unwrap().to_owned()
}

/// The number of prefixes that a router knows, and of sessions in its shared state.
async fn learnt(router: &Router) -> (f64, u64) {
    let status = router.get("/ha/status").await.json();
    let sessions = status["stores"]["sessions"]["entry_count"].as_u64().unwrap();
    (router.metric("smg_prefix_entries").await, sessions)
}

/// Removes the worker, and adds it again at once.
async fn replace(router: &Router, mock: &Mock) {
    let list = router.get("/workers").await.json();
    let is = |worker: &&Value| worker["url"].as_str().unwrap().trim_end_matches('/') == mock.url();
    let found = list["workers"].as_array().unwrap().iter().find(is).unwrap();
    let path = format!("/workers/{}", found["id"].as_str().unwrap());
    assert_eq!(router.send("DELETE", &path, &[], b"").await.status, 202);
    let spec = json!({ "url": mock.url() }).to_string();
    let added = router.post("/workers?wait=all", spec).await;
    assert_eq!((added.status, &added.json()["receipt"]["complete"]), (202, &json!(true)));
}

/// Starts the conversations on `first`, waits until `last` knows of them, replaces a worker on `first`, and checks that `last`
/// has forgotten what that worker served, and nothing else.
async fn forgets(first: &Router, last: &Router, mocks: &[Mock], kept: &str) {
    let mut servers = Vec::new();
    for n in 0..CONVERSATIONS {
        servers.push(worker(&say(first, n).await));
    }
    let replaced = servers.iter().filter(|name| *name == mocks[0].name()).count();
    assert!(replaced > 0 && replaced < CONVERSATIONS, "{servers:?}");
    eventually("the other router knows what this one has learnt", || async {
        let (here, there) = (learnt(first).await, learnt(last).await);
        let has_learnt = match kept {
            // A router publishes some sessions at a time: equal numbers do not mean that all have been.
            "sticky" => here.1 == CONVERSATIONS as u64,
            _ => here != (0.0, 0),
        };
        // A router alone publishes nothing, and has nothing to wait for.
        let has_learnt = has_learnt || std::ptr::eq(first, last);
        if here == there && has_learnt { Ok(()) } else { Err((here, there)) }
    })
    .await;
    for (n, server) in servers.iter().enumerate() {
        let answer = say(last, n).await;
        assert_eq!((decision(&answer).as_str(), &worker(&answer)), (kept, server), "{n}");
    }
    replace(first, &mocks[0]).await;
    last.knows_ready(2).await;
    for (n, server) in servers.iter().enumerate() {
        let expected = if server == mocks[0].name() { "miss" } else { kept };
        assert_eq!(decision(&say(last, n).await), expected, "conversation {n} of {server}");
    }
}

#[tokio::test]
async fn a_worker_that_is_added_again_has_no_prefixes() {
    let mocks = Mock::several(2).await;
    let urls = [mocks[0].url(), mocks[1].url()];
    let router = Router::start(&["--debug-headers"]).await;
    for url in urls {
        router.post("/workers", json!({ "url": url }).to_string()).await;
    }
    router.knows_ready(2).await;
    forgets(&router, &router, &mocks, "hit").await;
}

#[tokio::test]
async fn a_configured_worker_that_is_added_again_has_no_sessions() {
    let mocks = Mock::several(2).await;
    let urls = [mocks[0].url(), mocks[1].url()];
    let router = Router::before(&urls, &["--debug-headers", "--policy", "manual"]).await;
    forgets(&router, &router, &mocks, "sticky").await;
}

#[tokio::test]
async fn a_first_line_that_changes_with_each_turn_does_not_move_a_conversation() {
    let mocks = Mock::several(2).await;
    let router = Router::before(&[mocks[0].url(), mocks[1].url()], &["--debug-headers"]).await;
    let mut served = [0; 2];
    for conversation in 0..CONVERSATIONS {
        let mut messages = Vec::new();
        let mut first = None;
        for turn in 0..4 {
            let line = format!(
                "x-anthropic-billing-header: cc_version=2.1.100.7b4; cc_entrypoint=cli; cch={:05x};",
                0xeb6c6 - conversation * 4 - turn
            );
            let system = format!("This is agent {conversation}. ").repeat(80);
            let question = format!("question {turn} ").repeat(40);
            messages.push(json!({ "role": "user", "content": question }));
            let body = json!({
                "model": "m", "max_tokens": 1, "messages": messages,
                "system": [{ "type": "text", "text": line }, { "type": "text", "text": system }],
            });
            let answer = router.post("/v1/messages", body.to_string()).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let name = worker(&answer);
            assert_eq!(first.get_or_insert_with(|| name.clone()), &name, "{conversation}, {turn}");
            assert_eq!(decision(&answer), if turn == 0 { "miss" } else { "hit" });
            messages.push(json!({ "role": "assistant", "content": "answer ".repeat(20) }));
        }
        served[usize::from(first.as_deref() == Some(mocks[1].name()))] += 1;
    }
    assert!(served[0] > 0 && served[1] > 0, "both workers have conversations: {served:?}");
}

/// Sends four turns of conversations whose system prompt and first message begin with text that is different in each turn.
/// Returns the decisions of the later turns, and how many of these stayed with the worker of the turn before.
async fn changing_heads(router: &Router) -> (Vec<String>, usize) {
    let (mut decisions, mut stayed) = (Vec::new(), 0);
    for conversation in 0..CONVERSATIONS {
        let mut rest = Vec::new();
        let mut last = None;
        for turn in 0..4 {
            let now = format!("Now: {:02}:{:02}, turn {turn}\n", conversation % 24, 10 + turn);
            let system = format!("{now}{}", format!("This is agent {conversation}. ").repeat(80));
            let first = format!("id={turn:08x} {}", "a question ".repeat(100));
            let mut messages = vec![
                json!({ "role": "system", "content": system }),
                json!({ "role": "user", "content": first }),
            ];
            messages.extend(rest.iter().cloned());
            let body = json!({ "model": "m", "max_tokens": 1, "messages": messages });
            let answer = router.post("/v1/chat/completions", body.to_string()).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let name = answer.header("x-smg-worker").unwrap().to_owned();
            if let Some(last) = last.replace(name.clone()) {
                decisions.push(decision(&answer));
                stayed += usize::from(last == name);
            }
            rest.push(json!({ "role": "assistant", "content": "an answer ".repeat(20) }));
            rest.push(json!({ "role": "user", "content": format!("question {turn} ").repeat(40) }));
        }
    }
    (decisions, stayed)
}

#[tokio::test]
async fn text_that_the_operator_ignores_does_not_move_a_conversation() {
    // They report no cached tokens: a worker that computes the changing text would have to report that it has cached nothing.
    let workers = [Worker::plain().await, Worker::plain().await];
    let urls = workers.each_ref().map(Worker::url);
    let plain = Router::before(&urls, &["--debug-headers"]).await;
    let (decisions, _) = changing_heads(&plain).await;
    assert!(decisions.iter().all(|decision| decision == "miss"), "{decisions:?}");
    let mut flags = vec!["--debug-headers"];
    flags.extend(["--prefix-ignore", r"Now: [^\\]*", "--prefix-ignore", "id=[0-9a-f]+"]);
    let ignoring = Router::before(&urls, &flags).await;
    let (decisions, stayed) = changing_heads(&ignoring).await;
    assert!(decisions.iter().all(|decision| decision == "hit"), "{decisions:?}");
    assert_eq!(stayed, decisions.len());
}

#[tokio::test]
async fn ignored_text_reaches_the_worker() {
    let one = Worker::plain().await;
    let router = Router::before(&[one.url()], &["--prefix-ignore", "secret [0-9]+"]).await;
    let body = format!(r#"{{"model":"m","prompt":"secret 1, {} secret 2"}}"#, "x".repeat(1000));
    assert_eq!(router.post("/generate", &body).await.status, 200);
    assert_eq!(String::from_utf8(one.seen().pop().unwrap().body).unwrap(), body);
}

#[tokio::test]
async fn a_pattern_that_is_no_pattern_is_an_error() {
    for (pattern, why) in [
        ("a(", "unclosed group"),
        ("x*", "matches the empty text"),
        ("((a{1000}){1000}){1000}", "compiled"),
    ] {
        let flags = ["check-config", "--prefix-ignore", pattern];
        let output = command().args(flags).output().await.unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        let named = format!("flag --prefix-ignore: {pattern:?}");
        assert!(text.contains(&named) && text.contains(why), "{text}");
    }
}

/// Two routers that form one cluster in front of the workers.
pub(crate) async fn two_routers(mocks: &[Mock], policy: &str) -> [Router; 2] {
    let flags = ["--enable-mesh", "--mesh-host", "127.0.0.1", "--mesh-port", "0"];
    let flags = [&flags[..], &["--debug-headers", "--policy", policy]].concat();
    let first = Router::start(&[&flags[..], &["--mesh-server-name", "r1"]].concat()).await;
    let address = eventually("the mesh port is known", || async {
        let log = first.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut lines = lines.filter(|event| event["message"] == "mesh");
        lines
            .next()
            .map(|event| event["address"].as_str().unwrap().to_owned())
            .ok_or_else(|| log.clone())
    })
    .await;
    let joins = ["--mesh-server-name", "r2", "--mesh-peer-urls", address.as_str()];
    let second = Router::start(&[&flags[..], &joins].concat()).await;
    for router in [&first, &second] {
        eventually("both routers are members", || async {
            let status = router.get("/ha/status").await.json();
            let nodes = status["nodes"].as_array().map_or(0, Vec::len);
            if nodes == 2 { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    }
    for mock in mocks {
        let spec = json!({ "url": mock.url() }).to_string();
        assert_eq!(first.post("/workers?wait=all", spec).await.status, 202);
    }
    first.knows_ready(mocks.len()).await;
    second.knows_ready(mocks.len()).await;
    [first, second]
}

#[tokio::test]
async fn every_router_forgets_the_prefixes_of_a_worker_that_is_added_again() {
    let mocks = Mock::several(2).await;
    let [first, second] = two_routers(&mocks, "cache_aware").await;
    forgets(&first, &second, &mocks, "hit").await;
}

#[tokio::test]
async fn every_router_forgets_the_sessions_of_a_worker_that_is_added_again() {
    let mocks = Mock::several(2).await;
    let [first, second] = two_routers(&mocks, "manual").await;
    forgets(&first, &second, &mocks, "sticky").await;
}
