//! Resolves the join addresses repeatedly, because pods return with other addresses.
//!
//! This module only resolves; the membership contacts the addresses. Each name is resolved separately, and its
//! addresses are used as soon as they are known, so that a silent name server delays nothing else. If a name can't be
//! resolved, its previous addresses stay in use, and its error is shown in `/ha/health`.

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

/// The time between two rounds of resolving while there are no other members.
const ALONE: Duration = Duration::from_secs(1);

/// The time between two rounds of resolving while there are other members.
const TOGETHER: Duration = Duration::from_secs(10);

/// How long a look-up may take. This is longer than the usual five seconds after which the system asks its second name
/// server.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(6);

/// The result of resolving a join address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Resolved {
    /// The addresses of the last successful look-up.
    pub(super) addresses: Vec<SocketAddr>,
    /// The error of the last look-up, if it failed.
    pub(super) error: Option<String>,
}

/// The results for all join addresses.
pub(super) type Resolutions = Arc<Mutex<BTreeMap<JoinAddress, Resolved>>>;

/// Resolves the join addresses and passes them to the driver.
#[derive(Debug)]
pub(super) struct Joiner {
    /// The join addresses. A reload of the configuration may replace them.
    pub(super) wanted: watch::Receiver<Vec<JoinAddress>>,
    pub(super) services: HostServices,
    /// The advertised address, until a route to a join address gives a better one.
    pub(super) provisional: Option<SocketAddr>,
    pub(super) resolutions: Resolutions,
    pub(super) commands: mpsc::Sender<Command>,
    /// Shows whether there are other members.
    pub(super) view: watch::Receiver<Arc<View>>,
    /// Changes to `true` when the router shuts down.
    pub(super) stopping: watch::Receiver<bool>,
}

/// The driver has ended, so there is no need to join.
#[derive(Debug)]
struct DriverGone;

impl Joiner {
    /// Runs until the router shuts down or the driver has ended.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        let mut given = Vec::new();
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            self.resolutions.lock().retain(|address, _| wanted.contains(address));
            if self.resolve_all(&wanted, &mut given).await.is_err() {
                return Ok(());
            }
            let alone = !self.view.borrow_and_update().has_others();
            let pause = async {
                match wanted.is_empty() {
                    // Without a join address there is nothing to resolve.
                    true => std::future::pending().await,
                    false => tokio::time::sleep(if alone { ALONE } else { TOGETHER }).await,
                }
            };
            tokio::select! {
                () = pause => {}
                () = replaced(&mut self.wanted) => {}
                () = turned_on(&mut self.stopping) => return Ok(()),
            }
        }
    }

    /// Resolves all names concurrently, and passes the known addresses to the driver after each name and at the end.
    /// `given` holds what the driver received last.
    async fn resolve_all(
        &mut self,
        wanted: &[JoinAddress],
        given: &mut Vec<SocketAddr>,
    ) -> Result<(), DriverGone> {
        let mut lookups = JoinSet::new();
        for address in wanted.iter().cloned() {
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
            self.record(&address, found).await?;
            let known = self.known();
            // A list that contains only this router would mean that there are no others, which is not known yet.
            let me = self.view.borrow().me.address;
            if !lookups.is_empty() && known != *given && known.iter().any(|known| *known != me) {
                self.give(known, given).await?;
            }
        }
        let known = self.known();
        // An empty list means that there are no join addresses. It must not be sent while names could not be resolved.
        if wanted.is_empty() || !known.is_empty() {
            self.give(known, given).await?;
        }
        Ok(())
    }

    /// Records the result of resolving one name.
    async fn record(
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

    /// Uses the first resolved name to find the local address from which this machine reaches the others.
    async fn improve_advertised(&mut self, addresses: &[SocketAddr]) -> Result<(), DriverGone> {
        let Some(now) = self.provisional else { return Ok(()) };
        let Some(ip) = advertise::from_routes(addresses.iter().copied()) else { return Ok(()) };
        self.provisional = None;
        let better = SocketAddr::new(ip, now.port());
        if better != now {
            info!(was = %now, is = %better, "the route to a join address has changed the advertised address");
            self.command(Command::Readdress(better)).await?;
        }
        Ok(())
    }

    /// All known addresses of all names.
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
            info!(?addresses, "the resolved join addresses have changed");
            given.clone_from(&addresses);
        }
        self.command(Command::Join(addresses)).await
    }

    async fn command(&self, command: Command) -> Result<(), DriverGone> {
        self.commands.send(command).await.map_err(|_closed| DriverGone)
    }
}

/// Resolves when the join addresses are replaced.
async fn replaced(wanted: &mut watch::Receiver<Vec<JoinAddress>>) {
    if wanted.changed().await.is_err() {
        // No handle is left that could replace them.
        std::future::pending::<()>().await;
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

    /// A joiner for names that `lookup` resolves, and the commands that it sends to the driver.
    fn joiner(
        names: &[&str],
        lookup: impl Fn(&str) -> std::io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> (Joiner, mpsc::Receiver<Command>, watch::Sender<bool>) {
        let clock = Clock::start();
        let (commands, received) = mpsc::channel(16);
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
        // A watch whose sender is dropped can still be read.
        let view = watch::channel(Arc::new(view)).1;
        let joiner = Joiner {
            wanted: watch::channel(names.iter().map(|name| name.parse().unwrap()).collect()).1,
            services: HostServices {
                resolver: Resolver::with(clock, move |host, _| lookup(host)),
                shortages: Shortages::unregistered(clock),
                disk_metrics: None,
            },
            provisional: None,
            resolutions: Arc::default(),
            commands,
            view,
            stopping,
        };
        (joiner, received, stop)
    }

    async fn next(received: &mut mpsc::Receiver<Command>) -> String {
        let command = tokio::time::timeout(Duration::from_secs(20), received.recv()).await;
        match command.expect("the driver must receive a command").expect("the joiner must not end")
        {
            Command::Join(addresses) => format!("join {addresses:?}"),
            Command::Readdress(address) => format!("readdress {address}"),
            other => format!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_silent_name_delays_no_other() {
        let (answer, gate) = std::sync::mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let (joiner, mut received, stop) = joiner(&["silent", "good"], move |host| {
            if host == "silent" {
                let _answered = gate.lock().recv();
            }
            let last = if host == "silent" { 1 } else { 2 };
            Ok(vec![SocketAddr::from(([10, 0, 0, last], 39527))])
        });
        let resolutions = Arc::clone(&joiner.resolutions);
        let clock = Clock::start();
        let watching = async {
            assert_eq!(next(&mut received).await, "join [10.0.0.2:39527]");
            assert!(clock.mono() < RESOLVE_TIMEOUT, "{:?}", clock.mono());
            // The round ends, and the error of the silent name is recorded.
            assert_eq!(next(&mut received).await, "join [10.0.0.2:39527]");
            let error = resolutions.lock()[&"silent".parse().unwrap()].error.clone().unwrap();
            assert!(error.contains("no answer within 6s"), "{error}");
            drop(answer);
            assert_eq!(next(&mut received).await, "join [10.0.0.1:39527, 10.0.0.2:39527]");
            stop.send_replace(true);
            drop(received);
        };
        let (ended, ()) = tokio::join!(joiner.run(), watching);
        ended.unwrap();
    }

    #[tokio::test]
    async fn a_list_of_this_router_alone_is_not_sent_before_all_names_are_resolved() {
        let (answer, gate) = std::sync::mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let (joiner, mut received, stop) = joiner(&["late", "mine"], move |host| {
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
            assert_eq!(next(&mut received).await, "join [10.0.0.1:39527, 10.0.0.9:39527]");
            stop.send_replace(true);
            drop(received);
        };
        let (ended, ()) = tokio::join!(joiner.run(), watching);
        ended.unwrap();
    }

    #[tokio::test]
    async fn replaced_addresses_are_resolved_at_once_and_the_former_ones_are_forgotten() {
        let (mut joiner, mut received, stop) = joiner(&[], |host| {
            let last = if host == "first" { 1 } else { 2 };
            Ok(vec![SocketAddr::from(([10, 0, 0, last], 39527))])
        });
        let (wanted, receiver) = watch::channel(Vec::new());
        joiner.wanted = receiver;
        let resolutions = Arc::clone(&joiner.resolutions);
        let watching = async {
            // Without an address, the joiner waits for one and asks for nothing.
            assert_eq!(next(&mut received).await, "join []");
            for (name, given) in [("first", "10.0.0.1"), ("second", "10.0.0.2")] {
                wanted.send_replace(vec![name.parse().unwrap()]);
                assert_eq!(next(&mut received).await, format!("join [{given}:39527]"));
                let known: Vec<_> = resolutions.lock().keys().map(ToString::to_string).collect();
                assert!(known.len() == 1 && known[0].starts_with(name), "{known:?}");
            }
            wanted.send_replace(Vec::new());
            assert_eq!(next(&mut received).await, "join []");
            stop.send_replace(true);
            drop(received);
        };
        let (ended, ()) = tokio::join!(joiner.run(), watching);
        ended.unwrap();
    }

    #[tokio::test]
    async fn the_first_resolved_name_changes_the_advertised_address() {
        let (mut joiner, mut received, stop) =
            joiner(&["here"], |_| Ok(vec!["127.0.0.1:4000".parse().unwrap()]));
        joiner.provisional = Some("10.0.0.9:39527".parse().unwrap());
        let watching = async {
            assert_eq!(next(&mut received).await, "readdress 127.0.0.1:39527");
            assert_eq!(next(&mut received).await, "join [127.0.0.1:4000]");
            // The address is changed only once.
            assert_eq!(next(&mut received).await, "join [127.0.0.1:4000]");
            stop.send_replace(true);
            drop(received);
        };
        let (ended, ()) = tokio::join!(joiner.run(), watching);
        ended.unwrap();
    }
}
