//! Tests of how a request names its model: in JSON, in a form, in a compressed body, in the query, or not at all.

use async_compression::tokio::write::{BrotliEncoder, GzipEncoder, ZlibEncoder, ZstdEncoder};
use tokio::io::AsyncWriteExt as _;

use crate::support::client::Answer;
use crate::support::router::Router;
use crate::support::worker::{Talk, Worker};

const JSON: (&str, &str) = ("content-type", "application/json");
const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=X");
const FILE: &str = "Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"";

/// Answers with the body of the request.
async fn echo(mut talk: Talk) -> Talk {
    let body = talk.seen.body.clone();
    talk.answer(200, "content-type: application/json\r\n", &body).await;
    talk
}

/// The method, path, headers and body of a request.
type Asked<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [u8]);

/// Starts two workers of different models and a router for them.
async fn two(arguments: &[&str]) -> (Worker, Worker, Router) {
    let (a, b) = (Worker::serving("a", echo).await, Worker::serving("b", echo).await);
    let router = Router::before(&[a.url(), b.url()], arguments).await;
    (a, b, router)
}

fn form(parts: &[(&str, &str)]) -> Vec<u8> {
    let parts = parts.iter().map(|(head, value)| format!("--X\r\n{head}\r\n\r\n{value}\r\n"));
    (parts.collect::<String>() + "--X--\r\n").into_bytes()
}

async fn transcribe(router: &Router, form: &[u8]) -> Answer {
    router.send("POST", "/v1/audio/transcriptions", &[FORM], form).await
}

#[tokio::test]
async fn a_form_reaches_the_worker_of_its_model() {
    let (a, b, router) = two(&[]).await;
    for head in [
        "Content-Disposition: form-data; name=model",
        "Content-Disposition: form-data; name=\"model\"",
        "content-disposition: form-data;name=\"model\"",
        "Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=model",
    ] {
        for parts in [[(head, "b"), (FILE, "RIFF")], [(FILE, "RIFF"), (head, "b")]] {
            let form = form(&parts);
            let answer = transcribe(&router, &form).await;
            assert_eq!((answer.status, &answer.body[..]), (200, &form[..]), "{head}");
        }
    }
    assert_eq!((a.seen().len(), b.seen().len()), (0, 8));
}

#[tokio::test]
async fn a_file_is_never_taken_for_the_name_of_a_model() {
    let (_a, b, router) = two(&[]).await;
    let file = "Content-Disposition: form-data; filename=\"model\"; name=\"file\"";
    let name = "Content-Disposition: form-data; name=\"model\"";
    let answer = transcribe(&router, &form(&[(file, "a"), (name, "b")])).await;
    assert_eq!((answer.status, b.seen().len()), (200, 1));
    let upload = "Content-Disposition: form-data; name=\"model\"; filename=\"weights\"";
    let answer = transcribe(&router, &form(&[(upload, "b")])).await;
    let error = &answer.json()["error"];
    assert_eq!((answer.status, error["param"].as_str()), (400, Some("model")), "{error}");
}

#[tokio::test]
async fn two_different_models_in_one_form_are_refused() {
    let (_a, _b, router) = two(&[]).await;
    let name = "Content-Disposition: form-data; name=\"model\"";
    let answer = transcribe(&router, &form(&[(name, "a"), (name, "b")])).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (400, Some("invalid_form"))
    );
}

#[tokio::test]
async fn an_alias_works_in_a_form_as_in_json() {
    let worker = Worker::serving("real", echo).await;
    let router = Router::start(&[]).await;
    let spec = serde_json::json!({ "url": worker.url(), "aliases": { "nick": "real" } });
    assert_eq!(router.post("/workers", spec.to_string()).await.status, 202);
    router.knows_ready(1).await;
    let name = "Content-Disposition: form-data; name=model";
    let answer = transcribe(&router, &form(&[(FILE, "nick"), (name, "nick")])).await;
    assert_eq!(answer.text(), String::from_utf8(form(&[(FILE, "nick"), (name, "real")])).unwrap());
    let answer = router.post("/v1/completions", r#"{"model":"nick","prompt":"nick"}"#).await;
    assert_eq!(answer.text(), r#"{"model":"real","prompt":"nick"}"#);
}

#[tokio::test]
async fn a_request_that_names_no_model_is_refused_when_several_are_served() {
    let (a, b, router) = two(&[]).await;
    let form = form(&[(FILE, "RIFF")]);
    let requests: [Asked<'_>; 9] = [
        ("POST", "/v1/chat/completions", &[JSON], b"{\"messages\":[]}"),
        ("POST", "/v1/completions", &[JSON], b"{\"model\":null,\"prompt\":\"x\"}"),
        ("POST", "/v1/embeddings", &[JSON], b"{\"model\":\"\",\"input\":\"x\"}"),
        ("POST", "/v1/messages", &[JSON], b"{}"),
        ("POST", "/generate", &[JSON], b"{\"text\":\"x\"}"),
        ("POST", "/v1/tokenize", &[], b"{}"),
        ("POST", "/v1/audio/transcriptions", &[FORM], &form),
        ("POST", "/v1/audio/transcriptions", &[FORM], b"--X\r\nbroken"),
        ("GET", "/get_model_info", &[], b""),
    ];
    for (method, path, headers, body) in requests {
        for _ in 0..3 {
            let answer = router.send(method, path, headers, body).await;
            let error = &answer.json()["error"];
            let error_of = (answer.status, error["code"].as_str(), error["param"].as_str());
            assert_eq!(error_of, (400, Some("model_missing"), Some("model")), "{path}: {error}");
        }
    }
    assert_eq!((a.seen().len(), b.seen().len()), (0, 0));
    assert_eq!(router.get("/get_model_info?model=b").await.status, 200);
    assert_eq!((a.seen().len(), b.seen().len()), (0, 1));
    assert_eq!(router.get("/health_generate").await.status, 200, "any worker can answer that");
}

#[tokio::test]
async fn a_request_that_names_no_model_is_for_the_only_one() {
    let worker = Worker::start(echo).await;
    let router = Router::before(&[worker.url()], &[]).await;
    for body in ["{\"prompt\":\"x\"}", "{\"model\":\"\",\"prompt\":\"x\"}"] {
        let answer = router.post("/v1/completions", body).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, body), "bytes stay bytes");
    }
    assert_eq!(transcribe(&router, &form(&[(FILE, "RIFF")])).await.status, 200);
}

/// Encodes `text` with the content coding `name`.
async fn encoded(name: &str, text: &[u8]) -> Vec<u8> {
    macro_rules! with {
        ($encoder:expr) => {{
            let mut encoder = $encoder;
            encoder.write_all(text).await.unwrap();
            encoder.shutdown().await.unwrap();
            encoder.into_inner()
        }};
    }
    match name {
        "gzip" => with!(GzipEncoder::new(Vec::new())),
        "zstd" => with!(ZstdEncoder::new(Vec::new())),
        "br" => with!(BrotliEncoder::new(Vec::new())),
        "deflate" => with!(ZlibEncoder::new(Vec::new())),
        _ => text.to_vec(),
    }
}

#[tokio::test]
async fn a_compressed_body_is_refused_with_its_coding_unless_decoding_is_enabled() {
    let body = br#"{"model":"b","prompt":"x"}"#;
    let (_a, b, router) = two(&[]).await;
    for name in ["gzip", "zstd", "br", "deflate", "compress"] {
        let headers = [JSON, ("content-encoding", name)];
        let answer =
            router.send("POST", "/v1/completions", &headers, &encoded(name, body).await).await;
        assert_eq!(answer.status, 415, "{name}");
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(name), "{message}");
        assert_eq!(answer.header("accept-encoding"), Some("identity"));
    }
    let headers = [JSON, ("content-encoding", "identity")];
    assert_eq!(router.send("POST", "/v1/completions", &headers, body).await.status, 200);
    assert_eq!(b.seen().len(), 1);
}

#[tokio::test]
async fn a_compressed_body_is_decoded_if_enabled() {
    let body = br#"{"model":"b","prompt":"x"}"#;
    let (a, b, router) = two(&["--decompress-requests"]).await;
    for name in ["gzip", "zstd", "br", "deflate", "x-gzip, identity"] {
        let headers = [JSON, ("content-encoding", name)];
        let sent = encoded(if name.starts_with('x') { "gzip" } else { name }, body).await;
        let answer = router.send("POST", "/v1/completions", &headers, &sent).await;
        assert_eq!((answer.status, &answer.body[..]), (200, &body[..]), "{name}");
    }
    let twice = encoded("br", &encoded("gzip", body).await).await;
    let headers = [JSON, ("content-encoding", "gzip, br")];
    assert_eq!(router.send("POST", "/v1/completions", &headers, &twice).await.status, 200);
    assert!(b.seen().iter().all(|seen| seen.all("content-encoding").is_empty()));
    let headers = [JSON, ("content-encoding", "gzip")];
    let answer = router.send("POST", "/v1/completions", &headers, body).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (400, Some("invalid_encoding"))
    );
    let headers = [JSON, ("content-encoding", "compress")];
    let answer = router.send("POST", "/v1/completions", &headers, body).await;
    assert_eq!(
        (answer.status, answer.header("accept-encoding")),
        (415, Some("gzip, zstd, br, deflate"))
    );
    assert_eq!(a.seen().len(), 0);
}

#[tokio::test]
async fn a_body_that_expands_beyond_the_limit_is_refused_early() {
    let (_a, _b, router) = two(&["--decompress-requests", "--max-payload-size", "100000"]).await;
    let before = router.memory();
    let bomb = vec![b' '; 64 << 20];
    for name in ["gzip", "zstd", "br", "deflate"] {
        let headers = [JSON, ("content-encoding", name)];
        let sent = encoded(name, &bomb).await;
        assert!(sent.len() < 100_000, "{name}: {} bytes", sent.len());
        let answer = router.send("POST", "/v1/completions", &headers, &sent).await;
        assert_eq!(answer.status, 413, "{name}");
    }
    let grown = router.memory().saturating_sub(before);
    assert!(grown < 32 << 20, "the router grew by {grown} bytes");
}
