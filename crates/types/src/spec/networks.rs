//! The addresses at which no worker is expected: link-local ones and those of cloud metadata services, which give
//! credentials to every caller. The router connects to one only if the configuration permits it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::WorkerUrl;

/// The names of metadata services. A resolver of the cloud would answer with an address that is refused anyway, but
/// this gives a clearer error.
const METADATA_NAMES: [&str; 6] = [
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "metadata.azure.internal",
    "metadata.packet.net",
    "instance-data",
];

/// The metadata services of AWS (IPv6), Google (IPv6), Alibaba, Oracle and Azure that are not at a link-local address.
const METADATA_ADDRESSES: [IpAddr; 5] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

/// An address or a name at which no worker is expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForbiddenPlace {
    /// The address is link-local.
    #[error(
        "{0} is a link-local address, where cloud metadata services are: if it is a worker, permit it with \
         --allow-worker-cidr"
    )]
    LinkLocal(IpAddr),
    /// The address is that of a metadata service.
    #[error(
        "{0} is the address of a cloud metadata service: if it is a worker, permit it with --allow-worker-cidr"
    )]
    Metadata(IpAddr),
    /// The name is that of a metadata service.
    #[error("{0} is the name of a cloud metadata service: if it is a worker, give its address")]
    MetadataName(String),
}

/// The networks in which workers are allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerNetworks {
    /// The networks that are permitted although they are link-local or of a metadata service.
    permitted: Vec<IpNet>,
}

impl WorkerNetworks {
    /// Permits `permitted` in addition to all ordinary addresses.
    #[must_use]
    pub fn permitting(permitted: Vec<IpNet>) -> Self {
        Self { permitted }
    }

    /// Checks that a worker is allowed at `address`.
    ///
    /// # Errors
    /// If the address is link-local or of a metadata service, and is not permitted.
    pub fn check_address(&self, address: IpAddr) -> Result<(), ForbiddenPlace> {
        let meant = embedded(address);
        let forbidden = if is_link_local(meant) {
            ForbiddenPlace::LinkLocal(meant)
        } else if METADATA_ADDRESSES.contains(&meant) {
            ForbiddenPlace::Metadata(meant)
        } else {
            return Ok(());
        };
        let permitted = |net: &IpNet| net.contains(&meant) || net.contains(&address);
        if self.permitted.iter().any(permitted) { Ok(()) } else { Err(forbidden) }
    }

    /// Checks that a worker is allowed at the host of `url`, as far as the URL shows. The addresses of a name are
    /// checked at each connection.
    ///
    /// # Errors
    /// As [`WorkerNetworks::check_address`]; also if the host is the name of a metadata service.
    pub fn check_url(&self, url: &WorkerUrl) -> Result<(), ForbiddenPlace> {
        let host = url.host();
        if let Ok(address) = host.parse() {
            return self.check_address(address);
        }
        let name = host.trim_end_matches('.');
        if METADATA_NAMES.iter().any(|metadata| name.eq_ignore_ascii_case(metadata)) {
            return Err(ForbiddenPlace::MetadataName(name.to_owned()));
        }
        Ok(())
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The IPv4 address that an IPv6 address stands for (RFC 4291, 2.5.5; RFC 6052, 2.1); any other address as it is.
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address.to_canonical() else { return address.to_canonical() };
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] if high != 0 => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            Ipv4Addr::new(a, b, c, d).into()
        }
        _ => v6.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(networks: &WorkerNetworks, host: &str) -> bool {
        networks.check_url(&format!("http://{host}:8000").parse().unwrap()).is_ok()
    }

    #[test]
    fn links_and_metadata_services_are_refused_in_every_spelling() {
        let none = WorkerNetworks::default();
        for host in [
            "169.254.169.254",
            "169.254.0.1",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "[::ffff:169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "100.100.100.200",
            "metadata.google.internal",
            "METADATA.google.internal.",
        ] {
            assert!(!check(&none, host), "{host}");
        }
        for host in ["10.0.0.1", "127.0.0.1", "[::1]", "[fd00::1]", "gpu-1", "100.64.0.1"] {
            assert!(check(&none, host), "{host}");
        }
    }

    #[test]
    fn what_is_permitted_is_permitted() {
        let networks = WorkerNetworks::permitting(vec!["169.254.7.0/24".parse().unwrap()]);
        assert!(check(&networks, "169.254.7.9") && check(&networks, "[::ffff:169.254.7.9]"));
        assert!(!check(&networks, "169.254.8.9"));
    }
}
