//! Resolves the join addresses again and again, because pods come back under other addresses.
//!
//! Only resolving is done here; the membership contacts the addresses. Each name is resolved by itself, and its addresses
//! are used as soon as they are known, so that a silent name server delays nothing else. A name that can't be resolved
//! keeps the addresses that it had, and its error is shown in `/ha/health`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use smg_runtime::resolve::ResolveError;
use smg_runtime::shortage::Kind;
use smg_runtime::tasks::turned_on;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::advertise;
use crate::config::HostServices;
use crate::driver::Command;
use crate::join_address::JoinAddress;
use crate::view::View;

/// Time between two rounds of resolving while alone.
const ALONE: Duration = Duration::from_secs(1);

/// The same while others are there.
const TOGETHER: Duration = Duration::from_secs(10);

/// How long a name may take: longer than the system waits for its first name server, five seconds as a rule, before it
/// asks the second.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(6);

/// What became of a join address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Resolved {
    /// Where it led when it could last be resolved.
    pub(super) addresses: Vec<SocketAddr>,
    /// Why it could not be resolved the last time.
    pub(super) error: Option<String>,
}

/// What became of all of them.
pub(super) type Resolutions = Arc<Mutex<BTreeMap<JoinAddress, Resolved>>>;

/// Resolves the join addresses and gives them to the driver.
#[derive(Debug)]
pub(super) struct Joiner {
    pub(super) wanted: Vec<JoinAddress>,
    pub(super) services: HostServices,
    /// The advertised address, as long as the route to a join address would tell a better one.
    pub(super) provisional: Option<SocketAddr>,
    pub(super) resolutions: Resolutions,
    pub(super) commands: mpsc::Sender<Command>,
    /// Whether there is anybody else.
    pub(super) view: watch::Receiver<Arc<View>>,
    /// Turns true when the router ends.
    pub(super) stopping: watch::Receiver<bool>,
}

/// The driver is gone: there is nobody to join for.
#[derive(Debug)]
struct DriverGone;

impl Joiner {
    /// Runs until the end.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        let mut given = Vec::new();
        loop {
            if self.resolve_all(&mut given).await.is_err() {
                return Ok(());
            }
            if self.wanted.is_empty() {
                turned_on(&mut self.stopping).await;
                return Ok(());
            }
            let alone = !self.view.borrow_and_update().has_others();
            tokio::select! {
                () = tokio::time::sleep(if alone { ALONE } else { TOGETHER }) => {}
                () = turned_on(&mut self.stopping) => return Ok(()),
            }
        }
    }

    /// Resolves all names at once, and gives the driver what is known after each and at the end. `given`: what it was
    /// given last.
    async fn resolve_all(&mut self, given: &mut Vec<SocketAddr>) -> Result<(), DriverGone> {
        let mut lookups = JoinSet::new();
        for address in self.wanted.iter().cloned() {
            let resolver = self.services.resolver.clone();
            lookups.spawn(async move {
                let resolving = resolver.resolve(address.host(), address.port());
                let found = tokio::time::timeout(RESOLVE_TIMEOUT, resolving).await;
                (address, found)
            });
        }
        while let Some(Ok((address, found))) = lookups.join_next().await {
            let found = found.unwrap_or_else(|_elapsed| {
                Err(ResolveError::Unknown {
                    kind: Kind::Resolver,
                    host: address.host().to_owned(),
                    why: format!("no answer within {RESOLVE_TIMEOUT:?}"),
                })
            });
            self.note(&address, found).await?;
            let known = self.known();
            // A list of this router alone would say that there is nobody else, and that is too early to say.
            let me = self.view.borrow().me.address;
            if !lookups.is_empty() && known != *given && known.iter().any(|known| *known != me) {
                self.give(known, given).await?;
            }
        }
        let known = self.known();
        // An empty list says that there is nobody to look for; names that lead nowhere yet don't say that.
        if self.wanted.is_empty() || !known.is_empty() {
            self.give(known, given).await?;
        }
        Ok(())
    }

    /// Notes what became of one name.
    async fn note(
        &mut self,
        address: &JoinAddress,
        found: Result<Vec<SocketAddr>, ResolveError>,
    ) -> Result<(), DriverGone> {
        match found {
            Ok(addresses) => {
                debug!(%address, ?addresses, "resolved");
                self.improve_advertised(&addresses).await?;
                let resolved = Resolved { addresses, error: None };
                self.resolutions.lock().insert(address.clone(), resolved);
            }
            Err(error) => {
                if let ResolveError::Unknown { kind, .. } = &error {
                    self.services.shortages.report(*kind, "resolving a join address", &error);
                }
                let error = error.to_string();
                let mut resolutions = self.resolutions.lock();
                let resolved = resolutions.entry(address.clone()).or_default();
                if resolved.error.as_ref() != Some(&error) {
                    warn!(%address, %error, "a join address can't be resolved");
                }
                resolved.error = Some(error);
            }
        }
        Ok(())
    }

    /// The first name that is resolved tells from which address this machine reaches the others.
    async fn improve_advertised(&mut self, addresses: &[SocketAddr]) -> Result<(), DriverGone> {
        let Some(now) = self.provisional else { return Ok(()) };
        let Some(ip) = advertise::from_routes(addresses.iter().copied()) else { return Ok(()) };
        self.provisional = None;
        let better = SocketAddr::new(ip, now.port());
        if better != now {
            info!(was = %now, is = %better, "the route to a join address tells the address to advertise");
            self.command(Command::Readdress(better)).await?;
        }
        Ok(())
    }

    /// All addresses that are known.
    fn known(&self) -> Vec<SocketAddr> {
        let mut known: Vec<SocketAddr> = {
            let resolutions = self.resolutions.lock();
            resolutions.values().flat_map(|resolved| resolved.addresses.clone()).collect()
        };
        known.sort_unstable();
        known.dedup();
        known
    }

    async fn give(
        &self,
        addresses: Vec<SocketAddr>,
        given: &mut Vec<SocketAddr>,
    ) -> Result<(), DriverGone> {
        if *given != addresses {
            info!(?addresses, "join addresses");
            given.clone_from(&addresses);
        }
        self.command(Command::Join(addresses)).await
    }

    async fn command(&self, command: Command) -> Result<(), DriverGone> {
        self.commands.send(command).await.map_err(|_closed| DriverGone)
    }
}

#[cfg(test)]
mod tests {
    use smg_cluster::membership::{MemberState, MemberView};
    use smg_runtime::clock::Clock;
    use smg_runtime::resolve::Resolver;
    use smg_runtime::shortage::Shortages;
    use smg_types::ids::{Generation, NodeId};

    use super::*;

    /// A joiner for names that `lookup` resolves, and what it tells the driver.
    fn joiner(
        names: &[&str],
        lookup: impl Fn(&str) -> std::io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> (Joiner, mpsc::Receiver<Command>, watch::Sender<bool>) {
        let clock = Clock::start();
        let (commands, told) = mpsc::channel(16);
        let (stop, stopping) = watch::channel(false);
        let me = MemberView {
            node: NodeId { name: "me".parse().unwrap(), generation: Generation(1) },
            address: "10.0.0.9:39527".parse().unwrap(),
            state: MemberState::Init,
            since: Duration::ZERO,
            renewal: 0,
            incarnation: 0,
            rtt: None,
        };
        let view = View { me, members: Vec::new(), refused: None, version: 0, warm: false };
        // A view that nobody changes any more can still be read.
        let view = watch::channel(Arc::new(view)).1;
        let joiner = Joiner {
            wanted: names.iter().map(|name| name.parse().unwrap()).collect(),
            services: HostServices {
                resolver: Resolver::with(clock, move |host, _| lookup(host)),
                shortages: Shortages::unregistered(clock),
            },
            provisional: None,
            resolutions: Arc::default(),
            commands,
            view,
            stopping,
        };
        (joiner, told, stop)
    }

    async fn next(told: &mut mpsc::Receiver<Command>) -> String {
        let command = tokio::time::timeout(Duration::from_secs(20), told.recv()).await;
        match command.expect("the driver is told nothing").expect("the joiner ended") {
            Command::Join(addresses) => format!("join {addresses:?}"),
            Command::Readdress(address) => format!("readdress {address}"),
            other => format!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_silent_name_delays_no_other() {
        let (answer, gate) = std::sync::mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let (joiner, mut told, stop) = joiner(&["silent", "good"], move |host| {
            if host == "silent" {
                let _answered = gate.lock().recv();
            }
            let last = if host == "silent" { 1 } else { 2 };
            Ok(vec![SocketAddr::from(([10, 0, 0, last], 39527))])
        });
        let resolutions = Arc::clone(&joiner.resolutions);
        let clock = Clock::start();
        let watching = async {
            assert_eq!(next(&mut told).await, "join [10.0.0.2:39527]");
            assert!(clock.mono() < RESOLVE_TIMEOUT, "{:?}", clock.mono());
            // The round ends, and says so of the silent one.
            assert_eq!(next(&mut told).await, "join [10.0.0.2:39527]");
            let error = resolutions.lock()[&"silent".parse().unwrap()].error.clone().unwrap();
            assert!(error.contains("no answer within 6s"), "{error}");
            drop(answer);
            assert_eq!(next(&mut told).await, "join [10.0.0.1:39527, 10.0.0.2:39527]");
            stop.send_replace(true);
            drop(told);
        };
        let (ended, ()) = tokio::join!(joiner.run(), watching);
        ended.unwrap();
    }

    #[tokio::test]
    async fn this_router_alone_is_no_news_before_all_names_are_known() {
        let (answer, gate) = std::sync::mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let (joiner, mut told, stop) = joiner(&["late", "mine"], move |host| {
            if host == "late" {
                let _answered = gate.lock().recv();
            }
            let last = if host == "late" { 1 } else { 9 };
            Ok(vec![SocketAddr::from(([10, 0, 0, last], 39527))])
        });
        let resolutions = Arc::clone(&joiner.resolutions);
        let watching = async {
            while !resolutions.lock().contains_key(&"mine".parse().unwrap()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            answer.send(()).unwrap();
            assert_eq!(next(&mut told).await, "join [10.0.0.1:39527, 10.0.0.9:39527]");
            stop.send_replace(true);
            drop(told);
        };
        let (ended, ()) = tokio::join!(joiner.run(), watching);
        ended.unwrap();
    }

    #[tokio::test]
    async fn the_first_name_tells_the_address_to_advertise() {
        let (mut joiner, mut told, stop) =
            joiner(&["here"], |_| Ok(vec!["127.0.0.1:4000".parse().unwrap()]));
        joiner.provisional = Some("10.0.0.9:39527".parse().unwrap());
        let watching = async {
            assert_eq!(next(&mut told).await, "readdress 127.0.0.1:39527");
            assert_eq!(next(&mut told).await, "join [127.0.0.1:4000]");
            // Once is enough.
            assert_eq!(next(&mut told).await, "join [127.0.0.1:4000]");
            stop.send_replace(true);
            drop(told);
        };
        let (ended, ()) = tokio::join!(joiner.run(), watching);
        ended.unwrap();
    }
}
