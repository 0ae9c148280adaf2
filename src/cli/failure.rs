//! Flags for failures: timeouts, retries, the breaker, health checks.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;

use crate::cli::values::{
    ErrorStatus, between, error_status, millis, path, positive, seconds, whole, yes_or_no,
};

/// How long each phase of a request may take, and how long connections are kept.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Timeouts")]
pub struct TimeoutArgs {
    /// How long connecting to a worker may take, TLS included, 0.001 to 3600 seconds.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds(0.001, 3600.0))]
    pub connect_timeout_secs: Duration,
    /// How long a worker may take from the request's last byte to the response's head, 0.001 to 86400 seconds.
    ///
    /// A worker sends the head of a response that is not a stream only after prefill and decode, so keep this long.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "600",
        value_parser = seconds(0.001, 86_400.0)
    )]
    pub response_head_timeout_secs: Duration,
    /// How long a response may pause between two chunks, 0.001 to 86400 seconds.
    ///
    /// The time in which the client itself does not read is not counted. A WebSocket is closed when nothing has gone
    /// through it in either direction for so long.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "300",
        value_parser = seconds(0.001, 86_400.0)
    )]
    pub idle_timeout_secs: Duration,
    /// How long one attempt may take in all if its response is not a stream, 0 to 86400 seconds; 0: no limit.
    #[arg(long, value_name = "SECONDS", default_value = "1800", value_parser = seconds(0.0, 86_400.0))]
    pub request_timeout_secs: Duration,
    /// How long one attempt may take in all if its response is a stream, 0 to 604800 seconds; 0: no limit.
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds(0.0, 604_800.0))]
    pub stream_timeout_secs: Duration,
    /// How long a stream may be silent before the router sends comments on it, 0 to 3600 seconds; 0: it sends none.
    ///
    /// For load balancers that cut silent connections while a worker computes a long prompt. A request with "stream":
    /// true to /v1/chat/completions, /v1/completions, /v1/responses or /v1/messages that has no answer after this time is
    /// answered 200 text/event-stream with a comment line, which clients pass over; another one follows each time until
    /// the worker's first byte. From then on a failure is an error event on the stream instead of a status, and the
    /// worker's response headers are not passed on.
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds(0.0, 3600.0))]
    pub stream_heartbeat_secs: Duration,
    /// How long an idle connection to a worker is kept, 0 to 3600 seconds.
    ///
    /// Must be shorter than the keep-alive time of the workers' servers, which is 5 seconds by default in vLLM, SGLang and
    /// llama.cpp. Otherwise a request may be sent on a connection that the worker is closing.
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds(0.0, 3600.0))]
    pub worker_keep_alive_secs: Duration,
    /// The most idle connections that are kept per worker and thread, 0 to 65535.
    #[arg(long, value_name = "N", default_value = "512", value_parser = whole::<usize>(0, 65_535))]
    pub worker_max_idle_connections: usize,
}

/// Which requests are retried, and when.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Retries")]
pub struct RetryArgs {
    /// Attempts after the first one, 0 to 100.
    ///
    /// Each goes to a worker that was not tried yet, as long as there is one. Nothing is retried after a byte of the
    /// response was sent to the client. Whatever the value, a request whose connection was lost before an answer is
    /// sent to at most two workers.
    #[arg(long, value_name = "N", default_value = "3", value_parser = whole::<u32>(0, 100))]
    pub retry_max_retries: u32,
    /// Longest pause before the first retry, 0 to 3600000 milliseconds.
    ///
    /// --retry-jitter-factor sets how much of the pause is random.
    #[arg(long, value_name = "MS", default_value = "50", value_parser = millis(0, 3_600_000))]
    pub retry_initial_backoff_ms: Duration,
    /// Longest pause before any retry, 0 to 3600000 milliseconds.
    ///
    /// Must be at least --retry-initial-backoff-ms.
    #[arg(long, value_name = "MS", default_value = "5000", value_parser = millis(0, 3_600_000))]
    pub retry_max_backoff_ms: Duration,
    /// Factor by which the longest pause grows from retry to retry, 1 to 100.
    #[arg(long, value_name = "FACTOR", default_value = "2", value_parser = between(1.0, 100.0))]
    pub retry_backoff_multiplier: f32,
    /// Share of a pause that is random, 0 to 1.
    ///
    /// With 1 the pause is between zero and the longest, which spreads the retries of many requests best; with 0.2 it is
    /// between 80 % and all of the longest.
    #[arg(long, value_name = "SHARE", default_value = "1", value_parser = between(0.0, 1.0))]
    pub retry_jitter_factor: f32,
    /// Retries as a share of recent requests, 0 to 1.
    ///
    /// Prevents retries from multiplying the load on workers that are failing already.
    #[arg(long, value_name = "SHARE", default_value = "0.2", value_parser = between(0.0, 1.0))]
    pub retry_budget_ratio: f32,
    /// Retries per second that are allowed even if they exceed --retry-budget-ratio, 0 to 100000.
    #[arg(long, value_name = "N", default_value = "10", value_parser = between(0.0, 100_000.0))]
    pub retry_budget_floor: f32,
    /// Never retry: the same as --retry-max-retries 0.
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
    pub disable_retries: bool,
}

/// When failed requests eject a worker, and how it returns.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Circuit breaker")]
pub struct BreakerArgs {
    /// Failed requests within --cb-window-duration-secs that eject a worker, 1 to 1000000.
    ///
    /// Transport errors, timeouts and statuses of 500 and above count. 4xx and --push-back-statuses do not count, nor
    /// do shortages of the router's own resources: descriptors, ports, memory, name resolution.
    #[arg(long, value_name = "N", default_value = "10", value_parser = positive(1_000_000))]
    pub cb_failure_threshold: NonZeroU32,
    /// Successful trial requests, one at a time, that readmit an ejected worker, 1 to 1000000.
    #[arg(long, value_name = "N", default_value = "3", value_parser = positive(1_000_000))]
    pub cb_success_threshold: NonZeroU32,
    /// How long a worker stays ejected before one trial request is sent to it, 0.001 to 86400 seconds.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "60",
        value_parser = seconds(0.001, 86_400.0)
    )]
    pub cb_timeout_duration_secs: Duration,
    /// The length of the window in which failures are counted, 0.001 to 86400 seconds.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "120",
        value_parser = seconds(0.001, 86_400.0)
    )]
    pub cb_window_duration_secs: Duration,
    /// Statuses with which a worker reports that it is overloaded, 400 to 599; none: no status does.
    ///
    /// A list. Such an answer is not a failure: the request is retried at another worker, and other workers are
    /// preferred to this one for the time of its Retry-After (one second without that header, at most
    /// --retry-max-backoff-ms).
    #[arg(
        long,
        value_name = "STATUS",
        num_args = 1..,
        default_values = ["429", "503"],
        value_parser = error_status
    )]
    pub push_back_statuses: Vec<ErrorStatus>,
    /// Never eject a worker because of failed requests.
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
    pub disable_circuit_breaker: bool,
    /// Largest share of a model's workers that breaker and connect errors may eject, 0 to 100 percent.
    ///
    /// Beyond it, the workers with the fewest failures stay in use: a worker that may fail is better than a certain
    /// 503.
    #[arg(long, value_name = "PERCENT", default_value = "50", value_parser = whole::<u8>(0, 100))]
    pub max_ejection_percent: u8,
}

/// When failed probes eject a worker, and how it returns.
#[derive(Debug, Clone, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Health checks")]
pub struct HealthArgs {
    /// Path that a worker answers with 2xx while it can serve.
    #[arg(long, value_name = "PATH", default_value = "/health", value_parser = path)]
    pub health_check_endpoint: String,
    /// Time between two probes of a worker, 0.001 to 86400 seconds.
    ///
    /// The probes of different workers are spread over this time. A connect error of a request counts at once, so this
    /// need not be short.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "10",
        value_parser = seconds(0.001, 86_400.0)
    )]
    pub health_check_interval_secs: Duration,
    /// How long a probe may take before it counts as failed, 0.001 to 3600 seconds.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds(0.001, 3600.0))]
    pub health_check_timeout_secs: Duration,
    /// Failed probes in a row that eject a worker, 1 to 1000.
    #[arg(long, value_name = "N", default_value = "3", value_parser = positive(1000))]
    pub health_failure_threshold: NonZeroU32,
    /// Successful probes in a row that readmit it, 1 to 1000.
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive(1000))]
    pub health_success_threshold: NonZeroU32,
    /// Don't probe: every worker counts as healthy.
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
    pub disable_health_check: bool,
}
