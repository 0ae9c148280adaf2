//! The memory that all policies of a router share: the prefixes that workers have served, and the workers of sessions.
//!
//! One memory serves all models, so its bounds are those of the router. The reports of other routers go into it whatever
//! policy will use them.

use std::sync::Arc;

use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::Config;
use super::journal::{Journal, SessionBinding};
use super::sessions::Sessions;
use crate::prefix::Index;

/// Keeps the ids of stored responses apart from the sessions of models, whose hashes are never this small in practice.
const STORED: u64 = 1;

/// The shared memory of a router's policies.
#[derive(Debug)]
pub struct Memory {
    /// The workers that have served a prefix.
    pub index: Arc<Index>,
    /// What the other routers do not know yet.
    pub journal: Journal,
    pub(super) sessions: Sessions,
}

impl Memory {
    /// A memory without sessions over an index of prefixes.
    #[must_use]
    pub fn new(config: &Config, index: Arc<Index>) -> Self {
        let sessions = Sessions::new(config.max_sessions, config.session_ttl);
        Self { index, journal: Journal::default(), sessions }
    }

    /// Binds a session to the worker that another router reports.
    pub fn apply_remote_session(&self, key: u64, worker: WorkerId, now: Now) {
        self.sessions.bind(key, worker, now);
    }

    /// Forgets all prefixes and sessions of a worker, and what was to be published of them.
    pub fn forget(&self, worker: WorkerId) {
        self.journal.forget(worker);
        self.index.forget(worker);
        self.sessions.forget(worker);
    }

    /// Notes that `worker` holds the stored response or the conversation `id`. It is forgotten as sessions are.
    pub fn hold(&self, id: &str, worker: WorkerId, now: Now) {
        self.bind(Sessions::key(STORED, id.as_bytes()), worker, now);
    }

    /// The worker that holds the stored response or the conversation `id`.
    #[must_use]
    pub fn holder(&self, id: &str, now: Now) -> Option<WorkerId> {
        self.sessions.worker(Sessions::key(STORED, id.as_bytes()), now)
    }

    /// Time after its last use at which a session is forgotten.
    #[must_use]
    pub fn session_ttl(&self) -> std::time::Duration {
        self.sessions.ttl()
    }

    /// Binds a session to the worker that was sent its request. Records it in the journal if the binding is new, has changed,
    /// or was last recorded a quarter of the time to live ago.
    pub(super) fn bind(&self, key: u64, worker: WorkerId, now: Now) {
        let before = self.sessions.binding(key);
        self.sessions.bind(key, worker, now);
        let is_published = before.is_some_and(|(known, published_at)| {
            known == worker && now.mono.saturating_sub(published_at) < self.sessions.ttl() / 4
        });
        if self.journal.is_open() && !is_published {
            self.sessions.mark_published(key, now);
            let moved = before.is_some_and(|(known, _)| known != worker);
            self.journal.record_session(SessionBinding { key, worker, moved });
        }
    }
}
