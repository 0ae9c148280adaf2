//! Values of a request's JSON whose meaning needs more than their position.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr2;

/// The id of something that a worker has stored: a string, or an object with the member `id`.
pub(super) fn stored_id(text: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Stored<'a> {
        Id(#[serde(borrow)] Cow<'a, str>),
        Object { id: String },
    }
    match serde_json::from_slice(text).ok()? {
        Stored::Id(id) => Some(id),
        Stored::Object { id } => Some(Cow::Owned(id)),
    }
}

/// The beginning of the first line of Claude Code's system prompts, with the quote of its string.
const BILLING_LINE: &[u8] = b"\"x-anthropic-billing-header:";
/// The bytes of a system prompt in which that line may begin.
const BILLING_WITHIN: usize = 128;

/// The rest of a system prompt behind Claude Code's billing line, if it begins with one.
///
/// The line is different in each request (`cch=…`). Engines drop it, so that they find the rest of the prompt in their
/// cache. Here it is left out of the prompt for the same reason: two turns of a conversation have the same head.
pub(super) fn behind_billing_line(body: &[u8], at: Range<usize>) -> Range<usize> {
    let text = &body[at.clone()];
    let head = &text[..text.len().min(BILLING_WITHIN)];
    // The line is the string itself, or the text of the first block.
    let begin = memchr::memmem::find(head, BILLING_LINE).filter(|at| !head[..*at].contains(&b'}'));
    let Some(mut end) = begin.map(|at| at + BILLING_LINE.len()) else { return at };
    while let Some(next) = memchr2(b'"', b'\\', &text[end..]) {
        end += next;
        match (text[end], text.get(end + 1)) {
            (b'\\', Some(b'n')) => return at.start + end + 2..at.end,
            (b'\\', _) => end += 2,
            _ => return at.start + end + 1..at.end,
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_billing_line_of_claude_code_is_no_part_of_the_prompt() {
        let system = |json: &str| {
            let body = format!(r#"{{"system":{json},"messages":[]}}"#);
            let at = 10..10 + json.len();
            body[behind_billing_line(body.as_bytes(), at)].to_owned()
        };
        let line =
            r"x-anthropic-billing-header: cc_version=2.1.100.7b4; cc_entrypoint=cli; cch=eb6c6;";
        for (before, after) in [
            (
                format!(r#"[{{"type":"text","text":"{line}"}},{{"type":"text","text":"You"}}]"#),
                r#"},{"type":"text","text":"You"}]"#,
            ),
            (format!("[ {{\n\"text\" : \"{line}\",\"type\":\"text\"}}]"), r#","type":"text"}]"#),
            (format!(r#""{line}\nYou are""#), r#"You are""#),
            (format!(r#"[{{"text":"{line} \"\u00e9\" \\\\\nYou"}}]"#), r#"You"}]"#),
            (format!(r#""{line}""#), ""),
        ] {
            assert_eq!(system(&before), after, "{before}");
        }
        for same in [
            format!(r#"[{{"type":"text","text":"You"}},{{"type":"text","text":"{line}"}}]"#),
            format!(r#""You are {line}""#),
            format!(r#"[{{"type":"text","text":"{}{line}"}}]"#, " ".repeat(200)),
            r#""""#.to_owned(),
            "[]".to_owned(),
        ] {
            assert_eq!(system(&same), same);
        }
    }

    #[test]
    fn an_id_is_a_string_or_a_member() {
        for (json, expected) in [
            (r#""resp_1""#, Some("resp_1")),
            (r#""resp\u005f1""#, Some("resp_1")),
            (r#"{"id":"conv_3"}"#, Some("conv_3")),
            ("null", None),
            ("7", None),
            ("{}", None),
        ] {
            assert_eq!(stored_id(json.as_bytes()).as_deref(), expected, "{json}");
        }
    }
}
