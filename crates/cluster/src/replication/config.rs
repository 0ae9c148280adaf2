//! Settings of replication.

use std::time::Duration;

use crate::state::prefixes;

/// Settings of replication.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Time between two digests, each to a random peer.
    pub digest_interval: Duration,
    /// Least time between two audits of the same peer; each waits by chance for up to as long again.
    pub audit_interval: Duration,
    /// A delta that is not acknowledged, and a pull or a snapshot request that is not answered, is repeated after this
    /// time.
    pub retry: Duration,
    /// Bytes of deltas that may be sent to a peer and not be acknowledged yet.
    pub window_bytes: usize,
    /// Bytes per second of relayed rows and snapshots that one peer is sent.
    pub repair_bytes_per_second: usize,
    /// A retired writer is remembered at least this long.
    pub fence: Duration,
    /// Bounds of the hints about prefixes.
    pub prefixes: prefixes::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            digest_interval: Duration::from_secs(1),
            audit_interval: Duration::from_secs(20),
            retry: Duration::from_secs(1),
            window_bytes: 1 << 20,
            repair_bytes_per_second: 16 << 20,
            fence: Duration::from_secs(48 * 3600),
            prefixes: prefixes::Config::default(),
        }
    }
}
