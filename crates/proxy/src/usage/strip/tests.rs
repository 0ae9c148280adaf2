//! Tests that the client sees the stream of an engine that was not asked for usage.

use proptest::prelude::*;

use super::*;

fn strip(pieces: &[&[u8]]) -> Vec<u8> {
    let mut strip = Strip::default();
    let mut seen = Vec::new();
    for piece in pieces {
        seen.extend_from_slice(&strip.feed(Bytes::copy_from_slice(piece)));
    }
    seen.extend_from_slice(&strip.rest());
    seen
}

#[track_caller]
fn check(sent: &str, wanted: &str) {
    let seen = strip(&[sent.as_bytes()]);
    assert_eq!(String::from_utf8(seen).unwrap(), wanted, "of {sent:?}");
}

const USAGE: &str = r#"{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":1}}"#;

#[test]
fn the_chunk_with_the_usage_disappears() {
    for chunk in [
        format!("data: {{\"id\":\"1\",\"choices\":[],\"usage\":{USAGE}}}\n\n"),
        format!("data:{{\"usage\": {USAGE}, \"choices\" : [ ] }}\n\n"),
        format!(": c\nid: 7\ndata: {{\"choices\":[],\"usage\":{USAGE}}}\r\n\r\n"),
    ] {
        check(
            &format!("data: {{\"a\":1}}\n\n{chunk}data: [DONE]\n\n"),
            "data: {\"a\":1}\n\ndata: [DONE]\n\n",
        );
    }
}

#[test]
fn the_field_of_other_chunks_disappears() {
    for value in ["null", USAGE] {
        for (sent, wanted) in [
            (format!(r#"{{"choices":[{{"x":1}}],"usage":{value}}}"#), r#"{"choices":[{"x":1}]}"#),
            (
                format!(r#"{{"choices":[{{"x":1}}], "usage" : {value} , "z":2}}"#),
                r#"{"choices":[{"x":1}] , "z":2}"#,
            ),
            (format!(r#"{{"usage":{value}, "choices":[{{}}]}}"#), r#"{"choices":[{}]}"#),
            (format!(r#"{{ "usage":{value} }}"#), "{  }"),
            (
                format!(r#"{{"choices":[{{"usage":3,"text":"\"usage\":{{}}"}}],"usage":{value}}}"#),
                r#"{"choices":[{"usage":3,"text":"\"usage\":{}"}]}"#,
            ),
        ] {
            check(&format!("data: {sent}\n\n"), &format!("data: {wanted}\n\n"));
        }
    }
    check("data: {\"choices\":[],\"usage\":null}\n\n", "data: {\"choices\":[]}\n\n");
}

#[test]
fn everything_else_passes_unchanged() {
    for sent in [
        "data: {\"choices\":[{\"delta\":{\"content\":\"usage\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":null\"}}]}\n\n",
        "data: {\"choices\":[{\"usage\":null}]}\n\n",
        "data: {\"usage\":null\n\n",
        "data: {\"usage\":null,\"usage\":null}\n\n",
        "data: {\"usage\":\ndata: null}\n\n",
        "event: \"usage\"\n\n",
        "\n\n\n: comment \"usage\"\n\ndata: [DONE]\n\n",
        "data: {\"choices\":[],\"usage\":{}}",
        "\"usage\"",
        "",
    ] {
        check(sent, sent);
    }
}

#[test]
fn a_piece_without_usage_is_not_copied() {
    let mut strip = Strip::default();
    let piece = Bytes::from_static(b"data: {\"a\":1}\n\ndata: {\"b\"");
    let seen = strip.feed(piece.clone());
    assert_eq!((seen.as_ptr(), &*seen), (piece.as_ptr(), &b"data: {\"a\":1}\n\n"[..]));
    assert!(!strip.is_empty());
}

#[test]
fn an_event_is_kept_up_to_a_bound() {
    let large = format!(
        "data: {{\"choices\":[{{\"text\":\"{}\"}}],\"usage\":null}}\n\n",
        "x".repeat(2 * MAX_EVENT)
    );
    let after = format!("data: {{\"choices\":[],\"usage\":{USAGE}}}\n\n");
    let sent = format!("{large}{after}data: [DONE]\r\n\r\n{after}");
    for size in [1000, 4096, MAX_EVENT + 7, sent.len()] {
        let mut strip = Strip::default();
        let mut seen = Vec::new();
        for piece in sent.as_bytes().chunks(size) {
            seen.extend_from_slice(&strip.feed(Bytes::copy_from_slice(piece)));
            assert!(strip.kept.len() <= MAX_EVENT, "it keeps {} bytes", strip.kept.len());
        }
        assert!(strip.is_empty());
        let unchanged = size < sent.len();
        let wanted = if unchanged { large.clone() } else { large.replace(",\"usage\":null", "") };
        assert_eq!(
            String::from_utf8(seen).unwrap(),
            format!("{wanted}data: [DONE]\r\n\r\n"),
            "pieces of {size}"
        );
    }
}

proptest! {
    #[test]
    fn pieces_do_not_matter(
        kinds in proptest::collection::vec(0..6_usize, 0..12),
        cuts in proptest::collection::vec(0..2000_usize, 0..12),
    ) {
        let event = |kind: &usize| match kind {
            0 => ("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n".to_owned(), "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n"),
            1 => (format!("data: {{\"choices\":[],\"usage\":{USAGE}}}\n\n"), ""),
            2 => (format!("data: {{\"choices\":[{{}}],\"usage\":{USAGE}}}\r\n\r\n"), "data: {\"choices\":[{}]}\r\n\r\n"),
            3 => (": comment\n\n".to_owned(), ": comment\n\n"),
            4 => ("data: {\"choices\":[{\"text\":\"usage\"}]}\n\n".to_owned(), "data: {\"choices\":[{\"text\":\"usage\"}]}\n\n"),
            _ => ("data: [DONE]\n\n".to_owned(), "data: [DONE]\n\n"),
        };
        let (sent, wanted): (String, String) = kinds.iter().map(event).unzip();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(sent.len())).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts.into_iter().chain([sent.len()]) {
            pieces.push(&sent.as_bytes()[from..cut]);
            from = cut;
        }
        prop_assert_eq!(String::from_utf8(strip(&pieces)).unwrap(), wanted.as_str());
        let bytes: Vec<&[u8]> = sent.as_bytes().chunks(1).collect();
        prop_assert_eq!(String::from_utf8(strip(&bytes)).unwrap(), wanted.as_str());
    }

    #[test]
    fn no_bytes_make_it_panic_or_lose_any(text in "[{}\\[\\]\",:a\\\\ \r\nd]{0,60}", at in 0..60_usize) {
        // Without the marker all bytes pass.
        let at = at.min(text.len());
        let (one, two) = text.as_bytes().split_at(at);
        prop_assert_eq!(strip(&[one, two]), text.as_bytes());
        let marked = format!("data: {{\"usage\"{text}");
        let _any = strip(&[marked.as_bytes()]);
    }
}
