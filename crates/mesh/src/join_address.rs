//! The addresses of other routers to join, and their spellings.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The default port of the mesh.
pub const DEFAULT_PORT: u16 = 39527;

/// An address of another router to join: a host name or an IP address, and a port.
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

    /// The TCP port.
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

/// Why a text is not a join address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseJoinAddressError {
    /// The host is missing.
    #[error("has no host")]
    NoHost,
    /// The host is neither a name nor an address.
    #[error("has a host that is neither a name nor an address")]
    BadHost,
    /// The port is not a number from 1 to 65535.
    #[error("has a port that is not a number from 1 to 65535")]
    BadPort,
    /// There is a path, a query or credentials.
    #[error("is not only a host and a port")]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_spelling_is_parsed() {
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
    fn invalid_addresses_are_refused() {
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
