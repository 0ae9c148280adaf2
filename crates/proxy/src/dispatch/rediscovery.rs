//! Waiting until the workers' models have been read again, because none is known to serve the model of a request.

use std::time::Duration;

use smg_routing::fleet::{Fleet, Round, ServedBy};
use smg_runtime::clock::Clock;
use smg_types::now::Now;

/// Longest wait for the reads. A worker that answers later serves the next request.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// Time between two looks at the progress of the reads.
const CHECK_EVERY: Duration = Duration::from_millis(20);

/// One request's wait. It is over at once if the models were read too recently.
#[derive(Debug)]
pub(super) struct Rediscovery {
    round: Option<Round>,
    until: Duration,
}

impl Rediscovery {
    /// Asks for the models to be read.
    pub(super) fn request(fleet: &Fleet, now: Now) -> Self {
        Self { round: fleet.request_rediscovery(now), until: now.mono + MAX_WAIT }
    }

    /// Whether the reads have ended, or have taken too long.
    pub(super) fn is_over(&self, fleet: &Fleet, now: Now) -> bool {
        self.round.is_none_or(|round| fleet.is_rediscovered(round) || self.until <= now.mono)
    }
}

/// Waits until a worker is known to serve `model`, or the workers' models have been read again, for 2 s at most. Returns at
/// once if a worker is known to serve it, or if the models were read less than 2 s ago.
pub async fn discover(fleet: &Fleet, clock: Clock, model: &str) {
    let mut rediscovery = None;
    loop {
        let now = clock.now();
        if !matches!(fleet.load().served_by(Some(model)), ServedBy::UnknownModel) {
            return;
        }
        let reading = rediscovery.get_or_insert_with(|| Rediscovery::request(fleet, now));
        if reading.is_over(fleet, now) {
            return;
        }
        tokio::time::sleep(CHECK_EVERY).await;
    }
}
