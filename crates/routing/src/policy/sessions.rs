//! The map from sessions to workers: a bounded LRU cache whose entries also have a time to live.
//!
//! A session is stored by the 64-bit hash of its key, so that a client can't fill the memory with long keys. Two sessions with
//! the same hash share a worker. The map is split into shards; each is a list in order of use, linked through a vector. Workers
//! are stored as handles, so forgetting one needs no search (see `prefix::workers`).

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use smg_types::ids::WorkerId;
use smg_types::now::Now;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::prefix::workers::{Handle, WorkerHandles};

/// Most shards of the map.
const MAX_SHARDS: usize = 16;
/// Fewest sessions that a shard is made for: the number of shards is the largest power of two that allows it.
const SHARD_SESSIONS: usize = 1024;
/// The index that marks the end of the list.
const NIL: u32 = u32::MAX;

/// The sessions of one router and their workers.
#[derive(Debug)]
pub(super) struct Sessions {
    shards: Box<[Mutex<Shard>]>,
    workers: RwLock<WorkerHandles>,
    ttl: Duration,
}

impl Sessions {
    /// An empty map for at most `max` sessions, each of which expires `ttl` after its last use.
    pub(super) fn new(max: usize, ttl: Duration) -> Self {
        let max = max.min(NIL as usize);
        let count = 1 << (max / SHARD_SESSIONS).clamp(1, MAX_SHARDS).ilog2();
        let shards = (0..count)
            .map(|at| Mutex::new(Shard::new(max / count + usize::from(at < max % count))))
            .collect();
        Self { shards, workers: RwLock::default(), ttl }
    }

    /// The hash of a model and a session's key; equal on all routers and in all versions.
    pub(super) fn key(model: u64, session: &[u8]) -> u64 {
        xxh3_64_with_seed(session, model)
    }

    /// Time after its last use at which a session expires.
    pub(super) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The worker of the session `key`, if it has not expired.
    pub(super) fn worker(&self, key: u64, now: Now) -> Option<WorkerId> {
        let binding = self.shard(key).lock().get(key)?;
        if now.mono.saturating_sub(binding.used) > self.ttl {
            return None;
        }
        self.workers.read().id_of(binding.worker)
    }

    /// The worker of the session `key`, expired or not, and the time of the last publication (`Now::mono`).
    pub(super) fn binding(&self, key: u64) -> Option<(WorkerId, Duration)> {
        let binding = self.shard(key).lock().get(key)?;
        Some((self.workers.read().id_of(binding.worker)?, binding.published_at))
    }

    /// Binds the session `key` to `worker`. The time to live starts again.
    pub(super) fn bind(&self, key: u64, worker: WorkerId, now: Now) {
        let known = self.workers.read().handle(worker);
        let Some(worker) = known.or_else(|| self.workers.write().get_or_assign(worker)) else {
            return;
        };
        let mut shard = self.shard(key).lock();
        let published_at = shard.get(key).map_or(now.mono, |binding| binding.published_at);
        shard.put(key, Binding { worker, used: now.mono, published_at });
    }

    /// Notes that the session `key` is published now.
    pub(super) fn mark_published(&self, key: u64, now: Now) {
        let mut shard = self.shard(key).lock();
        if let Some(binding) = shard.get(key) {
            shard.put(key, Binding { published_at: now.mono, ..binding });
        }
    }

    /// Forgets all sessions of `worker`.
    pub(super) fn forget(&self, worker: WorkerId) {
        self.workers.write().forget(worker);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().places.len()).sum()
    }

    fn shard(&self, key: u64) -> &Mutex<Shard> {
        &self.shards[key as usize & (self.shards.len() - 1)]
    }
}

#[derive(Debug, Clone, Copy)]
struct Binding {
    worker: Handle,
    used: Duration,
    /// Time of the last publication to the other routers (`Now::mono`).
    published_at: Duration,
}

/// One shard: a list in order of use, newest first. No node is freed: a full shard reuses its oldest one.
#[derive(Debug)]
struct Shard {
    places: HashMap<u64, u32>,
    nodes: Vec<Node>,
    newest: u32,
    oldest: u32,
    max: usize,
}

#[derive(Debug)]
struct Node {
    key: u64,
    bound: Binding,
    newer: u32,
    older: u32,
}

impl Shard {
    fn new(max: usize) -> Self {
        Self { places: HashMap::new(), nodes: Vec::new(), newest: NIL, oldest: NIL, max }
    }

    fn get(&self, key: u64) -> Option<Binding> {
        Some(self.nodes[*self.places.get(&key)? as usize].bound)
    }

    fn put(&mut self, key: u64, bound: Binding) {
        if self.max == 0 {
            return;
        }
        let at = match self.places.get(&key) {
            Some(&at) => {
                self.unlink(at);
                at
            }
            None if self.nodes.len() < self.max => {
                self.nodes.push(Node { key, bound, newer: NIL, older: NIL });
                (self.nodes.len() - 1) as u32
            }
            None => {
                let at = self.oldest;
                self.unlink(at);
                self.places.remove(&self.nodes[at as usize].key);
                at
            }
        };
        self.places.insert(key, at);
        let older = self.newest;
        self.nodes[at as usize] = Node { key, bound, newer: NIL, older };
        match older {
            NIL => self.oldest = at,
            older => self.nodes[older as usize].newer = at,
        }
        self.newest = at;
    }

    /// Unlinks a node from the list.
    fn unlink(&mut self, at: u32) {
        let Node { newer, older, .. } = self.nodes[at as usize];
        match newer {
            NIL => self.newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
        match older {
            NIL => self.oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WorkerId = WorkerId::from_u64(1);
    const B: WorkerId = WorkerId::from_u64(2);

    fn key(session: &[u8]) -> u64 {
        Sessions::key(0, session)
    }

    fn second(n: u64) -> Now {
        Now::at(Duration::from_secs(n))
    }

    fn sessions(max: usize) -> Sessions {
        Sessions::new(max, Duration::from_secs(60))
    }

    #[test]
    fn the_least_recently_used_session_is_evicted_first() {
        let sessions = sessions(3);
        for (at, name) in [b"x", b"y", b"z", b"x"].into_iter().enumerate() {
            sessions.bind(key(name), A, second(at as u64));
        }
        sessions.bind(key(b"new"), B, second(5));
        let known: Vec<bool> = [b"x".as_slice(), b"y", b"z", b"new"]
            .map(|name| sessions.worker(key(name), second(5)).is_some())
            .into();
        assert_eq!(known, [true, false, true, true]);
        assert_eq!(sessions.len(), 3);
    }

    #[test]
    fn the_bound_holds_for_any_number_of_sessions() {
        for max in [0, 1, 2, 1500, 20_000] {
            let sessions = sessions(max);
            for n in 0..30_000_u32 {
                sessions.bind(key(&n.to_le_bytes()), A, second(1));
            }
            assert_eq!(sessions.len(), max);
        }
    }

    #[test]
    fn a_session_expires_after_its_time_to_live_without_use() {
        let sessions = sessions(10);
        sessions.bind(key(b"s"), A, second(0));
        assert_eq!(sessions.worker(key(b"s"), second(60)), Some(A));
        assert_eq!(sessions.worker(key(b"s"), second(61)), None);
        sessions.bind(key(b"s"), A, second(50));
        assert_eq!(sessions.worker(key(b"s"), second(110)), Some(A));
    }

    #[test]
    fn a_forgotten_worker_has_no_sessions_even_when_it_returns() {
        let sessions = sessions(10);
        sessions.bind(key(b"s"), A, second(0));
        sessions.bind(key(b"t"), B, second(0));
        sessions.forget(A);
        sessions.bind(key(b"u"), A, second(0));
        let binding = |name: &[u8]| sessions.worker(key(name), second(1));
        assert_eq!((binding(b"s"), binding(b"t"), binding(b"u")), (None, Some(B), Some(A)));
    }
}
