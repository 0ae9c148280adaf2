//! File descriptors: how many this process may have, and how many it keeps back for connections to workers.
//!
//! A client that has been accepted needs one more descriptor before it can be served. So clients are accepted only while
//! a reserve is left, and idle connections to workers are closed instead of kept when there is none. Counted are sockets
//! of clients and of workers, on top of what was open when the router began to serve; the reserve covers the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, getrlimit, setrlimit};

/// The number of descriptors that this process may have open; `None`: no limit.
#[must_use]
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Raises the limit as far as the system allows, and returns it; `None`: no limit. The usual soft limit is 1024.
pub fn raise_limit() -> Option<u64> {
    let mut limits = getrlimit(Resource::Nofile);
    limits.current = limits.maximum;
    // If it is refused, the limit that is returned says so.
    let _refused = setrlimit(Resource::Nofile, limits).is_err();
    limit()
}

/// Descriptors that are open now, as far as the system says.
#[must_use]
pub fn open_now() -> usize {
    // The directory that is read is one of them.
    std::fs::read_dir("/dev/fd").map_or(0, |entries| entries.count().saturating_sub(1))
}

/// Descriptors that the router opens for itself: listeners, timers, logs, probes, the mesh.
const OWN: u64 = 64;

/// What to say to an operator whose limit does not carry `max_connections` clients with a connection to a worker each;
/// `None`: it does.
#[must_use]
pub fn shortfall(limit: Option<u64>, max_connections: usize) -> Option<String> {
    let needed = (max_connections as u64).saturating_mul(2).saturating_add(OWN);
    let limit = limit.filter(|limit| *limit < needed)?;
    let carried = limit.saturating_sub(OWN) / 2;
    Some(format!(
        "the limit on open files is {limit} and carries about {carried} clients, each with a connection to a worker, \
         not the {max_connections} of --max-connections: raise the hard limit (ulimit -Hn, LimitNOFILE= or the \
         container's nofile) to {needed}, or lower --max-connections"
    ))
}

/// Counts the descriptors in use. One per process, shared by reference.
#[derive(Debug)]
pub struct Descriptors {
    /// `None`: no limit.
    limit: Option<usize>,
    /// Open when the router began to serve.
    own: AtomicUsize,
    /// Sockets of clients and workers.
    sockets: AtomicUsize,
}

/// Counts one descriptor until it is dropped.
#[derive(Debug)]
pub struct Counted(Arc<Descriptors>);

impl Descriptors {
    /// Nothing is in use yet. `limit`: see [`limit`].
    #[must_use]
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        Arc::new(Self { limit, own: AtomicUsize::new(0), sockets: AtomicUsize::new(0) })
    }

    /// Notes how many are open already, before the first client is accepted.
    pub fn begin(&self, open: usize) {
        let own = open.saturating_sub(self.sockets.load(Ordering::Relaxed));
        self.own.store(own, Ordering::Relaxed);
    }

    /// Counts a socket.
    #[must_use]
    pub fn count(self: &Arc<Self>) -> Counted {
        self.sockets.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(self))
    }

    /// Whether only the reserve is left: no further client should be accepted and nothing be kept open without need.
    #[must_use]
    pub fn is_scarce(&self) -> bool {
        let Some(limit) = self.limit else { return false };
        let used = self.own.load(Ordering::Relaxed) + self.sockets.load(Ordering::Relaxed);
        used + reserve(limit) >= limit
    }
}

/// How many of `limit` descriptors are kept back for connections to workers.
const fn reserve(limit: usize) -> usize {
    limit / 4
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.sockets.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_is_kept_back_for_workers() {
        let descriptors = Descriptors::new(Some(96));
        descriptors.begin(22);
        let mut clients = Vec::new();
        while !descriptors.is_scarce() {
            clients.push(descriptors.count());
        }
        assert_eq!(clients.len(), 96 - 22 - 24);
        clients.pop();
        assert!(!descriptors.is_scarce(), "one that is closed makes room for another");
    }

    #[test]
    fn what_is_counted_already_is_not_counted_twice() {
        let descriptors = Descriptors::new(Some(100));
        let _probe = descriptors.count();
        descriptors.begin(11);
        let clients: Vec<_> = (0..64).map(|_| descriptors.count()).collect();
        assert!(descriptors.is_scarce(), "11 and 64");
        drop(clients);
        assert!(!descriptors.is_scarce());
    }

    #[test]
    fn without_a_limit_nothing_is_scarce() {
        let descriptors = Descriptors::new(None);
        descriptors.begin(usize::MAX / 2);
        assert!(!descriptors.is_scarce());
    }

    #[test]
    fn a_limit_that_is_too_low_is_named_with_what_it_carries() {
        assert_eq!(shortfall(None, 1_000_000), None);
        assert_eq!(shortfall(Some(2064), 1000), None);
        let text = shortfall(Some(1024), 1000).unwrap();
        for part in ["is 1024", "about 480 clients", "the 1000 of --max-connections", "to 2064"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(shortfall(Some(10), 1).unwrap().contains("about 0 clients"));
    }

    #[test]
    fn open_descriptors_are_counted() {
        let files: Vec<_> = (0..5).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        assert!(open_now() >= files.len() + 3, "the standard streams are open as well");
    }
}
