//! Where a newcomer knocks: join addresses, resolved again and again, for pods come back under other addresses.
//!
//! Resolving is all that is done here; knocking is the membership's. A name that can't be resolved keeps the addresses
//! that it had, and its error is shown in `/ha/health`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use smg_runtime::tasks::turned_on;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::driver::Command;
use super::{DEFAULT_PORT, View};

/// Time between two rounds of resolving while alone.
const ALONE: Duration = Duration::from_secs(1);

/// The same while others are there.
const TOGETHER: Duration = Duration::from_secs(10);

/// How long a name may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Where another router may be found: a name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JoinAddress {
    host: String,
    port: u16,
}

impl JoinAddress {
    /// The name or address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for JoinAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A text that names no place where a router may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseJoinAddressError {
    /// Nothing where the host should be.
    #[error("has no host")]
    NoHost,
    /// Not a name and not an address.
    #[error("has a host that is neither a name nor an address")]
    BadHost,
    /// Not a port.
    #[error("has a port that is not a number from 1 to 65535")]
    BadPort,
    /// A path, a query or credentials.
    #[error("is more than a host and a port")]
    TooMuch,
}

impl FromStr for JoinAddress {
    type Err = ParseJoinAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = ["http://", "https://"]
            .into_iter()
            .find_map(|scheme| text.strip_prefix(scheme))
            .map_or(text, |rest| rest.strip_suffix('/').unwrap_or(rest));
        if rest.contains(['/', '?', '#', '@']) {
            return Err(ParseJoinAddressError::TooMuch);
        }
        let (host, port) = if let Some(bracketed) = rest.strip_prefix('[') {
            let (host, after) = bracketed.split_once(']').ok_or(ParseJoinAddressError::BadHost)?;
            let port = match after {
                "" => None,
                after => Some(after.strip_prefix(':').ok_or(ParseJoinAddressError::BadPort)?),
            };
            if !host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) {
                return Err(ParseJoinAddressError::BadHost);
            }
            (host, port)
        } else if rest.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) {
            (rest, None)
        } else {
            rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)))
        };
        if host.is_empty() {
            return Err(ParseJoinAddressError::NoHost);
        }
        let is_host = host.len() <= 253
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
            && (!host.contains(':') || host.parse::<IpAddr>().is_ok());
        if !is_host {
            return Err(ParseJoinAddressError::BadHost);
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
                port.parse().ok().filter(|port| *port != 0).ok_or(ParseJoinAddressError::BadPort)?
            }
            Some(_) => return Err(ParseJoinAddressError::BadPort),
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

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

/// Resolves the join addresses and tells the driver.
#[derive(Debug)]
pub(super) struct Joiner {
    pub(super) wanted: Vec<JoinAddress>,
    pub(super) resolutions: Resolutions,
    pub(super) commands: mpsc::Sender<Command>,
    /// Whether there is anybody else.
    pub(super) view: watch::Receiver<Arc<View>>,
    /// Turns true when the router ends.
    pub(super) stopping: watch::Receiver<bool>,
}

impl Joiner {
    /// Runs until the end.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self { wanted, resolutions, commands, mut view, mut stopping } = self;
        if wanted.is_empty() {
            turned_on(&mut stopping).await;
            return Ok(());
        }
        let mut told = Vec::new();
        loop {
            resolve_all(&wanted, &resolutions).await;
            let mut addresses: Vec<SocketAddr> = {
                let resolutions = resolutions.lock();
                resolutions.values().flat_map(|resolved| resolved.addresses.clone()).collect()
            };
            addresses.sort_unstable();
            addresses.dedup();
            // An empty list would say that there is nobody to look for; names that lead nowhere yet don't say that.
            if !addresses.is_empty() {
                if told != addresses {
                    info!(?addresses, "knocking at");
                    told.clone_from(&addresses);
                }
                if commands.send(Command::Join(addresses)).await.is_err() {
                    return Ok(());
                }
            }
            let alone = !view.borrow_and_update().has_others();
            tokio::select! {
                () = tokio::time::sleep(if alone { ALONE } else { TOGETHER }) => {}
                () = turned_on(&mut stopping) => return Ok(()),
            }
        }
    }
}

async fn resolve_all(wanted: &[JoinAddress], resolutions: &Resolutions) {
    // All at once, or a slow name would hold up the rest.
    let mut lookups = JoinSet::new();
    for address in wanted.iter().cloned() {
        lookups.spawn(async move {
            let target = (address.host.clone(), address.port);
            let found = match tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(target))
                .await
            {
                Ok(Ok(found)) => Ok(found.collect::<Vec<_>>()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_elapsed) => Err(format!("no answer within {RESOLVE_TIMEOUT:?}")),
            };
            (address, found)
        });
    }
    while let Some(Ok((address, found))) = lookups.join_next().await {
        let mut resolutions = resolutions.lock();
        let resolved = resolutions.entry(address.clone()).or_default();
        match found {
            Ok(addresses) => {
                debug!(%address, ?addresses, "resolved");
                *resolved = Resolved { addresses, error: None };
            }
            Err(error) => {
                if resolved.error.as_ref() != Some(&error) {
                    warn!(%address, %error, "a join address can't be resolved");
                }
                resolved.error = Some(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_spelling_is_understood() {
        for (text, shown) in [
            ("node1:39527", "node1:39527"),
            ("node1", "node1:39527"),
            ("smg-0.smg-mesh:4000", "smg-0.smg-mesh:4000"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("[::1]:39527", "[::1]:39527"),
            ("[fd00::1]", "[fd00::1]:39527"),
            ("fd00::1", "[fd00::1]:39527"),
            ("http://node1:39527", "node1:39527"),
            ("https://node1:39527/", "node1:39527"),
        ] {
            let address: JoinAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), shown, "{text}");
            assert_eq!(address.to_string().parse(), Ok(address), "{text} again");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        use ParseJoinAddressError::{BadHost, BadPort, NoHost, TooMuch};
        for (text, why) in [
            ("", NoHost),
            (":39527", NoHost),
            ("http://", NoHost),
            ("node1:0", BadPort),
            ("node1:port", BadPort),
            ("node1:+1", BadPort),
            ("node1:70000", BadPort),
            ("node1:1:2", BadPort),
            ("no de:1", BadHost),
            ("[node1]:1", BadHost),
            ("[::1", BadHost),
            ("[::1]1", BadPort),
            ("ftp://node1", TooMuch),
            ("http://node1/path", TooMuch),
            ("http://user@node1", TooMuch),
        ] {
            assert_eq!(text.parse::<JoinAddress>(), Err(why), "{text:?}");
        }
    }
}
