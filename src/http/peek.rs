//! Reads what routing needs from a request's JSON, and nothing else.
//!
//! The body is not copied: the scanner records the positions of the values of a few top-level keys and skips everything
//! else at the speed of `memchr`. It does not build a document, does not unescape the prompt, and does not recurse. It
//! checks the structure (balanced brackets, terminated strings, a single object, bounded nesting, UTF-8). Errors deeper
//! inside are left to the worker.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use memchr::memchr2;
use smallvec::SmallVec;

use super::peek_values::stored_id;

/// The deepest nesting of brackets. The requests of engines need only a few levels.
const MAX_DEPTH: usize = 128;

/// The values of a request that routing needs.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Peek<'a> {
    pub(super) model: Option<Cow<'a, str>>,
    /// The position of the model's value, quotes included.
    pub(super) model_at: Option<Range<usize>>,
    pub(super) stream: bool,
    /// The value of `prompt_cache_key`, else of `user`.
    pub(super) session: Option<Cow<'a, str>>,
    /// The id of the earlier response or of the conversation that the request goes on from: the worker holds it.
    pub(super) goes_on_from: Option<Cow<'a, str>>,
    /// The positions of the pieces of the prompt: tools, system, then messages, prompt, input or text.
    pub(super) prompt_at: SmallVec<[Range<usize>; 3]>,
    /// The most tokens that the answer may have, over all its choices.
    pub(super) most_output: Option<u64>,
    /// The position of the value of `stream_options`.
    pub(super) stream_options_at: Option<Range<usize>>,
}

impl Peek<'_> {
    /// The pieces of the prompt in `body`, which is the one that was read.
    pub(super) fn prompt<'b>(&self, body: &'b [u8]) -> SmallVec<[&'b [u8]; 3]> {
        self.prompt_at.iter().filter_map(|at| body.get(at.clone())).collect()
    }

    /// The size of the prompt, in bytes.
    pub(super) fn prompt_bytes(&self) -> usize {
        self.prompt_at.iter().map(ExactSizeIterator::len).sum()
    }

    /// The same without a reference to the body.
    fn into_owned(self) -> Peek<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        Peek {
            model: self.model.map(owned),
            session: self.session.map(owned),
            goes_on_from: self.goes_on_from.map(owned),
            model_at: self.model_at,
            stream: self.stream,
            prompt_at: self.prompt_at,
            most_output: self.most_output,
            stream_options_at: self.stream_options_at,
        }
    }
}

/// Why a body is not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PeekError {
    #[error("the body is not valid UTF-8 (byte {0})")]
    NotUtf8(usize),
    #[error("the body is not a JSON object")]
    NotAnObject,
    #[error("the body is not valid JSON (byte {0})")]
    Malformed(usize),
    #[error("the body nests deeper than {MAX_DEPTH} levels (byte {0})")]
    TooDeep(usize),
    #[error("`{key}` is not a {wanted}")]
    WrongType { key: &'static str, wanted: &'static str },
}

/// Larger bodies are scanned on another thread: at some nanoseconds per byte, a scan would hold up the other requests of
/// this thread.
const LARGE_BODY_BYTES: usize = 512 * 1024;

/// Reads `body` without holding up the other tasks of this thread.
pub(super) async fn read(body: &Bytes) -> Result<Peek<'static>, PeekError> {
    if body.len() <= LARGE_BODY_BYTES {
        return peek(body).map(Peek::into_owned);
    }
    let shared = body.clone();
    match tokio::task::spawn_blocking(move || peek(&shared).map(Peek::into_owned)).await {
        Ok(peek) => peek,
        // The runtime is ending.
        Err(_not_run) => peek(body).map(Peek::into_owned),
    }
}

/// Scans `body`.
fn peek(body: &[u8]) -> Result<Peek<'_>, PeekError> {
    std::str::from_utf8(body).map_err(|e| PeekError::NotUtf8(e.valid_up_to()))?;
    let mut scan = Scan { body, at: 0 };
    scan.blanks();
    if scan.next() != Some(b'{') {
        return Err(PeekError::NotAnObject);
    }
    let mut peek = Peek::default();
    let (mut tools, mut system, mut prompt) = (None, None, None);
    let (mut user, mut conversation) = (None, None);
    let (mut most_output, mut choices) = ([None::<u64>; 4], 1);
    scan.blanks();
    if scan.peek() == Some(b'}') {
        scan.at += 1;
    } else {
        loop {
            scan.blanks();
            let key = scan.string()?;
            scan.blanks();
            scan.expect(b':')?;
            scan.blanks();
            let value = scan.value()?;
            let text = &body[value.clone()];
            // The key includes its quotes. If a key is repeated, the last one counts, as in most parsers.
            match &body[key] {
                b"\"model\"" => {
                    peek.model = string_or_null(text, "model")?;
                    peek.model_at = Some(value);
                }
                b"\"stream\"" => {
                    peek.stream = match text {
                        b"true" => true,
                        b"false" | b"null" => false,
                        _ => return Err(PeekError::WrongType { key: "stream", wanted: "boolean" }),
                    };
                }
                b"\"prompt_cache_key\"" => {
                    peek.session = string_or_null(text, "prompt_cache_key").unwrap_or(None);
                }
                b"\"previous_response_id\"" => peek.goes_on_from = stored_id(text),
                b"\"conversation\"" => conversation = stored_id(text),
                // The worker must refuse anything but a string.
                b"\"user\"" => user = string_or_null(text, "user").unwrap_or(None),
                // Engines differ in which of these they prefer: the largest one counts.
                b"\"max_tokens\"" => most_output[0] = number(text),
                b"\"max_completion_tokens\"" => most_output[1] = number(text),
                b"\"max_output_tokens\"" => most_output[2] = number(text),
                b"\"n_predict\"" => most_output[3] = number(text),
                b"\"n\"" => choices = number(text).unwrap_or(1).max(1),
                b"\"stream_options\"" => peek.stream_options_at = Some(value),
                b"\"tools\"" => tools = Some(value),
                b"\"system\"" | b"\"instructions\"" => system = Some(value),
                b"\"messages\"" => prompt = Some(value),
                b"\"prompt\"" | b"\"input\"" | b"\"text\"" if prompt.is_none() => {
                    prompt = Some(value);
                }
                _ => {}
            }
            scan.blanks();
            match scan.next() {
                Some(b',') => {}
                Some(b'}') => break,
                _ => return Err(PeekError::Malformed(scan.at.saturating_sub(1))),
            }
        }
    }
    scan.blanks();
    if scan.at != body.len() {
        return Err(PeekError::Malformed(scan.at));
    }
    peek.most_output =
        most_output.into_iter().flatten().max().map(|most: u64| most.saturating_mul(choices));
    peek.session = peek.session.or(user);
    peek.goes_on_from = peek.goes_on_from.or(conversation);
    let pieces = [tools, system, prompt].into_iter().flatten();
    peek.prompt_at = pieces.filter(|at| body[at.clone()] != *b"null").collect();
    Ok(peek)
}

/// A whole number that is not negative.
fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn string_or_null<'a>(
    text: &'a [u8],
    key: &'static str,
) -> Result<Option<Cow<'a, str>>, PeekError> {
    let wrong = PeekError::WrongType { key, wanted: "string" };
    match text {
        b"null" => Ok(None),
        [b'"', inner @ .., b'"'] if !inner.contains(&b'\\') => {
            Ok(Some(Cow::Borrowed(std::str::from_utf8(inner).map_err(|_| wrong)?)))
        }
        _ => serde_json::from_slice::<String>(text)
            .map(|name| Some(Cow::Owned(name)))
            .map_err(|_| wrong),
    }
}

/// A position in the body.
struct Scan<'a> {
    body: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek();
        self.at += 1;
        byte
    }

    fn expect(&mut self, wanted: u8) -> Result<(), PeekError> {
        if self.next() == Some(wanted) { Ok(()) } else { Err(PeekError::Malformed(self.at - 1)) }
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Skips a string. Returns its position, quotes included.
    fn string(&mut self) -> Result<Range<usize>, PeekError> {
        let start = self.at;
        self.expect(b'"')?;
        loop {
            let rest = self.body.get(self.at..).unwrap_or_default();
            let Some(skip) = memchr2(b'"', b'\\', rest) else {
                return Err(PeekError::Malformed(start));
            };
            self.at += skip + 1;
            if rest[skip] == b'"' {
                return Ok(start..self.at);
            }
            // An escaped quote does not end the string.
            self.at += 1;
        }
    }

    /// Skips a value. Returns its position.
    fn value(&mut self) -> Result<Range<usize>, PeekError> {
        let start = self.at;
        match self.peek() {
            Some(b'"') => self.string(),
            Some(b'{' | b'[') => self.brackets().map(|()| start..self.at),
            Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                while matches!(
                    self.peek(),
                    Some(b'-' | b'+' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'E')
                ) {
                    self.at += 1;
                }
                let scalar = &self.body[start..self.at];
                let is_word = matches!(scalar, b"true" | b"false" | b"null");
                let is_number = || serde_json::from_slice::<serde_json::Number>(scalar).is_ok();
                if is_word || is_number() {
                    Ok(start..self.at)
                } else {
                    Err(PeekError::Malformed(start))
                }
            }
            _ => Err(PeekError::Malformed(start)),
        }
    }

    /// Skips an array or object with all its content. A stack of bits records which bracket each closing one must
    /// match.
    fn brackets(&mut self) -> Result<(), PeekError> {
        let mut objects = 0u128;
        let mut depth = 0usize;
        loop {
            let Some(byte) = self.peek() else { return Err(PeekError::Malformed(self.at)) };
            match byte {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => {
                    if depth == MAX_DEPTH {
                        return Err(PeekError::TooDeep(self.at));
                    }
                    objects = objects << 1 | u128::from(byte == b'{');
                    depth += 1;
                }
                b'}' | b']' => {
                    if (objects & 1 == 1) != (byte == b'}') {
                        return Err(PeekError::Malformed(self.at));
                    }
                    objects >>= 1;
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        return Ok(());
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(body: &str, expect: impl FnOnce(Peek<'_>)) {
        expect(peek(body.as_bytes()).unwrap_or_else(|error| panic!("{body} was refused: {error}")));
    }

    fn refused(body: &[u8]) -> PeekError {
        peek(body).expect_err("it was taken for a request")
    }

    #[test]
    fn what_routing_needs_is_found() {
        check(
            r#" {"a":[1,{"model":"inner"}], "model" : "m\u0031" ,"stream":true,"user":"u"} "#,
            |peek| {
                assert_eq!(peek.model.as_deref(), Some("m1"));
                assert_eq!(peek.session.as_deref(), Some("u"));
                assert!(peek.stream);
            },
        );
        check("{}", |peek| assert_eq!(peek, Peek::default()));
        check(r#"{"model":null,"stream":null,"messages":null}"#, |peek| {
            assert_eq!((peek.model, peek.stream, peek.prompt_at.len()), (None, false, 0));
        });
        check(r#"{"user":"u","prompt_cache_key":"k"}"#, |peek| {
            assert_eq!(peek.session.as_deref(), Some("k"));
        });
        check(r#"{"user":7,"n":-1.5e+3}"#, |peek| assert_eq!(peek.session, None));
    }

    #[test]
    fn what_a_response_goes_on_from_is_found() {
        for (body, expected) in [
            (r#"{"previous_response_id":"resp_1"}"#, Some("resp_1")),
            (r#"{"previous_response_id":null,"conversation":"conv_2"}"#, Some("conv_2")),
            (r#"{"conversation":{"id":"conv_3"}}"#, Some("conv_3")),
            (r#"{"conversation":"conv_2","previous_response_id":"resp_1"}"#, Some("resp_1")),
            (r#"{"conversation":7,"previous_response_id":{}}"#, None),
        ] {
            check(body, |peek| assert_eq!(peek.goes_on_from.as_deref(), expected, "{body}"));
        }
    }

    #[test]
    fn the_prompt_is_taken_as_it_lies_and_in_the_engines_order() {
        let body = br#"{"messages":[ {"role":"user"} ],"system":"s","tools":[1]}"#;
        let pieces = peek(body).unwrap().prompt(body);
        assert_eq!(pieces.to_vec(), [&b"[1]"[..], b"\"s\"", br#"[ {"role":"user"} ]"#]);
        let body = br#"{"prompt":"a\"b"}"#;
        assert_eq!(peek(body).unwrap().prompt(body).to_vec(), [&br#""a\"b""#[..]]);
    }

    #[tokio::test]
    async fn a_large_body_is_read_like_a_small_one() {
        let text = "x".repeat(2 * LARGE_BODY_BYTES);
        let body = format!(r#"{{"model":"m\u0031","user":"u","stream":true,"prompt":"{text}"}}"#);
        let body = Bytes::from(body);
        let large = read(&body).await.unwrap();
        assert_eq!(large, peek(&body).unwrap());
        assert_eq!(large.prompt(&body)[0].len(), text.len() + 2);
        assert!(matches!(read(&body.slice(1..)).await, Err(PeekError::NotAnObject)));
    }

    #[test]
    fn the_last_of_two_keys_counts() {
        check(r#"{"model":"a","model":"b"}"#, |peek| assert_eq!(peek.model.as_deref(), Some("b")));
    }

    #[test]
    fn what_is_no_request_says_why() {
        assert_eq!(refused(b"[]"), PeekError::NotAnObject);
        assert_eq!(refused(b""), PeekError::NotAnObject);
        assert_eq!(refused(b"{\"a\":\"\xff\"}"), PeekError::NotUtf8(6));
        for body in [
            "{",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1",
            "{\"a\":1,}",
            "{\"a\":[}",
            "{\"a\":[1}",
            "{\"a\":{]}",
            "{\"a\":tru}",
            "{\"a\":01}",
            "{\"a\":1}x",
            "{\"a\":\"b}",
            "{'a':1}",
            "{\"a\":\"\\",
            "{\"a\" 1}",
            "{\"a\":1 \"b\":2}",
        ] {
            assert!(matches!(refused(body.as_bytes()), PeekError::Malformed(_)), "{body}");
        }
        assert!(matches!(refused(br#"{"model":1}"#), PeekError::WrongType { key: "model", .. }));
        assert!(matches!(
            refused(br#"{"stream":"yes"}"#),
            PeekError::WrongType { key: "stream", .. }
        ));
    }

    #[test]
    fn absurd_nesting_is_refused_without_recursion() {
        let deep = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(peek(deep(MAX_DEPTH).as_bytes()).is_ok());
        assert!(matches!(refused(deep(MAX_DEPTH + 1).as_bytes()), PeekError::TooDeep(_)));
        assert!(matches!(refused("{\"a\":[".repeat(1_000_000).as_bytes()), PeekError::TooDeep(_)));
    }

    #[test]
    fn the_model_is_found_where_it_lies() {
        let body = br#"{ "x": 1.0, "model" : "nick","y":"\u00e9"}"#;
        assert_eq!(&body[peek(body).unwrap().model_at.unwrap()], b"\"nick\"");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _either = peek(&body).is_ok();
        }

        #[test]
        fn no_json_like_text_makes_it_panic(body in "[{}\\[\\]\",:a\\\\ 0tn]{0,40}") {
            let _either = peek(body.as_bytes()).is_ok();
        }

        #[test]
        fn whatever_a_parser_accepts_is_accepted(
            model in any::<String>(), stream in any::<bool>(), text in any::<String>(), number in any::<f64>()
        ) {
            let document = serde_json::json!({
                "n": number, "messages": [{"role": "user", "content": text}], "model": model, "stream": stream,
            });
            for body in [serde_json::to_vec(&document).unwrap(), serde_json::to_vec_pretty(&document).unwrap()] {
                let peek = peek(&body).unwrap();
                prop_assert_eq!(peek.model.as_deref(), Some(model.as_str()));
                prop_assert_eq!(peek.stream, stream);
                let messages: serde_json::Value = serde_json::from_slice(peek.prompt(&body)[0]).unwrap();
                prop_assert_eq!(&messages, &document["messages"]);
            }
        }
    }
}
