//! Connects to a host by name: resolves it, and races its addresses as RFC 8305 (Happy Eyeballs) prescribes.
//!
//! The addresses alternate between IPv6 and IPv4. The next attempt starts 250 ms after the previous one, or as soon as
//! that has failed. The first connection wins, and the other attempts are dropped. The dialer remembers the winner and
//! tries it first the next time. If the resolver fails or is slow, the dialer uses the addresses of its last answer.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use smg_types::spec::WorkerNetworks;
use tokio::net::TcpStream;

use crate::clock::Clock;
use crate::descriptors::{Counted, Descriptors};
use crate::resolve::{ResolveError, Resolver};
use crate::shortage::{Kind, Shortage, Shortages};

/// The time between the starts of two attempts (RFC 8305, section 5: "Connection Attempt Delay").
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;

/// How long a look-up may take before the addresses of the last answer are used.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);

/// The most names whose addresses are remembered.
const MAX_REMEMBERED: usize = 16 << 10;

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The resolver reports that the name does not exist.
    #[error(transparent)]
    NoSuchName(ResolveError),
    /// The router lacks a resource of its own. The shortage has been counted and logged.
    #[error(transparent)]
    Shortage(#[from] Shortage),
    /// All addresses failed; the error is the most informative one.
    #[error(transparent)]
    Connect(io::Error),
    /// No address answered within the timeout.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// What the dialer remembers of a name.
#[derive(Debug, Clone, Default)]
struct Remembered {
    /// The address of the last connection.
    winner: Option<SocketAddr>,
    /// The resolver's last answer.
    addresses: Vec<SocketAddr>,
}

/// Makes connections. One per process, shared by reference, so that all threads learn which address answers.
#[derive(Debug)]
pub struct Dialer {
    resolver: Resolver,
    shortages: Shortages,
    descriptors: Arc<Descriptors>,
    /// The networks in which workers are allowed; `None` means everywhere.
    networks: Option<WorkerNetworks>,
    // Locked only to copy or replace one entry, when a connection is made.
    remembered: Mutex<HashMap<(String, u16), Remembered>>,
}

impl Dialer {
    /// A dialer with an empty memory.
    #[must_use]
    pub fn new(resolver: Resolver, shortages: Shortages, descriptors: Arc<Descriptors>) -> Self {
        Self { resolver, shortages, descriptors, networks: None, remembered: Mutex::default() }
    }

    /// The same dialer, which connects to no address where `networks` forbids a worker, whatever a name resolves to.
    #[must_use]
    pub fn within(self, networks: WorkerNetworks) -> Self {
        Self { networks: Some(networks), ..self }
    }

    /// A dialer for a program that makes few connections and shows no metrics.
    #[must_use]
    pub fn simple(clock: Clock) -> Arc<Self> {
        let shortages = Shortages::unregistered(clock);
        Arc::new(Self::new(Resolver::system(clock), shortages, Descriptors::new(None)))
    }

    /// The resolver that the dialer uses.
    #[must_use]
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// The place to report shortages to.
    #[must_use]
    pub fn shortages(&self) -> &Shortages {
        &self.shortages
    }

    /// The count of descriptors in use.
    #[must_use]
    pub fn descriptors(&self) -> &Arc<Descriptors> {
        &self.descriptors
    }

    /// Connects to a host by name or address within `timeout`, name resolution included. The connection counts as an
    /// open descriptor until the returned guard is dropped.
    ///
    /// # Errors
    ///
    /// If no connection could be made; [`DialError`] distinguishes faults of the other side from shortages of the
    /// router.
    pub async fn dial(
        &self,
        host: &str,
        port: u16,
        timeout: Duration,
    ) -> Result<(TcpStream, Counted), DialError> {
        let tcp = self.dial_with(host, port, timeout, TcpStream::connect).await;
        let tcp = tcp.inspect_err(|error| {
            if let DialError::Shortage(shortage) = error {
                let doing = format!("connecting to {host}:{port}");
                self.shortages.report(shortage.kind, &doing, &shortage.source);
            }
        })?;
        Ok((tcp, self.descriptors.count()))
    }

    async fn dial_with<T, F: Future<Output = io::Result<T>>>(
        &self,
        host: &str,
        port: u16,
        timeout: Duration,
        connect: impl FnMut(SocketAddr) -> F,
    ) -> Result<T, DialError> {
        let resolved = AtomicBool::new(false);
        let dialing = async {
            let addresses = self.permitted(self.addresses_of(host, port).await?)?;
            resolved.store(true, Ordering::Relaxed);
            match race(&addresses, connect).await {
                Ok((address, connection)) => {
                    if addresses.len() > 1 && addresses[0] != address {
                        self.remember(host, port, |remembered| remembered.winner = Some(address));
                    }
                    Ok(connection)
                }
                Err(failures) => Err(verdict(failures, has_source_address)),
            }
        };
        match tokio::time::timeout(timeout, dialing).await {
            Ok(dialed) => dialed,
            Err(_elapsed) if resolved.load(Ordering::Relaxed) => Err(DialError::Timeout(timeout)),
            Err(_elapsed) => {
                let source = io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("the name {host} was not resolved within {timeout:?}"),
                );
                Err(Shortage { kind: Kind::Resolver, source }.into())
            }
        }
    }

    /// Those of the addresses at which a worker may be.
    fn permitted(&self, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, DialError> {
        let Some(networks) = &self.networks else { return Ok(addresses) };
        let mut forbidden = None;
        let mut permitted = addresses;
        permitted.retain(|address| match networks.check_address(address.ip()) {
            Ok(()) => true,
            Err(error) => {
                forbidden = Some(error);
                false
            }
        });
        match forbidden {
            Some(error) if permitted.is_empty() => {
                Err(DialError::Connect(io::Error::new(io::ErrorKind::PermissionDenied, error)))
            }
            Some(_) | None => Ok(permitted),
        }
    }

    /// The addresses of a name in the order in which to try them.
    async fn addresses_of(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let place = (host.to_owned(), port);
        let old = self.remembered.lock().get(&place).cloned().unwrap_or_default();
        let resolving = self.resolver.resolve(host, port);
        let found = if old.addresses.is_empty() {
            resolving.await
        } else {
            tokio::time::timeout(RESOLVE_TIMEOUT, resolving).await.unwrap_or_else(|_elapsed| {
                let why = format!("no answer within {RESOLVE_TIMEOUT:?}");
                Err(ResolveError::Unknown { kind: Kind::Resolver, host: host.to_owned(), why })
            })
        };
        match found {
            Ok(addresses) => {
                if addresses != old.addresses {
                    self.remember(host, port, |remembered| {
                        remembered.addresses.clone_from(&addresses);
                    });
                }
                Ok(in_turn(&addresses, old.winner))
            }
            Err(error @ ResolveError::NoSuchName { .. }) => Err(DialError::NoSuchName(error)),
            Err(error @ ResolveError::Unknown { kind, .. }) if old.addresses.is_empty() => {
                Err(Shortage { kind, source: io::Error::other(error) }.into())
            }
            Err(error @ ResolveError::Unknown { kind, .. }) => {
                self.shortages.report(
                    kind,
                    "resolving a name: the last addresses stay in use",
                    &error,
                );
                Ok(in_turn(&old.addresses, old.winner))
            }
        }
    }

    fn remember(&self, host: &str, port: u16, change: impl FnOnce(&mut Remembered)) {
        let mut remembered = self.remembered.lock();
        let place = (host.to_owned(), port);
        if remembered.len() >= MAX_REMEMBERED && !remembered.contains_key(&place) {
            // There are far more names than workers, so most belong to workers that were removed.
            remembered.clear();
        }
        change(remembered.entry(place).or_default());
    }
}

/// The order in which to try the addresses: the last winner, then IPv6 and IPv4 alternately, beginning with the family
/// of the resolver's first address (RFC 8305, section 4).
fn in_turn(addresses: &[SocketAddr], winner: Option<SocketAddr>) -> Vec<SocketAddr> {
    let mut order: Vec<SocketAddr> =
        winner.into_iter().filter(|winner| addresses.contains(winner)).collect();
    let Some(first) = addresses.first() else { return order };
    let (mut ours, mut others): (Vec<_>, Vec<_>) =
        addresses.iter().copied().partition(|address| address.is_ipv4() == first.is_ipv4());
    if order.first().is_some_and(|winner| winner.is_ipv4() == first.is_ipv4()) {
        std::mem::swap(&mut ours, &mut others);
    }
    let (mut ours, mut others) = (ours.into_iter(), others.into_iter());
    loop {
        let pair = [ours.next(), others.next()];
        if pair == [None, None] {
            break;
        }
        for address in pair.into_iter().flatten() {
            if !order.contains(&address) {
                order.push(address);
            }
        }
    }
    order.truncate(MAX_ADDRESSES);
    order
}

type Failures = Vec<(SocketAddr, io::Error)>;

/// Connects to the address that answers first. `Err` holds the failure of each address that was tried.
async fn race<T, F: Future<Output = io::Result<T>>>(
    addresses: &[SocketAddr],
    mut connect: impl FnMut(SocketAddr) -> F,
) -> Result<(SocketAddr, T), Failures> {
    let mut left = addresses.iter().copied();
    let mut running: Vec<Attempt<F>> = Vec::new();
    let mut failures = Failures::new();
    loop {
        // A shortage of descriptors, memory or threads concerns every address, so no further attempt is made.
        let is_short = failures.iter().any(|(_, error)| is_for_all(error));
        if !is_short && let Some(address) = left.next() {
            running.push((address, Box::pin(connect(address))));
        }
        if running.is_empty() {
            return Err(failures);
        }
        let has_more = !is_short && left.len() > 0;
        let (address, ended) = tokio::select! {
            biased;
            ended = first_to_end(&mut running) => ended,
            () = tokio::time::sleep(ATTEMPT_DELAY), if has_more => continue,
        };
        match ended {
            Ok(connection) => return Ok((address, connection)),
            Err(error) => failures.push((address, error)),
        }
    }
}

type Attempt<F> = (SocketAddr, Pin<Box<F>>);

/// Waits for the first of `running` that ends, removes it, and returns its address and result.
async fn first_to_end<F: Future>(running: &mut Vec<Attempt<F>>) -> (SocketAddr, F::Output) {
    std::future::poll_fn(|cx| {
        for at in 0..running.len() {
            if let Poll::Ready(ended) = running[at].1.as_mut().poll(cx) {
                return Poll::Ready((running.remove(at).0, ended));
            }
        }
        Poll::Pending
    })
    .await
}

/// Whether an error is a shortage that concerns every address.
fn is_for_all(error: &io::Error) -> bool {
    match Kind::of(error) {
        Some(
            Kind::Descriptors
            | Kind::SystemDescriptors
            | Kind::Memory
            | Kind::Threads
            | Kind::Resolver,
        ) => true,
        // Local ports run out per destination.
        Some(Kind::Ports) | None => false,
    }
}

/// The error that sums up the failures of all addresses. `has_source` says whether this machine has a source address
/// for a destination.
fn verdict(mut failures: Failures, has_source: impl Fn(SocketAddr) -> bool) -> DialError {
    if let Some(at) = failures.iter().position(|(_, error)| is_for_all(error)) {
        // Without the shortage, the other addresses might have answered.
        let (_, source) = failures.swap_remove(at);
        return match Shortage::try_from_error(source) {
            Ok(shortage) => shortage.into(),
            Err(error) => DialError::Connect(error),
        };
    }
    let lacks_ports = |(address, error): &(SocketAddr, io::Error)| {
        // EADDRNOTAVAIL also means that this machine has no address of that family.
        Kind::of(error) == Some(Kind::Ports) && has_source(*address)
    };
    if let Some(at) = failures.iter().position(lacks_ports) {
        let (_, source) = failures.swap_remove(at);
        return Shortage { kind: Kind::Ports, source }.into();
    }
    // The dialer reports "connection refused" only if every address that this machine can reach refuses.
    let weight = |(_, error): &(SocketAddr, io::Error)| match error.kind() {
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::NetworkUnreachable => 0,
        _ if error.raw_os_error() == Some(EAFNOSUPPORT) => 0,
        io::ErrorKind::ConnectionRefused => 1,
        _ => 2,
    };
    let no_address = || io::Error::new(io::ErrorKind::NotFound, "no address");
    let chosen = failures.into_iter().rev().max_by_key(weight);
    DialError::Connect(chosen.map_or_else(no_address, |(_, error)| error))
}

/// Whether this machine has a source address for `address`. Sends nothing: connecting a datagram socket only looks up
/// the route.
fn has_source_address(address: SocketAddr) -> bool {
    let any = if address.is_ipv4() {
        SocketAddr::from(([0; 4], 0))
    } else {
        SocketAddr::from(([0; 16], 0))
    };
    match UdpSocket::bind(any) {
        Ok(socket) => socket.connect(address).is_ok(),
        // Without a descriptor we cannot find out, and assume that there is one.
        Err(error) => is_for_all(&error),
    }
}

/// EAFNOSUPPORT: the system does not support the family of an address.
const EAFNOSUPPORT: i32 = if cfg!(target_os = "linux") { 97 } else { 47 };

#[cfg(test)]
mod tests;
