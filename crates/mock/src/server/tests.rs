//! Tests of a worker over real sockets: formats, faults, and clients that disconnect.

#![expect(clippy::disallowed_methods, reason = "tests measure")]

use std::time::Instant;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::*;
use crate::client::{Connection, ExchangeError, request};
use crate::config::Rate;
use crate::engine::Stats;

mod methods;

/// A worker that serves until this is dropped.
struct Serving {
    worker: Arc<Worker>,
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
    _task: JoinSet<()>,
}

async fn serving(config: Config) -> Serving {
    let bound = Bound::bind(config).await.unwrap();
    let (stop, stopped) = oneshot::channel();
    let (worker, address) = (bound.worker(), bound.address());
    let mut task = JoinSet::new();
    task.spawn(bound.serve(async {
        let _dropped = stopped.await.is_err();
    }));
    Serving { worker, address, _stop: stop, _task: task }
}

impl Serving {
    async fn exchange(
        &self,
        method: &str,
        target: &str,
        headers: &str,
        body: &[u8],
    ) -> Result<(u16, Vec<u8>), ExchangeError> {
        let mut connection = Connection::open(self.address).await?;
        let mut answer = Vec::new();
        let request = request(method, target, "mock", headers, body);
        let (head, _) =
            connection.exchange(&request, |piece| answer.extend_from_slice(piece)).await?;
        Ok((head.status, answer))
    }

    async fn post(&self, target: &str, body: &Value) -> (u16, Value) {
        let (status, answer) =
            self.exchange("POST", target, "", body.to_string().as_bytes()).await.unwrap();
        (status, serde_json::from_slice(&answer).unwrap())
    }

    /// Returns the `data:` of each event as JSON, and whether the stream ended with `[DONE]`.
    async fn stream(&self, target: &str, body: Value) -> (Vec<Value>, bool) {
        let mut body = body;
        body["stream"] = json!(true);
        let (status, answer) =
            self.exchange("POST", target, "", body.to_string().as_bytes()).await.unwrap();
        let text = String::from_utf8(answer).unwrap();
        assert_eq!(status, 200, "{text}");
        assert!(text.ends_with("\n\n"), "{text}");
        let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let done = data.last() == Some(&"[DONE]");
        let events = &data[..data.len() - usize::from(done)];
        (events.iter().map(|event| serde_json::from_str(event).unwrap()).collect(), done)
    }

    async fn faults(&self, faults: &Value) {
        let (status, answer) =
            self.exchange("PUT", "/_mock/faults", "", faults.to_string().as_bytes()).await.unwrap();
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    }
}

/// Waits until `check` holds, and panics with the last counts otherwise.
async fn eventually(worker: &Worker, check: impl Fn(Stats) -> bool) -> Duration {
    let start = Instant::now();
    while !check(worker.stats()) {
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", worker.stats());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    start.elapsed()
}

fn chat(text: &str) -> Value {
    json!({ "model": "mock-model", "max_tokens": 3, "messages": [{ "role": "user", "content": text }] })
}

fn texts(events: &[Value], pointer: &str) -> String {
    events.iter().filter_map(|event| event.pointer(pointer)?.as_str()).collect()
}

#[tokio::test]
async fn a_chat_has_the_same_text_complete_and_streamed() {
    let mock = serving(Config::default()).await;
    let (status, whole) = mock.post("/v1/chat/completions", &chat("hello")).await;
    assert_eq!(status, 200);
    assert_eq!(whole["choices"][0]["message"]["content"], "w0 w1 w2 ");
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 3);

    let (events, done) = mock.stream("/v1/chat/completions", chat("hello")).await;
    assert!(done);
    assert_eq!(texts(&events, "/choices/0/delta/content"), "w0 w1 w2 ");
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert!(events.iter().all(|event| event.get("usage").is_none()));

    let mut body = chat("hello");
    body["stream_options"] = json!({ "include_usage": true });
    let (events, _) = mock.stream("/v1/chat/completions", body).await;
    let last = events.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(3)));
    assert!(events[..events.len() - 1].iter().all(|event| event["usage"].is_null()));
}

#[tokio::test]
async fn a_repeated_prefix_is_reported_as_cached() {
    let mock = serving(Config::default()).await;
    let long = "x".repeat(1000);
    let cached = |answer: &Value| {
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    let (_, first) = mock.post("/v1/chat/completions", &chat(&long)).await;
    let (_, again) = mock.post("/v1/chat/completions", &chat(&format!("{long}, and more"))).await;
    assert_eq!(cached(&first), 0);
    assert!((240..260).contains(&cached(&again)), "{again}");
    let stats = mock.worker.stats();
    assert_eq!(stats.cached_tokens, cached(&again));

    mock.exchange("POST", "/flush_cache", "", b"").await.unwrap();
    let (_, cold) = mock.post("/v1/messages", &chat(&long)).await;
    assert_eq!(cold["usage"]["cache_read_input_tokens"], 0);
    let (_, warm) = mock.post("/v1/messages", &chat(&long)).await;
    let usage = &warm["usage"];
    let read = usage["cache_read_input_tokens"].as_u64().unwrap();
    assert!(read > 200 && usage["input_tokens"].as_u64().unwrap() < 20, "{usage}");
}

#[tokio::test]
async fn a_script_chooses_how_usage_is_reported() {
    let mock = serving(Config::default()).await;
    let counts = |event: &Value| event["usage"]["completion_tokens"].clone();
    for path in ["/v1/chat/completions", "/v1/completions"] {
        let of = async |form: &str| {
            let mut body = chat("hello");
            body["stream_options"] = json!({ "include_usage": true });
            body["mock"] = json!({ "usage": form });
            mock.stream(path, body).await.0
        };
        let own = of("own_chunk").await;
        let (last, others) = own.split_last().unwrap();
        assert_eq!((counts(last), &last["choices"]), (json!(3), &json!([])));
        assert!(others.iter().all(|event| event.get("usage") == Some(&Value::Null)));
        let last_choice = of("last_choice").await;
        let last = last_choice.last().unwrap();
        assert_eq!((counts(last), last_choice.len()), (json!(3), own.len() - 1));
        assert!(last["choices"][0]["finish_reason"].is_string());
        let continuous: Vec<Value> = of("continuous").await.iter().map(counts).collect();
        let tokens = &continuous[continuous.len() - 5..];
        assert_eq!(tokens, [json!(1), json!(2), json!(3), json!(3), json!(3)]);
        assert!(of("absent").await.iter().all(|event| event.get("usage").is_none()));
        assert_eq!(of("absurd").await.last().unwrap()["usage"]["prompt_tokens"], -1);
    }
    let mut body = chat("hello");
    body["mock"] = json!({ "usage": "absent" });
    assert_eq!(mock.post("/v1/chat/completions", &body).await.1["usage"], Value::Null);
}

#[tokio::test]
async fn anthropic_streams_open_and_close_their_blocks() {
    let mock = serving(Config::default()).await;
    let (events, done) = mock.stream("/v1/messages", chat("hello")).await;
    assert!(!done, "that end mark is OpenAI's");
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    assert_eq!(texts(&events, "/delta/text"), "w0 w1 w2 ");
    assert_eq!(events[6]["delta"]["stop_reason"], "max_tokens");
}

#[tokio::test]
async fn the_events_of_responses_are_numbered() {
    let mock = serving(Config::default()).await;
    let body = json!({ "model": "mock-model", "input": "hello", "max_output_tokens": 3 });
    let (_, whole) = mock.post("/v1/responses", &body).await;
    assert_eq!(whole["output"][0]["content"][0]["text"], "w0 w1 w2 ");
    let (events, done) = mock.stream("/v1/responses", body).await;
    assert!(!done);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "{event}");
    }
    let deltas: Vec<Value> =
        events.iter().filter(|e| e["type"] == "response.output_text.delta").cloned().collect();
    assert_eq!(texts(&deltas, "/delta"), "w0 w1 w2 ");
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], "w0 w1 w2 ");
}

#[tokio::test]
async fn sglang_repeats_the_text_in_each_event() {
    let mock = serving(Config::default()).await;
    let body = json!({ "text": "hello", "sampling_params": { "max_new_tokens": 2 } });
    let (_, whole) = mock.post("/generate", &body).await;
    assert_eq!(
        (&whole["text"], &whole["meta_info"]["completion_tokens"]),
        (&json!("w0 w1 "), &json!(2))
    );
    let (events, done) = mock.stream("/generate", body).await;
    assert!(done);
    let texts: Vec<&str> = events.iter().map(|event| event["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["w0 ", "w0 w1 ", "w0 w1 "]);
    assert_eq!(events[0]["meta_info"]["completion_tokens"], 1);
    assert_eq!(events[2]["meta_info"]["finish_reason"]["type"], "length");
}

#[tokio::test]
async fn every_other_endpoint_answers_in_its_format() {
    let mock =
        serving(Config { models: vec!["a/b".to_owned(), "c".to_owned()], ..Config::default() })
            .await;
    let embeddings = mock
        .post("/v1/embeddings", &json!({ "model": "c", "input": ["x", "y"], "dimensions": 4 }))
        .await;
    assert_eq!(embeddings.1["data"][1]["embedding"].as_array().unwrap().len(), 4);
    let coded =
        mock.post("/v1/embeddings", &json!({ "input": "x", "encoding_format": "base64" })).await;
    assert!(coded.1["data"][0]["embedding"].is_string());
    for path in ["/rerank", "/v1/rerank"] {
        let ranked = mock
            .post(path, &json!({ "query": "q", "documents": ["x", "y", "z"], "top_n": 2 }))
            .await;
        let results = ranked.1["results"].as_array().unwrap();
        assert!(
            results.len() == 2
                && results[0]["relevance_score"].as_f64() >= results[1]["relevance_score"].as_f64()
        );
    }
    let classes = mock.post("/v1/classify", &json!({ "input": "x" })).await;
    assert_eq!(classes.1["data"][0]["num_classes"], 2);
    let scores = mock.post("/v1/score", &json!({ "text_1": "x", "text_2": ["y", "z"] })).await;
    assert_eq!(scores.1["data"].as_array().unwrap().len(), 2);
    let images = mock.post("/v1/images/generations", &json!({ "prompt": "x", "n": 2 })).await;
    assert_eq!(images.1["data"].as_array().unwrap().len(), 2);
    let completion = mock.post("/v1/completions", &json!({ "prompt": "x", "max_tokens": 1 })).await;
    assert_eq!(completion.1["choices"][0]["text"], "w0 ");
    let (events, done) =
        mock.stream("/v1/completions", json!({ "prompt": "x", "max_tokens": 2 })).await;
    assert!(done && texts(&events, "/choices/0/text") == "w0 w1 ");

    let form = "--B\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nc\r\n--B\r\ncontent-disposition: \
                form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n--B--\r\n";
    let mut connection = Connection::open(mock.address).await.unwrap();
    let upload = request("POST", "/v1/audio/transcriptions", "mock", "", form.as_bytes());
    let upload = String::from_utf8(upload)
        .unwrap()
        .replace("application/json", "multipart/form-data; boundary=B");
    let mut answer = Vec::new();
    connection.exchange(upload.as_bytes(), |piece| answer.extend_from_slice(piece)).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert!(answer["text"].as_str().is_some_and(|text| text.starts_with("w0 w1 ")), "{answer}");

    let get = async |path: &str| mock.exchange("GET", path, "", b"").await.unwrap();
    let models: Value = serde_json::from_slice(&get("/v1/models").await.1).unwrap();
    assert_eq!((&models["data"][0]["id"], &models["data"][1]["id"]), (&json!("a/b"), &json!("c")));
    let info: Value = serde_json::from_slice(&get("/get_model_info").await.1).unwrap();
    assert_eq!(info["model_path"], "a/b");
    let loads: Value = serde_json::from_slice(&get("/get_loads").await.1).unwrap();
    assert_eq!(loads["loads"][0]["num_running_reqs"], 0);
    let metrics = String::from_utf8(get("/metrics").await.1).unwrap();
    assert!(metrics.contains("mock_requests_total{model_name=\"a/b\"} 10\n"), "{metrics}");
    assert_eq!(get("/health").await.0, 200);
    assert_eq!(get("/get_server_info").await.0, 200);
}

#[tokio::test]
async fn bad_requests_get_a_clear_error() {
    let mock = serving(Config { api_key: Some("k".to_owned()), ..Config::default() }).await;
    let check = async |method: &str,
                       target: &str,
                       headers: &str,
                       body: &str,
                       expected: u16,
                       named: &str| {
        let (status, answer) =
            mock.exchange(method, target, headers, body.as_bytes()).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert_eq!(status, expected, "{target} {body}: {answer}");
        assert!(answer.contains(named), "{target} {body}: {answer}");
    };
    let key = "authorization: Bearer k\r\n";
    let chat = "/v1/chat/completions";
    check("POST", chat, "", "{}", 401, "api key").await;
    check("POST", chat, "x-api-key: k\r\n", "{}", 200, "w0").await;
    check("POST", chat, key, r#"{"model":"other"}"#, 404, "other").await;
    check("POST", chat, key, r#"{"model":"mock\u002dmodel"}"#, 200, "w0").await;
    check("POST", chat, key, "{", 400, "EOF").await;
    check("POST", chat, key, r#"{"mock":{"status":7}}"#, 400, "status 7").await;
    check("POST", "/v1/embeddings", key, "{}", 400, "input is missing").await;
    check("POST", "/v1/embeddings", key, r#"{"input":"x","dimensions":0}"#, 400, "dimensions 0")
        .await;
    check("POST", "/v1/audio/transcriptions", key, "{}", 400, "multipart").await;
    check("GET", chat, key, "", 405, "GET").await;
    check("POST", "/nowhere", key, "", 404, "/nowhere").await;
    check("GET", "/health", "", "", 200, "").await;
    check("PUT", "/_mock/faults", "", r#"{"nxt":1}"#, 400, "nxt").await;
}

#[tokio::test]
async fn the_last_request_is_stored_byte_for_byte() {
    let mock = serving(Config::default()).await;
    let body = b"{ \"model\" :\t\"mock-model\",\n \"caf\\u00e9\": 1e2 }";
    mock.exchange("POST", "/v1/completions?a=b", "x-two: 1\r\nx-one: a\r\nX-Two: 2\r\n", body)
        .await
        .unwrap();
    assert_eq!(mock.exchange("GET", "/_mock/last/body", "", b"").await.unwrap().1, body);
    let last: Value =
        serde_json::from_slice(&mock.exchange("GET", "/_mock/last", "", b"").await.unwrap().1)
            .unwrap();
    assert_eq!(last["target"], "/v1/completions?a=b");
    let ours: Vec<&Value> = last["headers"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|h| h[0].as_str().unwrap().starts_with("x-"))
        .collect();
    assert_eq!(json!(ours), json!([["x-two", "1"], ["x-two", "2"], ["x-one", "a"]]));
}

#[tokio::test]
async fn faults_apply_to_the_next_requests_and_then_end() {
    let mock = serving(Config::default()).await;
    mock.faults(&json!({ "next": 2, "script": { "status": 503, "retry_after": 7 } })).await;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(mock.post("/v1/chat/completions", &chat("x")).await.0);
    }
    assert_eq!(statuses, [503, 503, 200]);
    let stats = mock.worker.stats();
    assert_eq!((stats.failed, stats.completed, stats.aborted), (2, 1, 0));

    mock.faults(&json!({ "health": { "status": 500 } })).await;
    assert_eq!(mock.exchange("GET", "/health", "", b"").await.unwrap().0, 500);
    assert_eq!(mock.post("/v1/chat/completions", &chat("x")).await.0, 200);
}

#[tokio::test]
async fn a_connection_is_closed_where_the_script_requires_it() {
    let mock = serving(Config::default()).await;
    let chat = chat("x").to_string().replace("\"max_tokens\"", "\"stream\":true,\"max_tokens\"");
    let run = async |script: &str| {
        let mut body = Vec::new();
        let mut connection = Connection::open(mock.address).await.unwrap();
        let header = format!("x-mock: {script}\r\n");
        let request = request("POST", "/v1/chat/completions", "mock", &header, chat.as_bytes());
        let end = connection.exchange(&request, |piece| body.extend_from_slice(piece)).await;
        (end, String::from_utf8(body).unwrap())
    };
    let (end, body) = run(r#"{"cut_after_chunks":2}"#).await;
    assert!(matches!(end, Err(ExchangeError::ClosedWithinBody)), "{end:?}");
    assert!(
        body.contains("w1 ") && !body.contains("w2 "),
        "the text before the close arrives: {body}"
    );
    let (end, _) = run(r#"{"cut_before_head":true}"#).await;
    assert!(matches!(end, Err(ExchangeError::ClosedBeforeHead)), "{end:?}");
    let (end, _) = run(r#"{"garbage":true}"#).await;
    assert!(matches!(end, Err(ExchangeError::NotHttp(_))), "{end:?}");
    assert_eq!(mock.worker.stats().failed, 3);
}

#[tokio::test]
async fn a_disconnect_of_the_client_is_noticed_at_once() {
    let mock = serving(Config { prefill: Rate::new(1.0).unwrap(), ..Config::default() }).await;
    let stalled = "x-mock: {\"stall_after_chunks\":1}\r\n";
    let streamed = r#"{"stream":true}"#;
    for (phase, headers, body) in [
        ("in prefill", "", chat("hello").to_string()),
        ("in a delay", "x-mock: {\"delay_ms\":60000}\r\n", "{}".to_owned()),
        ("in a stream", stalled, streamed.to_owned()),
    ] {
        let before = mock.worker.stats().aborted;
        let mut client = TcpStream::connect(mock.address).await.unwrap();
        client
            .write_all(&request("POST", "/v1/chat/completions", "mock", headers, body.as_bytes()))
            .await
            .unwrap();
        eventually(&mock.worker, |stats| stats.in_flight == 1).await;
        if phase == "in a stream" {
            let mut head = [0; 64];
            assert_eq!(client.read_exact(&mut head).await.unwrap(), 64);
        }
        assert_eq!(mock.worker.stats().aborted, before, "{phase}");
        drop(client);
        let took = eventually(&mock.worker, |stats| stats.aborted == before + 1).await;
        assert!(took < Duration::from_millis(100), "{phase}: {took:?}");
        assert_eq!((mock.worker.stats().in_flight, mock.worker.stats().running), (0, 0), "{phase}");
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_stops_the_generation() {
    let mock = serving(Config::default()).await;
    let script = "x-mock: {\"output_tokens\":100,\"chunk_bytes\":1048576}\r\nconnection: close\r\n";
    let mut client = TcpStream::connect(mock.address).await.unwrap();
    let asked = request("POST", "/v1/chat/completions", "mock", script, br#"{"stream":true}"#);
    client.write_all(&asked).await.unwrap();
    eventually(&mock.worker, |stats| stats.completion_tokens > 0).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let made = mock.worker.stats().completion_tokens;
    assert!(made < 50, "{made} MiB were generated although the client reads nothing");
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert!(answer.len() > 100 << 20 && answer.ends_with(b"data: [DONE]\n\n\r\n0\r\n\r\n"));
    assert_eq!(mock.worker.stats().completed, 1);
}

#[tokio::test]
async fn a_stopped_worker_closes_its_connections_and_frees_its_port() {
    let mock = serving(Config::default()).await;
    let mut client = TcpStream::connect(mock.address).await.unwrap();
    let stalled = request("POST", "/generate", "mock", "x-mock: {\"delay_ms\":60000}\r\n", b"{}");
    client.write_all(&stalled).await.unwrap();
    eventually(&mock.worker, |stats| stats.in_flight == 1).await;
    let (worker, address) = (Arc::clone(&mock.worker), mock.address);
    drop(mock);
    assert_eq!(client.read(&mut [0; 1]).await.unwrap_or(0), 0);
    eventually(&worker, |stats| stats.in_flight == 0).await;
    let again = Bound::bind(Config { listen: address, ..Config::default() }).await;
    assert!(again.is_ok(), "{again:?}");
}

#[tokio::test]
async fn errors_name_the_socket_or_file() {
    let mock = serving(Config::default()).await;
    let taken =
        Bound::bind(Config { listen: mock.address, ..Config::default() }).await.unwrap_err();
    assert!(taken.to_string().contains(&mock.address.to_string()), "{taken}");
    let tls = Some(("/no/such.pem".into(), "/no/key.pem".into()));
    let missing = Bound::bind(Config { tls, ..Config::default() }).await.unwrap_err();
    assert!(missing.to_string().contains("/no/such.pem"), "{missing}");
}

#[tokio::test]
async fn tls_serves_with_the_given_certificate() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mock = serving(Config { tls: Some((certificate, key)), ..Config::default() }).await;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let stream = TcpStream::connect(mock.address).await.unwrap();
    let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}
