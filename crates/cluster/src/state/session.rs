//! The sessions store: which worker a session sticks to.
//!
//! Two routers may bind a new session at the same time; the earlier binding wins everywhere, so both end at one worker.
//! A later binding on purpose (the worker is gone) carries a higher term, and the highest term wins first. Keys are
//! hashes: no client's text is kept.

use std::cmp::Reverse;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_types::ids::WorkerId;

use crate::crdt::Merge;
use crate::crdt::stamp::{Stamp, millis};
use crate::state::StoreId;
use crate::state::table::Store;

/// The sessions store.
#[derive(Debug)]
pub enum Sessions {}

/// Longest time to live: a week.
pub const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

impl Store for Sessions {
    const ID: StoreId = StoreId::Sessions;
    type Key = SessionKey;
    type Value = Session;

    fn validate(_: &SessionKey, value: &Session) -> Result<(), String> {
        if u64::from(value.ttl_ms) > millis(MAX_TTL) {
            return Err(format!("time to live of {} ms, the limit is a week", value.ttl_ms));
        }
        Ok(())
    }

    fn stamp(value: &Session) -> Option<Stamp> {
        Some(value.bound)
    }

    fn expires_ms(_: &SessionKey, value: &Session) -> Option<u64> {
        Some(value.ends_ms())
    }
}

/// A hash of the model and the session's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionKey(pub u64);

/// A session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    worker: WorkerId,
    bound: Stamp,
    term: u32,
    used_ms: u64,
    ttl_ms: u32,
}

impl Session {
    pub(crate) fn first(worker: WorkerId, bound: Stamp, used_ms: u64, ttl: Duration) -> Self {
        let ttl_ms = u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX);
        Self { worker, bound, term: 0, used_ms, ttl_ms }
    }

    pub(crate) fn again(
        before: Option<&Self>,
        worker: WorkerId,
        bound: Stamp,
        used_ms: u64,
        ttl: Duration,
    ) -> Self {
        let term = before.map_or(0, |session| session.term.saturating_add(1));
        Self { term, ..Self::first(worker, bound, used_ms, ttl) }
    }

    /// Where it goes.
    #[must_use]
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// When it was last used, in milliseconds of wall time.
    #[must_use]
    pub fn used_ms(&self) -> u64 {
        self.used_ms
    }

    /// When it is forgotten if it is not used again, in milliseconds of wall time.
    #[must_use]
    pub fn ends_ms(&self) -> u64 {
        self.used_ms.saturating_add(u64::from(self.ttl_ms))
    }

    fn binding(&self) -> (u32, Reverse<Stamp>, WorkerId) {
        (self.term, Reverse(self.bound), self.worker)
    }
}

impl Merge for Session {
    fn merge(&mut self, other: &Self) -> bool {
        let before = *self;
        if other.binding() > self.binding() {
            (self.term, self.bound, self.worker) = (other.term, other.bound, other.worker);
        }
        (self.used_ms, self.ttl_ms) =
            (self.used_ms, self.ttl_ms).max((other.used_ms, other.ttl_ms));
        *self != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(worker: u64, at_ms: u64, used_ms: u64) -> Session {
        let stamp = Stamp { wall_ms: at_ms, ..Stamp::default() };
        Session::first(WorkerId::from_u64(worker), stamp, used_ms, Duration::from_secs(1))
    }

    #[test]
    fn the_earlier_binding_wins_and_the_later_use_counts() {
        let (mut here, mut there) = (bound(1, 10, 10), bound(2, 11, 30));
        let (a, b) = (here, there);
        here.merge(&b);
        there.merge(&a);
        assert_eq!(here, there);
        assert_eq!((here.worker(), here.used_ms()), (WorkerId::from_u64(1), 30));
    }

    #[test]
    fn a_binding_on_purpose_beats_an_earlier_one() {
        let mut old = bound(1, 10, 10);
        let stamp = Stamp { wall_ms: 50, ..Stamp::default() };
        let again =
            Session::again(Some(&old), WorkerId::from_u64(2), stamp, 50, Duration::from_secs(1));
        old.merge(&again);
        assert_eq!(old.worker(), WorkerId::from_u64(2));
    }
}
