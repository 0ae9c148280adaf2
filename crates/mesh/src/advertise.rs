//! Finds the address at which other routers reach this one.
//!
//! The candidates are, in this order: `--mesh-advertise-host`; `--mesh-host` if it is a single address; `POD_IP`
//! (Kubernetes); the address from which this machine reaches the first join address; the address of its default route;
//! any address that is not loopback. A router may listen on all addresses (`0.0.0.0`), but never advertises that.
//!
//! Nothing here resolves a name, because the start must not wait for DNS. While the join addresses are names, the
//! choice is provisional: `join` repeats it with [`from_routes`] as soon as a name is resolved.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::join_address::JoinAddress;

/// Where an advertised address came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The address of `--mesh-advertise-host`.
    Flag,
    /// The address of `--mesh-host`.
    Listen,
    /// The address in the variable `POD_IP`.
    Pod,
    /// The route to a join address.
    RouteToPeers,
    /// The local address of the default route.
    DefaultRoute,
    /// The first interface that is not loopback.
    Interface,
    /// Only routers of this machine can reach the address. Used if there is no other.
    Loopback,
}

impl Source {
    /// Whether a route to a join address would give a better address.
    pub(super) const fn is_provisional(self) -> bool {
        match self {
            Self::Flag | Self::Listen | Self::Pod | Self::RouteToPeers => false,
            Self::DefaultRoute | Self::Interface | Self::Loopback => true,
        }
    }
}

/// The configured candidates for the address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// The address of `--mesh-advertise-host`.
    pub flag: Option<IpAddr>,
    /// The address in the variable `POD_IP`.
    pub pod: Option<IpAddr>,
}

/// Chooses the address and returns where it came from. Resolves no name and sends nothing.
pub(super) fn choose(wanted: &Wanted, listen: IpAddr, join: &[JoinAddress]) -> (IpAddr, Source) {
    let configured =
        [(wanted.flag, Source::Flag), (Some(listen), Source::Listen), (wanted.pod, Source::Pod)]
            .into_iter()
            .find_map(|(address, source)| Some((address.filter(is_one)?, source)));
    configured
        .or_else(|| {
            let literal =
                |join: &JoinAddress| Some(SocketAddr::new(join.host().parse().ok()?, join.port()));
            let found = from_routes(join.iter().filter_map(literal))?;
            Some((found, Source::RouteToPeers))
        })
        // No packet is sent: connecting a datagram socket only looks up the route. The addresses are reserved for
        // documentation (RFC 5737, RFC 3849).
        .or_else(|| {
            let found = from_routes(DOCUMENTATION.into_iter())?;
            Some((found, Source::DefaultRoute))
        })
        .or_else(|| Some((first_interface()?, Source::Interface)))
        .unwrap_or_else(|| (loopback_like(listen), Source::Loopback))
}

/// Unused addresses, which are reached by the default route.
const DOCUMENTATION: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 9),
    SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9),
];

fn is_one(address: &IpAddr) -> bool {
    !address.is_unspecified()
}

/// The local address from which this machine would send to the first of `targets` that has a route and is not its own
/// address.
pub(super) fn from_routes(mut targets: impl Iterator<Item = SocketAddr>) -> Option<IpAddr> {
    targets.find_map(route_to)
}

/// The local address from which this machine would send to a target; `None` if the target is its own address.
fn route_to(target: SocketAddr) -> Option<IpAddr> {
    let any = if target.is_ipv4() {
        SocketAddr::from(([0; 4], 0))
    } else {
        SocketAddr::from(([0; 16], 0))
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(target).ok()?;
    let mine = socket.local_addr().ok()?.ip();
    // A route to ourselves does not show which address other machines reach. Loopback on both ends means a cluster on
    // one machine.
    let is_mine = mine == target.ip() && !mine.is_loopback();
    (is_one(&mine) && !is_mine).then_some(mine)
}

fn first_interface() -> Option<IpAddr> {
    let mut addresses: Vec<IpAddr> = if_addrs::get_if_addrs()
        .ok()?
        .into_iter()
        .filter(|interface| !interface.is_loopback() && !interface.is_link_local())
        .map(|interface| interface.ip())
        .collect();
    // IPv4 comes first, because most clusters use it. The order makes the choice the same each time.
    addresses.sort_by_key(|address| (address.is_ipv6(), *address));
    addresses.into_iter().next()
}

fn loopback_like(listen: IpAddr) -> IpAddr {
    match listen {
        IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(_) => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn configured_addresses_take_precedence() {
        let wanted = Wanted { flag: Some(ip("10.1.1.1")), pod: Some(ip("10.2.2.2")) };
        assert_eq!(choose(&wanted, ip("10.3.3.3"), &[]), (ip("10.1.1.1"), Source::Flag));
        let wanted = Wanted { flag: None, ..wanted };
        assert_eq!(choose(&wanted, ip("10.3.3.3"), &[]), (ip("10.3.3.3"), Source::Listen));
        assert_eq!(choose(&wanted, ip("0.0.0.0"), &[]), (ip("10.2.2.2"), Source::Pod));
    }

    #[test]
    fn the_route_to_a_join_address_selects_the_address() {
        let join = ["127.0.0.1:39527".parse().unwrap()];
        let found = choose(&Wanted::default(), ip("0.0.0.0"), &join);
        assert_eq!(found, (ip("127.0.0.1"), Source::RouteToPeers));
    }

    #[test]
    fn names_are_not_resolved() {
        // Names are not resolved here, so the choice is the same as without these.
        let join = ["localhost:39527".parse().unwrap(), "nowhere.invalid:1".parse().unwrap()];
        let found = choose(&Wanted::default(), ip("0.0.0.0"), &join);
        assert_eq!(found, choose(&Wanted::default(), ip("0.0.0.0"), &[]));
        assert!(found.1.is_provisional());
        // After one of them was resolved, its route selects the address.
        let resolved = ["127.0.0.1:39527".parse().unwrap()];
        assert_eq!(from_routes(resolved.into_iter()), Some(ip("127.0.0.1")));
    }

    #[test]
    fn all_addresses_are_never_advertised() {
        for listen in ["0.0.0.0", "::"] {
            let wanted = Wanted { flag: Some(ip(listen)), pod: Some(ip(listen)) };
            assert!(!choose(&wanted, ip(listen), &[]).0.is_unspecified());
        }
    }
}
