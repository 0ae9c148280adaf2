//! The access log (`--access-log`): one line per request of a client, written when the request has ended.
//!
//! A [`Ticket`] goes with a request through all parts that know something of it: the connection, the data path, the dispatch,
//! the meter, the body. The exchange writes the line when it ends, which is after the last of them. A line has no headers, no
//! query, no body and no key. Texts of clients are shortened and escaped, so that none can end the line or a field.

use std::fmt::{self, Write as _};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;
use smg_mesh::rfc3339;
use smg_proxy::dispatch::Observer;
use smg_proxy::usage::{Origin, Settlement};
use smg_routing::fleet::Worker;
use smg_runtime::clock::Clock;
use smg_runtime::telemetry::LineLog;

use super::metering::Settle;

/// The most characters of a text of the client in a line.
const MOST_CHARS: usize = 256;

/// How long the end of the process waits until queued lines are written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The format of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessFormat {
    /// `name=value` pairs.
    Text,
    /// One JSON object per line.
    Json,
}

/// Whether and where requests are logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessConfig {
    /// The format of lines.
    pub format: AccessFormat,
    /// The file to append to; `None`: standard output.
    pub file: Option<PathBuf>,
}

/// The access log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLog {
    lines: LineLog,
    format: AccessFormat,
    clock: Clock,
}

impl AccessLog {
    /// Opens the file, if there is one, and registers the counter of lost lines.
    ///
    /// # Errors
    /// If the file can't be opened, or the counter is registered already.
    pub fn open(
        config: &AccessConfig,
        registry: &prometheus::Registry,
        clock: Clock,
    ) -> Result<Self, AccessLogError> {
        let help = "Lines of the access log that were not written, by reason: queue_full (the reader is too slow), closed (the \
                    reader is gone), no_space, error.";
        let lines = LineLog::start(config.file.as_deref(), "smg_access_log_dropped_total", help)
            .map_err(|source| AccessLogError::Open {
                file: config.file.clone().unwrap_or_default(),
                source,
            })?;
        lines.register(registry)?;
        Ok(Self { lines, format: config.format, clock })
    }

    /// Opens the file again under its path, for programs that rotate files.
    pub fn reopen(&self) {
        self.lines.reopen();
    }

    /// Waits until the queued lines are written, but at most a second.
    pub fn flush(&self) {
        self.lines.flush(LAST_LINES);
    }

    /// Begins the line of a request.
    pub(super) fn begin(
        &self,
        method: &Method,
        path: &str,
        client: SocketAddr,
        forwarded_for: Option<&HeaderValue>,
        request_id: &HeaderValue,
    ) -> Ticket {
        let forwarded_for = forwarded_for.map(|chain| shortened(&lossy(chain)));
        Ticket(Some(Arc::new(Open {
            log: self.clone(),
            begun: self.clock.mono(),
            line: Mutex::new(Line {
                time: rfc3339(self.clock.now().wall),
                client: client.ip().to_canonical().to_string(),
                forwarded_for,
                method: shortened(method.as_str()),
                path: shortened(path),
                request_id: lossy(request_id),
                ..Line::default()
            }),
        })))
    }
}

/// Why the access log can't be written.
#[derive(Debug, thiserror::Error)]
pub enum AccessLogError {
    /// The file can't be opened.
    #[error("the access log can't be written to {file:?} (--access-log-file): {source}")]
    Open {
        /// The file; empty for standard output.
        file: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The counter of lost lines is registered already.
    #[error(transparent)]
    Metric(#[from] prometheus::Error),
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    /// The client's connection ended before the whole response was handed over.
    #[default]
    ClientLeft,
    /// The whole response was handed to the client's connection.
    Complete,
    /// The worker's response broke after its beginning.
    WorkerFailed,
}

/// The line of one request. `None`: unknown, or without a meaning for the request.
#[derive(Debug, Default, Serialize)]
struct Line {
    time: String,
    client: String,
    forwarded_for: Option<String>,
    method: String,
    path: String,
    status: u16,
    end: End,
    request_id: String,
    /// The code of the router's own error.
    error: Option<&'static str>,
    tenant: Option<String>,
    model: Option<String>,
    /// The worker of the last attempt.
    worker: Option<String>,
    worker_id: Option<String>,
    attempts: u32,
    bytes_in: u64,
    bytes_out: u64,
    queue_ms: Option<Millis>,
    first_byte_ms: Option<Millis>,
    total_ms: Millis,
    prompt_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    output_tokens: Option<u64>,
    /// Whether the numbers of tokens are estimates of the router.
    tokens_estimated: Option<bool>,
}

/// A time in milliseconds, to the microsecond.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct Millis(f64);

impl From<Duration> for Millis {
    fn from(time: Duration) -> Self {
        Self((time.as_secs_f64() * 1e6).round() / 1e3)
    }
}

/// The line of a request in progress, shared by the parts that know something of the request. Without an access log it
/// holds nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Ticket(Option<Arc<Open>>);

/// A line that is not written yet.
#[derive(Debug)]
struct Open {
    log: AccessLog,
    /// `Clock::mono` when the head had arrived.
    begun: Duration,
    // The parts of one request run on one thread, so that the lock is hardly ever contended.
    line: Mutex<Line>,
}

impl Ticket {
    /// Notes the tenant whose key the request had.
    pub(super) fn note_tenant(&self, tenant: Option<&str>) {
        self.note(|line| line.tenant = tenant.map(shortened));
    }

    /// Notes the model of the request.
    pub(super) fn note_model(&self, model: Option<&str>) {
        self.note(|line| line.model = model.map(shortened));
    }

    /// Notes the size of the request's body as it was sent.
    pub(super) fn note_body(&self, bytes: usize) {
        self.note(|line| line.bytes_in = bytes as u64);
    }

    /// Notes the code of an error of the router itself.
    pub(super) fn note_error(&self, code: &'static str) {
        self.note(|line| line.error = Some(code));
    }

    /// Notes a piece of the response that was handed over. `is_answer`: it is not a comment of the router.
    pub(super) fn note_piece(&self, bytes: usize, is_answer: bool) {
        let Some(open) = &self.0 else { return };
        let mut line = open.line.lock();
        line.bytes_out += bytes as u64;
        if is_answer && line.first_byte_ms.is_none() {
            line.first_byte_ms = Some(open.elapsed());
        }
    }

    /// Notes how the response ended.
    pub(super) fn note_end(&self, end: End) {
        self.note(|line| line.end = end);
    }

    /// Whether there is a line to write.
    pub(super) fn is_open(&self) -> bool {
        self.0.is_some()
    }

    /// The observer of the attempts to send the request, which writes them into the line.
    pub(super) fn observer(&self) -> Option<&dyn Observer> {
        self.0.as_deref().map(|open| open as &dyn Observer)
    }

    /// What learns of the tokens of the request.
    pub(super) fn listener(&self) -> Option<Box<dyn Settle>> {
        let open = self.0.clone()?;
        Some(Box::new(NoteTokens(open)))
    }

    /// Writes the line. `status`: that of the response, or 499 if the client left before it.
    pub(super) fn write(&self, status: u16) {
        let Some(open) = &self.0 else { return };
        let mut line = open.line.lock();
        line.status = status;
        line.total_ms = open.elapsed();
        let mut text = match open.log.format {
            AccessFormat::Json => serde_json::to_string(&*line).unwrap_or_default(),
            AccessFormat::Text => as_text(&line),
        };
        text.push('\n');
        open.log.lines.write(text.as_bytes());
    }

    fn note(&self, change: impl FnOnce(&mut Line)) {
        if let Some(open) = &self.0 {
            change(&mut open.line.lock());
        }
    }
}

impl Open {
    fn elapsed(&self) -> Millis {
        self.log.clock.mono().saturating_sub(self.begun).into()
    }
}

impl Observer for Open {
    fn admitted(&self, waited: Duration) {
        self.line.lock().queue_ms = Some(waited.into());
    }

    fn sent(&self, worker: &Worker) {
        let mut line = self.line.lock();
        line.attempts += 1;
        line.worker = Some(worker.spec.url.to_string());
        line.worker_id = Some(worker.id.to_string());
    }
}

/// Notes the tokens of a request when they are settled.
#[derive(Debug)]
struct NoteTokens(Arc<Open>);

impl Settle for NoteTokens {
    fn settle(self: Box<Self>, settlement: &Settlement) {
        let estimated = match settlement.origin {
            Origin::Reported => false,
            Origin::OutputEstimated | Origin::Estimated => true,
            Origin::Unreported | Origin::Unused => return,
        };
        let mut line = self.0.line.lock();
        line.prompt_tokens = Some(settlement.tokens.input);
        line.cached_tokens = Some(settlement.tokens.cached_input);
        line.output_tokens = Some(settlement.tokens.output);
        line.tokens_estimated = Some(estimated);
    }
}

fn lossy(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The line as `name=value` pairs, after the time. A value that is not plain is quoted and escaped as in JSON; an absent one
/// is left out.
fn as_text(line: &Line) -> String {
    let mut text = line.time.clone();
    let Ok(Value::Object(fields)) = serde_json::to_value(line) else { return text };
    // In the order of the fields: serde_json's map is sorted by name.
    for name in FIELDS {
        match &fields[name] {
            Value::Null => {}
            Value::String(value) if is_plain(value) => push(&mut text, name, value),
            value => push(&mut text, name, &escaped(value)),
        }
    }
    text
}

/// The fields of a line of text, in order.
const FIELDS: [&str; 22] = [
    "client",
    "forwarded_for",
    "method",
    "path",
    "status",
    "end",
    "request_id",
    "error",
    "tenant",
    "model",
    "worker",
    "worker_id",
    "attempts",
    "bytes_in",
    "bytes_out",
    "queue_ms",
    "first_byte_ms",
    "total_ms",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "tokens_estimated",
];

fn push(text: &mut String, name: &str, value: &str) {
    write!(text, " {name}={value}").expect("writing to a string does not fail");
}

/// Whether a value can stand without quotes.
fn is_plain(value: &str) -> bool {
    !value.is_empty()
        && value.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '=' | '\\'))
}

/// The value as JSON, whose strings have no control characters: those above ASCII are escaped as well.
fn escaped(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        match c.is_control() {
            true => write!(text, "\\u{:04x}", u32::from(c)),
            false => write!(text, "{c}"),
        }
        .expect("writing to a string does not fail");
    }
    text
}

impl fmt::Display for AccessFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_text_names_every_field_and_no_value_can_end_it() {
        let line = Line {
            time: "2026-01-01T00:00:00.000Z".to_owned(),
            method: "POST".to_owned(),
            path: "/v1/x y=\"1\"\n\u{9b}2J".to_owned(),
            status: 200,
            model: Some(String::new()),
            total_ms: Duration::from_micros(1_234).into(),
            ..Line::default()
        };
        let text = as_text(&line);
        assert_eq!(
            text,
            "2026-01-01T00:00:00.000Z client=\"\" method=POST path=\"/v1/x y=\\\"1\\\"\\n\\u009b2J\" status=200 \
             end=client_left request_id=\"\" model=\"\" attempts=0 bytes_in=0 bytes_out=0 total_ms=1.234"
        );
        let Value::Object(all) = serde_json::to_value(&line).unwrap() else { panic!("an object") };
        let mut names: Vec<&str> =
            all.keys().map(String::as_str).filter(|n| *n != "time").collect();
        let mut fields = FIELDS.to_vec();
        names.sort_unstable();
        fields.sort_unstable();
        assert_eq!(names, fields);
    }

    #[test]
    fn a_long_text_is_shortened() {
        assert_eq!(shortened(&"ä".repeat(MOST_CHARS)), "ä".repeat(MOST_CHARS));
        assert_eq!(shortened(&"ä".repeat(9_999)).chars().count(), MOST_CHARS + 1);
    }
}
