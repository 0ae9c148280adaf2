//! `smg mesh`: shows the cluster on a terminal. It asks a router over its HTTP routes.
//!
//! It holds no state and decides nothing; `diff` only compares the answers of the routers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use http_body_util::BodyExt as _;
use serde_json::Value;
use smg_proxy::upstream::{self, Client, Outgoing};
use smg_runtime::clock::Clock;
use smg_runtime::dial::Dialer;
use smg_runtime::tls::{self, Live};
use smg_types::spec::{Secret, WorkerUrl};

/// How long a router may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest answer that is read, in bytes. The answer of a full cluster is far smaller.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// The subcommands of `smg mesh`.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Show the routers of the cluster and the settings that they share.
    Status(Target),
    /// Show the events of the cluster as they happen, until Ctrl-C.
    Events(Target),
    /// Ask every router for its state, and show where they differ; exit status 1 if they do.
    Diff(Target),
}

/// The router that is asked, and how.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// A router of the cluster.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    pub router: WorkerUrl,
    /// Key for the router's admin routes, if it needs one.
    #[arg(long, value_name = "KEY", hide_env_values = true, value_parser = key)]
    pub admin_api_key: Option<Secret>,
    /// Print the router's answer as JSON.
    #[arg(long)]
    pub json: bool,
}

fn key(text: &str) -> Result<Secret, String> {
    let is_key = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    is_key.then(|| Secret::new(text)).ok_or_else(|| "is not visible ASCII".to_owned())
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The TLS configuration can't be used.
    #[error(transparent)]
    Tls(#[from] tls::TlsErrors),
    /// The request could not be sent, or got no answer.
    #[error("{router}: no answer: {}", reason(source))]
    Send {
        /// The router's URL.
        router: String,
        /// The cause of the failure.
        source: upstream::SendError,
    },
    /// The router answered with another status than success.
    #[error("{router}: answered {status}: {text}")]
    Refused {
        /// The router's URL.
        router: String,
        /// The status code of the answer.
        status: u16,
        /// The first 500 characters of the body.
        text: String,
    },
    /// The answer is not JSON.
    #[error("{router}: the answer is not JSON: {source}")]
    Answer {
        /// The router's URL.
        router: String,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// The stream of events ended, although the router sends it without end.
    #[error("{router}: the stream of events ended")]
    Ended {
        /// The router's URL.
        router: String,
    },
    /// Two routers hold different state, or one could not be asked.
    #[error("the routers differ, or one of them could not be asked")]
    Differ,
    /// The output could not be written.
    #[error("the answer can't be printed: {0}")]
    Output(#[from] io::Error),
}

/// The cause of a send error. The error's own text would call the router a worker.
pub(crate) fn reason(error: &upstream::SendError) -> String {
    std::error::Error::source(error).map_or_else(|| error.name().to_owned(), ToString::to_string)
}

/// Runs a command.
///
/// # Errors
/// If a router can't be asked, or `diff` finds a difference.
pub async fn run(command: Command, out: &mut (dyn Write + Send)) -> Result<(), ConsoleError> {
    match show(command, out).await {
        // A reader that closes the pipe (`smg mesh events | head`) is no failure.
        Err(ConsoleError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        shown => shown,
    }
}

async fn show(command: Command, out: &mut (dyn Write + Send)) -> Result<(), ConsoleError> {
    match command {
        Command::Status(target) => {
            let asked = Asker::of(&target)?.ask(&target.router, "/ha/status").await?;
            let text = if target.json { pretty(&asked) } else { status(&asked) };
            out.write_all(text.as_bytes())?;
            Ok(())
        }
        Command::Diff(target) => diff(&target, out).await,
        Command::Events(target) => events(&target, out).await,
    }
}

/// Sends requests to routers.
pub(crate) struct Asker {
    client: Client,
    key: Option<Secret>,
}

impl Asker {
    /// Asks routers whose certificates come from the authorities of `tls`, and shows them `key`.
    pub(crate) fn new(tls: tls::ClientConfig, key: Option<Secret>) -> Result<Self, ConsoleError> {
        let clock = Clock::start();
        let config = upstream::Config {
            connect_timeout: ANSWER_TIMEOUT,
            tls,
            ..upstream::Config::default()
        };
        let tls = std::sync::Arc::new(Live::read(config.tls.clone(), clock.now())?);
        Ok(Self { client: Client::new(config, Some(tls), Dialer::simple(clock), clock), key })
    }

    fn of(target: &Target) -> Result<Self, ConsoleError> {
        Self::new(tls::ClientConfig::default(), target.admin_api_key.clone())
    }

    /// The JSON that a router answers under `path`.
    pub(crate) async fn ask(&self, router: &WorkerUrl, path: &str) -> Result<Value, ConsoleError> {
        let name = || router.to_string();
        let (status, body) = self
            .client
            .fetch(router, Method::GET, path, self.key.as_ref(), ANSWER_TIMEOUT, MAX_ANSWER_BYTES)
            .await
            .map_err(|source| ConsoleError::Send { router: name(), source })?;
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body).chars().take(500).collect();
            return Err(ConsoleError::Refused { router: name(), status: status.as_u16(), text });
        }
        serde_json::from_slice(&body)
            .map_err(|source| ConsoleError::Answer { router: name(), source })
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// Lays out rows in columns that are as wide as their widest cell.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let widths: Vec<_> = (0..columns)
        .map(|at| rows.iter().filter_map(|row| row.get(at)).map(String::len).max().unwrap_or(0))
        .collect();
    let mut shown = String::new();
    for row in rows {
        let line = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect::<Vec<_>>()
            .join("  ");
        shown.push_str(line.trim_end());
        shown.push('\n');
    }
    shown
}

fn header(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn status(status: &Value) -> String {
    let mut shown = String::new();
    // Writing to a string does not fail.
    let _infallible = writeln!(
        shown,
        "{}, as {} sees it: {} routers, {} of them taking part\n",
        status["cluster"]
            .as_str()
            .map_or_else(|| "one router".to_owned(), |cluster| format!("cluster {cluster}")),
        text(&status["node_name"]),
        text(&status["node_count"]),
        text(&status["alive_count"]),
    )
    .is_err();
    let mut rows = vec![header(&["ROUTER", "STATUS", "ADDRESS", "FOR"])];
    for node in status["nodes"].as_array().into_iter().flatten() {
        let seconds = Duration::from_secs(node["status_seconds"].as_u64().unwrap_or_default());
        rows.push(vec![
            text(&node["name"]),
            text(&node["status"]),
            text(&node["address"]),
            humantime::format_duration(seconds).to_string(),
        ]);
    }
    shown.push_str(&table(&rows));
    shown.push('\n');
    let mut rows = vec![header(&["STORE", "ENTRIES", "BYTES", "DIGEST", "LAST SYNC"])];
    for (name, store) in status["stores"].as_object().into_iter().flatten() {
        let cells = ["entry_count", "bytes", "digest", "last_sync"].map(|key| text(&store[key]));
        rows.push(std::iter::once(name.clone()).chain(cells).collect());
    }
    shown.push_str(&table(&rows));
    shown
}

async fn diff(target: &Target, out: &mut (dyn Write + Send)) -> Result<(), ConsoleError> {
    let asker = Asker::of(target)?;
    let list = asker.ask(&target.router, "/ha/routers").await?;
    let mut held: BTreeMap<String, Result<Value, String>> = BTreeMap::new();
    for router in list["routers"].as_array().into_iter().flatten() {
        let name = text(&router["name"]);
        if !matches!(router["status"].as_str(), Some("ALIVE" | "SUSPECTED")) {
            held.insert(name, Err(text(&router["status"])));
            continue;
        }
        let answer = match router["url"].as_str().map(str::parse::<WorkerUrl>) {
            Some(Ok(url)) => asker.ask(&url, "/ha/status").await.map_err(|e| e.to_string()),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("its address for clients is unknown".to_owned()),
        };
        held.insert(name, answer);
    }
    let (shown, differ) = compare(&held);
    if target.json {
        let all: BTreeMap<_, _> = held
            .iter()
            .map(|(name, answer)| {
                let shown = match answer {
                    Ok(status) => status["stores"].clone(),
                    Err(error) => serde_json::json!({ "error": error }),
                };
                (name.clone(), shown)
            })
            .collect();
        writeln!(out, "{:#}", serde_json::json!({ "equal": !differ, "routers": all }))?;
    } else {
        out.write_all(shown.as_bytes())?;
    }
    if differ { Err(ConsoleError::Differ) } else { Ok(()) }
}

/// A table of digests with a column per router, and whether any two differ or a router could not be asked.
fn compare(held: &BTreeMap<String, Result<Value, String>>) -> (String, bool) {
    let mut differ = false;
    let mut notes = String::new();
    let mut stores: BTreeSet<&str> = BTreeSet::new();
    for (name, answer) in held {
        match answer {
            Ok(status) => {
                stores
                    .extend(status["stores"].as_object().into_iter().flatten().map(|(s, _)| &**s));
            }
            Err(error) => {
                differ = true;
                // Writing to a string does not fail.
                let _infallible = writeln!(notes, "{name}: {error}").is_err();
            }
        }
    }
    let answered = || held.iter().filter_map(|(name, answer)| Some((name, answer.as_ref().ok()?)));
    let mut rows = vec![
        std::iter::once("STORE".to_owned())
            .chain(answered().map(|(name, _)| name.clone()))
            .chain([String::new()])
            .collect::<Vec<_>>(),
    ];
    for store in stores {
        let digests: Vec<_> =
            answered().map(|(_, status)| text(&status["stores"][store]["digest"])).collect();
        let equal = digests.windows(2).all(|pair| pair[0] == pair[1]);
        differ |= !equal;
        let verdict = if equal { "equal" } else { "DIFFERENT" }.to_owned();
        rows.push(std::iter::once(store.to_owned()).chain(digests).chain([verdict]).collect());
    }
    (table(&rows) + &notes, differ)
}

async fn events(target: &Target, out: &mut (dyn Write + Send)) -> Result<(), ConsoleError> {
    let asker = Asker::of(target)?;
    let name = || target.router.to_string();
    let outgoing = Outgoing {
        method: &Method::GET,
        path_and_query: &PathAndQuery::from_static("/ha/events"),
        headers: &HeaderMap::new(),
        authorization: asker.key.as_ref().and_then(upstream::bearer),
        body: bytes::Bytes::new(),
        stream: true,
        websocket: false,
    };
    let response = asker
        .client
        .send(&target.router, &outgoing)
        .await
        .map_err(|source| ConsoleError::Send { router: name(), source })?;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let mut waiting = String::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        waiting.push_str(&String::from_utf8_lossy(&data));
        if status != 200 {
            continue;
        }
        while let Some((event, rest)) = waiting.split_once("\n\n") {
            if let Some(line) = one_line(event) {
                writeln!(out, "{line}")?;
                out.flush()?;
            }
            waiting = rest.to_owned();
        }
    }
    if status == 200 {
        Err(ConsoleError::Ended { router: name() })
    } else {
        Err(ConsoleError::Refused { router: name(), status, text: waiting })
    }
}

/// A server-sent event as one line; `None` for a comment, which only keeps the connection open.
fn one_line(event: &str) -> Option<String> {
    let field =
        |name: &str| event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    Some(format!("{} {}", field("event")?, field("data")?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn holds(digest: &str) -> Result<Value, String> {
        Ok(json!({ "stores": { "workers": { "digest": digest } } }))
    }

    #[test]
    fn a_store_that_differs_is_marked() {
        let equal = BTreeMap::from([("a".to_owned(), holds("1")), ("b".to_owned(), holds("1"))]);
        assert_eq!(compare(&equal), ("STORE    a  b\nworkers  1  1  equal\n".to_owned(), false));
        let other = BTreeMap::from([("a".to_owned(), holds("1")), ("b".to_owned(), holds("2"))]);
        assert!(compare(&other).0.contains("DIFFERENT") && compare(&other).1);
        let gone =
            BTreeMap::from([("a".to_owned(), holds("1")), ("b".to_owned(), Err("DOWN".into()))]);
        assert!(compare(&gone).0.contains("b: DOWN") && compare(&gone).1);
    }

    #[test]
    fn an_event_becomes_a_line_and_a_comment_is_skipped() {
        let event = "event: member\nid: 3\ndata: {\"name\":\"node2\"}";
        assert_eq!(one_line(event), Some("member {\"name\":\"node2\"}".to_owned()));
        assert_eq!(one_line(": still here"), None);
    }
}
