//! Reads from a worker's answer how many tokens its prompt had, and how many of them were cached.
//!
//! Engines report both in `usage`. The answer is inspected piece by piece as it passes. A report that is split between two pieces is
//! missed; that costs one sample.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use smg_routing::policies::PromptTokens;

/// The counts in one piece of an answer: OpenAI's `prompt_tokens` or `input_tokens` with `cached_tokens` in the details, or
/// Anthropic's `input_tokens`, which excludes what was read from the cache or written to it.
pub(super) fn prompt_tokens(piece: &[u8]) -> Option<PromptTokens> {
    // Most pieces have no counts, so they are searched only once.
    static ANY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("_tokens\"").into_owned());
    ANY.find(piece)?;
    let count = |key: &str| number_after(piece, key);
    if let Some(read) = count("\"cache_read_input_tokens\"") {
        let written = count("\"cache_creation_input_tokens\"").unwrap_or(0);
        let rest = count("\"input_tokens\"")?;
        let all = rest.checked_add(read)?.checked_add(written)?;
        return Some(PromptTokens { all, cached: Some(read) }).filter(|tokens| tokens.all > 0);
    }
    let all = count("\"prompt_tokens\"").or_else(|| count("\"input_tokens\""))?;
    let cached = count("\"cached_tokens\"");
    let is_sound = all > 0 && cached.is_none_or(|cached| cached <= all);
    is_sound.then_some(PromptTokens { all, cached })
}

/// The id of a response, from the first piece of the answer: the first value of a member `id`. In a stream that is the id in the
/// event `response.created`.
pub(super) fn response_id(piece: &[u8]) -> Option<&str> {
    const LONGEST: usize = 256;
    let at = memchr::memmem::find(piece, b"\"id\"")?;
    let rest = piece[at + 4..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    let id = rest.strip_prefix(b"\"")?;
    let end = memchr::memchr(b'"', &id[..id.len().min(LONGEST)]).filter(|end| *end > 0)?;
    std::str::from_utf8(&id[..end]).ok()
}

/// The number after a key and its colon.
fn number_after(piece: &[u8], key: &str) -> Option<u64> {
    let at = memchr::memmem::find(piece, key.as_bytes())?;
    let rest = piece[at + key.len()..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(piece: &str) -> Option<(u64, Option<u64>)> {
        prompt_tokens(piece.as_bytes()).map(|tokens| (tokens.all, tokens.cached))
    }

    #[test]
    fn an_answer_says_what_was_cached() {
        let usage = r#"{"usage":{"prompt_tokens":100,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":64}}}"#;
        assert_eq!(says(usage), Some((100, Some(64))));
        assert_eq!(says(r#"{"prompt_tokens" : 7, "cached_tokens" : 0 }"#), Some((7, Some(0))));
        let responses =
            r#"{"input_tokens":9,"input_tokens_details":{"cached_tokens":4},"output_tokens":1}"#;
        assert_eq!(says(responses), Some((9, Some(4))));
        let messages =
            r#"{"input_tokens":9,"cache_creation_input_tokens":20,"cache_read_input_tokens":71}"#;
        assert_eq!(says(messages), Some((100, Some(71))));
        assert_eq!(says(r#"{"usage":{"prompt_tokens":100}}"#), Some((100, None)));
    }

    #[test]
    fn the_id_of_a_response_is_read_from_its_first_piece() {
        let id = |piece: &'static str| response_id(piece.as_bytes());
        assert_eq!(id(r#"{"id":"resp_7","object":"response"}"#), Some("resp_7"));
        let created =
            r#"data: {"type":"response.created","response":{"object":"response","id" : "resp_8"}}"#;
        assert_eq!(id(created), Some("resp_8"));
        assert_eq!([id(r#"{"id":7}"#), id(r#"{"id":""}"#), id(r#"{"id":"resp"#)], [None; 3]);
    }

    #[test]
    fn what_says_nothing_or_nonsense_is_no_lesson() {
        for piece in [
            "",
            r#"{"completion_tokens":5}"#,
            r#"{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":9}}"#,
            r#"{"prompt_tokens":0,"cached_tokens":0}"#,
            r#"{"prompt_tokens":99999999999999999999999,"cached_tokens":1}"#,
            r#"{"input_tokens":18446744073709551615,"cache_read_input_tokens":1}"#,
        ] {
            assert_eq!(says(piece), None, "{piece}");
        }
    }
}
