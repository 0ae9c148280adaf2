//! Tests of the format of errors, and of what they must never show.

use super::*;

#[test]
fn what_could_not_be_read_is_answered_like_everything_else() {
    for (status, expected) in [(400, 400), (408, 408), (414, 414), (431, 431), (417, 400)] {
        let bytes = unread(status, &new_id());
        let text = std::str::from_utf8(&bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {expected} ")), "{head}");
        assert!(head.contains("connection: close") && head.contains("x-request-id: "), "{head}");
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        let document: serde_json::Value = serde_json::from_str(body).unwrap();
        let code = document["error"]["code"].as_str().unwrap();
        assert!(head.contains(&format!("x-smg-error-code: {code}")), "{head}");
    }
}

#[test]
fn the_terminal_events_are_events() {
    for (event, anthropic) in [(BROKEN_OPENAI, false), (BROKEN_ANTHROPIC, true)] {
        assert!(event.ends_with("\n\n"));
        let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        let document: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(document["error"]["code"], "upstream_stream_broken");
        assert_eq!(document["type"] == "error", anthropic);
    }
}

#[test]
fn an_error_tells_nothing_of_the_inside() {
    let refused =
        std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "http://10.0.0.9:8000");
    let error = DispatchError::Failed { attempts: 2, source: SendError::Connect(refused) };
    let shown = String::from_utf8(ApiError::from(error).to_json(false).to_vec()).unwrap();
    assert!(!shown.contains("10.0.0.9"), "{shown}");
}
