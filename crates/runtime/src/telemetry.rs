//! Logs and the metric that says what runs.
//!
//! Logs go to standard error, for people or as JSON; standard output is for data. What is logged where is the business
//! of the modules; here is only where lines end up.

use std::io::{self, IsTerminal};

use prometheus::{IntGaugeVec, Opts, Registry};
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How the process logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What is logged, in the language of `RUST_LOG`: a level, or levels for modules.
    pub filter: String,
    /// One JSON object per line; otherwise lines for people.
    pub json: bool,
    /// Colours on a terminal; never in a file, never in JSON.
    pub colour: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { filter: "info".to_owned(), json: false, colour: true }
    }
}

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A filter that says nothing.
    #[error("log filter {filter:?} is not understood: {why}")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody set up logs before.
    #[error("logs are set up already")]
    Twice,
}

/// Says whether a filter can be used, before anything is logged.
///
/// # Errors
///
/// [`TelemetryError::Filter`] with what is wrong.
pub fn check_filter(filter: &str) -> Result<(), TelemetryError> {
    parse(filter).map(drop)
}

/// Sends all logs of this process to standard error.
///
/// # Errors
///
/// A filter that is not understood, or a second call.
pub fn init(config: &Config) -> Result<(), TelemetryError> {
    let colour = config.colour && io::stderr().is_terminal();
    let subscriber = subscriber(&Config { colour, ..config.clone() }, io::stderr)?;
    tracing_subscriber::util::SubscriberInitExt::try_init(subscriber)
        .map_err(|_| TelemetryError::Twice)
}

/// What turns events into lines on `writer`.
///
/// # Errors
///
/// A filter that is not understood.
pub fn subscriber<W>(
    config: &Config,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines =
        tracing_subscriber::fmt().with_env_filter(parse(&config.filter)?).with_writer(writer);
    Ok(if config.json {
        Box::new(lines.json().flatten_event(true).with_current_span(true).finish())
    } else {
        Box::new(lines.with_ansi(config.colour).finish())
    })
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|e| TelemetryError::Filter { filter: filter.to_owned(), why: e.to_string() })
}

/// The version of this build.
#[must_use]
pub const fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// The revision that this build was made from, if whoever built it said so in `SMG_REVISION`.
#[must_use]
pub fn revision() -> &'static str {
    option_env!("SMG_REVISION").filter(|revision| !revision.is_empty()).unwrap_or("unknown")
}

/// Registers `smg_build_info`, always 1, whose labels say what runs.
///
/// # Errors
///
/// When it is registered already.
pub fn register_build_info(registry: &Registry) -> Result<(), prometheus::Error> {
    let build_info = IntGaugeVec::new(
        Opts::new("smg_build_info", "What runs: always 1."),
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

    /// What is written when a warning and a debug line are logged.
    fn logged(config: &Config) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let subscriber = subscriber(config, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("task", name = "prober");
            span.in_scope(|| tracing::warn!(worker = "w-1", "probe failed"));
            tracing::debug!("one request");
        });
        let bytes = memory.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn people_read_lines_with_fields() {
        let text = logged(&Config { colour: false, ..Config::default() });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(" WARN ") && text.contains("probe failed worker=\"w-1\""), "{text}");
        assert!(!text.contains('\u{1b}'), "no colours were asked for: {text}");
        assert!(logged(&Config::default()).contains('\u{1b}'));
    }

    #[test]
    fn machines_read_json() {
        let config = Config { json: true, filter: "debug".to_owned(), colour: true };
        let text = logged(&config);
        assert_eq!(text.lines().count(), 2, "{text}");
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "probe failed");
        assert_eq!(line["worker"], "w-1");
        assert_eq!(line["span"]["name"], "task");
    }

    #[test]
    fn a_filter_names_modules() {
        let config = |filter: &str| Config { filter: filter.to_owned(), ..Config::default() };
        assert_eq!(logged(&config("smg=error")), "");
        assert_eq!(logged(&config("error,smg_runtime::telemetry=debug")).lines().count(), 2);
        let error = check_filter("info,=[").unwrap_err().to_string();
        assert!(error.contains("info,=["), "{error}");
    }

    #[test]
    fn the_build_is_a_metric() {
        let registry = Registry::new();
        register_build_info(&registry).unwrap();
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains("smg_build_info{"), "{text}");
        assert!(text.contains(&format!("version=\"{}\"}} 1", version())), "{text}");
        assert!(register_build_info(&registry).is_err(), "twice");
    }
}
