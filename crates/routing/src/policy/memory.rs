//! What all policies of a router remember together: which worker has served what, and which worker a session goes to.
//!
//! One for all models, so that its bounds are the router's, and so that what other routers tell can be put in without
//! asking which policy wants it.

use std::sync::Arc;

use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::Config;
use super::journal::{Journal, SessionBinding};
use super::sessions::Sessions;
use crate::prefix::Index;

/// The memory of a router's policies.
#[derive(Debug)]
pub struct Memory {
    /// Which workers have served which prefix.
    pub index: Arc<Index>,
    /// What the other routers should know.
    pub journal: Journal,
    pub(super) sessions: Sessions,
}

impl Memory {
    /// Nothing is remembered yet.
    #[must_use]
    pub fn new(config: &Config, index: Arc<Index>) -> Self {
        let sessions = Sessions::new(config.max_sessions, config.session_ttl);
        Self { index, journal: Journal::default(), sessions }
    }

    /// Another router has bound this session, or a later binding has won.
    pub fn apply_remote_session(&self, key: u64, worker: WorkerId, now: Now) {
        self.sessions.bind(key, worker, now);
    }

    /// How long a session is remembered without use.
    #[must_use]
    pub fn session_ttl(&self) -> std::time::Duration {
        self.sessions.ttl()
    }

    /// Binds a session here, and tells the others what they may not know.
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
