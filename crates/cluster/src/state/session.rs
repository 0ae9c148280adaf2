//! The sessions store: the worker to which each session is bound.
//!
//! Two routers may bind a new session to different workers at the same time. The earlier binding wins on every router, so
//! both send the session to the same worker. A router that moves a session, because its worker is gone, writes a binding
//! with a higher term; a higher term wins over an earlier time. Keys are hashes, so that no text of a client is stored.

use std::cmp::Reverse;
use std::time::Duration;

use rand::RngExt;
use serde::{Deserialize, Serialize};
use smg_types::ids::WorkerId;

use crate::crdt::Merge;
use crate::crdt::stamp::{Stamp, millis};
#[cfg(test)]
use crate::state::golden::Golden;
use crate::state::operations::{Draw, StoreOperations};
use crate::state::store::{Ownership, Retention, Store};
use crate::state::store_id::StoreId;
use crate::state::table::{NodeParts, RefusedRow, Table};

/// The sessions store.
#[derive(Debug)]
pub enum Sessions {}

/// The longest time to live of a session, a week.
pub const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

impl Store for Sessions {
    const NAME: &'static str = "sessions";
    const ID: StoreId = StoreId::Sessions;
    const OWNERSHIP: Ownership = Ownership::Shared;
    const RETENTION: Retention = Retention::TimeToLive;
    const COALESCING: Duration = Duration::from_millis(20);
    const MAX_ROWS: usize = 262_144;
    const MAX_CONTENT_BYTES: usize = 4 * 1024;
    const IS_AWAITED: bool = false;
    const IS_IN_USE: bool = true;
    const IS_DURABLE: bool = false;

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

impl StoreOperations for Sessions {
    type Write = SessionWrite;

    fn write(
        table: &mut Table<Self>,
        parts: &mut NodeParts<'_>,
        write: SessionWrite,
    ) -> Result<Option<u64>, RefusedRow> {
        let stamp = parts.clock.tick(parts.now);
        let used_ms = millis(parts.now.wall);
        match write {
            SessionWrite::Use { key, worker, ttl } => {
                let session = Session::new(worker, stamp, used_ms, ttl);
                table.put_shared(parts, &key, session).map(Some)
            }
            SessionWrite::Rebind { key, worker, ttl } => {
                // The new binding must win over the one that is known here, although that is earlier.
                let before = table.merged(&key);
                let session = Session::rebound(before.as_ref(), worker, stamp, used_ms, ttl);
                table.put_shared(parts, &key, session).map(Some)
            }
            SessionWrite::End { key } => table.remove_shared(parts, &key),
            SessionWrite::EndOf { worker } => {
                let mut last = None;
                for key in table.keys_of(parts.me) {
                    if table.merged(&key).is_some_and(|session| session.worker == worker) {
                        last = table.remove_shared(parts, &key)?.or(last);
                    }
                }
                Ok(last)
            }
        }
    }

    fn sample(draw: &mut Draw<'_>) -> Option<SessionWrite> {
        let key = SessionKey(draw.rng.random_range(0..4));
        let (worker, ttl) = (draw.worker, Duration::from_secs(3600));
        Some(match draw.number % 7 {
            0 | 1 => SessionWrite::Use { key, worker, ttl },
            2 | 3 => SessionWrite::Rebind { key, worker, ttl },
            4 | 5 => SessionWrite::End { key },
            _ => SessionWrite::EndOf { worker },
        })
    }

    #[cfg(test)]
    fn golden() -> Golden {
        let (key, ttl) = (SessionKey(0x0102_0304_0506_0708), Duration::from_secs(3600));
        let worker = WorkerId::from_u64;
        Golden {
            writes: vec![
                SessionWrite::Use { key, worker: worker(7), ttl }.into(),
                SessionWrite::Rebind { key, worker: worker(8), ttl }.into(),
            ],
            key: "fd0807060504030201",
            content: "010112772d30303030303030303030303030303038fd0068e5cf8b01000001fdafdcd659883d46e701fd0068e5cf8b010000fc80ee36000000",
        }
    }
}

/// A change of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionWrite {
    /// The session was used. Binds it to `worker` unless it is bound already.
    Use {
        /// The session.
        key: SessionKey,
        /// The worker.
        worker: WorkerId,
        /// The session expires after this time without use; at most [`MAX_TTL`].
        ttl: Duration,
    },
    /// Binds the session to `worker`, whatever it is bound to.
    Rebind {
        /// The session.
        key: SessionKey,
        /// The worker.
        worker: WorkerId,
        /// The session expires after this time without use; at most [`MAX_TTL`].
        ttl: Duration,
    },
    /// Removes the session.
    End {
        /// The session.
        key: SessionKey,
    },
    /// Removes the sessions that are bound to a worker and of which this node made the last write. When each node does so,
    /// all sessions of the worker are removed, each by one node. O(sessions of this node).
    EndOf {
        /// The worker.
        worker: WorkerId,
    },
}

/// A session's key: a hash of the model and of the client's session key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionKey(pub u64);

/// The binding of a session to a worker, and when the session was used last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    worker: WorkerId,
    bound: Stamp,
    term: u32,
    used_ms: u64,
    ttl_ms: u32,
}

impl Session {
    /// A binding of a session that is not known here.
    pub(crate) fn new(worker: WorkerId, bound: Stamp, used_ms: u64, ttl: Duration) -> Self {
        let ttl_ms = u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX);
        Self { worker, bound, term: 0, used_ms, ttl_ms }
    }

    /// A binding that wins over `before`.
    pub(crate) fn rebound(
        before: Option<&Self>,
        worker: WorkerId,
        bound: Stamp,
        used_ms: u64,
        ttl: Duration,
    ) -> Self {
        let term = before.map_or(0, |session| session.term.saturating_add(1));
        Self { term, ..Self::new(worker, bound, used_ms, ttl) }
    }

    /// The worker to which the session is bound.
    #[must_use]
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// When the session was used last, in milliseconds of wall time.
    #[must_use]
    pub fn used_ms(&self) -> u64 {
        self.used_ms
    }

    /// When the session expires if it is not used again, in milliseconds of wall time.
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
    use crate::state::table::tests::{SharedSample, check_histories};

    fn bound(worker: u64, at_ms: u64, used_ms: u64) -> Session {
        let stamp = Stamp { wall_ms: at_ms, ..Stamp::default() };
        Session::new(WorkerId::from_u64(worker), stamp, used_ms, Duration::from_secs(1))
    }

    #[test]
    fn the_earlier_binding_wins_and_the_later_use_is_kept() {
        let (mut here, mut there) = (bound(1, 10, 10), bound(2, 11, 30));
        let (a, b) = (here, there);
        here.merge(&b);
        there.merge(&a);
        assert_eq!(here, there);
        assert_eq!((here.worker(), here.used_ms()), (WorkerId::from_u64(1), 30));
    }

    #[test]
    fn a_rebinding_wins_over_an_earlier_binding() {
        let mut old = bound(1, 10, 10);
        let stamp = Stamp { wall_ms: 50, ..Stamp::default() };
        let again =
            Session::rebound(Some(&old), WorkerId::from_u64(2), stamp, 50, Duration::from_secs(1));
        old.merge(&again);
        assert_eq!(old.worker(), WorkerId::from_u64(2));
    }

    impl SharedSample for Sessions {
        fn key(n: u8) -> SessionKey {
            SessionKey(u64::from(n))
        }

        fn value(_: u8, number: u64, stamp: Stamp, before: Option<&Session>) -> Session {
            let worker = WorkerId::from_u64(number);
            Session::rebound(before, worker, stamp, 1_000_000, Duration::from_secs(1_000))
        }

        fn number(value: &Session) -> u64 {
            value.worker().as_u64()
        }
    }

    #[test]
    fn sessions_hold_what_an_add_wins_set_holds() {
        check_histories::<Sessions>(2_500);
    }
}
