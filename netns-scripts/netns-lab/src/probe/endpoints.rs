//! The reflector's four endpoints, and the names of the ways from one to another.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::ProbeError;

/// The two addresses × two ports of a [`Reflector`](super::Reflector).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoints {
    addrs: [IpAddr; 2],
    ports: [u16; 2],
}

impl Endpoints {
    /// Names the endpoints of a reflector, which may run in another process.
    ///
    /// # Errors
    /// [`ProbeError::Endpoints`] unless the addresses differ and are of one family, and the ports differ and are not 0.
    pub fn new(addrs: [IpAddr; 2], ports: [u16; 2]) -> Result<Self, ProbeError> {
        let endpoints = Self { addrs, ports };
        let distinct = addrs[0] != addrs[1] && ports[0] != ports[1];
        if distinct && addrs[0].is_ipv4() == addrs[1].is_ipv4() && !ports.contains(&0) {
            Ok(endpoints)
        } else {
            Err(ProbeError::Endpoints(endpoints))
        }
    }

    /// The endpoint that a probe asks first: first address, first port.
    pub fn primary(&self) -> SocketAddr {
        self.at(Source::Same)
    }

    /// The endpoint that differs from the primary one as `source` says.
    pub fn at(&self, source: Source) -> SocketAddr {
        let bits = source as usize;
        SocketAddr::new(self.addrs[bits >> 1], self.ports[bits & 1])
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { addrs: [a, b], ports: [p, q] } = self;
        write!(f, "addresses {a} and {b}, ports {p} and {q}")
    }
}

/// Where something comes from, seen from the endpoint that was asked. The value is two bits, address and port: the
/// endpoint that answers is found by exclusive or.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Source {
    /// The endpoint that was asked.
    Same = 0,
    /// The same address, the other port.
    OtherPort = 1,
    /// The other address, the same port.
    OtherAddress = 2,
    /// The other address and the other port.
    Both = 3,
}

impl Source {
    /// All four, in the order of their values.
    pub const ALL: [Self; 4] = [Self::Same, Self::OtherPort, Self::OtherAddress, Self::Both];

    /// The three that a filter may hold back.
    pub const FOREIGN: [Self; 3] = [Self::OtherPort, Self::OtherAddress, Self::Both];

    pub(super) fn from_value(value: u8) -> Option<Self> {
        Self::ALL.get(usize::from(value)).copied()
    }

    /// The way that leads where `self` and then `then` lead.
    pub(super) fn then(self, then: Self) -> Self {
        Self::ALL[usize::from(self as u8 ^ then as u8)]
    }
}

/// How something from a foreign endpoint fared at the client's mapped endpoint. UDP knows only accepted and dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Outcome {
    /// It reached the client.
    Accepted = 0,
    /// An RST or an ICMP error came back.
    Refused = 1,
    /// Nothing came back.
    Dropped = 2,
    /// The TCP handshake was completed by something that is not the client.
    Intercepted = 3,
    /// The reflector could not try.
    Untried = 4,
}

impl Outcome {
    pub(super) fn from_value(value: u8) -> Option<Self> {
        [Self::Accepted, Self::Refused, Self::Dropped, Self::Intercepted, Self::Untried]
            .get(usize::from(value))
            .copied()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
            Self::Intercepted => "intercepted",
            Self::Untried => "untried",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_from_the_endpoint_that_differs_as_named() {
        let a: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        let endpoints = Endpoints::new(a, [10, 20]).unwrap();
        assert_eq!(endpoints.primary(), "192.0.2.1:10".parse().unwrap());
        assert_eq!(endpoints.at(Source::OtherPort), "192.0.2.1:20".parse().unwrap());
        assert_eq!(endpoints.at(Source::OtherAddress), "192.0.2.2:10".parse().unwrap());
        for asked in Source::ALL {
            assert_eq!(asked.then(Source::Same), asked);
            assert_eq!(asked.then(Source::Both).then(Source::Both), asked);
        }
    }

    #[test]
    fn two_means_two() {
        let [a, b]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        let six: IpAddr = "2001:db8::1".parse().unwrap();
        for (addrs, ports) in [([a, a], [1, 2]), ([a, b], [1, 1]), ([a, b], [0, 1]), ([a, six], [1, 2])] {
            assert!(Endpoints::new(addrs, ports).is_err(), "{addrs:?} {ports:?}");
        }
    }
}
