//! Tests that a response after which the router closes the connection says so.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::router::Router;
use crate::support::worker::Worker;

const PATIENCE: Duration = Duration::from_secs(10);

/// Reads one response with a `content-length`. `None`: the connection was closed first.
async fn response(stream: &mut TcpStream) -> Option<String> {
    let mut answer = Vec::new();
    let reading = async {
        let mut piece = [0u8; 4096];
        loop {
            let text = String::from_utf8_lossy(&answer).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if body.len() >= length.expect("a length").parse::<usize>().unwrap() {
                    return Some(text);
                }
            }
            match stream.read(&mut piece).await {
                Ok(read @ 1..) => answer.extend_from_slice(&piece[..read]),
                Ok(0) | Err(_) => return None,
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("neither a response nor a close")
}

/// Sends a request twice on one connection; whether the first response announced the close. If it did not, the second request
/// must be answered as well.
async fn announces_close(router: &Router, request: &str, status: &str) -> bool {
    let mut stream = TcpStream::connect(router.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let first = response(&mut stream).await.expect("a response");
    assert!(first.starts_with(&format!("HTTP/1.1 {status} ")), "{first}");
    if first.contains("\r\nconnection: close\r\n") {
        assert_eq!(response(&mut stream).await, None, "{request}: open after announcing the close");
        return true;
    }
    stream.write_all(request.as_bytes()).await.unwrap();
    let second = response(&mut stream).await;
    let second = second.unwrap_or_else(|| panic!("{request}: closed without announcing it"));
    assert!(second.starts_with(&format!("HTTP/1.1 {status} ")), "{second}");
    false
}

#[tokio::test]
async fn a_connection_is_kept_or_its_close_is_announced() {
    let worker = Worker::plain().await;
    let flags = ["--api-key", "right", "--max-payload-size", "2048"];
    let router = Router::before(&[worker.url()], &flags).await;
    let request = |method: &str, path: &str, key: &str, rest: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nauthorization: Bearer {key}\r\n{rest}"
        )
    };
    let small = "content-length: 2\r\n\r\n{}";
    let chunked = "transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    let none = "\r\n";
    let too_large = "content-length: 5000\r\n\r\n{";
    let (chat, models) = ("/v1/chat/completions", "/v1/models");
    for (method, path, key, rest, status, is_closed) in [
        ("POST", chat, "wrong", small, "401", true),
        ("POST", chat, "wrong", chunked, "401", true),
        ("GET", models, "wrong", none, "401", false),
        ("POST", "/workers", "wrong", small, "401", true),
        ("GET", "/workers", "wrong", none, "401", false),
        ("POST", "/nothing", "right", small, "404", true),
        ("GET", "/nothing", "right", none, "404", false),
        ("PUT", models, "right", small, "405", true),
        ("DELETE", models, "right", none, "405", false),
        ("POST", chat, "right", too_large, "413", true),
        ("POST", chat, "right", small, "200", false),
        ("POST", chat, "right", chunked, "200", false),
        ("GET", models, "right", none, "200", false),
        ("GET", "/liveness", "wrong", small, "200", false),
    ] {
        let request = request(method, path, key, rest);
        assert_eq!(announces_close(&router, &request, status).await, is_closed, "{request}");
    }
}
