//! The fields of a request that decide the answer, parsed without a tree of the whole body.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::script::Script;

/// The fields that any endpoint uses. All others are ignored.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Ask<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) stream: Option<bool>,
    #[serde(default)]
    pub(super) background: Option<bool>,
    #[serde(default)]
    pub(super) store: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    max_output_tokens: Option<u32>,
    sampling_params: Option<SamplingParams>,
    pub(super) encoding_format: Option<Cow<'a, str>>,
    pub(super) dimensions: Option<usize>,
    pub(super) n: Option<usize>,
    pub(super) top_n: Option<usize>,
    pub(super) mock: Option<Script>,
    #[serde(borrow)]
    system: Option<&'a RawValue>,
    #[serde(borrow)]
    instructions: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) input: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) query: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) documents: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) text_1: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) text_2: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) tokens: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Debug, Deserialize)]
struct SamplingParams {
    max_new_tokens: Option<u32>,
}

impl<'a> Ask<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// The model's name as JSON, with its quotes. It is compared and returned without being decoded.
    pub(super) fn model(&self) -> Option<&'a str> {
        self.model.map(RawValue::get)
    }

    pub(super) fn includes_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|options| options.include_usage)
    }

    /// The limit on generated tokens, in whichever field the API has it.
    pub(super) fn max_tokens(&self) -> Option<u32> {
        let sampling = self.sampling_params.as_ref().and_then(|params| params.max_new_tokens);
        self.max_completion_tokens.or(self.max_tokens).or(self.max_output_tokens).or(sampling)
    }

    /// The prompt's raw bytes, in the order in which an engine's template would arrange them.
    pub(super) fn prompt_bytes(&self) -> Cow<'a, [u8]> {
        let all = [
            self.system,
            self.instructions,
            self.tools,
            self.messages,
            self.prompt,
            self.input,
            self.text,
            self.query,
            self.documents,
            self.text_1,
            self.text_2,
        ];
        let mut parts =
            all.into_iter().flatten().map(|part| behind_billing_line(part.get()).as_bytes());
        let first = parts.next().unwrap_or_default();
        match parts.next() {
            None => Cow::Borrowed(first),
            Some(second) => {
                let mut joined = [first, second].concat();
                parts.for_each(|part| joined.extend_from_slice(part));
                Cow::Owned(joined)
            }
        }
    }
}

/// The rest of a prompt's JSON behind the line with which coding agents name the request that is billed, if it begins with one: engines
/// drop that line, because it is different in each request.
fn behind_billing_line(json: &str) -> &str {
    let line = json.find("\"x-anthropic-billing-header:").filter(|at| !json[..*at].contains('}'));
    let Some(begin) = line else { return json };
    let rest = &json[begin + 1..];
    let end = rest.find("\\n").into_iter().chain(rest.find('"')).min();
    end.map_or(json, |end| &rest[end..])
}

/// The strings in a field: the field itself, or the elements of its list. An object counts as its JSON text.
pub(super) fn strings(field: Option<&RawValue>) -> Vec<String> {
    let text = |value: &RawValue| {
        serde_json::from_str::<String>(value.get()).unwrap_or_else(|_| value.get().to_owned())
    };
    let Some(field) = field else { return Vec::new() };
    match serde_json::from_str::<Vec<&RawValue>>(field.get()) {
        Ok(list) => list.into_iter().map(text).collect(),
        Err(_) => vec![text(field)],
    }
}

/// The number of tokens in so many bytes. A token has four bytes; the last one may have fewer.
pub(super) fn tokens(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(4)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(json: &str) -> Ask<'_> {
        Ask::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn the_token_limit_of_every_api_is_found() {
        for (json, limit) in [
            (r#"{"max_tokens":3}"#, Some(3)),
            (r#"{"max_tokens":3,"max_completion_tokens":4}"#, Some(4)),
            (r#"{"max_output_tokens":5}"#, Some(5)),
            (r#"{"sampling_params":{"max_new_tokens":6,"top_p":1}}"#, Some(6)),
            (r#"{"max_tokens":null}"#, None),
        ] {
            assert_eq!(ask(json).max_tokens(), limit, "{json}");
        }
    }

    #[test]
    fn the_billing_line_is_no_part_of_the_prompt() {
        let turns = ["cch=1;", "cch=2;"].map(|line| {
            let json = format!(
                r#"{{"system":[{{"type":"text","text":"x-anthropic-billing-header: {line}"}},{{"text":"s"}}]}}"#
            );
            ask(&json).prompt_bytes().into_owned()
        });
        assert_eq!(turns[0], turns[1]);
        assert_eq!(turns[0], br#""},{"text":"s"}]"#);
    }

    #[test]
    fn the_prompt_is_the_raw_bytes_system_first() {
        let json = r#"{"messages": [ {"content" : "caf\u00e9"} ], "system":"s"}"#;
        assert_eq!(&*ask(json).prompt_bytes(), br#""s"[ {"content" : "caf\u00e9"} ]"#);
        assert!(matches!(ask(r#"{"prompt":"x"}"#).prompt_bytes(), Cow::Borrowed(b"\"x\"")));
    }

    #[test]
    fn a_field_holds_one_string_or_a_list() {
        let of = |json| strings(ask(json).input);
        assert_eq!(of(r#"{"input":"a"}"#), ["a"]);
        assert_eq!(of(r#"{"input":["a","b\n"]}"#), ["a", "b\n"]);
        assert_eq!(of(r#"{"input":[{"text":"a"}]}"#), [r#"{"text":"a"}"#]);
        assert!(of("{}").is_empty());
    }
}
