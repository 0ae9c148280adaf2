//! Resolves names without blocking a task, on threads of its own.
//!
//! The system's resolver blocks for many seconds when a name server does not answer. So one thread looks up each name
//! at a time, however many tasks wait for it, and a task that stops waiting leaves the thread running: a silent name
//! server costs at most one thread per name. An answer that comes after all tasks have stopped waiting is kept for the
//! next task that asks. The runtime's own thread pool is not used, because it panics when it cannot start a thread.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::shortage::Kind;

/// The most threads, and so the most names that are looked up at the same time.
const MAX_LOOKUPS: usize = 256;

/// The stack of a look-up thread. The system's resolver keeps its buffers on the stack.
const STACK_BYTES: usize = 512 << 10;

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The resolver reports that the name does not exist, or that it has no address.
    #[error("the name {host} does not resolve: {why}")]
    NoSuchName {
        /// The name that was looked up.
        host: String,
        /// The resolver's error text.
        why: String,
    },
    /// The look-up failed for lack of a resource of the router; the name may exist.
    #[error("the name {host} cannot be resolved now: {why}")]
    Unknown {
        /// The resource that is short: the resolver itself, or what a look-up needs.
        kind: Kind,
        /// The name that was looked up.
        host: String,
        /// The error of the look-up.
        why: String,
    },
}

/// The addresses of a name, or why there are none.
type Answer = Result<Vec<SocketAddr>, ResolveError>;
/// A function that resolves a host and a port; it may block.
type Lookup = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;
/// The host and the port of a look-up.
type Place = (String, u16);

/// A look-up that is running, or that has ended after all its waiting tasks had gone.
#[derive(Debug)]
struct Flight {
    /// Holds the answer as soon as the look-up has ended.
    answer: watch::Receiver<Option<Answer>>,
    /// `Clock::mono` at the end of a look-up that no task waited for; `None` while it runs.
    ended: Option<Duration>,
}

/// How long an answer that no task waited for is kept for the next task that asks.
const KEPT: Duration = Duration::from_secs(10);

/// Looks names up. Cheap to clone; clones share the running look-ups.
#[derive(Clone)]
pub struct Resolver {
    lookup: Arc<Lookup>,
    clock: Clock,
    flights: Flights,
}

// Locked only to find, insert or remove one look-up.
type Flights = Arc<Mutex<HashMap<Place, Flight>>>;

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("flights", &self.flights.lock().len()).finish()
    }
}

impl Resolver {
    /// The machine's resolver.
    #[must_use]
    pub fn system(clock: Clock) -> Self {
        Self::with(clock, |host, port| (host, port).to_socket_addrs().map(Iterator::collect))
    }

    /// A resolver that calls `lookup`, which may block, on a thread of its own.
    #[must_use]
    pub fn with(
        clock: Clock,
        lookup: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self { lookup: Arc::new(lookup), clock, flights: Arc::default() }
    }

    /// The addresses of `host`, at least one, in the resolver's order. An IP address resolves to itself.
    ///
    /// # Errors
    ///
    /// If the name has no address, or the look-up cannot be made now.
    pub async fn resolve(&self, host: &str, port: u16) -> Answer {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let mut answer = self.begin(host, port)?;
        let answered =
            answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
        answered.unwrap_or_else(|| {
            Err(ResolveError::Unknown {
                kind: Kind::Resolver,
                host: host.to_owned(),
                why: "the look-up ended without an answer".to_owned(),
            })
        })
    }

    /// Joins the running look-up of this name, takes the kept answer of one that has ended, or starts one.
    fn begin(
        &self,
        host: &str,
        port: u16,
    ) -> Result<watch::Receiver<Option<Answer>>, ResolveError> {
        let place = (host.to_owned(), port);
        let now = self.clock.mono();
        let mut flights = self.flights.lock();
        if flights.len() >= MAX_LOOKUPS {
            flights.retain(|_, flight| flight.is_fresh(now));
        }
        if let Some(flight) = flights.get(&place) {
            if flight.ended.is_none() {
                return Ok(flight.answer.clone());
            }
            let ended = flights.remove(&place).filter(|flight| flight.is_fresh(now));
            if let Some(ended) = ended {
                return Ok(ended.answer);
            }
        }
        let unknown = |kind, why| ResolveError::Unknown { kind, host: host.to_owned(), why };
        if flights.len() >= MAX_LOOKUPS {
            let why = format!("{MAX_LOOKUPS} other names are being looked up");
            return Err(unknown(Kind::Resolver, why));
        }
        let (answered, answer) = watch::channel(None);
        flights.insert(place.clone(), Flight { answer: answer.clone(), ended: None });
        // The drop of `Ending` takes this lock, here if no thread could be started.
        drop(flights);
        let ending = Ending { place, flights: Arc::clone(&self.flights), answered: None };
        let (lookup, clock) = (Arc::clone(&self.lookup), self.clock);
        let look_up = move || {
            let mut ending = ending;
            let (host, port) = &ending.place;
            let found = classify(host, lookup(host, *port));
            // The entry in `flights` holds one receiver itself.
            if answered.receiver_count() < 2 {
                ending.answered = Some(clock.mono());
            }
            // Before the answer is sent, so that a task that has received it and asks again starts a new look-up.
            drop(ending);
            answered.send_replace(Some(found));
        };
        let builder = std::thread::Builder::new().name("smg-resolve".to_owned());
        match builder.stack_size(STACK_BYTES).spawn(look_up) {
            Ok(_detached) => Ok(answer),
            Err(error) => {
                Err(unknown(Kind::of(&error).unwrap_or(Kind::Threads), error.to_string()))
            }
        }
    }
}

impl Flight {
    /// Whether the look-up is running, or its answer may still be used.
    fn is_fresh(&self, now: Duration) -> bool {
        self.ended.is_none_or(|ended| now.saturating_sub(ended) < KEPT)
    }
}

/// Removes a look-up from `flights` when it ends, also when it panics. Keeps its answer if no task waited for it.
struct Ending {
    place: Place,
    flights: Flights,
    /// `Clock::mono` at the answer, if no task waited for it.
    answered: Option<Duration>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        match self.answered {
            None => drop(flights.remove(&self.place)),
            Some(at) => {
                if let Some(flight) = flights.get_mut(&self.place) {
                    flight.ended = Some(at);
                }
            }
        }
    }
}

/// The error texts of glibc, musl and the BSDs for a name that does not exist. The standard library does not pass on
/// the error codes.
const NO_SUCH_NAME: [&str; 5] = [
    "Name or service not known",
    "No address associated with hostname",
    "Name does not resolve",
    "Name has no usable address",
    "nodename nor servname provided",
];

/// Distinguishes a name that does not exist from a look-up that failed.
fn classify(host: &str, found: io::Result<Vec<SocketAddr>>) -> Answer {
    let no_such_name = |why: String| ResolveError::NoSuchName { host: host.to_owned(), why };
    match found {
        Ok(addresses) if addresses.is_empty() => Err(no_such_name("it has no address".to_owned())),
        Ok(addresses) => Ok(addresses),
        Err(error) => {
            let why = error.to_string();
            if NO_SUCH_NAME.iter().any(|words| why.contains(words)) {
                return Err(no_such_name(why));
            }
            // Text that is not a valid host name will never resolve.
            if error.kind() == io::ErrorKind::InvalidInput {
                return Err(no_such_name(why));
            }
            let kind = Kind::of(&error).unwrap_or(Kind::Resolver);
            Err(ResolveError::Unknown { kind, host: host.to_owned(), why })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn resolver(
        lookup: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Resolver {
        Resolver::with(Clock::start(), lookup)
    }

    #[tokio::test]
    async fn an_address_needs_no_resolver() {
        let resolver = resolver(|_, _| panic!("asked"));
        assert_eq!(resolver.resolve("10.0.0.1", 80).await, Ok(vec![address("10.0.0.1:80")]));
        assert_eq!(resolver.resolve("::1", 80).await, Ok(vec![address("[::1]:80")]));
    }

    /// A resolver that answers `10.0.0.N` for its Nth look-up. Each look-up waits for one `()` on the channel.
    fn gated() -> (Resolver, mpsc::Sender<()>) {
        let (go, gate) = mpsc::channel::<()>();
        let (asked, gate) = (AtomicUsize::new(0), Mutex::new(gate));
        let resolver = resolver(move |_, port| {
            let nth = asked.fetch_add(1, Ordering::SeqCst) + 1;
            gate.lock().recv().unwrap();
            Ok(vec![SocketAddr::from(([10, 0, 0, nth as u8], port))])
        });
        (resolver, go)
    }

    #[tokio::test]
    async fn one_look_up_serves_all_waiting_tasks() {
        let (resolver, go) = gated();
        let other = resolver.clone();
        let (first, second, ()) =
            tokio::join!(resolver.resolve("w", 1), other.resolve("w", 1), async {
                go.send(()).unwrap();
            });
        for found in [first, second] {
            assert_eq!(found, Ok(vec![address("10.0.0.1:1")]));
        }
        // The next question starts a new look-up.
        go.send(()).unwrap();
        assert_eq!(resolver.resolve("w", 1).await, Ok(vec![address("10.0.0.2:1")]));
    }

    #[tokio::test]
    async fn an_answer_that_comes_too_late_is_kept_for_the_next_task() {
        let (resolver, go) = gated();
        let give_up = Duration::from_millis(20);
        assert!(tokio::time::timeout(give_up, resolver.resolve("w", 1)).await.is_err());
        go.send(()).unwrap();
        let place = ("w".to_owned(), 1);
        while resolver.flights.lock()[&place].ended.is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(resolver.resolve("w", 1).await, Ok(vec![address("10.0.0.1:1")]));
        // The kept answer is used only once.
        go.send(()).unwrap();
        assert_eq!(resolver.resolve("w", 1).await, Ok(vec![address("10.0.0.2:1")]));
        assert!(resolver.flights.lock().is_empty());
    }

    #[test]
    fn an_old_answer_is_not_used() {
        let answer = watch::channel(None).1;
        let flight = Flight { answer, ended: Some(Duration::from_secs(100)) };
        assert!(flight.is_fresh(Duration::from_secs(109)));
        assert!(!flight.is_fresh(Duration::from_secs(110)));
    }

    #[tokio::test]
    async fn a_look_up_that_panics_is_removed() {
        let resolver = resolver(|_, _| panic!("on purpose"));
        let error = resolver.resolve("w", 1).await.unwrap_err();
        assert!(matches!(error, ResolveError::Unknown { kind: Kind::Resolver, .. }), "{error}");
        assert!(resolver.flights.lock().is_empty());
    }

    #[tokio::test]
    async fn the_number_of_threads_is_bounded() {
        let (go, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let resolver = resolver(move |_, _| {
            let _all_go = gate.lock().recv();
            Ok(vec![address("10.0.0.1:1")])
        });
        let waiting: Vec<_> =
            (0..MAX_LOOKUPS).map(|nth| resolver.begin(&format!("w{nth}"), 1).unwrap()).collect();
        let error = resolver.begin("one-more", 1).unwrap_err();
        assert!(matches!(error, ResolveError::Unknown { kind: Kind::Resolver, .. }), "{error}");
        assert!(resolver.begin("w0", 1).is_ok(), "a running look-up is joined");
        drop((go, waiting));
    }

    #[test]
    fn a_missing_name_is_distinguished_from_a_failed_look_up() {
        let lookup = |words: &str| {
            let text = format!("failed to lookup address information: {words}");
            classify("w", Err(io::Error::other(text))).unwrap_err()
        };
        for words in NO_SUCH_NAME {
            assert!(matches!(lookup(words), ResolveError::NoSuchName { .. }), "{words}");
        }
        for words in ["Temporary failure in name resolution", "Try again", "System error"] {
            let error = lookup(words);
            assert!(matches!(error, ResolveError::Unknown { kind: Kind::Resolver, .. }), "{error}");
        }
        let full = classify("w", Err(io::Error::from_raw_os_error(24))).unwrap_err();
        assert!(matches!(full, ResolveError::Unknown { kind: Kind::Descriptors, .. }), "{full}");
        assert!(matches!(classify("w", Ok(vec![])), Err(ResolveError::NoSuchName { .. })));
    }

    #[tokio::test]
    async fn the_systems_resolver_resolves_localhost() {
        // `localhost` is in the hosts file of every machine.
        let found = Resolver::system(Clock::start()).resolve("localhost", 80).await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
    }
}
