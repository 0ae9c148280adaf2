//! Asks a worker for the usage of a stream whose client did not ask for it: sets `stream_options.include_usage` in the
//! request's JSON. All other bytes stay as they are.

use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// The routes whose streams have usage only if the request asks for it.
const ROUTES: [&str; 2] = ["/v1/chat/completions", "/v1/completions"];

/// A change of a request's body: the text that replaces the bytes at a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edit {
    at: Range<usize>,
    text: &'static str,
}

#[derive(Deserialize)]
struct Options<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    include_usage: Option<&'a RawValue>,
}

/// A field's text, null included.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// The change that asks for usage in a streaming request. `None`: the client asks for it itself, the route has none to ask
/// for, or `stream_options` is something that the worker must refuse. `options`: the position of its value.
pub(super) fn edit(route: &str, body: &[u8], options: Option<&Range<usize>>) -> Option<Edit> {
    if !ROUTES.contains(&route) {
        return None;
    }
    let Some(options) = options else {
        let open = body.iter().position(|byte| *byte == b'{')? + 1;
        // A streaming request has at least the member `stream`, so a comma is needed.
        return Some(Edit { at: open..open, text: r#""stream_options":{"include_usage":true},"# });
    };
    let value = body.get(options.clone())?;
    if value == b"null" {
        return Some(Edit { at: options.clone(), text: r#"{"include_usage":true}"# });
    }
    let inside = value.strip_prefix(b"{")?.trim_ascii_start();
    match serde_json::from_slice::<Options<'_>>(value).ok()?.include_usage.map(RawValue::get) {
        Some("true") => None,
        Some(other) => {
            // A slice of the same text.
            let start = options.start + (other.as_ptr() as usize - value.as_ptr() as usize);
            Some(Edit { at: start..start + other.len(), text: "true" })
        }
        None => {
            let at = options.start + 1;
            let is_empty = inside.starts_with(b"}");
            let text =
                if is_empty { r#""include_usage":true"# } else { r#""include_usage":true,"# };
            Some(Edit { at: at..at, text })
        }
    }
}

impl Edit {
    /// The changed body.
    pub(super) fn apply(&self, body: &[u8]) -> Bytes {
        [&body[..self.at.start], self.text.as_bytes(), &body[self.at.end..]].concat().into()
    }

    /// Moves a position outside of the changed part to where its bytes are in the changed body.
    pub(super) fn shift(&self, position: &mut Range<usize>) {
        if position.start >= self.at.end {
            let moved = |at: usize| at + self.text.len() - self.at.len();
            *position = moved(position.start)..moved(position.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const CHAT: &str = "/v1/chat/completions";

    /// The position of the value of `stream_options` in a body in which the value occurs once.
    fn options_in(body: &str) -> Option<Range<usize>> {
        #[derive(Deserialize)]
        struct Body<'a> {
            #[serde(borrow, default, deserialize_with = "present")]
            stream_options: Option<&'a RawValue>,
        }
        let raw = serde_json::from_str::<Body<'_>>(body).unwrap().stream_options?.get();
        let start = raw.as_ptr() as usize - body.as_ptr() as usize;
        Some(start..start + raw.len())
    }

    fn edited(body: &str) -> Option<String> {
        let edit = edit(CHAT, body.as_bytes(), options_in(body).as_ref())?;
        Some(String::from_utf8(edit.apply(body.as_bytes()).to_vec()).unwrap())
    }

    #[test]
    fn usage_is_asked_for_where_the_client_did_not() {
        for (body, wanted) in [
            (
                r#" { "stream":true}"#,
                r#" {"stream_options":{"include_usage":true}, "stream":true}"#,
            ),
            (r#"{"stream_options":null}"#, r#"{"stream_options":{"include_usage":true}}"#),
            (r#"{"stream_options":{ }}"#, r#"{"stream_options":{"include_usage":true }}"#),
            (
                r#"{"stream_options": {"continuous_usage_stats":true}}"#,
                r#"{"stream_options": {"include_usage":true,"continuous_usage_stats":true}}"#,
            ),
            (
                r#"{"stream_options":{"a":[1], "include_usage" : false }}"#,
                r#"{"stream_options":{"a":[1], "include_usage" : true }}"#,
            ),
            (
                r#"{"stream_options":{"include_usage":null}}"#,
                r#"{"stream_options":{"include_usage":true}}"#,
            ),
        ] {
            assert_eq!(edited(body).as_deref(), Some(wanted), "{body}");
        }
    }

    #[test]
    fn nothing_changes_where_the_client_asks_or_the_worker_must_refuse() {
        for body in [
            r#"{"stream_options":{"include_usage":true}}"#,
            r#"{"stream_options":"x"}"#,
            r#"{"stream_options":[]}"#,
            r#"{"stream_options":{"include_usage":true,"include_usage":false}}"#,
        ] {
            assert_eq!(edited(body), None, "{body}");
        }
        assert_eq!(edit("/v1/responses", br#"{"stream":true}"#, None), None);
    }

    proptest! {
        #[test]
        fn the_rest_of_the_request_stays(
            text in any::<String>(), options in prop_oneof![
                Just(None), Just(Some(json!(null))), Just(Some(json!({}))), Just(Some(json!({"include_usage": false}))),
                Just(Some(json!({"x": [1, "}"], "include_usage": null}))), Just(Some(json!({"x": {"include_usage": 1}}))),
            ], pretty in any::<bool>(),
        ) {
            let mut document = json!({"messages": [{"content": text}], "stream": true, "z": text});
            if let Some(options) = options {
                document["stream_options"] = options;
            }
            let body = if pretty { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) };
            let body = body.unwrap();
            let edit = edit(CHAT, body.as_bytes(), options_in(&body).as_ref()).unwrap();
            let changed = edit.apply(body.as_bytes());
            let mut seen: Value = serde_json::from_slice(&changed).unwrap();
            prop_assert_eq!(&seen["stream_options"]["include_usage"], &json!(true));
            for document in [&mut seen, &mut document] {
                document.as_object_mut().unwrap().entry("stream_options").or_insert_with(|| json!({}));
                if document["stream_options"].is_null() {
                    document["stream_options"] = json!({});
                }
                document["stream_options"].as_object_mut().unwrap().remove("include_usage");
            }
            prop_assert_eq!(seen, document);
            // Positions follow their bytes.
            let at = body.rfind("\"z\"").unwrap();
            let mut position = at..at + 3;
            edit.shift(&mut position);
            prop_assert_eq!(&changed[position], b"\"z\"");
        }
    }
}
