//! Removes from a stream the usage that the router has asked for and the client has not.
//!
//! With `stream_options.include_usage` an engine sends one more chunk, with the usage and without choices, and may add a
//! field `usage` to the other chunks (null, or counts). The client gets the stream without both, byte for byte as the
//! engine sends it without the option. A piece without the marker `"usage"` passes as it is. Only an event that has not
//! arrived whole is kept, up to [`MAX_EVENT`] bytes; a larger one passes unchanged.

use std::ops::Range;
use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;
use memchr::{memchr, memrchr};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The largest event that is kept until it is whole, in bytes. Events of the APIs concerned have a few hundred.
const MAX_EVENT: usize = 256 << 10;

/// Every usage has these bytes before it.
static MARKER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"usage\""));

/// Removes usage from one stream.
#[derive(Debug, Default)]
pub struct Strip {
    /// The begin of an event whose end has not arrived.
    kept: BytesMut,
    /// Set while an event passes as it arrives because it is too large: whether its present line is blank so far.
    passing: Option<bool>,
}

/// The fields of a chunk that decide what is removed.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Field<'a>,
    #[serde(borrow, default)]
    usage: Field<'a>,
}

/// The JSON text of a field, null included; `None` if it is absent.
#[derive(Default, Clone, Copy)]
struct Field<'a>(Option<&'a str>);

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&RawValue>::deserialize(deserializer).map(|raw| Self(Some(raw.get())))
    }
}

impl Strip {
    /// Takes the next piece of the stream. Returns the bytes for the client, which may be none.
    pub fn feed(&mut self, mut piece: Bytes) -> Bytes {
        let mut out = BytesMut::new();
        if let Some(line_is_blank) = &mut self.passing {
            let Some(end) = end_of_event(line_is_blank, &piece) else { return piece };
            self.passing = None;
            let passed = piece.split_to(end);
            if piece.is_empty() {
                return passed;
            }
            out.extend_from_slice(&passed);
        } else if self.kept.is_empty() {
            let end = end_of_last_event(&piece, 0).unwrap_or(0);
            if MARKER.find(&piece[..end]).is_none() && piece.len() - end <= MAX_EVENT {
                self.kept.extend_from_slice(&piece[end..]);
                return piece.slice(..end);
            }
        }
        let before = self.kept.len();
        self.kept.extend_from_slice(&piece);
        // A blank line may lie on both sides of the cut.
        if let Some(end) = end_of_last_event(&self.kept, before.saturating_sub(3)) {
            let whole = self.kept.split_to(end);
            Self::edit(&whole, &mut out);
        }
        if self.kept.len() > MAX_EVENT {
            let mut line_is_blank = false;
            let _no_end = end_of_event(&mut line_is_blank, &self.kept);
            self.passing = Some(line_is_blank);
            out.extend_from_slice(&std::mem::take(&mut self.kept));
        }
        out.freeze()
    }

    /// What is left at the end of the stream: an event without its end.
    pub fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.kept).freeze()
    }

    /// Whether no begin of an event is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Appends whole events to `out`, without the usage in them.
    fn edit(events: &[u8], out: &mut BytesMut) {
        let mut rest = events;
        while let Some(end) = end_of_event(&mut false, rest) {
            let (event, more) = rest.split_at(end);
            rest = more;
            match MARKER.find(event).map(|_| usage_in(event)) {
                None | Some(Usage::None) => out.extend_from_slice(event),
                Some(Usage::Chunk) => {}
                Some(Usage::Member(at)) => {
                    out.extend_from_slice(&event[..at.start]);
                    out.extend_from_slice(&event[at.end..]);
                }
            }
        }
        out.extend_from_slice(rest);
    }
}

/// The position after the first blank line. `line_is_blank`: whether the line that `bytes` continues is blank so far; it is
/// brought up to date if there is no blank line.
fn end_of_event(line_is_blank: &mut bool, bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(length) = memchr(b'\n', &bytes[from..]) {
        let line = &bytes[from..from + length];
        from += length + 1;
        if *line_is_blank && matches!(line, b"" | b"\r") {
            return Some(from);
        }
        *line_is_blank = true;
    }
    *line_is_blank &= matches!(&bytes[from..], b"" | b"\r");
    None
}

/// The position after the last blank line that does not end before `from`.
fn end_of_last_event(bytes: &[u8], from: usize) -> Option<usize> {
    let mut until = bytes.len();
    while let Some(newline) = memrchr(b'\n', &bytes[from..until]).map(|at| from + at) {
        let before = &bytes[..newline];
        if before.strip_suffix(b"\r").unwrap_or(before).ends_with(b"\n") {
            return Some(newline + 1);
        }
        until = newline;
    }
    None
}

/// The usage in an event.
#[derive(Debug, PartialEq, Eq)]
enum Usage {
    None,
    /// The event is there for its usage only.
    Chunk,
    /// The position of the member, with one comma.
    Member(Range<usize>),
}

fn usage_in(event: &[u8]) -> Usage {
    let mut at = 0;
    let mut data = None;
    for line in event.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b"data:") {
            if data.is_some() {
                return Usage::None;
            }
            data = Some(at + b"data:".len()..at + line.len());
        }
        at += line.len();
    }
    let Some(data) = data else { return Usage::None };
    let text = &event[data.clone()];
    let Ok(Chunk { choices, usage: Field(Some(usage)) }) = serde_json::from_slice(text) else {
        return Usage::None;
    };
    let is_empty = |list: &str| {
        let inside = list.strip_prefix('[').and_then(|list| list.strip_suffix(']'));
        inside.is_some_and(|inside| inside.trim().is_empty())
    };
    if usage != "null" && choices.0.is_some_and(is_empty) {
        return Usage::Chunk;
    }
    // Both are slices of the same text.
    let start = usage.as_ptr() as usize - text.as_ptr() as usize;
    match member(text, start..start + usage.len()) {
        None => Usage::None,
        Some(member) => Usage::Member(data.start + member.start..data.start + member.end),
    }
}

/// The position of the member with this value: key, colon, value, and the comma before it or, for the first one, after it.
fn member(text: &[u8], value: Range<usize>) -> Option<Range<usize>> {
    let before = text[..value.start].trim_ascii_end().strip_suffix(b":")?;
    let before = before.trim_ascii_end().strip_suffix(b"\"usage\"")?;
    let open = before.trim_ascii_end();
    if let Some(rest) = open.strip_suffix(b",") {
        return Some(rest.len()..value.end);
    }
    let after = &text[value.end..];
    let blanks = after.len() - after.trim_ascii_start().len();
    let comma = value.end + blanks;
    if text.get(comma) != Some(&b',') {
        return Some(before.len()..value.end);
    }
    let next = text[comma + 1..].trim_ascii_start();
    Some(before.len()..text.len() - next.len())
}

#[cfg(test)]
mod tests;
