//! File descriptors: how many this process may open, and how many it reserves for connections to workers.
//!
//! An accepted client needs one more descriptor, for a worker, before it can be served. So the router accepts clients
//! only while more than the reserve is free; without that, it also closes idle connections to workers instead of
//! keeping them. The count covers the sockets of clients and of workers, on top of the descriptors that were open when
//! the router began to serve; the reserve covers the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, getrlimit, setrlimit};

/// The number of descriptors that this process may have open; `None` means no limit.
#[must_use]
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Raises the soft limit to the hard limit, and returns the new limit; `None` means no limit. The usual soft limit is
/// 1024.
pub fn raise_limit() -> Option<u64> {
    let mut limits = getrlimit(Resource::Nofile);
    limits.current = limits.maximum;
    // If the system refuses, the limit that we return shows it.
    let _refused = setrlimit(Resource::Nofile, limits).is_err();
    limit()
}

/// The number of descriptors that are open now; zero if the system does not list them.
#[must_use]
pub fn open_now() -> usize {
    // Reading the directory opens one descriptor, which is not counted.
    std::fs::read_dir("/dev/fd").map_or(0, |entries| entries.count().saturating_sub(1))
}

/// Descriptors that the router opens for itself: listeners, timers, logs, probes, the mesh.
const OWN: u64 = 64;

/// The warning for an operator whose limit is too low for `max_connections` clients with a worker connection each;
/// `None` if the limit suffices.
#[must_use]
pub fn shortfall(limit: Option<u64>, max_connections: usize) -> Option<String> {
    let needed = (max_connections as u64).saturating_mul(2).saturating_add(OWN);
    let limit = limit.filter(|limit| *limit < needed)?;
    let enough_for = limit.saturating_sub(OWN) / 2;
    Some(format!(
        "the limit on open files is {limit} and is enough for about {enough_for} clients, each with a connection to a worker, \
         not the {max_connections} of --max-connections: raise the hard limit (ulimit -Hn, LimitNOFILE= or the \
         container's nofile) to {needed}, or lower --max-connections"
    ))
}

/// Counts the descriptors in use. One per process, shared by reference.
#[derive(Debug)]
pub struct Descriptors {
    /// The number of descriptors that may be open; `None` means no limit.
    limit: Option<usize>,
    /// The number of descriptors that were open when the router began to serve, without `sockets`.
    own: AtomicUsize,
    /// The number of sockets of clients and workers that are open now.
    sockets: AtomicUsize,
}

/// Counts one descriptor until it is dropped.
#[derive(Debug)]
pub struct Counted(Arc<Descriptors>);

impl Descriptors {
    /// A count of zero. For `limit`, see [`limit`].
    #[must_use]
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        Arc::new(Self { limit, own: AtomicUsize::new(0), sockets: AtomicUsize::new(0) })
    }

    /// Records how many descriptors are open before the first client is accepted.
    pub fn begin(&self, open: usize) {
        let own = open.saturating_sub(self.sockets.load(Ordering::Relaxed));
        self.own.store(own, Ordering::Relaxed);
    }

    /// Counts a socket until the returned guard is dropped.
    #[must_use]
    pub fn count(self: &Arc<Self>) -> Counted {
        self.sockets.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(self))
    }

    /// Whether only the reserve is left. The router should then accept no further client and keep no idle connection.
    #[must_use]
    pub fn is_scarce(&self) -> bool {
        let Some(limit) = self.limit else { return false };
        let used = self.own.load(Ordering::Relaxed) + self.sockets.load(Ordering::Relaxed);
        used + reserve(limit) >= limit
    }
}

/// The number of descriptors, of `limit`, that are reserved for connections to workers.
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
    fn a_quarter_is_reserved_for_workers() {
        let descriptors = Descriptors::new(Some(96));
        descriptors.begin(22);
        let mut clients = Vec::new();
        while !descriptors.is_scarce() {
            clients.push(descriptors.count());
        }
        assert_eq!(clients.len(), 96 - 22 - 24);
        clients.pop();
        assert!(!descriptors.is_scarce(), "closing one makes room for another");
    }

    #[test]
    fn begin_does_not_count_a_counted_socket_again() {
        let descriptors = Descriptors::new(Some(100));
        let _probe = descriptors.count();
        descriptors.begin(11);
        let clients: Vec<_> = (0..64).map(|_| descriptors.count()).collect();
        assert!(descriptors.is_scarce(), "11 and 64 leave only the reserve of 25");
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
    fn the_warning_of_a_low_limit_names_it_and_how_many_clients_it_allows() {
        assert_eq!(shortfall(None, 1_000_000), None);
        assert_eq!(shortfall(Some(2064), 1000), None);
        let text = shortfall(Some(1024), 1000).unwrap();
        for part in
            ["is 1024", "enough for about 480 clients", "the 1000 of --max-connections", "to 2064"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(shortfall(Some(10), 1).unwrap().contains("enough for about 0 clients"));
    }

    #[test]
    fn open_descriptors_are_counted() {
        let files: Vec<_> = (0..5).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        assert!(open_now() >= files.len() + 3, "the standard streams are open as well");
    }
}
