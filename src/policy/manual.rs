//! Sticky sessions with a time to live: whoever served a session's last request serves its next one.
//!
//! Unlike with consistent_hashing a session never moves because a worker came, and a new session goes where there is
//! least to do. The price is memory, so the sessions are bounded in number and in time. A session whose worker can't
//! take this request goes to the least loaded and stays there.

use rand::Rng;

use super::sessions::Sessions;
use super::{Candidate, Config, Decision, Hint, Kind, Pick, Policy, choose};
use crate::ids::WorkerId;
use crate::now::Now;

/// Picks the session's worker.
#[derive(Debug)]
pub(super) struct Manual {
    sessions: Sessions,
}

impl Manual {
    pub(super) fn new(config: &Config) -> Self {
        Self { sessions: Sessions::new(config.max_sessions, config.session_ttl) }
    }
}

impl Policy for Manual {
    fn name(&self) -> &'static str {
        Kind::Manual.name()
    }

    fn pick(
        &self,
        candidates: &[Candidate],
        hint: &Hint<'_>,
        now: Now,
        rng: &mut dyn Rng,
    ) -> Option<Pick> {
        let decision = match hint.session {
            None => Decision::NoKey,
            Some(session) => match self.sessions.worker(session, now) {
                None => Decision::Miss,
                Some(worker) => {
                    if let Some(index) = candidates.iter().position(|c| c.id == worker) {
                        return Some(Pick::new(index, Decision::Sticky));
                    }
                    Decision::Spill
                }
            },
        };
        choose::least_loaded(candidates.iter().enumerate(), rng)
            .map(|index| Pick::new(index, decision))
    }

    fn sent(&self, worker: WorkerId, hint: &Hint<'_>, now: Now) {
        if let Some(session) = hint.session {
            self.sessions.bind(session, worker, now);
        }
    }

    fn forget(&self, worker: WorkerId) {
        self.sessions.forget(worker);
    }
}
