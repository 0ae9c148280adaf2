//! Tests of the scanner: where counts are found, where they are not, and that neither pieces nor hostile text matter.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn scan(text: &[u8], place: Place) -> (Option<Report>, u32) {
    let mut scanner = Scanner::new(place);
    scanner.feed(text);
    scanner.found()
}

/// Input, cached input, output and reasoning; `None` if there is no report.
fn counts(text: &str) -> Option<(u64, u64, u64, u64)> {
    let tokens = scan(text.as_bytes(), Place::Usage).0?.tokens(0);
    Some((tokens.input, tokens.cached_input, tokens.output, tokens.reasoning))
}

#[test]
fn the_counts_of_each_api_are_found() {
    for (text, wanted) in [
        (
            r#"{"id":"x","choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":9,"completion_tokens":3,
               "total_tokens":12,"prompt_tokens_details":{"cached_tokens":4},
               "completion_tokens_details":{"reasoning_tokens":2,"audio_tokens":0}}}"#,
            (9, 4, 3, 2),
        ),
        (
            r#"{"usage" : { "prompt_tokens" : 9 , "completion_tokens" : 3, "prompt_tokens_details" : null } }"#,
            (9, 0, 3, 0),
        ),
        (
            r#"{"type":"response.completed","response":{"output":[{"usage":{"input_tokens":1}}],"usage":{"input_tokens":9,
               "input_tokens_details":{"cached_tokens":4},"output_tokens":3,
               "output_tokens_details":{"reasoning_tokens":1},"total_tokens":12}},"sequence_number":7}"#,
            (9, 4, 3, 1),
        ),
        (
            r#"{"type":"message","content":[],"usage":{"input_tokens":5,"cache_creation_input_tokens":1,
               "cache_read_input_tokens":4,"output_tokens":3}}"#,
            (10, 4, 3, 0),
        ),
        (
            r#"{"data":[{"embedding":[0.1,-1e5]}],"usage":{"prompt_tokens":7,"total_tokens":7}}"#,
            (7, 0, 0, 0),
        ),
        (r#"{"usage":{"total_tokens":7},"results":[]}"#, (7, 0, 0, 0)),
        (
            r#"{"usage":{"prompt_tokens":1,"reasoning_tokens":2,"completion_tokens":5}}"#,
            (1, 0, 5, 2),
        ),
    ] {
        assert_eq!(counts(text), Some(wanted), "{text}");
    }
}

#[test]
fn the_native_apis_counts_are_found_where_they_are_expected() {
    let one = r#"{"text":"usage","meta_info":{"id":"1","finish_reason":{"type":"stop","prompt_tokens":99},
                  "output_token_logprobs":[[-0.5,1,"}"]],"prompt_tokens":9,"cached_tokens":4,"completion_tokens":3}}"#;
    let both = format!("[{one}, {one}]");
    let seen = |text: &str| {
        let tokens = scan(text.as_bytes(), Place::MetaInfo).0.unwrap().tokens(0);
        (tokens.input, tokens.cached_input, tokens.output)
    };
    assert_eq!(seen(one), (9, 4, 3));
    assert_eq!(seen(&both), (18, 8, 6), "a batch is the sum of its answers");
    assert_eq!(counts(one), None, "not where `usage` is expected");
}

#[test]
fn what_a_model_or_a_client_wrote_is_not_a_report() {
    for text in [
        r#"{"choices":[{"message":{"content":"\"usage\":{\"prompt_tokens\":1}"}}]}"#,
        r#"{"content":[{"type":"tool_use","input":{"usage":{"input_tokens":1}}}]}"#,
        r#"{"response":{"metadata":{"usage":{"input_tokens":1}},"tools":[{"usage":{"input_tokens":1}}]}}"#,
        r#"{"message":"usage","error":{"usage":{"prompt_tokens":1}}}"#,
        r#"{"usage":null}"#,
        r#"{"usage":{"type":"duration","seconds":5}}"#,
        r#"{"us\u0061ge":{"prompt_tokens":1}}"#,
        r#"{"a_key_that_is_longer_than_any_known_usage":{"prompt_tokens":1}}"#,
        r#""usage""#,
        "",
    ] {
        assert_eq!(scan(text.as_bytes(), Place::Usage), (None, 0), "{text}");
    }
}

#[test]
fn numbers_that_are_no_counts_spoil_their_object_only() {
    for bad in [
        "-1",
        "1.5",
        "1e3",
        "9223372036854775808",
        "4294967297",
        "\"7\"",
        "[1]",
        "{}",
        "true",
        "99999999999999999999999999999999999999",
    ] {
        let text = format!(r#"{{"usage":{{"prompt_tokens":3,"completion_tokens":{bad}}}}}"#);
        assert_eq!(scan(text.as_bytes(), Place::Usage), (None, 1), "{text}");
        let text = format!(
            r#"{{"usage":{{"prompt_tokens":{bad}}},"response":{{"usage":{{"input_tokens":5}}}}}}"#
        );
        let (report, unreadable) = scan(text.as_bytes(), Place::Usage);
        assert_eq!((report.unwrap().tokens(0).input, unreadable), (5, 1), "{text}");
    }
    for bad in ["7", "\"x\"", "[{\"prompt_tokens\":1}]", "true"] {
        let text = format!(r#"{{"usage":{bad},"id":1}}"#);
        assert_eq!(scan(text.as_bytes(), Place::Usage), (None, 1), "{text}");
    }
    assert_eq!(counts(r#"{"usage":{"prompt_tokens":4294967296}}"#), Some((4_294_967_296, 0, 0, 0)));
}

#[test]
fn a_huge_or_deep_text_costs_no_memory() {
    let mut scanner = Scanner::new(Place::Usage);
    scanner.feed(b"{\"x\":");
    for _ in 0..1000 {
        scanner.feed(&b"[{\"a\":".repeat(1000));
    }
    assert!(!scanner.stack.spilled() && !scanner.key.spilled());
    let mut scanner = Scanner::new(Place::Usage);
    scanner.feed(b"{\"");
    for _ in 0..1000 {
        scanner.feed(&b"k".repeat(1000));
    }
    scanner.feed(b"\":1,\"usage\":{\"prompt_tokens\":2}}");
    assert!(!scanner.key.spilled());
    assert_eq!(scanner.found().0.unwrap().tokens(0).input, 2);
}

/// JSON with counts in the usual places, and other values around them.
fn answers() -> impl Strategy<Value = serde_json::Value> {
    let number = prop_oneof![0..5000_i64, Just(-1), Just(1_i64 << 40)];
    (number.clone(), number.clone(), number, any::<String>(), any::<f64>()).prop_map(
        |(input, output, cached, text, float)| {
            json!({
                "choices": [{"delta": {"content": text, "usage": {"prompt_tokens": 1}}}, float, null, true],
                "id": text,
                text.clone(): {"a": [text, {"b": "]}"}]},
                "usage": {"prompt_tokens": input, "completion_tokens": output, "x": [1, {"y": "}"}],
                          "prompt_tokens_details": {"cached_tokens": cached}},
                "response": {"usage": {"input_tokens": input, "output_tokens": 7}, "z": text},
            })
        },
    )
}

proptest! {
    #[test]
    fn pieces_do_not_matter(answer in answers(), cuts in proptest::collection::vec(0..600_usize, 0..20)) {
        let text = answer.to_string();
        let whole = scan(text.as_bytes(), Place::Usage);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.sort_unstable();
        let mut scanner = Scanner::new(Place::Usage);
        let mut from = 0;
        for cut in cuts.into_iter().chain([text.len()]) {
            scanner.feed(&text.as_bytes()[from..cut]);
            from = cut;
        }
        prop_assert_eq!(scanner.found(), whole);
        let mut scanner = Scanner::new(Place::Usage);
        text.as_bytes().iter().for_each(|byte| scanner.feed(&[*byte]));
        prop_assert_eq!(scanner.found(), whole);
    }

    #[test]
    fn the_counts_are_those_of_a_parser(answer in answers()) {
        let (report, unreadable) = scan(answer.to_string().as_bytes(), Place::Usage);
        let is_count = |pointer: &str| answer.pointer(pointer).unwrap().as_u64().is_some_and(|n| n <= MAX_TOKENS);
        let first = ["/usage/prompt_tokens", "/usage/completion_tokens", "/usage/prompt_tokens_details/cached_tokens"];
        let bad = u32::from(!first.iter().all(|pointer| is_count(pointer)));
        let second = u32::from(!is_count("/response/usage/input_tokens"));
        prop_assert_eq!(unreadable, bad + second);
        prop_assert_eq!(report.is_none(), bad + second == 2);
        if bad == 0 {
            prop_assert_eq!(Some(report.unwrap().tokens(0).input), answer["usage"]["prompt_tokens"].as_u64());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _any = scan(&text, Place::Usage);
    }

    #[test]
    fn no_json_like_text_makes_it_panic(text in "[{}\\[\\]\",:a\\\\ 0.e-]{0,40}") {
        let head = r#"{"usage":{"prompt_tokens":"#;
        for text in [text.clone(), format!("{head}{text}"), format!("[{text}")] {
            let _any = scan(text.as_bytes(), Place::MetaInfo);
            let _any = scan(text.as_bytes(), Place::Usage);
        }
    }
}
