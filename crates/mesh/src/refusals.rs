//! Refusals that were logged a while ago: a router that is refused tries again and again, and one line is enough.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a refusal is not told again.
const REFUSAL_TOLD: Duration = Duration::from_secs(60);

/// Refusals remembered at most; beyond, they are only counted.
const MAX_REFUSALS: usize = 256;

/// The refusals of the last minute.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    told: Mutex<HashMap<(IpAddr, String), Instant>>,
}

impl Refusals {
    /// Whether this was not told in the last minute.
    #[expect(
        clippy::disallowed_methods,
        reason = "only tasks of the mesh port call it, and they own a clock"
    )]
    pub(super) fn is_news(&self, from: SocketAddr, why: &str) -> bool {
        let now = Instant::now();
        let mut told = self.told.lock();
        told.retain(|_, at| now.duration_since(*at) < REFUSAL_TOLD);
        let key = (from.ip(), why.to_owned());
        if told.contains_key(&key) || told.len() >= MAX_REFUSALS {
            return false;
        }
        told.insert(key, now);
        true
    }
}
