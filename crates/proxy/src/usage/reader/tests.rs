//! Tests of whole answers: each API, streams cut anywhere, and estimates.

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;

const CHAT: &str = "/v1/chat/completions";

fn read(path: &str, encoding: Encoding, text: &str, is_complete: bool) -> Settlement {
    let mut reader = Reader::new(path, encoding);
    reader.feed(text.as_bytes());
    reader.settlement(is_complete, 400)
}

/// Input, cached input and output of a complete stream, and how they are known.
fn stream(path: &str, text: &str) -> ((u64, u64, u64), Origin) {
    let Settlement { tokens, origin, .. } = read(path, Encoding::Events, text, true);
    ((tokens.input, tokens.cached_input, tokens.output), origin)
}

fn chat_chunk(text: &str, usage: &str) -> String {
    format!(
        "data: {{\"id\":\"1\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]{usage}}}\n\n"
    )
}

const ROLE: &str = "data: {\"id\":\"1\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const FINISH: &str =
    "data: {\"id\":\"1\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

#[test]
fn a_chat_reports_in_its_last_chunk_on_a_chunk_with_choices_or_on_several() {
    let usage = |output| {
        format!(
            ",\"usage\":{{\"prompt_tokens\":9,\"completion_tokens\":{output},\"prompt_tokens_details\":{{\"cached_tokens\":4}}}}"
        )
    };
    let own_chunk = format!("data: {{\"choices\":[]{}}}\n\n", usage(3));
    let nulls = chat_chunk("a", ",\"usage\":null");
    for text in [
        format!("{ROLE}{nulls}{nulls}{nulls}{FINISH}{own_chunk}{DONE}"),
        format!("{ROLE}{nulls}{}{DONE}", chat_chunk("b", &usage(3))),
        format!(
            "{}{}{}{own_chunk}{DONE}",
            chat_chunk("a", &usage(1)),
            chat_chunk("b", &usage(2)),
            chat_chunk("c", &usage(3))
        ),
        format!("{ROLE}{nulls}{own_chunk}").replace('\n', "\r\n"),
    ] {
        assert_eq!(stream(CHAT, &text), ((9, 4, 3), Origin::Reported), "{text}");
    }
    // Cut after the second of several reports.
    let cut = format!("{}{}data: {{\"cho", chat_chunk("a", &usage(1)), chat_chunk("b", &usage(2)));
    let Settlement { tokens, origin, .. } = read(CHAT, Encoding::Events, &cut, false);
    assert_eq!((tokens.input, tokens.output, origin), (9, 2, Origin::Reported));
}

#[test]
fn the_responses_api_reports_in_its_last_event() {
    for kind in ["completed", "incomplete", "failed"] {
        let text = format!(
            "event: response.created\ndata: {{\"type\":\"response.created\",\"response\":{{\"usage\":null}}}}\n\n\
             event: response.output_text.delta\ndata: {{\"delta\":\"a\"}}\n\n\
             event: response.{kind}\ndata: {{\"response\":{{\"output\":[],\"usage\":{{\"input_tokens\":9,\"input_tokens_details\":\
             {{\"cached_tokens\":4}},\"output_tokens\":3,\"total_tokens\":12}}}}}}\n\n"
        );
        assert_eq!(stream("/v1/responses", &text), ((9, 4, 3), Origin::Reported));
    }
}

const START: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"content\":[],\"usage\":{\"input_tokens\":4,\
    \"cache_creation_input_tokens\":1,\"cache_read_input_tokens\":4,\"output_tokens\":1}}}\n\n";
const BLOCK: &str = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"a\"}}\n\n";

#[test]
fn anthropics_two_reports_are_one() {
    for delta in [
        "{\"output_tokens\":3}",
        "{\"input_tokens\":4,\"cache_creation_input_tokens\":1,\"cache_read_input_tokens\":4,\"output_tokens\":3}",
    ] {
        let text = format!(
            "{START}event: ping\ndata: {{\"type\":\"ping\"}}\n\n{BLOCK}{BLOCK}\
             event: message_delta\ndata: {{\"type\":\"message_delta\",\"usage\":{delta}}}\n\n"
        );
        assert_eq!(stream("/v1/messages", &text), ((9, 4, 3), Origin::Reported));
    }
    let cut = format!("{START}{BLOCK}{BLOCK}{BLOCK}{BLOCK}event: content_bl");
    assert_eq!(stream("/v1/messages", &cut), ((9, 4, 4), Origin::OutputEstimated));
    assert_eq!(stream("/v1/messages", START), ((9, 4, 1), Origin::OutputEstimated));
}

#[test]
fn the_native_api_reports_on_every_event() {
    let event = |n: u32| {
        format!(
            "data: {{\"text\":\"a\",\"meta_info\":{{\"prompt_tokens\":9,\"cached_tokens\":4,\"completion_tokens\":{n}}}}}\n\n"
        )
    };
    let text = format!("{}{}{}{DONE}", event(1), event(2), event(3));
    assert_eq!(stream("/generate", &text), ((9, 4, 3), Origin::Reported));
}

#[test]
fn a_json_answer_reports_once() {
    let json = |path, text, is_complete| {
        let Settlement { tokens, origin, unreadable } =
            read(path, Encoding::Json, text, is_complete);
        (tokens.input, tokens.output, origin, unreadable)
    };
    let usage = r#"{"choices":[{}],"usage":{"prompt_tokens":9,"completion_tokens":3}}"#;
    assert_eq!(json(CHAT, usage, true), (9, 3, Origin::Reported, 0));
    let ranks = r#"{"usage":{"total_tokens":9},"results":[]}"#;
    assert_eq!(json("/v1/rerank", ranks, true), (9, 0, Origin::Reported, 0));
    assert_eq!(json("/v1/rerank", &ranks[..30], false), (9, 0, Origin::Reported, 0));
    assert_eq!(json("/v1/tokenize", r#"{"tokens":[1]}"#, true), (0, 0, Origin::Unreported, 0));
    let bad = r#"{"choices":[{}],"usage":{"prompt_tokens":-9,"completion_tokens":3}}"#;
    assert_eq!(json(CHAT, bad, true), (0, 0, Origin::Unreported, 1));
    // The worker died, or the client left: the prompt and what has passed are estimated.
    assert_eq!(json(CHAT, &usage[..40], false), (100, 10, Origin::Estimated, 0));
    assert_eq!(json("/v1/embeddings", r#"{"data":[{"#, false), (100, 0, Origin::Estimated, 0));
    assert_eq!(json("/v1/tokenize", r#"{"tok"#, false), (0, 0, Origin::Unreported, 0));
}

#[test]
fn only_json_and_events_in_plain_text_are_read() {
    assert_eq!(Encoding::of(b"text/event-stream; charset=utf-8", true), Encoding::Events);
    assert_eq!(Encoding::of(b"Application/JSON", true), Encoding::Json);
    assert_eq!(Encoding::of(b"text/event-stream", false), Encoding::Opaque);
    assert_eq!(Encoding::of(b"audio/wav", true), Encoding::Opaque);
    assert_eq!(Encoding::of(b"", true), Encoding::Opaque);
    assert_eq!(read(CHAT, Encoding::Opaque, "\"usage\"", true).origin, Origin::Unreported);
}

#[test]
fn a_stream_without_usage_is_estimated_from_its_events() {
    let tokens: String = (0..50).map(|n| chat_chunk(&format!("w{n} "), "")).collect();
    for (text, output) in [
        (format!("{ROLE}{tokens}{FINISH}{DONE}"), 50),
        (format!("{ROLE}{tokens}"), 50),
        (format!("{ROLE}{tokens}data: {{\"half"), 50),
        (ROLE.to_owned(), 0),
        (String::new(), 0),
    ] {
        assert_eq!(stream(CHAT, &text), ((100, 0, output), Origin::Estimated), "{text}");
    }
    // An engine that has fallen behind sends many tokens in one event: four bytes are one.
    let first = chat_chunk("word", "");
    let rest = chat_chunk(&"word".repeat(20), "").repeat(10);
    let ((_, _, output), _) = stream(CHAT, &format!("{ROLE}{first}{rest}"));
    assert_eq!(output, 201);
    // The named events of other APIs count if they have content.
    let named = format!("{BLOCK}{BLOCK}event: content_block_stop\ndata: {{\"type\":\"x\"}}\n\n");
    assert_eq!(stream("/v1/messages", &named), ((100, 0, 2), Origin::Estimated));
}

#[test]
fn an_event_of_any_size_is_read_in_the_memory_of_a_small_one() {
    let mut reader = Reader::new("/v1/responses", Encoding::Events);
    reader.feed(b"event: response.completed\ndata: {\"response\":{\"output\":[\"");
    for _ in 0..64 {
        reader.feed(&[b'x'; 64 << 10]);
    }
    reader.feed(b"\"],\"usage\":{\"input_tokens\":9,\"output_tokens\":3}}}\n\n");
    let Settlement { tokens, origin, .. } = reader.settlement(true, 0);
    assert_eq!((tokens.input, tokens.output, origin), (9, 3, Origin::Reported));
}

#[test]
fn a_thousand_tokens_cut_anywhere_settle_at_what_had_passed() {
    const TOKENS: u64 = 1000;
    let mut rng = StdRng::seed_from_u64(13);
    for reports in [true, false] {
        let chunk = |n| {
            let usage = format!(",\"usage\":{{\"prompt_tokens\":9,\"completion_tokens\":{n}}}");
            chat_chunk(&format!("w{n} "), if reports { &usage } else { "" })
        };
        let chunks: Vec<String> = (1..=TOKENS).map(chunk).collect();
        let text = format!("{ROLE}{}", chunks.concat());
        for _ in 0..200 {
            let cut = rng.random_range(0..=text.len());
            let mut passed = 0;
            let mut length = ROLE.len();
            for chunk in &chunks {
                length += chunk.len();
                // Without the blank line the data is whole already.
                passed += u64::from(length - 1 <= cut);
            }
            let mut reader = Reader::new(CHAT, Encoding::Events);
            let mut sent = 0;
            while sent < cut {
                let piece = rng.random_range(1..=400.min(cut - sent).max(1));
                reader.feed(&text.as_bytes()[sent..sent + piece]);
                sent += piece;
            }
            let tokens = reader.settlement(false, 36).tokens;
            assert_eq!(
                (tokens.output, tokens.input),
                (passed, 9),
                "cut at {cut}, reports: {reports}"
            );
        }
    }
}

/// Events of all kinds, good and bad.
const EVENTS: [&str; 14] = [
    ROLE,
    FINISH,
    DONE,
    START,
    BLOCK,
    "data: {\"choices\":[{\"delta\":{\"content\":\"usage\"}}],\"usage\":null}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3}}\n\n",
    "data:{\"choices\":[{}],\"usage\" : {\"prompt_tokens\":11,\"completion_tokens\":1}}\r\n\r\n",
    "data: {\"usage\":{\"prompt_tokens\":-1}}\n\n",
    "data: {\"usage\":[1]}\n\n",
    "event: message_delta\ndata: {\"usage\":{\"output_tokens\":30}}\n\n",
    ": comment\n\nid: 7\nretry: 3\n\n",
    "event: a_name_that_is_longer_than_sixty_four_bytes_and_has_delta_only_at_its_end_delta\ndata: {}\n\n",
    "data\n\ndat: {\"usage\":{\"prompt_tokens\":99}}\ndata: {\"half",
];

proptest! {
    #[test]
    fn pieces_do_not_matter(
        kinds in proptest::collection::vec(0..EVENTS.len(), 0..15),
        cuts in proptest::collection::vec(0..3000_usize, 0..15),
        complete in any::<bool>(),
    ) {
        let text: String = kinds.iter().map(|kind| EVENTS[*kind]).collect();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.sort_unstable();
        for path in [CHAT, "/v1/messages", "/generate"] {
            let whole = read(path, Encoding::Events, &text, complete);
            let mut reader = Reader::new(path, Encoding::Events);
            let mut from = 0;
            for cut in cuts.iter().copied().chain([text.len()]) {
                reader.feed(&text.as_bytes()[from..cut]);
                from = cut;
            }
            prop_assert_eq!(reader.settlement(complete, 400), whole);
            let mut reader = Reader::new(path, Encoding::Events);
            text.as_bytes().chunks(1).for_each(|byte| reader.feed(byte));
            prop_assert_eq!(reader.settlement(complete, 400), whole);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(text in "(data:|event:|[{}\\[\\]\",:a\r\n -]|\"usage\"|9){0,60}") {
        for encoding in [Encoding::Events, Encoding::Json] {
            let _any = read(CHAT, encoding, &text, false);
        }
    }
}
