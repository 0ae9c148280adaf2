//! Sticky sessions with a time to live: whoever served a session's last request serves its next one.
//!
//! Unlike with consistent_hashing a session never moves because a worker came, and a new session goes where there is
//! least to do. The price is memory, so the sessions are bounded in number and in time. A session whose worker can't
//! take this request goes to the least loaded and stays there. Routers of a cluster tell each other; until that is heard,
//! they choose a new session's worker by its key, so that two of them that meet it at once choose the same.

use std::sync::Arc;

use rand::Rng;
use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::memory::Memory;
use super::sessions::Sessions;
use super::{Candidate, Config, Decision, Hint, Kind, Pick, Policy, choose, rendezvous};

/// Requests by which a new session's own worker may exceed the least loaded one: a session lasts longer than a burst.
const SLACK: u32 = 8;

/// Picks the session's worker.
#[derive(Debug)]
pub(super) struct Manual {
    memory: Arc<Memory>,
    agree_across_routers: bool,
}

impl Manual {
    pub(super) fn new(config: &Config, memory: Arc<Memory>) -> Self {
        Self { memory, agree_across_routers: config.agree_across_routers }
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
        let mut key = None;
        let decision = match hint.session {
            None => Decision::NoKey,
            Some(session) => {
                let session = Sessions::key(hint.model, session);
                key = Some(session);
                match self.memory.sessions.worker(session, now) {
                    None => Decision::Miss,
                    Some(worker) => {
                        if let Some(index) = candidates.iter().position(|c| c.id == worker) {
                            return Some(Pick::new(index, Decision::Sticky));
                        }
                        Decision::Spill
                    }
                }
            }
        };
        let least = choose::least_loaded(candidates.iter().enumerate(), rng)?;
        let agreed = key.filter(|_| self.agree_across_routers).and_then(|key| {
            rendezvous::highest(candidates, key, |c| choose::is_near(c, &candidates[least], SLACK))
        });
        Some(Pick::new(agreed.unwrap_or(least), decision))
    }

    fn sent(&self, worker: WorkerId, hint: &Hint<'_>, now: Now) {
        if let Some(session) = hint.session {
            self.memory.bind(Sessions::key(hint.model, session), worker, now);
        }
    }

    fn forget(&self, worker: WorkerId) {
        self.memory.sessions.forget(worker);
    }
}
