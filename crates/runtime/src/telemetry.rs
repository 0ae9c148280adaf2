//! The log of the process, and the metric that shows the build.
//!
//! Logs go to standard error, as text or as JSON; standard output is for data. Each module decides what it logs. This
//! module decides the format of a line (`lines`), ensures that logging never blocks a caller (`sink`), and logs panics.
//! The filter can be changed while the process runs.

mod line_log;
mod lines;
mod sink;

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd as _;
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{IntGaugeVec, Opts, Registry};
use tracing::{Subscriber, error};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

pub use line_log::LineLog;

use lines::{JsonLine, TextFields};
use sink::{Announce, Sink};

/// How long the end of the process may wait until queued lines are written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How the process logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The events that are logged, in the syntax of `RUST_LOG`: a level, or levels for modules.
    pub filter: String,
    /// Whether each line is a JSON object; otherwise lines are text.
    pub json: bool,
    /// Whether text on a terminal has colours. Files and JSON never have.
    pub colour: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { filter: "info".to_owned(), json: false, colour: true }
    }
}

/// Why the log could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be parsed.
    #[error("log filter {filter:?} is not understood: {why}")]
    Filter {
        /// The text of the filter.
        filter: String,
        /// The parser's error.
        why: String,
    },
    /// The log was set up before.
    #[error("logs are set up already")]
    Twice,
    /// The system refuses to start the writing thread.
    #[error("the thread that writes the log can't be started: {0}")]
    Thread(#[from] io::Error),
}

/// Checks whether a filter can be parsed, before anything is logged.
///
/// # Errors
///
/// [`TelemetryError::Filter`] with the parser's error.
pub fn check_filter(filter: &str) -> Result<(), TelemetryError> {
    parse(filter).map(drop)
}

/// The log of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Log {
    sink: Sink,
    filter: reload::Handle<EnvFilter, tracing_subscriber::Registry>,
    /// The text of the filter that is in use.
    text: Arc<Mutex<String>>,
}

/// Waits, when it is dropped, until queued lines are written, for at most 1 s. Hold it until the end of
/// `main`.
#[derive(Debug)]
#[must_use = "dropping it waits for the log"]
pub struct LastLines(Sink);

impl Drop for LastLines {
    fn drop(&mut self) {
        self.0.flush(LAST_LINES);
    }
}

/// Sends all logs of this process, panics included, to standard error.
///
/// # Errors
///
/// If the filter cannot be parsed, the log was set up before, or the writing thread cannot be started.
pub fn init(config: &Config) -> Result<(Log, LastLines), TelemetryError> {
    let colour = config.colour && io::stderr().is_terminal();
    // A file object of our own, so that no other writer to standard error waits for a lock that we hold.
    let output: Box<dyn Write + Send> = match io::stderr().as_fd().try_clone_to_owned() {
        Ok(own) => Box::new(File::from(own)),
        Err(_no_descriptors) => Box::new(io::stderr()),
    };
    let help = "Lines of the log that were not written to standard error, by reason: queue_full (the reader is \
                too slow), closed (the reader is gone), no_space, error.";
    let sink = Sink::start(output, "smg_log_dropped_total", help, Announce::Here(announce_lost))?;
    let (subscriber, filter) = assemble(&Config { colour, ..config.clone() }, sink.clone())?;
    subscriber.try_init().map_err(|_| TelemetryError::Twice)?;
    std::panic::set_hook(Box::new(log_panic));
    let text = Arc::new(Mutex::new(config.filter.clone()));
    let last = LastLines(sink.clone());
    Ok((Log { sink, filter, text }, last))
}

impl Log {
    /// Registers `smg_log_dropped_total`.
    ///
    /// # Errors
    ///
    /// When it is registered already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        self.sink.register(registry)
    }

    /// Replaces the filter.
    ///
    /// # Errors
    ///
    /// [`TelemetryError::Filter`]; then the previous filter stays in use.
    pub fn set_filter(&self, filter: &str) -> Result<(), TelemetryError> {
        let parsed = parse(filter)?;
        let why = |error: reload::Error| TelemetryError::Filter {
            filter: filter.to_owned(),
            why: error.to_string(),
        };
        self.filter.reload(parsed).map_err(why)?;
        filter.clone_into(&mut self.text.lock());
        Ok(())
    }

    /// The text of the filter that is in use.
    #[must_use]
    pub fn filter(&self) -> String {
        self.text.lock().clone()
    }
}

/// Logs how many lines were lost, at the level that filters let through most often.
fn announce_lost(lines: u64) {
    error!(lines, "lines of the log were lost: standard error did not take them");
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let place = panic.location().map(ToString::to_string);
    // Captured only if RUST_BACKTRACE is set.
    let backtrace = Backtrace::capture();
    let backtrace =
        (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    error!(
        panic = message(panic.payload()),
        thread = thread.name(),
        place,
        backtrace,
        "a thread panicked: this is a bug of smg"
    );
}

fn message(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or_default()
}

type Assembled = Box<dyn Subscriber + Send + Sync>;
type Filter = reload::Handle<EnvFilter, tracing_subscriber::Registry>;

/// A subscriber that writes events as lines to `writer`, and the handle that changes its filter.
fn assemble<W>(config: &Config, writer: W) -> Result<(Assembled, Filter), TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse(&config.filter)?);
    // An event that can't be written must not be reported on standard error: that would fail, too, and panic.
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    let layer = if config.json {
        let layer = layer.json().flatten_event(true).with_current_span(true).with_span_list(false);
        layer.map_event_format(|inner| JsonLine { inner }).boxed()
    } else {
        layer.with_ansi(config.colour).fmt_fields(TextFields).boxed()
    };
    Ok((Box::new(tracing_subscriber::registry().with(filter).with(layer)), handle))
}

/// The crates whose modules a filter may name as modules of `smg`, as SMG's own documentation does.
const CRATES: [(&str, &[&str]); 7] = [
    ("smg_types", &["ids", "now", "spec"]),
    ("smg_cluster", &["cluster", "crdt"]),
    ("smg_routing", &["policy", "prefix", "fleet", "limit"]),
    ("smg_runtime", &["clock", "tasks", "tls", "telemetry"]),
    ("smg_mesh", &["mesh"]),
    ("smg_proxy", &["upstream", "dispatch", "prober"]),
    ("smg_mock", &["mock"]),
];

/// The filter with each `smg::MODULE` replaced by the target under which that module logs.
fn by_crate(filter: &str) -> String {
    let directives = filter.split(',').map(|directive| {
        let Some(rest) = directive.trim_start().strip_prefix("smg::") else {
            return directive.to_owned();
        };
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (module, after) = rest.split_at(end);
        match CRATES.iter().find(|(_, modules)| modules.contains(&module)) {
            // These modules have become whole crates.
            Some((name, _)) if ["cluster", "mesh", "mock"].contains(&module) => {
                format!("{name}{after}")
            }
            Some((name, _)) => format!("{name}::{module}{after}"),
            None => directive.to_owned(),
        }
    });
    directives.collect::<Vec<_>>().join(",")
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(by_crate(filter))
        .map_err(|e| TelemetryError::Filter { filter: filter.to_owned(), why: e.to_string() })
}

/// The version of this build.
#[must_use]
pub const fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// The revision that this build was made from, if the build set `SMG_REVISION`; otherwise `unknown`.
#[must_use]
pub fn revision() -> &'static str {
    option_env!("SMG_REVISION").filter(|revision| !revision.is_empty()).unwrap_or("unknown")
}

/// Registers `smg_build_info`, which is always 1 and whose labels show the version and revision.
///
/// # Errors
///
/// When it is registered already.
pub fn register_build_info(registry: &Registry) -> Result<(), prometheus::Error> {
    let build_info = IntGaugeVec::new(
        Opts::new("smg_build_info", "Version and revision of this build; always 1."),
        &["version", "revision"],
    )?;
    build_info.with_label_values(&[version(), revision()]).set(1);
    registry.register(Box::new(build_info))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines written for a warning and two debug events, the last one with control characters in a field.
    fn logged(config: &Config) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let (subscriber, _) = assemble(config, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("task", task = "prober");
            span.in_scope(|| tracing::warn!(worker = "w-1", "probe failed"));
            tracing::debug!("one request");
            tracing::debug!(model = %"a\nERROR b\u{1b}[2J\u{9b}c", "{}", "set\r\n");
        });
        let bytes = memory.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_lines_show_the_fields() {
        let text = logged(&Config { colour: false, ..Config::default() });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(" WARN ") && text.contains("probe failed worker=\"w-1\""), "{text}");
        assert!(!text.contains('\u{1b}'), "colours are off: {text}");
        assert!(logged(&Config::default()).contains('\u{1b}'));
    }

    #[test]
    fn json_lines_carry_the_fields() {
        let config = Config { json: true, filter: "debug".to_owned(), colour: true };
        let text = logged(&config);
        assert_eq!(text.lines().count(), 3, "{text}");
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "probe failed");
        assert_eq!(line["worker"], "w-1");
        assert_eq!(line["span"], serde_json::json!({ "name": "task", "task": "prober" }));
        assert!(line["spans"].is_null(), "the list of spans is off: {line}");
    }

    #[test]
    fn a_field_can_neither_end_its_line_nor_control_the_terminal() {
        let text = logged(&Config { filter: "debug".to_owned(), json: false, colour: false });
        assert_eq!(text.lines().count(), 3, "{text:?}");
        let last = text.lines().last().unwrap();
        assert!(last.ends_with(": set\\r\\n model=a\\nERROR b\\u001b[2J\\u009bc"), "{last:?}");
        let json = logged(&Config { filter: "debug".to_owned(), json: true, colour: false });
        let line: serde_json::Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
        assert_eq!(line["model"], "a\nERROR b\u{1b}[2J\u{9b}c");
        for text in [text, json] {
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        }
    }

    #[test]
    fn a_filter_changes_while_it_is_used() {
        let memory = Memory::default();
        let writer = memory.clone();
        let (subscriber, filter) = assemble(&Config::default(), move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("before");
            filter.reload(parse("debug").unwrap()).unwrap();
            tracing::debug!("after");
        });
        let text = String::from_utf8(memory.0.lock().clone()).unwrap();
        assert!(!text.contains("before") && text.contains("after"), "{text}");
    }

    #[test]
    fn a_filter_may_name_modules_of_smg_and_of_its_crates() {
        let config = |filter: &str| Config { filter: filter.to_owned(), ..Config::default() };
        assert_eq!(logged(&config("smg=error")), "");
        assert_eq!(logged(&config("error,smg_runtime::telemetry=debug")).lines().count(), 3);
        assert_eq!(logged(&config("error,smg::telemetry=debug")).lines().count(), 3);
        for (typed, meant) in [
            ("smg::mesh=debug", "smg_mesh=debug"),
            (
                "info, smg::mesh::link=trace,smg::dispatch",
                "info,smg_mesh::link=trace,smg_proxy::dispatch",
            ),
            ("smg::http=debug,smg=info", "smg::http=debug,smg=info"),
        ] {
            assert_eq!(by_crate(typed), meant);
        }
        let error = check_filter("info,=[").unwrap_err().to_string();
        assert!(error.contains("info,=["), "{error}");
    }

    #[test]
    fn build_info_shows_the_version_and_registers_once() {
        let registry = Registry::new();
        register_build_info(&registry).unwrap();
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains("smg_build_info{"), "{text}");
        assert!(text.contains(&format!("version=\"{}\"}} 1", version())), "{text}");
        assert!(register_build_info(&registry).is_err(), "twice");
    }
}
