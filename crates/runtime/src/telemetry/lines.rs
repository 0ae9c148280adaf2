//! The format of a log line. No text in a field can end the line or control the terminal.
//!
//! Fields hold text from clients and workers, for example a model's name or an error's text. In both formats every
//! control character of a field is written as an escape: a line feed as `\
//! `, ESC as `\\u001b`. So each event is one line, and no field can look like another event.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Writes to `inner`, with control characters as escapes.
struct Escaping<'a> {
    inner: &'a mut dyn fmt::Write,
}

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut clean = 0;
        for (at, c) in text.char_indices().filter(|(_, c)| is_control(*c)) {
            self.inner.write_str(&text[clean..at])?;
            clean = at + c.len_utf8();
            match c {
                '\n' => self.inner.write_str("\\n")?,
                '\r' => self.inner.write_str("\\r")?,
                '\t' => self.inner.write_str("\\t")?,
                // Each of these characters has four hexadecimal digits, so this is JSON's escape, too.
                other => write!(self.inner, "\\u{:04x}", u32::from(other))?,
            }
        }
        self.inner.write_str(&text[clean..])
    }
}

/// Whether a character moves the cursor, ends a line, or changes the order in which others are shown.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

/// Formats fields as text: `message name=value name="text"`.
#[derive(Debug, Default)]
pub(super) struct TextFields;

impl<'writer> FormatFields<'writer> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        fields.record(&mut TextVisitor { writer, is_first: true });
        Ok(())
    }
}

struct TextVisitor<'writer> {
    writer: Writer<'writer>,
    is_first: bool,
}

impl TextVisitor<'_> {
    fn write(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        // Events from the `log` crate carry their origin in such fields, and the line shows it already.
        if !field.name().starts_with("log.") {
            // Only a value whose own formatting fails can cause this. The rest of the line is still useful.
            let _unprintable = self.try_write(field.name(), value).is_err();
        }
    }

    fn try_write(&mut self, name: &str, value: fmt::Arguments<'_>) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(' ')?;
        }
        let name = name.strip_prefix("r#").unwrap_or(name);
        if name != "message" && self.writer.has_ansi_escapes() {
            // The name in italics, the equals sign dimmed.
            write!(self.writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m")?;
        } else if name != "message" {
            write!(self.writer, "{name}=")?;
        }
        Escaping { inner: &mut self.writer }.write_fmt(value)
    }
}

impl Visit for TextVisitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.write(field, format_args!("{value}"));
        } else {
            self.write(field, format_args!("{value:?}"));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write(field, format_args!("{value:?}"));
    }
}

/// Formats JSON as `inner` does, and also escapes the control characters that JSON permits (DEL, C1, line separators).
#[derive(Debug)]
pub(super) struct JsonLine<F> {
    pub(super) inner: F,
}

impl<S, N, F> FormatEvent<S, N> for JsonLine<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        // Outside of strings, JSON has only the line feed at its end.
        Escaping { inner: &mut writer }.write_str(line.trim_end_matches('\n'))?;
        writer.write_char('\n')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_as_escapes() {
        let mut text = String::new();
        Escaping { inner: &mut text }
            .write_str("a\nb\r\t\u{1b}[31m\u{7f}\u{9b}é\u{2028}\u{202e}\"\\")
            .unwrap();
        assert_eq!(text, "a\\nb\\r\\t\\u001b[31m\\u007f\\u009bé\\u2028\\u202e\"\\");
    }
}
