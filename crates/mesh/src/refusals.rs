//! Remembers which refusals were logged: a refused router tries again repeatedly, and one line per minute is enough.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The time after which an equal refusal is logged again.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The most refusals that are remembered. Beyond that number they are only counted.
const MAX_REFUSALS: usize = 256;

/// The refusals that were logged within [`LOG_INTERVAL`].
#[derive(Debug, Default)]
pub(super) struct Refusals {
    logged: Mutex<HashMap<(IpAddr, String), Instant>>,
}

impl Refusals {
    /// Whether the refusal must be logged, because an equal one was not logged within [`LOG_INTERVAL`].
    #[expect(
        clippy::disallowed_methods,
        reason = "only tasks of the mesh port call it, and they own a clock"
    )]
    pub(super) fn must_log(&self, from: SocketAddr, why: &str) -> bool {
        let now = Instant::now();
        let mut logged = self.logged.lock();
        logged.retain(|_, at| now.duration_since(*at) < LOG_INTERVAL);
        let key = (from.ip(), why.to_owned());
        if logged.contains_key(&key) || logged.len() >= MAX_REFUSALS {
            return false;
        }
        logged.insert(key, now);
        true
    }
}
