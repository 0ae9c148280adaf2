//! Timeouts of an attempt, and how many connections are kept.

use std::time::Duration;

use smg_runtime::tls;

/// How long each phase of an attempt may take, and how many connections are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// TCP and TLS handshake.
    pub connect_timeout: Duration,
    /// From the request's last byte to the response's head.
    pub head_timeout: Duration,
    /// Between two chunks of a response.
    pub idle_timeout: Duration,
    /// From the first byte sent to the last received, for responses that are not streams; `None`: no limit.
    pub total_timeout: Option<Duration>,
    /// The same for streams; `None`: no limit.
    pub stream_timeout: Option<Duration>,
    /// Idle connections that are kept per worker and data-path thread.
    pub max_idle: usize,
    /// How long an idle connection is kept.
    pub keep_alive: Duration,
    /// TLS towards workers.
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
            keep_alive: Duration::from_secs(50),
            tls: tls::ClientConfig::default(),
        }
    }
}
