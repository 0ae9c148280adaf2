//! Checks whether a worker's URL is an address at which this router itself listens. If a name resolves to one, or an
//! address is translated to one, the loop is detected when the first request returns (`hops`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smg_types::spec::WorkerUrl;

/// A worker's URL is an address of this router.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "worker {url} is this router itself, which listens on {listener}: give the engine's own address"
)]
pub struct OwnAddress {
    url: WorkerUrl,
    listener: SocketAddr,
}

/// The addresses at which this router listens.
#[derive(Debug, Clone, Default)]
pub struct OwnAddresses(Vec<SocketAddr>);

impl OwnAddresses {
    /// The addresses of `listeners`.
    #[must_use]
    pub fn new(listeners: Vec<SocketAddr>) -> Self {
        Self(listeners)
    }

    /// Refuses a worker whose URL is one of them.
    ///
    /// # Errors
    /// If the URL is such an address; the error names the listener.
    pub fn check(&self, url: &WorkerUrl) -> Result<(), OwnAddress> {
        self.check_among(url, interfaces)
    }

    fn check_among(
        &self,
        url: &WorkerUrl,
        interfaces: impl Fn() -> Vec<IpAddr>,
    ) -> Result<(), OwnAddress> {
        let addresses = addresses(url.host());
        let listeners = self.0.iter().filter(|listener| listener.port() == url.port());
        for listener in listeners {
            if addresses.iter().any(|address| reaches(*address, listener.ip(), &interfaces)) {
                return Err(OwnAddress { url: url.clone(), listener: *listener });
            }
        }
        Ok(())
    }
}

/// The addresses of a host that are known without asking a resolver.
fn addresses(host: &str) -> Vec<IpAddr> {
    let host = host.trim_end_matches('.');
    if let Ok(address) = host.parse::<IpAddr>() {
        let address = address.to_canonical();
        // The system connects an unspecified address to the machine itself.
        return match address {
            IpAddr::V4(v4) if v4.is_unspecified() => vec![Ipv4Addr::LOCALHOST.into()],
            IpAddr::V6(v6) if v6.is_unspecified() => vec![Ipv6Addr::LOCALHOST.into()],
            IpAddr::V4(_) | IpAddr::V6(_) => vec![address],
        };
    }
    // `localhost` and the names below it are loopback (RFC 6761, section 6.3).
    let lower = host.to_ascii_lowercase();
    if lower == "localhost" || lower.ends_with(".localhost") {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    Vec::new()
}

/// Whether a connection to `address` reaches a socket that listens on `listener`.
fn reaches(address: IpAddr, listener: IpAddr, interfaces: &impl Fn() -> Vec<IpAddr>) -> bool {
    let listener = listener.to_canonical();
    if !listener.is_unspecified() {
        return address == listener;
    }
    // A socket on `::` accepts IPv4 as well, unless the system is configured otherwise.
    let has_family = listener.is_ipv6() || address.is_ipv4();
    has_family && (address.is_loopback() || interfaces().contains(&address))
}

fn interfaces() -> Vec<IpAddr> {
    // Without the list of the machine's addresses, only certain matches are refused.
    let all = if_addrs::get_if_addrs().unwrap_or_default();
    all.into_iter().map(|interface| interface.ip()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_own(listener: &str, url: &str) -> bool {
        let own = OwnAddresses::new(vec![listener.parse().unwrap()]);
        let interfaces = || vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        own.check_among(&url.parse().unwrap(), interfaces).is_err()
    }

    #[test]
    fn the_router_knows_its_own_addresses() {
        for (listener, url) in [
            ("0.0.0.0:8000", "http://127.0.0.1:8000"),
            ("0.0.0.0:8000", "http://127.9.9.9:8000/v2"),
            ("0.0.0.0:8000", "http://localhost:8000"),
            ("0.0.0.0:8000", "http://LOCALHOST.:8000"),
            ("0.0.0.0:8000", "http://10.0.0.5:8000"),
            ("0.0.0.0:8000", "http://0.0.0.0:8000"),
            ("0.0.0.0:80", "http://10.0.0.5"),
            ("[::]:8000", "http://[::1]:8000"),
            ("[::]:8000", "http://10.0.0.5:8000"),
            ("[::]:8000", "http://[fd00::5]:8000"),
            ("[::]:8000", "http://[::ffff:10.0.0.5]:8000"),
            ("127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("127.0.0.1:8000", "http://0.0.0.0:8000"),
            ("10.0.0.5:8000", "http://10.0.0.5:8000"),
        ] {
            assert!(is_own(listener, url), "{listener} {url}");
        }
        for (listener, url) in [
            ("0.0.0.0:8000", "http://127.0.0.1:8001"),
            ("0.0.0.0:8000", "http://10.0.0.6:8000"),
            ("0.0.0.0:8000", "http://[::1]:8000"),
            ("127.0.0.1:8000", "http://10.0.0.5:8000"),
            ("127.0.0.1:8000", "http://127.0.0.2:8000"),
            ("0.0.0.0:8000", "http://engine:8000"),
        ] {
            assert!(!is_own(listener, url), "{listener} {url}");
        }
    }
}
