//! Flags for logs and metrics.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::values::{address, whole, yes_or_no};

/// The least severe level that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Failures that a human must look at
    #[value(alias = "critical")]
    Error,
    /// Failures that the router has handled itself
    #[value(alias = "warning")]
    Warn,
    /// Changes of the router, its workers and the cluster
    Info,
    /// Every request
    Debug,
}

/// The format of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AccessLogFormat {
    /// No access log
    Off,
    /// `name=value` pairs
    Text,
    /// One JSON object per line
    Json,
}

/// Logs and metrics.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Observability")]
pub struct ObserveArgs {
    /// The least severe level that is logged, to standard error.
    ///
    /// The variable RUST_LOG overrides it and can name modules: RUST_LOG=info,smg_proxy::dispatch=debug. A level from
    /// --config is read again on SIGHUP.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevel,
    /// Log one JSON object per line.
    #[arg(
        long,
        value_name = "YES",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        value_parser = yes_or_no,
        action = clap::ArgAction::Set
    )]
    pub log_json: bool,
    /// Log each request when it has ended, in one line.
    ///
    /// A line has the time, client, method, path, status, request id, tenant, model, worker, attempts, bytes, times and tokens;
    /// never a header, query, key or body. docs/troubleshooting.md lists the fields.
    #[arg(long, value_name = "FORMAT", default_value = "off")]
    pub access_log: AccessLogFormat,
    /// File that --access-log appends to.
    ///
    /// It is opened again on SIGHUP, so that it can be rotated. Default: standard output.
    #[arg(long, value_name = "FILE")]
    pub access_log_file: Option<PathBuf>,
    /// Address of the metrics port.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0", value_parser = address)]
    pub prometheus_host: IpAddr,
    /// Additional port for /metrics, 0 to 65535; 0: none.
    ///
    /// If the port is in use already, that is an error if the port was set explicitly, and a warning if it is the
    /// default.
    #[arg(
        long,
        value_name = "PORT",
        default_value = "29000",
        value_parser = whole::<u16>(0, 65_535)
    )]
    pub prometheus_port: u16,
    /// Ask workers for the token usage of every stream.
    ///
    /// A stream of /v1/chat/completions or /v1/completions has usage only if its request asks for it with
    /// stream_options.include_usage. With this flag the router asks where the client does not, and removes the usage
    /// from what the client gets. Without it, smg_tokens_total has estimates for those streams, unless a rule limits tokens:
    /// then the router asks for the usage of the streams that the rule concerns.
    #[arg(
        long,
        value_name = "YES",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        value_parser = yes_or_no,
        action = clap::ArgAction::Set
    )]
    pub meter_streams: bool,
}
