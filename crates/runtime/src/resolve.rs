//! Resolves names without blocking, on threads of its own.
//!
//! The system's resolver blocks for many seconds when a name server is silent. Each name is looked up by one thread at a
//! time, however many tasks wait for it, and a task that gives up leaves the thread to finish; so a silent name server
//! costs as many threads as there are names. The runtime's own pool is not used: it panics when it cannot start a thread.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::shortage::Kind;

/// Threads at once: more names than this are not looked up at the same time.
const MAX_LOOKUPS: usize = 256;

/// Enough for the system's resolver, which keeps its buffers on the stack.
const STACK_BYTES: usize = 512 << 10;

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The resolver says that there is no such name, or that it has no address.
    #[error("the name {host} does not resolve: {why}")]
    NoSuchName {
        /// The name.
        host: String,
        /// The resolver's words.
        why: String,
    },
    /// It could not be found out, for a reason that is the router's own.
    #[error("the name {host} cannot be resolved now: {why}")]
    Unknown {
        /// What is short: the resolver, or what asking it takes.
        kind: Kind,
        /// The name.
        host: String,
        /// What went wrong.
        why: String,
    },
}

type Answer = Result<Vec<SocketAddr>, ResolveError>;
type Lookup = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;
type Place = (String, u16);

/// Looks names up. Cheap to clone; clones share what is under way.
#[derive(Clone)]
pub struct Resolver {
    lookup: Arc<Lookup>,
    // Held to look one name up, insert or remove it.
    under_way: Arc<Mutex<HashMap<Place, watch::Receiver<Option<Answer>>>>>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("under_way", &self.under_way.lock().len()).finish()
    }
}

impl Resolver {
    /// The machine's resolver.
    #[must_use]
    pub fn system() -> Self {
        Self::with(|host, port| (host, port).to_socket_addrs().map(Iterator::collect))
    }

    /// A resolver that asks `lookup`, which may block.
    #[must_use]
    pub fn with(
        lookup: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self { lookup: Arc::new(lookup), under_way: Arc::default() }
    }

    /// The addresses of `host`, in the order in which the resolver gives them; at least one. An address is its own.
    ///
    /// # Errors
    ///
    /// If there are none, or it cannot be found out now.
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
                why: "the look-up was given up".to_owned(),
            })
        })
    }

    /// Joins the look-up that is under way, or begins one.
    fn begin(
        &self,
        host: &str,
        port: u16,
    ) -> Result<watch::Receiver<Option<Answer>>, ResolveError> {
        let place = (host.to_owned(), port);
        let mut under_way = self.under_way.lock();
        if let Some(answer) = under_way.get(&place) {
            return Ok(answer.clone());
        }
        let unknown = |kind, why| ResolveError::Unknown { kind, host: host.to_owned(), why };
        if under_way.len() >= MAX_LOOKUPS {
            let why = format!("{MAX_LOOKUPS} other names are being looked up");
            return Err(unknown(Kind::Resolver, why));
        }
        let (answered, answer) = watch::channel(None);
        let ending = Ending { place: place.clone(), under_way: Arc::clone(&self.under_way) };
        let lookup = Arc::clone(&self.lookup);
        let look_up = move || {
            let (host, port) = &ending.place;
            let found = classify(host, lookup(host, *port));
            drop(ending);
            // Nobody may be waiting any more.
            answered.send_replace(Some(found));
        };
        under_way.insert(place, answer.clone());
        // `Ending` takes the lock: in the thread, or here if there is no thread.
        drop(under_way);
        let builder = std::thread::Builder::new().name("smg-resolve".to_owned());
        match builder.stack_size(STACK_BYTES).spawn(look_up) {
            Ok(_detached) => Ok(answer),
            Err(error) => {
                Err(unknown(Kind::of(&error).unwrap_or(Kind::Threads), error.to_string()))
            }
        }
    }
}

/// Removes a look-up from those under way, also when it panics.
struct Ending {
    place: Place,
    under_way: Arc<Mutex<HashMap<Place, watch::Receiver<Option<Answer>>>>>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.place);
    }
}

/// What the system's resolver says when there is no such name, in the words of glibc, musl and the BSDs. Its codes do
/// not come through the standard library.
const NO_SUCH_NAME: [&str; 5] = [
    "Name or service not known",
    "No address associated with hostname",
    "Name does not resolve",
    "Name has no usable address",
    "nodename nor servname provided",
];

/// Tells a name that does not exist from a resolver that does not know.
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
            // A name that is no name at all will never resolve.
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
    use std::time::Duration;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn an_address_needs_no_resolver() {
        let resolver = Resolver::with(|_, _| panic!("asked"));
        assert_eq!(resolver.resolve("10.0.0.1", 80).await, Ok(vec![address("10.0.0.1:80")]));
        assert_eq!(resolver.resolve("::1", 80).await, Ok(vec![address("[::1]:80")]));
    }

    #[tokio::test]
    async fn one_look_up_serves_all_who_wait_and_outlives_who_gave_up() {
        let (go, gate) = mpsc::channel::<()>();
        let (asked, gate) = (Arc::new(AtomicUsize::new(0)), Mutex::new(gate));
        let count = Arc::clone(&asked);
        let resolver = Resolver::with(move |_, port| {
            count.fetch_add(1, Ordering::SeqCst);
            gate.lock().recv().unwrap();
            Ok(vec![SocketAddr::from(([10, 0, 0, 1], port))])
        });
        let gave_up = tokio::time::timeout(Duration::from_millis(20), resolver.resolve("w", 1));
        assert!(gave_up.await.is_err());
        let other = resolver.clone();
        let (first, second, ()) =
            tokio::join!(resolver.resolve("w", 1), other.resolve("w", 1), async {
                go.send(()).unwrap();
            });
        for found in [first, second] {
            assert_eq!(found, Ok(vec![address("10.0.0.1:1")]));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        // The next question is a new one.
        go.send(()).unwrap();
        resolver.resolve("w", 1).await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_look_up_that_panics_is_over() {
        let resolver = Resolver::with(|_, _| panic!("on purpose"));
        let error = resolver.resolve("w", 1).await.unwrap_err();
        assert!(matches!(error, ResolveError::Unknown { kind: Kind::Resolver, .. }), "{error}");
        assert!(resolver.under_way.lock().is_empty());
    }

    #[tokio::test]
    async fn the_number_of_threads_is_bounded() {
        let (go, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let resolver = Resolver::with(move |_, _| {
            let _all_go = gate.lock().recv();
            Ok(vec![address("10.0.0.1:1")])
        });
        for nth in 0..MAX_LOOKUPS {
            resolver.begin(&format!("w{nth}"), 1).unwrap();
        }
        let error = resolver.begin("one-more", 1).unwrap_err();
        assert!(matches!(error, ResolveError::Unknown { kind: Kind::Resolver, .. }), "{error}");
        assert!(resolver.begin("w0", 1).is_ok(), "what is under way is joined");
        drop(go);
    }

    #[test]
    fn a_name_that_does_not_exist_is_told_from_a_resolver_that_does_not_know() {
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
    async fn the_systems_resolver_says_that_a_name_does_not_exist() {
        // `localhost` is in the hosts file of every machine.
        let found = Resolver::system().resolve("localhost", 80).await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
    }
}
