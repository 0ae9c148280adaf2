//! The timeouts of an attempt, and the limits of idle connections.

use std::time::Duration;

use smg_runtime::tls;

/// The timeouts of each phase of an attempt, and the limits of idle connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The most time for the TCP and TLS handshakes.
    pub connect_timeout: Duration,
    /// The most time from the request's last byte to the response's head.
    pub head_timeout: Duration,
    /// The most time between two chunks of a response.
    pub idle_timeout: Duration,
    /// The most time from the first byte sent to the last received, for responses that are not streams; `None` means no
    /// limit.
    pub total_timeout: Option<Duration>,
    /// The most time from the first byte sent to the last received, for streams; `None` means no limit.
    pub stream_timeout: Option<Duration>,
    /// The most idle connections that are kept per worker and data-path thread.
    pub max_idle: usize,
    /// How long an idle connection is kept.
    pub keep_alive: Duration,
    /// The TLS configuration for connections to workers.
    pub tls: tls::ClientConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(600),
            idle_timeout: Duration::from_secs(300),
            total_timeout: Some(Duration::from_secs(1800)),
            stream_timeout: None,
            max_idle: 512,
            keep_alive: Duration::from_secs(3),
            tls: tls::ClientConfig::default(),
        }
    }
}
