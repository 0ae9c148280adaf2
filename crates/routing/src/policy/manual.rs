//! Sticky sessions with a time to live: the worker that served the last request of a session serves the next one.
//!
//! Unlike with `consistent_hashing`, a session does not move when a worker is added, and a new session goes to the least loaded
//! candidate. The price is memory, so the number of sessions and their time to live are bounded. If the worker of a session is
//! not a candidate, the session moves to the least loaded one and stays there.
//!
//! The routers of a cluster publish their sessions to each other. With `agree_across_routers` a hash of the key chooses the
//! worker of a new session, so that two routers that receive its first requests at the same time choose the same worker.

use std::sync::Arc;

use rand::Rng;
use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::memory::Memory;
use super::sessions::Sessions;
use super::{Candidate, Config, Decision, Hint, Kind, Pick, Policy, choose, rendezvous};

/// Requests by which the worker that a new session's key chooses may exceed the least loaded one. The bound is loose because a
/// session lasts longer than a burst.
const SLACK: u32 = 8;

/// The policy `manual`.
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
        self.memory.forget(worker);
    }
}
